"""Answers of the embedded engine are those of `generate`, whoever else is asked and whatever becomes of them."""

import json
import random
import threading
import time
from contextlib import contextmanager

import jsonschema
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import generation
from luthier.constrained import JsonConstraint
from luthier.errors import UserError
from luthier.ragged import NAME
from luthier.serving.api.errors import ApiError
from luthier.serving.engines import batch
from luthier.serving.engines.batching import BatchingEngine, Done, Failed, TextPiece
from luthier.serving.engines.sampling import Sampling
from tests.serving.answers import PATIENCE, ask, ending_tiny, expected, random_tokens, written


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


@contextmanager
def held_up(engine):
    """Hold the engine up between two passes, so that requests come to it all at once."""
    reached, may_go_on = threading.Event(), threading.Event()

    def hold(_):
        reached.set()
        may_go_on.wait(PATIENCE)

    engine.submit(random_tokens(5, 4711), Sampling(1), hold)
    assert reached.wait(PATIENCE)
    try:
        yield
    finally:
        may_go_on.set()


def long_prompt(model, tokenizer, length, steps):
    """Return a prompt whose answer has more than so many tokens."""
    prompts = (random_tokens(length, seed) for seed in range(999))
    return next(p for p in prompts if tokenizer.eos_token_id not in written(model, p, steps))


@contextmanager
def recorded():
    """Record the tokens that each row reads in each pass."""
    passes = []

    def forward(model, cache, first, fed, *rest):
        passes.append([len(tokens) for tokens in fed])
        return usual(model, cache, first, fed, *rest)

    usual = batch.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "forward", forward)
        yield passes


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


@given(made=REQUESTS, slots=st.integers(1, 4), piece=st.sampled_from([20, 128]), rash=st.booleans())
@settings(max_examples=10)
def test_answers_are_those_of_generate_whenever_they_are_asked_for(pair, made, slots, piece, rash):
    model, _, tokenizer = pair
    asked = []
    with pytest.MonkeyPatch.context() as patch, running(pair, slots, cache_tokens=slots * 400) as engine:
        patch.setattr(batch, "READ_TOKENS", piece)
        patch.setattr(batch, "PASS_TOKENS", 4 * piece)
        if rash:  # what followed a token once is foreseen, and is often wrong
            patch.setattr(generation, "CONTEXT", 1)
            patch.setattr(generation, "SURE", 0.1)
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


def test_crowds_that_come_and_give_up_change_no_answer(pair):
    model, _, tokenizer = pair
    chance = random.Random(3)
    kept = []
    with running(pair, slots=4, cache_tokens=1600) as engine:
        for number in range(40):
            prompt = random_tokens(chance.choice([0, 40, 130]), 9) + random_tokens(chance.randint(1, 40), number)
            most = chance.randint(1, 20)
            listener = ask(engine, prompt, most)
            if chance.random() < 0.3:
                threading.Timer(chance.random() * 0.05, listener.ticket.cancel).start()
            else:
                kept.append((prompt, most, listener))
            time.sleep(chance.random() * 0.01)
        for prompt, most, listener in kept:
            assert listener.wait().text == expected(model, tokenizer, prompt, most).text


