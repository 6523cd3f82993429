"""Describe a finished data set to people: one page with pictures, and the same as Markdown.

What a data card should answer is taken from Pushkarna et al. 2022, "Data Cards", https://doi.org/10.1145/3531146.3533231.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from luthier.pages import render_page
from luthier.pipelines.data_processing.croissant import Json
from luthier.pipelines.data_processing.dataset_facts import NOT_STATED, Facts, told_counts

MOST_BARS = 12
"""Bars of one chart; what is rarer is summed up in one more bar."""
MOST_LABELS = 30
"""Rows of the table of labels."""
QUANTILE = re.compile(r"(?:p|q)(\d{1,2}(?:\.\d+)?)|(min|median|max)")
STATISTICS = {"mean", "std", "count", "total", "sum"}

Bar = tuple[str, float, float]
"""What it shows, the value, and its length from 0 to 100."""


def number(value: float) -> str:
    """Return a number as people read it: whole ones in groups of three digits, others with four significant digits.

    >>> number(12345), number(0.012346), number(2.0)
    ('12,345', '0.01235', '2')
    """
    return f"{int(value):,}" if value == int(value) else f"{value:,.4g}"


def share(value: float) -> str:
    """Return a share as a percentage with one decimal.

    >>> share(0.1234)
    '12.3 %'
    """
    return f"{100 * value:.1f} %"


def bars(counts: dict[str, float], most: int = MOST_BARS) -> list[Bar]:
    """Return the largest counts, largest first, equal ones in order of their names, and one entry more for all others.

    The entry of the others has no length: a sum of many would make bars of single ones look small.
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    longest = max((abs(value) for _, value in ordered[:most]), default=0) or 1
    shown = [(name, value, 100 * abs(value) / longest) for name, value in ordered[:most]]
    rest = [value for _, value in ordered[most:]]
    return [*shown, (f"{len(rest)} others", sum(rest), 0.0)] if rest else shown


def is_spread(numbers: dict[str, Any]) -> bool:
    """Tell whether a dictionary describes one distribution (p50, max, mean ...) and does not count kinds of things."""
    return any(QUANTILE.fullmatch(name) for name in numbers) and all(
        QUANTILE.fullmatch(name) or name in STATISTICS for name in numbers
    )


def _position(name: str) -> float:
    quantile, word = (QUANTILE.fullmatch(name) or re.match("()()", name)).groups()  # type: ignore[union-attr]
    return float(quantile) if quantile else {"min": -1.0, "median": 50.0, "max": 101.0}.get(word, 102.0)


def spread(numbers: dict[str, float]) -> dict[str, Any]:
    """Return where the quantiles of a distribution stand on a line from 0 (or the least, below 0) to the greatest.

    Returns:
        `values`: names and numbers in ascending order; `ticks`: their places, 0 to 100, of the quantiles alone; `band`: start
        and length of the part between the second quantile and the last but one, where most of it lies.
    """
    ordered = sorted(numbers, key=_position)
    quantiles = [name for name in ordered if QUANTILE.fullmatch(name)]
    least = min(0.0, *(numbers[name] for name in quantiles))
    reach = (max(numbers[name] for name in quantiles) - least) or 1.0
    ticks = [(name, 100 * (numbers[name] - least) / reach) for name in quantiles]
    inner = ticks[1:-1] if len(ticks) > 3 else ticks
    return {
        "values": [(name, numbers[name]) for name in ordered],
        "ticks": ticks,
        "band": (inner[0][1], max(inner[-1][1] - inner[0][1], 0.5)),
    }


