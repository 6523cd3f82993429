"""A prompt has the same tokens in training and in generation, for any template and any merges; masks go by position."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.configuration import FolderParameters, ModelParameters
from luthier.errors import UserError
from luthier.models import load_tokenizer, resolve_base
from luthier.text.chat import (
    check_template,
    encode,
    encode_prompt,
    end_tokens,
    learns_every_answer,
    settle_prompts,
    spoken_answer,
    writes_calls,
)

# none of them has {% generation %}
TEMPLATES = {
    "tiny": None,
    "header": "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}",
    "instruct": "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}<|im_end|>{% else %}"
    "[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
    "no end marker": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    "default system": "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "thoughts before every answer": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "asks for nothing": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
}
FORGETS = (
    "{% for m in messages %}{{ m.role }}: {% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# as Qwen3: only the last answer has its thoughts, empty ones if it has none, and a prompt has them only where a client says so
EMPTY = "<think>\n\n</think>\n\n"
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last and '</think>' not in m.content %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content if loop.last else m.content.split('</think>')[-1].lstrip() }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}\n"
)
# without the two noncharacters that mark special tokens: nobody's text holds them by right
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0\ufdd1"), min_size=1, max_size=30).filter(
    lambda text: text.strip() == text and "<|" not in text
)
CHATS = st.tuples(st.none() | TEXTS, st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))


def messages_of(chat):
    """Return a chat as messages."""
    system, turns = chat
    told = [{"role": "system", "content": system}] if system else []
    for user, assistant in turns:
        told += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return told


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the tokenizer of tiny:llama, which has no merges."""
    folder = str(tmp_path_factory.mktemp("models"))
    return load_tokenizer(
        resolve_base(
            ModelParameters(base="tiny:llama"), FolderParameters(root=folder, base_models=folder, shards="", work=folder)
        )
    )


@pytest.fixture(scope="module")
def merging():
    """Return a tokenizer with merges, also over the borders of turns: without cuts ': ' + 'y' would be one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        ["user: yes\nassistant: yes\n", "assistant:yes", "[/INST] yes", "assistant\nyes", "yes\n\nno"] * 20, trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(params=["tiny", "merging"])
def tokenizer(request, tiny, merging):
    """Return each of the tokenizers; a test may set its template."""
    found = request.getfixturevalue(request.param)
    before = found.chat_template, found.pad_token
    yield found
    found.chat_template, found.pad_token = before


@pytest.fixture(params=sorted(TEMPLATES))
def templated(request, tokenizer, tiny):
    """Return each tokenizer with each template."""
    tokenizer.chat_template = TEMPLATES[request.param] or tiny.chat_template
    return tokenizer


@given(chat=CHATS)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_tokens_of_a_prompt_are_those_before_its_answer(templated, chat):
    messages = messages_of(chat)
    for end in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
        prompt = encode_prompt(templated, messages[:end])
        whole = encode(templated, messages[: end + 1])
        assert whole.input_ids[: len(prompt)] == prompt
        assert all(whole.supervised[len(prompt) :])
        assert not whole.supervised[len(prompt) - 1]


@given(chat=CHATS)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_tokens_spell_the_text_of_the_template_and_the_learnt_ones_the_answers(templated, chat):
    messages = messages_of(chat)
    encoded = encode(templated, messages)
    assert len(encoded.input_ids) == len(encoded.supervised)
    text = templated.apply_chat_template(messages, tokenize=False)
    assert templated.decode(encoded.input_ids) == text.rstrip("\n")
    learnt = templated.decode([token for token, learn in zip(encoded.input_ids, encoded.supervised, strict=True) if learn])
    for _, answer in chat[1]:
        assert answer in learnt
        learnt = learnt.replace(answer, "", 1).replace("<|im_end|>", "", 1)
    assert learnt.strip() == ""


@given(chat=CHATS)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_longer_conversation_begins_with_the_shorter_one(templated, chat):
    messages = messages_of(chat)
    whole, first = encode(templated, messages), encode(templated, messages[: 2 + (chat[0] is not None)])
    assert whole.input_ids[: len(first.input_ids)] == first.input_ids
    assert whole.supervised[: len(first.input_ids)] == first.supervised


def test_the_end_marker_is_learnt_although_it_is_the_padding(tokenizer, tiny):
    tokenizer.chat_template = tiny.chat_template
    messages = messages_of((None, [("yes", "no"), ("again", "yes")]))
    before = encode(tokenizer, messages)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = encode(tokenizer, messages)
    assert encoded == before
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    marked = [
        learn for token, learn in zip(encoded.input_ids, encoded.supervised, strict=True) if token == tokenizer.eos_token_id
    ]
    assert marked == [False, True, False, True]
    assert end_tokens(tokenizer) == [tokenizer.eos_token_id]


def test_merges_never_reach_over_the_border_of_an_answer(merging):
    merging.chat_template = TEMPLATES["no end marker"]
    messages = messages_of((None, [("yes", "yes")]))
    text = merging.apply_chat_template(messages, tokenize=False).rstrip("\n")
    prompt = encode_prompt(merging, messages[:-1])
    # the test would show nothing if this tokenizer did not merge over the border by itself
    assert merging(text)["input_ids"][: len(prompt)] != prompt
    assert encode(merging, messages).input_ids[: len(prompt)] == prompt


def test_generation_stops_at_what_the_template_puts_after_an_answer(tokenizer, tiny):
    tokenizer.chat_template = tiny.chat_template.replace("<|im_end|>", "<|endoftext|>")
    assert end_tokens(tokenizer) == sorted(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    tokenizer.chat_template = TEMPLATES["no end marker"]
    assert end_tokens(tokenizer) == [tokenizer.eos_token_id]


@given(chat=CHATS)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("template", [FORGETS, THINKS])
def test_of_a_template_that_rewrites_earlier_turns_the_last_answer_is_learnt(tokenizer, template, chat):
    tokenizer.chat_template = template
    messages = messages_of(chat)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    prompt, encoded = encode_prompt(tokenizer, messages[:-1]), encode(tokenizer, messages)
    assert prompt == tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(encoded.input_ids) == text.rstrip("\n")
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.answers == [(len(prompt), len(encoded.input_ids))]


@pytest.fixture
def thinking(tokenizer):
    """Return each tokenizer with a template like Qwen3's; its marks of thoughts are tokens, but not special ones."""
    tokenizer.chat_template = THINKS
    return tokenizer


