"""Answers that satisfy a JSON Schema, whatever the model: tokens that would break it cannot be chosen.

llguidance (https://github.com/guidance-ai/llguidance) follows the answer and says which tokens may come next.
Answers are compact JSON, with the properties in the order of the schema: the form in which `compact_json` writes them.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from luthier.errors import UserError
from luthier.text.chat import end_tokens


def check_schema(schema: Any, parameter: str, named: str) -> None:
    """Find out whether answers can be held to a schema: quickly and without a model, before expensive work.

    Args:
        schema: what is meant to be a JSON Schema, read from JSON.
        parameter: what asks for it, for errors.
        named: where the schema comes from, such as `data.answer_schema`.

    Raises:
        UserError: if there is no schema, or llguidance cannot follow it.
    """
    if not schema:
        raise UserError(
            f"{parameter}: {named} holds no schema that answers could be held to. Give one, or set {parameter} to false."
        )
    why = LLMatcher.validate_grammar(grammar_of(schema)) if isinstance(schema, Mapping) else "it is no JSON object"
    if why:
        raise UserError(
            f"{parameter}: answers cannot be held to {named}, which llguidance cannot follow: {why}\n"
            f"Write it without that, or set {parameter} to false."
        )


def grammar_of(schema: Mapping[str, Any]) -> str:
    """Return the grammar of compact JSON that satisfies a schema; it is not compiled yet."""
    compact = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    grammar: str = LLMatcher.grammar_from_json_schema(dict(schema), defaults=compact)
    return grammar


@lru_cache(maxsize=4)
def _read_vocabulary(tokenizer: Any, ends: tuple[int, ...]) -> LLTokenizer:
    return from_tokenizer(tokenizer, eos_token=list(ends))


class JsonConstraint:
    """Holds every answer to one JSON Schema; give it to `luthier.generation.generate`."""

    def __init__(self, tokenizer: Any, schema: Mapping[str, Any]) -> None:
        """Compile a schema. The first one of a tokenizer takes seconds, if its vocabulary is large.

        Args:
            tokenizer: the model's: a fast one, which knows the bytes of its tokens.
            schema: a JSON Schema (draft 2020-12, without what llguidance cannot follow, such as `not`).

        Raises:
            UserError: if llguidance cannot follow the schema or the tokenizer.
        """
        try:
            self._tokenizer = _read_vocabulary(tokenizer, tuple(end_tokens(tokenizer)))
        except ValueError as error:
            raise UserError(f"The answers of this model cannot be constrained: {error}") from error
        self._first = LLMatcher(self._tokenizer, grammar_of(schema), log_level=0)
        if self._first.is_error():
            raise UserError(f"The JSON Schema cannot be a constraint: {self._first.get_error()}")

    def matcher(self) -> "JsonMatcher":
        """Return what follows a new answer."""
        return JsonMatcher(self._first.deep_copy(), self._tokenizer.vocab_size)


class JsonMatcher:
    """Follows one answer: see `luthier.generation.Matcher`."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        """Start at the answer's beginning."""
        self._matcher, self._vocabulary = matcher, vocabulary

    def take(self, token: int) -> None:
        """Go on by a token of the answer.

        Raises:
            UserError: if llguidance cannot go on, as where a schema is too large for it.
        """
        if not self._matcher.consume_token(token):
            raise UserError(f"The JSON Schema cannot be followed any further: {self._matcher.get_error()}")

    def forced(self) -> list[int]:
        """Return the tokens that come next in any case: the schema leaves nothing else."""
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced

    def allowed(self, draft: list[int]) -> tuple[list[int], torch.Tensor]:
        """Cut a draft where it breaks the schema; return the rest, and the tokens allowed at each place of it and after it.

        The second is boolean, of shape (draft + 1, vocabulary).
        """
        draft = draft[: self._matcher.validate_tokens(draft)]
        masks = [self._matcher.compute_bitmask()]
        for token in draft:
            self.take(token)
            masks.append(self._matcher.compute_bitmask())
        self._matcher.rollback(len(draft))
        bits = np.unpackbits(np.frombuffer(b"".join(masks), np.uint8).reshape(len(masks), -1), axis=1, bitorder="little")
        return draft, torch.from_numpy(bits[:, : self._vocabulary].astype(bool))
