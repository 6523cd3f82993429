"""Answers over HTTP: the gateway and its worker against the engine alone, and against `transformers serve`.

The same weights, precision, prompts and length; 1, 4 and 8 clients that ask without a pause, streamed. Each contestant is a
process of its own; they take turns, and rest while another works. `transformers serve` batches continuously, with a cache of 256
blocks of 32 tokens (its default takes 11 GB for the same speed).
"""

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = (1, 4, 8)
REPEATS = 5
EACH = 2  # requests of each client in a turn
LENGTH = 64
KEY = "sk-benchmark-0123456789"


@dataclass
class Turn:
    """What some clients saw."""

    speed: float
    """Tokens of answers a second, of all clients together."""
    first: float
    """Seconds to the first token, at the median."""


def request(prompt: str) -> dict[str, Any]:
    """Return the body that every contestant is sent."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": LENGTH,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def ask(client: httpx.AsyncClient, model: str, prompt: str) -> tuple[int, float]:
    """Return the tokens of an answer, and the seconds to the first one."""
    began, first, tokens = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/chat/completions", json={"model": model, **request(prompt)}) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if first is None and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - began
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    assert first is not None, f"{response.status_code}: no token"
    assert tokens, "no usage"
    return tokens, first


async def turn_over_http(address: str, model: str, prompts: list[str], clients: int) -> Turn:
    """Let clients ask."""
    async with httpx.AsyncClient(
        base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=600, trust_env=False
    ) as client:

        async def one(number: int) -> list[tuple[int, float]]:
            return [await ask(client, model, prompt) for prompt in prompts[number::clients]]

        began = time.perf_counter()
        found = list(chain(*await asyncio.gather(*map(one, range(clients)))))
        return Turn(sum(tokens for tokens, _ in found) / (time.perf_counter() - began), statistics.median(f for _, f in found))


class Contestant:
    """A process that answers, in turns."""

    def __init__(self, command: list[str], turn: Callable[["Contestant", list[str], int], Turn], **how: Any) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **how)
        self._turn = turn

    def turn(self, prompts: list[str], clients: int) -> Turn:
        return self._turn(self, prompts, clients)

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def memory(self) -> float:
        """Return the GB of the process and its children; what they share is counted once."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return sum(process.memory_full_info().pss for process in family) / 1e9

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def gateway(home: Path) -> Contestant:
    """Start the gateway and its worker."""
    contestant = Contestant([sys.executable, str(ROOT / "benchmarks/serving_ours.py"), "gateway", str(home)], _by_gateway)
    contestant.address = contestant.read()["address"]
    return contestant


def _by_gateway(contestant: Contestant, prompts: list[str], clients: int) -> Turn:
    return asyncio.run(turn_over_http(contestant.address, "luthier", prompts, clients))


def engine(home: Path) -> Contestant:
    """Start the engine alone: no HTTP, no other process."""
    contestant = Contestant([sys.executable, str(ROOT / "benchmarks/serving_ours.py"), "engine", str(home)], _by_engine)
    contestant.read()
    return contestant


def _by_engine(contestant: Contestant, prompts: list[str], clients: int) -> Turn:
    assert contestant.process.stdin is not None
    contestant.process.stdin.write(json.dumps({"prompts": prompts, "clients": clients, "length": LENGTH}) + "\n")
    contestant.process.stdin.flush()
    return Turn(**contestant.read())


def transformers_serve(folder: Path, dtype: str) -> Contestant:
    """Start the peer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--continuous-batching", "--cb-block-size", "32", "--cb-num-blocks", "256", "--dtype", dtype, "--device", "cpu"]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--port", str(port), *options]
    log = (folder.parent / "transformers-serve.log").open("w")
    contestant = Contestant(command, _by_transformers, stderr=log)
    contestant.address, contestant.model = f"http://127.0.0.1:{port}", str(folder)
    for _ in range(600):
        try:
            httpx.get(f"{contestant.address}/health", trust_env=False)
            return contestant
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError("transformers serve does not listen")


def _by_transformers(contestant: Contestant, prompts: list[str], clients: int) -> Turn:
    return asyncio.run(turn_over_http(contestant.address, contestant.model, prompts, clients))


def messages() -> list[str]:
    """Return the support messages that are not much longer than others."""
    lines = (ROOT / "data/01_raw/support_messages.jsonl").read_text(encoding="utf-8").splitlines()
    bodies = []
    for line in lines:
        try:
            bodies.append(json.loads(line)["body"])
        except (ValueError, KeyError):
            continue
    return [body for body in bodies if isinstance(body, str) and 40 < len(body) < 600]


def run() -> list[dict]:
    """Measure; what is shared by all is the answers' length and the prompts."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        command = [sys.executable, str(ROOT / "benchmarks/serving_ours.py"), "make", str(home)]
        made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        dtype = json.loads(made.stdout.splitlines()[-1])["dtype"]
        contestants = {
            "gateway": gateway(home),
            "engine": engine(home),
            "transformers serve": transformers_serve(home / "plain", dtype),
        }
        try:
            return _compete(contestants, messages(), dtype)
        finally:
            for contestant in contestants.values():
                contestant.close()


def _compete(contestants: dict[str, Contestant], prompts: list[str], dtype: str) -> list[dict]:
    rows = []
    place = 0
    for clients in CLIENTS:
        turns: dict[str, list[Turn]] = {name: [] for name in contestants}
        for repeat in range(REPEATS + 1):
            asked, place = prompts[place : place + EACH * clients], place + EACH * clients
            names = list(contestants)
            for name in names[repeat % 3 :] + names[: repeat % 3]:
                turn = contestants[name].turn(asked, clients)
                if repeat:  # the first one warms up
                    turns[name].append(turn)
        ours, bare, theirs = turns.values()
        rows.append(_row(f"{clients} clients against the engine alone, {dtype}", ours, bare, "speed", "tokens/s", 0.95))
        rows.append(_row(f"{clients} clients against transformers serve, {dtype}", ours, theirs, "speed", "tokens/s", 1.0))
        rows.append(_row(f"{clients} clients: first token, against transformers serve", ours, theirs, "first", "s", None))
        late = [1000 * (a.first - b.first) for a, b in zip(ours, bare, strict=True)]
        told = f"{clients} clients: first token after that of the engine alone [{min(late):.1f}, {max(late):.1f}], at most"
        rows.append(_figure(told, statistics.median(late), "ms", 5.0))
    return rows + [_figure(f"memory of {name}", contestant.memory(), "GB") for name, contestant in contestants.items()]


def _figure(what: str, figure: float, unit: str, goal: float | None = None) -> dict:
    kind = "info" if goal is None else "goal"
    return {"what": what, "ours": figure, "peer": None, "unit": unit, "ratio": None, "kind": kind, "goal": goal}


def _row(what: str, ours: list[Turn], peer: list[Turn], figure: str, unit: str, goal: float | None) -> dict:
    mine, theirs = ([getattr(turn, figure) for turn in turns] for turns in (ours, peer))
    ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    return {
        "what": what,
        "ours": statistics.median(mine),
        "peer": statistics.median(theirs),
        "unit": unit,
        "ratio": {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]},
        "kind": "info" if goal is None else "goal",
        "goal": goal,
    }
