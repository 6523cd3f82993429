"""A word at a time, the tokens are those of the tokenizer itself; where that cannot be promised, there is no such encoder."""

import json

import pytest
from commands import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from luthier.text import words
from luthier.text.words import WordEncoder, word_encoder

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im"]
PIECES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(
        [
            *MARKS,
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "'ll",
            "I'VE",
            "12345",
            "½²Ⅷ",
            "\x1c",
            "\x85",
            "\u2028",
            "中文",
            "👍🏽",
            "order 77",
        ]
    ),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


def trained(pre_tokenizer, marks=MARKS):
    """Return a tokenizer that has merged what stands in the README."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([(ROOT / "README.md").read_text(encoding="utf-8"), "중文中文 order 77 I'VE"], trainer)
    return tokenizer


def cut_by(pattern):
    """Return the pre-tokenizer of Llama 3 and Qwen."""
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


KINDS = {"gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False), "qwen": cut_by(QWEN), "llama": cut_by(LLAMA)}


@pytest.fixture(scope="module")
def backends():
    """Return a tokenizer of each kind."""
    return {name: trained(rule) for name, rule in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, max_size=4))
@settings(deadline=None, max_examples=150)
def test_the_tokens_are_those_of_the_tokenizer(backends, kind, texts):
    backend = backends[kind]
    encoder = word_encoder(backend)
    expected = [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]
    assert encoder.encode(texts) == expected
    assert encoder.encode(texts) == expected


def test_words_are_forgotten_when_there_are_too_many(backends, monkeypatch):
    monkeypatch.setattr(words, "_WORDS_REMEMBERED", 50)
    backend = backends["gpt2"]
    encoder = word_encoder(backend)
    texts = [f"<|im_start|>word{number} again" for number in range(200)]
    assert encoder.encode(texts) == [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]
    assert len(encoder._tokens) <= 52


def changed(**facts):
    """Return a tokenizer that is a little different."""
    whole = json.loads(trained(KINDS["gpt2"]).to_str())
    for name, value in facts.items():
        part, _, key = name.partition("__")
        if key:
            whole[part] = whole[part] | {key: value}
        else:
            whole[part] = value
    return Tokenizer.from_str(json.dumps(whole))


def test_other_kinds_of_tokenizers_are_left_to_the_library():
    lowercase = trained(KINDS["gpt2"])
    lowercase.normalizer = normalizers.Lowercase()
    merged_over_spaces = trained(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    unknown_split = trained(cut_by(r"\p{Han}|\S+"))
    unknown_split.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), KINDS["gpt2"]])
    others = [
        lowercase,
        merged_over_spaces,
        unknown_split,
        changed(pre_tokenizer__add_prefix_space=True),
        changed(model__dropout=0.5),
    ]
    assert [word_encoder(other) for other in others] == [None] * len(others)
    assert isinstance(word_encoder(changed()), WordEncoder)
