"""From a real request log to a decision and its page: quiet traffic changes nothing, drift and bad votes are seen and told."""

import json
import random
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from luthier.configuration import DataParameters, FolderParameters
from luthier.errors import UserError
from luthier.pipelines.monitoring import nodes, observe, quality
from luthier.pipelines.monitoring.decision import DECISIONS
from luthier.pipelines.monitoring.parameters import MonitoringParameters
from luthier.serving.parameters import ServingParameters
from luthier.serving.records.feedback import FeedbackRequest, FeedbackStore, read_feedback
from luthier.serving.records.labels import read_labels
from luthier.serving.records.log import RequestLog
from luthier.serving.records.logged import LoggedTexts, read_requests
from tests.pipelines.monitoring.test_drift import own_messages
from tests.serving.logs import NOON, logged, uri_of

DATA = DataParameters(path="messages.jsonl", user="{{ text }}", assistant="{{ right | json }}", label="{{ right.topic }}")
PARAMETERS = MonitoringParameters(drift={"window": 100, "draws": 799}, quality={"window": 50})
OTHER = [
    "my e-bike battery dies after ten kilometres",
    "the brake disc of my bicycle squeals",
    "can I charge the scooter in the rain",
]
MESSAGES = [str(text) for text in random.Random(0).sample(list(own_messages()), 1200)]


def message(text, **facts):
    """Return what the log is told of a message."""
    known = {
        "messages": [{"role": "user", "content": text}],
        "answer": "{}",
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "version": 1,
    }
    return known | facts


def logged_messages(folder, messages):
    """Write messages into a log, a minute apart, and return its URI."""
    uri = uri_of(folder)
    with RequestLog(uri) as log:
        for number, facts in enumerate(messages):
            log.put(logged(number, at=NOON + timedelta(minutes=number), subject=f"s{number}", **facts))
    return uri


def vote(uri, votes):
    with RequestLog(uri) as log:
        store = FeedbackStore(log)
        for number, rating in votes:
            store.vote(FeedbackRequest(request_id=f"r{number:06d}", name="helpful", rating=rating))


def watched(folder, uri, parameters=PARAMETERS, serving=None):
    """Run all steps and return what they found."""
    requests, votes, texts = read_requests(uri, texts=False), read_feedback(uri), LoggedTexts(uri)
    folders = FolderParameters(root=str(folder), base_models="", shards="", work=str(folder / "work"))
    seen = observe.observe(requests, texts, parameters.drift.window, parameters.drift.windows, DATA)
    known = {"text": MESSAGES[600:], "characters": [len(text) for text in MESSAGES[600:]], "label": ["order", "refund"] * 300}
    reference = pd.DataFrame(known)
    drift = nodes.measure_drift(seen, reference, parameters)
    live = nodes.measure_quality(requests, texts, votes, serving or ServingParameters(), parameters, folders)
    experiments = nodes.analyse_experiment(requests, votes, serving or ServingParameters(), parameters, folders)
    decided = nodes.decide(drift, live, experiments)
    page, figure = nodes.report_monitoring(seen, drift, live, experiments, decided)
    json.dumps([drift, live, experiments, decided], allow_nan=False)
    return {
        "seen": seen,
        "drift": drift,
        "live": live,
        "experiments": experiments,
        "decided": decided,
        "page": page,
        "figure": figure,
    }


def test_quiet_traffic_is_left_alone(tmp_path):
    found = watched(tmp_path, logged_messages(tmp_path, [message(text) for text in MESSAGES[:350]]))
    assert (len(found["drift"]["windows"]), found["drift"]["waiting"]) == (3, 50)
    assert found["decided"]["decision"] == "keep"
    assert not found["drift"]["alarm"]
    assert found["live"]["versions"][0]["requests"] == 350
    assert 'Decision: <span class="keep">keep</span>' in found["page"]


