"""The profile of a set of texts: what drift is measured against later, in fixed memory, without keeping a text.

All that it holds is counts, sums, extremes and a set of bits. So merging is addition, exact, in any order and grouping: the
profile of two shards merged is the profile of both together. Hashes are CRC-32 and a fixed mix (splitmix64, Steele et al.
2014), never Python's own: two machines agree on every bin.

Words known from training are kept as a Bloom filter (Bloom 1970). A list of the most frequent words cannot be merged exactly
in bounded memory (a word just below the cut in each shard may be above it in the whole; space-saving depends on the order),
and a count-min sketch counts what nobody asks for. A filter is a union of bits: a word that was seen is always known, and
with 50,000 different words 1 unseen word in 1,000 passes for known, with 200,000 about 1 in 12.
"""

import base64
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from luthier.text.pii import PLACEHOLDER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 4096
"""Bins of hashed tokens and word n-grams: each holds enough for PSI or a chi-square test from some 20,000 words on."""
VERY_LONG = 10_000
"""Characters from which a text counts as very long."""
# Scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han. One character counts as a word there.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"

# Lower edges: 0, then eight to the octave where whole numbers allow it, up to 16 million; the last bin is open.
EDGES: NDArray[np.int64] = np.unique([0, *(round(2 ** (step / 8)) for step in range(8 * 24 + 1))])
# Numbers are left out: every order number would be a word never seen.
WORD = re.compile(rf"[{UNSPACED}]|[^\W\d_{UNSPACED}]+")
_FILTER_BITS = 1 << 20
_FILTER_HASHES = 4
_AT_ONCE = 4096  # texts

Unsigned = NDArray[np.uint64]
Counts = dict[int, int]
Tokens = Sequence[int] | NDArray[np.integer[Any]]
Name = TypeVar("Name", int, str)


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lengths(_Exact):
    """A histogram over `EDGES`, with what is exact beside it."""

    count: int = 0
    total: int = 0
    smallest: int | None = None
    largest: int | None = None
    bins: Counts = {}

    @property
    def mean(self) -> float:
        """The exact mean; 0 of nothing."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Return the value below which that share lies, to 9 % or one unit; 0 of nothing.

        Within a bin the values are taken to lie evenly, and the smallest and the largest are exact.
        """
        if self.smallest is None or self.largest is None:
            return 0.0
        rank, before = int(share * (self.count - 1)), 0
        for place, held in sorted(self.bins.items()):
            if rank < before + held:
                low = int(EDGES[place])
                high = int(EDGES[place + 1]) - 1 if place + 1 < len(EDGES) else self.largest
                value = low + (high - low) * (rank - before + 0.5) / held
                return float(min(max(value, self.smallest), self.largest))
            before += held
        return float(self.largest)

    def merge(self, other: "Lengths") -> "Lengths":
        """Return the histogram of both."""
        extremes = [value for value in (self.smallest, self.largest, other.smallest, other.largest) if value is not None]
        return Lengths(
            count=self.count + other.count,
            total=self.total + other.total,
            smallest=min(extremes, default=None),
            largest=max(extremes, default=None),
            bins=_add(self.bins, other.bins),
        )


class Vocabulary(_Exact):
    """The words seen, as the set bits of a Bloom filter: small while the words are few."""

    gaps: str = ""
    """The number of zeros before each set bit, a byte each in base 64; 255 stands for 255 zeros and more to come."""

    def bits(self) -> NDArray[np.bool_]:
        """Return the filter, shape (1048576,)."""
        coded = np.frombuffer(base64.b64decode(self.gaps), np.uint8)
        ends = np.flatnonzero(coded < 255)
        bits = np.zeros(_FILTER_BITS, np.bool_)
        bits[np.cumsum(coded, dtype=np.int64)[ends] + np.arange(len(ends))] = True
        return bits

    @classmethod
    def of(cls, bits: NDArray[np.bool_]) -> Self:
        """Make a vocabulary from the filter, shape (1048576,)."""
        gaps = np.diff(np.flatnonzero(bits), prepend=-1) - 1
        whole, rest = np.divmod(gaps, 255)
        coded = np.full(len(gaps) + int(whole.sum()), 255, np.uint8)
        coded[np.cumsum(whole + 1) - 1] = rest
        return cls(gaps=base64.b64encode(coded.tobytes()).decode())

    @property
    def digest(self) -> str:
        """What tells two vocabularies apart: 16 hex digits."""
        return hashlib.sha256(self.gaps.encode()).hexdigest()[:16]

    def merge(self, other: "Vocabulary") -> "Vocabulary":
        """Return the words of both."""
        return Vocabulary.of(self.bits() | other.bits())