def test_log_probabilities_are_the_models_own(pair):
    model, _, tokenizer = pair
    prompts = [random_tokens(length, length) for length in (3, 30, 70)]
    with running(pair) as engine:
        listeners = [ask(engine, prompt, 20, top_logprobs=top) for prompt, top in zip(prompts, (0, 3, 20), strict=True)]
        for prompt, listener, top in zip(prompts, listeners, (0, 3, 20), strict=True):
            count = listener.wait().end.completion_tokens
            answer = written(model, prompt, 20)[:count]
            with torch.inference_mode():
                logs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            assert len(listener.tokens) == count
            for place, (token, told) in enumerate(zip(answer, listener.tokens, strict=True), len(prompt) - 1):
                assert told["token"] == tokenizer.decode([token])
                assert told["logprob"] == pytest.approx(logs[place, token].item(), abs=1e-4)
                best = logs[place].topk(top)
                assert [other["token"] for other in told["top_logprobs"]] == [tokenizer.decode([each]) for each in best.indices]
                assert [other["logprob"] for other in told["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert ask(engine, prompts[0]).wait().tokens == []


def test_a_stop_text_ends_the_answer_where_it_first_stands(pair):
    model, _, tokenizer = pair
    prompt = long_prompt(model, tokenizer, 9, 24)
    whole = tokenizer.decode(written(model, prompt, 24))
    with running(pair) as engine:
        for begin in range(0, 24, 3):
            stop = whole[begin : begin + 2]
            listener = ask(engine, prompt, 24, stop=("not in it", stop), top_logprobs=0).wait()
            assert listener.text == whole[: whole.index(stop)].strip()
            assert listener.end.finish == "stop"
            assert listener.end.completion_tokens < 24
            assert len(listener.tokens) <= listener.end.completion_tokens
        assert ask(engine, prompt, 24).wait().text == whole.strip()


def test_pieces_come_while_the_answer_is_written(pair):
    model, _, tokenizer = pair
    prompt = long_prompt(model, tokenizer, 9, 200)
    with running(pair) as engine:
        listener = ask(engine, prompt, 200)
        assert isinstance(listener.next(), TextPiece)
        assert engine.status().running == 1
        # halves of characters wait for each other, and this model writes many
        assert len(listener.wait().pieces) >= 10


def test_a_conversation_that_goes_on_reads_only_what_is_new(pair):
    model, _, tokenizer = pair
    prompt = long_prompt(model, tokenizer, 100, 10)
    longer = [*prompt, *written(model, prompt, 10), *random_tokens(12, 5)]
    with running(pair) as engine, recorded() as passes:
        ask(engine, prompt, 10).wait()
        assert sum(map(sum, passes)) == 100 + 9  # the last one that was written is not read
        passes.clear()
        answer = ask(engine, longer, 10).wait()
        assert sum(passes[0]) == 1 + 12
        passes.clear()
        again = ask(engine, longer, 10).wait()
        assert sum(passes[0]) == 1
    assert answer.text == again.text == expected(model, tokenizer, longer, 10).text


def test_what_prompts_begin_with_alike_is_read_once_also_if_they_come_together(pair):
    model, _, tokenizer = pair
    shared = random_tokens(150, 1)
    prompts = [shared + random_tokens(30, seed) for seed in range(4)]
    with running(pair, slots=5, cache_tokens=2000) as engine, recorded() as passes:
        with held_up(engine):
            listeners = [ask(engine, prompt, 4) for prompt in prompts]
            passes.clear()
        answers = [listener.wait().text for listener in listeners]
        written_tokens = sum(listener.end.completion_tokens for listener in listeners)
    assert sum(map(sum, passes)) <= 150 + 4 * 30 + written_tokens + 4
    assert answers == [expected(model, tokenizer, prompt, 4).text for prompt in prompts]


def test_what_always_followed_is_written_several_tokens_a_pass(pair):
    model, _, tokenizer = pair
    prompt = long_prompt(model, tokenizer, 9, 16)
    with running(pair, slots=1) as engine, recorded() as passes:
        answers = [ask(engine, prompt, 16, top_logprobs=2).wait() for _ in range(12)]
        assert len(passes) < 12 * 16 / 2
        assert engine.status().tokens_total == 12 * 16
        total = engine.status().tokens_total
        drawn = [ask(engine, prompt, 16, temperature=2.0, seed=seed).wait() for seed in range(6)]
        assert engine.status().tokens_total == total + sum(each.end.completion_tokens for each in drawn) <= total + 6 * 16
    assert {listener.text for listener in answers} == {expected(model, tokenizer, prompt, 16).text}
    first, last = ([token["logprob"] for token in listener.tokens] for listener in (answers[0], answers[-1]))
    assert first == pytest.approx(last, abs=1e-4)


def test_draws_do_not_depend_on_what_was_foreseen(pair):
    prompt = random_tokens(20, 1)
    with running(pair, slots=1) as engine:
        fresh = ask(engine, prompt, 30, temperature=0.7, seed=5).wait().text
        for seed in range(8):  # many answers that begin like it
            ask(engine, prompt, 30, temperature=0.3, seed=seed).wait()
        assert ask(engine, prompt, 30, temperature=0.7, seed=5).wait().text == fresh


def test_what_is_foreseen_is_forgotten_before_it_grows_without_end(pair, monkeypatch):
    monkeypatch.setattr(batch, "REMEMBERED", 20)
    with running(pair) as engine:
        listeners = [ask(engine, random_tokens(9, seed), 20) for seed in range(12)]
        assert all(isinstance(listener.wait().end, Done) for listener in listeners)
        assert len(engine._batch._drafts.followed) <= 20 + 3 * batch.FEW_QUERIES


def test_short_prompts_that_come_together_are_read_together(pair):
    model, _, tokenizer = pair
    prompts = [random_tokens(30, seed) for seed in range(4)]
    with running(pair, slots=5, cache_tokens=2000) as engine, recorded() as passes:
        with held_up(engine):
            listeners = [ask(engine, prompt, 4) for prompt in prompts]
            passes.clear()
        answers = [listener.wait().text for listener in listeners]
    assert passes[0] == [30] * 4
    assert answers == [expected(model, tokenizer, prompt, 4).text for prompt in prompts]


def test_a_slot_keeps_what_others_come_back_to(pair):
    systems = [random_tokens(100, seed) for seed in range(3)]
    with running(pair, slots=3) as engine, recorded() as passes:
        for system in systems:
            ask(engine, system + random_tokens(9, 1), 2).wait()
        passes.clear()
        for number, system in enumerate(systems * 2):
            ask(engine, system + random_tokens(9, 10 + number), 2).wait()
    assert sum(map(sum, passes)) <= 6 * (9 + 2)


def test_answers_under_way_wait_for_a_piece_of_a_prompt_at_most(pair, monkeypatch):
    monkeypatch.setattr(batch, "READ_TOKENS", 30)
    model, _, tokenizer = pair
    prompt, long = long_prompt(model, tokenizer, 9, 40), random_tokens(390, 2)
    with running(pair) as engine, recorded() as passes:
        listener = ask(engine, prompt, 40)
        listener.next()
        late = ask(engine, long, 5)
        assert late.wait().text == expected(model, tokenizer, long, 5).text
        assert listener.wait().text == expected(model, tokenizer, prompt, 40).text
    pieces = [at for at, fed in enumerate(passes) if sum(fed) == 30]
    assert len(pieces) == 12
    # a pass for all between two pieces
    assert all(len(passes[at - 1]) == 2 for at in pieces[1:])


def test_a_cancelled_request_leaves_its_slot_to_the_next(pair):
    model, _, tokenizer = pair
    endless, prompt = long_prompt(model, tokenizer, 9, 200), random_tokens(20, 20)
    with running(pair, slots=1, cache_tokens=400) as engine:
        listener = ask(engine, endless, 200)
        listener.next()
        waiting, given_up = ask(engine, prompt), ask(engine, prompt)
        given_up.ticket.cancel()
        listener.ticket.cancel()
        assert waiting.wait().text == expected(model, tokenizer, prompt, 12).text
        total = engine.status().tokens_total
        assert total < 200
        assert listener.events.qsize() < total
        assert given_up.events.empty()
        time.sleep(0.05)
        assert (engine.status().running, engine.status().queued, engine.status().tokens_total) == (0, 0, total)


def test_only_so_many_wait(pair):
    prompt = random_tokens(9, 1)
    with running(pair, slots=1, waiting=2) as engine:
        with held_up(engine):
            # who holds the engine up has left its slot by then
            listeners = [ask(engine, prompt) for _ in range(3)]
            assert engine.status().queued == 3
            with pytest.raises(ApiError) as caught:
                ask(engine, prompt)
            assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert len({listener.wait().text for listener in listeners}) == 1
        ask(engine, prompt).wait()


def test_what_does_not_fit_the_context_is_refused(pair):
    with running(pair, slots=3, cache_tokens=300) as engine:
        assert engine.context == 100
        assert isinstance(ask(engine, random_tokens(90, 1), 10).wait().end, Done)
        with pytest.raises(ApiError) as caught:
            ask(engine, random_tokens(91, 1), 10)
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
        with pytest.raises(ApiError) as caught:
            ask(engine, [], 10)
        assert caught.value.status == 400
        with pytest.raises(ApiError, match="max_tokens"):
            ask(engine, random_tokens(9, 1), 0)
    assert BatchingEngine(*pair[1:], slots=1, cache_tokens=100_000, waiting=0).context == 4096


def test_a_seed_repeats_an_answer_whoever_else_is_asked(pair):
    prompt = random_tokens(20, 1)
    with running(pair) as engine:
        alone = ask(engine, prompt, 30, temperature=1.5, top_p=0.9, seed=5).wait().text
        others = [ask(engine, random_tokens(30, seed), 20, temperature=1.0) for seed in range(3)]
        assert ask(engine, prompt, 30, temperature=1.5, top_p=0.9, seed=5).wait().text == alone
        assert len({ask(engine, prompt, 30, temperature=1.5, top_p=0.9).wait().text for _ in range(4)} | {alone}) > 1
        assert all(isinstance(other.wait().end, Done) for other in others)


SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["praise", "complaint"]}, "order": {"type": ["string", "null"], "maxLength": 6}},
    "required": ["intent", "order"],
    "additionalProperties": False,
}