def test_drift_asks_for_a_retraining_and_says_what_is_new(tmp_path):
    texts = [*MESSAGES[:100], *(OTHER * 34)[:100], *(OTHER * 34)[:100]]
    answers = ['{"topic":"order"}'] * 290 + ["{}", "I can not say", *['{"topic":"refund"}'] * 8]
    requests = [message(text, answer=answer) for text, answer in zip(texts, answers, strict=True)]
    found = watched(tmp_path, logged_messages(tmp_path, requests))
    assert [window["drifted"] for window in found["drift"]["windows"]] == [False, True, True]
    assert found["decided"]["decision"] == "retrain"
    assert "two" not in found["decided"]["why"][0]
    assert "2 of the last three windows" in found["decided"]["why"][0]
    assert {"bike", "battery", "brake", "scooter", "bicycle"} & {word["word"] for word in found["drift"]["what_changed"]["more"]}
    assert "my e-bike battery dies" in found["page"]
    shares = {share["name"]: (share["window"], share["reference"]) for share in found["drift"]["what_changed"]["labels"]}
    assert shares == {"order": (0.9, 0.5), "refund": (0.08, 0.5), "": (0.02, 0.0)}
    assert "label of the answer" in found["page"]


@pytest.mark.parametrize(
    ("data", "answer", "label"),
    [
        ({"user": "{{ q }}", "assistant": "{{ a | json }}", "label": "{{ a.topic }}"}, '{"topic":"order"}', "order"),
        ({"user": "{{ q }}", "assistant": "{{ a | json }}", "label": "{{ a.topic }}"}, '{"topic":7}', ""),
        ({"user": "{{ q }}", "assistant": "{{ a }}", "label": "{{ a }}"}, " order ", "order"),
        ({"user": "{{ q }}", "assistant": "{{ a }}", "label": "{{ q[:1] }}"}, "order", None),  # no function of the answer
        ({"user": "{{ q }}", "assistant": "{{ a }}"}, "order", None),
        ({"user": "{{ q }}", "assistant": "{{ a }}", "label": "{{ a }}"}, "true", "true"),
        ({"user": "{{ q }}", "assistant": "{{ a }}", "label": "{{ a }}"}, "1e3", "1e3"),
        ({"user": "{{ q }}", "assistant": "{{ a | json }}", "label": "{{ a.topic }}"}, '{ "topic": "order" }', "order"),
        ({"user": "{{ q }}", "assistant": "{{ a | json }}", "label": "{{ a.topic }}"}, "I can not say", ""),
        ({"user": "{{ q }}", "assistant": "Category: {{ a }}", "label": "{{ a }}"}, "Category: order", None),
        ({"user": "{{ q }}", "assistant": "{{ a | upper }}", "label": "{{ a }}"}, "ORDER", None),
        ({"user": "{{ q }}", "assistant": "{{ a.topic }}", "label": "{{ a.topic }}"}, "order", None),
        ({}, "order", "order"),
        ({}, None, None),
    ],
)
def test_the_label_of_an_answer_is_what_the_datas_template_makes_of_it(data, answer, label):
    assert observe.label_of(answer, DataParameters(path="messages.jsonl", **data)) == label


@pytest.mark.parametrize(
    ("ups", "parameters", "expected"), [(0.9, {}, "keep"), (0.3, {}, "keep"), (0.3, {"least_rating": 0.6}, "retrain")]
)
def test_votes_below_the_limit_ask_for_a_retraining(tmp_path, ups, parameters, expected):
    uri = logged_messages(tmp_path, [message(text) for text in MESSAGES[:100]])
    vote(uri, [(number, "up" if number < 100 * ups else "down") for number in range(100)])
    settings_ = PARAMETERS.model_copy(update={"quality": PARAMETERS.quality.model_copy(update={"window": 60} | parameters)})
    found = watched(tmp_path, uri, settings_)
    assert found["decided"]["decision"] == expected
    share = found["live"]["versions"][0]["rating"]
    assert (share["good"], share["of"]) == (round(100 * ups), 100)
    assert share["low"] < share["value"] < share["high"]


