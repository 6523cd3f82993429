"""Refuse whatever is no package, with all reasons at once."""

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.artefacts import MANIFEST, hash_of
from luthier.errors import UserError
from luthier.packages.contents import (
    FACTS,
    INDEX,
    MLFLOW_NOTE,
    MLMODEL,
    OF_KIND,
    OPTIONAL,
    PROMPT,
    REQUIRED,
    TEMPLATE,
    WEIGHTS,
    Found,
    nested,
    shown,
    strict,
)
from luthier.packages.signatures import check_signature
from luthier.packages.templates import template_problem
from luthier.packages.weights import DTYPES, check_architecture, check_tensors, read_weights
from luthier.text.prepare import PromptSettings

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5"}
CODE = {".py", ".pyc", ".so", ".dll", ".sh", ".ipynb"}

NOTE = re.compile(r"model_name: '?[\w .+-]{1,300}'?\nmodel_version: '?[\w.-]{1,40}'?\n")

MOST_BYTES = {"tokenizer.json": 2**26, INDEX: 2**24}
MOST_BYTES_ELSE = 2**22

# What makes transformers, peft or MLflow run code that came with a model or fetch it from a hub, at any depth of a configuration.
FORBIDDEN_KEYS = re.compile(
    r"auto_map|auto_mapping|trust_remote_code|custom_pipelines|custom_generate|code_revision|parent_library|base_model_class"
    r"|_?(attn|experts)_implementation(_internal)?|(quantization|loftq|eva|corda|megatron|arrow)_config|tokenizer_file"
)


