"""From a raw row of a known shape to messages, and which shape the rows of a source have.

The conventions followed, with the names that their data sets made common:

- OpenAI's chat format (`messages`, with `tool_calls` and the older `function_call`, content as text or as text parts);
- ShareGPT (`conversations` of `from` and `value`) and Alpaca (`instruction`, `input`, `output`, `system`, `history`) as
  LLaMA-Factory's data/README.md describes them, their preference forms included; Dolly's `context` and `response`;
- TRL's "Dataset formats and types": prompt-completion, preference with explicit or implicit prompt, unpaired preference,
  language modelling;
- HH-RLHF's transcripts (`\\n\\nHuman: ...\\n\\nAssistant: ...`), the best known preference pairs without a prompt column.

Text is taken as it stands: cleaning is another step. A row that Jinja templates turn into messages (shape `template`) is
not handled here but by `luthier.text.prepare.rendered`.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.errors import UserError, did_you_mean
from luthier.text.prepare import Message, RowError, has_content
from luthier.text.rows import (
    CONVERSATIONS,
    HISTORY,
    INPUT,
    INSTRUCTION,
    LABELLED,
    MESSAGES,
    PROMPT,
    SYSTEM,
    Columns,
    Row,
    column_of,
    history,
    instruction,
    take,
    text_of,
    with_system,
)
from luthier.text.turns import JSON_TURNS, is_turn, kind_of, read_turns, turns_or_text

Shape = Literal["template", "preference", "messages", "sharegpt", "alpaca", "prompt_completion", "labelled_text", "text"]


@dataclass(frozen=True)
class Conversation:
    """What a row says."""

    messages: list[Message]
    """The turns, the last one the assistant's."""
    rejected: list[Message] | None = None
    """Of a preference pair: the turns that were not preferred, in place of all that follows the last user's or system's
    turn of `messages`."""
    label: str | None = None
    """The class of a labelled text."""


_OUTPUT: Columns = ("output", "response")
_COMPLETION: Columns = ("completion", "response", "answer", "output")
_ASKED: Columns = ("prompt", "question", "query", "instruction", "conversations", "input")  # before `chosen` and `rejected`
_CHOSEN: Columns = ("chosen",)
_REJECTED: Columns = ("rejected",)
_LABEL: Columns = ("label_text", "label_name", "label", "category", "intent", "class")  # SetFit: `label` numbers `label_text`
_TEXT: Columns = ("text", "content")
# What corpora for language modelling (C4, FineWeb, Dolma, Wikipedia, The Pile) know of a document. Beside any other column
# a text is more likely a task of a shape that we do not know, and not to be learnt by heart.
_ABOUT_A_TEXT = {
    "id", "_id", "doc_id", "uuid", "idx", "index", "url", "uri", "title", "source", "author", "date", "created", "added",
    "timestamp", "meta", "metadata", "lang", "language", "language_score", "license", "licence", "dump", "file_path", "path",
    "filename", "token_count", "split",
}  # fmt: skip


def _trainable(messages: list[Message]) -> list[Message]:
    """Return the messages if there is something to learn from them. Strange orders are fine: the chat template decides."""
    if not messages:
        raise RowError("there are no messages")
    for number, message in enumerate(messages, 1):
        if message["role"] == "user" and not has_content(message["content"]):
            raise RowError(f"the user's message is empty (turn {number})")
        if message["role"] == "assistant" and not has_content(message["content"]) and "tool_calls" not in message:
            raise RowError(f"the answer is empty (turn {number})")
    last = messages[-1]["role"]
    if last != "assistant":
        raise RowError(f"ends with a turn of the {last}: there is no answer to learn")
    return messages


# The shapes


def _read_turns(names: Columns) -> Callable[[Row], Conversation]:
    return lambda row: Conversation(_trainable(with_system(row, read_turns(*take(row, names)))))


def _refuse_disliked(row: Row, name: str) -> None:
    """Refuse an answer that is marked as bad (TRL's unpaired preference, LLaMA-Factory's KTO): it is not to be learnt."""
    if row.get(name) is False or (isinstance(row.get(name), str) and row[name].strip().casefold() == "false"):
        raise RowError(f"{name} is false: the answer is marked as one not to learn")


def _read_alpaca(row: Row) -> Conversation:
    take(row, INSTRUCTION)
    _refuse_disliked(row, "kto_tag")
    asked: Message = {"role": "user", "content": instruction(row)}
    answer: Message = {"role": "assistant", "content": text_of(row, _OUTPUT)}
    return Conversation(_trainable(with_system(row, [*history(row), asked, answer])))


def _read_prompt_completion(row: Row) -> Conversation:
    _refuse_disliked(row, "label")
    column, value = take(row, PROMPT)
    prompt = turns_or_text(column, value, "user")
    if not prompt:
        raise RowError(f"{column} is an empty list")
    return Conversation(_trainable(with_system(row, prompt + turns_or_text(*take(row, _COMPLETION), "assistant"))))


