"""Judge every answer by the tasks that fit the data: a column a metric, a row an answer.

structured      the fields of JSON answers (`score.py`); made for every run, a plain answer being one field
classification  the label, which is the whole answer or one of its fields
free_text       how much of the right wording is there: ROUGE, chrF, token F1
retention       the likelihood of general text, so that forgetting is seen

Beside them stands, whatever the task, how the answer came out: its length and time, empty, cut, or a refusal. These columns
begin with `output_` and say nothing about right or wrong.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import regex
from pydantic import Field

from luthier.configuration import Parameters, RegularExpression
from luthier.errors import UserError, did_you_mean
from luthier.pipelines.evaluation.baselines import as_fields
from luthier.pipelines.evaluation.calibration import confidence_of
from luthier.pipelines.evaluation.score import as_dicts, likelihood_difference, likelihoods, score_answers, tables_by_model
from luthier.text.prepare import compact_json, strict_json

logger = logging.getLogger(__name__)

Task = Literal["structured", "classification", "free_text"]

# How a refusal begins, English and German. Prefixes are how refusals are commonly found without a judge model (Zou et al.
# 2023, arXiv:2307.15043, appendix B); these were written for this project and tried on the sentences of its tests.
_NOT = r"(?:can't|cannot|can not|won't|am not|am unable|not able|unable)"
_DO = r"(?:help|assist|answer|provide|do|comply|fulfil|support|share|discuss|write|create|give|with)"
_SORRY = r"(?:es tut mir leid|tut mir leid|entschuldigung|entschuldigen sie|leider|bedaure)"
REFUSALS = (
    rf"(?:i am|i'm|im) (?:\w+ )?(?:sorry|afraid),? ?(?:but )?(?:i |that )?(?:\w+ )?{_NOT}",
    rf"(?:sorry|unfortunately|regrettably|apologies),? (?:but )?i(?: am|'m)? (?:\w+ )?{_NOT}",
    rf"i (?:can't|cannot|can not|won't|will not|must decline|must refuse) (?:to )?{_DO}",
    r"i(?: am|'m) (?:not able|unable|not allowed|not permitted|not comfortable|not going) to",
    rf"(?:as|being) an? (?:ai|artificial|language|large language|virtual)\b.{{0,60}}(?:{_NOT}|don't)",
    rf"{_SORRY}\b.{{0,40}}(?:kann|darf|werde|möchte) ich\b.{{0,60}}(?:nicht|keine)",
    rf"{_SORRY}\b.{{0,40}}ich\b.{{0,12}}(?:kann|darf|werde|möchte)\b.{{0,60}}(?:nicht|keine)",
    r"(?:das|dabei|hierbei|darauf|dazu) (?:kann|darf|werde) ich\b.{0,40}(?:nicht|keine)",
    r"ich (?:kann|darf|werde) (?:\w+ ){0,4}(?:nicht|keine) (?:\w+ ){0,3}(?:\w*helfen|\w*antworten|geben|erstellen)",
    r"als (?:ki|künstliche|sprachmodell|virtuell)\w*\b.{0,60}(?:nicht|keine)",
)
_REFUSAL_WITHIN = 200  # characters: further on, "I cannot" belongs to the matter


class Tasks(Parameters):
    """What answers are judged by."""

    kinds: tuple[Task, ...] | None = None
    """Any of `structured`, `classification`, `free_text`; null chooses by the answers and says what it chose."""
    label: str | None = None
    """Field of the answer that is the label of `classification`; null is the whole answer."""
    most_labels: int = Field(default=200, ge=2)
    """Plain answers of at most so many kinds, each twice or more on average, are taken for labels."""
    refusals: tuple[RegularExpression, ...] = REFUSALS
    """Regular expressions, sought in any case at the start of an answer; the defaults are English and German."""


def choose_tasks(expected: "Sequence[str] | pd.Series[str]", schema: Mapping[str, Any], parameters: Tasks) -> tuple[Task, ...]:
    """Return the tasks that fit the data, and log which and why.

    Args:
        expected: right answers, best those of all splits: a small test split shows few of many labels.
        schema: JSON Schema of an answer; empty if there is none.
        parameters: `kinds` overrides the choice.

    Raises:
        UserError: if `label` is no field of the answers.
    """
    # pandas holds a text in its bytes; each becomes an object for a moment
    answers = pd.Series(expected, dtype="str")
    kinds = answers.unique()
    fields = list(dict.fromkeys(name for answer in kinds for name in _object(answer) or {}))
    if parameters.label is not None and parameters.label not in fields:
        known = f"the fields are {', '.join(fields)}" if fields else "the answers have no fields: leave it null"
        meant = did_you_mean(parameters.label, fields)
        raise UserError(f"evaluation.tasks.label: no answer has a field {parameters.label!r}{meant}; {known}.")
    if parameters.kinds is not None:
        chosen, why = parameters.kinds, "evaluation.tasks.kinds says so"
    else:
        chosen, why = _fitting(kinds, len(answers), schema, parameters)
    if parameters.label is not None and "classification" not in chosen:
        chosen, why = (*chosen, "classification"), f"{why}, and {parameters.label} is the label"
    logger.info("Answers are judged as %s: %s.", " and ".join(chosen), why)
    return chosen


def _fitting(kinds: Any, count: int, schema: Mapping[str, Any], parameters: Tasks) -> tuple[tuple[Task, ...], str]:
    if schema:
        return ("structured",), "there is a schema of the answers"
    if count and all(_object(answer) is not None for answer in kinds):
        return ("structured",), "every answer is a JSON object"
    if count and len(kinds) <= parameters.most_labels and 2 * len(kinds) <= count:
        return ("classification",), f"{count} answers are of {len(kinds)} kinds"
    return ("free_text",), f"{count} answers are of {len(kinds)} kinds"


def _object(answer: str) -> dict[str, Any] | None:
    """Return the fields of an answer that is a JSON object, or None."""
    try:
        value = strict_json(answer)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def score_by_tasks(
    answers: pd.DataFrame,
    schema: dict[str, Any],
    chosen: Sequence[Task],
    parameters: Tasks,
    max_new_tokens: int | None = None,
) -> pd.DataFrame:
    """Judge each answer by each of the tasks.

    Args:
        answers: columns `model`, `id`, `expected`, `answer`; where known `nll` (nats, of the right answer),
            `supervised_tokens`, and of the answer given `answer_tokens` (without the end marker), `seconds` (from prompt to last
            token) and `mean_log_probability` (nats a token).
        schema: JSON Schema of a valid answer; empty if there is none.
        chosen: from `choose_tasks`.
        parameters: label and refusals.
        max_new_tokens: where answers were cut; an answer of so many tokens did not end by itself.

    Returns:
        the rows of `score.score_answers`, whatever the tasks (a plain text is the one field `answer`), and

        - classification: `label_right` (bool), `label_expected`, `label_answer` (text)
        - free_text: `rouge1`, `rouge2`, `rougeL`, `chrf`, `token_f1`, from 0 to 1
        - always: `output_characters`, `output_empty`, `output_refused`; where known `output_tokens`, `output_cut`,
          `output_confidence` (see `calibration.confidence_of`). Times are no scores: they are never the same twice.
    """
    scored = score_answers(answers.drop(columns=list(_FACTS), errors="ignore"), schema)
    pairs = list(zip(scored["expected"].astype(str), scored["answer"].astype(str), strict=True))
    columns: dict[str, list[Any]] = {}
    if "classification" in chosen:
        columns |= _labels(pairs, parameters.label)
    if "free_text" in chosen:
        by_pair = {pair: text_scores(*pair) for pair in dict.fromkeys(pairs)}
        columns |= {metric: [by_pair[pair][metric] for pair in pairs] for metric in TEXT_METRICS}
    columns |= _output(answers, [answer for _, answer in pairs], parameters.refusals, max_new_tokens)
    return scored.assign(**columns)


def _labels(pairs: Sequence[tuple[str, str]], field: str | None) -> dict[str, list[Any]]:
    expected = [label_of(right, field) for right, _ in pairs]
    said = [label_of(answer, field) for _, answer in pairs]
    right = [one == other for one, other in zip(expected, said, strict=True)]
    return {"label_right": right, "label_expected": expected, "label_answer": said}


def label_of(answer: str, field: str | None) -> str:
    """Return the label of an answer as text that any file can hold; a label of JSON keeps its spelling: true is not "true"."""
    if field is None:
        return answer.strip().encode(errors="replace").decode()
    fields = as_fields(answer)
    try:
        return compact_json(fields[field]).encode(errors="replace").decode() if field in fields else ""
    except RecursionError:  # JSON that could be read but is too deep to be written
        return ""


def labels_of(answers: Iterable[str], parameters: Tasks) -> list[str]:
    """Return the labels that answers have, sorted; none if there are more than `most_labels`, or only one."""
    labels = sorted({label for answer in answers if (label := label_of(answer, parameters.label))})
    if len(labels) > parameters.most_labels:
        logger.info("%d labels are too many to measure the probability of each (evaluation.tasks.most_labels).", len(labels))
        return []
    return labels if len(labels) > 1 else []


def confusion(scores: pd.DataFrame, model: str, most: int = 25) -> pd.DataFrame:
    """Count what a model answered (columns) for what was right (rows); the most frequent labels, the others together.

    Args:
        scores: with the columns of `classification`.
        model: its name.
        most: labels shown; what else was answered is counted as `(other)`.
    """
    of_model = scores[scores["model"] == model]
    counts = of_model["label_expected"].value_counts()
    names = sorted(counts.index, key=lambda name: (-counts[name], name))[:most]
    shown = of_model[of_model["label_expected"].isin(names)]
    said = shown["label_answer"].where(shown["label_answer"].isin(names), "(other)")
    table = pd.crosstab(shown["label_expected"], said, rownames=["right"], colnames=["answered"])
    return table.reindex(index=names, columns=[*names, "(other)"], fill_value=0)


# Free text

TEXT_METRICS = ("rouge1", "rouge2", "rougeL", "chrf", "token_f1")
# Scripts without spaces between words are compared sign by sign, as multilingual question answering does (Lewis et al.
# 2020, MLQA, arXiv:1910.07475).
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_SIGN = regex.compile(_UNSPACED)
_WORD = regex.compile(rf"{_UNSPACED}\p{{M}}*|(?:(?!{_UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])+")
_MARKS = regex.compile(r"[\p{P}\p{S}]")
_ARTICLES = regex.compile(r"\b(?:a|an|the)\b")


class _Words:
    """What rouge-score asks of a tokenizer. Its own knows a to z and 0 to 9 only; for such texts this one does the same."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def text_scores(expected: str, answer: str) -> dict[str, float]:
    """Compare two texts. All figures lie between 0 and 1; a text that equals the right one has 1 in each.

    ROUGE-1, -2 and -L are F-measures without stemming (Lin 2004, by rouge-score, with words of any script), chrF is that of
    Popović 2015 with its defaults (by sacrebleu, divided by 100), token F1 that of SQuAD (Rajpurkar et al. 2016): case,
    punctuation, symbols and English articles do not count. Where neither text has anything to count, such as pairs of words
    in one-word texts, the libraries say 0; here it is 1 if all words are the same, and without any words if the texts are.
    """
    rouge = {name: float(score.fmeasure) for name, score in _rouge().score(expected, answer).items()}
    words, said = _WORD.findall(expected.lower()), _WORD.findall(answer.lower())
    if words == said and (words or expected.strip() == answer.strip()):
        rouge = dict.fromkeys(rouge, 1.0)
    chrf = _chrf().sentence_score(answer, [expected]).score / 100
    if not expected.strip():
        chrf = float(not answer.strip())
    return {**rouge, "chrf": min(1.0, chrf), "token_f1": token_f1(expected, answer)}