def check_package(folder: Path, expected: str | None = None, key: Path | None = None) -> dict[str, Any]:
    """Read every byte of a package, refuse whatever is none, and return its manifest.

    Args:
        folder: the package.
        expected: the root hash that it must have, as the registry keeps it. A folder that has it is, bit by bit, the one
            that was checked when it was packaged, so its tensors are not held against the architecture again: that takes
            torch and transformers, whose import alone takes seconds.
        key: a public key (Ed25519, PEM) that must have signed it.

    Raises:
        UserError: naming all that is wrong, each with its reason.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no package: there is no such folder.")
    found = _read_all(folder)
    manifest = _check_manifest(found, expected)
    kind = _check_facts(found)
    _check_names_for(kind, found)
    _check_configurations(found)
    check_tensors(kind, found)
    _check_template(found)
    _check_mlmodel(found)
    if key is not None:
        check_signature(found, key)
    if not found.problems and expected is None and kind == "merged":
        check_architecture(folder, found)
    if found.problems:
        # whoever named a file or a tensor must not write to the reader's terminal
        told = "\n  ".join(map(shown, found.problems))
        raise UserError(f"{folder} is refused; it is no package that Luthier made.\n  {told}")
    return manifest


def _read_all(folder: Path) -> Found:
    found = Found()
    seen: dict[str, str] = {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            found.problems.append(f"{name}: differs from {other} in case only; one can hide the other")
        problem = _problem_of_name(name) or _problem_of_entry(folder / name, (folder / name).lstat())
        if problem is None:
            try:
                problem = _read(folder / name, found)
            except OSError as error:
                problem = f"cannot be read: {error.strerror}"
        if problem:
            found.problems.append(f"{name}: {problem}")
    return found


def _problem_of_name(name: str) -> str | None:
    if name in (MANIFEST, INDEX, MLFLOW_NOTE, *REQUIRED, *OPTIONAL, *OF_KIND.values()):
        return None
    if any(pattern.fullmatch(name) for pattern in WEIGHTS.values()):
        return None
    ending = Path(name).suffix.lower()
    if ending in PICKLES:
        return "weights are safetensors only; a pickle can run code when it is read"
    if ending in CODE:
        return "a package holds no code"
    return "no file of a package"


def _problem_of_entry(path: Path, facts: os.stat_result) -> str | None:
    if stat.S_ISLNK(facts.st_mode):
        return f"is a link to {path.readlink()}; its content can change behind the manifest"
    if stat.S_ISDIR(facts.st_mode):
        return "is a folder; a package is flat"
    if not stat.S_ISREG(facts.st_mode):
        return "is no regular file"
    if facts.st_nlink > 1:
        return f"has {facts.st_nlink} names (hard links); its content can change under another one"
    most = MOST_BYTES.get(path.name, MOST_BYTES_ELSE)
    if path.suffix != ".safetensors" and facts.st_size > most:
        return f"has {facts.st_size:,} bytes, more than the {most:,} that such a file may have"
    return None


def _read(path: Path, found: Found) -> str | None:
    """Read one file; return why it is none after all."""
    # not waiting, following no link, and looked at again: the entry may have been exchanged in between
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        problem = _problem_of_entry(path, facts)
        if problem:
            return problem
        found.sizes[path.name] = facts.st_size
        if path.suffix == ".safetensors":
            read_weights(path.name, file, facts.st_size, found)
            return None
        data = file.read(MOST_BYTES.get(path.name, MOST_BYTES_ELSE) + 1)
    found.hashes[path.name] = hashlib.sha256(data).hexdigest()
    try:
        found.texts[path.name] = data.decode("utf-8")
        if path.suffix == ".json":
            found.values[path.name] = strict(found.texts[path.name])
    except (ValueError, RecursionError) as error:
        return f"cannot be read: {'it is nested too deeply' if isinstance(error, RecursionError) else error}"
    return None


def _check_manifest(found: Found, expected: str | None) -> dict[str, Any]:
    def say(what: str) -> None:
        found.problems.append(f"{MANIFEST}: {what}")

    manifest = found.values.get(MANIFEST)
    if not (isinstance(manifest, dict) and manifest.keys() == {"files", "sha256"} and isinstance(manifest["files"], dict)):
        say("is missing, or holds something else than the files and their root hash (nothing vouches for what else it says)")
        return {}
    files = manifest["files"]
    there = found.hashes.keys() - {MANIFEST, MLFLOW_NOTE}
    for name, entry in files.items():
        if not _is_entry(entry):
            say(f"{name!r} has no size and hash")
        elif "/" in name or "\\" in name or name in ("", ".", "..") or "\0" in name:
            say(f"{name!r} would leave the folder")
        elif name not in there:
            say(f"names {name!r}, which is missing")
        elif entry["sha256"] != found.hashes[name]:
            say(f"{name} has changed (its sha256 differs)")
        elif entry["bytes"] != found.sizes[name]:
            say(f"{name} has {found.sizes[name]:,} bytes, not {entry['bytes']}")
    for name in sorted(there - files.keys()):
        say(f"does not name {name}")
    if not all(map(_is_entry, files.values())) or hash_of(files) != manifest["sha256"]:
        say("its own root hash differs")
    if expected is not None and manifest["sha256"] != expected:
        say(f"its root hash is {manifest['sha256']}, not {expected}: this is another package")
    return manifest


def _is_entry(entry: Any) -> bool:
    if not (isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"}):
        return False
    return type(entry["bytes"]) is int and isinstance(entry["sha256"], str)


def _check_facts(found: Found) -> str | None:
    """Return the kind of the package."""
    facts = found.values.get(FACTS)
    if not isinstance(facts, dict) or facts.get("format") != 1 or str(facts.get("kind")) not in OF_KIND:
        if FACTS in found.values:
            found.problems.append(f"{FACTS}: is of no format and kind known here")
        return None
    base = facts.get("base")
    if not (isinstance(base, dict) and base.keys() == {"name", "identity"} and all(isinstance(v, str) for v in base.values())):
        found.problems.append(f"{FACTS}: does not name the base by name and identity")
    if str(facts.get("dtype")) not in {dtype.name for dtype in DTYPES.values()}:
        found.problems.append(f"{FACTS}: names no dtype of weights")
    return str(facts["kind"])


def _check_names_for(kind: str | None, found: Found) -> None:
    wanted = {**REQUIRED, **({OF_KIND[kind]: "its configuration"} if kind else {})}
    for name in sorted(wanted.keys() - found.sizes.keys()):
        found.problems.append(f"{name}: is missing ({wanted[name]})")
    if kind is None:
        return
    if not found.tensors:
        found.problems.append("weights: there are none")
    other = "adapter" if kind == "merged" else "merged"
    for name in sorted(found.sizes):
        if name == OF_KIND[other] or WEIGHTS[other].fullmatch(name) or (name == INDEX and kind == "adapter"):
            found.problems.append(f"{name}: belongs to no {kind} model")


def _check_configurations(found: Found) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json"):
        value = found.values.get(name)
        if name in found.values and not isinstance(value, dict):
            found.problems.append(f"{name}: is no JSON object")
            continue
        for path, given in nested(value):
            if FORBIDDEN_KEYS.fullmatch(path[-1]) and given not in (None, False, {}, []):
                found.problems.append(f"{name}: {'.'.join(path)} is set; it can make a library run or fetch code")
    settings = found.values.get("tokenizer_config.json")
    if isinstance(settings, dict) and settings.get("chat_template"):
        found.problems.append(f"tokenizer_config.json: holds a second chat template beside {TEMPLATE}")
    if PROMPT in found.values:
        try:
            PromptSettings.model_validate(found.values[PROMPT])
        except ValidationError as error:
            found.problems.append(f"{PROMPT}: {error.errors()[0]['msg']} ({'.'.join(map(str, error.errors()[0]['loc']))})")


def _check_template(found: Found) -> None:
    text = found.texts.get(TEMPLATE)
    if text is None:
        return
    facts = found.values.get(FACTS)
    recorded = facts.get("chat_template") if isinstance(facts, dict) else None
    if recorded != found.hashes[TEMPLATE]:
        found.problems.append(f"{TEMPLATE}: is not the template that the model was trained with (its sha256 differs)")
    problem = template_problem(text)
    if problem:
        found.problems.append(f"{TEMPLATE}: {problem}")


def mlmodel(mlflow_version: str, python_version: str) -> str:
    """Return the file that makes a package a model of MLflow's: loaded by `luthier.packages`, without a pickle.

    Nothing else is in it, not even a time: equal packages are equal bytes.
    """
    return (
        "flavors:\n  python_function:\n"
        f"    loader_module: luthier.packages\n    python_version: {python_version}\n"
        f"mlflow_version: {mlflow_version}\n"
    )


def _check_mlmodel(found: Found) -> None:
    text = found.texts.get(MLMODEL, "")
    versions = [re.search(rf"^ *{name}: ([\w.+-]{{1,40}})$", text, re.MULTILINE) for name in ("mlflow_version", "python_version")]
    if MLMODEL in found.texts and text != mlmodel(*(match[1] if match else "" for match in versions)):
        found.problems.append(f"{MLMODEL}: is not ours; MLflow would run the code that it names")
    note = found.texts.get(MLFLOW_NOTE, "")
    if MLFLOW_NOTE in found.texts and not re.fullmatch(
        r"model_name: '?[\w .+-]{1,300}'?\nmodel_version: '?[\w.-]{1,40}'?\n", note
    ):
        found.problems.append(f"{MLFLOW_NOTE}: is no note of MLflow's")
