"""What is served follows the registry: a promotion or a rollback anywhere takes effect here, without a lost request.

    poll the deployment log -> engines of what is needed -> swap the table -> warm what may be needed next -> drain the rest

The table is swapped in one step between two requests. If an engine does not start, what was served before goes on.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.artefacts import write_atomically
from luthier.errors import UserError
from luthier.registry import Registry, Standing
from luthier.registry.versions import CHAMPION
from luthier.serving.errors import ApiError, without_places
from luthier.serving.fleet import Fleet
from luthier.serving.live import Live
from luthier.serving.metrics import Metrics
from luthier.serving.parameters import ExperimentParameters, ServingParameters
from luthier.serving.routing import Experiment, RouteTable, resolve_experiment

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 120.0
"""Seconds after which what failed is tried again, at first and at most."""


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
        self._experiment = _kept_experiment(kept, parameters.experiment)
        self._standing: Standing
        self._serving: Experiment
        self._left: set[int] = set()
        """Versions that the last change took out of the experiment: kept ready, as people change their minds."""
        self._one_at_a_time = asyncio.Lock()
        self._warming: asyncio.Task[None] | None = None
        self._switch: Callable[[Live], None] = lambda live: None

    async def begin(self) -> Live:
        """Start the engines that are needed, and return what is served.

        Raises:
            UserError: if nothing was promoted yet, the experiment cannot be dealt, or an engine does not start.
        """
        standing = await self._look()
        if CHAMPION not in standing.aliases:
            raise UserError(f"No version of {self._registry.name} is in production: `kedro promote` puts the candidate there.")
        try:
            live = await self._needed(standing, self._experiment)
        except ValueError as error:
            raise UserError(f"serving.experiment: {error}.") from None
        self._standing, self._serving = standing, live.table.experiment
        return live

    async def follow(self, switch: Callable[[Live], None]) -> None:
        """Follow the registry until cancelled.

        Args:
            switch: serves something else from the next request on.
        """
        self._switch = switch
        self._warm(self._standing)
        pause, not_before = FIRST_PAUSE, 0.0
        while True:
            await asyncio.sleep(self._parameters.poll_seconds)
            if time.monotonic() < not_before:
                continue
            try:
                await self._catch_up()
            except Exception as error:
                self._metrics.reload("failed")
                known = isinstance(error, UserError | ValueError)
                logger.error(
                    "What the registry says cannot be served; what was served before goes on: %s", error, exc_info=not known
                )
                not_before, pause = time.monotonic() + pause, min(pause * 2, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE

    # --- what an administrator asks for

    async def reload(self) -> None:
        """Look at the registry now, and serve what it says.

        Raises:
            ApiError: 409 if that cannot be served.
        """
        try:
            if not await self._catch_up():
                self._metrics.reload("unchanged")
        except (UserError, ValueError) as error:
            self._metrics.reload("failed")
            raise _refused(error) from None

    async def rollback(self, reason: str) -> None:
        """Take the champion back, and serve the one before.

        Raises:
            ApiError: 409 if there is nothing to go back to, or it cannot be served.
        """
        try:
            await asyncio.to_thread(self._registry.rollback, None, reason)
        except UserError as error:
            raise _refused(error) from None
        self._metrics.rollback()
        await self.reload()

    async def set_experiment(self, asked: ExperimentParameters) -> None:
        """Deal the subjects anew, also after a restart, until the parameters say something else.

        Raises:
            ValueError: if they cannot be dealt so.
            ApiError: 409 if a version cannot be served.
        """
        async with self._one_at_a_time:
            standing = await self._look()
            try:
                live = await self._needed(standing, asked)
            except UserError as error:
                raise _refused(error) from None
            self._experiment = asked
            if self._kept is not None:
                said = {"configured": self._parameters.experiment, "asked": asked}
                written = json.dumps({name: one.model_dump(mode="json") for name, one in said.items()}, indent=2)
                await asyncio.to_thread(write_atomically, self._kept, written)
            self._serve(live, standing)

    async def close(self) -> None:
        """Start no more engines."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)

    # --- from the registry to the table

    async def _look(self) -> Standing:
        return await asyncio.to_thread(self._registry.standing)

    async def _catch_up(self) -> bool:
        """Serve what the registry says now; tell whether that is anything new.

        Raises:
            UserError: if an engine does not start.
            ValueError: if the experiment cannot be dealt.
        """
        async with self._one_at_a_time:
            standing = await self._look()
            if standing == self._standing:
                return False
            self._serve(await self._needed(standing, self._experiment), standing)
            self._metrics.reload("reloaded")
            return True

    def _serve(self, live: Live, standing: Standing) -> None:
        self._left = (_versions(self._serving) - _versions(live.table.experiment)) or self._left
        self._standing, self._serving = standing, live.table.experiment
        self._switch(live)
        told = ", ".join(f"{one.name} is version {one.version} ({one.weight:.4g})" for one in live.table.experiment.variants)
        logger.info("Line %d of the deployment log: %s.", standing.sequence, told)
        self._warm(standing)

    async def _needed(self, standing: Standing, asked: ExperimentParameters) -> Live:
        """Return what is to be served, once its engines answer."""
        experiment = _dealt(asked, standing)
        await asyncio.gather(*(self._fleet.serve(version) for version in _versions(experiment)))
        return self._live(standing, experiment)

    def _live(self, standing: Standing, experiment: Experiment) -> Live:
        """Return a table of all engines that are there."""
        engines = self._fleet.running()
        aliases = {alias: version for alias, version in standing.aliases.items() if version in engines}
        manifests = {version: self._fleet.manifests[version] for version in engines}
        return Live(RouteTable(manifests, aliases, experiment, standing.sequence, self._parameters.model), engines)

    def _warm(self, standing: Standing) -> None:
        """Start, behind the answers, what may be needed next, and end what is no longer needed."""
        if self._warming is not None:
            self._warming.cancel()
        self._warming = asyncio.create_task(self._warm_up(standing, self._serving))

    async def _warm_up(self, standing: Standing, experiment: Experiment) -> None:
        keep = _versions(experiment) | (self._left & self._fleet.running().keys())
        for alias in self._parameters.engine.warm:
            version = standing.aliases.get(alias)
            if version is None or version in keep:
                continue
            try:
                await self._fleet.serve(version)
            except UserError as error:
                logger.warning("%s (version %d) is not kept ready: %s", alias, version, error)
            else:
                keep.add(version)
        # not while another table is being made: its engines must not leave
        async with self._one_at_a_time:
            self._fleet.retire(keep)
            self._switch(self._live(standing, experiment))


def _dealt(asked: ExperimentParameters, standing: Standing) -> Experiment:
    variants = {one.name: (one.version, one.weight) for one in asked.variants}
    return resolve_experiment(asked.id, variants, asked.shadow, standing.aliases)


def _versions(experiment: Experiment) -> set[int]:
    found = {variant.version for variant in experiment.variants}
    return found if experiment.shadow is None else found | {experiment.shadow}


def _kept_experiment(kept: Path | None, configured: ExperimentParameters) -> ExperimentParameters:
    """Return the experiment that an administrator asked for, unless the parameters changed since."""
    if kept is None or not kept.is_file():
        return configured
    try:
        said: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if ExperimentParameters.model_validate(said["configured"]) == configured:
            return ExperimentParameters.model_validate(said["asked"])
    except (ValueError, KeyError, ValidationError) as error:
        logger.warning("%s is no experiment and is not used: %s", kept, error)
    return configured


def _refused(error: Exception) -> ApiError:
    logger.error("%s", error)
    return ApiError(409, without_places(str(error)), "conflict")
