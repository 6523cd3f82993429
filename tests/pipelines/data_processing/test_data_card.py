"""The card shows every text as text and every fact it was given, draws what numbers mean, and reaches for nothing outside."""

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from luthier.pipelines.data_processing.croissant import croissant
from luthier.pipelines.data_processing.data_card import (
    MOST_BARS,
    MOST_LABELS,
    bars,
    charts,
    data_card,
    is_spread,
    json_for_script,
    label_rows,
    markdown_text,
    spread,
)
from luthier.pipelines.data_processing.dataset_facts import Commit, Describe, Facts, File, Source
from luthier.pipelines.data_processing.describe import search_for_personal_data
from luthier.text.prepare import ScrubSettings
from luthier.text.presidio import PresidioSettings

NASTY = [
    "</script><script>alert(1)</script>",
    "<!-- <script",
    "<img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    '" onmouseover="alert(1)',
    "pipe | and `tick`",
    "{{ x }} {% y %}",
    "# a\n- b\n1. c",
    "&amp; ü 😀 \u202e \u2028",
    "[a](https://example.org) ![b](https://example.org/b.png)",
]


def facts_of(text="plain", **changes):
    """Return facts in which a text stands wherever a text can stand."""
    values = {
        "describe": Describe(
            name=text,
            description=text,
            license=text,
            url=text,
            creator=text,
            data_collection=text,
            limitations=text,
            biases=text,
            personal_sensitive_information=text,
            use_cases=text,
        ),
        "files": (File(path="data/part-00000.parquet", bytes=1234, sha256="0" * 64, rows=900),),
        "splits": {"train": 700, text: 200},
        "columns": {"id": "string", "messages": {"role": "string", "content": "string"}},
        "sources": (Source(name=text, uri=text, sha256="1" * 64, rows=1000, format=text, shape=text, license=text),),
        "commit": Commit(sha="c0ffee", dirty=True, date="2026-01-02"),
        "parameters": {text: [text], "seed": 1},
        "counts": {text: {"in": 1000, "out": 900, "dropped": 100}, "clean": {"in": 900, "out": 900, "changed": 20}},
        "dropped": {text: {text: 60, "too long": 40}},
        "labels": {"train": {text: 400, "b": 300}, "test": {"b": 200}},
        "label_deviation": {"train": 0.01, text: 0.3},
        "profile": {
            "rare": 0.01,
            text: 3,
            "characters": {"mean": 9.5, "p5": 1, "p50": 8, "p95": 70},
            "languages": {text: 9, "de": 2},
        },
    }
    return Facts(**(values | changes))