@given(chat=CHATS)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_empty_thoughts_are_asked_with_and_never_learnt(thinking, chat):
    messages = messages_of(chat)
    encoded = encode(thinking, messages)
    ((begin, end),) = encoded.answers
    assert thinking.decode(encoded.input_ids[begin:end]) == chat[1][-1][1] + "<|im_end|>"
    assert spoken_answer(thinking, messages) == chat[1][-1][1]
    assert thinking.decode(encode_prompt(thinking, messages[:-1])).endswith(f"assistant\n{EMPTY}")


def test_a_call_is_asked_for_as_any_answer_is(thinking):
    encoded = encode(thinking, calling("{}"))
    prompt = encode_prompt(thinking, calling("{}")[:1])
    assert encoded.input_ids[: len(prompt)] == prompt
    assert thinking.decode(encoded.input_ids[len(prompt) :]) == "<tool_call>weather<|im_end|>"
    # a template that ends them in different ways has nothing that every prompt could end with
    thinking.chat_template = THINKS.replace("loop.last and", "not m.tool_calls and")
    assert not thinking.decode(encode_prompt(thinking, calling("{}")[:1])).endswith(EMPTY)


def test_thoughts_of_its_own_are_told_of_an_answer_that_would_be_learnt(thinking):
    thought = ("a", "<think>\nhm\n</think>\n\nb")
    with pytest.raises(UserError, match="thoughts of its own"):
        encode(thinking, messages_of((None, [thought])))
    assert encode(thinking, messages_of((None, [thought, ("c", "d")]))).answers
    assert encode_prompt(thinking, messages_of((None, [thought, ("c", "d")]))[:-1])


@given(chat=CHATS)
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("template", [THINKS, *TEMPLATES.values()])
def test_a_settled_template_asks_by_itself_what_we_ask(tokenizer, tiny, template, chat):
    tokenizer.chat_template = template or tiny.chat_template
    messages = messages_of(chat)
    prompt, encoded = encode_prompt(tokenizer, messages[:-1]), encode(tokenizer, messages)
    for _ in range(2):
        settle_prompts(tokenizer)
        assert (encode_prompt(tokenizer, messages[:-1]), encode(tokenizer, messages)) == (prompt, encoded)
        for thoughts in ({}, {"enable_thinking": False}):
            asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True, **thoughts)
            assert asked == tokenizer.decode(prompt)


def test_a_template_that_rewrites_is_known(tokenizer, tiny):
    assert learns_every_answer(tokenizer)
    tokenizer.chat_template = THINKS
    assert not learns_every_answer(tokenizer)


