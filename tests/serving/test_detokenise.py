"""What is shown of an answer while it grows is never taken back, and adds up to the text of all its tokens."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.serving.engines.detokenise import HALF, AnswerText, Spelling
from tests.serving.spellers import byte_level, with_spaces


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {"bytes": byte_level(tmp_path_factory.mktemp("models")), "spaces": with_spaces()}


KIND = st.sampled_from(["bytes", "spaces"])
TEXTS = st.text(st.sampled_from("aé用😀 \n\u0301EN.b\ufffd\u00a0"), max_size=20)
STOPS = st.lists(st.text(st.sampled_from("ab E\n用"), min_size=1, max_size=4), max_size=4)


def _in_run(tokenizer, tokens, at):
    beside = tokenizer.convert_ids_to_tokens(tokens[max(at - 1, 0) : at + 1])
    return len(beside) == 2 and all(token.startswith("<0x") for token in beside)


def tokens_of(tokenizer, text, others):
    """Return the tokens of a text, with others among them: special tokens, words, and halves of characters."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    for place, token in others:
        # a decoder that falls back to bytes gives up the whole run of them in which one is wrong, what was shown included
        of_bytes = tokenizer.convert_ids_to_tokens(token % len(tokenizer)).startswith("<0x")
        between = [at for at in range(len(tokens) + 1) if not of_bytes and not _in_run(tokenizer, tokens, at)]
        if between:
            tokens.insert(between[place % len(between)], token % len(tokenizer))
    return tokens


OTHERS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9999)), max_size=6)


def shown(tokenizer, tokens, stops=()):
    """Return the pieces of text of an answer, how many tokens each tells of, and whether a stop text ended it."""
    text = AnswerText(tokenizer, stops)
    pieces = []
    for token in tokens:
        pieces.append(text.feed(token))
        if text.stopped:
            break
    pieces.append(text.end())
    return pieces, text.stopped


def cut(raw, stops):
    """Return a text up to the stop text that is complete first, and whether there is one."""
    for end in range(len(raw) + 1):
        begins = [end - len(stop) for stop in stops if raw[:end].endswith(stop)]
        if begins:
            return raw[: min(begins)], True
    return raw, False


@given(kind=KIND, text=TEXTS, others=OTHERS, stops=STOPS)
@example(kind="bytes", text="  aEN", others=[], stops=["END"])  # what might have become a stop text comes at the end
@example(kind="bytes", text="a E a END", others=[], stops=["END", "N"])
@settings(max_examples=120)
def test_pieces_add_up_to_the_text_before_the_first_stop_text(tokenizers, kind, text, others, stops):
    tokenizer = tokenizers[kind]
    tokens = tokens_of(tokenizer, text, others)
    raw, stopped = cut(tokenizer.decode(tokens, skip_special_tokens=True), stops)
    pieces, ended = shown(tokenizer, tokens, stops)
    assert ended == stopped
    assert "".join(piece for piece, _ in pieces) == raw.strip()
    assert sum(told for _, told in pieces) == len(tokens) or stopped


@given(kind=KIND, text=TEXTS, others=OTHERS)
@settings(max_examples=60)
def test_no_half_character_and_no_space_that_may_be_the_last_is_shown(tokenizers, kind, text, others):
    tokenizer = tokenizers[kind]
    tokens = tokens_of(tokenizer, text, others)
    whole = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    answer, so_far = AnswerText(tokenizer), ""
    for token in tokens:
        so_far += answer.feed(token)[0]
        assert so_far == so_far.strip()
        assert whole.startswith(so_far)


@given(text=st.text(st.sampled_from("ab E"), max_size=12), stops=STOPS)
def test_tokens_are_told_with_the_text_that_they_are_part_of(tokenizers, text, stops):
    tokenizer = tokenizers["bytes"]  # a token for each of these characters
    tokens = tokens_of(tokenizer, text, [])
    pieces, stopped = shown(tokenizer, tokens, stops)
    told, characters = 0, len(text) - len(text.lstrip())
    for piece, more in pieces[:-1]:
        told, characters = told + more, characters + len(piece)
        if piece and not stopped:
            assert told == characters
    assert sum(more for _, more in pieces) == len(cut(text, stops)[0])


def test_what_cannot_become_a_stop_text_is_shown_at_once(tokenizers):
    tokenizer = tokenizers["bytes"]
    pieces, _ = shown(tokenizer, tokens_of(tokenizer, "aEbENb", []), ["END"])
    assert [piece for piece, _ in pieces] == ["a", "", "Eb", "", "", "ENb", ""]


@given(kind=KIND, text=TEXTS)
@settings(max_examples=60)
def test_spelt_tokens_have_the_bytes_of_the_text(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    tokens = tokens_of(tokenizer, text, [])
    spelling = Spelling(tokenizer)
    told = [spelling.logprob(token, -1.0, [(token, -1.0)]) for token in tokens]
    begin = " " if kind == "spaces" and text else ""  # this kind writes one before every text
    assert b"".join(bytes(each["bytes"]) for each in told) == f"{begin}{text}".encode()
    assert all(each["top_logprobs"][0]["bytes"] == each["bytes"] for each in told)
    whole = [each["token"] for each in told if HALF not in each["token"]]
    assert all(bytes(each["bytes"]).decode() == each["token"] for each in told if each["token"] in whole)


def test_a_special_token_is_spelt_by_its_name_and_an_unknown_one_by_nothing(tokenizers):
    tokenizer = tokenizers["bytes"]
    spelling = Spelling(tokenizer)
    end = spelling.logprob(tokenizer.eos_token_id, -1.0, [])
    assert (end["token"], end["bytes"]) == ("<|im_end|>", list(b"<|im_end|>"))
    assert spelling.logprob(len(tokenizer) + 5, -1.0, [])["token"] == ""