def token_f1(expected: str, answer: str) -> float:
    """Return the F1 of the words that two texts share, each as often as it occurs, as SQuAD's official script counts them.

    >>> token_f1("The grinder, and the kettle!", "kettle or grinder")
    0.6666666666666666
    """
    words, said = _squad_words(expected), _squad_words(answer)
    if not words or not said:
        return float(words == said)
    shared = (Counter(words) & Counter(said)).total()
    return 2 * shared / (len(words) + len(said))


def _squad_words(text: str) -> list[str]:
    plain = _ARTICLES.sub(" ", _MARKS.sub("", text.lower()))
    return _SIGN.sub(r" \g<0> ", plain).split()


# How an answer came out

_FACTS = ("answer_tokens", "seconds", "mean_log_probability")  # what may be known of an answer beside its text


def is_refusal(answer: str, patterns: Sequence[str] = REFUSALS) -> bool:
    """Tell whether an answer begins as a refusal does.

    >>> is_refusal("I'm sorry, but I can't help with that.")
    True
    """
    start = answer[:_REFUSAL_WITHIN].replace("’", "'")
    return any(_refusal(pattern).search(start) for pattern in patterns)


@cache
def _refusal(pattern: str) -> re.Pattern[str]:
    # at the start of the answer or of a sentence: a customer's "I can't" within a quotation is no refusal
    return re.compile(rf"(?:\A\W*|[.!?]\s+)(?:{pattern})", re.IGNORECASE | re.DOTALL)