def test_a_template_whose_prompt_is_not_what_its_answer_follows_is_refused_in_training_alone(tokenizer):
    tokenizer.chat_template = TEMPLATES["header"].replace("assistant\n\n{% endif", "assistant\n\n<think>{% endif")
    messages = messages_of((None, [("a", "b"), ("c", "d")]))
    for refused in (encode, lambda tokenizer, _: check_template(tokenizer)):
        with pytest.raises(UserError, match="another prompt than the one that its answer follows"):
            refused(tokenizer, messages)
    assert tokenizer.decode(encode_prompt(tokenizer, messages[:-1])).count("<|im_start|>") == 4


def test_a_tokenizer_without_a_template_is_refused(tokenizer):
    tokenizer.chat_template = "x"
    check_template(tokenizer)
    for template in (None, ""):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match="no chat template"):
            check_template(tokenizer)


def test_a_conversation_without_an_answer_has_nothing_to_learn(tiny):
    encoded = encode(tiny, [{"role": "user", "content": "hello"}])
    assert encoded.input_ids == encoded.supervised == []
    assert encode_prompt(tiny, [{"role": "user", "content": "hello"}])


SPELT = st.lists(
    st.sampled_from(["<|im_end|>", "<|im_start|>", "\n", "system\nObey", "a", "<|im_", "end|>", "\ufdd0"]), min_size=1
)


@given(SPELT.map("".join), SPELT.map("".join))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nobody_can_write_a_special_token_into_a_message(tokenizer, user, assistant):
    """Whatever is written, the template's own marks are the only special tokens, and the text is read as it stands."""
    chat = [{"role": "user", "content": f"x{user}x"}, {"role": "assistant", "content": f"x{assistant}x"}]
    harmless = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]

    def specials(ids):
        return [token for token in ids if token in tokenizer.all_special_ids]

    encoded = encode(tokenizer, chat)
    assert specials(encoded.input_ids) == specials(encode(tokenizer, harmless).input_ids)
    assert specials(encode_prompt(tokenizer, chat[:1])) == specials(encode_prompt(tokenizer, harmless[:1]))
    spoken = tokenizer.decode(encoded.input_ids)
    for text in (user, assistant):
        assert f"x{text}x".replace("\ufdd0", "") in spoken


CALLS_AS = {
    "serialised": '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}',
    "printed": '{"name": "{{ f.name }}", "arguments": {{ f.arguments }}}',
    "added": """{{ '{"name": "' + f.name + '", "arguments": ' + f.arguments + '}' }}""",
    "walked": """{"name": "{{ f.name }}", "arguments": {
        {%- for name, value in f.arguments.items() %}{{ ', ' if not loop.first }}"{{ name }}": {{ value | tojson }}{% endfor %}}}""",
}


def calls_with(how):
    """Return a template that writes calls in one of the ways that templates have."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}{% set f = call.function %}"
        + CALLS_AS[how]
        + "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def calling(arguments):
    """Return a conversation whose answer is a call, as it is stored."""
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": json.dumps([call])}]


@pytest.mark.parametrize("how", sorted(CALLS_AS))
def test_arguments_of_a_call_are_an_object_however_the_template_writes_them(tokenizer, how):
    tokenizer.chat_template = calls_with(how)
    assert writes_calls(tokenizer)
    wanted = {"city": "Zürich", "days": [1, None], "deep": {"quote": '"'}}
    encoded = encode(tokenizer, calling(json.dumps(wanted, ensure_ascii=False)))
    ((begin, end),) = encoded.answers
    said = tokenizer.decode(encoded.input_ids[begin:end]).removesuffix("<|im_end|>")
    assert json.loads(said) == {"name": "weather", "arguments": wanted}


def specials_of(tokenizer, arguments):
    """Return the special tokens of a conversation whose answer is a call."""
    return [token for token in encode(tokenizer, calling(arguments)).input_ids if token in tokenizer.all_special_ids]


@pytest.mark.parametrize("arguments", ["not JSON", "[1]", "NaN", "", "<|im_end|>"])
def test_arguments_that_are_no_object_stay_text(tokenizer, arguments):
    tokenizer.chat_template = calls_with("printed")
    assert f'"arguments": {arguments}}}' in tokenizer.decode(encode(tokenizer, calling(arguments)).input_ids)
    assert specials_of(tokenizer, arguments) == specials_of(tokenizer, "{}")


@pytest.mark.parametrize("how", sorted(CALLS_AS))
@pytest.mark.parametrize(
    "arguments",
    ['{"a":"<|im_end|>"}', '{"a":["\\u003c|im_end|>"]}', '{"<|im_end|>":1}', '{"\\u003c|im_end|>":"<|im_start|>system"}'],
)
def test_nobody_can_write_a_special_token_into_arguments(tokenizer, how, arguments):
    tokenizer.chat_template = calls_with(how)
    assert specials_of(tokenizer, arguments) == specials_of(tokenizer, "{}")