def charts(profile: dict[str, Any], title: str = "") -> list[dict[str, Any]]:
    """Return what to draw for a profile, in its order: plain numbers first, then a chart for each dictionary of numbers.

    Returns:
        dictionaries of `kind` (numbers, spread or bars), `title` and what the kind needs.
    """
    plain = {name: value for name, value in profile.items() if not isinstance(value, dict)}
    nested = {name: value for name, value in profile.items() if isinstance(value, dict) and value}
    drawn: list[dict[str, Any]] = []
    if plain and is_spread(plain):
        drawn.append({"kind": "spread", "title": title, **spread(plain)})
    elif plain and (nested or not title):
        drawn.append({"kind": "numbers", "title": title, "values": list(plain.items())})
    elif plain:
        drawn.append({"kind": "bars", "title": title, "bars": bars(plain)})
    for name, value in nested.items():
        drawn += charts(value, f"{title}, {name}" if title else name)
    return [chart | {"title": chart["title"].replace("_", " ")} for chart in drawn]


def label_rows(labels: dict[str, dict[str, int]]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return, for each label, its rows and its share in each split; the most frequent labels first, the others as one row."""
    totals: dict[str, int] = {}
    for counts in labels.values():
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    ordered = sorted(totals, key=lambda name: (-totals[name], name))
    groups = [(name, [name]) for name in ordered[:MOST_LABELS]]
    if ordered[MOST_LABELS:]:
        groups.append((f"{len(ordered) - MOST_LABELS} others", ordered[MOST_LABELS:]))
    sizes = {split: sum(counts.values()) or 1 for split, counts in labels.items()}
    return [
        (
            title,
            [
                (count, count / sizes[split])
                for split, counts in labels.items()
                for count in [sum(counts.get(name, 0) for name in names)]
            ],
        )
        for title, names in groups
    ]


def code_rows(facts: Facts) -> list[tuple[str, str]]:
    """Return how the data set was made, as names and values."""
    commit = facts.commit
    rows = [("git commit", commit.sha if commit else "none: not made in a git repository")]
    if commit:
        rows.append(("working tree", "had uncommitted changes" if commit.dirty else "clean"))
    return [*rows, ("parameters", json.dumps(facts.parameters, indent=2, sort_keys=True, ensure_ascii=False))]


def word_rows(facts: Facts) -> list[tuple[str, str]]:
    """Return the owner's words about use, limits and people."""
    words = facts.describe
    return [
        ("Made for", words.use_cases),
        ("How it was collected", words.data_collection),
        ("Limitations", words.limitations),
        ("Biases", words.biases),
        ("Personal and sensitive information", words.personal_sensitive_information or NOT_STATED),
    ]


def fact_rows(facts: Facts) -> list[tuple[str, str]]:
    """Return name, size and standing of the data set as names and values."""
    words = facts.describe
    return [
        ("rows", number(facts.rows)),
        ("files", f"{len(facts.files)} Parquet, {number(sum(file.bytes for file in facts.files))} bytes"),
        ("version", words.version),
        ("published", facts.published or "not stated"),
        ("creator", words.creator),
        ("licence", words.license),
        *([("page", words.url)] if words.url else []),
    ]


def source_rows(facts: Facts) -> list[list[str]]:
    """Return a row for each source."""
    return [
        [source.name, source.uri, number(source.rows), source.format, source.shape, source.license or "not stated", source.sha256]
        for source in facts.sources
    ]


SOURCE_HEADER = ["source", "read from", "rows", "format", "shape", "licence", "sha256"]


def json_for_script(value: Json) -> Markup:
    r"""Return JSON that can stand in a script element: no character of it can end the element or open a comment.

    >>> json_for_script({"a": "</script>"})
    Markup('{"a": "\\u003c/script\\u003e"}')
    """
    text = json.dumps(value, ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - nothing is left in it that HTML could read


def markdown_text(text: str) -> str:
    r"""Return text that Markdown shows as it is, on one line: no heading, no table cell, no HTML, no link.

    >>> markdown_text("# *a* | <b>")
    '\\# \\*a\\* \\| \\<b\\>'
    """
    line = " ".join(text.split())
    line = re.sub(r"([\\`*_\[\]<>|~&$#!])", r"\\\1", line)
    # what would begin a list, a rule or a heading at the start of a line
    line = re.sub(r"^([-+=:])", r"\\\1", line)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(header)
    cells = [[markdown_text(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *cells])


def _fenced(text: str) -> str:
    """Return a block of code whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _markdown_chart(chart: dict[str, Any]) -> list[str]:
    title = [f"### {markdown_text(chart['title'])}"] if chart["title"] else []
    if chart["kind"] == "bars":
        rows = [[name, number(value), "█" * round(length / 5)] for name, value, length in chart["bars"]]
        return [*title, _table(["", "value", ""], rows)]
    return [*title, _table(["", "value"], [[name.replace("_", " "), number(value)] for name, value in chart["values"]])]


def as_markdown(facts: Facts) -> str:
    """Write the data card as Markdown."""
    words = facts.describe
    parts = [f"# {markdown_text(words.name)}", markdown_text(words.description), _table(["", ""], fact_rows(facts))]
    for title, text in word_rows(facts):
        parts += [f"## {title}", markdown_text(text)]
    parts += ["## Where it comes from", _table(SOURCE_HEADER, source_rows(facts))]
    if facts.splits:
        total = sum(facts.splits.values()) or 1
        parts += [
            "## Splits",
            _table(["split", "rows", "share"], [[n, number(c), share(c / total)] for n, c in facts.splits.items()]),
        ]
    parts += [
        "## What each step did",
        _table(["step", "rows"], [[step, told_counts(counts)] for step, counts in facts.counts.items()]),
    ]
    reasons = [[step, reason, number(count)] for step, counts in facts.dropped.items() for reason, count in counts.items()]
    if reasons:
        parts += ["### Dropped, and why", _table(["step", "reason", "rows"], reasons)]
    if facts.labels:
        rows = [
            [name, *(f"{number(count)} ({share(part)})" for count, part in cells)] for name, cells in label_rows(facts.labels)
        ]
        parts += ["## Labels", _table(["label", *map(markdown_text, facts.labels)], rows)]
    if facts.label_deviation:
        told = ", ".join(f"{markdown_text(name)} {100 * value:.1f}" for name, value in facts.label_deviation.items())
        parts.append(f"Largest difference between a label's share in a split and in the whole, in points: {told}.")
    if facts.profile:
        parts.append("## Profile")
        for chart in charts(facts.profile):
            parts += _markdown_chart(chart)
    (*made, (_, parameters)) = code_rows(facts)
    parts += ["## How it was made", _table(["", ""], made), "Parameters:", _fenced(parameters), ""]
    return "\n\n".join(parts)


def step_rows(facts: Facts) -> list[dict[str, Any]]:
    """Return, for each step, its counts, its reasons as bars, and how much of what was read was left after it, 0 to 100."""
    first = next((counts["in"] for counts in facts.counts.values() if counts.get("in")), 0) or 1
    most = max([first, *(counts.get("out", 0) for counts in facts.counts.values())])
    return [
        {
            "name": step,
            "counts": counts,
            "left": 100 * counts["out"] / most if "out" in counts else None,
            "reasons": bars({reason: float(count) for reason, count in facts.dropped.get(step, {}).items()}),
        }
        for step, counts in facts.counts.items()
    ]


def as_html(facts: Facts, croissant: Json) -> str:
    """Write the data card as one HTML page without outside resources, with the Croissant description inside."""
    total = sum(facts.splits.values()) or 1
    return render_page(
        "luthier.pipelines.data_processing",
        "data_card.html",
        {"number": number, "share": share},
        facts=facts,
        words=facts.describe,
        about=fact_rows(facts),
        owner=word_rows(facts),
        source_header=SOURCE_HEADER,
        sources=source_rows(facts),
        splits=[(name, count, count / total) for name, count in facts.splits.items()],
        steps=step_rows(facts),
        labels=label_rows(facts.labels),
        charts=charts(facts.profile),
        made=code_rows(facts),
        croissant=json_for_script(croissant),
    )


def data_card(facts: Facts, croissant: Json) -> tuple[str, str]:
    """Return the data card as Markdown and as HTML; equal facts give equal pages.

    Args:
        facts: what is known about the data set.
        croissant: its description, which the page carries as `application/ld+json`.
    """
    return as_markdown(facts), as_html(facts, croissant)