class Profile(_Exact):
    """Counts of a set of texts. Nothing but the mixes grows, and those only with the number of different names.

    In the mixes the name "" stands for what could not be told.
    """

    version: Literal[1] = 1
    texts: int = 0
    characters: Lengths = Lengths()
    tokens: Lengths = Lengths()
    languages: dict[str, int] = {}
    labels: dict[str, int] = {}
    sources: dict[str, int] = {}
    token_bins: Counts = {}
    """Hashed token ids: bin -> count, of `BINS` bins."""
    word_bins: Counts = {}
    """Hashed words and pairs of words that follow each other: bin -> count, of `BINS` bins."""
    words: int = 0
    unknown_words: int = 0
    """Words that are not in the vocabulary that was given."""
    known_from: str | None = None
    """Digest of that vocabulary; null if none was given, and then no word counts as unknown."""
    vocabulary: Vocabulary = Vocabulary()
    """The words of these texts."""
    pii: dict[str, int] = {}
    """Placeholders by kind."""
    empty: int = 0
    """Texts without a visible character."""
    very_long: int = 0
    non_ascii: int = 0
    """Characters beyond ASCII."""

    @property
    def unknown_share(self) -> float:
        """The share of words out of vocabulary, in all words."""
        return self.unknown_words / self.words if self.words else 0.0

    @property
    def empty_share(self) -> float:
        """The share of empty texts."""
        return self.empty / self.texts if self.texts else 0.0

    @property
    def very_long_share(self) -> float:
        """The share of texts of `VERY_LONG` characters or more."""
        return self.very_long / self.texts if self.texts else 0.0

    @property
    def non_ascii_share(self) -> float:
        """The share of characters beyond ASCII, in all characters."""
        return self.non_ascii / self.characters.total if self.characters.total else 0.0

    def to_json(self) -> str:
        """Return JSON: one profile, one text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if the text is no profile, or one of another version.
        """
        return cls.model_validate_json(text)


def dense(counts: Mapping[int, int], size: int = BINS) -> NDArray[np.int64]:
    """Return sparse counts as an array, shape (size,)."""
    array = np.zeros(size, np.int64)
    array[list(counts)] = list(counts.values())
    return array


def _sparse(counts: NDArray[np.int64]) -> Counts:
    places = np.flatnonzero(counts)
    return dict(zip(places.tolist(), counts[places].tolist(), strict=True))


def _add(one: Mapping[Name, int], other: Mapping[Name, int]) -> dict[Name, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted(set(one) | set(other))}


