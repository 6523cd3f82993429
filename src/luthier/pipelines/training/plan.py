"""What a training run will do and need, told before it starts; what cannot fit is refused."""

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.machine import available_memory, resolve_precision, threads_per_process
from luthier.models import Base, text_config
from luthier.pipelines.training.batches import Order, steps_per_epoch
from luthier.pipelines.training.parameters import Lora, TrainingParameters

if TYPE_CHECKING:
    from luthier.pipelines.training.examples import Measures

GIB = 2**30


def count_parameters(folder: Path) -> int:
    """Count a model's weights from the headers of its safetensors files, without loading them."""
    from safetensors import safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 (the handle is no dictionary)
                size = 1
                for extent in weights.get_slice(name).get_shape():
                    size *= extent
                total += size
    return total


def _matrices(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of a model's matrices by the names of their layers."""
    from safetensors import safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118
                shape = weights.get_slice(name).get_shape()
                if len(shape) == 2:
                    found[name.removesuffix(".weight")] = shape
    return found


def _has_adapter(layer: str, targets: str | list[str]) -> bool:
    """Tell whether the matrix of this layer gets an adapter, by peft's rules."""
    if targets == "all-linear":
        return "embed" not in layer and "lm_head" not in layer
    if isinstance(targets, str):
        return re.fullmatch(targets, layer) is not None
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def _adapter_parameters(base: Base, lora: Lora) -> int:
    """Count what LoRA adds to the matrices that it stands beside: rank x (rows + columns).

    Raises:
        UserError: if there is none of those that `lora.targets` names.
    """
    matrices = _matrices(base.folder)
    adapted = [shape for layer, shape in matrices.items() if _has_adapter(layer, lora.targets)]
    if not adapted:
        names = sorted({layer.rpartition(".")[2] for layer in matrices if "embed" not in layer})
        raise UserError(
            f"training.lora.targets: {base.name} has no layer {lora.targets!r}, so no adapter would be trained. Name some of "
            f"[{', '.join(names)}] in a list, or write a regular expression for whole names such as {max(matrices, key=len)!r}."
        )
    return lora.rank * sum(map(sum, adapted))


def _flops_per_second(precision: str) -> float:
    """Measure, in a quarter of a second, how fast this machine multiplies matrices."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 1024
    matrix = torch.ones(size, size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32, device=device)
    matrix @ matrix
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 0.25:
        (matrix @ matrix)[0, 0].item()
        done += 1
    return done * 2 * size**3 / (time.perf_counter() - start)


def make_plan(
    order: Order,
    train: "Measures",
    validation: "Measures",
    base: Base,
    parameters: TrainingParameters,
    seed: int,
) -> dict[str, Any]:
    """Work out steps, batch, and estimates of memory and time.

    Args:
        order: in which the examples are taken, and how often.
        train: what is known of the training examples.
        validation: and of those whose loss is measured.
        base: the model to start from.
        parameters: the room's parameters.
        seed: of the order of data and the adapters' first weights.

    Raises:
        UserError: if the machine lacks the memory or the devices, no example is taken in these epochs, or no layer is trained.
    """
    import torch

    from luthier.pipelines.training.examples import sample_of

    precision = resolve_precision(parameters.precision)
    devices = torch.cuda.device_count()
    device = "cuda" if devices else "cpu"
    times = [order.times(epoch) for epoch in range(parameters.epochs)]
    all_steps = sum(steps_per_epoch(int(taken.sum()), parameters.batch_size) for taken in times)
    if not all_steps:
        raise UserError(
            f"Of {len(train.lengths)} training examples none is taken in training.epochs ({parameters.epochs}): their weights "
            "are too small. Write a higher weight at their source (data.sources.NAME.weight: 1 takes each once an epoch), a "
            "lower data_processing.augment.max_weight, or more training.epochs."
        )
    steps = min(all_steps, parameters.max_steps or all_steps)
    tokens, supervised = (int(sum(times) @ count * steps / all_steps) for count in (train.lengths, train.supervised))

    weights = count_parameters(base.folder)
    trained = weights if parameters.method == "full" else _adapter_parameters(base, parameters.lora)
    config = text_config(base)
    weight_bytes = 2 if device == "cuda" and parameters.method == "lora" and precision == "bf16" else 4
    longest = int(train.lengths.max())
    micro = max(longest, min(parameters.micro_batch_tokens, parameters.batch_size * longest))
    # measured with SmolLM2 on a CPU, where 34 hidden-sized activations of 2 bytes would be the least (Korthikanti et al.
    # 2022, arXiv:2205.05198, table 2): per token, layer and hidden unit 60 bytes are kept for the backward pass, 80 in
    # fp32; to them come the logits of the supervised share in fp32 with their gradient, and the libraries
    activations = micro * config.num_hidden_layers * config.hidden_size * (60 if precision == "bf16" else 80)
    logits = micro * float(train.supervised.sum() / train.lengths.sum()) * config.vocab_size * 10
    memory = weights * weight_bytes + trained * 12 + activations + logits + GIB
    # every process holds all examples, in the machine's memory on a GPU too
    held = (train.memory() + validation.memory()) * parameters.processes
    memory = memory * parameters.processes + held if device == "cpu" else memory
    available = torch.cuda.mem_get_info()[0] if device == "cuda" else available_memory()

    if device == "cuda" and parameters.processes > devices:
        raise UserError(f"training.processes is {parameters.processes}, but this machine has {devices} GPUs.")
    if held > available_memory():
        raise UserError(
            f"{len(train.lengths) + len(validation.lengths):,} examples take about {held / GIB:.1f} GiB in all processes, "
            f"but {available_memory() / GIB:.1f} GiB are free on this machine: lower training.processes "
            f"({parameters.processes}) or train on fewer examples."
        )
    if memory > available:
        of_it = f" The examples take {held / GIB:.1f} GiB of it." if device == "cpu" else ""
        raise UserError(
            f"Training needs about {memory / GIB:.1f} GiB, but {available / GIB:.1f} GiB are free on this {device}: lower "
            f"training.micro_batch_tokens ({parameters.micro_batch_tokens}), training.processes ({parameters.processes}) "
            f"or choose a smaller model.base.{of_it}"
        )
    # forward 2, backward through the activations 2, backward into the trained weights 2 operations a weight and token;
    # a training step reaches about 0.4 of the speed of one large matrix product
    measured = sample_of(validation, parameters.evaluate_examples)
    measurements = len(parameters.measuring_steps(steps)) + 1 if measured else 0
    measured_tokens = measurements * int(validation.lengths[measured].sum())
    flops = ((6 if parameters.method == "full" else 4) * tokens + 2 * measured_tokens) * weights
    speed = _flops_per_second(precision) * 0.4 * (parameters.processes if device == "cuda" else 1)
    return {
        "base": base.identity,
        "method": parameters.method,
        "examples": len(train.lengths),
        "steps": steps,
        "effective_batch": parameters.batch_size,
        "tokens": tokens,
        "supervised_tokens": supervised,
        "measured_examples": len(measured),
        "measurements": measurements,
        "parameters": weights,
        "trained_parameters": trained,
        "device": device,
        "processes": parameters.processes,
        "threads_per_process": threads_per_process(parameters.processes, os.environ),
        "precision": precision,
        "memory_gib": round(memory / GIB, 2),
        "memory_available_gib": round(available / GIB, 2),
        "estimated_seconds": round(flops / speed),
        "seed": seed,
    }


def describe_plan(plan: dict[str, Any]) -> str:
    """Say the plan in a few lines for the terminal."""
    minutes, seconds = divmod(plan["estimated_seconds"], 60)
    lines = (
        f"{plan['method']} on {plan['base']}: {plan['trained_parameters']:,} of {plan['parameters']:,} parameters are trained",
        f"{plan['examples']:,} examples, {plan['steps']:,} steps of {plan['effective_batch']} examples",
        f"{plan['tokens']:,} tokens, {plan['supervised_tokens']:,} of them supervised",
        f"the loss of {plan['measured_examples']:,} held-out examples is measured {plan['measurements']} times",
        f"{plan['processes']} process(es) on {plan['device']}, {plan['precision']}, {plan['threads_per_process']} thread(s) each",
        f"about {plan['memory_gib']:.1f} GiB of {plan['memory_available_gib']:.1f} GiB free, about {minutes} min {seconds:02d} s",
    )
    return "\n  ".join(lines)
