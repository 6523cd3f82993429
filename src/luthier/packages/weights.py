"""Weights in safetensors: read once, without loading them, and held against what the package says about itself."""

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from luthier.packages.contents import FACTS, INDEX, Found, Tensor, first_line, nested, some, strict

MOST_HEADER = 100_000_000
"""Bytes of a header: the limit of the format's own reader (https://github.com/huggingface/safetensors#format)."""
CHUNK = 2**22


class Dtype(NamedTuple):
    """How a kind of numbers lies in a file: `bits` holds all but the sign, from `special` on it is an infinity or NaN."""

    name: str
    view: str
    bits: int
    special: int


DTYPES = {
    "F32": Dtype("float32", "<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "F16": Dtype("float16", "<u2", 0x7FFF, 0x7C00),
    "BF16": Dtype("bfloat16", "<u2", 0x7FFF, 0x7F80),
}


def read_weights(name: str, file: Any, size: int, found: Found) -> None:
    """Hash a file of tensors and look for numbers that are none, in one pass."""
    digest = hashlib.sha256()
    start = file.read(8)
    digest.update(start)
    length = int.from_bytes(start, "little")
    tensors: dict[str, Tensor] = {}
    if len(start) < 8 or not 2 <= length <= min(MOST_HEADER, size - 8):
        found.problems.append(f"{name}: its header would have {length:,} bytes, of a file of {size:,}: no safetensors")
    else:
        header = file.read(length)
        digest.update(header)
        try:
            tensors = _parse_header(header, size - 8 - length)
        except (ValueError, RecursionError) as error:
            found.problems.append(f"{name}: no safetensors: {error or 'its header is nested too deeply'}")
    kinds = {tensor.dtype for tensor in tensors.values()}
    dtype = DTYPES.get(kinds.pop()) if len(kinds) == 1 else None
    at, buffer = 0, bytearray(CHUNK)
    special: int | None = None
    while read := file.readinto(buffer):
        digest.update(memoryview(buffer)[:read])
        if dtype and special is None:
            numbers = np.frombuffer(buffer, dtype.view, count=read // np.dtype(dtype.view).itemsize) & dtype.bits
            if numbers.size and int(numbers.max()) >= dtype.special:
                special = at + int(np.argmax(numbers >= dtype.special)) * numbers.itemsize
        at += read
    if special is not None:
        owner = next(tensor for tensor, where in tensors.items() if where.begin <= special < where.end)
        found.problems.append(f"{name}: {owner} holds NaN or an infinity")
    found.hashes[name] = digest.hexdigest()
    found.tensors[name] = tensors


def _parse_header(header: bytes, room: int) -> dict[str, Tensor]:
    """Return the tensors that a header describes, in the order of their bytes.

    The rules are those of https://github.com/huggingface/safetensors#format: each tensor has the bytes of its shape, and
    together they cover the data without a hole, so that nothing can hide between them.

    Args:
        header: JSON.
        room: bytes that follow the header.

    Raises:
        ValueError: if it is anything else.
    """
    value = strict(header.decode("utf-8"))
    if not isinstance(value, dict):
        raise ValueError("its header is no JSON object")
    notes = value.pop("__metadata__", {})
    if not (isinstance(notes, dict) and all(isinstance(note, str) for note in notes.values())):
        raise ValueError("its metadata are no texts")
    tensors = {name: _parse_tensor(name, entry) for name, entry in value.items()}
    ordered = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    at = 0
    for name, tensor in ordered:
        if tensor.begin != at:
            raise ValueError(f"{name} begins at byte {tensor.begin:,}, where the tensor before it ends at {at:,}")
        at = tensor.end
    if at != room:
        raise ValueError(f"its tensors take {at:,} bytes, but {room:,} follow the header")
    return dict(ordered)


def _parse_tensor(name: str, entry: Any) -> Tensor:
    if not (isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}):
        raise ValueError(f"{name} is not described by dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers) or len(offsets) != 2 or len(shape) > 8:
        raise ValueError(f"{name} has a shape or offsets that are no sizes")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} is in {entry['dtype']!r}; a package holds {', '.join(DTYPES)}")
    begin, end = offsets
    size = np.dtype(DTYPES[entry["dtype"]].view).itemsize
    for extent in shape:
        size *= extent
    if end - begin != size:
        raise ValueError(f"{name} has {end - begin:,} bytes, but its shape {shape} takes {size:,}")
    return Tensor(entry["dtype"], tuple(shape), begin, end)


def check_tensors(kind: str | None, found: Found) -> None:
    """Note tensors that are not as the package's own files say: dtype, index of shards, halves of an adapter."""
    facts = found.values.get(FACTS)
    wanted = facts.get("dtype") if isinstance(facts, dict) else None
    for file, tensors in found.tensors.items():
        wrong = [name for name, tensor in tensors.items() if DTYPES[tensor.dtype].name != wanted]
        if wrong:
            found.problems.append(
                f"{file}: {some(wrong)}: stored as {DTYPES[tensors[wrong[0]].dtype].name}, but {FACTS} says {wanted}"
            )
    if kind == "merged":
        _check_index(found)
    if kind == "adapter":
        _check_adapter(found)


def _check_index(found: Found) -> None:
    whole = "model.safetensors" in found.tensors
    if whole and len(found.tensors) == 1 and INDEX not in found.values:
        return
    index = found.values.get(INDEX)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if whole or not isinstance(table, dict):
        found.problems.append(f"{INDEX}: weights are either model.safetensors alone, or shards with an index")
        return
    held = {name: file for file, tensors in found.tensors.items() for name in tensors}
    wrong = [name for name in held.keys() | table.keys() if held.get(name) != table.get(name)]
    twice = len(held) != sum(map(len, found.tensors.values()))
    if wrong or twice:
        what = "a tensor is there twice" if twice else some(sorted(wrong))
        found.problems.append(f"{INDEX}: does not say which file holds which tensor: {what}")


def _check_adapter(found: Found) -> None:
    config = found.values.get("adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or type(config.get("r")) is not int:
        found.problems.append("adapter_config.json: is none of a LoRA adapter")
        return
    rank = config["r"]
    for file, tensors in found.tensors.items():
        pairs = re.compile(r"(.+)\.lora_([AB])\.weight")
        halves = {name: pairs.fullmatch(name) for name in tensors}
        wrong = [
            name
            for name, match in halves.items()
            if match is None
            or len(tensors[name].shape) != 2
            or tensors[name].shape[0 if match[2] == "A" else 1] != rank
            or f"{match[1]}.lora_{'B' if match[2] == 'A' else 'A'}.weight" not in tensors
        ]
        if wrong or not tensors:
            found.problems.append(f"{file}: {some(wrong) or 'no tensor'}: not the two halves of an adapter of rank {rank}")


def check_architecture(folder: Path, found: Found) -> None:
    """Hold the tensors' names and shapes against the model that the configuration describes, without loading a weight."""
    tensors = sum(map(len, found.tensors.values()))
    for path, count in nested(found.values["config.json"]):
        # even without weights, a billion layers would fill the memory
        if re.fullmatch(r"n(um)?_(\w+_)?layers?", path[-1]) and isinstance(count, int) and count > tensors:
            found.problems.append(f"config.json: {'.'.join(path)} is {count:,}, but there are {tensors:,} tensors only")
            return
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from luthier.quiet import quiet_libraries

    quiet_libraries()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        tokens = max(Tokenizer.from_str(found.texts["tokenizer.json"]).get_vocab().values(), default=0)
    except Exception as error:  # a configuration that no check above foresaw; whatever it raises, it is refused
        found.problems.append(f"config.json: describes no model that transformers knows: {first_line(error)}")
        return
    for name in sorted(report["missing_keys"]):
        found.problems.append(f"weights: {name} is missing")
    for name in sorted(report["unexpected_keys"]):
        found.problems.append(f"weights: {name} belongs to no layer of the model")
    for name, there, wanted in sorted(report["mismatched_keys"], key=str):
        found.problems.append(f"weights: {name} has the shape {tuple(there)}, but config.json asks for {tuple(wanted)}")
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens >= rows:
        found.problems.append(f"tokenizer.json: has a token {tokens:,}, but the model knows {rows:,} tokens")
