"""What is served follows the registry: a promotion or a rollback anywhere takes effect here, without a lost request.

    poll the deployment log -> engines of what is needed -> swap the table -> warm what may be needed next -> drain the rest

The table is swapped in one step between two requests. If the control's engine does not start, what was served before goes on.
The control answers for another variant whose engine does not start: a challenger must not keep anybody from taking it back.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.errors import UserError
from luthier.registry import Registry, Standing
from luthier.registry.versions import CHAMPION
from luthier.serving.api.errors import ApiError, unavailable, without_places
from luthier.serving.fleet import Fleet
from luthier.serving.live import Live
from luthier.serving.metrics import Metrics
from luthier.serving.parameters import ExperimentParameters, ServingParameters, keep_experiment, running_experiment
from luthier.serving.routing import Experiment, RouteTable, resolve_experiment

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 120.0
"""Seconds after which what failed is tried again, at first and at most."""
PATIENCE = 60.0
"""Seconds that a change waits for the engines of challengers and the shadow; one of the control waits for none of them."""


class Follower:
    """Keeps what is served equal to what the registry says."""

    def __init__(
        self, registry: Registry, fleet: Fleet, parameters: ServingParameters, metrics: Metrics, kept: Path | None = None
    ) -> None:
        """Look at nothing yet.

        Args:
            registry: that is followed.
            fleet: of engines.
            parameters: of serving.
            metrics: count what happens.
            kept: file in which an administrator's experiment survives a restart.
        """
        self._registry, self._fleet, self._parameters, self._metrics = registry, fleet, parameters, metrics
        self._kept = kept
        self._experiment = running_experiment(kept, parameters.experiment)
        self._standing: Standing
        self._serving: Experiment
        self._left: set[int] = set()
        """Versions that the last change took out of the experiment: kept ready, as people change their minds."""
        self._absent: dict[int, tuple[float, float]] = {}
        """Versions beside the control whose engines did not start -> seconds between two attempts, and when the next one is."""
        self._asked_for: set[int] = set()
        """Versions that are started for an administrator."""
        self._approach: asyncio.Task[None] | None = None
        self._approached: Standing | None = None
        self._warming: asyncio.Task[None] | None = None
        self._one_administrator = asyncio.Lock()
        self._switch: Callable[[Live], None] = lambda live: None

    async def begin(self) -> Live:
        """Start the engines that are needed, and return what is served.

        Raises:
            UserError: if nothing was promoted yet, the experiment cannot be dealt, or the control's engine does not start.
        """
        standing = await self._look()
        needs_champion = CHAMPION in {variant.version for variant in self._experiment.variants}
        if needs_champion and CHAMPION not in standing.aliases:
            raise UserError(f"No version of {self._registry.name} is in production: `kedro promote` puts the candidate there.")
        try:
            experiment = _dealt(self._experiment, standing)
        except ValueError as error:
            if self._experiment is self._parameters.experiment:
                raise UserError(f"serving.experiment: {error}.") from None
            logger.warning("The experiment in %s is not used: %s.", self._kept, error)
            self._experiment = self._parameters.experiment
            return await self.begin()
        await self._start(experiment, PATIENCE)
        self._standing, self._serving = standing, experiment
        return self._live(standing, experiment)

    async def follow(self, switch: Callable[[Live], None]) -> None:
        """Follow the registry until cancelled.

        Args:
            switch: serves something else from the next request on.
        """
        self._switch = switch
        self._warm()
        failed, again_at, pause, away = None, 0.0, FIRST_PAUSE, False
        while True:
            await asyncio.sleep(self._parameters.poll_seconds)
            try:
                standing = await self._look()
            except Exception as error:
                if not away:
                    self._metrics.reload("failed")
                    logger.error("The registry cannot be read; what is served goes on: %s", error)
                away = True
                continue
            away = False
            if standing == self._standing or (standing == failed and time.monotonic() < again_at):
                continue
            # never waits for an engine: meanwhile the registry may move on, or back
            approach = self._towards(standing)
            await asyncio.wait({approach}, timeout=0)
            problem = approach.exception() if approach.done() and not approach.cancelled() else None
            if problem is not None:
                self._metrics.reload("failed")
                logger.error(
                    "What the registry says cannot be served; what was served before goes on: %s",
                    problem,
                    exc_info=None if isinstance(problem, UserError | ValueError) else problem,
                )
                pause = min(pause * 2, LONGEST_PAUSE) if standing == failed else FIRST_PAUSE
                failed, again_at = standing, time.monotonic() + pause
                self._approach = None

    # --- what an administrator asks for

    async def reload(self) -> None:
        """Look at the registry now, and serve what it says.

        Raises:
            ApiError: 409 if that cannot be served, 503 if the registry cannot be read.
        """
        with self._told():
            if (standing := await self._look()) == self._standing:
                self._metrics.reload("unchanged")
            else:
                await self._arrive(standing)

    async def rollback(self, reason: str) -> None:
        """Take the champion back, and serve the one before.

        Raises:
            ApiError: 409 if there is nothing to go back to, or it cannot be served; 503 if the registry cannot be read.
        """
        with self._told():
            await asyncio.to_thread(self._registry.rollback, None, reason)
        self._metrics.rollback()
        await self.reload()

    async def set_experiment(self, asked: ExperimentParameters) -> None:
        """Deal the subjects anew, also after a restart, until the parameters say something else.

        Raises:
            ValueError: if they cannot be dealt so.
            ApiError: 409 if a version cannot be served, 503 if the registry cannot be read.
        """
        async with self._one_administrator:
            with self._told():
                standing = await self._look()
            experiment = _dealt(asked, standing)
            self._stop_warming()
            self._asked_for = _versions(experiment)
            try:
                with self._told():
                    await asyncio.gather(*(self._fleet.serve(version) for version in _versions(experiment)))
                    # that took its time: the registry may have moved on
                    standing = await self._look()
                    _dealt(asked, standing)
                    if self._kept is not None:
                        await asyncio.to_thread(keep_experiment, self._kept, self._parameters.experiment, asked)
                    self._experiment = asked
                    await self._arrive(standing, anew=True)
            except BaseException:
                self._asked_for = set()
                if self._approach is None or self._approach.done():  # or that does so at its end
                    self._warm()
                raise
            self._asked_for = set()

    async def close(self) -> None:
        """Start no more engines."""
        tasks = [task for task in (self._approach, self._warming) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell an administrator what went wrong."""
        try:
            yield
        except (UserError, ValueError) as error:
            self._metrics.reload("failed")
            logger.error("%s", error)
            raise ApiError(409, without_places(str(error)), "conflict") from None
        except ApiError:
            raise
        except Exception as error:
            self._metrics.reload("failed")
            logger.exception("An administrator's request failed.")
            raise unavailable("That cannot be done now: the log of the gateway says why.") from error

    # --- from the registry to the table

    async def _look(self) -> Standing:
        return await asyncio.to_thread(self._registry.standing)

    def _towards(self, standing: Standing, anew: bool = False) -> asyncio.Task[None]:
        """Return the task that makes the registry's state what is served; whoever is on the way to another one is stopped."""
        if self._approach is not None:
            if self._approached == standing and not anew and not self._approach.cancelled():
                return self._approach
            self._approach.cancel()
        self._stop_warming()
        self._approached = standing
        self._approach = asyncio.create_task(self._go_to(standing))
        # its error is for who waits for it, if anybody does
        self._approach.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._approach

    async def _arrive(self, standing: Standing, anew: bool = False) -> None:
        """Wait until what the registry says is served, also if it says something else meanwhile."""
        while True:
            approach = self._towards(standing, anew)
            await asyncio.wait({approach})
            if not approach.cancelled():
                return approach.result()
            standing, anew = await self._look(), False
            if standing == self._standing:
                return None

    async def _go_to(self, standing: Standing) -> None:
        """Serve what the registry says, once its engines answer.

        Raises:
            UserError: if the control's engine does not start.
            ValueError: if the experiment cannot be dealt.
        """
        try:
            started = None
            while started != (experiment := _dealt(self._experiment, standing)):  # an administrator may be faster
                stays = experiment.control.version == self._serving.control.version
                await self._start(experiment, PATIENCE if stays else 0.0)
                started = experiment
        except Exception:
            self._warm()
            raise
        # from here on nothing is awaited: the table is of the engines that are there
        self._left = (_versions(self._serving) - _versions(experiment)) or self._left
        self._absent = {version: when for version, when in self._absent.items() if version in _versions(experiment)}
        self._standing, self._serving = standing, experiment
        self._switch(self._live(standing, experiment))
        told = ", ".join(f"{one.name} is version {one.version} ({one.weight:.4g})" for one in experiment.variants)
        logger.info("Line %d of the deployment log: %s.", standing.sequence, told)
        self._metrics.reload("reloaded")
        self._warm()

    async def _start(self, experiment: Experiment, patience: float) -> None:
        """Start the engines of an experiment, and wait for the control's; for the others so many seconds more.

        Raises:
            UserError: if the control's engine does not start.
        """
        control = experiment.control.version
        others = [asyncio.create_task(self._attempt(version)) for version in _versions(experiment) - {control}]
        try:
            await self._fleet.serve(control)
            if others:
                await asyncio.wait(others, timeout=patience)
        finally:
            for attempt in others:
                attempt.cancel()

    async def _attempt(self, version: int) -> None:
        """Start the engine of a version that the control can stand in for; tell it once if it does not start."""
        try:
            await self._fleet.serve(version)
        except Exception as error:
            self._metrics.reload("failed")
            if version not in self._absent:
                logger.error(
                    "Version %d cannot be served, and its users get the control: %s",
                    version,
                    error,
                    exc_info=None if isinstance(error, UserError) else error,
                )
            pause = min(2 * self._absent[version][0], LONGEST_PAUSE) if version in self._absent else FIRST_PAUSE
            self._absent[version] = pause, time.monotonic() + pause
        else:
            self._absent.pop(version, None)

    def _live(self, standing: Standing, experiment: Experiment) -> Live:
        """Return a table of all engines that are there, the control's among them."""
        engines = self._fleet.running()
        named = {variant.name: variant.version for variant in experiment.variants}
        aliases = {alias: version for alias, version in standing.aliases.items() if version in engines}
        for alias in [alias for alias in aliases if named.get(alias, aliases[alias]) != aliases[alias]]:
            logger.warning("The alias %s is version %d; here the variant of this name is meant.", alias, aliases.pop(alias))
        manifests = {version: self._fleet.manifests[version] for version in engines}
        return Live(RouteTable(manifests, aliases, experiment, standing.sequence, self._parameters.model), engines)

    def _stop_warming(self) -> None:
        if self._warming is not None:
            self._warming.cancel()

    def _warm(self) -> None:
        """Start, behind the answers, what is lacking and what may be needed next, and end what is no longer needed."""
        self._stop_warming()
        self._warming = asyncio.create_task(self._warm_up(self._standing, self._serving))

    async def _warm_up(self, standing: Standing, experiment: Experiment) -> None:
        lacking = _versions(experiment) - self._fleet.running().keys()
        joining = (self._join(version, standing, experiment) for version in lacking)
        await asyncio.gather(self._keep_ready(standing, experiment), *joining)

    async def _join(self, version: int, standing: Standing, experiment: Experiment) -> None:
        """Start an engine that the experiment lacks, however often it takes, and give it its share."""
        while version not in self._fleet.running():
            _, due = self._absent.get(version, (0.0, 0.0))
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._attempt(version)
        self._switch(self._live(standing, experiment))

    async def _keep_ready(self, standing: Standing, experiment: Experiment) -> None:
        keep = _versions(experiment) | self._asked_for | (self._left & self._fleet.running().keys())
        for alias in self._parameters.engine.warm:
            version = standing.aliases.get(alias)
            if version is None or version in keep:
                continue
            try:
                await self._fleet.serve(version)
            except Exception as error:
                logger.warning("%s (version %d) is not kept ready: %s", alias, version, error)
            else:
                keep.add(version)
        self._fleet.retire(keep | self._asked_for)
        self._switch(self._live(standing, experiment))


def _dealt(asked: ExperimentParameters, standing: Standing) -> Experiment:
    variants = {one.name: (one.version, one.weight) for one in asked.variants}
    return resolve_experiment(asked.id, variants, asked.shadow, standing.aliases)


def _versions(experiment: Experiment) -> set[int]:
    found = {variant.version for variant in experiment.variants}
    return found if experiment.shadow is None else found | {experiment.shadow}
