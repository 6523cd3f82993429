"""Messages to tokens and back: the only place where a chat template is applied."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from luthier.errors import UserError
from luthier.text.prepare import Message


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens; `supervised[i]` tells whether token `i` is to be learnt."""

    input_ids: list[int]
    supervised: list[bool]


# Marks around what somebody wrote that is spelt like a special token. They are noncharacters, which no text holds by
# right (The Unicode Standard, section 23.7).
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.DOTALL)


@lru_cache(maxsize=8)
def _special(tokenizer: Any) -> re.Pattern[str]:
    names = sorted({token.content for token in tokenizer.added_tokens_decoder.values() if token.special}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _text(tokenizer: Any, messages: Sequence[Message], *, ask: bool) -> str:
    """Apply the template; special tokens that stand in a message itself come out between marks."""
    shielded = []
    for message in messages:
        content = message["content"].replace(_OPEN, "").replace(_CLOSE, "")
        shielded.append({**message, "content": _special(tokenizer).sub(lambda found: f"{_OPEN}{found[0]}{_CLOSE}", content)})
    return str(tokenizer.apply_chat_template(shielded, tokenize=False, add_generation_prompt=ask))


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenise what the template wrote; only its own special tokens are special, so no customer can end a turn."""
    ids: list[int] = []
    for number, piece in enumerate(_MARKED.split(text)):
        # the template has written all special tokens: adding more would double the first one
        ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=number % 2 == 1)["input_ids"]
    return ids


def check_template(tokenizer: Any) -> None:
    """Make sure that the tokenizer can be trained with.

    Raises:
        UserError: if it has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError("The base model's tokenizer has no chat template: choose an instruction-tuned model (model.base).")


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the tokens after which the assistant's answer begins.

    They equal the tokens that stand before the first supervised one in `encode` of the whole conversation.
    """
    pieces = encode(tokenizer, messages).input_ids if any(m["role"] == "assistant" for m in messages) else []
    done = "" if not pieces else _finished(tokenizer, messages)
    return pieces + _ids(tokenizer, _text(tokenizer, messages, ask=True).removeprefix(done))


def _finished(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Text of the conversation up to the end of its last assistant turn, as `encode` cuts it."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return _text(tokenizer, messages[: last + 1], ask=False).rstrip("\n")


def encode(tokenizer: Any, messages: Sequence[Message]) -> Encoded:
    """Tokenise a conversation and mark the assistant's turns, their end marker included.

    The text is cut where an answer begins and ends and the pieces are tokenised apart, so the tokens of a prompt are
    the same whether an answer follows (training) or not (generation), whatever merges the tokenizer has. It works for
    templates without `{% generation %}`. Masks go by position, never by token id: padding may equal the end marker.

    Raises:
        UserError: if the template rewrites earlier turns when later ones follow, so that no cut is exact.
    """
    input_ids: list[int] = []
    supervised: list[bool] = []
    done = ""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _text(tokenizer, messages[:turn], ask=True)
        after = _text(tokenizer, messages[: turn + 1], ask=False).rstrip("\n")
        if not (before.startswith(done) and after.startswith(before)):
            raise UserError("The chat template rewrites earlier turns: the answer cannot be told from the prompt.")
        for text, learn in ((before.removeprefix(done), False), (after.removeprefix(before), True)):
            ids = _ids(tokenizer, text)
            input_ids += ids
            supervised += [learn] * len(ids)
        done = after
    return Encoded(input_ids, supervised)


def end_tokens(tokenizer: Any) -> list[int]:
    """Return the ids at which generation stops: the end of a sequence, and what the template puts after an answer."""
    probe: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    encoded = encode(tokenizer, probe)
    last = encoded.input_ids[-1]
    special = {tokenizer.eos_token_id, last if last in tokenizer.all_special_ids else None}
    return sorted(token for token in special if token is not None)
