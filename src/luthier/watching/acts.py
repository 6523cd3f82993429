"""What is done without a person, and when it is not.

    roll back   the version that lost is the champion: the registry brings back the one before. It is a challenger: the
                gateway ends the experiment
    retrain     what users corrected, and messages whose labels came, are written as raw data; then a training is started:
                here, or as a workflow of GitHub's

Every act is a line of the deployment log. From there it is known what was done before: a cool-down and a most a day hold for all
that act together, also after a restart. They hold for taking back and for retraining apart: the one must not wait for the other.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from luthier import shared_run
from luthier.artefacts import write_atomically
from luthier.errors import UserError
from luthier.github import start
from luthier.registry import Line, Registry
from luthier.serving.keys import ADMIN_VARIABLE
from luthier.serving.records.feedback import corrections
from luthier.serving.records.labels import labelled, read_labels
from luthier.web import ask

WHO = "kedro monitor"
"""How the deployment log calls who acts here; the user and the machine stand behind it."""
FAILED: Literal["retrain failed"] = "retrain failed"
_TAKEN_BACK = ("rollback", "end experiment")


class HeldBackError(UserError):
    """An act that may not be done now."""


@dataclass(frozen=True)
class Limits:
    """How often."""

    cool_down: timedelta
    most_a_day: int

    def why_not(self, planned: str, lines: list[Line], now: datetime) -> str | None:
        """Return why an act may not be done now; None if it may.

        Args:
            planned: from `Actor.plan`.
            lines: of the deployment log.
            now: with a time zone.
        """
        alike = _TAKEN_BACK if planned in _TAKEN_BACK else (planned,)
        ours = [line for line in lines if line.who.startswith(WHO)]
        failed = {before for before, line in pairwise(ours) if line.action == FAILED}
        acted = [datetime.fromisoformat(line.at) for line in ours if line.action in alike and line not in failed]
        if acted and now - acted[-1] < self.cool_down:
            return f"the last such act was at {acted[-1].isoformat(timespec='seconds')}, less than {self.cool_down} ago"
        today = sum(now - at < timedelta(days=1) for at in acted)
        return f"{today} such acts within a day are enough" if today >= self.most_a_day else None

    def guard(self, planned: str) -> Callable[[list[Line]], None]:
        """Return what raises HeldBackError if an act may not be done now."""

        def check(lines: list[Line]) -> None:
            if (why_not := self.why_not(planned, lines, datetime.now(UTC))) is not None:
                raise HeldBackError(why_not)

        return check


@dataclass(frozen=True)
class Actor:
    """What an act needs."""

    registry: Registry
    """Writes as `WHO`."""
    gateway: str
    """Address of the gateway, for the end of an experiment."""
    log_uri: str
    """Of the request log."""
    folder: Path
    """For what users corrected, and for traffic whose labels came."""
    project: Path
    """Where `kedro run` trains."""
    retraining_log: Path
    env: str | None
    parameters: Mapping[str, Any]
    """Of a retraining here."""
    labels: str | None
    """File or URI of late labels."""
    workflow: Mapping[str, str] | None
    """Of GitHub: repository, workflow, ref, token_variable, api; trains in place of a run here."""

    def plan(self, decided: Mapping[str, Any]) -> str | None:
        """Say what would be done; None if nothing."""
        if decided["decision"] == "roll back":
            return "rollback" if self._lost_is_champion(decided) else "end experiment"
        return "retrain" if decided["decision"] == "retrain" else None

    def act(self, decided: Mapping[str, Any], limits: Limits) -> Line:
        """Do what was decided, and write it down.

        Args:
            decided: from `luthier.pipelines.monitoring.decision.decide`, a decision that `plan` has an act for.
            limits: looked at while nobody else can write into the deployment log.

        Raises:
            HeldBackError: if the limits forbid it.
            UserError: if it cannot be done.
        """
        why = " ".join(decided["why"])
        planned = self.plan(decided)
        assert planned is not None
        guard = limits.guard(planned)
        if planned == "rollback":

            def both(lines: list[Line]) -> None:
                guard(lines)
                _must_be_champion(decided, lines)

            return self.registry.rollback(reason=why, guard=both)
        # what is missing is told before anything is written
        if planned == "end experiment":
            key = _secret(ADMIN_VARIABLE, "to end an experiment the gateway asks for its administrator's key")
            guard(self.registry.log.lines())
            self._end_experiment(key, decided["experiment"])  # twice is as good as once; a line about what failed is not
            return self.registry.note("end experiment", why, guard)
        token = None
        if self.workflow is not None:
            token = _secret(self.workflow["token_variable"], "monitoring.act.workflow.token_variable names it")
        guard(self.registry.log.lines())
        self.write_rows()
        # first the line: of two monitors that wake at once, one starts a training
        line = self.registry.note("retrain", why, guard)
        try:
            if self.workflow is not None and token is not None:
                self._dispatch(self.workflow, token)
            else:
                self._run()
        except (UserError, OSError) as error:
            self.registry.note(FAILED, str(error))  # so that the pause is none for what was not done
            raise
        return line

    def _lost_is_champion(self, decided: Mapping[str, Any]) -> bool:
        return bool(decided["version"] == self.registry.standing().aliases.get("champion"))

    def write_rows(self) -> Path | None:
        """Write what was corrected and labelled since the last time as a file of raw data; None if there is nothing new.

        Older files stay: the request log forgets after a while, and what a model is trained on must not. A row that has another
        answer now is taken out of them.
        """
        known = {file: _rows_in(file) for file in sorted(self.folder.glob("*.jsonl"))}
        answers = {row["id"]: row["messages"] for rows in known.values() for row in rows}
        late = labelled(self.log_uri, read_labels(self.labels)) if self.labels else ()
        new = [row for row in (*corrections(self.log_uri), *late) if answers.get(row["id"]) != row["messages"]]
        if not new:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        text = _lines_of(new)
        file = self.folder / f"traffic-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
        write_atomically(file, text)
        replaced = {row["id"] for row in new} & answers.keys()
        for older, rows in known.items():
            if older != file and any(row["id"] in replaced for row in rows):
                write_atomically(older, _lines_of([row for row in rows if row["id"] not in replaced]))
        return file

    def _run(self) -> None:
        given = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        command = [sys.executable, "-m", "kedro", "run", *(["--env", self.env] if self.env else [])]
        self.retraining_log.parent.mkdir(parents=True, exist_ok=True)
        with self.retraining_log.open("a") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {' '.join(command[1:])}\n")
            log.flush()
            subprocess.Popen(
                [*command, *(["--params", given] if given else [])],
                cwd=self.project,
                env=shared_run.without(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it goes on when the monitor ends
            )

    def _dispatch(self, workflow: Mapping[str, str], token: str) -> None:
        start(workflow["api"], workflow["repository"], workflow["workflow"], workflow["ref"], token)

    def _end_experiment(self, key: str, decided: str) -> None:
        # the key goes to the gateway, and to no proxy
        standing = ask("POST", f"{self.gateway}/admin/reload", key, "The gateway", through_proxy=False)["experiment"]
        if standing["id"] != decided:  # an administrator's, say, of which nothing was decided
            raise HeldBackError(f"the experiment {decided} was decided, and {standing['id']} runs")
        variants = standing["variants"]
        control = next((variant for variant in variants if variant["weight"] > 0), variants[0])
        body = {"id": f"{standing['id'][:58]}-ended", "variants": [{**control, "weight": 1.0}], "shadow": standing.get("shadow")}
        ask("POST", f"{self.gateway}/admin/experiment", key, "The gateway", body, through_proxy=False)


def _must_be_champion(decided: Mapping[str, Any], lines: list[Line]) -> None:
    """Raise HeldBackError if somebody has put another version into production since it was decided."""
    if lines[-1].version != decided["version"]:
        raise HeldBackError(f"version {decided['version']} is no longer the champion")


def _rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _lines_of(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _secret(variable: str, what: str) -> str:
    """Return what an environment variable holds.

    Raises:
        UserError: if it is not set.
    """
    if not os.environ.get(variable):
        raise UserError(f"{variable} is not set: {what}.")
    return os.environ[variable]
