"""Answers are those that transformers gives to one prompt at a time, whoever else is asked and however many at once."""

import json
import time
from collections import Counter

import jsonschema
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import generation, ragged
from luthier.configuration import FolderParameters, ModelParameters
from luthier.constrained import JsonConstraint
from luthier.errors import UserError
from luthier.generation import generate
from luthier.models import load_model, load_tokenizer, resolve_base
from luthier.text.chat import end_tokens

VOCABULARY = 259
SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["praise", "complaint"]}, "order": {"type": ["string", "null"], "maxLength": 6}},
    "required": ["intent", "order"],
    "additionalProperties": False,
}


def sharpened(model, factor):
    """Scale the weights of a random model, so that answers differ and no two tokens are equally likely."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(factor)
    return model.eval()


def random_tokens(length, seed):
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def written(model, tokenizer, prompt, length):
    """Return the tokens of the greedy answer to one prompt alone, from transformers."""
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": length, "do_sample": False, "eos_token_id": end_tokens(tokenizer), "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


def log_probability(model, prompt, answer):
    """Return the log-probability of an answer, from one pass over all of it."""
    with torch.inference_mode():
        logs = model(torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
    return sum(logs[len(prompt) + at - 1, token].item() for at, token in enumerate(answer))


def check(model, tokenizer, prompts, answers, length):
    """Compare answers with those that transformers gives to one prompt at a time."""
    assert len(answers) == len(prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = written(model, tokenizer, prompt, length)
        finish, count = ("stop", len(tokens) - 1) if tokens[-1] in end_tokens(tokenizer) else ("length", length)
        assert (answer.finish, answer.tokens) == (finish, count)
        assert answer.text == tokenizer.decode(tokens[:count], skip_special_tokens=True).strip()
        assert answer.log_probability == pytest.approx(log_probability(model, prompt, tokens), rel=1e-4, abs=1e-3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the tiny model in fp32 and its tokenizer; a token that the model does write ends its answers."""
    folder = str(tmp_path_factory.mktemp("models"))
    places = FolderParameters(root=folder, base_models=folder, shards="", work=folder)
    base = resolve_base(ModelParameters(base="tiny:llama"), places)
    model, tokenizer = sharpened(load_model(base, torch.float32), 8), load_tokenizer(base)
    seen = Counter(token for seed in range(12) for token in written(model, tokenizer, random_tokens(9, seed), 12)[4:])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(seen.most_common(1)[0][0])
    return model, tokenizer


PROMPTS = st.tuples(st.integers(0, 40), st.lists(st.tuples(st.integers(1, 50), st.integers(0, 99)), min_size=1, max_size=5))


@given(
    made=PROMPTS,
    length=st.integers(1, 8),
    batch_tokens=st.integers(1, 400),
    piece=st.sampled_from([8, 30, 512]),
    rash=st.booleans(),
)
@settings(max_examples=12)
def test_answers_are_those_of_transformers(tiny, made, length, batch_tokens, piece, rash):
    shared, own = made
    prompts = [random_tokens(shared, 1000) + random_tokens(*one) for one in own]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "PASS_TOKENS", piece)  # prompts are read in pieces
        if rash:  # what followed a token once is proposed, and is often wrong
            patch.setattr(generation, "CONTEXT", 1)
            patch.setattr(generation, "SURE", 0.1)
        done = []
        answers = generate(*tiny, prompts, length, batch_tokens, done.append)
        backwards = generate(*tiny, prompts[::-1], length, 10_000)[::-1]
    assert sum(done) == len(prompts)
    assert all(done)
    check(*tiny, prompts, answers, length)
    assert [one.text for one in backwards] == [one.text for one in answers]


def test_rows_leave_at_their_end_and_others_go_on(tiny, monkeypatch):
    monkeypatch.setattr(generation, "CONTEXT", 1)
    monkeypatch.setattr(generation, "SURE", 0.1)
    prompts = [random_tokens(9, seed) for seed in range(16)]
    answers = generate(*tiny, prompts, 12, 150)
    assert {answer.finish for answer in answers} == {"stop", "length"}
    assert len({answer.text for answer in answers}) > 8
    check(*tiny, prompts, answers, 12)


def test_long_and_short_prompts_share_the_memory(tiny):
    prompts = [random_tokens(length, length) for length in (700, 5, 300, *range(6, 24))]
    answers = generate(*tiny, prompts, 4, 800)
    check(*tiny, prompts, answers, 4)


def test_no_prompts_have_no_answers(tiny):
    assert generate(*tiny, [], 5, 100) == []


def test_the_same_prompts_have_the_same_answers_to_the_last_bit(tiny):
    prompts = [random_tokens(length, length) for length in range(5, 25)]
    once, again = ([(a.text, a.log_probability) for a in generate(*tiny, prompts, 9, 200)] for _ in range(2))
    assert once == again


def test_an_answer_takes_its_own_time(tiny):
    start = time.perf_counter()
    answers = generate(*tiny, [random_tokens(9, seed) for seed in range(12)], 12, 60)
    whole = time.perf_counter() - start
    assert all(0 < answer.seconds < whole for answer in answers)
    # two at a time, so none took the whole time
    assert sum(answer.seconds for answer in answers) < 4 * whole


def passes(monkeypatch):
    """Count forward passes, and the tokens that they read."""
    counted = []

    def counting(model, cache, first, fed, *rest):
        counted.append(sum(map(len, fed)))
        return one_forward(model, cache, first, fed, *rest)

    one_forward = ragged.forward
    monkeypatch.setattr(generation, "forward", counting)
    return counted