_NO_PROMPT = "has no prompt: there is no column of it, and chosen and rejected do not begin with the same one"


def _transcript(text: str) -> list[Message]:
    """Read a transcript of HH-RLHF; of any other text, nothing."""
    pieces = re.split(r"\n\n(Human|Assistant):", text)
    if pieces[0].strip() or len(pieces) < 5:
        return []
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": "user" if who == "Human" else "assistant", "content": said.strip()} for who, said in turns]


def _without_prompt(chosen: str, rejected: str) -> tuple[list[Message], list[Message]]:
    """Tell the prompt from two answers that both begin with it: transcripts, or what they share up to the end of a word."""
    transcripts = _transcript(chosen), _transcript(rejected)
    if all(transcripts):
        return transcripts
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    while shared and not (chosen[shared : shared + 1].isspace() and rejected[shared : shared + 1].isspace()):
        shared -= 1
    if not has_content(chosen[:shared]):
        raise RowError(_NO_PROMPT)
    prompt: Message = {"role": "user", "content": chosen[:shared]}
    return (
        [prompt, {"role": "assistant", "content": chosen[shared:]}],
        [prompt, {"role": "assistant", "content": rejected[shared:]}],
    )


def _asked(row: Row) -> list[Message]:
    """Return the prompt of a preference pair, empty if no column holds it."""
    column = column_of(row, _ASKED)
    if column is None or row[column] is None:
        return []
    if column == "instruction":
        return [{"role": "user", "content": instruction(row)}]
    return turns_or_text(column, row[column], "user")


def _pair(row: Row) -> tuple[list[Message], list[Message]]:
    """Return two whole conversations, prompt included."""
    (_, chosen), (_, rejected) = take(row, _CHOSEN), take(row, _REJECTED)
    asked = _asked(row)
    if not asked and all(isinstance(text, str) and not JSON_TURNS.match(text) for text in (chosen, rejected)):
        return _without_prompt(chosen, rejected)
    whole = []
    for column, value in (("chosen", chosen), ("rejected", rejected)):
        turns = turns_or_text(column, value, "assistant")
        # UltraFeedback repeats the prompt, a text in its own column, in both conversations; TRL then reads these alone
        spoken = [turn["role"] for turn in asked] == ["user"] and any(turn["role"] == "user" for turn in turns)
        whole.append(turns if spoken or turns[: len(asked)] == asked else asked + turns)
    return whole[0], whole[1]


def _read_preference(row: Row) -> Conversation:
    chosen, rejected = (with_system(row, messages) for messages in _pair(row))
    told = {}
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        try:
            told[name] = _trainable(messages)
        except RowError as error:
            raise RowError(f"{name}: {error}") from error
    prompts = [number for number, message in enumerate(chosen, 1) if message["role"] in ("system", "user")]
    if not prompts:
        raise RowError(_NO_PROMPT)
    cut = prompts[-1]
    if chosen[:cut] != rejected[:cut] or any(message["role"] in ("system", "user") for message in rejected[cut:]):
        raise RowError("chosen and rejected differ before the last answer: what comes before it must be the same in both")
    if chosen == rejected:
        raise RowError("chosen and rejected are the same: there is nothing to prefer")
    return Conversation(chosen, rejected=rejected[cut:])


