"""The steps of monitoring."""

import logging
from typing import Any

import pandas as pd

from luthier.configuration import DataParameters, FolderParameters
from luthier.errors import UserError
from luthier.pipelines.monitoring import decision, drift, experiment, observe, plots, quality, report
from luthier.pipelines.monitoring.changes import what_changed
from luthier.pipelines.monitoring.parameters import MonitoringParameters
from luthier.pipelines.monitoring.subjects import subjects_of
from luthier.serving.parameters import ServingParameters, experiment_file, running_experiment
from luthier.serving.records.labels import read_labels
from luthier.serving.records.logged import LoggedTexts
from luthier.shards import Shards

logger = logging.getLogger(__name__)


def read_log(requests: pd.DataFrame, feedback: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the log once: every step after this one sees the same rows, whatever comes in meanwhile."""
    logger.info("%s requests and %s votes are in the log", f"{len(requests):,}", f"{len(feedback):,}")
    return requests, feedback


def observe_requests(
    requests: pd.DataFrame,
    request_texts: LoggedTexts,
    split_records: Shards,
    data: DataParameters,
    parameters: MonitoringParameters,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cut the requests into windows, and lay the training messages beside them."""
    seen = observe.observe(requests, request_texts, parameters.drift.window, parameters.drift.windows, data)
    windows, waiting = seen.loc[seen["window"] >= 0, "window"].nunique(), int((seen["window"] == -1).sum())
    logger.info("%s messages observed: %d windows, %d messages of the next", f"{len(seen):,}", windows, waiting)
    return seen, observe.reference_of(split_records, parameters.drift.reference_rows)


def measure_drift(observed: pd.DataFrame, reference: pd.DataFrame, parameters: MonitoringParameters) -> dict[str, Any]:
    """Compare each window with the training messages, and say what has changed in the newest that drifted.

    Labels are shown and not tested: a window has those of the model's answers, which differ from the right ones by its errors.
    """
    known, rule = drift.Reference.of(reference.drop(columns="label", errors="ignore")), parameters.drift.rule()
    windows, changed = [], None
    for number, rows in observed[observed["window"] >= 0].groupby("window", sort=True):
        found = drift.compare(known, rows, rule)
        if found.drifted:
            changed = what_changed(reference, rows).as_dict()
        windows.append({"window": number, "from": _time(rows["at"].min()), "until": _time(rows["at"].max()), **found.as_dict()})
    drifted = [window["drifted"] for window in windows]
    alarm = drift.alarm(drifted)
    logger.info("%d of %d windows have drifted%s", sum(drifted), len(drifted), ": alarm" if alarm else "")
    waiting = int((observed["window"] == -1).sum())
    return {
        "alarm": alarm,
        "windows": windows,
        "waiting": waiting,
        "window": parameters.drift.window,
        "reference": len(reference),
        "what_changed": changed,
    }


def measure_quality(
    requests: pd.DataFrame,
    request_texts: LoggedTexts,
    feedback: pd.DataFrame,
    serving: ServingParameters,
    parameters: MonitoringParameters,
    folders: FolderParameters,
) -> dict[str, Any]:
    """Say of each version how good its answers are, as far as anybody said so."""
    settings = parameters.quality
    votes = quality.first_votes(feedback, settings.vote)
    labels = read_labels(folders.locate(settings.labels)) if settings.labels else {}
    right = quality.labelled(requests, request_texts, labels)
    versions = quality.by_version(requests, votes, right)
    too_low: list[str] = []
    fallen: dict[str, Any] | None = None
    if versions:
        newest = _version_in_production(requests, _variants(serving, folders)[2])
        for what, table, column, least in (
            ("votes are up", votes, "up", settings.least_rating),
            ("answers are right", right, "right", settings.least_accuracy),
        ):
            mine = table[(table["version"] == newest).to_numpy(bool)]
            share = quality.Share.counted(int(mine[column].sum()), len(mine))
            if quality.too_low(share, least, settings.alpha):
                too_low.append(f"Only {share.good} of {share.of} {what} of version {newest}: fewer than {least:.0%}.")
        fallen = quality.fallen(
            votes[(votes["version"] == newest).to_numpy(bool)]["up"], settings.window, settings.fall, settings.alpha
        )
        if fallen is not None and fallen["fallen"]:
            now, before = fallen["now"]["value"], fallen["before"]["value"]
            too_low.append(f"Of the newest votes on version {newest}, {now:.0%} are up; {before:.0%} were before.")
    return {
        "requests": len(requests),
        "until": _time(requests["at"].max()) if len(requests) else None,
        "checks": quality.checks(requests, request_texts),
        "versions": versions,
        "votes": len(votes),
        "labels": len(right),
        "fallen": fallen,
        "too_low": too_low,
    }


def analyse_experiment(
    requests: pd.DataFrame,
    feedback: pd.DataFrame,
    serving: ServingParameters,
    parameters: MonitoringParameters,
    folders: FolderParameters,
) -> list[dict[str, Any]]:
    """Compare each challenger of the running experiment with its control."""
    name, weights, control, challengers = _variants(serving, folders)
    if not challengers:
        return []
    subjects = subjects_of(requests, feedback, name, parameters.quality.vote)
    if strange := sorted(set(subjects["assigned"]) - weights.keys()):
        raise UserError(
            f"Experiment {name} has subjects of the variant {strange[0]!r}, which it no longer has: its variants were changed. "
            "Give the new one an id of its own (serving.experiment.id): then subjects are dealt anew."
        )
    found = []
    for challenger in challengers:
        told = experiment.decide(subjects, parameters.experiment.plan(control, challenger, weights)).as_dict()
        served = {variant: _versions_of(requests, name, variant) for variant in (control, challenger)}
        for variant, versions in served.items():
            if len(versions) > 1:  # a promotion, or a new candidate, behind the name
                why = f"{variant} was {' and then '.join(f'version {one}' for one in versions)}: give a new experiment a new id."
                told |= {"decision": "blocked", "why": why}
        told |= {
            "experiment": name,
            "control": control,
            "challenger": challenger,
            "version": served[challenger][-1] if served[challenger] else None,
        }
        logger.info("Experiment %s, %s against %s: %s. %s", name, challenger, control, told["decision"], told["why"])
        found.append(told)
    return found


def _versions_of(requests: pd.DataFrame, experiment: str, variant: str) -> list[int]:
    """Return the versions that answered as a variant, in the order in which they came."""
    answered = (requests["served"] == variant) & (requests["experiment"] == experiment) & requests["version"].notna()
    versions = requests[answered.fillna(False).to_numpy(bool) & requests["shadow_of"].isna().to_numpy()]["version"]
    return [int(version) for version in versions.unique()]


def _variants(serving: ServingParameters, folders: FolderParameters) -> tuple[str, dict[str, float], str, list[str]]:
    """Return the running experiment's id, the weight of each variant, the control, and the others that have a share."""
    running = running_experiment(experiment_file(folders), serving.experiment)
    weights = {variant.name: variant.weight for variant in running.variants}
    control, *challengers = [name for name, weight in weights.items() if weight > 0] or [running.variants[0].name]
    return running.id, weights, control, challengers


def _version_in_production(requests: pd.DataFrame, control: str) -> int:
    """Return the version that last answered as the control; where none did, that last answered at all."""
    shown = requests[(requests["shadow_of"].isna() & requests["version"].notna()).to_numpy(bool)]
    ours = shown[(shown["served"] == control).fillna(False).to_numpy(bool)]
    return int((ours if len(ours) else shown)["version"].iloc[-1])


def decide(drift: dict[str, Any], live_quality: dict[str, Any], experiments: list[dict[str, Any]]) -> dict[str, Any]:
    """Decide what is to be done."""
    found = decision.decide(drift, live_quality, experiments)
    logger.info("Decision: %s. %s", found["decision"], " ".join(found["why"]))
    return found


def log_monitoring(drift: dict[str, Any], live_quality: dict[str, Any], decided: dict[str, Any]) -> None:
    """Log figures and decision to the MLflow run that is active, if one is; what users wrote stays out of it."""
    import mlflow

    if not mlflow.active_run():
        return
    figures = {
        "monitoring/requests": float(live_quality["requests"]),
        "monitoring/votes": float(live_quality["votes"]),
        "monitoring/drift_alarm": float(drift["alarm"]),
    }
    if drift["windows"]:
        figures |= {f"monitoring/drift/{change['feature']}": change["effect"] for change in drift["windows"][-1]["changes"]}
    for version in live_quality["versions"]:
        for name in ("rating", "accuracy", "broken_off"):
            if version[name]["value"] is not None:
                figures[f"monitoring/{name}/version_{version['version']}"] = version[name]["value"]
    mlflow.log_metrics(figures)
    mlflow.log_dict(decided, "monitoring_decision.json")
    mlflow.set_tag("luthier.monitoring", decided["decision"])


def report_monitoring(
    observed: pd.DataFrame,
    drift: dict[str, Any],
    live_quality: dict[str, Any],
    experiments: list[dict[str, Any]],
    decided: dict[str, Any],
) -> tuple[str, Any]:
    """Show it to people: a page, and the picture of the windows."""
    return report.as_html(observed, drift, live_quality, experiments, decided), plots.plot_drift(drift)


def _time(at: pd.Timestamp) -> str:
    return at.isoformat(timespec="seconds")
