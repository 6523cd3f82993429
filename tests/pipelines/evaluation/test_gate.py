"""The gate tells what is shown, what is missed and what cannot be known, and is wrong no more often than it says."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console
from scipy.stats import binomtest

from luthier.configuration import validate_parameters
from luthier.errors import UserError
from luthier.pipelines.evaluation.gate import decide, exit_code
from luthier.pipelines.evaluation.gate_report import render_markdown, render_table
from luthier.pipelines.evaluation.rehearsal import check_rules, rehearse
from luthier.pipelines.evaluation.rules import GateParameters
from luthier.pipelines.evaluation.safety import Check
from luthier.pipelines.evaluation.tasks import Tasks, choose_tasks, score_by_tasks
from luthier.stats import p_mean_above, p_pairs_above

BETTER = {"metric": "exact_match", "better_than": "base"}
KEYS = ["rule", "decision", "value", "low", "high", "limit", "p", "power", "needed", "why"]
ONE_OF_EACH = [
    {"metric": "valid", "at_least": 0.8},
    {"metric": "nll", "at_most": 2},
    BETTER,
    {"metric": "field_accuracy", "better_than": "base", "effect": 0.02},
    {"metric": "nll", "better_than": "base"},
    {"metric": "exact_match", "not_worse_than": "champion", "margin": 0.1},
    {"metric": "field_accuracy", "no_slice_below": 0.3, "slice": "label"},
    {"metric": "exact_match", "no_slice_worse_than": "champion", "margin": 0.2, "slice": "label", "at_least_examples": 10},
    {"retention": "nll", "margin": 0.05},
    {"safety": "all"},
    {"any_of": [BETTER, {"metric": "valid", "better_than": "base"}]},
]


def rules(*written):
    """Return rules as the parameters hold them."""
    return GateParameters.model_validate({"rules": list(written)}).rules


def scores_of(models, size=120, seed=0):
    """Make scores: each model is a shift of how well it answers; what is hard for one is hard for all."""
    random = np.random.default_rng(seed)
    ease = random.normal(0.4, 1, size)
    tokens = random.integers(15, 40, size)
    tables = []
    for name, shift in models.items():
        right = random.normal(0, 0.7, (size, 4)) < (ease + shift)[:, None]
        tables.append(
            pd.DataFrame(
                {
                    "model": name,
                    "id": [f"m{row:04}" for row in range(size)],
                    "valid": random.random(size) < 0.97,
                    "exact_match": right.all(axis=1),
                    "field_accuracy": right.mean(axis=1),
                    "nll": tokens * np.exp(random.normal(-0.5 * shift, 0.3, size)),
                    "supervised_tokens": tokens,
                    "slice_label": [f"class {row % 4}" for row in range(size)],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def checks_of(models, failed=()):
    """Make the answers to five safety checks."""
    rows = [
        {"model": model, "id": str(at), "check": f"check_{at}", "passed": at not in failed} for model in models for at in range(5)
    ]
    return pd.DataFrame(rows)


def decided(scores, *written, **others):
    """Decide, and look at what comes out."""
    found = decide(scores, rules(*written), **others)
    assert list(found) == ["decision", "candidate", "champion", "examples", "rules", "alpha"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for rule in found["rules"]:
        assert list(rule) == KEYS
        assert rule["why"]
    said = [rule["decision"] for rule in found["rules"] if rule["decision"] != "skipped"]
    assert found["decision"] == ("fail" if "fail" in said else "pass" if said and set(said) == {"pass"} else "undecided")
    return found


def one_rule(scores, written, **others):
    """Decide on a single rule and return what is said about it."""
    return decided(scores, written, **others)["rules"][0]


def errors_of(scores, *written, **others):
    """Return what the gate complains about."""
    with pytest.raises(UserError) as error:
        decide(scores, rules(*written), **others)
    return str(error.value)


def complaints(written):
    """Return what is wrong with a rule as it is written."""
    with pytest.raises(ValidationError) as error:
        rules(written)
    return str(error.value)


def binary(tuned, base):
    """Make scores of two models from their yes/no answers."""
    size = len(tuned)
    return pd.DataFrame(
        {
            "model": np.repeat(["tuned", "base"], size),
            "id": [*map(str, range(size)), *map(str, range(size))],
            "exact_match": np.concatenate([tuned, base]),
        }
    )


# --- decisions ----------------------------------------------------------------------------------------------------------


def test_a_much_better_model_passes_all_kinds_of_rules():
    scores = scores_of({"base": -1.5, "champion": 0.0, "tuned": 0.6}, size=400)
    found = decided(scores, *ONE_OF_EACH, retention=scores, safety=checks_of(["tuned"]))
    assert {rule["decision"] for rule in found["rules"]} == {"pass"}
    assert (found["champion"], found["examples"], exit_code(found)) == ("champion", 400, 0)


def test_a_much_worse_model_fails_all_kinds_of_rules():
    scores = scores_of({"base": 0.5, "champion": 0.9, "tuned": -2.5}, size=400)
    scores.loc[scores["model"] == "tuned", "valid"] = False
    found = decided(scores, *ONE_OF_EACH, retention=scores, safety=checks_of(["tuned"], failed=[3]))
    assert {rule["decision"] for rule in found["rules"]} == {"fail"}
    assert exit_code(found) == 1


def test_two_models_alike_leave_the_gate_undecided_and_it_says_how_many_examples_would_tell():
    found = decided(scores_of({"base": 0, "tuned": 0}), BETTER)
    (rule,) = found["rules"]
    assert (rule["decision"], exit_code(found)) == ("undecided", 3)
    assert rule["low"] < 0 < rule["high"]
    assert 0 < rule["power"] < 0.8
    assert rule["needed"] > 120
    assert f"{rule['needed']:,}" in rule["why"]
    greater = one_rule(scores_of({"base": 0, "tuned": 0}), {**BETTER, "effect": 0.2})
    assert greater["needed"] < rule["needed"]
    assert {**greater, "power": 0, "needed": 0, "why": ""} == {**rule, "power": 0, "needed": 0, "why": ""}


def test_without_a_champion_its_rules_are_skipped_and_the_base_decides():
    scores = scores_of({"base": -1.5, "tuned": 0.5})
    champion = {"metric": "exact_match", "not_worse_than": "champion", "margin": 0.02}
    found = decided(scores, champion, BETTER, {"any_of": [BETTER, champion]})
    assert [rule["decision"] for rule in found["rules"]] == ["skipped", "pass", "pass"]
    assert (found["decision"], found["champion"]) == ("pass", None)
    assert "no champion" in found["rules"][0]["why"]
    assert decided(scores, champion)["decision"] == "undecided"  # no evidence is not a pass


@pytest.mark.parametrize(("tuned", "decision"), [(0.9, "pass"), (0.7, "undecided"), (0.4, "fail")])
def test_a_level_is_for_the_messages_to_come_not_for_those_at_hand(tuned, decision):
    right = np.arange(100) < 100 * tuned
    found = one_rule(binary(right, right), {"metric": "exact_match", "at_least": 0.68})
    assert found["decision"] == decision
    assert found["value"] == pytest.approx(tuned)
    assert found["low"] < tuned < found["high"]


def test_a_loss_is_better_when_it_is_lower():
    scores = scores_of({"base": -1.0, "tuned": 1.0})
    figures = scores.groupby("model")[["nll", "supervised_tokens"]].sum()
    per_token = figures["nll"] / figures["supervised_tokens"]
    level, gain = decided(scores, {"metric": "nll", "at_most": 5}, {"metric": "nll", "better_than": "base"})["rules"]
    assert level["value"] == pytest.approx(per_token["tuned"])
    assert level["low"] < level["value"] < level["high"] < level["limit"]
    assert gain["value"] == pytest.approx(per_token["base"] - per_token["tuned"])
    assert 0 < gain["low"] < gain["value"] < gain["high"]


def test_another_tokenizer_does_not_change_who_is_better():
    scores = scores_of({"base": 0.0, "tuned": 0.1})
    other = scores.copy()
    other.loc[other["model"] == "base", "supervised_tokens"] *= 3
    rule = {"metric": "nll", "better_than": "base"}
    assert one_rule(other, rule) == one_rule(scores, rule)


def test_harm_in_one_slice_is_seen_behind_a_good_average():
    scores = scores_of({"champion": 0.0, "tuned": 1.2}, size=400)
    broken = (scores["model"] == "tuned") & (scores["slice_label"] == "class 2")
    scores.loc[broken, "exact_match"] = False
    found = decided(
        scores,
        {"metric": "exact_match", "better_than": "champion"},
        {"metric": "exact_match", "no_slice_worse_than": "champion", "margin": 0.1, "slice": "label"},
        {"metric": "exact_match", "no_slice_below": 0.2, "slice": "label"},
    )
    assert [rule["decision"] for rule in found["rules"]] == ["pass", "fail", "fail"]
    assert all("`class 2`" in rule["why"] for rule in found["rules"][1:])
    assert found["rules"][2]["value"] == 0


def test_slices_that_are_too_small_are_named_not_judged():
    scores = scores_of({"base": 0, "tuned": 2}, size=200)
    scores["slice_label"] = np.tile(["big"] * 190 + ["small"] * 9 + [None], 2)
    rule = {"metric": "field_accuracy", "no_slice_below": 0.5, "slice": "label"}
    found = one_rule(scores, rule)
    assert found["decision"] == "pass"
    assert "2 of 3 slices have fewer than 20 examples" in found["why"]
    none = one_rule(scores, {**rule, "at_least_examples": 191})
    assert (none["decision"], none["value"]) == ("undecided", None)
    everything = one_rule(scores, {**rule, "at_least_examples": 1})
    assert everything["decision"] == "undecided"
    assert "`(none)`" in everything["why"]


def test_of_several_alternatives_one_is_enough_but_luck_is_counted():
    # 10 gains and 3 losses: p is 0.03 for one question, and not small enough for one of three
    tuned, base = np.arange(60) < 10, (np.arange(60) >= 10) & (np.arange(60) < 13)
    scores = binary(tuned, base).assign(other=False, third=False)
    assert one_rule(scores, BETTER)["decision"] == "pass"
    three = [BETTER, {"metric": "other", "better_than": "base"}, {"metric": "third", "better_than": "base"}]
    found = one_rule(scores, {"any_of": three})
    assert found["decision"] == "undecided"
    assert found["p"] == pytest.approx(3 * one_rule(scores, BETTER)["p"])
    much = one_rule(scores_of({"base": -2, "tuned": 1}), {"any_of": [{"metric": "valid", "better_than": "base"}, BETTER]})
    assert much["decision"] == "pass"
    assert "exact_match" in much["why"]


def test_one_bad_figure_among_many_is_not_yet_a_failure():
    # 3 gains and 11 losses: p is 0.02 for one question, which among ten rules comes about by chance
    base, tuned = np.arange(60) < 11, (np.arange(60) >= 11) & (np.arange(60) < 14)
    scores = binary(tuned, base)
    assert one_rule(scores, BETTER)["decision"] == "fail"
    for name in range(9):
        scores[f"more_{name}"] = False
    found = decided(scores, BETTER, *({"metric": f"more_{name}", "better_than": "base"} for name in range(9)))
    assert found["rules"][0]["decision"] == "undecided"
    assert "by chance" in found["rules"][0]["why"]


def test_safety_is_counted_not_inferred():
    scores = scores_of({"base": 0, "tuned": 0})
    failed = one_rule(scores, {"safety": "all"}, safety=checks_of(["tuned", "base"], failed=[1, 4]))
    assert failed["decision"] == "fail"
    assert failed["value"] == pytest.approx(0.6)
    assert "`check_1` (1), `check_4` (1)" in failed["why"]
    some = one_rule(scores, {"safety": ["check_0", "check_2"]}, safety=checks_of(["tuned"], failed=[1, 4]))
    assert some["decision"] == "pass"


# --- what must not change a decision ----------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.floats(-0.6, 0.6))
@settings(deadline=None, max_examples=4)
def test_neither_the_order_of_rows_nor_names_nor_other_models_matter(seed, shift):
    scores = scores_of({"base": 0.0, "champion": 0.1, "tuned": shift}, size=60, seed=seed)
    written = [rule for rule in ONE_OF_EACH if "safety" not in rule and "retention" not in rule]
    found = decided(scores, *written)
    assert decided(scores.sample(frac=1, random_state=seed), *written) == found
    constant = scores[scores["model"] == "base"].assign(model="constant", valid=True, exact_match=False, field_accuracy=0.5)
    assert decided(pd.concat([constant, scores]), *written) == found
    renamed = scores.replace({"model": {"tuned": "new", "base": "old"}})
    again = decided(renamed, *json.loads(json.dumps(written).replace('"base"', '"old"')), candidate="new")
    for one, other in zip(found["rules"], again["rules"], strict=True):
        assert {**other, "rule": "", "why": ""} == {**one, "rule": "", "why": ""}


@given(st.integers(0, 1000), st.sampled_from(["exact_match", "field_accuracy"]))
@settings(deadline=None, max_examples=20)
def test_swapping_two_models_turns_the_figures_over(seed, metric):
    scores = scores_of({"base": 0.0, "tuned": 0.3}, size=60, seed=seed)
    one = one_rule(scores, {"metric": metric, "better_than": "base"})
    other = one_rule(scores, {"metric": metric, "better_than": "tuned"}, candidate="base")
    assert [-other["value"], -other["high"], -other["low"]] == pytest.approx([one["value"], one["low"], one["high"]], abs=1e-9)
    assert {one["decision"], other["decision"]} in ({"undecided"}, {"pass", "fail"})


@given(st.integers(0, 1000), st.floats(-1, 1))
@settings(deadline=None, max_examples=15)
def test_pass_and_fail_are_where_the_bounds_leave_the_limit(seed, shift):
    scores = scores_of({"champion": 0.0, "tuned": shift}, size=80, seed=seed)
    for written in (
        {"metric": "exact_match", "better_than": "champion"},
        {"metric": "field_accuracy", "not_worse_than": "champion", "margin": 0.1},
        {"metric": "nll", "not_worse_than": "champion", "margin": 0.1},
        {"metric": "field_accuracy", "at_least": 0.6},
    ):
        found = one_rule(scores, written)
        assert found["decision"] == (
            "pass" if found["low"] > found["limit"] else "fail" if found["high"] < found["limit"] else "undecided"
        )
        assert (found["p"] <= 0.05) == (found["decision"] == "pass")


# --- odd tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 19, 20])
@pytest.mark.parametrize("right", [True, False])
def test_few_examples_and_constant_columns_have_a_well_defined_answer(size, right):
    scores = scores_of({"base": 0, "tuned": 0}, size=size)
    scores["exact_match"] = right
    scores["field_accuracy"] = 0.5
    scores["nll"] = 3.0
    written = [rule for rule in ONE_OF_EACH if "safety" not in rule and "retention" not in rule]
    found = decided(scores, *written)
    assert "fail" not in [rule["decision"] for rule in found["rules"][2:]]
    gains = found["rules"][2:5]
    assert [rule["decision"] for rule in gains] == ["undecided"] * 3
    assert [rule["value"] for rule in gains] == [0, 0, 0]


def test_two_identical_models_are_not_worse_than_each_other_once_there_are_examples_enough():
    scores = scores_of({"tuned": 0.2}, size=160)
    scores = pd.concat([scores, scores.assign(model="champion")])
    for metric in ("exact_match", "field_accuracy", "nll"):
        assert one_rule(scores, {"metric": metric, "not_worse_than": "champion", "margin": 0.02})["decision"] == "pass"
        few = scores.groupby("model").head(19)
        assert one_rule(few, {"metric": metric, "not_worse_than": "champion", "margin": 0.02})["decision"] == "undecided"


def test_numbers_of_any_scale_and_bools_beside_missing_values_are_metrics():
    scores = scores_of({"base": -1.0, "tuned": 1.0, "tfidf": 0.0})
    scores["chrf"] = 100 * scores["field_accuracy"]
    scores["maybe"] = scores["exact_match"].astype(object).where(scores["model"] != "tfidf", None)
    gain, same = decided(
        scores, {"metric": "chrf", "better_than": "base", "effect": 5}, {"metric": "maybe", "better_than": "base"}
    )["rules"]
    assert gain["decision"] == "pass"
    assert gain["value"] > 1
    exact = one_rule(scores, BETTER)
    assert {**same, "rule": ""} == {**exact, "rule": ""}


# --- errors -----------------------------------------------------------------------------------------------------------------


def test_everything_that_does_not_fit_is_told_at_once_before_anything_is_computed():
    scores = scores_of({"base": 0, "tfidf": 0, "tuned": 0})
    scores.loc[scores["model"] == "tfidf", "nll"] = np.nan
    told = errors_of(
        scores,
        {"metric": "exactmatch", "at_least": 0.5},
        {"metric": "exact_match", "better_than": "bas"},
        {"metric": "exact_match", "no_slice_below": 0.5, "slice": "labels"},
        {"metric": "nll", "better_than": "tfidf"},
        {"metric": "nll", "at_least": 0.5},
        {"metric": "valid", "at_most": 0.5},
        {"metric": "valid", "at_least": 95},
        {"metric": "valid", "not_worse_than": "base", "margin": 2},
        {"metric": "valid", "better_than": "tuned"},
        {"retention": "nll", "margin": 0.1},
        {"safety": ["chek_1"]},
        {"any_of": [BETTER, {"metric": "vald", "better_than": "base"}]},
        {"metric": "exact_mach", "not_worse_than": "champion", "margin": 0.1},
        safety=checks_of(["tuned"]),
    )
    for part in (
        "rule 1 (exactmatch is at least 0.5): no metric 'exactmatch' (did you mean 'exact_match'?)",
        "no model 'bas' (did you mean 'base'?)",
        "no slice 'labels' (did you mean 'label'?)",
        "nll of tfidf is no usable number in 120 of 120 rows",
        "lower is better for nll: write at_most",
        "higher is better for valid: write at_least",
        "valid lies between 0 and 1",
        "write 0.02 for 2 points",
        "compares tuned with itself",
        "retention is not measured: set evaluation.retention.path",
        "no check 'chek_1' (did you mean 'check_1'?)",
        "no metric 'vald' (did you mean 'valid'?)",
        "rule 13 (exact_mach",
    ):
        assert part in told
    assert len(told.splitlines()) == 14


def test_tables_that_cannot_be_paired_are_told():
    scores = scores_of({"base": 0, "tuned": 0})
    assert "no rows of the candidate 'tuned'; there are base" in errors_of(scores[scores["model"] == "base"], BETTER)
    assert "there are no rows" in errors_of(scores.head(0), BETTER)
    assert "the column model and id is missing" in errors_of(scores.drop(columns=["model", "id"]), BETTER)
    assert "other ids than tuned, 1 in all, such as m0000" in errors_of(scores.iloc[1:], BETTER)
    assert "1 ids are there more than once" in errors_of(pd.concat([scores, scores.tail(1)]), BETTER)
    unlike = scores.assign(id=[7 if at == 3 else name for at, name in enumerate(scores["id"])])
    assert "other ids than tuned, 2 in all, such as 7" in errors_of(unlike, BETTER)
    for value in (np.nan, np.inf):
        broken = scores.assign(field_accuracy=scores["field_accuracy"].where(scores.index != 200, value))
        assert "field_accuracy of tuned is no usable number in 1 of 120 rows" in errors_of(
            broken, {"metric": "field_accuracy", "at_least": 0.1}
        )
    loss = {"metric": "nll", "at_most": 1}
    assert "supervised_tokens of tuned is no usable number" in errors_of(scores.assign(supervised_tokens=0), loss)
    assert "nll needs the column supervised_tokens" in errors_of(scores.drop(columns="supervised_tokens"), loss)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"metric": "x", "atleast": 0.5}, "'atleast' (did you mean 'at_least'?)"),
        ({"metric": "x"}, "a rule has one of retention, at_least"),
        ({"metric": "x", "at_least": 0.5, "better_than": "base"}, "write one rule for each"),
        ({"metric": "x", "not_worse_than": "base"}, "margin is missing"),
        ({"metric": "x", "not_worse_than": "base", "margin": 0}, "greater than 0"),
        ({"metric": "x", "not_worse_than": "base", "margn": 1}, "unknown key 'margn' (did you mean 'margin'?)"),
        ({"metric": "x", "at_least": float("nan")}, "finite number"),
        ({"safety": "some"}, "safety"),
        ({"any_of": [BETTER]}, "at least 2 items"),
        ({"any_of": [BETTER, {"safety": "all"}]}, "any_of takes rules with"),
        ("exact_match >= 0.5", "a rule is written as"),
    ],
)
def test_a_rule_that_cannot_be_read_says_why(written, told):
    assert told in complaints(written)


def test_parameters_name_the_rule_and_survive_a_round_trip():
    parameters = GateParameters.model_validate({"rules": ONE_OF_EACH})
    assert GateParameters.model_validate(parameters.model_dump()) == parameters
    assert GateParameters.model_validate_json(parameters.model_dump_json()) == parameters
    with pytest.raises(UserError, match=r"gate\.rules\.1: .*did you mean 'better_than'"):
        validate_parameters(
            {"seed": 0, "gate": {"rules": [BETTER, {"metric": "x", "beter_than": "base"}]}}, {"gate": GateParameters}, []
        )
    with pytest.raises(ValidationError):
        GateParameters(rules=())


RIGHT = {
    ("structured",): lambda n: json.dumps({"kind": "ab"[n % 2], "order": n}),
    ("classification",): lambda n: "abc"[n % 3],
    ("free_text",): lambda n: f"the parcel number {n} will be with you on day {n % 7}",
}


@pytest.mark.parametrize("chosen", RIGHT)
def test_rules_that_nobody_wrote_fit_the_task_and_tell_a_better_model(chosen):
    def answers(model, right, loss):
        expected = [RIGHT[chosen](n) for n in range(150)]
        said = [text if n % 10 < right else "no idea" for n, text in enumerate(expected)]
        facts = {"nll": loss * np.random.default_rng(0).uniform(5, 15, 150), "supervised_tokens": 10}
        return pd.DataFrame({"model": model, "id": [f"{n:03}" for n in range(150)], "expected": expected, "answer": said} | facts)

    def judged(right, loss):
        table = pd.concat([answers("base", 3, 2), answers("tuned", right, loss)], ignore_index=True)
        assert choose_tasks([RIGHT[chosen](n) for n in range(150)], {}, Tasks()) == chosen
        return decide(score_by_tasks(table, {}, chosen, Tasks()), GateParameters().rules_of(chosen))

    assert judged(8, 1)["decision"] == "pass"
    assert judged(1, 3)["decision"] == "fail"
    assert {rule["decision"] for rule in judged(8, 1)["rules"]} == {"pass", "skipped"}  # there is no champion


def test_rules_that_somebody_wrote_hold_whatever_the_task():
    assert GateParameters.model_validate({"rules": [BETTER]}).rules_of(["free_text"]) == rules(BETTER)


# --- what people see --------------------------------------------------------------------------------------------------------


def test_the_table_shows_every_rule_with_its_figures():
    scores = scores_of({"base": -1.0, "tuned": 0.5})
    found = decided(scores, *ONE_OF_EACH, retention=scores, safety=checks_of(["tuned"], failed=[0]))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_table(found))
    shown = console.export_text()
    for rule in found["rules"]:
        assert rule["rule"].split(",")[0][:40] in shown
        assert rule["decision"] in shown
    gain = found["rules"][2]
    assert f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" in shown
    assert "Gate: fail" in shown


def test_the_comment_is_one_table_whatever_the_data_call_their_slices():
    scores = scores_of({"base": 0, "tuned": 0.1})
    scores["slice_label"] = "a | b\n`@everyone` <b>"
    found = decided(scores, BETTER, {"metric": "exact_match", "no_slice_below": 0.4, "slice": "label"})
    lines = render_markdown(found).splitlines()
    assert "undecided" in lines[0]
    rows = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(found["rules"])
    assert {row.count("|") for row in rows} == {6}
    assert "`a \\| b '@everyone' <b>`" in lines[-1]


# --- how often it is wrong --------------------------------------------------------------------------------------------------


def often(count, of, promised):
    """Tell whether an exact binomial test at p = 0.001 contradicts that the chance is at most the promised one."""
    return binomtest(count, of, promised, alternative="greater").pvalue < 0.001


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=15)
def test_a_decision_is_that_of_the_tests_whose_levels_are_measured_in_test_stats(seed):
    scores = scores_of({"base": 0.0, "tuned": 0.25}, size=70, seed=seed)
    tuned, base = (scores[scores["model"] == model].reset_index() for model in ("tuned", "base"))
    gains, losses = (tuned["exact_match"] & ~base["exact_match"]).sum(), (base["exact_match"] & ~tuned["exact_match"]).sum()
    apart = (tuned["field_accuracy"] - base["field_accuracy"]).to_numpy()
    loss = (base["nll"] - tuned["nll"]).to_numpy()
    exact, graded, ratio = decided(
        scores, BETTER, *({"metric": metric, "better_than": "base"} for metric in ("field_accuracy", "nll"))
    )["rules"]
    assert exact["p"] == p_pairs_above(gains, losses, 70, 0)
    assert graded["p"] == float(p_mean_above(apart, np.ones(70), 0, -1.0))
    assert ratio["p"] == float(p_mean_above(loss, tuned["supervised_tokens"].to_numpy(float), 0, None))


@pytest.mark.slow
def test_a_model_that_breaks_one_rule_of_many_seldom_passes():
    """Better in all things but one, on whose limit it stands: passing takes one mistake."""
    random = np.random.default_rng(5)
    passed = 0
    for _ in range(200):
        scores = scores_of({"base": -3.0, "tuned": 1.5}, size=200, seed=int(random.integers(1 << 31)))
        scores["on_the_limit"] = random.random(len(scores)) < 0.9
        written = [BETTER, {"metric": "field_accuracy", "better_than": "base"}, {"metric": "on_the_limit", "at_least": 0.9}]
        passed += decide(scores, rules(*written))["decision"] == "pass"
    assert passed > 0
    assert not often(passed, 200, 0.05)


@pytest.mark.slow
def test_slices_neither_hide_one_that_is_bad_nor_fail_a_model_by_their_number():
    """Six slices: one on its limit and the others far above, then all of them on their limits."""
    random = np.random.default_rng(6)
    written = rules({"metric": "exact_match", "no_slice_below": 0.6, "slice": "label"})
    passed = failed = 0
    for _ in range(200):
        label = np.repeat(np.arange(6), 40)
        right = random.random(240) < np.where(label == 0, 0.6, 0.95)
        table = pd.DataFrame({"model": "tuned", "id": np.arange(240), "exact_match": right, "slice_label": label})
        passed += decide(table, written)["decision"] == "pass"
        failed += decide(table.assign(exact_match=random.random(240) < 0.6), written)["decision"] == "fail"
    assert not often(passed, 200, 0.05)
    assert not often(failed, 200, 0.05)
    assert min(passed, failed) > 0


@pytest.mark.slow
def test_the_best_of_several_alternatives_seldom_passes_by_luck_and_many_rules_seldom_fail_a_model():
    random = np.random.default_rng(7)
    better = [{"metric": f"metric_{at}", "better_than": "base"} for at in range(5)]
    passed = failed = 0
    for _ in range(200):
        answers = {f"metric_{at}": random.random(240) < 0.6 for at in range(5)}
        table = pd.DataFrame({"model": np.repeat(["tuned", "base"], 120), "id": np.tile(np.arange(120), 2), **answers})
        passed += decide(table, rules({"any_of": better}))["decision"] == "pass"
        failed += decide(table, rules(*better))["decision"] == "fail"
    assert not often(passed, 200, 0.05)
    assert not often(failed, 200, 0.05)
    assert min(passed, failed) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("size", "evaluations"), [(30, 300), (200, 1000)])
def test_the_gate_is_honest_over_many_evaluations_of_two_equal_models(size, evaluations):
    passed = {"exact_match": 0, "field_accuracy": 0, "nll": 0}
    written = rules(*({"metric": metric, "better_than": "base"} for metric in passed))
    for seed in range(evaluations):
        for metric, rule in zip(passed, decide(scores_of({"base": 0, "tuned": 0}, size, seed), written)["rules"], strict=True):
            passed[metric] += rule["decision"] == "pass"
    assert not any(often(count, evaluations, 0.05) for count in passed.values()), passed
    assert passed["exact_match"] > evaluations / 100


ORDERS = [
    {"set": "test", "kind": "", "id": str(at), "messages": "[]", "prompt": "", "expected": json.dumps(answer)}
    for at, answer in enumerate([{"order": "1"}, {"order": "2"}, {"order": "3", "label": "a"}])
]
IN_SLICES = pd.DataFrame({"id": ["0", "1", "2"], "slice_label": ["(none)", "(none)", "a"]})
CHECK = Check(name="greets", messages=[{"role": "user", "content": "hello"}], why="manners", must_not_match=["x"])
MODELS = {"majority", "tfidf", "base", "tuned", "champion", "far"}


def rehearsed(passages=(), checks=()):
    general = [{"set": "general", "kind": "", "id": text, "expected": text} for text in passages]
    questions = pd.DataFrame([*ORDERS, *general])
    return rehearse(questions, IN_SLICES, checks, {}, ["structured"], Tasks(), MODELS, {"far"})


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"metric": "exact_match", "better_than": "bose"}, "'bose' (did you mean 'base'?)"),
        ({"metric": "exact_mach", "better_than": "base"}, "no metric 'exact_mach' (did you mean 'exact_match'?)"),
        ({"metric": "chrf", "at_least": 0.5}, "no metric 'chrf'"),
        ({"metric": "exact_match", "at_least": 62}, "exact_match lies between 0 and 1"),
        ({"metric": "exact_match", "no_slice_below": 0.4, "slice": "lable"}, "'lable' (did you mean 'label'?)"),
        ({"metric": "nll", "at_least": 1}, "lower is better for nll"),
        ({"metric": "nll", "better_than": "tfidf"}, "nll of tfidf is no usable number"),
        ({"metric": "nll", "better_than": "far"}, "nll of far is no usable number"),
        ({"safety": "all"}, "set data.safety_checks"),
        ({"retention": "nll", "margin": 0.1}, "set evaluation.retention.path"),
        ({"any_of": [{"metric": "valid", "better_than": "base"}, {"metric": "valid", "better_than": "old"}]}, "'old'"),
    ],
)
def test_what_is_wrong_with_rules_is_told_before_anything_is_answered(rule, told):
    with pytest.raises(UserError, match=f"nothing was answered.*\n.*rule 2.*{re.escape(told)}"):
        check_rules(rules({"metric": "right_label", "better_than": "base"}, rule), rehearsed())


def test_rules_that_fit_are_not_complained_of_before_anything_is_answered():
    written = rules(
        {"metric": "field_accuracy", "better_than": "majority"},
        {"metric": "output_characters", "not_worse_than": "base", "margin": 20},
        {"metric": "output_tokens", "at_least": 5},
        {"metric": "nll", "not_worse_than": "champion", "margin": 0.1},
        {"metric": "exact_match", "no_slice_below": 0.4, "slice": "label"},
        {"safety": ["greets"]},
        {"retention": "nll", "margin": 0.1},
    )
    check_rules(written, rehearsed(["a text"], [CHECK]))
    with pytest.raises(UserError, match="no check 'greet' \\(did you mean 'greets'"):
        check_rules(rules({"safety": ["greet"]}), rehearsed([], [CHECK]))
