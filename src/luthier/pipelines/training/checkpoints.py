"""Checkpoints that are whole or not there: weights, optimiser, random states and the position in the data."""

import json
import logging
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from luthier.artefacts import staged, verify
from luthier.errors import UserError

logger = logging.getLogger(__name__)
KEEP = 2


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def random_state() -> dict[str, Any]:
    """Return the states of all random generators of this process."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": repr(random.getstate()),
        "numpy": json.dumps(numpy_state, default=lambda value: value.tolist()),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set all random generators of this process."""
    import ast

    random.setstate(ast.literal_eval(state["python"]))
    numpy_state = json.loads(state["numpy"])
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def save(folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, states: list[dict[str, Any]]) -> None:
    """Write the checkpoint after `step` steps, then delete all but the newest two.

    Args:
        folder: where the checkpoints of this job lie.
        step: optimiser steps done.
        model: its trained weights are stored, nothing else.
        optimizer: with its moments.
        states: random states, one a process, in the order of ranks.
    """
    final = folder / f"step-{step:08d}"
    with staged(final, step=step, processes=len(states)) as staging:
        save_file({name: weight.contiguous() for name, weight in _trained(model).items()}, staging / "weights.safetensors")
        torch.save(optimizer.state_dict(), staging / "optimizer.pt")
        torch.save(states, staging / "random.pt")
    for old in _all(folder)[:-KEEP]:
        shutil.rmtree(old)
    for leftover in folder.glob(".staging-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    # they appear by renaming, whole: one without its manifest is damaged
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def load_latest(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> int:
    """Load the newest undamaged checkpoint and return the number of steps done; 0 if there is none.

    Damaged ones that are newer are deleted, since their steps are done again.

    Raises:
        UserError: if the only checkpoints are damaged: training anew is a decision for a person.
    """
    damaged: dict[Path, UserError] = {}
    for checkpoint in reversed(_all(folder)):
        try:
            verify(checkpoint)
        except UserError as error:
            damaged[checkpoint] = UserError(f"{checkpoint} is damaged: {error}")
            continue
        step = int(checkpoint.name.removeprefix("step-"))
        weights = load_file(checkpoint / "weights.safetensors")
        for name, weight in _trained(model).items():
            weight.copy_(weights[name])
        # weights_only: a pickle that could run code is refused
        optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
        states = torch.load(checkpoint / "random.pt", map_location="cpu", weights_only=True)
        if rank < len(states):
            restore_random_state(states[rank])
        if rank == 0:
            for newer, problem in damaged.items():
                logger.warning("Going on from step %d: %s", step, problem)
                shutil.rmtree(newer)
        return step
    if damaged:
        raise next(iter(damaged.values()))
    return 0
