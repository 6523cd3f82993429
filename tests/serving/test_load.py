"""Under constant load, while everything changes at once: no request is lost, and three counts of them agree."""

import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.processes import ALICE, ROOT, eventually, lay_out, serving

CLIENTS = 8
RELOADS, SWITCHES, KILLS = 20, 5, 5


@dataclass
class Told:
    """What one request came to."""

    began: float
    ended: float
    request: str
    """Its id, as the header has it."""
    version: int | None
    status: int
    error: str | None = None
    """Code of the error, in the body or in the stream."""


@dataclass
class Load:
    """Clients that ask without a pause, plain and streamed in turn."""

    address: str
    told: list[Told] = field(default_factory=list)
    trouble: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        chance = random.Random(number)
        try:
            with httpx.Client(base_url=self.address, headers=ALICE, timeout=300) as client:
                while not self.stop.is_set():
                    self.told.append(ask(client, f"{number} {chance.random()}", chance))
        except BaseException as error:
            self.trouble.append(error)


def ask(client: httpx.Client, text: str, chance: random.Random) -> Told:
    began = time.monotonic()
    stream = chance.random() < 0.5
    body = {
        "model": "luthier",
        "user": text,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": chance.randint(1, 60),
        "temperature": chance.choice([0, 1]),
        "stream": stream,
    }
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        said = response.read().decode()
    version = response.headers.get("x-luthier-version")
    error = None
    if response.status_code != 200:
        error = json.loads(said)["error"]["code"]
    elif stream:
        last = said.strip().split("data: ")[-1]
        error = None if last == "[DONE]" else json.loads(last)["error"]["code"]
    return Told(began, time.monotonic(), response.headers["x-request-id"], version and int(version), response.status_code, error)


@dataclass
class Changes:
    """What was done meanwhile, and when."""

    switches: list[tuple[float, int]] = field(default_factory=list)
    """When the registry had a new champion, and which."""
    kills: list[float] = field(default_factory=list)


def change(server, seconds: float) -> Changes:
    """Reload, promote, roll back and kill, evenly over the time."""
    chance = random.Random(0)
    events = ["reload"] * RELOADS + ["kill"] * KILLS
    chance.shuffle(events)
    for number in range(SWITCHES):  # a rollback after each promotion
        at = (2 * number + 1) * len(events) // (2 * SWITCHES)
        events[at:at] = ["promote"]
    for at in sorted((at for at, what in enumerate(events) if what == "promote"), reverse=True):
        events[min(at + 3, len(events)) : min(at + 3, len(events))] = ["rollback"]
    changes, registry = Changes(), server.registry()
    for what in events:
        time.sleep(seconds / len(events))
        if what == "reload":
            assert server.post("/admin/reload", ROOT).status_code == 200
        elif what == "kill":
            # the one killed before may not have come back yet: a busy machine takes its time
            assert eventually(server.workers, 120)
            max(server.workers(), key=lambda process: process.pid).kill()
            changes.kills.append(time.monotonic())
        else:
            line = registry.promote(3) if what == "promote" else registry.rollback()
            changes.switches.append((time.monotonic(), line.version))
    return changes


def counted(server) -> int:
    """Return how many requests the metrics have."""
    families = text_string_to_metric_families(server.get("/metrics", ROOT).text)
    return int(
        sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "gen_ai_server_request_duration_seconds_count"
        )
    )


def under_load(home, seconds: float) -> None:
    home.registry().promote(1)
    # on a busy machine a worker starts in half a minute, and who waits for it that long is no failure
    lay_out(home, "serving: {limits: {queue_seconds: 120, first_token_seconds: 120}}")
    with serving(home) as server:
        assert eventually(lambda: "luthier@3" in server.get("/v1/models").text, 120)
        load = Load(server.address)
        clients = [threading.Thread(target=load.run, args=(number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        changes = change(server, seconds)
        # the last killed worker comes back, and all go on
        assert eventually(lambda: server.get("/readyz", {}).status_code == 200, 120)
        enough = len(load.told) + 5 * CLIENTS
        assert eventually(lambda: len(load.told) >= enough or load.trouble, 120)
        load.stop.set()
        for client in clients:
            client.join(300)
        assert load.trouble == []
        told = load.told
        metrics = counted(server)
        assert server.stop() == 0
        assert [
            child for child in psutil.Process().children(recursive=True) if "luthier.serving.engines.worker" in child.cmdline()
        ] == []
    rows = server.rows()
    # each request is one answer, one row and one count
    assert len({one.request for one in told}) == len(told)
    assert set(rows["request"]) == {one.request for one in told}
    assert metrics == len(told)
    assert Counter(rows["status"]) == Counter(one.status for one in told)
    assert Counter(rows["error"].dropna()) == Counter(one.error for one in told if one.error)
    # nothing failed but what was inside a killed worker, in the middle of its answer
    for one in told:
        if one.error is not None:
            assert one.error == "engine_unavailable", one
            assert any(one.began <= kill <= one.ended for kill in changes.kills), one
    assert sum(one.error is not None for one in told) <= CLIENTS * KILLS
    # a switch takes effect: nobody who asks later is answered by the version before
    late = delays(told, changes.switches)
    print(f"{len(told)} requests; switches took effect within {', '.join(f'{delay:.2f}' for delay in late)} s")
    assert {1, 3} <= {one.version for one in told}
    assert max(late) < 10
    assert "Traceback" not in "\n".join(server.said)


def delays(told: list[Told], switches: list[tuple[float, int]]) -> list[float]:
    """Return for each switch how long after it somebody still asked whom the version before answered."""
    ends = [at for at, _ in switches[1:]] + [float("inf")]
    return [
        max((one.began - at for one in told if at < one.began < end and one.version not in (version, None)), default=0.0)
        for (at, version), end in zip(switches, ends, strict=True)
    ]


def test_no_request_is_lost_while_versions_come_and_go_and_workers_are_killed(home):
    under_load(home, seconds=30)


@pytest.mark.slow
def test_nor_in_five_minutes(home):
    under_load(home, seconds=300)
