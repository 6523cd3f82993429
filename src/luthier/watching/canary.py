"""A version gets a share of the users, until what they get shows that it is better, or that it is not.

    deal a share to it -> look, and look again -> it is decided, or the time is up -> the champion has all users again

Whatever happens, the share ends here: a canary that is stopped, or whose machine is taken away politely, leaves nothing behind.
What somebody else began meanwhile is left as it is.
What decides is the experiment of the pipeline monitoring, whose tests hold at every look (docs/monitoring.md).
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from luthier.errors import UserError
from luthier.registry import Registry
from luthier.registry.versions import CHAMPION, Version
from luthier.serving.parameters import ExperimentParameters, VariantParameters
from luthier.serving.routing import BUCKETS
from luthier.watching.loop import News
from luthier.web import ask

logger = logging.getLogger(__name__)

START_SECONDS = 660
"""How long the gateway may take to deal a share: the version's engine may have to start, which it waits ten minutes for."""
PAUSES = (1, 2, 5, 10, 20, 40, 60, 60, 60)
"""Seconds between attempts to end the share: a gateway may be starting anew just then."""
WHO = "kedro canary"
VARIANT = "canary"


@dataclass(frozen=True)
class Verdict:
    """How it ended."""

    outcome: Literal["promote", "roll back"]
    why: str


def check_candidate(registry: Registry, which: str) -> Version | None:
    """Return the version that may be tried; None if nothing is in production, so that there is nothing to compare it with.

    Raises:
        UserError: if there is no such version, the gate did not pass it, or it is the champion.
    """
    version = registry.resolve(which)
    champion = registry.standing().aliases.get(CHAMPION)
    if champion == version.number:
        raise UserError(f"Version {version.number} is the champion already: it has all users.")
    if version.gate != "pass":
        raise UserError(
            f"Version {version.number} may not be promoted, so users are not given it: the gate said {version.gate!r}."
        )
    return None if champion is None else version


def plan(version: int, share: float, at: datetime) -> ExperimentParameters:
    """Return the experiment; each has a name of its own, so that subjects are dealt anew."""
    share = round(share * BUCKETS) / BUCKETS
    variants = (
        VariantParameters(name=CHAMPION, version=CHAMPION, weight=round(1 - share, 4)),
        VariantParameters(name=VARIANT, version=version, weight=share),
    )
    return ExperimentParameters(id=f"canary-{version}-{at:%Y%m%dT%H%M%S}", variants=variants)


@contextmanager
def share_of(
    gateway: str, key: str, experiment: ExperimentParameters, keep: Callable[[ExperimentParameters], None]
) -> Iterator[None]:
    """Deal the users so; at the end, however it comes, the control has them all, unless another experiment runs by then.

    Args:
        gateway: its address.
        key: of its administrator.
        experiment: whose first variant is the champion.
        keep: writes down here what runs there: the pipeline monitoring reads it, and the gateway may be on another machine.

    Raises:
        UserError: if another experiment runs, the gateway refuses, or it stays away when the share is to end.
    """

    def said(path: str, body: Any = None) -> Any:
        answer = ask("POST", f"{gateway}/admin/{path}", key, "The gateway", body, through_proxy=False, seconds=START_SECONDS)
        return answer["experiment"]

    def deal(what: ExperimentParameters) -> None:
        said("experiment", what.model_dump(mode="json"))
        keep(what)

    running = said("reload")
    if sum(variant["weight"] > 0 for variant in running["variants"]) > 1:
        raise UserError(
            f"The experiment {running['id']} is running: end it first (docs/serving.md), or wait until it is decided."
        )
    shadow = {"shadow": running["shadow"]}
    control = experiment.variants[0].model_copy(update={"weight": 1.0})
    ended = experiment.model_copy(update={"id": f"{experiment.id}-ended", "variants": (control,), **shadow})
    pauses: Sequence[float] = ()
    ours = {experiment.id, running["id"]}  # a gateway that has not said that it deals the share may be about to

    def end() -> None:
        now = said("reload")["id"]
        if now in ours:
            deal(ended)
        else:
            logger.warning("The experiment %s runs by now, not %s: it goes on.", now, experiment.id)

    try:
        deal(experiment.model_copy(update=shadow))
        pauses, ours = PAUSES, {experiment.id}
        yield
    finally:
        by_hand = f"The share of {experiment.id} is not ended: POST {gateway}/admin/experiment ends it."
        _surely(end, pauses, by_hand)


def _surely(end: Callable[[], None], pauses: Sequence[float], otherwise: str) -> None:
    """Do it, again and again if need be.

    Raises:
        UserError: with what is to be done by hand, if it cannot be done.
    """
    for pause in (*pauses, None):
        try:
            return end()
        except UserError as error:
            if pause is None:
                raise UserError(f"{otherwise} {error}") from error
            logger.error("%s It is tried again in %g s.", error, pause)
            time.sleep(pause)
    return None


def watch(
    look: Callable[[], list[Mapping[str, Any]]],
    news: Callable[[], News | None],
    experiment: str,
    every: float,
    until: float,
) -> Verdict:
    """Look whenever there is something new, until the experiment is decided.

    Args:
        look: runs the pipeline monitoring, and returns what it says of each challenger.
        news: how much there is to see.
        experiment: id.
        every: seconds between two looks.
        until: by time.monotonic, when it ends undecided.

    Returns:
        `promote` only if the version is shown to be better and every guardrail to be kept.
    """
    why, seen = "no request has come", None
    while True:
        now = news()
        if now is not None and now != seen:
            seen = now
            try:
                found = next((one for one in look() if one["experiment"] == experiment), None)
            except UserError as error:  # a database that is away comes back
                logger.error("%s", error)
                found = None
            if found is not None:
                why = str(found["why"])
                logger.info("%s: %s", found["decision"], why)
                if found["decision"] == "promote":
                    return Verdict("promote", why)
                if found["decision"] != "keep collecting":
                    return Verdict("roll back", why)
        rest = until - time.monotonic()
        if rest <= 0:
            return Verdict("roll back", f"The time is up and nothing is shown: {why}")
        time.sleep(min(every, rest))
