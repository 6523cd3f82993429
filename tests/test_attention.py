"""Attention by plain products is attention: the same output and gradients as PyTorch's, for every shape and mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from luthier import attention


class Layer(torch.nn.Module):
    """What transformers tells an attention function about its layer."""

    is_causal = True

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


SHAPES = st.tuples(
    st.integers(1, 3),  # batch
    st.sampled_from([(1, 1), (3, 1), (2, 2), (6, 3)]),  # heads, key heads
    st.integers(1, 9),  # queries
    st.integers(0, 9),  # keys before them
    st.sampled_from([4, 16]),  # width
)


def tensors(shape, seed):
    batch, (heads, key_heads), queries, before, width = shape
    random = torch.Generator().manual_seed(seed)

    def make(count, length):
        return torch.randn(batch, count, length, width, generator=random, dtype=torch.float64, requires_grad=True)

    return make(heads, queries), make(key_heads, before + queries), make(key_heads, before + queries)


def mask_of(shape, padded, seed):
    """Return a causal mask whose first keys are padding in some rows."""
    batch, _, queries, before, _ = shape
    mask = torch.ones(queries, before + queries, dtype=torch.bool).tril(before).expand(batch, 1, -1, -1)
    if padded and before:
        padding = torch.randint(0, before, (batch,), generator=torch.Generator().manual_seed(seed))
        mask = mask & (torch.arange(before + queries) >= padding[:, None])[:, None, None]
    return mask


@given(SHAPES, st.sampled_from(["none", "shared", "padded"]), st.sampled_from([None, 0.3]), st.integers(0, 100))
@settings(max_examples=80, deadline=None)
def test_output_and_gradients_equal_pytorch(shape, kind, scaling, seed):
    groups = shape[1][0] // shape[1][1]
    mask = mask_of(shape, kind == "padded", seed)
    ours, theirs = tensors(shape, seed), tensors(shape, seed)
    expected = scaled_dot_product_attention(*theirs, attn_mask=mask, scale=scaling, enable_gqa=True).transpose(1, 2)
    given_mask = None if kind == "none" else mask
    result, _ = attention.short_attention(Layer(groups), *ours, given_mask, scaling=scaling)
    # the weights are float32, as in transformers' own
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(seed), dtype=result.dtype)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_a_row_that_may_look_at_nothing_stays_finite():
    shape = (2, (2, 1), 3, 0, 4)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    mask[0, :, 0] = False
    result, _ = attention.short_attention(Layer(2), *tensors(shape, 0), mask)
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("lengths", [(attention.LONGEST - 8, 8), (attention.LONGEST, 8)])
def test_both_sides_of_the_limit_agree(lengths):
    before, queries = lengths
    shape = (2, (4, 2), queries, before, 16)
    query, key, value = (tensor.detach().float() for tensor in tensors(shape, 0))
    mask = mask_of(shape, True, 0)
    result, _ = attention.short_attention(Layer(2), query, key, value, mask)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
