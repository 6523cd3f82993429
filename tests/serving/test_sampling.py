"""Draws follow the model's distribution, cut to the nucleus, and a seed repeats them."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from luthier.serving.engines import sampling
from luthier.serving.engines.sampling import Sampler, Sampling, nucleus

LOGITS = st.lists(st.floats(-8, 8), min_size=1, max_size=12).map(torch.tensor)
TEMPERATURES = st.floats(0.05, 2)


@given(logits=LOGITS, temperature=TEMPERATURES, top_p=st.floats(0, 1), likely=st.sampled_from([2, 512]))
@settings(max_examples=60)
def test_the_nucleus_is_the_smallest_set_that_has_the_share(logits, temperature, top_p, likely):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "LIKELY", likely)
        tokens, upto = nucleus(logits, temperature, top_p)
    shares = (logits.double() / temperature).softmax(0)
    if tokens is None:
        assert top_p == 1
        tokens = torch.arange(len(logits))
    inside = shares[tokens]
    assert torch.allclose(inside.cumsum(0), upto)
    assert len(tokens) == len(set(tokens.tolist())) >= 1
    if top_p < 1:
        assert inside.sum() >= min(top_p, shares.sum()) - 1e-9
        assert inside[:-1].sum() < top_p or len(tokens) == 1
        # of two that are as likely, either: the shares are rounded
        assert inside.min() >= max((share for at, share in enumerate(shares) if at not in tokens), default=0) - 1e-9


@pytest.mark.parametrize("temperature", [0.5, 1.7])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_many_draws_have_the_shares_of_the_nucleus(temperature, top_p):
    logits = torch.tensor([1.0, -0.5, 2.0, -torch.inf, 0.0, 1.5, -0.2])
    shares = (logits.double() / temperature).softmax(0)
    order = shares.argsort(descending=True)
    before = shares[order].cumsum(0) - shares[order]
    kept = order[(before < top_p) & (shares[order] > 0)].tolist()
    sampler = Sampler(Sampling(1, temperature, top_p, seed=1))
    counts = Counter(sampler.draw(logits) for _ in range(1500))
    assert counts.keys() == set(kept)
    expected = torch.tensor([shares[token] for token in kept])
    expected *= 1500 / expected.sum()
    assert chisquare([counts[token] for token in kept], expected).pvalue > 0.001


def test_a_seed_repeats_the_draws_and_no_seed_does_not():
    logits = torch.zeros(1000)
    one, same, other = (Sampler(Sampling(1, 1.0, seed=seed)) for seed in (7, 7, 8))
    draws = [[sampler.draw(logits) for _ in range(20)] for sampler in (one, same, other)]
    assert draws[0] == draws[1] != draws[2]
    free = [[Sampler(Sampling(1, 1.0)).draw(logits) for _ in range(5)] for _ in range(2)]
    assert free[0] != free[1]


@given(logits=LOGITS, temperature=st.sampled_from([1e-300, 1e-9]))
def test_next_to_no_temperature_takes_the_likeliest(logits, temperature):
    drawn = Sampler(Sampling(1, temperature)).draw(logits)
    assert logits[drawn] == pytest.approx(logits.max().item(), abs=1e-6)


@pytest.mark.parametrize(("temperature", "top_p", "greedy"), [(0, 1, True), (1, 0, True), (0.1, 0.1, False)])
def test_what_leaves_nothing_to_chance_is_greedy(temperature, top_p, greedy):
    assert Sampling(1, temperature, top_p).is_greedy == greedy
