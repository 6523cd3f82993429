"""Every example is in one part of every slice, and a part's figures are those of its examples alone."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tables import record, split_records

from luthier.errors import UserError
from luthier.pipelines.evaluation.slices import Slices, figures_by_slice, slice_columns, slices_of
from luthier.stats import mean_of, ratio_of
from luthier.text.prepare import compact_json

VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["en", "de", "", "\ud800", "(none)"])
    | st.lists(st.integers(), max_size=2)
)


def made(rows):
    """Return records as evaluation reads them: (text, answer, meta, label)."""
    records = [
        record(text, answer, name=f"{n:03}", meta=json.dumps(meta), label=label)
        for n, (text, answer, meta, label) in enumerate(rows)
    ]
    return split_records(records).to_pandas()


def sliced(records, *by, **more):
    """Return the slices of records by id."""
    return slice_columns(records, Slices(by=by, **more)).set_index("id").sort_index()


@pytest.fixture(scope="module")
def records():
    """Return records with meta, labels and JSON answers."""
    return made(
        [
            ("short", '{"intent":"refund","ok":true}', {"language": "de", "channel": "chat"}, "refund"),
            ("x" * 80, '{"intent":"order","ok":null}', {"language": "en", "n": 3}, "order"),
            ("x" * 700, '{"intent":"order"}', {"language": None, "intent": "meta too"}, None),
        ]
    )


def test_a_slice_may_be_any_field_of_a_record(records):
    found = sliced(records, "label", "source", "language", "channel", "n", "ok", "answer.intent", "meta.intent", "prompt_length")
    assert found["slice_label"].tolist() == ["refund", "order", "(none)"]
    assert found["slice_source"].tolist() == ["x"] * 3
    assert found["slice_language"].tolist() == ["de", "en", "(none)"]
    assert found["slice_channel"].tolist() == ["chat", "(none)", "(none)"]
    assert found["slice_n"].tolist() == ["(none)", "3", "(none)"]
    assert found["slice_ok"].tolist() == ["true", "(none)", "(none)"]
    assert found["slice_answer.intent"].tolist() == ["refund", "order", "order"]
    assert found["slice_meta.intent"].tolist() == ["(none)", "(none)", "meta too"]
    assert found["slice_prompt_length"].tolist() == ["000-079", "080-159", "640+"]


def test_names_that_cannot_be_followed_are_told_at_once(records):
    with pytest.raises(UserError) as told:
        sliced(records, "langauge", "intent", "nothing.like.it", "label")
    text = str(told.value)
    assert "langauge (did you mean 'language'?)" in text
    assert "intent is a key of the meta and a field of the answer: write meta.intent or answer.intent" in text
    assert "no record has nothing.like.it; known: label, source, prompt_length, language" in text


@given(st.lists(VALUES, min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_any_value_names_a_part_that_can_be_stored(values):
    found = sliced(made([("text", "answer", {"key": value, "always": 1}, None) for value in values]), "key")
    assert found["slice_key"].str.len().gt(0).all()
    found.to_json(force_ascii=False).encode()


@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=10),
    st.lists(st.integers(1, 800), min_size=1, max_size=5, unique=True).map(sorted),
)
@settings(deadline=None, max_examples=40)
def test_a_prompt_is_in_the_bucket_that_names_its_length(lengths, bounds):
    found = sliced(
        made([("x" * length, "y", {}, None) for length in lengths]), "prompt_length", prompt_characters=tuple(bounds), most=99
    )
    for length, bucket in zip(lengths, found["slice_prompt_length"], strict=True):
        low, _, high = bucket.rstrip("+").partition("-")
        assert int(low) <= length <= (int(high) if high else 900)
    assert sorted(set(found["slice_prompt_length"])) == sorted(
        set(found["slice_prompt_length"]), key=lambda name: int(name.rstrip("+").split("-")[0])
    )


def test_rare_values_go_together_and_frequent_ones_stay():
    labels = ["a"] * 4 + ["b"] * 3 + ["c", "d", "e"]
    found = sliced(made([("text", "x", {}, label) for label in labels]), "label", most=3)
    assert found["slice_label"].tolist() == ["a"] * 4 + ["b"] * 3 + ["(other)"] * 3


@pytest.mark.parametrize("bounds", [(), (0, 5), (5, 5), (9, 3)])
def test_bounds_that_do_not_rise_are_told(bounds):
    with pytest.raises(ValidationError, match="must rise and begin above 0"):
        Slices(prompt_characters=bounds)


def scores(parts, seed=0):
    """Return scores of two models whose examples are in the given parts."""
    random = np.random.default_rng(seed)
    rows = [
        {"model": model, "id": f"{n:03}", "slice_label": part, "right_kind": random.random() < 0.6, "token_f1": random.random()}
        | {"nll": random.random() * 9 if model == "tuned" else np.nan, "supervised_tokens": int(random.integers(1, 9))}
        for model in ("tuned", "tfidf")
        for n, part in enumerate(parts)
    ]
    return pd.DataFrame(rows)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=15), st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_a_part_has_the_figures_of_its_examples_and_no_others(parts, seed):
    table = scores(parts)
    found = figures_by_slice(table, 5, seed)
    pd.testing.assert_frame_equal(found, figures_by_slice(table.sample(frac=1, random_state=seed), 5, seed))
    assert slices_of(table) == ["label"]
    assert set(found["part"]) == set(parts)
    assert (found["small"] == (found["examples"] < 5)).all()
    assert (found["low"] <= found["value"] + 1e-12).all()
    assert (found["value"] <= found["high"] + 1e-12).all()
    for part in set(parts):
        chosen = table[(table["slice_label"] == part) & (table["model"] == "tuned")]
        row = found[(found["part"] == part) & (found["model"] == "tuned")].set_index("metric")
        assert row["examples"].tolist() == [parts.count(part)] * 4
        for metric, column in (("accuracy_kind", "right_kind"), ("token_f1", "token_f1")):
            assert tuple(row.loc[metric, ["value", "low", "high"]]) == tuple(
                mean_of(chosen[column].to_numpy(float), seed).as_dict().values()
            )
        loss = ratio_of(chosen["nll"].to_numpy(float), chosen["supervised_tokens"].to_numpy(float), seed)
        assert row.loc["nll_per_token", "value"] == loss.value
    # what a model has no likelihoods of is no figure
    assert "nll_per_token" not in set(found[found["model"] == "tfidf"]["metric"])


def test_parts_add_up_to_the_whole():
    table = scores(list("abcabcaab"))
    found = figures_by_slice(table, 1, 0)
    tuned = found[(found["model"] == "tuned") & (found["metric"] == "accuracy_kind")]
    whole = table[table["model"] == "tuned"]["right_kind"].mean()
    assert (tuned["value"] * tuned["examples"]).sum() / tuned["examples"].sum() == pytest.approx(whole)


def test_scores_without_slices_have_no_figures_by_slice(records):
    assert figures_by_slice(scores(["a"]).drop(columns="slice_label"), 1, 0).empty
    assert list(slice_columns(records, Slices())) == ["id"]
    assert compact_json(figures_by_slice(scores(["a"]), 1, 0).to_dict("records"))
