"""One forward pass over the new tokens of many rows, without padding: cache and attention for `luthier.generation`.

The tokens stand one after another as a single sequence, so every layer but attention works on them as they are. Attention
finds out from the pass that is under way where each belongs.
"""

import inspect
from collections.abc import Sequence
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer

from luthier.attention import NAME as SHORT_ATTENTION

NAME = "luthier_ragged"
FEW_QUERIES = 16  # up to here plain products are faster than PyTorch's attention, on a CPU two to ten times

Pair = tuple[torch.Tensor, torch.Tensor]


def fits(model: Any) -> bool:
    """Tell whether all that a model remembers of a token is a key and a value in each layer, and attention is the usual one."""
    usual = model._supports_attention_backend and model.config._attn_implementation in ("sdpa", SHORT_ATTENTION)
    together = len({parameter.device for parameter in model.parameters()}) == 1
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config.get_text_config()).layers)
    return usual and together and plain and {"position_ids", "logits_to_keep"} <= set(inspect.signature(model.forward).parameters)


class Cache:
    """Keys and values: for each layer those of what all prompts begin with, and those of each row in a slot of its own."""

    def __init__(self, slots: int = 0, capacity: int = 0, shared: dict[int, Pair] | None = None) -> None:
        """Make room for rows; memory is taken when a layer first keeps something."""
        self.slots, self.capacity = slots, capacity
        self.shared = shared or {}
        self.shared_tokens = next(iter(self.shared.values()))[0].shape[1] if self.shared else 0
        self.layers: dict[int, Pair] = {}

    def put(self, layer: int, key: torch.Tensor, value: torch.Tensor, slot: torch.Tensor, place: torch.Tensor) -> Pair:
        """Keep new keys and values, shapes (heads, tokens, width), at the slot and place of each; return all of the layer."""
        if layer not in self.layers:
            # zeros: what a row has not written yet is weighted with zero, and zero times garbage may be NaN
            keys, values = (new.new_zeros(self.slots, len(new), self.capacity, new.shape[2]) for new in (key, value))
            self.layers[layer] = keys, values
        for kept, new in zip(self.layers[layer], (key, value), strict=True):
            kept[slot, :, place] = new.transpose(0, 1)
        return self.layers[layer]

    def of_row(self, slot: int, tokens: int) -> dict[int, Pair]:
        """Return the first keys and values of a row, for each layer of shape (heads, tokens, width)."""
        return {layer: (keys[slot, :, :tokens], values[slot, :, :tokens]) for layer, (keys, values) in self.layers.items()}

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a row into another slot."""
        for pair in self.layers.values():
            for kept in pair:
                kept[target, :, :tokens] = kept[source, :, :tokens]

    def resized(self, slots: int, capacity: int, used: int) -> "Cache":
        """Return a cache of another shape with the first `used` rows of this one."""
        other = Cache(slots, capacity, self.shared)
        for layer, (keys, values) in self.layers.items():
            wider = [old.new_zeros(slots, old.shape[1], capacity, old.shape[3]) for old in (keys, values)]
            for new, old in zip(wider, (keys, values), strict=True):
                new[:used, :, : self.capacity] = old[:used, :, :capacity]
            other.layers[layer] = wider[0], wider[1]
        return other


class Step:
    """Where the tokens of one forward pass belong: they stand one after another, row by row.

    rows of 3, 1 and 2 tokens:  a a a b c c      for attention:  a a a
                                                                 b . .
                                                                 c c .
    """

    def __init__(self, cache: Cache, first: int, kept: Sequence[int], counts: Sequence[int], device: torch.device) -> None:
        """Lay out the tokens of neighbouring rows; the arguments are those of `forward`."""
        self.cache = cache
        self.slots = slice(first, first + len(counts))
        self.rows, self.queries = len(counts), max(counts)
        self.keys = max(map(sum, zip(kept, counts, strict=True)))
        start, count = torch.tensor(kept), torch.tensor(counts)
        begin = count.cumsum(0) - count
        row = torch.arange(self.rows).repeat_interleave(count)
        column = torch.arange(len(row)) - begin[row]
        line = torch.arange(self.queries)
        self.slot, self.place = (row + first).to(device), (start[row] + column).to(device)
        # padding repeats the row's last token: nothing reads what comes of it
        self.spread = (begin[:, None] + line.minimum(count[:, None] - 1)).flatten().to(device)
        self.gathered = (row * self.queries + column).to(device)
        # a token sees its row up to itself: shape (rows, queries, keys)
        self.seen = (torch.arange(self.keys) <= (start[:, None] + line)[:, :, None]).to(device)
        self.bias: torch.Tensor | None = None


# not an argument: some models hand none through to their attention
_STEP: ContextVar[Step] = ContextVar("the pass that is under way")


def forward(
    model: Any, cache: Cache, first: int, fed: Sequence[list[int]], kept: Sequence[int], scored: Sequence[int]
) -> torch.Tensor:
    """Let a model read new tokens of neighbouring rows, and keep their keys and values.

    Args:
        model: one that `fits`, set to the attention `NAME`.
        cache: of all rows.
        first: slot of the first row that is fed.
        fed: the new tokens of each row.
        kept: how many tokens of each row the cache holds.
        scored: after how many of the new tokens, the last ones, logits are wanted.

    Returns:
        logits, shape (sum of scored, vocabulary).
    """
    counts = [len(tokens) for tokens in fed]
    step = Step(cache, first, kept, counts, model.device)
    ends = accumulate(counts)
    wanted = [at for end, last in zip(ends, scored, strict=True) for at in range(end - last, end)]
    under_way = _STEP.set(step)
    try:
        logits: torch.Tensor = model(
            input_ids=torch.tensor([[token for tokens in fed for token in tokens]], device=model.device),
            position_ids=(step.place + cache.shared_tokens)[None],
            logits_to_keep=torch.tensor(wanted, dtype=torch.long, device=model.device),
            use_cache=False,
        ).logits
    finally:
        _STEP.reset(under_way)
    return logits[0]


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from the tokens of a pass to those of their rows so far, and to what all rows begin with.

    Args:
        module: the attention layer.
        query: shape (1, heads, tokens, width).
        key: shape (1, key heads, tokens, width).
        value: as `key`, perhaps of another width.
        attention_mask: none: transformers makes no mask for an attention of this name.
        scaling: factor on the scores, by default 1 / sqrt(width).
        **kwargs: what only other attentions need.

    Returns:
        shape (1, tokens, heads, width of the values).
    """
    step = _STEP.get()
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = (all_[step.slots, :, : step.keys] for all_ in step.cache.put(layer, key[0], value[0], step.slot, step.place))
    asked = query[0].transpose(0, 1)[step.spread].unflatten(0, (step.rows, step.queries)).transpose(1, 2)
    attention = _few_queries if step.queries <= FEW_QUERIES else _many_queries
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    output = attention(step, asked, keys, values, step.cache.shared.get(layer), scale)
    return output.transpose(1, 2).flatten(0, 1)[step.gathered][None], None


