"""What the models are asked, fixed before any of them answers: every model gets the same questions.

test     the held-out messages; the right answer is known
noise    the same messages with slips of the keyboard, a `kind` each
safety   the messages of the must and must-not checks, asked with the data's own system prompt
general  texts that are only read, so that forgetting is seen; `expected` is the text
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from luthier.pipelines.evaluation.robustness import Robustness, perturb
from luthier.pipelines.evaluation.safety import Check, conversations
from luthier.records import user_text
from luthier.shards import Shards
from luthier.text.chat import spoken_answer
from luthier.text.prepare import Message, PromptSettings, compact_json, prepare

COLUMNS = ["set", "kind", "id", "messages", "prompt", "expected"]


def spell_calls(conversations: "pd.Series[Any]", tokenizer: Callable[[], Any]) -> "pd.Series[Any]":
    """Return conversations whose last turn says its tool calls as the base's chat template writes them, and all others as is.

    Args:
        conversations: the turns of each.
        tokenizer: gives the base's, asked only if there is a call.
    """
    calling = conversations.map(lambda messages: bool(messages[-1].get("tool_calls")))
    if not calling.any():
        return conversations

    def spelt(messages: Any) -> list[Any]:
        turns = [_turn(message) for message in messages]
        return [*turns[:-1], {"role": "assistant", "content": spoken_answer(tokenizer(), turns)}]

    return conversations.where(~calling, conversations[calling].map(spelt))


def last_answers(records: Shards, rows: NDArray[np.bool_], tokenizer: Callable[[], Any]) -> "pd.Series[str]":
    """Return what some of the conversations end with, calls as `spell_calls` has them; nothing else of them becomes an object."""
    parts = []
    for batch in records.iter_taken(rows, ["messages"]):
        conversations = batch.column("messages")
        last = conversations.values.take(pc.subtract(conversations.offsets[1:], 1))
        answers, calling = last.field("content"), pc.fill_null(pc.not_equal(last.field("tool_calls"), ""), False)
        if pc.any(calling).as_py():
            spelt = spell_calls(conversations.filter(calling).to_pandas(), tokenizer)
            answers = pc.replace_with_mask(answers, calling, pa.array([turns[-1]["content"] for turns in spelt], pa.string()))
        parts.append(answers)
    found: pd.Series[str] = pa.chunked_array(parts, pa.string()).to_pandas()
    return found


def make_questions(
    test: pd.DataFrame,
    checks: Sequence[Check],
    passages: pd.DataFrame | None,
    settings: PromptSettings,
    robustness: Robustness,
    seed: int,
    key: str,
) -> pd.DataFrame:
    """Return all questions.

    Args:
        test: from `held_out`.
        checks: of safety.
        passages: general texts, from `tasks.read_passages`; None for none.
        settings: of the prompts, with which the messages of checks are prepared as a client's are.
        robustness: kinds of noise.
        seed: of the noise.
        key: of the placeholders that personal data become.

    Returns:
        columns `set`, `kind`, `id` (unique within set and kind), `messages` (JSON, the turns before the answer), `prompt` (what
        the user says), `expected`.
    """
    rows = [_row("test", "", record) for record in test.to_dict("records")]
    for kind, records in perturb([_plain(record) for record in test.to_dict("records")], robustness, seed).items():
        rows += [_row("noise", kind, record) for record in records]
    for asked in conversations(checks, settings.system):
        messages, _ = prepare(asked["messages"], settings, key)
        rows.append(_row("safety", "", {"id": asked["id"], "messages": [*messages, {"role": "assistant", "content": ""}]}))
    if passages is not None:
        rows += [
            {"set": "general", "kind": kind, "id": name, "messages": "[]", "prompt": "", "expected": text}
            for name, kind, text in zip(passages["id"], passages["kind"], passages["text"], strict=True)
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def asked_of(questions: pd.DataFrame) -> list[list[Message]]:
    """Return the turns of each question."""
    return [json.loads(text) for text in questions["messages"]]


def _row(name: str, kind: str, record: Any) -> dict[str, Any]:
    messages = [_turn(message) for message in record["messages"]]
    asked = messages[:-1]
    row = {"set": name, "kind": kind, "id": record["id"], "messages": compact_json(asked), "prompt": user_text(asked)}
    return row | {"expected": messages[-1]["content"]}


def _plain(record: Any) -> dict[str, Any]:
    return {"id": record["id"], "messages": [_turn(message) for message in record["messages"]]}


def _turn(message: Any) -> Any:
    """Return a turn without the keys that a table fills with nothing."""
    return {name: value for name, value in message.items() if value is not None}


def asked_as_trained(questions: pd.DataFrame, ours: str | None, own: str | None) -> pd.DataFrame:
    """Return the questions for a model that was trained with a system prompt of its own, which takes the place of the data's.

    Args:
        questions: from `make_questions`.
        ours: the data's system prompt.
        own: the model's.
    """
    ours, own = ours or None, own or None  # an empty prompt is none
    if ours == own:
        return questions

    def changed(text: str) -> str:
        turns = json.loads(text)
        system = [turn["content"] for turn in turns if turn["role"] == "system"]
        if system != ([] if ours is None else [ours]):
            return text  # a check that brings its own
        rest = turns if ours is None else turns[1:]
        return compact_json(rest if own is None else [{"role": "system", "content": own}, *rest])

    asked = questions["set"] != "general"
    return questions.assign(messages=questions["messages"].where(~asked, questions["messages"].map(changed)))
