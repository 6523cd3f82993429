"""Put all questions to one model: what it answers, and how likely it finds the right answers."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import pandas as pd
from jinja2 import TemplateError

from luthier.answers import Answerer, AnswerStore, LocalAnswerer
from luthier.errors import UserError
from luthier.pipelines.evaluation.questions import asked_of
from luthier.text.prepare import Message

logger = logging.getLogger(__name__)

COLUMNS = [
    *("set", "kind", "id", "prompt", "expected", "model", "answer", "answer_tokens", "seconds", "mean_log_probability"),
    *("nll", "supervised_tokens", "label_scores"),
]


def ask(
    answerer: Answerer,
    questions: pd.DataFrame,
    store: AnswerStore,
    labels: Sequence[str] = (),
    label_field: str | None = None,
) -> pd.DataFrame:
    """Return the questions with what a model makes of them.

    Args:
        answerer: the model.
        questions: from `questions.make_questions`.
        store: where answers are kept: nothing is answered or measured twice.
        labels: those whose likelihood after each message of the set `test` is measured; none for none.
        label_field: field of a JSON answer that is the label; None if the answer is.

    Returns:
        columns `set`, `kind`, `id`, `prompt`, `expected`, `model`, `answer` (empty in the set `general`, which is only read),
        `answer_tokens`, `seconds`, `mean_log_probability` (nats a token, end marker included), `nll` (nats, of `expected`) with
        `supervised_tokens` and `label_scores` (JSON, label -> nats) in the sets `test` and `general`, where the model's
        likelihoods can be had: not those of an endpoint.
    """
    conversations = asked_of(questions)
    answered = (questions["set"] != "general").to_numpy()
    answers = iter(store.answer(answerer, [turns for turns, yes in zip(conversations, answered, strict=True) if yes]))
    rows: list[dict[str, Any]] = questions.drop(columns="messages").assign(model=answerer.name).to_dict("records")  # type: ignore[assignment]
    for row, yes in zip(rows, answered, strict=True):
        if yes:
            answer = next(answers)
            predicted = answer.tokens + (answer.finish == "stop")
            row |= {"answer": answer.text, "answer_tokens": answer.tokens, "seconds": answer.seconds}
            row["mean_log_probability"] = answer.log_probability / predicted if predicted else float("nan")
        else:
            row["answer"] = ""
    if isinstance(answerer, LocalAnswerer):
        _measure(answerer, rows, conversations, store, labels, label_field)
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _measure(
    answerer: LocalAnswerer,
    rows: list[dict[str, Any]],
    conversations: Sequence[Sequence[Message]],
    store: AnswerStore,
    labels: Sequence[str],
    label_field: str | None,
) -> None:
    """Add what only a model at hand can say: the likelihood of texts that it did not choose."""
    from luthier.pipelines.evaluation.likelihoods import label_log_likelihoods, losses_of, passage_examples, right_answers
    from luthier.pipelines.evaluation.tasks import label_of

    for name, examples_of in (("test", right_answers), ("general", passage_examples)):
        at = [number for number, row in enumerate(rows) if row["set"] == name]
        asked = [conversations[number] for number in at]
        texts = [str(rows[number]["expected"]) for number in at]

        def measured(asked: Any = asked, texts: Any = texts, examples_of: Any = examples_of) -> list[list[float]]:
            model, tokenizer = answerer.model()
            return losses_of(model, examples_of(tokenizer, asked, texts), answerer.batch_tokens)

        try:
            losses = store.measured(answerer, ["nll", name, asked, texts], measured)
        except (TemplateError, UserError) as error:
            logger.warning("%s: likelihoods cannot be measured, its chat template refuses the messages: %s", answerer.name, error)
            return
        for number, (nll, tokens) in zip(at, losses, strict=True):
            rows[number] |= {"nll": nll, "supervised_tokens": int(tokens)}
    # a JSON answer that leaves the field out has no label
    at = [number for number, row in enumerate(rows) if row["set"] == "test" and label_of(str(row["expected"]), label_field)]
    if not labels or not at:
        return
    asked, texts = [conversations[number] for number in at], [str(rows[number]["expected"]) for number in at]

    def scored() -> list[list[float]]:
        model, tokenizer = answerer.model()
        return label_log_likelihoods(model, tokenizer, asked, texts, labels, label_field, answerer.batch_tokens)

    logger.info("%s: the likelihood of %d labels after each of %d messages.", answerer.name, len(labels), len(at))
    for number, found in zip(
        at, store.measured(answerer, ["labels", asked, texts, list(labels), label_field], scored), strict=True
    ):
        rows[number]["label_scores"] = json.dumps(dict(zip(labels, found, strict=True)), ensure_ascii=False)