AttentionInterface.register(NAME, _attend)


def _many_queries(
    step: Step, asked: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, shared: Pair | None, scale: float
) -> torch.Tensor:
    """Attend with PyTorch's function, for prompts: it holds no scores. What all share is copied for each row.

    Args:
        step: where the tokens belong.
        asked: queries, shape (rows, heads, queries, width).
        keys: shape (rows, key heads, keys, width).
        values: as `keys`.
        shared: keys and values of what all rows begin with, shape (key heads, shared keys, width).
        scale: factor on the scores.

    Returns:
        shape (rows, heads, queries, width).
    """
    mask = step.seen[:, None]
    if shared:
        keys, values = (torch.cat([a.expand(step.rows, -1, -1, -1), b], 2) for a, b in zip(shared, (keys, values), strict=True))
        mask = pad(mask, (step.cache.shared_tokens, 0), value=True)
    return scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)


def _few_queries(
    step: Step, asked: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, shared: Pair | None, scale: float
) -> torch.Tensor:
    """Attend with plain products: to what all share one for all rows. As `_many_queries`."""
    rows, groups = keys.shape[:2]
    if step.bias is None:  # the same in all layers
        step.bias = torch.zeros(step.seen.shape, dtype=asked.dtype, device=asked.device)
        step.bias = step.bias.masked_fill_(~step.seen, torch.finfo(asked.dtype).min / 2)[:, None, None]
    # heads that share keys are rows of one product
    lines = asked.reshape(rows, groups, -1, asked.shape[3])
    own = torch.bmm(lines.flatten(0, 1), keys.flatten(0, 1).mT).view(rows, groups, -1, step.queries, step.keys)
    scores = own.add_(step.bias).flatten(2, 3)
    if shared:
        everyone = torch.bmm(lines.transpose(0, 1).flatten(1, 2), shared[0].mT)
        scores = torch.cat([everyone.unflatten(1, (rows, -1)).transpose(0, 1), scores], 3)
    weights = torch.softmax(scores * scale, dim=3, dtype=torch.float32).to(values.dtype)
    before = step.cache.shared_tokens
    output = torch.bmm(weights[..., before:].flatten(0, 1), values.flatten(0, 1)).unflatten(0, (rows, groups))
    if shared:
        everyone = torch.bmm(weights[..., :before].transpose(0, 1).flatten(1, 2), shared[1])
        output = output + everyone.unflatten(1, (rows, -1)).transpose(0, 1)
    return output.reshape(rows, asked.shape[1], step.queries, -1)
