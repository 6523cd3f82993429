"""The monitor looks when a window is full, some time after anything else, and again after a failure."""

import threading

from luthier.watching.loop import News, news_of, watch
from tests.pipelines.monitoring.test_nodes import logged_messages, message, vote


def looks(news, patience, window=10, works=lambda number: True):
    """Return at which news the loop looked; the last one ends it."""
    stop, seen, given = threading.Event(), [], iter(news)
    current = None

    def tell():
        nonlocal current
        current = next(given, None)
        if current is None:
            stop.set()
        return current

    watch(lambda: seen.append(current) or works(len(seen)), tell, window, 0.0, patience, stop)
    return seen


def counts(*numbers, votes=0):
    return [News(number, votes, "") for number in numbers]


def test_it_looks_at_once_and_then_at_each_full_window():
    news = counts(3, 4, 9, 10, 11, 19, 20, 45)
    assert [seen.requests for seen in looks(news, patience=1e9)] == [3, 10, 20, 45]


def test_other_news_wait_for_their_time_only():
    assert [seen.requests for seen in looks(counts(3, 4, 4, 5), patience=0)] == [3, 4, 5]
    assert [seen.votes for seen in looks([*counts(3), *counts(3, votes=1)], patience=0)] == [0, 1]


def test_nothing_new_and_no_log_are_not_looked_at():
    assert looks([None, None], patience=0) == []
    assert len(looks(counts(7, 7, 7), patience=0)) == 1


def test_a_look_that_failed_is_tried_again_after_a_while():
    fails_once = lambda number: number > 1  # noqa: E731
    assert [seen.requests for seen in looks(counts(7, 7, 7), patience=0, works=fails_once)] == [7, 7]
    assert len(looks(counts(7, 7, 30), patience=1e9, works=fails_once)) == 1


def test_news_are_counted(tmp_path):
    assert news_of(f"sqlite:///{tmp_path / 'nothing.db'}") is None
    uri = logged_messages(tmp_path, [message("a"), message("b")])
    assert news_of(uri) == News(2, 0, "")
    vote(uri, [(0, "up")])
    once = news_of(uri)
    vote(uri, [(0, "down")])
    assert once.votes == 1 == news_of(uri).votes
    assert once != news_of(uri)
