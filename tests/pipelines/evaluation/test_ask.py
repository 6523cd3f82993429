"""A model is asked once: what it answered and was measured to be comes from the store ever after."""

import json
import math

import pandas as pd
import pytest
from sharp import ASKED, sharp_tiny

from luthier.answers import AnswerStore, LocalAnswerer
from luthier.pipelines.evaluation.ask import COLUMNS, ask
from luthier.pipelines.evaluation.questions import COLUMNS as QUESTION
from luthier.text.prepare import compact_json

LABELS = ["refund", "praise"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the sharp tiny model and its tokenizer."""
    return sharp_tiny(tmp_path_factory.mktemp("models"))


def questions(count=4):
    """Return questions of all sets."""
    rows = [("test", "", f"t{n}", compact_json(turns), turns[-1]["content"], "refund") for n, turns in enumerate(ASKED[:count])]
    rows += [("safety", "", "s", compact_json(ASKED[5]), "no", ""), ("general", "story", "g", "[]", "", "Once upon a time")]
    return pd.DataFrame(rows, columns=QUESTION)


def answerer(tiny, loaded, name="tuned", identity="tiny"):
    """Return the model, which counts how often it is loaded."""

    def load():
        loaded.append(name)
        return tiny

    return LocalAnswerer(name, identity, load, 6, 512)


def test_a_model_is_loaded_once_and_then_never_again(tiny, tmp_path):
    loaded = []
    first = ask(answerer(tiny, loaded), questions(), AnswerStore(tmp_path), LABELS)
    assert loaded == ["tuned"]
    again = ask(answerer(tiny, loaded), questions(), AnswerStore(tmp_path), LABELS)
    assert loaded == ["tuned"]
    pd.testing.assert_frame_equal(first, again)
    ask(answerer(tiny, loaded, identity="another"), questions(), AnswerStore(tmp_path), LABELS)
    assert loaded == ["tuned", "tuned"]


def test_each_set_has_what_it_is_asked_for(tiny, tmp_path):
    found = ask(answerer(tiny, []), questions(), AnswerStore(tmp_path), LABELS).set_index("id")
    assert list(found.reset_index()[COLUMNS].columns) == COLUMNS
    assert found.loc[["t0", "t1", "s"], ["answer_tokens", "seconds", "mean_log_probability"]].notna().all(axis=None)
    assert found.loc[["t0", "g"], ["nll", "supervised_tokens"]].notna().all(axis=None)
    assert found.loc["s", ["nll", "label_scores"]].isna().all()
    assert found.at["g", "answer"] == ""
    assert found.at["g", "supervised_tokens"] == len("Once upon a time") - 1  # a token a byte
    assert found.at["t0", "supervised_tokens"] == len("refund") + 1
    scores = json.loads(found.at["t0", "label_scores"])
    assert list(scores) == LABELS
    # the right label's likelihood is that of the right answer, measured another way
    assert scores["refund"] == pytest.approx(-found.at["t0", "nll"], rel=1e-4)


def test_without_labels_none_is_scored(tiny, tmp_path):
    assert ask(answerer(tiny, []), questions(), AnswerStore(tmp_path))["label_scores"].isna().all()


def test_a_model_that_is_not_here_has_answers_and_no_likelihoods(tiny, tmp_path):
    class Elsewhere:
        """An answerer that only answers."""

        def __init__(self):
            self.name, self.identity = "hosted", "elsewhere"
            self._here = answerer(tiny, [])

        def check(self):
            pass

        def facts(self):
            return {}

        def answer(self, conversations, progress):
            return self._here.answer(conversations, progress)

    found = ask(Elsewhere(), questions(), AnswerStore(tmp_path), LABELS).set_index("id")
    here = ask(answerer(tiny, []), questions(), AnswerStore(tmp_path), LABELS).set_index("id")
    assert found["answer"].equals(here["answer"])
    assert found[["nll", "label_scores"]].isna().all(axis=None)
    assert not math.isnan(found.at["t0", "mean_log_probability"])


def test_answers_can_be_held_to_a_schema(tiny, tmp_path):
    schema = {"type": "object", "properties": {"ok": {"enum": [True, None]}}, "required": ["ok"], "additionalProperties": False}
    held = LocalAnswerer("tuned", "held", lambda: tiny, 16, 512, schema)
    found = ask(held, questions(), AnswerStore(tmp_path))
    told = found[found["set"] != "general"]["answer"]
    assert set(told) <= {'{"ok":true}', '{"ok":null}'}
    free = ask(answerer(tiny, []), questions(), AnswerStore(tmp_path))
    assert not set(free["answer"]) & set(told)
