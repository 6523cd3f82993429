"""What the gateway holds: who may ask, what is served at this moment, and where requests are counted and kept."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from luthier.serving.engines.engine import Engine
from luthier.serving.keys import Keys
from luthier.serving.limits import RateLimit, Slots
from luthier.serving.metrics import Metrics
from luthier.serving.parameters import ExperimentParameters, ServingParameters
from luthier.serving.records.feedback import FeedbackStore
from luthier.serving.records.log import RequestLog
from luthier.serving.resources import Resources
from luthier.serving.routing import RouteTable
from luthier.text.language import language_of
from luthier.text.prepare import PromptSettings


@dataclass(frozen=True)
class Served:
    """A version that answers."""

    engine: Engine
    prompts: PromptSettings
    """Of its package: what clients send is prepared as its training data was."""
    context: int
    """Tokens of prompt and answer together."""
    max_new_tokens: int | None = None
    """Where an answer is cut whose request does not say; None if the engine knows."""
    fingerprint: str | None = None
    """The beginning of the manifest's hash."""
    slots: Slots = field(default_factory=Slots)
    """Places of the engine."""


@dataclass(frozen=True)
class Live:
    """All that is served at one moment. Never changed: requests under way keep theirs."""

    table: RouteTable
    engines: Mapping[int, Served]

    def __post_init__(self) -> None:
        """Refuse a table that leads to no engine.

        Raises:
            ValueError: if a version has none.
        """
        if missing := sorted(self.table.versions.keys() - self.engines.keys()):
            raise ValueError(f"version {missing[0]} has no engine")

    def ready(self, version: int, silence: float) -> bool:
        """Tell whether a version's engine answers.

        Args:
            version: one that is served.
            silence: seconds without a token after which a busy engine is stuck.
        """
        status = self.engines[version].engine.status()
        since = status.last_progress
        stuck = status.running > 0 and since is not None and time.monotonic() - since > silence
        return status.alive and not stuck


@dataclass
class Gateway:
    """What the routes share. `switch` changes what is served, between two requests."""

    parameters: ServingParameters
    keys: Keys
    live: Live
    log: RequestLog
    feedback: FeedbackStore
    metrics: Metrics
    subject_key: str = field(repr=False)
    """Of the hashes of subjects."""
    pii_key: str = field(repr=False)
    """Of placeholders: the one that the training data was scrubbed with."""
    reload: Callable[[], Awaitable[None]]
    """Looks at the registry now."""
    rollback: Callable[[str], Awaitable[None]]
    """Takes the champion back; is told why."""
    set_experiment: Callable[[ExperimentParameters], Awaitable[None]]
    """Deals the subjects anew; raises ValueError if they cannot be dealt so."""
    draining: bool = False
    """No new request is taken: the gateway is about to stop."""
    rate: RateLimit = field(init=False)
    votes: ThreadPoolExecutor = field(init=False, repr=False)
    """Threads for feedback alone: where its database is away, nothing else waits."""
    _behind: set[asyncio.Task[None]] = field(init=False, default_factory=set, repr=False)

    def __post_init__(self) -> None:
        """Begin to count."""
        self.rate = RateLimit(self.parameters.limits.rate_per_minute)
        self.votes = ThreadPoolExecutor(2, "votes")
        self.metrics.serving(self.live.table)
        self.metrics.registry.register(Resources(self._engines))
        language_of("")  # takes half a second when it is first asked

    def _engines(self) -> dict[int, Engine]:
        return {version: served.engine for version, served in self.live.engines.items()}

    def switch(self, live: Live) -> None:
        """Serve this from the next request on. Called in the thread of the event loop."""
        self.metrics.serving(live.table)
        self.live = live

    @property
    def is_ready(self) -> bool:
        """Whether a new request would be answered: by the control, if by nobody else."""
        control = self.live.table.experiment.control.version
        return not self.draining and self.live.ready(control, self.parameters.limits.total_seconds)

    def do_behind(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something no answer waits for, unless as much is under way as requests may wait."""
        if self.draining or len(self._behind) >= self.parameters.limits.queue:
            work.close()
            return
        task = asyncio.ensure_future(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def settle(self, seconds: float) -> None:
        """Wait for what is done behind the answers; what takes longer is cancelled."""
        if self._behind:
            _, late = await asyncio.wait(self._behind, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
