"""Show what monitoring found: one HTML page without any outside resource."""

from typing import Any

import pandas as pd

from luthier.pages import as_svg, render_page
from luthier.pipelines.monitoring import plots
from luthier.pipelines.monitoring.drift import SCALES


def as_html(
    observed: pd.DataFrame,
    drift: dict[str, Any],
    quality: dict[str, Any],
    experiments: list[dict[str, Any]],
    decided: dict[str, Any],
) -> str:
    """Write the page.

    Args:
        observed: from `observe.observe`.
        drift: from `nodes.measure_drift`.
        quality: from `nodes.measure_quality`.
        experiments: from `nodes.analyse_experiment`.
        decided: from `decision.decide`.
    """
    rated = any(version[kind]["of"] for version in quality["versions"] for kind in ("rating", "accuracy"))
    return render_page(
        "luthier.pipelines.monitoring",
        "report.html",
        {"share": _share, "seconds": _seconds},
        observed=len(observed),
        drift=drift,
        newest=drift["windows"][-3:][::-1],
        scales=SCALES,
        drawn=as_svg(plots.plot_drift(drift)),
        quality=quality,
        rating=as_svg(plots.plot_rating(quality["versions"])) if rated else "",
        experiments=[found | {"drawn": as_svg(plots.plot_experiment(found)), "rows": _rows(found)} for found in experiments],
        decided=decided,
    )


def _rows(found: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return what was compared, and what is known of it."""
    primary = [(found["primary"], "primary")] if found["primary"] else []
    return primary + [(one["compared"], one["state"]) for one in found["guardrails"]]


def _share(share: dict[str, Any]) -> str:
    """Return a share with its interval.

    >>> _share({"good": 3, "of": 4, "value": 0.75, "low": 0.3, "high": 0.95})
    '0.750 [0.300, 0.950] of 4'
    """
    return f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}] of {share['of']}" if share["of"] else "-"


def _seconds(quantiles: dict[str, float] | None) -> str:
    return f"{quantiles['0.5']:.2f}, {quantiles['0.95']:.2f}" if quantiles else "-"