def test_what_all_begin_with_is_read_once(tiny, monkeypatch):
    counted = passes(monkeypatch)
    shared = random_tokens(200, 7)
    prompts = [shared + random_tokens(5, seed) for seed in range(10)]
    generate(*tiny, prompts, 1, 8192)
    assert sum(counted) == 200 + 10 * 5


def test_what_always_followed_is_checked_several_tokens_a_pass(tiny, monkeypatch):
    model, tokenizer = tiny
    prompt = next(p for p in (random_tokens(9, seed) for seed in range(99)) if len(written(*tiny, p, 16)) == 16)
    counted = passes(monkeypatch)
    # one after another: what the first ones said is known when the others come
    answers = generate(model, tokenizer, [prompt] * 12, 16, 25)
    assert len(counted) < 12 * 16 / 2
    assert len({answer.text for answer in answers}) == 1
    check(*tiny, [prompt], answers[:1], 16)


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": None,
    "pad_token_id": 0,
}
KINDS = {
    # one head for all keys, scaled embeddings
    "Gemma": ({"head_dim": 8, "num_key_value_heads": 1}, True),
    # biases, normalised queries
    "Qwen3": ({"head_dim": 16}, True),
    # logits and scores scaled otherwise
    "Granite": ({"attention_multiplier": 0.3, "logits_scaling": 2.0}, True),
    # learned positions
    "OPT": ({"word_embed_proj_dim": 32, "ffn_dim": 64}, True),
    # an attention that is handed no arguments of ours
    "Nemotron": ({}, True),
    # the last 8 tokens alone are remembered
    "Mistral": ({"sliding_window": 8}, False),
    "Gemma2": ({"sliding_window": 8, "head_dim": 8}, False),
    # an attention of its own
    "Falcon": ({}, False),
    # no keys at all
    "Mamba": ({}, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_answers(tiny, kind):
    more, fits = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL | more)
    model = sharpened(getattr(transformers, f"{kind}ForCausalLM")(config), 6)
    # a setting of the model's own, which would make the answer another one
    model.generation_config.repetition_penalty = 5.0
    usual = model.config._attn_implementation
    shared = random_tokens(20, 0)
    prompts = [shared + random_tokens(length, length) for length in (1, 30, 12, 20, 3)]
    assert ragged.fits(model) == fits
    answers = generate(model, tiny[1], prompts, 8, 120)
    assert model.generation_config.repetition_penalty == 5.0
    assert model.config._attn_implementation == usual
    model.generation_config.repetition_penalty = None
    check(model, tiny[1], prompts, answers, 8)
    assert len({answer.text for answer in answers}) > 1


def test_a_model_with_adapters_answers_as_the_sum_of_both(tiny):
    from peft import LoraConfig, get_peft_model

    prompts = [random_tokens(length, length) for length in (5, 9, 20)]
    torch.manual_seed(0)
    before = [answer.text for answer in generate(*tiny, prompts, 8, 500)]
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny[0], config).eval()
    try:
        answers = generate(adapted, tiny[1], prompts, 8, 500)
        check(adapted, tiny[1], prompts, answers, 8)
    finally:
        adapted.unload()
    assert [answer.text for answer in answers] != before
    assert [answer.text for answer in generate(*tiny, prompts, 8, 500)] == before


@pytest.mark.parametrize("fits", [True, False])
def test_constrained_answers_satisfy_the_schema(tiny, monkeypatch, fits):
    model, tokenizer = tiny
    if not fits:
        monkeypatch.setattr(generation, "fits", lambda model: False)
    prompts = [random_tokens(length, length) for length in range(4, 16)]
    constraint = JsonConstraint(tokenizer, SCHEMA)
    answers = generate(model, tokenizer, prompts, 60, 250, constraint=constraint)
    assert {answer.finish for answer in answers} == {"stop"}
    assert len({answer.text for answer in answers}) > 1
    for prompt, answer in zip(prompts, answers, strict=True):
        jsonschema.validate(json.loads(answer.text), SCHEMA)
        tokens = [*tokenizer(answer.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert answer.tokens == len(tokens) - 1
        # the model's own, although it would have said something else
        assert answer.log_probability == pytest.approx(log_probability(model, prompt, tokens), rel=1e-4, abs=1e-2)
    cut = generate(model, tokenizer, prompts, 7, 250, constraint=constraint)
    assert [(one.finish, one.text) for one in cut] == [("length", answer.text[:7]) for answer in answers]


def test_a_constrained_answer_takes_the_likeliest_of_what_is_allowed(tiny):
    model, tokenizer = tiny
    choice = {"enum": ["a", "b", "c", "d"]}
    prompts = [random_tokens(length, length) for length in range(4, 16)]
    answers = generate(model, tokenizer, prompts, 9, 500, constraint=JsonConstraint(tokenizer, choice))
    for prompt, answer in zip(prompts, answers, strict=True):
        begun = prompt + tokenizer('"', add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([begun])).logits[0, -1]
        best = max(choice["enum"], key=lambda letter: logits[tokenizer(letter, add_special_tokens=False)["input_ids"][0]])
        assert json.loads(answer.text) == best


@pytest.mark.parametrize("schema", [{"type": "strin"}, {"not": {"type": "string"}}, {"pattern": "(", "type": "string"}])
def test_a_schema_that_cannot_be_followed_is_told(tiny, schema):
    with pytest.raises(UserError, match="JSON Schema cannot be a constraint: "):
        JsonConstraint(tiny[1], schema)
