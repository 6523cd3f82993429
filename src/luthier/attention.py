"""Attention for short sequences on a CPU: plain matrix products, which there are faster than torch's flash kernel.

PyTorch's flash attention for CPUs is made for long sequences: at a hundred tokens its backward pass takes a sixth of a
training step. The products below take memory that grows with the square of the length, so they are for short ones; all
else (long sequences, dropout, other devices) goes to `scaled_dot_product_attention` as transformers calls it.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "luthier"
LONGEST = 512  # keys; above it flash attention wins, in time and in memory


def short_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output, shape (batch, queries, heads, width).

    Heads that share keys (grouped-query attention) are rows of one product, so no key is copied.

    Args:
        module: the attention layer.
        query: shape (batch, heads, queries, width).
        key: shape (batch, key heads, keys, width).
        value: the same shape as `key`.
        attention_mask: true where a query may look, shape (1 or batch, 1, queries, keys); None is causal, the last query
            looking at the last key.
        dropout: of the attention's weights; any is left to PyTorch.
        scaling: factor on the scores, by default 1 / sqrt(width).
        **kwargs: what only PyTorch's function needs.
    """
    batch, heads, queries, width = query.shape
    key_heads, keys = key.shape[1:3]
    causal = kwargs.get("is_causal") is not False and getattr(module, "is_causal", True)
    plain = causal and not dropout and all(kwargs.get(name) is None for name in ("softcap", "position_bias", "cache"))
    simple_mask = attention_mask is None or (attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1)
    if query.device.type != "cpu" or keys > LONGEST or not (plain and simple_mask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)

    if attention_mask is None:
        attention_mask = torch.ones(1, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    elif attention_mask.stride(0) == 0:
        attention_mask = attention_mask[:1]  # one mask, seen by all conversations
    groups = heads // key_heads
    # a low number, not minus infinity: where padding looks at nothing the weights stay numbers
    lowest = max(torch.finfo(value.dtype).min, torch.finfo(torch.float32).min / 2)
    bias = torch.zeros(attention_mask.shape, dtype=value.dtype).masked_fill_(~attention_mask, lowest)
    bias = bias.repeat(1, 1, groups, 1)
    bias = bias[0] if len(bias) == 1 else bias.expand(-1, key_heads, -1, -1).flatten(0, 1)
    rows = query.to(value.dtype).reshape(batch * key_heads, groups * queries, width)
    columns = key.to(value.dtype).flatten(0, 1).mT
    scores = torch.baddbmm(bias, rows, columns, alpha=width**-0.5 if scaling is None else scaling)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    output = torch.bmm(weights, value.flatten(0, 1))
    return output.view(batch, heads, queries, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, short_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
