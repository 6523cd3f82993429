"""Parameters of training."""

from typing import Literal

from pydantic import Field

from luthier.configuration import Parameters, RegularExpression

MEASURED_TIMES, MEASURED_EVERY = 20, 20
"""How often a run measures the held-out loss at most, and how many steps there are between, where nothing else is asked for."""


class Lora(Parameters):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), used where `method` is `lora`."""

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=32, gt=0)
    """Scale of an adapter's output: alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in front of each adapter."""
    targets: RegularExpression | list[str] = "all-linear"
    """Names of the layers that get an adapter: a list such as `[q_proj, v_proj]`, or a regular expression for whole names, as
    peft has it; `all-linear` is all but the output head."""


class TrainingParameters(Parameters):
    """Parameters of the room. The batch is the same whatever the number of processes."""

    method: Literal["lora", "full"] = "lora"
    """Train adapters, or all weights."""
    lora: Lora = Field(default_factory=Lora)
    """The adapters."""
    processes: int = Field(default=1, ge=1)
    """Worker processes: one a GPU; on a CPU one, unless it has several sockets."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the training examples."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps; null trains all epochs."""
    batch_size: int = Field(default=16, ge=1)
    """Examples per optimiser step, over all processes."""
    micro_batch_tokens: int = Field(default=1536, ge=16)
    """Padded tokens that one process computes at once: bounds the memory, never changes the result but for rounding."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate: about 1e-3 for adapters of a small model, 1e-5 for all weights."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls to zero after the warm-up."""
    warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps over which the rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay, on matrices only."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto` is bf16 autocast where the processor computes it natively, else fp32."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between two measurements of the held-out loss; null measures it 20 times a run, but never more often than every 20
    steps. The last step is always measured."""
    evaluate_examples: int | None = Field(default=512, ge=1)
    """Held-out examples whose loss is measured, the same ones in every run of the same data; null takes all."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps between two checkpoints: what a killed run may lose."""

    def measuring_steps(self, steps: int) -> range:
        """Return after which steps, counted from 1, the held-out loss is measured; after the last one too."""
        every = self.evaluate_every or max(MEASURED_EVERY, -(-steps // MEASURED_TIMES))
        return range(every, steps, every)
