"""Messages to tokens and back: the only place where a chat template is applied."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from luthier.errors import UserError
from luthier.text.prepare import Message, compact_json, strict_json
from luthier.text.words import WordEncoder, word_encoder


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens."""

    input_ids: list[int]
    answers: list[tuple[int, int]]
    """Begin and end of each run of tokens that is to be learnt, in order."""

    @property
    def supervised(self) -> list[bool]:
        """Tell for each token whether it is to be learnt."""
        return self.mask().tolist()

    def mask(self) -> NDArray[np.bool_]:
        """Tell for each token whether it is to be learnt, shape (tokens,)."""
        mask = np.zeros(len(self.input_ids), bool)
        for begin, end in self.answers:
            mask[begin:end] = True
        return mask

    def cut(self, limit: int) -> "Encoded":
        """Return the first tokens."""
        return Encoded(self.input_ids[:limit], [(begin, min(end, limit)) for begin, end in self.answers if begin < limit])


# Marks around what somebody wrote that is spelt like a special token. They are noncharacters, which no text holds by
# right (The Unicode Standard, section 23.7).
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.DOTALL)


@lru_cache(maxsize=8)
def _special(tokenizer: Any) -> re.Pattern[str]:
    names = sorted({token.content for token in tokenizer.added_tokens_decoder.values() if token.special}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _shield(special: re.Pattern[str], text: str) -> str:
    return special.sub(lambda found: f"{_OPEN}{found[0]}{_CLOSE}", text.replace(_OPEN, "").replace(_CLOSE, ""))


_ASKED: dict[str, Any] = {"role": "user", "content": "a"}


def _probe_of_calls(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "call00001", "type": "function", "function": {"name": "probe_of_calls", "arguments": arguments}}
    return [_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]


@lru_cache(maxsize=8)
def _takes_objects(tokenizer: Any, _template: str) -> bool:
    """Tell whether the template takes the arguments of a call as an object, as transformers has it.

    Some take them as JSON text alone: they fail at an object, or print it as Python does.
    """
    try:
        return "{'probed'" not in _texts(tokenizer, [_probe_of_calls({"probed": 1})], ask=False)[0]
    except (TemplateError, TypeError):
        return False


def _shield_all(special: re.Pattern[str], value: Any) -> Any:
    """Shield every text in JSON; its escapes are read by now, so nobody can spell a special token with them."""
    if isinstance(value, str):
        return _shield(special, value)
    if isinstance(value, list):
        return [_shield_all(special, item) for item in value]
    if isinstance(value, dict):
        return {_shield(special, name): _shield_all(special, item) for name, item in value.items()}
    return value


def _called(special: re.Pattern[str], call: Any, *, objects: bool) -> Any:
    """Return a call as templates expect it: its arguments an object, where they are one and the template takes them so."""
    shielded = _shield_all(special, call)
    given = call["function"].get("arguments") if isinstance(call, dict) and isinstance(call.get("function"), dict) else None
    if isinstance(given, str) and objects:
        try:
            value = strict_json(given)
        except ValueError:
            return shielded
        if isinstance(value, dict):
            shielded["function"]["arguments"] = _shield_all(special, value)
    elif isinstance(given, dict) and not objects:
        shielded["function"]["arguments"] = _shield(special, compact_json(given))
    return shielded


def _shielded(tokenizer: Any, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the turns as templates expect them; special tokens that stand in a message itself are put between marks."""
    special = _special(tokenizer)
    shielded = []
    for message in messages:
        turn: dict[str, Any] = {
            name: value if name == "role" else _shield(special, str(value))
            for name, value in message.items()
            if value is not None and name != "tool_calls"
        }
        if message.get("tool_calls") is not None:
            objects = _takes_objects(tokenizer, str(tokenizer.chat_template))
            turn["tool_calls"] = [_called(special, call, objects=objects) for call in json.loads(message["tool_calls"])]
        shielded.append(turn)
    return shielded


def _texts(tokenizer: Any, conversations: Sequence[Sequence[Any]], *, ask: bool) -> list[str]:
    """Apply the template to each conversation."""
    if not conversations:
        return []
    found = tokenizer.apply_chat_template(list(map(list, conversations)), tokenize=False, add_generation_prompt=ask)
    return [str(text) for text in found]


def _text(tokenizer: Any, messages: Sequence[Message], *, ask: bool) -> str:
    return _texts(tokenizer, [_shielded(tokenizer, messages)], ask=ask)[0]


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenise what the template wrote; only its own special tokens are special, so no customer can end a turn."""
    ids: list[int] = []
    for number, piece in enumerate(_MARKED.split(text)):
        # the template has written all special tokens: adding more would double the first one
        ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=number % 2 == 1)["input_ids"]
    return ids


@lru_cache(maxsize=8)
def _words(tokenizer: Any) -> WordEncoder | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else word_encoder(backend)


def _ids_of_all(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Do what `_ids` does, for many texts at once: a call a text costs more than its tokens."""
    words = _words(tokenizer)
    if words is None:
        return [_ids(tokenizer, text) for text in texts]
    plain = iter(words.encode([text for text in texts if _OPEN not in text]))
    return [_ids(tokenizer, text) if _OPEN in text else next(plain) for text in texts]


def check_template(tokenizer: Any) -> None:
    """Make sure that the tokenizer can be trained with.

    Raises:
        UserError: if it has no chat template, or one whose prompts are not what answers follow.
    """
    if not tokenizer.chat_template:
        raise UserError("The base model's tokenizer has no chat template: choose an instruction-tuned model (model.base).")
    with suppress(TemplateError):  # it may know other orders of turns
        encode(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


def writes_calls(tokenizer: Any) -> bool:
    """Tell whether the chat template writes an assistant's tool calls: many leave them out without a word."""
    return "probe_of_calls" in _probed_call(tokenizer)


def _probed_call(tokenizer: Any) -> str:
    """Return what the template makes of a question that is answered with a call; nothing if it fails at it."""
    arguments: Any = {"probed": 1}
    if not _takes_objects(tokenizer, str(tokenizer.chat_template)):
        arguments = compact_json(arguments)
    try:
        return _texts(tokenizer, [_probe_of_calls(arguments)], ask=False)[0]
    except (TemplateError, TypeError):
        return ""


@lru_cache(maxsize=8)
def _lead(tokenizer: Any, _template: str) -> str:
    """Return what the template writes between the prompt and whatever is answered, such as Qwen3's empty thoughts.

    It is no part of an answer, so it goes with the prompt; a space stays with the word behind it, as tokenizers have it.
    """
    told = [[_ASKED, {"role": "assistant", "content": content}] for content in ("b", "c")]
    try:
        (prompt,), texts = _texts(tokenizer, [[_ASKED]], ask=True), _texts(tokenizer, told, ask=False)
    except (TemplateError, TypeError):
        return ""
    if writes_calls(tokenizer):
        texts.append(_probed_call(tokenizer))
    both = "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False)))
    return both.removeprefix(prompt).rstrip(" ") if both.startswith(prompt) else ""


def settle_prompts(tokenizer: Any) -> None:
    """Let the tokenizer's template itself end a prompt where the answer begins: for programs that apply it on their own."""
    lead = _lead(tokenizer, str(tokenizer.chat_template))
    if not lead:
        return
    unthinking = tokenizer.apply_chat_template([_ASKED], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    # a client of such a program may write `enable_thinking: false`, as Qwen3's knows it, and have the same prompt
    when = "add_generation_prompt and enable_thinking | default(true)" if unthinking.endswith(lead) else "add_generation_prompt"
    # Jinja drops the line feed at the end of a template, and would keep it here
    template = tokenizer.get_chat_template().removesuffix("\n")
    tokenizer.chat_template = f'{template}{{{{ {json.dumps(lead, ensure_ascii=False)} if {when} else "" }}}}'


def learns_every_answer(tokenizer: Any) -> bool:
    """Tell whether of a conversation with several answers each is learnt: not if the template rewrites earlier turns."""
    asked: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        return len(encode(tokenizer, asked + asked).answers) == 2
    except (TemplateError, UserError):  # told where it matters: of the rows themselves
        return True


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the tokens after which the assistant's answer begins.

    They equal the tokens that stand before the last supervised run in `encode` of the whole conversation.

    Raises:
        jinja2.TemplateError: if the template refuses the conversation.
    """
    text = _text(tokenizer, messages, ask=True) + _lead(tokenizer, str(tokenizer.chat_template))
    if all(message["role"] != "assistant" for message in messages):
        return _ids(tokenizer, text)
    try:
        done, pieces = _finished(tokenizer, messages), encode(tokenizer, messages).input_ids
    except (TemplateError, UserError):  # training would leave this out; what is asked can be answered nevertheless
        return _ids(tokenizer, text)
    # a template that rewrote the earlier turns has no pieces in common with what was learnt of them
    return pieces + _ids(tokenizer, text.removeprefix(done)) if text.startswith(done) else _ids(tokenizer, text)


def _finished(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Text of the conversation up to the end of its last assistant turn, as `encode` cuts it."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return _text(tokenizer, messages[: last + 1], ask=False).rstrip("\n")


def encode(tokenizer: Any, messages: Sequence[Message]) -> Encoded:
    """Tokenise one conversation; see `encode_all`."""
    return encode_all(tokenizer, [messages])[0]


def encode_all(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
    """Tokenise conversations and mark the assistant's turns, their end markers included.

    The text is cut where an answer begins and ends and the pieces are tokenised apart, so the tokens of a prompt are
    the same whether an answer follows (training) or not (generation), whatever merges the tokenizer has. It works for
    templates without `{% generation %}`. Masks go by position, never by token id: padding may equal the end marker.
    What the template writes before any answer, as Qwen3's writes empty thoughts, ends the prompt and is not learnt.
    Where a template rewrites earlier turns when later ones follow, as Qwen3's takes out their thoughts, no text holds the
    earlier answers as they are asked for: only those from the last rewriting on are learnt.
    A text without any other turn is no conversation: it is tokenised as it stands, with the end of a sequence after it.

    Raises:
        UserError: if the prompt of an answer is not what the text with the answer begins with, so that no cut is exact: such
            as of an answer with thoughts of its own, where the prompts end with empty ones.
        jinja2.TemplateError: if the template refuses a conversation, such as one with a system turn.
    """
    befores, afters, owners = [], [], []
    pieces: list[tuple[int, str, bool]] = []  # conversation, text, learn
    for number, messages in enumerate(conversations):
        if [message["role"] for message in messages] == ["assistant"]:
            pieces.append((number, f"{_shielded(tokenizer, messages)[0]['content']}{tokenizer.eos_token or ''}", True))
            continue
        shielded = _shielded(tokenizer, messages)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                befores.append(shielded[:turn])
                afters.append(shielded[: turn + 1])
                owners.append(number)
    done, last, first = "", -1, 0
    faults: dict[int, str] = {}
    lead = _lead(tokenizer, str(tokenizer.chat_template)) if owners else ""
    asked, answered = _texts(tokenizer, befores, ask=True), _texts(tokenizer, afters, ask=False)
    for number, before, whole in zip(owners, asked, answered, strict=True):
        if number != last:
            done, first = "", len(pieces)
        after = whole.rstrip("\n")
        if not before.startswith(done):
            del pieces[first:]
            faults.pop(number, None)
            done = ""
        prompt = before if after == before else before + lead  # of an answer that the template leaves out nothing is written
        if not after.startswith(prompt):
            faults[number] = _fault(lead if after.startswith(before) else "")
        pieces += [(number, prompt.removeprefix(done), False), (number, after.removeprefix(prompt), True)]
        done, last = after, number
    if faults:
        raise UserError(next(iter(faults.values())))
    found = [Encoded([], []) for _ in conversations]
    for (number, _, learn), ids in zip(pieces, _ids_of_all(tokenizer, [text for _, text, _ in pieces]), strict=True):
        tokens = found[number].input_ids
        if learn and ids:
            found[number].answers.append((len(tokens), len(tokens) + len(ids)))
        tokens.extend(ids)
    return found


def _fault(lead: str) -> str:
    """Say why a prompt and its answer cannot be told apart."""
    if lead:
        return f"The answer has thoughts of its own, where the chat template's prompts end with {lead!r}: take them out."
    return (
        "The chat template writes another prompt than the one that its answer follows: they cannot be told apart. "
        "Choose another model.base."
    )


def spoken_answer(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return the last answer as a model says it: with its tool calls in the words of the chat template."""
    encoded = encode(tokenizer, messages)
    begin, end = encoded.answers[-1]
    return str(tokenizer.decode(encoded.input_ids[begin:end], skip_special_tokens=True)).strip()


def end_tokens(tokenizer: Any) -> list[int]:
    """Return the ids at which generation stops: the end of a sequence, and what the template puts after an answer."""
    probe: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    encoded = encode(tokenizer, probe)
    last = encoded.input_ids[-1]
    special = {tokenizer.eos_token_id, last if last in tokenizer.all_special_ids else None}
    return sorted(token for token in special if token is not None)