def _output(
    answers: pd.DataFrame, texts: Sequence[str], refusals: Sequence[str], max_new_tokens: int | None
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "output_characters": [len(text) for text in texts],
        "output_empty": [not text.strip() for text in texts],
        "output_refused": [is_refusal(text, refusals) for text in texts],
    }
    if "answer_tokens" in answers:
        tokens = answers["answer_tokens"].astype("float64")
        columns["output_tokens"] = tokens.tolist()
        if max_new_tokens is not None:
            columns["output_cut"] = (tokens >= max_new_tokens).tolist()
    if "mean_log_probability" in answers:
        columns["output_confidence"] = confidence_of(answers["mean_log_probability"]).tolist()
    return columns


def times_of(answers: pd.DataFrame) -> pd.DataFrame:
    """Return how long the answers of each model took: `model`, `answers`, `tokens` (all), `median_seconds`, `p95_seconds`.

    An answer's time runs from when its prompt entered a batch to its last token, or from request to reply: answers of one batch
    share it, so their times do not add up.

    Args:
        answers: `model`, `answer_tokens`, `seconds`; a model without times, such as a baseline, is left out.
    """
    timed = answers[answers["seconds"].notna()]
    rows = [
        {
            "model": model,
            "answers": len(table),
            "tokens": int(table["answer_tokens"].sum()),
            "median_seconds": float(table["seconds"].median()),
            "p95_seconds": float(table["seconds"].quantile(0.95)),
        }
        for model, table in timed.groupby("model", sort=False)
    ]
    return pd.DataFrame(rows, columns=["model", "answers", "tokens", "median_seconds", "p95_seconds"])