class Page(HTMLParser):
    """Collects tags, attributes, text and the data of script elements."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.scripts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        (self.scripts if self.tags and self.tags[-1] == "script" and self.cdata_elem else self.texts).append(data)


def check_page(facts):
    """Assert what holds of every page, and return it."""
    description = croissant(facts)
    page = Page(data_card(facts, description)[1])
    assert page.tags.count("script") == 1
    assert json.loads("".join(page.scripts)) == description
    outside = {"img", "link", "iframe", "object", "embed", "video", "audio", "form", "base"} & set(page.tags)
    assert not outside
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "data", "action", "xlink:href", "background")
        assert name != "href" or (tag == "a" and value.startswith("https://"))
    return page


@pytest.mark.parametrize("text", NASTY)
def test_the_page_shows_every_text_as_text_and_needs_no_network(text):
    page = check_page(facts_of(text))
    assert text in page.texts
    told = "".join(page.texts)
    assert told.count(text) >= 15
    assert set(page.tags) == set(check_page(facts_of()).tags)


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
@settings(max_examples=40)
def test_any_text_leaves_the_page_whole(text):
    assert check_page(facts_of(text)).tags.count("h2") == check_page(facts_of()).tags.count("h2")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.sampled_from(NASTY)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(), st.sampled_from(NASTY)), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(), JSON, max_size=3))
@settings(max_examples=100)
def test_json_for_a_script_is_the_same_json_and_cannot_leave_it(value):
    text = str(json_for_script(value))
    assert json.loads(text) == value
    assert not set("<>&") & set(text)


@given(text=st.one_of(st.sampled_from(NASTY), st.text("#*_-+=:|<>&`~[]()!1.)$\\ ab\n", max_size=12), st.text(max_size=12)))
@settings(max_examples=300)
def test_markdown_shows_any_text_as_it_is_on_one_line(text):
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown_text(text))
    line = " ".join(text.split()).replace("\0", "\ufffd")
    assert [token.type for token in tokens] == (["paragraph_open", "inline", "paragraph_close"] if line else [])
    assert "".join(child.content for token in tokens for child in token.children or []) == line


@pytest.mark.parametrize("text", NASTY)
def test_the_tables_of_markdown_keep_their_columns_and_hold_no_html(text):
    markdown, _ = data_card(facts_of(text), {})
    blocks = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or []}
    assert not {"html_block", "html_inline", "link_open", "image"} & kinds


def test_both_cards_tell_the_facts():
    facts = facts_of("plain")
    markdown, page = data_card(facts, croissant(facts))
    told = "".join(Page(page).texts)
    for card in (markdown, told):
        for fact in (
            "1,234 bytes",
            "1,000",
            "900",
            "c0ffee",
            "uncommitted changes",
            "2026-01-02",
            "too long",
            "1" * 64,
            "57.1 %",
        ):
            assert fact in card, fact
        assert '"seed": 1' in card


def test_equal_facts_make_equal_cards():
    one, two = (data_card(facts_of(), croissant(facts_of())) for _ in range(2))
    assert one == two


def test_a_card_of_hardly_any_facts_is_written():
    bare = facts_of(
        files=(),
        splits={},
        sources=(),
        commit=None,
        counts={},
        dropped={},
        labels={},
        label_deviation={},
        profile={},
        parameters={},
    )
    page = check_page(bare)
    told = "".join(page.texts)
    for words in ("No step was recorded", "No source was recorded", "not made in a git repository"):
        assert words in told
    assert "Labels" not in told
    assert "Profile" not in told


def test_only_secure_addresses_become_links():
    describe = Describe(license="https://spdx.org/licenses/MIT.html", url="javascript:alert(1)")
    page = check_page(facts_of(describe=describe))
    assert [value for _, name, value in page.attributes if name == "href"] == ["https://spdx.org/licenses/MIT.html"]


@given(counts=st.dictionaries(st.text(max_size=4), st.integers(0, 99).map(float), max_size=30))
@settings(max_examples=100)
def test_bars_lose_nothing_and_do_not_depend_on_the_order(counts):
    drawn = bars(counts)
    assert len(drawn) <= MOST_BARS + 1
    assert sum(value for _, value, _ in drawn) == sum(counts.values())
    assert all(0 <= length <= 100 for _, _, length in drawn)
    assert drawn == bars(dict(reversed(counts.items())))


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6))
@settings(max_examples=100)
def test_the_quantiles_of_a_spread_stand_in_their_order_within_the_line(values):
    names = ["min", "p5", "p25", "p50", "p95", "max"][: len(values)]
    numbers = dict(reversed(list(zip(names, sorted(values), strict=True))))
    assert is_spread(numbers)
    drawn = spread(numbers | {"mean": 1.0})
    places = [place for _, place in drawn["ticks"]]
    assert [name for name, _ in drawn["ticks"]] == names
    assert places == sorted(places)
    assert all(-1e-6 <= place <= 100 + 1e-6 for place in places)
    assert drawn["values"][-1] == ("mean", 1.0)


def test_a_profile_is_drawn_by_what_its_numbers_are():
    drawn = charts(
        {"share": 0.1, "tokens": {"p50": 3, "max": 9, "mean": 4}, "pii": {"email": 2, "p50": 1}, "by": {"en": {"rows": 3}}}
    )
    assert [(chart["kind"], chart["title"]) for chart in drawn] == [
        ("numbers", ""),
        ("spread", "tokens"),
        ("bars", "pii"),
        ("bars", "by, en"),
    ]


@given(
    labels=st.dictionaries(
        st.sampled_from(["train", "validation", "test"]), st.dictionaries(st.text(max_size=3), st.integers(0, 50), max_size=50)
    )
)
@settings(max_examples=50)
def test_the_table_of_labels_counts_every_row(labels):
    rows = label_rows(labels)
    assert len(rows) <= MOST_LABELS + 1
    for place, counts in enumerate(labels.values()):
        assert sum(cells[place][0] for _, cells in rows) == sum(counts.values())
        if sum(counts.values()):
            assert sum(cells[place][1] for _, cells in rows) == pytest.approx(1)


@pytest.mark.parametrize(
    ("scrub", "told", "untold"),
    [
        (None, "Not searched for: secret, email, iban, card, national id, ip, phone, name, address.", "Replaced"),
        (ScrubSettings(), "Not searched for: name, address.", "model"),
        (
            ScrubSettings(kinds=("email",), extraction_fields=("order",)),
            "found: email. Left in the answers' fields: order. Not",
            "model",
        ),
        (ScrubSettings(presidio=PresidioSettings()), "Replaced where a model found them: address, name.", "Not searched"),
    ],
)
def test_the_search_for_personal_data_is_told_as_it_was(scrub, told, untold):
    text = search_for_personal_data(scrub)
    assert told in text
    assert untold not in text
