"""Weights and tokenizer in the plain Hugging Face layout that vLLM, Ollama and transformers read."""

import json
from pathlib import Path
from typing import Any

from luthier.artefacts import staged
from luthier.models import Base, ModelDirectory
from luthier.packages import facts_of, load_package
from luthier.packages.contents import TEMPLATE
from luthier.text.chat import settle_prompts

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def export(package: Path, folder: Path, precision: str | None = None, base: Base | None = None) -> ModelDirectory:
    """Write a merged model that needs nothing of Luthier's, whatever the base came from.

    Args:
        package: the package; it is checked first.
        folder: where to; it must not be there yet.
        precision: `bf16`, `fp16` or `fp32`; None keeps that of the package (`fp32` for an adapter's).
        base: the base model, which an adapter package needs.

    Raises:
        UserError: if the package is refused, or needs a base.
        FileExistsError: if `folder` is there already.
    """
    import torch

    dtype = DTYPES[precision] if precision else facts_of(package)["dtype"]
    model, tokenizer, _ = load_package(package, getattr(torch, dtype), base=base)
    settle_prompts(tokenizer)
    with staged(folder) as staging:
        save_plain(model, tokenizer, staging)
    return ModelDirectory(folder)


def save_plain(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model and its tokenizer so that readers older than transformers 5 understand them too.

    transformers 5 moved the base of rotary positions into `rope_parameters`: a reader that looks for `rope_theta` finds none,
    takes 10,000 and answers wrongly without a word (vLLM's pull request 42624, for one). It also writes a tokenizer class that
    version 4 does not have. Both forms are written here, and version 5 reads them as its own.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
    config = _read(folder / "config.json")
    config.pop("_name_or_path", None)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        config["rope_scaling"] = None if scaling.get("rope_type") == "default" else scaling
    config["torch_dtype"] = config["dtype"]
    _write(folder / "config.json", config)
    settings = _read(folder / "tokenizer_config.json")
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("backend", "is_local", "local_files_only", "chat_template"):
        settings.pop(name, None)
    _write(folder / "tokenizer_config.json", settings)


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
