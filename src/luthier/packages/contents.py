"""What a package holds, and what was found in a folder that claims to be one."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FACTS, PROMPT, TEMPLATE = "package.json", "prompt_settings.json", "chat_template.jinja"
SIGNATURE, MLMODEL, INDEX = "signature.json", "MLmodel", "model.safetensors.index.json"
REQUIRED = {
    FACTS: "what the package is: kind, base, dtype, hash of the chat template",
    PROMPT: "how a raw row or a client's messages become a prompt",
    TEMPLATE: "the chat template",
    "answer_schema.json": "JSON Schema of a valid answer; {} if answers are plain text",
    "tokenizer.json": "the tokenizer",
    "tokenizer_config.json": "its settings",
    "generation_config.json": "generation settings",
    "model_card.md": "for people",
    "sbom.json": "software bill of materials, CycloneDX",
    "lineage.json": "what the model was made from",
    "gate.json": "the gate's decision",
    MLMODEL: "makes the folder a model of MLflow's",
}
OPTIONAL = {"special_tokens_map.json", "added_tokens.json", SIGNATURE}
OF_KIND = {"merged": "config.json", "adapter": "adapter_config.json"}
WEIGHTS = {"merged": re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors"), "adapter": re.compile(r"adapter_model\.safetensors")}
MLFLOW_NOTE = "registered_model_meta"
"""Left by MLflow in a local store when it loads a registered model: name and version. No part of the package."""


class Tensor(NamedTuple):
    """A tensor as a header describes it; `begin` and `end` count bytes from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass
class Found:
    """What was read, each file once."""

    problems: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def strict(text: str) -> Any:
    """Read JSON that every reader understands alike: no key twice, no number that JSON has not."""

    def no_number(constant: str) -> Any:
        raise ValueError(f"{constant} is no number of JSON")

    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=no_number)


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} is there twice")
    return value


def nested(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every setting of a configuration with its path; no recursion, whoever wrote it may have nested it deeply."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while todo:
        path, here = todo.pop()
        inner = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
        for name, item in inner:
            yield (*path, str(name)), item
            todo.append(((*path, str(name)), item))


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    return ", ".join(map(shown, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(name: str) -> str:
    """Return a text as a terminal may print it: nothing in it ends a line or moves the cursor."""
    return name if name.isprintable() else ascii(name)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
