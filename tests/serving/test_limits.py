"""Rates and places."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry, Gauge

from luthier.serving.api.errors import ApiError
from luthier.serving.limits import RateLimit, Slots
from luthier.serving.parameters import LimitParameters


def test_a_key_may_ask_as_often_as_its_rate_allows_and_other_keys_do_not_count():
    seconds = 0.0
    rate = RateLimit(30, now=lambda: seconds)
    for _ in range(30):
        rate.take("alice")
    with pytest.raises(ApiError) as caught:
        rate.take("alice")
    assert (caught.value.status, caught.value.code, caught.value.headers) == (429, "rate_limit_exceeded", {"Retry-After": "2"})
    rate.take("bob")
    seconds = 2.0
    rate.take("alice")
    with pytest.raises(ApiError):
        rate.take("alice")
    seconds = 1000.0  # a bucket holds no more than a minute's worth
    for _ in range(30):
        rate.take("alice")
    with pytest.raises(ApiError):
        rate.take("alice")


def test_places_are_given_in_the_order_of_coming_and_only_so_many_may_wait():
    limits = LimitParameters(queue=2, queue_seconds=0.1)
    running, queued = (Gauge(name, name, registry=CollectorRegistry()) for name in ("running", "queued"))
    order: list[str] = []

    async def ask(slots: Slots, name: str, seconds: float) -> str:
        try:
            async with slots.one(limits, running, queued):
                order.append(name)
                await asyncio.sleep(seconds)
        except ApiError as error:
            return error.code
        return "done"

    async def all_of_them() -> list[str]:
        slots = Slots(1)
        first = await asyncio.gather(*(ask(slots, name, 0.01) for name in "abcd"))
        late = await asyncio.gather(ask(slots, "e", 0.3), ask(slots, "f", 0))
        return first + late + [await ask(slots, "g", 0)]

    assert asyncio.run(all_of_them()) == ["done", "done", "done", "queue_full", "done", "queue_timeout", "done"]
    assert order == ["a", "b", "c", "e", "g"]
    assert running.collect()[0].samples[0].value == queued.collect()[0].samples[0].value == 0