def test_a_fall_of_the_votes_is_seen(tmp_path):
    uri = logged_messages(tmp_path, [message(text) for text in MESSAGES[:200]])
    vote(uri, [(number, "up" if number < 100 and number % 10 else "down") for number in range(200)])
    found = watched(tmp_path, uri)
    assert found["live"]["fallen"]["fallen"]
    assert found["decided"]["decision"] == "retrain"
    assert "Of the newest votes on version 1, 0% are up; 60% were before." in found["decided"]["why"][0]


def test_late_labels_are_joined_and_judged_as_json_or_text(tmp_path):
    answers = ['{"a":1,"b":2}', "plain", "wrong"]
    uri = logged_messages(tmp_path, [message("hello", answer=answer) for answer in answers])
    labels = [{"request": "r000000", "answer": {"b": 2, "a": 1}}, {"request": "r000001", "answer": " plain "}]
    labels += [{"request": "r000002", "answer": "right"}, {"request": "elsewhere", "answer": "x"}]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))
    given = PARAMETERS.model_copy(update={"quality": PARAMETERS.quality.model_copy(update={"labels": "labels.jsonl"})})
    accuracy = watched(tmp_path, uri, given)["live"]["versions"][0]["accuracy"]
    assert (accuracy["good"], accuracy["of"]) == (2, 3)


