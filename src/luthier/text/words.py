"""Byte-level BPE a word at a time: every word is merged once, however often it comes.

A tokenizer of this kind (GPT-2's, and those of Llama 3, Qwen and SmolLM after it) cuts a text into words by a regular
expression and merges each word alone. So the tokens of a word never depend on its neighbours, and can be remembered:
twice as fast as the tokenizer itself, which remembers a few words only and keeps offsets that nobody asks for.
"""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import regex

# What `ByteLevel(use_regex=True)` cuts by: Radford et al. 2019, as the library tokenizers has it.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS_REMEMBERED = 1 << 18
_PROBE = (
    "Dear  team,\r\n\n I'VE paid €1,234.50 – don't you'll see?\t\t“Größe”  中文测试 देवनागरी ١٢٣ ½ ² Ⅷ 👍🏽"
    " e\u0301 \u200d\u0085\x1c_x_ \u00a0 "
)


def _byte_alphabet() -> dict[int, str]:
    """Return the printable character that stands for each byte that is none: Radford et al. 2019."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(256 + number) for number, byte in enumerate(others)}


_BYTES = _byte_alphabet()


class _Tokens(dict[str, tuple[int, ...]]):
    """The tokens of each word that was asked for."""

    def __init__(self, model: Any, added: dict[str, tuple[int, ...]]) -> None:
        super().__init__(added)
        self._model, self._added = model, added

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(self) > _WORDS_REMEMBERED:
            self.clear()
            self.update(self._added)
        merged = self._model.tokenize(word.encode().decode("latin-1").translate(_BYTES))
        self[word] = tokens = tuple(token.id for token in merged)
        return tokens


class WordEncoder:
    """Gives the tokens of texts, as `encode` of a tokenizer of the library tokenizers does without special tokens of its own."""

    def __init__(self, backend: Any, pattern: str) -> None:
        """Take over a tokenizer; see `word_encoder`, which knows whether that can be done."""
        self._word = regex.compile(pattern)
        added: dict[str, tuple[int, ...]] = {
            token.content: (number,) for number, token in backend.get_added_tokens_decoder().items()
        }
        longest_first = sorted(added, key=len, reverse=True)
        self._mark = regex.compile("|".join(map(regex.escape, longest_first))) if added else None
        self._tokens = _Tokens(backend.model, added)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        tokens_of = self._tokens.__getitem__
        return [list(chain.from_iterable(map(tokens_of, self._words(text)))) for text in texts]

    def _words(self, text: str) -> list[str]:
        if self._mark is None or not self._mark.search(text):
            return self._word.findall(text)
        words, end = [], 0
        for mark in self._mark.finditer(text):
            words += [*self._word.findall(text[end : mark.start()]), mark[0]]
            end = mark.end()
        return words + self._word.findall(text[end:])


def word_encoder(backend: Any) -> WordEncoder | None:
    """Return an encoder that gives the same tokens, or None if the tokenizer is of another kind."""
    facts = json.loads(backend.to_str())
    pattern = _pattern_of(facts["pre_tokenizer"])
    plain_marks = all(not (t["lstrip"] or t["rstrip"] or t["single_word"] or t["normalized"]) for t in facts["added_tokens"])
    plain_model = facts["model"]["type"] == "BPE" and not any(
        facts["model"].get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    )
    if pattern is None or facts["normalizer"] is not None or not (plain_marks and plain_model):
        return None
    try:
        encoder = WordEncoder(backend, pattern)
    except regex.error:
        return None
    texts = [_PROBE, *(f"a {token['content']} b" for token in facts["added_tokens"])]
    same = [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)] == encoder.encode(texts)
    return encoder if same else None


def _pattern_of(rule: dict[str, Any] | None) -> str | None:
    """Return the regular expression that a pre-tokenizer cuts by, or None if it does more, or something else."""
    steps = rule.get("pretokenizers", [rule]) if rule else []
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if len(steps) == 1:
        return _GPT2 if steps[0]["use_regex"] else None
    cut = steps[0]
    if len(steps) == 2 and cut["type"] == "Split" and not steps[1]["use_regex"]:
        isolated = cut["behavior"] == "Isolated" and not cut["invert"]
        return cut["pattern"].get("Regex") if isolated else None
    return None
