"""The tiny model with sharper weights than it is built with, so that its answers differ from prompt to prompt."""

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


def folders_in(folder: Path) -> FolderParameters:
    """Return the folders of a project in `folder`."""
    place = str(folder)
    work = f"{place}/data/06_models/work"
    return FolderParameters(root=place, base_models=f"{place}/models", shards=f"{place}/data/02_intermediate/work", work=work)


def sharp_tiny(folder: Path) -> tuple[Any, Any]:
    """Return the model, in fp32, and its tokenizer; the same numbers every time."""
    base = resolve_base(ModelParameters(base="tiny:llama"), folders_in(folder))
    model = load_model(base, torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model, load_tokenizer(base)
