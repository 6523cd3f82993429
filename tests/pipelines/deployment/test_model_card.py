"""The card says what was found out, says what was not, and shows any text as it is."""

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from luthier.pipelines.deployment.model_card import Facts, model_card, shown
from tests.pipelines.deployment.tiny_packages import EVIDENCE

FACTS = Facts(
    name="Triage",
    description="Sorts support messages.",
    license="Apache-2.0",
    limits="Not for legal advice.",
    base="tiny:llama",
    base_license="MIT",
    kind="merged",
    dtype="bfloat16",
    parameters=134_515_008,
    context=8192,
    max_new_tokens=40,
    prompt={"scrub": {"kinds": ["email"]}},
    answer_schema={"type": "object"},
    **EVIDENCE,
)
MARKDOWN = MarkdownIt("commonmark").enable("table")


def body(card):
    """Return the card without its YAML head."""
    return card.split("\n---\n", 1)[1]


def texts(markdown):
    """Return every piece of text that a reader of the rendered card sees."""
    found = []
    for token in MARKDOWN.parse(markdown):
        found += [child.content for child in token.children or [] if child.type in ("text", "code_inline")]
    return found


def test_the_head_is_what_model_hubs_read():
    head = yaml.safe_load(model_card(FACTS).split("---")[1])
    assert head == {
        "base_model": "tiny:llama",
        "library_name": "transformers",
        "license": "Apache-2.0",
        "pipeline_tag": "text-generation",
    }
    assert "license" not in yaml.safe_load(model_card(replace(FACTS, license="not stated")).split("---")[1])


def test_what_was_measured_beside_the_figures_is_told_in_words():
    beside = {
        "safety": {"tuned": {"checks": 3, "passed": 2, "failed": ["keeps_<b>format</b>"]}},
        "calibration": {"tuned": {"confidence": 0.9, "accuracy": 0.5, "error": 0.4, "error_at_most": 0.125}},
        "retention": {"differences": {"tuned_minus_base": {"nll_per_token": {"value": 0.25, "low": 0.125, "high": 0.375}}}},
    }
    told = " ".join(texts(body(model_card(replace(FACTS, evaluation=FACTS.evaluation | beside)))))
    for words in ("passes 2 of 3", "keeps_<b>format</b>", "0.900", "under 0.125", "0.250 [0.125, 0.375] nats per token"):
        assert words in told
    assert "must-not" not in model_card(FACTS)


@pytest.mark.parametrize(
    "fact",
    [
        "Triage",
        "Sorts support messages.",
        "Not for legal advice.",
        "merged, 134,515,008 parameters, bfloat16, safetensors",
        "8,192 tokens",
        "40 tokens",
        "MIT",
        "0.250 [0.100, 0.500]",
        "better than champion",
        "undecided",
        "0.500",
        "support_messages",
        "data.support_messages",
        "0123abc",
        "1,271 rows were read.",
        "946",
    ],
)
def test_each_fact_is_on_the_card(fact):
    assert any(fact in text for text in texts(body(model_card(FACTS))))


def test_what_is_not_known_is_said_to_be_missing():
    nothing = replace(
        FACTS, evaluation=None, gate=None, data_report=None, lineage=None, limits="not stated", base_license=None, context=None
    )
    told = " ".join(texts(body(model_card(nothing))))
    for sentence in (
        "No evaluation was given",
        "No gate decided",
        "No report of the data",
        "No lineage",
        "Its owner stated none",
    ):
        assert sentence in told
        assert sentence not in " ".join(texts(body(model_card(FACTS))))


def test_limits_are_those_of_this_model():
    told = " ".join(texts(body(model_card(FACTS))))
    assert "answer_schema.json" in told
    assert "placeholders" in told
    free = " ".join(texts(body(model_card(replace(FACTS, prompt={"scrub": None}, answer_schema={})))))
    assert "answer_schema.json" not in free
    assert "placeholders" not in free


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=60))
def test_any_text_is_shown_as_it_is_and_changes_nothing_around_it(text):
    assert "".join(texts(f"a {shown(text)} b")) == f"a {' '.join(text.split())} b"
    usual = [token.type for token in MARKDOWN.parse(body(model_card(FACTS))) if token.type.endswith("_open")]
    given = [
        token.type
        for token in MARKDOWN.parse(body(model_card(replace(FACTS, limits=f"x{text}", name=f"x{text}"))))
        if token.type.endswith("_open")
    ]
    assert given == usual


def test_long_values_are_cut_with_a_word_where_the_whole_is():
    card = model_card(replace(FACTS, lineage={"diff": "x" * 5000}))
    assert "x" * 200 in card
    assert "x" * 201 not in card
    assert "whole in lineage.json" in card
