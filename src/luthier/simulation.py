"""Traffic as people make it, from files of messages: `kedro simulate`."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import httpx
from rich.progress import Progress

from luthier.configuration import DataParameters, FolderParameters
from luthier.errors import UserError
from luthier.reading import as_json, find_files, read
from luthier.serving.records.labels import is_right
from luthier.text.prepare import PromptSettings, RowError, conversation
from luthier.text.rows import asked

AT_ONCE = 64
"""Requests under way at most: a gateway that is slower than the rate is not asked faster and faster."""

OnLabel: TypeAlias = Callable[[dict[str, str]], None]


@dataclass(frozen=True)
class Sent:
    """One message that somebody sends, and the right answer if it is known."""

    text: str
    answer: str | None = None


@dataclass(frozen=True)
class Traffic:
    """What is sent, how often, and what is said of the answers."""

    usual: Sequence[Sent]
    drifted: Sequence[Sent]
    share: float
    """Of drifted messages."""
    rate: float
    """Messages a second, at random moments."""
    count: int
    votes: float
    """Share of answers that are voted on."""
    up: Mapping[str, float]
    """Chance of a vote up: by variant, or else of `right` and `wrong` answers where that is known; `""` for all others."""
    seed: int = 0

    def messages(self) -> Iterator[Sent]:
        """Yield what is sent: each message once before any comes again."""
        chance = random.Random(self.seed)
        usual, drifted = (_endless(rows, chance) for rows in (self.usual, self.drifted))
        for _ in range(self.count):
            yield next(drifted if self.drifted and chance.random() < self.share else usual)


def _endless(rows: Sequence[Sent], chance: random.Random) -> Iterator[Sent]:
    while True:
        yield from chance.sample(rows, len(rows))


@dataclass
class Told:
    """What came of it."""

    answered: Counter[str] = field(default_factory=Counter)
    """By variant and version."""
    failed: Counter[str] = field(default_factory=Counter)
    """By code."""
    votes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


def read_messages(path: str, data: DataParameters, folders: FolderParameters, option: str) -> list[Sent]:
    """Read messages: by the templates of `data` where a row has their columns, otherwise by the names of its columns.

    Rows that hold no message are passed over.

    Raises:
        UserError: if a file cannot be read, or no row holds a message.
    """
    settings = PromptSettings(user=data.user, assistant=data.assistant)
    found = []
    for file in find_files(path, folders, option):
        for _, value, error in read(file, "auto", file, option):
            text, why = as_json(value, error)
            row = None if why else json.loads(text)
            if isinstance(row, dict) and (sent := _sent(row, settings)) is not None:
                found.append(sent)
    if not found:
        raise UserError(f"{option}: no row of {path} holds a message.")
    return found


def _sent(row: Mapping[str, Any], settings: PromptSettings) -> Sent | None:
    for wanted in (settings, settings.model_copy(update={"assistant": None})):
        try:
            turns = conversation(row, wanted)
        except RowError:
            continue
        texts = {turn["role"]: turn["content"] for turn in turns}
        if "user" in texts:
            return Sent(texts["user"], texts.get("assistant"))
    try:
        return Sent("\n".join(turn["content"] for turn in asked(row) if turn["role"] == "user"))
    except RowError:
        return None


def send(
    traffic: Traffic,
    address: str,
    key: str,
    model: str,
    told: Told,
    on_label: OnLabel = lambda label: None,
) -> None:
    """Send everything, and wait for the answers.

    Args:
        traffic: what is sent.
        address: of the gateway, such as `http://127.0.0.1:8080`.
        key: of a client.
        model: what is asked: `luthier` is dealt by the running experiment.
        told: what came of it is added here, request by request, so that a simulation that is stopped has not been for nothing.
        on_label: is told the right answer to each request, where that is known, as `monitoring.quality.labels` reads them.

    Raises:
        UserError: if the gateway does not answer, or does not know the key.
    """
    asyncio.run(_send(traffic, address, key, model, told, on_label))


async def _send(traffic: Traffic, address: str, key: str, model: str, told: Told, on_label: OnLabel) -> None:
    chance = random.Random(traffic.seed + 1)
    limits = httpx.Limits(max_connections=AT_ONCE + 8)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(headers=headers, timeout=330, limits=limits, trust_env=False) as client:
        client.base_url = _base(address)
        await _greet(client, address)
        places = asyncio.Semaphore(AT_ONCE)
        run = f"{random.SystemRandom().getrandbits(48):012x}"  # a subject is somebody new in each simulation
        with Progress(transient=True) as progress:
            bar = progress.add_task("messages", total=traffic.count)
            async with asyncio.TaskGroup() as group:
                for number, sent in enumerate(traffic.messages()):
                    await places.acquire()
                    task = group.create_task(_one(client, model, f"{run}-{number}", sent, traffic, told, on_label))
                    task.add_done_callback(lambda _: places.release())
                    task.add_done_callback(lambda _: progress.advance(bar))
                    await asyncio.sleep(chance.expovariate(traffic.rate))


def _base(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError) as error:
        raise UserError(f"--url: {address} is no address of a gateway ({error}); one is http://127.0.0.1:8080.") from None
    if url.scheme not in ("http", "https") or not url.host or (url.port or 1) > 65535:
        raise UserError(f"--url: {address} is no address of a gateway; one is http://127.0.0.1:8080.")
    return url


async def _greet(client: httpx.AsyncClient, address: str) -> None:
    try:
        answer = await client.get("/v1/models")
    except httpx.HTTPError as error:
        raise UserError(f"No gateway answers at {address} ({type(error).__name__}): `kedro serve` starts one.") from None
    if answer.status_code == 401:
        raise UserError("The gateway does not know the key in LUTHIER_API_KEYS: give it the one that it was started with.")


async def _one(
    client: httpx.AsyncClient,
    model: str,
    subject: str,
    sent: Sent,
    traffic: Traffic,
    told: Told,
    on_label: OnLabel,
) -> None:
    began = time.monotonic()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": sent.text}],
        "temperature": 0,
        "user": subject,
        "stream": True,
    }
    try:
        answer = await client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        told.failed[type(error).__name__] += 1
        return
    if (code := _error_of(answer)) is not None:
        told.failed[code] += 1
        return
    told.seconds.append(time.monotonic() - began)
    request, variant = answer.headers["x-request-id"], answer.headers.get("x-luthier-variant", "")
    told.answered[f"{variant or 'no variant'}, version {answer.headers.get('x-luthier-version')}"] += 1
    if sent.answer is not None:
        on_label({"request": request, "answer": sent.answer})
    chance = random.Random(f"{traffic.seed} {subject}")
    if chance.random() < traffic.votes:
        rating = "up" if chance.random() < _pleases(traffic.up, variant, sent, answer.text) else "down"
        try:
            voted = await client.post("/v1/feedback", json={"request_id": request, "name": "helpful", "rating": rating})
        except httpx.HTTPError as error:
            told.failed[f"vote: {type(error).__name__}"] += 1
            return
        told.votes[f"{rating} for {variant or 'no variant'}" if voted.is_success else f"refused ({voted.status_code})"] += 1


def _pleases(up: Mapping[str, float], variant: str, sent: Sent, stream: str) -> float:
    """Return the chance of a vote up."""
    if variant in up or sent.answer is None or not {"right", "wrong"} & up.keys():
        return up.get(variant, up[""])
    return up.get("right" if is_right(_answer_in(stream), sent.answer) else "wrong", up[""])


def _answer_in(stream: str) -> str:
    """Return the text of an answer that came as events."""
    chunks = (json.loads(line.removeprefix("data: ")) for line in stream.split("\n") if line.startswith("data: {"))
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def _error_of(answer: httpx.Response) -> str | None:
    """Return why a request failed, before its stream began or in it; None if it did not."""
    if answer.is_success:
        last = answer.text.strip().split("data: ")[-1]
        if last == "[DONE]":
            return None
    else:
        last = answer.text
    try:
        return str(json.loads(last)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return str(answer.status_code)


@contextmanager
def label_file(path: Path) -> Iterator[OnLabel]:
    """Open a file of JSON lines to which labels are added, each at once and whole: who reads it meanwhile sees no half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", buffering=1) as lines:
        yield lambda label: print(json.dumps(label, ensure_ascii=False), file=lines)