def _mix(values: Unsigned) -> Unsigned:
    """Spread 64-bit numbers over all 64 bits: the finaliser of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hashed(values: Unsigned) -> NDArray[np.int64]:
    """Count 64-bit numbers by bin, shape (BINS,)."""
    return np.bincount((_mix(values) % np.uint64(BINS)).astype(np.int64), minlength=BINS)


def _filter_places(words: Unsigned) -> NDArray[np.int64]:
    """Return the bits of each word, shape (words, hashes)."""
    rounds = np.arange(1, _FILTER_HASHES + 1, dtype=np.uint64) << np.uint64(32)
    return (_mix(words[:, None] + rounds) % np.uint64(_FILTER_BITS)).astype(np.int64)


def _lengths(values: NDArray[np.int64]) -> Lengths:
    if not len(values):
        return Lengths()
    bins = np.bincount(np.searchsorted(EDGES, values, side="right") - 1, minlength=len(EDGES))
    return Lengths(
        count=len(values),
        total=int(values.sum()),
        smallest=int(values.min()),
        largest=int(values.max()),
        bins=_sparse(bins),
    )


def _mixture(names: Sequence[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(name or "" for name in names).items()))


def _count_placeholders(texts: Sequence[str]) -> dict[str, int]:
    # `<EMAIL_k3f7qz>` is of the kind `email`
    return _mixture([found[1:-8].lower() for text in texts if "<" in text for found in PLACEHOLDER.findall(text)])


class _HashOf(dict[str, int]):
    """The CRC-32 of words: most words of a batch come more than once."""

    def __missing__(self, word: str) -> int:
        self[word] = crc32(word.encode())
        return self[word]


def _words(texts: Sequence[str]) -> tuple[Unsigned, NDArray[np.bool_]]:
    """Return the hash of each word of all texts, and whether the next one follows it in the same text."""
    found = [WORD.findall((PLACEHOLDER.sub(" ", text) if "<" in text else text).casefold()) for text in texts]
    hashes = np.fromiter(map(_HashOf().__getitem__, itertools.chain.from_iterable(found)), np.uint64)
    followed = np.ones(len(hashes), np.bool_)
    followed[np.cumsum([len(words) for words in found if words], dtype=np.int64) - 1] = False
    return hashes, followed


def _profile_batch(
    texts: Sequence[str],
    tokens: Sequence[Tokens] = (),
    languages: Sequence[str | None] = (),
    labels: Sequence[str | None] = (),
    sources: Sequence[str | None] = (),
    known: NDArray[np.bool_] | None = None,
    known_from: str | None = None,
) -> Profile:
    characters = np.array([len(text) for text in texts], np.int64)
    words, followed = _words(texts)
    pairs = _mix(words[:-1] + np.uint64(1 << 33))[followed[:-1]] + words[1:][followed[:-1]]
    places = _filter_places(words)
    bits = np.zeros(_FILTER_BITS, np.bool_)
    bits[places] = True
    unknown = 0 if known is None else int((~known[places].all(axis=1)).sum())
    ids = np.concatenate([np.asarray(row, np.uint64) for row in tokens]) if len(tokens) else np.zeros(0, np.uint64)
    return Profile(
        texts=len(texts),
        characters=_lengths(characters),
        tokens=_lengths(np.array([len(row) for row in tokens], np.int64)),
        languages=_mixture(languages),
        labels=_mixture(labels),
        sources=_mixture(sources),
        token_bins=_sparse(_hashed(ids)),
        word_bins=_sparse(_hashed(words) + _hashed(pairs)),
        words=len(words),
        unknown_words=unknown,
        known_from=known_from,
        vocabulary=Vocabulary.of(bits),
        pii=_count_placeholders(texts),
        empty=sum(not text.strip() for text in texts),
        very_long=int((characters >= VERY_LONG).sum()),
        non_ascii=sum(len(text) - len(text.encode("ascii", "ignore")) for text in texts if not text.isascii()),
    )


def profile_texts(
    texts: Iterable[str],
    tokens: Iterable[Tokens] | None = None,
    languages: Iterable[str | None] | None = None,
    labels: Iterable[str | None] | None = None,
    sources: Iterable[str | None] | None = None,
    vocabulary: Vocabulary | None = None,
) -> Profile:
    """Return the profile of texts, read once, in memory that does not grow with them.

    Args:
        texts: the texts.
        tokens: the token ids of each text.
        languages: of each text; None where it could not be told.
        labels: of each text.
        sources: of each text.
        vocabulary: the words known, such as `reference.vocabulary`: others count as unknown.

    Raises:
        ValueError: if the columns differ in length.
    """
    columns = {"texts": texts, "tokens": tokens, "languages": languages, "labels": labels, "sources": sources}
    given: dict[str, Iterable[Any]] = {name: column for name, column in columns.items() if column is not None}
    known = vocabulary.bits() if vocabulary is not None else None
    known_from = vocabulary.digest if vocabulary is not None else None

    def batches() -> Iterator[Profile]:
        rows = zip(*given.values(), strict=True)
        while batch := list(itertools.islice(rows, _AT_ONCE)):
            yield _profile_batch(**dict(zip(given, zip(*batch, strict=True), strict=True)), known=known, known_from=known_from)

    return reduce(merge, batches(), Profile(known_from=known_from))


def merge(one: Profile, other: Profile) -> Profile:
    """Return the profile of both sets of texts: exact, commutative and associative; `Profile()` changes nothing.

    Raises:
        ValueError: if words were looked up in two different vocabularies: their unknown words do not add up.
    """
    used = {profile.known_from for profile in (one, other) if profile.words}
    if len(used) > 1:
        raise ValueError(f"profiles against different vocabularies cannot be merged: {one.known_from} and {other.known_from}")
    # without a word there was nothing to look up, and either name will do as long as the order does not decide
    unused = max((profile.known_from for profile in (one, other) if profile.known_from), default=None)
    return Profile(
        texts=one.texts + other.texts,
        characters=one.characters.merge(other.characters),
        tokens=one.tokens.merge(other.tokens),
        languages=_add(one.languages, other.languages),
        labels=_add(one.labels, other.labels),
        sources=_add(one.sources, other.sources),
        token_bins=_add(one.token_bins, other.token_bins),
        word_bins=_add(one.word_bins, other.word_bins),
        words=one.words + other.words,
        unknown_words=one.unknown_words + other.unknown_words,
        known_from=used.pop() if used else unused,
        vocabulary=one.vocabulary.merge(other.vocabulary),
        pii=_add(one.pii, other.pii),
        empty=one.empty + other.empty,
        very_long=one.very_long + other.very_long,
        non_ascii=one.non_ascii + other.non_ascii,
    )


_INK, _MUTED, _BAR, _MARK = "#222b36", "#6b7684", "#3f7cac", "#c8553d"
_REST = "#c3cad2"
_SHOWN = 12


def plot(profile: Profile) -> "Figure":
    """Draw lengths in characters and tokens, languages, labels, sources and kinds of personal data; six panels, 13 x 7 inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained", facecolor="white")
    panels = figure.subplots(2, 3)
    _draw_lengths(panels[0, 0], profile.characters, "Characters a text")
    _draw_lengths(panels[0, 1], profile.tokens, "Tokens a text")
    _draw_mix(panels[0, 2], profile.labels, "Labels")
    _draw_mix(panels[1, 0], profile.languages, "Languages")
    _draw_mix(panels[1, 1], profile.sources, "Sources")
    _draw_mix(panels[1, 2], profile.pii, "Personal data by kind")
    shares = [f"{profile.texts:,} texts", f"{profile.words:,} words", f"{profile.non_ascii_share:.1%} of characters beyond ASCII"]
    shares += [f"{profile.empty_share:.1%} empty", f"{profile.very_long_share:.1%} of {VERY_LONG:,} characters or more"]
    shares += [f"{profile.unknown_share:.1%} of words unknown"] if profile.known_from else []
    figure.suptitle("   ·   ".join(shares), x=0.01, ha="left", fontsize=11, color=_INK)
    return figure


