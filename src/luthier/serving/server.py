"""Putting it together: the gateway, its engines and its log, from the first check to the last row."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from luthier.errors import UserError
from luthier.registry import Registry
from luthier.serving.fleet import Fleet, Machine
from luthier.serving.follower import Follower
from luthier.serving.gateway import SERVER, create_app
from luthier.serving.keys import Keys
from luthier.serving.live import Gateway
from luthier.serving.metrics import Metrics
from luthier.serving.parameters import ServingParameters
from luthier.serving.records.feedback import FeedbackStore
from luthier.serving.records.log import RequestLog
from luthier.serving.routing import RouteTable

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SETTLE_SECONDS = 5.0
"""How long what no answer waits for, such as a shadow, may take at the end."""


@dataclass(frozen=True)
class Place:
    """What a gateway finds where it runs."""

    registry: Registry
    machine: Machine
    keys: Keys
    log_uri: str
    """Database of the request log."""
    experiment_file: Path | None
    """Keeps an administrator's experiment; None forgets it."""
    pii_key: str
    """Of placeholders, and of the hashes of subjects."""


class _Server(uvicorn.Server):
    """A server whose signals are ours: uvicorn would end the process before the log is written."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(parameters: ServingParameters, place: Place, announce: Callable[[str, RouteTable], None]) -> None:
    """Serve until SIGINT or SIGTERM; then answers under way come to their end, and every row is written.

    Args:
        parameters: of serving.
        place: what is here.
        announce: is told the address once it answers, and what is served.

    Raises:
        UserError: if the address is taken, the log cannot be kept, or there is nothing to serve.
        KeyboardInterrupt: if it is stopped before it answers.
    """
    with _bound(parameters.host, parameters.port) as listener:
        asyncio.run(_serve(parameters, place, announce, listener))


async def _serve(
    parameters: ServingParameters, place: Place, announce: Callable[[str, RouteTable], None], listener: socket.socket
) -> None:
    metrics = Metrics()
    fleet = Fleet(place.registry, parameters, place.machine, metrics.restarts.inc)
    follower = Follower(place.registry, fleet, parameters, metrics, place.experiment_file)
    log = RequestLog(
        place.log_uri,
        text=parameters.log.text,
        queue=parameters.log.queue,
        retention_days=parameters.log.retention_days,
        on_drop=metrics.log_dropped.inc,
    )
    with _stopped_by_signals() as stopping, log:
        try:
            live = await stopping.unless(follower.begin())
            gateway = Gateway(
                parameters,
                place.keys,
                live,
                log,
                FeedbackStore(log),
                metrics,
                subject_key=place.pii_key,
                pii_key=place.pii_key,
                reload=follower.reload,
                rollback=follower.rollback,
                set_experiment=follower.set_experiment,
            )
            config = uvicorn.Config(create_app(gateway), timeout_graceful_shutdown=round(parameters.drain_seconds), **SERVER)
            address = _address(parameters.host, listener)
            server = _Server(config, lambda: announce(address, gateway.live.table))
            following = asyncio.create_task(follower.follow(gateway.switch))

            def drain(again: bool) -> None:
                gateway.draining, server.should_exit, server.force_exit = True, True, again

            stopping.then(drain)
            await server.serve([listener])
            following.cancel()
            await _cancelled(list(server.server_state.tasks))
            await gateway.settle(SETTLE_SECONDS)
        finally:
            await follower.close()
            await fleet.close()
    logger.info("Stopped.")


async def _cancelled(requests: Collection[asyncio.Task[None]]) -> None:
    """End the requests that took too long to come to their end; each leaves its row."""
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)


class _Stopping:
    """What SIGINT and SIGTERM do: nothing abrupt, unless they come twice."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._do: Callable[[bool], None] = lambda again: None

    def ask(self) -> None:
        again = self._asked.is_set()
        self._asked.set()
        self._do(again)

    def then(self, do: Callable[[bool], None]) -> None:
        """Say what is to be done from now on; it is told whether it is asked for again."""
        self._do = do
        if self._asked.is_set():
            do(False)

    async def unless(self, doing: Coroutine[Any, Any, Result]) -> Result:
        """Return what a coroutine returns.

        Raises:
            KeyboardInterrupt: if it is stopped first.
        """
        work, asked = asyncio.ensure_future(doing), asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise KeyboardInterrupt
        finally:
            work.cancel()
            asked.cancel()
            await asyncio.gather(work, asked, return_exceptions=True)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[_Stopping]:
    loop, stopping = asyncio.get_running_loop(), _Stopping()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.ask)
    try:
        yield stopping
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that has the address, before anything expensive starts.

    Raises:
        UserError: if it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"serving.host: {host} is no address of this machine ({error.strerror}).") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)  # who comes before it answers waits; and a second gateway is told now that it comes second
    except OSError as error:
        listener.close()
        raise UserError(
            f"Port {port} of {host} cannot be had ({error.strerror}): name another one by --port, or 0 for a free one."
        ) from None
    return listener


def _address(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
