"""What the monitoring pipeline found, as gauges for Prometheus."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from luthier.registry import Line

DECISIONS = ("keep", "promote", "retrain", "roll back", "check")
OUTCOMES = ("keep collecting", "no difference", "promote", "roll back", "blocked")
_KINDS = {"rating": "votes", "accuracy": "labels"}


class Gauges:
    """All gauges, in a registry of its own. Labels only take values of closed sets: features, versions, variants, decisions."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"luthier_{name}", what, labels, registry=registry)

        self._decision = gauge("monitor_decision", "1 for the decision of the last look.", "decision")
        self._looked = gauge("monitor_last_look_timestamp_seconds", "When the pipeline last came to its end.")
        self._newest = gauge("monitor_newest_request_timestamp_seconds", "Of the requests that it saw.")
        self.failures = Counter("luthier_monitor_failures", "Looks that failed.", registry=registry)
        self.acts = Counter("luthier_monitor_acts", "What was done without a person.", ("act", "result"), registry=registry)
        self._score = gauge("drift_score", "Effect of a feature in the newest window.", "feature")
        self._minimum = gauge("drift_minimum", "Effect from which it counts.", "feature")
        self._feature = gauge("drift_changed", "1 if the feature has changed in the newest window.", "feature")
        self._alarm = gauge("drift_alarm", "1 if two of the last three windows have drifted.")
        self._windows = gauge("drift_windows", "Windows that were compared.")
        self._waiting = gauge("drift_messages_waiting", "Messages that make no window yet.")
        self._live = gauge("live_quality", "Share of votes up, or of answers that are right.", "kind", "model_version")
        self._low = gauge("live_quality_low", "Lower bound of its 95 % interval.", "kind", "model_version")
        self._of = gauge("live_quality_subjects", "Votes, or answers whose label came.", "kind", "model_version")
        self._fallen = gauge("live_votes_fallen", "1 if fewer of the newest votes are up than before.")
        self._too_low = gauge("live_quality_too_low", "1 if quality is shown to be below its limit.")
        self._outcome = gauge("experiment_decision", "1 for what the experiment says.", "variant", "decision")
        self._difference = gauge("experiment_difference", "Primary metric, challenger minus control.", "variant", "bound")
        self._subjects = gauge("experiment_subjects", "Subjects that were dealt to a variant.", "variant")
        self._mismatch = gauge("experiment_mismatch", "1 if subjects are not dealt as planned.")
        self._guardrail = gauge("experiment_guardrail_broken", "1 if the challenger breaks it.", "variant", "guardrail")
        self._evaluated = gauge("evaluation_timestamp_seconds", "When a model was last evaluated.")
        self._deployments = gauge("deployments", "Lines of the deployment log.", "action")
        self._champion = gauge("champion_version", "In production.")
        self._deployed = gauge("deployment_timestamp_seconds", "Of the last line of the deployment log.")

    def show(self, load: Callable[[str], Any], evaluated: datetime | None) -> None:
        """Show the newest findings.

        Args:
            load: from the name of a JSON data set of monitoring to its newest version; None if there is none yet.
            evaluated: when a model was last evaluated; None if never.
        """
        if evaluated is not None:
            self._evaluated.set(evaluated.timestamp())
        if (decided := load("monitoring_decision")) is not None:
            for name in DECISIONS:
                self._decision.labels(name).set(name == decided["decision"])
            if decided["at"]:
                self._newest.set(datetime.fromisoformat(decided["at"]).timestamp())
        if (drift := load("drift")) is not None:
            self._show_drift(drift)
        if (quality := load("live_quality")) is not None:
            self._show_quality(quality)
        if (experiments := load("experiments")) is not None:
            self._show_experiments(experiments)

    def looked(self, at: float) -> None:
        """Say when the pipeline came to its end."""
        self._looked.set(at)

    def _show_drift(self, drift: Mapping[str, Any]) -> None:
        self._alarm.set(drift["alarm"])
        self._windows.set(len(drift["windows"]))
        self._waiting.set(drift["waiting"])
        for gauge in (self._score, self._minimum, self._feature):
            gauge.clear()
        for change in drift["windows"][-1]["changes"] if drift["windows"] else ():
            self._score.labels(change["feature"]).set(change["effect"])
            self._minimum.labels(change["feature"]).set(change["minimum"])
            self._feature.labels(change["feature"]).set(change["drifted"])

    def _show_quality(self, quality: Mapping[str, Any]) -> None:
        self._fallen.set(bool(quality["fallen"] and quality["fallen"]["fallen"]))
        self._too_low.set(len(quality["too_low"]) > bool(quality["fallen"] and quality["fallen"]["fallen"]))
        # a version that the log has forgotten is shown no more
        for gauge in (self._of, self._live, self._low):
            gauge.clear()
        for version in quality["versions"]:
            for name, kind in _KINDS.items():
                share, labels = version[name], (kind, str(version["version"]))
                self._of.labels(*labels).set(share["of"])
                if share["of"]:
                    self._live.labels(*labels).set(share["value"])
                    self._low.labels(*labels).set(share["low"])

    def _show_experiments(self, experiments: list[dict[str, Any]]) -> None:
        # one that ended is shown no more
        for gauge in (self._outcome, self._difference, self._subjects, self._guardrail):
            gauge.clear()
        self._mismatch.set(any(found["decision"] == "blocked" for found in experiments))
        for found in experiments:
            for outcome in OUTCOMES:
                self._outcome.labels(found["challenger"], outcome).set(outcome == found["decision"])
            for name, count in found["assignment"]["subjects"].items():
                self._subjects.labels(name).set(count)
            for bound in ("difference", "low", "high"):
                if found["primary"] and found["primary"][bound] is not None:
                    self._difference.labels(found["challenger"], bound).set(found["primary"][bound])
            for one in found["guardrails"]:
                self._guardrail.labels(found["challenger"], one["compared"]["metric"]).set(one["state"] == "broken")

    def deployments(self, lines: list[Line]) -> None:
        """Show the deployment log."""
        for action in ("promote", "rollback", "repair", "retrain", "end experiment"):
            self._deployments.labels(action).set(sum(line.action == action for line in lines))
        if lines:
            self._champion.set(lines[-1].version)
            self._deployed.set(datetime.fromisoformat(lines[-1].at).timestamp())