def _dress(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)


def _say_none(axes: "Axes") -> None:
    axes.set_axis_off()
    axes.text(0, 0.9, "none", transform=axes.transAxes, color=_MUTED, fontsize=10)


def _draw_lengths(axes: "Axes", lengths: Lengths, title: str) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    _dress(axes, title)
    if not lengths.count:
        _say_none(axes)
        return
    places = sorted(lengths.bins)
    edges = [*EDGES.tolist(), 2 * int(EDGES[-1])]
    # a bin of one whole number is as wide as a bin of many: heights by octave, or the eye would compare widths
    widths = np.array([np.log2((edges[place + 1] + 0.5) / (edges[place] + 0.5)) for place in places])
    heights = np.array([lengths.bins[place] for place in places]) / lengths.count / widths
    left = [edges[place] + 0.5 for place in places]
    axes.bar(left, heights, [edges[place + 1] + 0.5 - x for place, x in zip(places, left, strict=True)], align="edge", color=_BAR)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks([])
    axes.set_ylabel("share of texts, by octave", color=_MUTED, fontsize=9)
    top = float(heights.max())
    axes.set_ylim(0, top * 1.3)
    for share, name, height in ((0.5, "median", 1.22), (0.95, "95 %", 1.12)):
        value = lengths.quantile(share)
        axes.plot([value + 0.5] * 2, [0, top * height], color=_MARK, linewidth=1.2)
        axes.annotate(
            f"{name} {value:,.0f}", (value + 0.5, top * height), (4, -3), textcoords="offset points", color=_MARK, fontsize=9
        )
    axes.set_xlabel(f"mean {lengths.mean:,.1f}, longest {lengths.largest:,}", color=_MUTED, fontsize=9)


def _draw_mix(axes: "Axes", counts: Mapping[str, int], title: str) -> None:
    _dress(axes, title)
    if not counts:
        _say_none(axes)
        return
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    # a single one left over takes no more room than "1 other" would
    shown, rest = (ranked, []) if len(ranked) <= _SHOWN + 1 else (ranked[:_SHOWN], ranked[_SHOWN:])
    names = [name or "(unknown)" for name, _ in shown] + ([f"{len(rest)} others"] if rest else [])
    values = [count for _, count in shown] + ([sum(count for _, count in rest)] if rest else [])
    colors = [_BAR] * len(shown) + [_REST] * bool(rest)
    rows = range(len(names))
    axes.barh(rows, values, height=0.66, color=colors)
    axes.set_yticks(rows, [name if len(name) <= 24 else f"{name[:23]}…" for name in names], color=_INK)
    # few bars keep the thickness of many
    axes.set_ylim(max(len(names), 8) - 0.5, -0.6)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, max(values) * 1.3)
    total = sum(counts.values())
    for row, value in zip(rows, values, strict=True):
        axes.text(value + max(values) * 0.015, row, f"{value:,}  {value / total:.0%}", va="center", fontsize=9, color=_MUTED)
