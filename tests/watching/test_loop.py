"""The monitor looks when a window is full, some time after anything else, and again after a failure."""

import threading
from datetime import timedelta

from sqlalchemy import delete

from luthier.serving.records.log import RequestLog
from luthier.serving.records.tables import REQUESTS, open_database, transaction
from luthier.watching.loop import Counter, News, watch
from tests.pipelines.monitoring.test_nodes import logged_messages, message, vote
from tests.serving.logs import NOON, logged


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
    assert Counter(f"sqlite:///{tmp_path / 'nothing.db'}").news() is None
    uri = logged_messages(tmp_path, [message("a"), message("b")])
    counter = Counter(uri)
    assert counter.news() == News(2, 0, "")
    vote(uri, [(0, "up")])
    once = counter.news()
    vote(uri, [(0, "down")])
    assert once.votes == 1 == counter.news().votes
    assert once != counter.news()


def test_requests_are_counted_once_each_in_whatever_order_they_come_and_however_long_ago_the_first_was(uri):
    counter, hours = Counter(uri), [0, 1, 30, 20, 60, 59, 200, 190, 199]
    with RequestLog(uri) as log:
        for number, hour in enumerate(hours):
            assert counter.news() == News(number, 0, "")
            log.put(logged(number, at=NOON + timedelta(hours=hour)))
            log.flush()
    assert counter.news() == Counter(uri).news() == News(len(hours), 0, "")


def test_a_log_that_forgets_is_no_news(uri):
    counter = Counter(uri)
    with RequestLog(uri) as log:
        for number in range(5):
            log.put(logged(number, at=NOON + timedelta(days=number)))
    before = counter.news()
    with transaction(open_database(uri)) as connection:
        connection.execute(delete(REQUESTS).where(REQUESTS.c.request.in_(["r000000", "r000001"])))
    assert counter.news() == before
