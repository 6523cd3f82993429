"""A LoRA layer whose forward and backward pass add to the big products in place, instead of making new tensors.

peft computes `W x + scale * B(A(x))` as separate operations: on a CPU the casts, the scaling and the additions take
longer than the products. Here the low-rank part is accumulated into the output of the frozen product (`addmm_`), the
frozen weight is held in the dtype of the computation and never cast, and the backward pass keeps only `x` and `A x`.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as PeftLinear


class _LowRankProduct(torch.autograd.Function):
    """`x W' + scale * (x A') B'`, with the gradients of x, A and B; W is frozen.

    Shapes: x (tokens, in), W (out, in), A (rank, in), B (out, rank); the result is (tokens, out) in W's dtype.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        narrow = x @ a.T
        ctx.save_for_backward(x, weight, a, b, narrow)
        ctx.scale = scale
        return (x @ weight.T).addmm_(narrow, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, narrow = ctx.saved_tensors
        (dy,) = gradients
        du = (dy @ b).mul_(ctx.scale)
        dx = (dy @ weight).addmm_(du, a) if ctx.needs_input_grad[0] else None
        # gradients in the dtype of the adapters, which are kept in float32
        return dx, None, (du.T @ x).float(), (dy.T @ narrow).float().mul_(ctx.scale), None


class LowRankLinear(PeftLinear):
    """peft's LoRA layer with the product above; whatever it does not cover is left to peft."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the layer's output, shape (..., out)."""
        adapter = self.active_adapters[0]
        weight = self.base_layer.weight
        dropout = self.lora_dropout[adapter]
        if self.disable_adapters or self.merged or not self.training or (isinstance(dropout, torch.nn.Dropout) and dropout.p > 0):
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        flat = x.to(weight.dtype).flatten(0, -2)
        y = _LowRankProduct.apply(flat, weight, a, b, self.scaling[adapter]).unflatten(0, x.shape[:-1])
        return y if self.base_layer.bias is None else y + self.base_layer.bias


def use_low_rank_linear(config: LoraConfig) -> LoraConfig:
    """Let peft make our layer for every linear layer that gets an adapter."""
    config._register_custom_module({torch.nn.Linear: LowRankLinear})
    return config


def freeze_in(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Hold the frozen matrices under the adapters in the dtype of the computation, so that no step casts them."""
    for module in model.modules():
        if isinstance(module, LowRankLinear):
            module.base_layer.to(dtype)
