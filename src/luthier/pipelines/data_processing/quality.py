"""Drop what is no message: floods of one character or line, walls of symbols, languages that are not asked for.

The heuristics are those of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1), adapted to short chat: a measure of
repetition is taken only of texts long enough to repeat themselves, and the limits catch garbage, not bad style. The figures
of a whole shard are taken at once over its code points.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import AfterValidator, Field

from luthier.configuration import Parameters
from luthier.errors import did_you_mean
from luthier.pipelines.data_processing.messages import user_texts
from luthier.records import DROPPED
from luthier.shards import write_table
from luthier.text.code_points import Lookup, code_points
from luthier.text.language import CONFIDENT, LANGUAGES, detect
from luthier.text.prepare import compact_json
from luthier.text.profile import UNSPACED

# What a text must have before a share or a repetition says anything about it.
ENOUGH_VISIBLE = 20  # characters that are not white space, a run of one character counted once: "HELP!!!!!" is five
ENOUGH_LINES = 10
ENOUGH_WORDS = 50
NGRAM = 10  # words; the longest of Gopher's duplicate n-grams: a table of readings repeats short ones without end
_TEXT_AT_ONCE = 1 << 20  # characters: bounds the memory of the code points and their masks

_SPACE, _LETTER, _SYMBOL, _OTHER = range(4)
_LINE = re.compile(r"[^\n]*\S[^\n]*")
# One character of a script that writes without spaces counts as a word.
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def _known_language(code: str) -> str:
    if code not in LANGUAGES:
        raise ValueError(f"{code!r} is no code of ISO 639-1 that can be detected{did_you_mean(code, sorted(LANGUAGES))}")
    return code


Share = Annotated[float, Field(ge=0, le=1)]


class Rules(Parameters):
    """Limits on the text that a user wrote; null turns a rule off."""

    min_characters: int | None = Field(default=None, ge=1)
    """Fewest characters, outer white space aside. Null: "?" and an emoji can be messages."""
    max_characters: int | None = Field(default=100_000, ge=1)
    """Most characters, outer white space aside."""
    max_repeated_lines: Share | None = 0.9
    """Largest share of lines that repeat an earlier one; judged from 10 lines on."""
    max_repeated_words: Share | None = 0.9
    """Largest share of words that stand in a repeated run of 10 words; judged from 50 words on."""
    max_symbols: Share | None = 0.8
    """Largest share of punctuation and symbols, emoji aside, in what is not white space.

    A run of one character counts once, so that rulers and "!!!!!!" are fine; judged from 20 such characters on.
    """
    min_letters: Share | None = None
    """Smallest share of letters, counted likewise.

    Null: a list of order numbers is fine."""
    max_run: int | None = Field(default=128, ge=1)
    """Longest run of one character other than white space; rulers of 80 or 120 dashes are common in e-mail."""


class Quality(Parameters):
    """Which records are worth learning from."""

    languages: list[Annotated[str, AfterValidator(_known_language)]] | None = Field(default=None, min_length=1)
    """Codes of ISO 639-1, such as `en`: a record is dropped if its language is another one for sure; null allows any."""
    min_language_confidence: float = Field(default=CONFIDENT, ge=0, le=1)
    """Below this a language counts as unknown, and unknown languages stay."""
    rules: Rules = Rules()
    """The limits."""
    profiles: dict[str, Rules] = Field(default_factory=dict)
    """By name of a data source, limits that differ there; what a profile leaves out is as in `rules`."""

    def rules_of(self, source: str) -> Rules:
        """Return the limits for a data source."""
        profile = self.profiles.get(source)
        return self.rules if profile is None else self.rules.model_copy(update=profile.model_dump(exclude_unset=True))


@dataclass(frozen=True, slots=True)
class _Figures:
    """Counts of one text's characters, runs counted once, and its longest run."""

    visible: int
    letters: int
    symbols: int
    run: int
    repeated: str


