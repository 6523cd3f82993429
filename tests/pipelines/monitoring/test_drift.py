"""Drift is found on real text, seldom seen where there is none, and always the same in the same rows."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from commands import ROOT, SHARED
from scipy.stats import binomtest

from luthier.pipelines.monitoring.drift import NAMES, NUMBERS, SCALES, Reference, Rule, alarm, compare

BANKING = SHARED / "banking77" / "train.csv"
QUICK = Rule(draws=999)


def own_messages():
    """Return the project's messages; lines with planted defects are left out."""
    texts = []
    for line in (ROOT / "data/01_raw/support_messages.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("body"), str) and row["body"].strip():
            texts.append(row["body"])
    return np.array(texts, object)


def rows_of(texts, **columns):
    return pd.DataFrame({"text": list(texts), "characters": [len(text) for text in texts], **columns})


@pytest.fixture(scope="module")
def own():
    texts = np.random.default_rng(0).permutation(own_messages())
    return Reference.of(rows_of(texts[:800])), texts[800:]


def changed(drift):
    return {change.feature for change in drift.changes if change.drifted}


def test_messages_of_the_same_kind_do_not_drift_and_general_text_does(own):
    reference, rest = own
    assert not compare(reference, rows_of(rest[:200])).drifted
    lines = (ROOT / "data/01_raw/general_text.jsonl").read_text().splitlines()
    other = [json.loads(line)["text"] for line in lines][:60]
    drift = compare(reference, rows_of([*rest[:140], *other]))
    assert drift.drifted
    assert {"words", "characters"} <= changed(drift)
    assert [change.p for change in drift.changes] == sorted(change.p for change in drift.changes)
    assert all(change.adjusted >= change.p and change.scale == SCALES[change.feature] for change in drift.changes)
    assert json.loads(json.dumps(drift.as_dict()))["drifted"] is True


def test_neither_the_order_of_rows_nor_that_of_columns_changes_anything(own):
    _, rest = own
    frame = rows_of(own_messages()[:300], language=["en"] * 250 + ["de"] * 50)
    window = rows_of(rest[:200], language=["en"] * 150 + ["de"] * 50)
    mixed = (frame.sample(frac=1, random_state=1)[["language", "text", "characters"]], window.sample(frac=1, random_state=2))
    assert compare(Reference.of(frame), window, QUICK) == compare(Reference.of(mixed[0]), mixed[1], QUICK)


def test_each_feature_is_found_to_change_by_itself(own):
    _, rest = own
    columns = {"language": ["en"] * 100, "label": ["refund", "order"] * 50, "pii": [0, 0, 0, 1] * 25}
    frame = rows_of([*rest, *rest], **{name: (values * 10)[: 2 * len(rest)] for name, values in columns.items()})
    reference = Reference.of(frame)
    same = frame.sample(200, random_state=3)
    assert not compare(reference, same, QUICK).drifted
    for name, value in {"language": "de", "label": "praise", "pii": 3}.items():
        values = [value] * 60 + same[name].tolist()[60:]
        assert changed(compare(reference, same.assign(**{name: values}), QUICK)) == {name}


def test_a_significant_but_small_change_is_none():
    many = pd.DataFrame({"label": ["a", "b"] * 10_000})
    window = pd.DataFrame({"label": ["a"] * 10_600 + ["b"] * 9_400})
    drift = compare(Reference.of(many), window, Rule(draws=499))
    (change,) = drift.changes
    assert change.adjusted <= 0.01
    assert change.effect == pytest.approx(0.03, abs=0.01)
    assert not drift.drifted
    assert compare(Reference.of(many), window, Rule(draws=499, minimum={"label": 0.01})).drifted


def test_too_few_rows_decide_nothing(own):
    reference, rest = own
    drift = compare(reference, rows_of(rest[:199]))
    assert not drift.enough
    assert not drift.drifted
    with pytest.raises(ValueError, match="needs 8 rows, not 7"):
        Reference.of(rows_of(rest[:7]))


def test_a_log_without_text_is_compared_in_what_it_has(own):
    _, rest = own
    frame = rows_of(rest, language="en", pii=0)
    without = frame.assign(text=None)
    for reference, window in ((frame, without), (without, frame), (without, without)):
        drift = compare(Reference.of(reference), window.head(200), QUICK)
        assert [change.feature for change in drift.changes] == ["characters"]  # the other two do not vary
    longer = without.head(200).assign(characters=lambda rows: rows["characters"] * 2)
    assert changed(compare(Reference.of(without), longer, QUICK)) == {"characters"}


def test_nothing_in_common_is_no_drift():
    drift = compare(Reference.of(pd.DataFrame({"label": ["a", "b"] * 9})), pd.DataFrame({"pii": [0, 1] * 100}), QUICK)
    assert drift.enough
    assert drift.changes == ()
    assert not drift.drifted


def test_odd_rows_are_compared(own):
    _, rest = own
    odd = pd.DataFrame({"text": ["", None, "12 34", "日本語のメッセージ", "<EMAIL_abcdef>"] * 40})
    drift = compare(Reference.of(rows_of(rest)), odd, QUICK)
    assert {"novelty"} <= changed(drift)
    assert set(SCALES) >= {*NUMBERS, *NAMES}


@pytest.mark.parametrize(
    ("windows", "raised"),
    [
        ([], False),
        ([True], False),
        ([True, True], True),
        ([True, False, True], True),
        ([True, True, False, False], False),
        ([False, False, False, True], False),
    ],
)
def test_an_alarm_needs_two_of_the_last_three_windows(windows, raised):
    assert alarm(windows) is raised


@pytest.mark.slow
def test_false_alarms_stay_at_one_percent_on_the_projects_messages():
    # benchmarks/monitoring.py counts them in 500 windows of every world
    texts, rule, windows = own_messages(), replace(QUICK, draws=799), 120
    false = 0
    for seed in range(windows):
        dealt = np.random.default_rng(seed).permutation(texts)
        false += compare(Reference.of(rows_of(dealt[:500])), rows_of(dealt[500:700]), rule).drifted
    assert binomtest(false, windows, 0.01, alternative="greater").pvalue > 0.001


@pytest.mark.slow
@pytest.mark.skipif(not BANKING.exists(), reason=f"{BANKING} is not on this machine")
def test_new_topics_are_found_on_real_text():
    rows = pd.read_csv(BANKING)
    mixed, full, alarms, false = [], [], [], 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        topics = random.permutation(sorted(rows["category"].unique()))
        usual = rows["category"].isin(topics[:38])
        known, new = (random.permutation(rows["text"][which].to_numpy(object)) for which in (usual, ~usual))
        reference, rest = Reference.of(rows_of(known[:4_000])), known[4_000:]
        false += compare(reference, rows_of(rest[:200]), QUICK).drifted
        full.append(compare(reference, rows_of(new[:200]), QUICK).drifted)
        windows = [[*random.choice(rest, 140, replace=False), *new[60 * n : 60 * n + 60]] for n in range(3)]
        found = [compare(reference, rows_of(window), QUICK).drifted for window in windows]
        mixed += found
        alarms.append(alarm(found))
    assert all(full)
    # of 12 and 36: not contradicted where 90 % and 81 % are true
    assert binomtest(sum(alarms), 12, 0.9, alternative="less").pvalue > 0.01
    assert binomtest(sum(mixed), 36, 0.81, alternative="less").pvalue > 0.01
    assert binomtest(false, 12, 0.01, alternative="greater").pvalue > 0.001