# Retention

PASSAGE = ("id", "kind", "text")


def read_passages(path: Path) -> pd.DataFrame:
    """Read general texts: JSON Lines of `id`, `kind` and `text`, sorted by id.

    Raises:
        UserError: naming every line that is none, and every id that occurs twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"evaluation.retention.path: {path} cannot be read: {error}") from error
    rows, problems = [], []
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _object(line) or {}
        if set(row) != set(PASSAGE) or not all(isinstance(row[name], str) and row[name].strip() for name in PASSAGE):
            problems.append(f"line {number} must be an object of the texts {', '.join(PASSAGE)}, not {line[:60]}")
        elif row["id"] in first:
            problems.append(f"line {number} has the id {row['id']!r} of line {first[row['id']]}")
        else:
            first[row["id"]] = number
            rows.append(row)
    if not rows and not problems:
        problems.append("it holds no text")
    if problems:
        raise UserError(f"{path} cannot be used to measure retention.\n  " + "\n  ".join(problems))
    return pd.DataFrame(rows).sort_values("id").reset_index(drop=True)


def compare_retention(retention: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Say what was forgotten: loss per token of each model, and how much each is above the untouched `base`, paired.

    Args:
        retention: `model`, `id`, `nll` (nats, summed) and `supervised_tokens` of every passage.
        seed: of the bootstrap.

    Returns:
        `{examples, tokens, models: {NAME: {nll_per_token, perplexity}}, differences: {NAME_minus_base: {nll_per_token}}}`,
        each figure `{value, low, high}`, 95 % bootstrap interval over passages. A difference above 0 is forgetting.
    """
    tables = tables_by_model(retention)
    base = tables["base"]
    return {
        "examples": len(base),
        "tokens": int(base["supervised_tokens"].sum()),
        "models": {name: as_dicts(likelihoods(table, seed)) for name, table in tables.items()},
        "differences": {
            f"{name}_minus_base": as_dicts(likelihood_difference(table, base, seed))
            for name, table in tables.items()
            if name != "base"
        },
    }