def test_constrained_answers_satisfy_the_schema_beside_free_ones(pair):
    model, _, tokenizer = pair
    constraint = JsonConstraint(tokenizer, SCHEMA)
    prompts = [random_tokens(length, length) for length in range(4, 12)]
    with running(pair) as engine:
        held = [ask(engine, prompt, 100, constraint=constraint, temperature=n % 2) for n, prompt in enumerate(prompts)]
        free = [ask(engine, prompt) for prompt in prompts]
        for listener in held:
            jsonschema.validate(json.loads(listener.wait().text), SCHEMA)
            assert listener.end.finish == "stop"
        assert len({listener.text for listener in held}) > 1
        assert [listener.wait().text for listener in free] == [expected(model, tokenizer, p, 12).text for p in prompts]


class Broken:
    """A constraint that cannot be followed beyond the third token."""

    def __init__(self, error):
        self.error, self.taken = error, 0

    def matcher(self):
        return Broken(self.error)

    def take(self, token):
        self.taken += 1
        if self.taken == 3:
            raise self.error

    def forced(self):
        return []

    def allowed(self, draft):
        return [], torch.ones(1, 259, dtype=torch.bool)


@pytest.mark.parametrize(
    ("error", "status", "param"), [(UserError("too large"), 400, "response_format"), (ValueError("a bug"), 500, None)]
)
def test_a_constraint_that_breaks_fails_its_own_request_alone(pair, error, status, param):
    model, _, tokenizer = pair
    prompts = [long_prompt(model, tokenizer, length, 20) for length in (20, 30)]
    with running(pair) as engine:
        others = [ask(engine, prompt, 20) for prompt in prompts]
        others[0].next()
        broken = ask(engine, long_prompt(model, tokenizer, 9, 9), constraint=Broken(error)).wait()
        assert isinstance(broken.end, Failed)
        assert (broken.end.error.status, broken.end.error.param) == (status, param)
        assert (str(error) in broken.end.error.message) == (status == 400)
        assert [other.wait().text for other in others] == [expected(model, tokenizer, p, 20).text for p in prompts]


