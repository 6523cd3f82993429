"""What a registered version says about itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from luthier.errors import UserError

Gate = Literal["pass", "fail", "undecided", "none"]

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"


@dataclass(frozen=True)
class Version:
    """A registered version of the model."""

    number: int
    aliases: tuple[str, ...]
    """Aliases that point to it; `champion` and `previous` as the log says."""
    manifest: str
    """Root sha256 of its package; empty if it was not registered by Luthier."""
    gate: str
    """The gate's decision: pass, fail, undecided or none."""
    figures: dict[str, float]
    """Metric -> value, the main ones first."""
    data: dict[str, str]
    """Data set -> sha256."""
    run: str
    """The MLflow run that made it."""
    commit: str
    created: str
    """When it was registered, ISO 8601 in UTC."""
    source: str
    """Where its package lies in the artefact store."""

    def must_be_ours(self) -> None:
        """Refuse a version that others registered.

        Raises:
            UserError: if there is no hash to check its package by.
        """
        if not self.manifest:
            raise UserError(
                f"Version {self.number} was not registered by Luthier: it has no tag luthier.manifest to check it by."
            )


def read_tags(number: int, tags: Mapping[str, str], run_id: str | None, created: int, source: str) -> Version:
    """Return the version that MLflow keeps in these values; its aliases are kept elsewhere.

    Args:
        number: of the version.
        tags: what `written_tags` made of it.
        run_id: the MLflow run, as MLflow has it.
        created: milliseconds since 1970.
        source: where its package lies.
    """
    return Version(
        number=number,
        aliases=(),
        manifest=tags.get("luthier.manifest", ""),
        gate=tags.get("luthier.gate", "none"),
        figures=json.loads(tags.get("luthier.figures", "{}")),
        data=json.loads(tags.get("luthier.data", "{}")),
        run=tags.get("luthier.run") or run_id or "",
        commit=tags.get("luthier.commit", "unknown"),
        created=datetime.fromtimestamp(created / 1000, UTC).isoformat(timespec="seconds"),
        source=source,
    )


def written_tags(
    manifest: str, gate: Gate, figures: Mapping[str, float], data: Mapping[str, str], run: str, commit: str
) -> dict[str, str]:
    """Return the tags in which MLflow keeps what a version says about itself."""
    return {
        "luthier.manifest": manifest,
        "luthier.data": json.dumps(dict(data), sort_keys=True),
        "luthier.run": run,
        "luthier.commit": commit,
        "luthier.gate": gate,
        "luthier.figures": json.dumps(dict(figures)),
    }