def test_bad_labels_are_told_all_at_once(tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"request": 1, "answer": "x"}\nnonsense\n\n{"request": "r1", "answer": "x"}\n')
    with pytest.raises(UserError, match=r"(?s)labels\.jsonl:1 .*labels\.jsonl:2  is not"):
        read_labels(str(tmp_path / "labels.jsonl"))
    with pytest.raises(UserError, match=r"monitoring\.quality\.labels: .*nothing\.jsonl cannot be read"):
        read_labels(str(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize(
    ("up", "expected"), [({"champion": 0.5, "challenger": 0.9}, "promote"), ({"champion": 0.9, "challenger": 0.4}, "roll back")]
)
def test_a_challenger_is_promoted_or_taken_back_on_the_votes_of_its_subjects(tmp_path, up, expected):
    chance = random.Random(1)
    serving = ServingParameters(
        experiment={
            "id": "e",
            "variants": [
                {"name": "champion", "version": 1, "weight": 0.5},
                {"name": "challenger", "version": 2, "weight": 0.5},
            ],
        }
    )
    names = [chance.choice(["champion", "challenger"]) for _ in range(2000)]
    answered = [{"seconds": 0.4 + chance.random(), "answer": "x" * chance.randint(20, 40)} for _ in names]
    dealt = [
        message("hello", experiment="e", assigned=name, served=name, version=1 if name == "champion" else 2, **facts)
        for name, facts in zip(names, answered, strict=True)
    ]
    uri = logged_messages(tmp_path, dealt)
    vote(uri, [(number, "up" if chance.random() < up[name] else "down") for number, name in enumerate(names)])
    without_windows = PARAMETERS.model_copy(update={"drift": PARAMETERS.drift.model_copy(update={"window": 5000})})
    found = watched(tmp_path, uri, without_windows, serving)
    (experiment,) = found["experiments"]
    assert (experiment["control"], experiment["challenger"], experiment["version"]) == ("champion", "challenger", 2)
    assert found["decided"]["decision"] == expected, found["decided"]
    assert (found["decided"]["version"], found["decided"]["variant"]) == (2, "challenger")
    assert "challenger minus champion" in found["page"]


TWO_ARMS = ServingParameters(
    experiment={
        "id": "e",
        "variants": [{"name": "champion", "version": 1, "weight": 0.5}, {"name": "challenger", "version": 2, "weight": 0.5}],
    }
)


def arm(name, number=0, **facts):
    return message(MESSAGES[number], experiment="e", assigned=name, served=name, version=1 if name == "champion" else 2, **facts)


def test_failed_requests_and_shadows_are_no_trouble_while_an_experiment_runs(tmp_path):
    failed = {"messages": None, "answer": None, "status": 503, "error": "queue_timeout", "version": None}
    odd = [
        failed,
        {**failed, "experiment": "e", "assigned": "challenger"},
        message("x", shadow_of="r000000", experiment="e", version=3),
    ]
    found = watched(tmp_path, logged_messages(tmp_path, [*(arm("champion", n) for n in range(10)), *odd]), serving=TWO_ARMS)
    assert [one["decision"] for one in found["experiments"]] == ["keep collecting"]
    assert found["experiments"][0]["version"] is None


def test_the_version_in_production_is_the_controls_whoever_answered_last(tmp_path):
    mixed = [arm("champion", n) if n % 2 else arm("challenger", n) for n in range(60)]
    chosen = message("hello", version=2)
    uri = logged_messages(tmp_path, [*mixed, arm("challenger"), chosen])
    vote(uri, [(number, "up" if number % 2 else "down") for number in range(60)])
    limit = PARAMETERS.model_copy(update={"quality": PARAMETERS.quality.model_copy(update={"least_rating": 0.9})})
    assert watched(tmp_path, uri, limit, TWO_ARMS)["live"]["too_low"] == []


def test_variants_that_changed_under_their_id_are_told_with_what_to_do(tmp_path):
    uri = logged_messages(tmp_path, [arm("champion"), message("x", experiment="e", assigned="second", served="second")])
    with pytest.raises(UserError, match="variant 'second', which it no longer has.*an id of its own"):
        watched(tmp_path, uri, serving=TWO_ARMS)


def test_a_variant_that_was_several_versions_proves_nothing(tmp_path):
    rows = [arm("champion", n) for n in range(3)] + [arm("challenger", n) for n in range(3)]
    newer = message("x", experiment="e", assigned="challenger", served="challenger", version=7)
    found = watched(tmp_path, logged_messages(tmp_path, [*rows, newer]), serving=TWO_ARMS)
    assert found["experiments"][0]["decision"] == "blocked"
    assert "challenger was version 2 and then version 7: give a new experiment a new id." in found["decided"]["why"][0]
    assert found["decided"]["decision"] == "check"


def test_a_fall_is_seldom_seen_where_there_is_none_however_often_one_looks():
    chance, false = np.random.default_rng(0), 0
    for _ in range(60):
        votes = pd.Series(chance.random(1_500) < 0.7)
        looks = [quality.fallen(votes.iloc[:n], 100, 0.1, 0.01) for n in range(200, 1_501, 100)]
        false += any(look is not None and look["fallen"] for look in looks)
    assert binomtest(false, 60, 0.02, alternative="greater").pvalue > 0.001
    # a look between two windows tests nothing anew
    assert [quality.fallen(votes.iloc[:n], 100, 0.1, 0.01) for n in (910, 999)] == [looks[7]] * 2
    fell = pd.Series(np.concatenate([chance.random(400) < 0.8, chance.random(200) < 0.4]))
    assert quality.fallen(fell, 100, 0.1, 0.01)["fallen"]


def test_without_texts_nothing_is_taken_for_drift(tmp_path):
    uri = uri_of(tmp_path)
    with RequestLog(uri, text="none") as log:
        for number, text in enumerate(MESSAGES[:100]):
            log.put(logged(number, subject=f"s{number}", language="en", **message(text)))
    found = watched(tmp_path, uri)
    assert [window["changes"] for window in found["drift"]["windows"]] == [[]]
    assert found["decided"]["decision"] == "keep"


def test_a_log_that_cannot_be_trusted_stops_every_other_decision(tmp_path):
    found = watched(tmp_path, logged_messages(tmp_path, [message("hello", version=None)]))
    assert found["decided"]["decision"] == "check"
    assert "answers without a version" in found["decided"]["why"][0]


def test_an_empty_log_is_no_mistake(tmp_path):
    found = watched(tmp_path, logged_messages(tmp_path, []))
    assert found["decided"]["decision"] == "keep"
    assert found["live"]["until"] is None
    assert "Nothing was answered yet" in found["page"]


@settings(max_examples=15)
@given(first=st.integers(0, 400), more=st.integers(0, 200), subjects=st.integers(1, 500))
def test_windows_stay_what_they_were_while_messages_come_in(first, more, subjects):
    rows = frame(first + more, subjects)
    before, after = (observe.observe(some, Said(), 50, 30, DATA) for some in (rows.iloc[:first], rows))
    whole = before[before["window"] >= 0]
    assert [after[name].head(len(whole)).tolist() for name in ("request", "window")] == [
        whole[name].tolist() for name in ("request", "window")
    ]
    assert (after[after["window"] >= 0].groupby("window").size() == 50).all()
    assert (after["window"] == -1).sum() < 50
    assert not after.assign(day=after["at"].dt.floor("D")).duplicated(["subject", "day"]).any()


@settings(max_examples=15)
@given(size=st.integers(0, 600), most=st.integers(3, 8))
def test_only_the_newest_windows_are_looked_at_and_they_are_the_same_ones(size, most):
    rows = frame(size, 600)
    every, newest = (observe.observe(rows, Said(), 50, windows, DATA) for windows in (1_000, most))
    pd.testing.assert_frame_equal(every.tail(len(newest)).reset_index(drop=True), newest)
    assert newest.loc[newest["window"] >= 0, "window"].nunique() == min(most, every.loc[every["window"] >= 0, "window"].nunique())


class Said:
    """What was said in the requests of `frame`."""

    def of(self, requests):
        prompts = [json.dumps([{"role": "user", "content": f"text {name}"}]) for name in requests]
        return pd.DataFrame({"prompt": prompts, "answer": "{}"}, index=requests)


def frame(size, subjects):
    """Return requests, an hour apart, as the log's reader returns them."""
    return pd.DataFrame(
        {
            "request": [f"r{n}" for n in range(size)],
            "at": pd.Series([pd.Timestamp(NOON) + timedelta(hours=n / 10) for n in range(size)], dtype="datetime64[us, UTC]"),
            "version": pd.array([1] * size, "Int64"),
            "served": pd.array([None] * size, "string"),
            "shadow_of": pd.array([None] * size, "string"),
            "subject": pd.array([f"s{n * 7 % subjects}" for n in range(size)], "string"),
            "turns": pd.array([1] * size, "Int64"),
            "prompt_characters": pd.array([6] * size, "Int64"),
            "pii": pd.array(["{}"] * size, "string"),
            "language": pd.array([None] * size, "string"),
        }
    )


class Asked:
    """Texts of a log that remember which were read."""

    def __init__(self, uri):
        self.texts, self.requests = LoggedTexts(uri), []

    def of(self, requests):
        self.requests += requests
        return self.texts.of(requests)


def test_of_the_texts_only_those_are_read_that_a_window_shows_or_a_label_judges(tmp_path):
    uri = logged_messages(tmp_path, [message(f"text {number}") for number in range(400)])
    requests = read_requests(uri, texts=False)
    assert not {"prompt", "answer"} & set(requests.columns)
    windows, labels = Asked(uri), Asked(uri)
    seen = observe.observe(requests, windows, 50, 3, DATA)
    assert windows.requests == seen["request"].tolist() == [f"r{number:06d}" for number in range(250, 400)]
    assert seen["text"].tolist() == [f"text {number}" for number in range(250, 400)]
    right = quality.labelled(requests, labels, {"r000007": "{}", "r000009": "{1}", "elsewhere": "{}"})
    assert (labels.requests, right["right"].tolist()) == (["r000007", "r000009"], [True, False])


def test_every_decision_says_what_to_do_next():
    from luthier.pipelines.monitoring.decision import NEXT

    assert set(NEXT) == set(DECISIONS)


def test_an_unknown_feature_is_told():
    with pytest.raises(ValueError, match="no feature 'lenght'"):
        MonitoringParameters(drift={"minimum": {"lenght": 0.1}})


def test_too_few_permutations_to_ever_show_anything_are_told():
    with pytest.raises(ValueError, match="at alpha 0.001: draws must be at least 7000"):
        MonitoringParameters(drift={"alpha": 0.001, "draws": 1999})