@pytest.mark.parametrize("numbers", [False, True])
def test_a_pass_that_fails_fails_the_rows_in_it_and_no_other(pair, monkeypatch, caplog, numbers):
    model, _, tokenizer = pair
    prompt, long = long_prompt(model, tokenizer, 9, 40), random_tokens(100, 2)
    usual = batch.forward

    def forward(model, cache, first, fed, *rest):
        logits = usual(model, cache, first, fed, *rest)
        if max(map(len, fed)) < 50:
            return logits
        for kept in (kept for pair in cache.layers.values() for kept in pair):
            kept.fill_(torch.nan)  # what was read before is lost with it
        if numbers:  # as of weights that overflow
            return logits * torch.nan
        raise RuntimeError("out of memory")

    with running(pair) as engine:
        listener = ask(engine, prompt, 40)
        listener.next()
        with monkeypatch.context() as patch:
            patch.setattr(batch, "forward", forward)
            failed = ask(engine, long).wait().end
            assert isinstance(failed, Failed)
            assert (failed.error.status, failed.error.code) == (500, "internal_error")
            assert "memory" not in failed.error.message
            assert ("no numbers" if numbers else "out of memory") in caplog.text  # for who runs the server
            assert listener.wait().text == expected(model, tokenizer, prompt, 40).text
        assert ask(engine, long).wait().text == expected(model, tokenizer, long, 12).text
        assert engine.status().alive


