"""The tiny model with another template, or with sharper weights, so that its answers differ from prompt to prompt."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from luthier.configuration import FolderParameters, ModelParameters
from luthier.models import load_model, load_tokenizer, resolve_base

QUESTIONS = [
    "hi",
    "where is my parcel",
    "x" * 40,
    "Ü" * 9,
    "the kettle leaks",
    "no",
    "?",
    "a b c",
    "when?",
    "no no",
    "the lid",
    "hm",
]
ASKED = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in QUESTIONS]

# as Qwen3: empty thoughts stand before the last answer, and in no prompt
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def folders_in(folder: Path) -> FolderParameters:
    """Return the folders of a project in `folder`."""
    place = str(folder)
    work = f"{place}/data/06_models/work"
    return FolderParameters(root=place, base_models=f"{place}/models", shards=f"{place}/data/02_intermediate/work", work=work)


def with_template(base, folder, template):
    """Return the base with another chat template."""
    shutil.copytree(base.folder, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    if template:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return dataclasses.replace(base, folder=folder, identity="another template")


def sharp_tiny(folder: Path) -> tuple[Any, Any]:
    """Return the model, in fp32, and its tokenizer; the same numbers every time."""
    base = resolve_base(ModelParameters(base="tiny:llama"), folders_in(folder))
    model = load_model(base, torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model, load_tokenizer(base)
