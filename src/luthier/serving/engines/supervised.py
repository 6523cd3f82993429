"""The embedded engine: a worker process, watched, and started anew when it dies or hangs.

    start -> loads -> canary -> answers ... dies -> starts again, later each time
                                   requests without a first token wait for it

A request whose worker dies before it said anything is asked again of the next worker; nobody has read a word of it.
"""

import asyncio
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

import httpx

from luthier.errors import UserError
from luthier.serving.api.errors import ApiError, unavailable
from luthier.serving.engines.engine import Status, begins
from luthier.serving.engines.upstream import Upstream
from luthier.serving.engines.worker_protocol import Failure, Progress, Ready, WorkerSettings
from luthier.serving.keys import ADMIN_VARIABLE, CLIENT_VARIABLE
from luthier.serving.parameters import LOG_VARIABLE

logger = logging.getLogger(__name__)

START_SECONDS = 600.0
"""How long a worker may load: a large model from a slow disk takes minutes."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Seconds before the first restart in a row, and at most."""
HEALTHY_SECONDS = 60.0
"""After so long a life the next restart is the first in a row again."""
NOTICED_SECONDS = 2.0
"""How long the end of a process may take to be seen after its connections broke."""
ATTEMPTS = 3
"""Workers that one request is asked of: one that kills each of them must come to an end."""
PROBE_SECONDS = 2.0
"""How often a worker is asked how far it is."""
SECRETS = (CLIENT_VARIABLE, ADMIN_VARIABLE, LOG_VARIABLE, "LUTHIER_PII_KEY", "PGPASSWORD")
CANARY = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0.0}


class Processes:
    """Starts worker processes. One more waits, all that it needs imported, so that the next start takes a second, not five."""

    def __init__(self, spare: bool) -> None:
        """Start nothing yet.

        Args:
            spare: whether one waits, which takes a few hundred MB.
        """
        self._wanted = spare
        self._spare: asyncio.Task[asyncio.subprocess.Process] | None = None

    async def take(self) -> asyncio.subprocess.Process:
        """Return a process that is to be told what to load."""
        spare, self._spare = self._spare, None  # it is taken once
        waiting = None
        if spare is not None:
            with suppress(OSError):  # it could not be started then; perhaps one can be now
                waiting = await spare
        process = waiting if waiting is not None and waiting.returncode is None else await _spawned()
        if self._wanted and self._spare is None:
            self._spare = asyncio.create_task(_spawned())
        return process

    async def close(self) -> None:
        """End the one that waits."""
        self._wanted = False
        if self._spare is not None:
            with suppress(OSError):
                await _ended(await self._spare)