def test_a_listener_that_raises_is_left_alone(pair):
    model, _, tokenizer = pair
    prompt = long_prompt(model, tokenizer, 9, 40)
    told = []

    def raising(event):
        told.append(event)
        raise RuntimeError("the loop is closed")

    with running(pair) as engine:
        engine.submit(prompt, Sampling(40), raising)
        engine.submit(prompt, Sampling(1, top_logprobs=0), raising)  # nor is it told of the end
        assert ask(engine, prompt, 40).wait().text == expected(model, tokenizer, prompt, 40).text
        assert [type(event) for event in told] == [TextPiece, TextPiece]
        assert engine.status().alive


def test_an_engine_that_has_ended_says_so(pair, monkeypatch):
    prompt = random_tokens(9, 1)
    with running(pair, slots=1) as engine:
        with held_up(engine):
            listeners = [ask(engine, prompt) for _ in range(2)]
            monkeypatch.setattr(batch.Batch, "advance", lambda self: 1 / 0)
        for listener in listeners:
            assert listener.wait().end.error.status == 503
        assert not engine.status().alive
        with pytest.raises(ApiError) as caught:
            ask(engine, prompt)
        assert caught.value.status == 503


def test_closing_fails_what_is_under_way_and_gives_the_model_back(pair):
    model, other, tokenizer = pair
    usual = other.config._attn_implementation
    prompt = long_prompt(model, tokenizer, 9, 200)
    engine = BatchingEngine(other, tokenizer, slots=1, cache_tokens=400, waiting=4)
    with pytest.raises(ApiError):
        ask(engine, prompt)  # not started
    engine.start()
    listeners = [ask(engine, prompt, 200) for _ in range(2)]
    listeners[0].next()
    assert other.config._attn_implementation == NAME
    engine.close()
    assert [listener.wait().end.error.status for listener in listeners] == [503, 503]
    assert other.config._attn_implementation == usual
    assert not engine.status().alive
    with pytest.raises(ApiError):
        ask(engine, prompt)
    engine.close()


def test_status_tells_progress(pair):
    with running(pair) as engine:
        assert engine.status().alive
        assert engine.status().last_progress is None
        before = time.monotonic()
        ask(engine, random_tokens(9, 1)).wait()
        status = engine.status()
        assert before <= status.last_progress <= time.monotonic()
        assert (status.running, status.queued) == (0, 0)
        assert 0 < status.tokens_total <= 12


def test_a_model_that_does_not_fit_is_refused(pair):
    config = transformers.MistralConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, sliding_window=8
    )
    with pytest.raises(UserError, match="MistralForCausalLM.*kind: upstream"):
        BatchingEngine(transformers.MistralForCausalLM(config), pair[2], slots=1, cache_tokens=100, waiting=1)
    with pytest.raises(UserError, match="cache_tokens: 7 are too few for 4 slots"):
        BatchingEngine(*pair[1:], slots=4, cache_tokens=7, waiting=1)
