"""Does a gateway answer as its clients need it? What is asked of one before and after it gets their traffic."""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import httpx

from luthier.errors import UserError

QUESTION = "Hello, my order has not arrived. What can I do?"
SECONDS = 60.0
"""How long one answer may take."""


def check_gateway(address: str, key: str, model: str, version: int, patience: float, tell: Callable[[str], None]) -> None:
    """Ask a gateway what its clients ask, and what strangers might.

    Args:
        address: of the gateway.
        key: of a client.
        model: what is asked for: `luthier`, and its experiment decides, or `luthier@3`.
        version: that must answer.
        patience: seconds to wait until it is ready, and this version answers.
        tell: is told what was found good.

    Raises:
        UserError: with all that was not.
    """
    with httpx.Client(base_url=address, trust_env=False, timeout=SECONDS, headers={"Authorization": f"Bearer {key}"}) as client:
        answer = _answer(client, model, version, time.monotonic() + patience)
        tell(f"version {version} answers {model}: {answer['usage']['completion_tokens']} tokens")
        wrong = []
        for what, holds in {
            "a stream comes to its end": lambda: _streams(client, model),
            "nobody is answered without a key": lambda: httpx.get(f"{address}/v1/models", trust_env=False).status_code == 401,
            "a wrong request is refused as one": lambda: _ask(client, model, messages=[]).status_code == 400,
            "metrics are shown": lambda: "gen_ai_server_request_duration_seconds" in client.get("/metrics").text,
        }.items():
            try:
                good = holds()
            except httpx.HTTPError as error:
                wrong.append(f"{what}: {type(error).__name__}")
                continue
            if good:
                tell(what)
            else:
                wrong.append(what)
    if wrong:
        raise UserError(f"The gateway at {address} failed:\n  " + "\n  ".join(f"not so: {what}" for what in wrong))


def _answer(client: httpx.Client, model: str, version: int, end: float) -> dict[str, Any]:
    """Return an answer of the version, as soon as it gives one."""
    while True:
        try:
            answer = _ask(client, model)
            served = answer.headers.get("x-luthier-version")
            if answer.status_code == 200 and served == str(version):
                return dict(answer.json())
            good = answer.status_code == 200
            said = f"version {served} answers" if good else f"status {answer.status_code}: {answer.text[:300]}"
            hopeless = answer.status_code in (401, 403)  # a wrong key does not get better
        except httpx.HTTPError as error:
            said, hopeless = type(error).__name__, False
        if hopeless or time.monotonic() > end:
            raise UserError(f"The gateway at {client.base_url} does not answer {model} as version {version}; {said}.")
        time.sleep(0.5)


def _ask(client: httpx.Client, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 32, "temperature": 0, **more}
    return client.post("/v1/chat/completions", json=body)


def _streams(client: httpx.Client, model: str) -> bool:
    lines = _ask(client, model, stream=True).text.split("\n\n")
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return events[-1:] == ["[DONE]"] and not any("error" in json.loads(event) for event in events[:-1])


@contextmanager
def gateway_of(version: int, env: str | None, environ: Mapping[str, str], patience: float) -> Iterator[tuple[str, str]]:
    """Start a gateway that serves one version and keeps its log to itself; yield its address and a key.

    Args:
        version: registered, in production or not.
        env: Kedro's environment.
        environ: of the process.
        patience: seconds until it must answer.

    Raises:
        UserError: if it does not start, with what it said.
    """
    key = "sk-smoke-of-this-start-alone"
    with tempfile.TemporaryDirectory(prefix="luthier-smoke-") as folder:
        variables = {
            **environ,
            "LUTHIER_API_KEYS": f"smoke:{key}",
            "LUTHIER_REQUEST_LOG_URI": f"sqlite:///{Path(folder, 'requests.db')}",
            "PYTHONUNBUFFERED": "1",
        }
        variables.pop("LUTHIER_ADMIN_KEY", None)
        command = [sys.executable, "-m", "kedro", "serve", "--only", str(version), "--host", "127.0.0.1", "--port", "0"]
        process = subprocess.Popen(
            [*command, *(["--env", env] if env else [])],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield _address(process, patience), key
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: "subprocess.Popen[str]", patience: float) -> str:
    said: list[str] = []
    lines: Queue[str] = Queue()
    stdout = process.stdout
    assert stdout is not None

    def read() -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    end = time.monotonic() + patience
    while True:
        try:
            line = lines.get(timeout=max(0.0, end - time.monotonic()))
        except Empty:
            raise UserError(f"The gateway did not answer within {patience:g} s. It said:\n{''.join(said[-20:])}") from None
        if not line:
            raise UserError(f"The gateway did not start:\n{''.join(said[-20:])}")
        said.append(line)
        if found := re.search(r"base_url (\S+)/v1", line):
            return found[1]