async def _spawned() -> asyncio.subprocess.Process:
    # the gateway's secrets are none of a worker's business
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "luthier.serving.engines.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Supervised:
    """A version's own process as an `Engine`.

    >>> engine = Supervised(settings)    # doctest: +SKIP
    >>> await engine.start()
    >>> completion = await engine.chat(body)
    """

    def __init__(
        self,
        settings: WorkerSettings,
        silence_seconds: float,
        total_seconds: float,
        processes: Processes | None = None,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        """Say what to load; nothing is started yet.

        Args:
            settings: of the worker; its key is made here.
            silence_seconds: a worker that is busy and says nothing for longer hangs, and is started anew.
            total_seconds: how long a whole answer may take.
            processes: where workers come from.
            on_restart: is told of each worker that died and is started anew.
        """
        self._settings, self._processes = settings, processes or Processes(spare=False)
        self._on_restart = on_restart
        self._last_token: float | None = None
        """`time.monotonic()` of the worker's last token, as it says."""
        self._cached: int | None = None
        self._closed = False
        self._silence, self._total = silence_seconds, total_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._upstream: Upstream | None = None
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._tokens_before = 0
        self.context = 0
        """Tokens of prompt and answer together, as the worker says."""
        self.restarts = 0
        """How often the worker was started anew."""

    @property
    def pid(self) -> int | None:
        """The worker's process; None before it is started."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the worker, and let it answer once.

        Raises:
            UserError: if it cannot.
        """
        await self._launch()
        self._keeper = asyncio.create_task(self._keep())

    async def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a whole completion, as the interface `Engine` has it."""
        for _ in range(ATTEMPTS - 1):
            upstream = await self._answering()
            try:
                return await upstream.chat(body)
            except ApiError as error:
                if not await self._died(upstream, error):
                    raise
        return await (await self._answering()).chat(body)

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the chunks of a completion, as the interface `Engine` has it."""
        for attempt in range(1, ATTEMPTS + 1):
            upstream, begun = await self._answering(), False
            try:
                async with aclosing(upstream.stream(body)) as chunks:
                    async for chunk in chunks:
                        begun = begun or begins(chunk)
                        yield chunk
                return
            except ApiError as error:
                if begun or attempt == ATTEMPTS or not await self._died(upstream, error):
                    raise

    def status(self) -> Status:
        """Return how it is, at once."""
        if self._upstream is None:
            return Status(alive=False, running=0, queued=0, tokens_total=self._tokens_before, last_progress=None)
        now = self._upstream.status()
        # the worker knows of the tokens of answers that are sent as a whole
        last = max((at for at in (now.last_progress, self._last_token) if at is not None), default=None)
        return Status(self._up.is_set(), now.running, now.queued, self._tokens_before + now.tokens_total, last, self._cached)

    async def close(self) -> None:
        """End the worker; who waits for it is told that nobody answers."""
        self._closed = True
        self._up.set()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._end()

    # --- the process

    async def _launch(self) -> None:
        """Start a process and wait until it answers.

        Raises:
            UserError: if it cannot.
            OSError: if there is no process to be had.
        """
        settings = self._settings.model_copy(update={"key": secrets.token_urlsafe(32)})
        self._process = process = await self._processes.take()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(settings.model_dump_json().encode() + b"\n")
            async with asyncio.timeout(START_SECONDS):
                said = await process.stdout.readline()
            ready = self._understood(said)
            self._url, self._headers = f"http://127.0.0.1:{ready.port}", {"Authorization": f"Bearer {settings.key}"}
            upstream = Upstream([f"{self._url}/v1"], settings.name, settings.key, self._silence, self._total, longest_rest=0.0)
            self.context, self._upstream = ready.context, upstream
            await upstream.chat(CANARY)
        except (TimeoutError, OSError, ApiError) as error:
            await self._end()
            raise UserError(f"The worker of {settings.name} did not start: {error or 'it took too long'}") from error
        except BaseException:
            await self._end()
            raise
        self._up.set()

    def _understood(self, said: bytes) -> Ready:
        """Return what a worker says.

        Raises:
            UserError: if it failed, or ended without a word.
        """
        name = self._settings.name
        if not said:
            raise UserError(f"The worker of {name} ended while it started; what it said stands above.")
        value = json.loads(said)
        if "error" in value:
            raise UserError(f"{name} cannot be served: {Failure(**value).error}")
        return Ready(**value)

    async def _end(self) -> None:
        if not self._closed:
            self._up.clear()
        if self._upstream is not None:
            # at one go, or a scrape in between would count its tokens twice
            upstream, self._upstream = self._upstream, None
            self._tokens_before += upstream.status().tokens_total
            await upstream.close()
        if self._process is not None:
            await _ended(self._process)

    async def _keep(self) -> None:
        """Start the worker anew whenever it ends or hangs."""
        pause, began = FIRST_PAUSE, time.monotonic()
        while True:
            why = await self._trouble()
            if time.monotonic() - began > HEALTHY_SECONDS:
                pause = FIRST_PAUSE
            logger.warning("The worker of %s %s and is started anew.", self._settings.name, why)
            await self._end()
            while not self._up.is_set():
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                self.restarts += 1
                self._on_restart()
                try:
                    await self._launch()
                except UserError as error:
                    logger.error("%s", error)
                except Exception:
                    logger.exception("The worker of %s did not start.", self._settings.name)
            began = time.monotonic()

    async def _trouble(self) -> str:
        """Return what is wrong with the worker, once something is."""
        assert self._process is not None
        ended = asyncio.ensure_future(self._process.wait())
        try:
            async with httpx.AsyncClient(
                base_url=self._url, headers=self._headers, timeout=self._silence, trust_env=False
            ) as client:
                while not (await asyncio.wait({ended}, timeout=PROBE_SECONDS))[0]:
                    try:
                        said = Progress.model_validate_json((await client.get("/progress")).content)
                    except (httpx.TimeoutException, ValueError):
                        return "does not answer"
                    except httpx.HTTPError:
                        continue  # it is about to end
                    self._last_token, self._cached = time.monotonic() - said.silent, said.cached
                    if said.running and said.silent > self._silence:
                        return f"has written nothing for {said.silent:.0f} s"
            return f"ended ({_said_of(self._process.returncode)})"
        finally:
            ended.cancel()

    # --- requests and the process

    async def _answering(self) -> Upstream:
        """Return the worker that answers now, or the next one, however long it takes: callers have their own patience.

        Raises:
            ApiError: if none will come any more.
        """
        await self._up.wait()
        if self._closed or self._upstream is None:
            raise unavailable("This version is no longer served.")
        return self._upstream

    async def _died(self, upstream: Upstream, error: ApiError) -> bool:
        """Tell whether an error came from the end of the worker that was asked."""
        if self._closed or error.code != "engine_unavailable":
            return False
        end = time.monotonic() + NOTICED_SECONDS
        while self._upstream is upstream and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return self._upstream is not upstream


def _said_of(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