_BY_CATEGORY = {"L": _LETTER, "M": _LETTER, "P": _SYMBOL, "S": _SYMBOL, "Z": _SPACE, "N": _OTHER}
_EXACT = {"So": _OTHER, "Cc": _SPACE, "Cf": _SPACE, "Cs": _SYMBOL, "Co": _SYMBOL, "Cn": _SYMBOL}


def _class_of(character: str) -> int:
    if "\ufe00" <= character <= "\ufe0f":  # variation selectors: they only dress an emoji
        return _SPACE
    if "\U0001f3fb" <= character <= "\U0001f3ff":  # skin tones
        return _OTHER
    if character == "\ufffd":  # what a wrong decoding leaves behind
        return _SYMBOL
    category = unicodedata.category(character)
    return _EXACT[category] if category in _EXACT else _BY_CATEGORY[category[0]]


_classes = Lookup(_class_of)


def _figures(texts: Sequence[str]) -> list[_Figures]:
    # a line feed ends each text: no segment is empty, and no run goes from one text into the next
    codes = code_points("".join(f"{text}\n" for text in texts))
    ends = np.cumsum([len(text) + 1 for text in texts])
    starts = np.concatenate(([0], ends[:-1]))
    begins = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])) | (codes == ord("\n")))
    first = np.searchsorted(begins, starts)
    characters = codes[begins]
    classes = _classes(characters)
    lengths = np.where(classes == _SPACE, 0, np.diff(begins, append=len(codes)))
    runs = np.maximum.reduceat(lengths, first)
    # of several runs of the greatest length the first is told
    longest = np.flatnonzero(lengths == np.repeat(runs, np.diff(first, append=len(begins))))
    repeated = characters[longest[np.searchsorted(longest, first)]]
    counts = [
        np.add.reduceat(wanted, first, dtype=np.int64) for wanted in (classes != _SPACE, classes == _LETTER, classes == _SYMBOL)
    ]
    columns = (column.tolist() for column in (*counts, runs, repeated))
    return [
        _Figures(visible, letters, symbols, run, chr(code)) for visible, letters, symbols, run, code in zip(*columns, strict=True)
    ]


def _repeated_lines(text: str) -> tuple[int, float]:
    """Return the number of lines, and the share of those that repeat an earlier one."""
    lines = [line.strip() for line in _LINE.findall(text)]
    return len(lines), 1 - len(set(lines)) / len(lines) if lines else 0.0


def _repeated_words(text: str, enough: float) -> tuple[int, float]:
    """Return the number of words, and the share of those in a run of `NGRAM` words seen before; 0 if below `enough`."""
    words = _WORD.findall(text.casefold())
    if len(words) < ENOUGH_WORDS:
        return len(words), 0.0
    # a word in a run that came before has come before itself: few words that come again, no need to look for runs
    if 1 - len(set(words)) / len(words) <= enough:
        return len(words), 0.0
    ngrams = list(zip(*(words[shift:] for shift in range(NGRAM)), strict=False))
    if len(set(ngrams)) == len(ngrams):
        return len(words), 0.0
    repeated, counted = 0, 0
    seen: set[tuple[str, ...]] = set()
    for place, ngram in enumerate(ngrams):
        if ngram in seen:
            repeated += place + NGRAM - max(place, counted)
            counted = place + NGRAM
        seen.add(ngram)
    return len(words), repeated / len(words)