def _label(column: str, value: Any) -> str:
    """Return a label's text. A number has one spelling, 1.0 as 1: pandas turns whole numbers into floats beside a gap."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, str | int):
        return str(value)
    raise RowError(f"{column} must be text, a number, true or false, not {'NaN' if isinstance(value, float) else kind_of(value)}")


def _read_labelled_text(row: Row) -> Conversation:
    label = _label(*take(row, _LABEL))
    messages: list[Message] = [{"role": "user", "content": text_of(row, LABELLED)}, {"role": "assistant", "content": label}]
    return Conversation(_trainable(messages), label=label)


def _read_text(row: Row) -> Conversation:
    text = text_of(row, _TEXT)
    if not has_content(text):
        raise RowError("the text is empty")
    return Conversation([{"role": "assistant", "content": text}])


# Recognising


def _holds_turns(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("[")
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _holds_text(value: Any) -> bool:
    return isinstance(value, str)


def _holds_either(value: Any) -> bool:
    return _holds_text(value) or _holds_turns(value) or is_turn(value)


def _holds_label(value: Any) -> bool:
    return isinstance(value, str | int | float)


@dataclass(frozen=True)
class _Known:
    """A shape: the columns that a row of it has, what they hold, and how it is read."""

    read: Callable[[Row], Conversation]
    required: tuple[tuple[Columns, Callable[[Any], bool]], ...]
    optional: tuple[Columns, ...] = ()
    alone: bool = False
    """Whether a column of which we know nothing tells that it is another shape."""

    def fits(self, row: Row) -> bool:
        columns = [column_of(row, names) for names, _ in self.required]
        if not all(column and holds(row[column]) for column, (_, holds) in zip(columns, self.required, strict=True)):
            return False
        return not self.alone or all(value is None or name in _ABOUT_A_TEXT or name in columns for name, value in row.items())

    def described(self) -> str:
        return " + ".join("|".join(names) for names, _ in self.required)


# The most specific first: a preference pair may have messages beside it, and most rows of a task have some text.
_KNOWN: dict[Shape, _Known] = {
    "preference": _Known(_read_preference, ((_CHOSEN, _holds_either), (_REJECTED, _holds_either)), (_ASKED, INPUT, SYSTEM)),
    "messages": _Known(_read_turns(MESSAGES), ((MESSAGES, _holds_turns),), (SYSTEM,)),
    "sharegpt": _Known(_read_turns(CONVERSATIONS), ((CONVERSATIONS, _holds_turns),), (SYSTEM,)),
    "alpaca": _Known(_read_alpaca, ((INSTRUCTION, _holds_text), (_OUTPUT, _holds_text)), (INPUT, HISTORY, SYSTEM)),
    "prompt_completion": _Known(_read_prompt_completion, ((PROMPT, _holds_either), (_COMPLETION, _holds_either)), (SYSTEM,)),
    "labelled_text": _Known(_read_labelled_text, ((LABELLED, _holds_text), (_LABEL, _holds_label))),
    "text": _Known(_read_text, ((_TEXT, _holds_text),), alone=True),
}


_CHOOSE = (
    "Rename the columns, or choose one of these with data.shape (`text` needs choosing where further columns stand beside "
    "the text), or write templates over your own columns in data.user and data.assistant."
)


def recognise(rows: Sequence[Row], template_columns: frozenset[str], key: str = "data.shape", what_to_do: str = _CHOOSE) -> Shape:
    """Return the most specific shape that fits at least half of the rows; the rest are bad rows. Their order does not matter.

    Args:
        rows: a sample, some hundred rows.
        template_columns: the columns that the templates of `data` read, empty without templates. Rows that have them all
            have the shape `template`.
        key: what errors begin with.
        what_to_do: how they end.

    Raises:
        UserError: if no shape fits: with the columns found, the shapes known, and how to choose one.
    """
    if not rows:
        raise UserError(f"{key}: there is no row that could be read, so no shape can be recognised.")
    if template_columns and 2 * sum(template_columns <= row.keys() for row in rows) >= len(rows):
        return "template"
    for shape, known in _KNOWN.items():
        if 2 * sum(map(known.fits, rows)) >= len(rows):
            return shape
    raise UserError(f"{key}: {_unknown(rows, template_columns)}\n{what_to_do}")


def _unknown(rows: Sequence[Row], template_columns: frozenset[str]) -> str:
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(kind_of(value))
    ours = sorted({name for known in _KNOWN.values() for names, _ in known.required for name in names})
    found = [
        f"{name} ({' or '.join(sorted(kinds[name]))}){'' if name in ours else did_you_mean(name, ours)}" for name in sorted(kinds)
    ]
    shapes = "\n".join(f"  {shape}: {known.described()}" for shape, known in _KNOWN.items())
    missing = sorted(template_columns - kinds.keys())
    templates = "".join(f"\nThe templates read {name!r}{did_you_mean(name, kinds)}, which no row has." for name in missing)
    return (
        f"none of the known shapes fits half of {len(rows)} sampled rows. Their columns are: "
        f"{', '.join(found) or 'none'}.{templates}\nThe shapes and the columns that they need:\n{shapes}"
    )


def to_conversation(row: Row, shape: Shape) -> Conversation:
    """Turn a row into messages with the keys role, content and, only where the row has them, name, tool_calls, tool_call_id.

    Args:
        row: as JSON, CSV or Parquet give it; lists of messages may be JSON text.
        shape: any but `template`.

    Raises:
        RowError: if the row is not of this shape or holds nothing to learn, in the user's words.
        KeyError: if the shape is `template`.
    """
    return _KNOWN[shape].read(row)


def columns_of(shape: Shape, row: Row) -> frozenset[str]:
    """Return the columns of a row that `to_conversation` reads; the others can be kept beside the record.

    Raises:
        KeyError: if the shape is `template`.
    """
    known = _KNOWN[shape]
    groups = [names for names, _ in known.required] + list(known.optional)
    columns = frozenset(column for names in groups if (column := column_of(row, names)) is not None)
    if shape == "preference" and not columns & {"instruction"}:
        return columns - (frozenset(INPUT) - {column_of(row, _ASKED)})  # an input is read only after an instruction
    return columns
