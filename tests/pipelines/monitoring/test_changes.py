"""What is shown of a change is the change."""

import json

import numpy as np
import pandas as pd
import pytest

from luthier.pipelines.monitoring.changes import changed_words, what_changed

USUAL = ["where is my order", "my order is late", "the kettle leaks", "is the grinder in stock", "please cancel my order"]
NEW = [f"crypto wallet number {n} lost all my coins" for n in range(9)]


def frame(texts, language="en", label="order"):
    return pd.DataFrame({"text": texts, "characters": [len(t) for t in texts], "language": language, "label": label})


def test_words_lengths_names_and_examples_show_what_came_in():
    before = frame(USUAL * 40)
    now = pd.concat([frame(USUAL * 10), frame(NEW * 5, "de", "wallet")])
    found = what_changed(before, now, most=5)
    assert {word.word for word in found.more} <= {"crypto", "wallet", "number", "lost", "all", "coins"}
    assert found.more[0].window == 45
    assert found.more[0].reference == 0
    assert "order" in {word.word for word in found.less}
    assert found.examples[0] in NEW
    assert len([text for text in found.examples if text in NEW]) == 1  # they all say the same
    assert found.languages[0].name in ("de", "en")
    assert found.labels[0].window - found.labels[0].reference == pytest.approx(-45 / 95)
    assert found.characters["0.9"][0] > found.characters["0.9"][1]
    assert json.loads(json.dumps(found.as_dict()))["more"][0]["z"] > 0


def test_neither_rare_words_nor_frequent_ones_come_first_by_chance():
    random = np.random.default_rng(1)
    words = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(300)]
    chances = 1 / np.arange(1, 301)

    def draw(size):
        return [" ".join(random.choice(words, 8, p=chances / chances.sum())) for _ in range(size)]

    z = [word.z for word in changed_words(draw(2_000), draw(400))]
    assert abs(np.mean(z)) < 0.5
    assert 0.5 < np.std(z) < 1.3
    assert max(map(abs, z)) < 4.5


def test_one_long_message_changes_no_word():
    found = changed_words(USUAL * 40, [*USUAL * 10, "refund " * 10_000])
    assert abs(next(word for word in found if word.word == "refund").z) < 2


def test_nothing_to_compare_is_nothing_to_show():
    found = what_changed(pd.DataFrame({"text": [None] * 3}), pd.DataFrame({"text": [None] * 3}))
    assert (found.more, found.less, found.characters, found.languages, found.examples) == ((), (), {}, (), ())
    assert changed_words(["1 2"], ["3"]) == []