def _judge(text: str, figures: _Figures, rules: Rules) -> str | None:
    text = text.strip()
    length = len(text)
    if rules.min_characters is not None and length < rules.min_characters:
        return f"the text has {_characters(length)}, fewer than {rules.min_characters:,} (min_characters)"
    if rules.max_characters is not None and length > rules.max_characters:
        return f"the text has {_characters(length)}, more than {rules.max_characters:,} (max_characters)"
    if rules.max_run is not None and figures.run > rules.max_run:
        return f"{figures.repeated!r} stands {figures.run:,} times in a row, more than {rules.max_run:,} (max_run)"
    if figures.visible >= ENOUGH_VISIBLE:
        symbols, letters = figures.symbols / figures.visible, figures.letters / figures.visible
        if rules.max_symbols is not None and symbols > rules.max_symbols:
            return f"{symbols:.1%} of the text are symbols, more than {rules.max_symbols:.1%} (max_symbols)"
        if rules.min_letters is not None and letters < rules.min_letters:
            return f"{letters:.1%} of the text are letters, fewer than {rules.min_letters:.1%} (min_letters)"
    if rules.max_repeated_lines is not None and text.count("\n") >= ENOUGH_LINES - 1:
        lines, share = _repeated_lines(text)
        if lines >= ENOUGH_LINES and share > rules.max_repeated_lines:
            limit = f"{rules.max_repeated_lines:.1%} (max_repeated_lines)"
            return f"{share:.1%} of {lines:,} lines repeat earlier ones, more than {limit}"
    # fifty words cannot stand in fewer than fifty characters
    if rules.max_repeated_words is not None and length >= ENOUGH_WORDS:
        words, share = _repeated_words(text, rules.max_repeated_words)
        if share > rules.max_repeated_words:
            limit = f"{rules.max_repeated_words:.1%} (max_repeated_words)"
            return f"{share:.1%} of {words:,} words repeat earlier runs of {NGRAM}, more than {limit}"
    return None


def _characters(number: int) -> str:
    return f"{number:,} character" + ("" if number == 1 else "s")


def judge(text: str, rules: Rules) -> str | None:
    """Return why a text is dropped, with the figure and the rule's name, or None if it stays.

    The rules are asked in a fixed order, cheap ones first; the first that is broken is told.
    """
    return _judge(text, _figures([text])[0], rules)


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _TEXT_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def assess(table: pa.Table, parameters: Quality) -> tuple[pa.Table, pa.Table]:
    """Keep the records worth learning from, and write their language into `meta`.

    A `language` that the source gave in `meta` stays; null is written where it cannot be told. Each record is judged by
    itself, so the order and the size of shards change nothing.

    Args:
        table: records; what the user wrote is judged, or all but the system prompt where no turn is the user's.
        parameters: languages and limits.

    Returns:
        the kept records, in their order, and the dropped ones (schema `records.DROPPED`).
    """
    texts = user_texts(table, otherwise="system")
    sources = table.column("source").to_pylist()
    figures = [figures for batch in _batches(texts) for figures in _figures(batch)]
    rules = {source: parameters.rules_of(source) for source in set(sources)}
    reasons = [_judge(text, f, rules[source]) for text, f, source in zip(texts, figures, sources, strict=True)]
    good = [place for place, reason in enumerate(reasons) if reason is None]
    metas: list[str] = table.column("meta").to_pylist()
    for place, (language, confidence) in zip(good, detect([texts[place] for place in good]), strict=True):
        known = language if confidence >= parameters.min_language_confidence else None
        if parameters.languages is not None and known is not None and known not in parameters.languages:
            allowed = ", ".join(parameters.languages)
            reasons[place] = f"its language is {known!r} (confidence {confidence:.2f}), not one of {allowed} (languages)"
            continue
        meta = json.loads(metas[place])
        meta["language"] = meta.get("language") or known
        metas[place] = compact_json(dict(sorted(meta.items())))
    told = pa.array(reasons, pa.string())
    table = table.set_column(table.schema.get_field_index("meta"), "meta", pa.array(metas, pa.string()))
    dropped = table.select(["key", "id", "source"]).append_column("reason", told).filter(pc.is_valid(told))
    return table.filter(pc.is_null(told)), dropped.cast(DROPPED)


def assess_shard(out: Path, file: Path, parameters: Quality) -> None:
    """Write `records`, with their language in `meta`, and `dropped` (schema `records.DROPPED`)."""
    kept, dropped = assess(pq.read_table(file), parameters)
    write_table(kept, out / "records.parquet")
    write_table(dropped, out / "dropped.parquet")
