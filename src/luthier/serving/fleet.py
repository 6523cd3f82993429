"""The engines of all versions that are served: started once, from a checked copy of the package; ended when they drained."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from luthier.errors import UserError
from luthier.models import Base
from luthier.packages import facts_of, prompt_settings_of
from luthier.registry import Registry, Version
from luthier.serving.api.errors import ApiError
from luthier.serving.engines.engine import Engine
from luthier.serving.engines.supervised import CANARY, Processes, Supervised
from luthier.serving.engines.upstream import Upstream
from luthier.serving.engines.worker_protocol import WorkerSettings
from luthier.serving.limits import Slots
from luthier.serving.live import Served
from luthier.serving.parameters import ServingParameters

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

UNKNOWN_CONTEXT, UNKNOWN_LENGTH = 4096, 512
"""Where a package's configuration does not say."""


@dataclass(frozen=True)
class Machine:
    """What this machine has for engines."""

    cache: Path
    """Folder of packages, each under its root hash."""
    precision: Any
    """`bf16` or `fp32`."""
    base: Callable[[], Base]
    """Finds the base model, which adapter packages need beside them."""
    upstream_key: str | None = None
    """That upstream servers ask for."""


class Fleet:
    """Starts, keeps and ends engines. All methods run in one event loop."""

    def __init__(
        self,
        registry: Registry,
        parameters: ServingParameters,
        machine: Machine,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        """Start nothing yet.

        Args:
            registry: of the versions.
            parameters: of serving.
            machine: what there is for engines.
            on_restart: is told of each worker that died and is started anew.
        """
        self._registry, self._parameters, self._machine, self._on_restart = registry, parameters, machine, on_restart
        self._processes = Processes(spare=parameters.engine.spare)
        self.manifests: dict[int, str] = {}
        """Version -> root sha256 of its package, of all that were ever started."""
        self._starting: dict[int, asyncio.Task[Served]] = {}
        self._leaving: dict[int, asyncio.Task[None]] = {}

    async def serve(self, version: int) -> Served:
        """Return a version's engine, started if it is not there.

        Raises:
            UserError: if there is no such version, its package is not what was registered, or its engine does not start.
        """
        leaving = self._leaving.pop(version, None)
        if leaving is not None:
            leaving.cancel()
        while (known := self._starting.get(version)) is not None and known.cancelling() and not known.done():
            await asyncio.wait({known})  # it is no longer wanted, and ends: its end is not for who wants it again
        if known is None or (known.done() and (known.cancelled() or known.exception() is not None)):
            known = self._starting[version] = asyncio.create_task(self._start(version))
        # who waits may be cancelled; others may wait for the same engine
        return await asyncio.shield(known)

    def running(self) -> dict[int, Served]:
        """Return the engines that are there."""
        return {
            version: task.result()
            for version, task in self._starting.items()
            if task.done() and not task.cancelled() and task.exception() is None and version not in self._leaving
        }

    def retire(self, keep: Collection[int]) -> None:
        """End all engines but these, each as soon as its answers under way are over; start no others."""
        for version, task in self._starting.items():
            if version not in keep and not task.done():
                task.cancel()
        for version in self.running().keys() - set(keep):
            self._leaving[version] = asyncio.create_task(self._leave(version))

    async def close(self) -> None:
        """End all engines now."""
        leaving, starting = list(self._leaving.values()), list(self._starting.values())
        for task in (*leaving, *(task for task in starting if not task.done())):
            task.cancel()
        await asyncio.gather(*leaving, *starting, return_exceptions=True)
        engines = [task.result().engine for task in starting if not task.cancelled() and task.exception() is None]
        await asyncio.gather(self._processes.close(), *(engine.close() for engine in engines))
        self._starting.clear()

    async def _start(self, number: int) -> Served:
        began = time.monotonic()
        version = await _unwaited(self._registry.resolve, number)
        package = await _unwaited(self._registry.fetch, version, self._machine.cache)
        self.manifests[number] = version.manifest
        logger.info("Version %d: package %s is checked; starting its engine.", number, version.manifest[:16])
        made = self._upstream if self._parameters.engine.kind == "upstream" else self._embedded
        served = await made(version, package)
        logger.info("Version %d answers, %.1f s later.", number, time.monotonic() - began)
        return served

    async def _embedded(self, version: Version, package: Path) -> Served:
        engine, limits = self._parameters.engine, self._parameters.limits
        needs_base = facts_of(package)["kind"] == "adapter"
        worker = Supervised(
            WorkerSettings(
                package=package,
                manifest=version.manifest,
                base=await _unwaited(self._machine.base) if needs_base else None,
                name=self._name(version),
                precision=self._machine.precision,
                slots=engine.slots,
                cache_tokens=engine.cache_tokens,
                max_new_tokens=engine.max_new_tokens,
                # what clients may send, the gateway decides; its own prompt and placeholders make it longer
                limits=limits.model_copy(
                    update={
                        "messages": limits.messages + 1,
                        "characters": 10 * limits.characters,
                        "body_bytes": 10 * limits.body_bytes,
                    }
                ),
            ),
            limits.first_token_seconds,
            limits.total_seconds,
            self._processes,
            self._on_restart,
        )
        await worker.start()
        return self._served(version, package, worker, worker.context, None, engine.slots)

    async def _upstream(self, version: Version, package: Path) -> Served:
        urls = self._parameters.engine.urls
        found = next((urls[name] for name in (str(version.number), *version.aliases) if name in urls), None)
        if found is None:
            names = ", ".join((str(version.number), *version.aliases))
            raise UserError(f"serving.engine.urls: names no URL for version {version.number}; give it one under {names}.")
        limits = self._parameters.limits
        upstream = Upstream(
            found,
            self._name(version),
            self._machine.upstream_key,
            # another replica is asked while the client still waits
            limits.first_token_seconds / 2,
            limits.total_seconds,
        )
        try:
            await upstream.chat(CANARY)
        except ApiError as error:
            await upstream.close()
            raise UserError(f"serving.engine.urls: nobody there answers as {self._name(version)}: {error}") from error
        context, length = _lengths(package)
        return self._served(version, package, upstream, context, self._parameters.engine.max_new_tokens or length, None)

    def _served(
        self, version: Version, package: Path, engine: Engine, context: int, max_new_tokens: int | None, slots: int | None
    ) -> Served:
        return Served(engine, prompt_settings_of(package), context, max_new_tokens, version.manifest[:16], Slots(slots))

    def _name(self, version: Version) -> str:
        return f"{self._parameters.model}@{version.number}"

    async def _leave(self, version: int) -> None:
        """End an engine once it answers nobody, or after the time that answers have."""
        engine, limits = self._starting[version].result().engine, self._parameters.limits
        # a request that was routed before may still be on its way: its body, its place
        await asyncio.sleep(min(self._parameters.drain_seconds, limits.first_token_seconds + limits.queue_seconds))
        end = time.monotonic() + limits.total_seconds
        while engine.status().running and time.monotonic() < end:
            await asyncio.sleep(0.1)
        del self._starting[version], self._leaving[version]
        await engine.close()
        logger.info("Version %d is no longer served; its engine has ended.", version)


async def _unwaited(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a thread for which nobody waits at the end: a download can take longer than who pressed Ctrl-C likes."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Result] = loop.create_future()

    def tell(set_to: Callable[[Any], None], what: Any) -> None:
        if not found.done():
            set_to(what)

    def call() -> None:
        told: tuple[Callable[[Any], None], Any]
        try:
            told = (found.set_result, function(*arguments))
        except BaseException as error:
            told = (found.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, *told)

    threading.Thread(target=call, name="fleet", daemon=True).start()
    return await found


def _lengths(package: Path) -> tuple[int, int]:
    """Return the tokens of prompt and answer together, and where an answer is cut, as a package says."""

    def read(name: str) -> dict[str, Any]:
        file = package / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    context = read("config.json").get("max_position_embeddings")
    length = read("generation_config.json").get("max_new_tokens")
    return context or UNKNOWN_CONTEXT, length or UNKNOWN_LENGTH
