"""Draw what monitoring sees."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUIET, _LOUD, _LINE = "#8fa3b8", "#b5541c", "#5b7a4d"


def plot_drift(drift: dict[str, Any]) -> "Figure":
    """Draw each feature's effect in each window, and the limit from which it counts."""
    from matplotlib.figure import Figure

    windows = [window for window in drift["windows"] if window["enough"]]
    features = sorted({change["feature"] for window in windows for change in window["changes"]})
    figure = Figure(figsize=(9, 1.2 + 1.15 * max(1, len(features))), layout="constrained")
    if not features:
        figure.text(
            0.5, 0.5, f"No window of {drift['window']} messages yet: {drift['waiting']} have come.", ha="center", color="#666"
        )
        return figure
    rows = figure.subplots(len(features), 1, sharex=True, squeeze=False)[:, 0]
    for axes, feature in zip(rows, features, strict=True):
        found = [next((c for c in window["changes"] if c["feature"] == feature), None) for window in windows]
        places = [window["window"] for window, change in zip(windows, found, strict=True) if change]
        changes = [change for change in found if change]
        colours = [_LOUD if change["drifted"] else _QUIET for change in changes]
        axes.bar(places, [change["effect"] for change in changes], color=colours, width=0.8)
        axes.axhline(changes[0]["minimum"], color="#999", linewidth=0.8, linestyle=":")
        axes.set_ylim(0, max(2 * changes[0]["minimum"], 1.15 * max(change["effect"] for change in changes)))
        axes.set_ylabel(feature.replace("_", " "), rotation=0, ha="right", va="center", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel(f"window of {drift['window']} messages; orange has drifted")
    rows[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_rating(versions: list[dict[str, Any]]) -> "Figure":
    """Draw the share of votes up, and of right answers, of each version, with its 95 % interval."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in ("rating", "accuracy") if any(version[kind]["of"] for version in versions)]
    figure = Figure(figsize=(9, 0.9 + 0.45 * max(1, len(versions) * len(kinds))), layout="constrained")
    axes = figure.subplots()
    rows = [(version, kind) for kind in kinds for version in versions if version[kind]["of"]]
    for place, (version, kind) in enumerate(rows):
        share = version[kind]
        axes.plot([share["low"], share["high"]], [place, place], color="#999", linewidth=1.5)
        axes.plot(share["value"], place, "o", color=_LINE if kind == "rating" else _LOUD)
    names = {"rating": "votes up", "accuracy": "right answers"}
    axes.set_yticks(
        range(len(rows)), [f"version {v['version']}, {names[kind]} ({v[kind]['of']})" for v, kind in rows], fontsize=9
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_experiment(found: dict[str, Any]) -> "Figure":
    """Draw the bounds of the difference, challenger minus control: of the primary metric and of each guardrail."""
    from matplotlib.figure import Figure

    rows = [(found["primary"], None, "")] if found["primary"] else []
    rows += [(one["compared"], one["margin"], one["state"]) for one in found["guardrails"]]
    figure = Figure(figsize=(9, 1.0 + 0.45 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    for place, (compared, margin, state) in enumerate(rows):
        low, high = compared["low"], compared["high"]
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=_LOUD if state == "broken" else _LINE, linewidth=2)
        if sum(compared["subjects"].values()):
            axes.plot(compared["difference"], place, "o", color="#222", markersize=4)
        if margin is not None:
            axes.plot([-margin, margin], [place, place], "|", color="#999", markersize=14)
    axes.axvline(0, color="#999", linewidth=0.8)
    labels = [f"{compared['metric'].replace('_', ' ')}{f' ({state})' if state else ''}" for compared, _, state in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"{found['challenger']} minus {found['control']}; bounds hold at every look, | are the margins")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
