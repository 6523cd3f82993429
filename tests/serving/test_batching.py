"""Answers of the embedded engine are those of `generate`, whoever else is asked and whatever becomes of them."""

import time
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.serving.batching import BatchingEngine, Done
from tests.serving.answers import ask, ending_tiny, expected, random_tokens


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return the tiny model twice, the second one for an engine, and its tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    (one, tokenizer), (other, _) = ending_tiny(folder), ending_tiny(folder)
    return one, other, tokenizer


@contextmanager
def running(pair, slots=3, cache_tokens=1200, waiting=64):
    engine = BatchingEngine(pair[1], pair[2], slots=slots, cache_tokens=cache_tokens, waiting=waiting)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 2),  # what it begins with
        st.integers(1, 60),  # tokens of its own
        st.integers(0, 999),
        st.integers(1, 12),  # tokens of the answer
        st.sampled_from([0.0, 0.0, 0.003, 0.02]),  # seconds until it comes
    ),
    min_size=1,
    max_size=8,
)


@given(made=REQUESTS, slots=st.integers(1, 4))
@settings(max_examples=25)
def test_answers_are_those_of_generate_whenever_they_are_asked_for(pair, made, slots):
    model, _, tokenizer = pair
    asked = []
    with running(pair, slots, cache_tokens=slots * 400) as engine:
        for begin, length, seed, most, pause in made:
            time.sleep(pause)
            prompt = random_tokens(150 * begin, begin) + random_tokens(length, seed)
            asked.append((prompt, most, ask(engine, prompt, most)))
        for prompt, most, listener in asked:
            answer = expected(model, tokenizer, prompt, most)
            assert listener.wait().text == answer.text
            assert listener.end == Done(answer.finish, len(prompt), answer.tokens)
        assert engine.status().tokens_total >= sum(listener.end.completion_tokens for _, _, listener in asked)
        assert (engine.status().running, engine.status().queued) == (0, 0)
