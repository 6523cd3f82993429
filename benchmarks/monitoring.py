"""How often drift is found, and how often it is seen where there is none, on real text; how soon an experiment ends.

Worlds of drift: the messages of the project, and Banking77 where BANKING77 names its folder. A window has 200 messages.
Peers of the experiment: a test of fixed size with the same power. One core, some minutes.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy.stats import binomtest

from luthier.pipelines.monitoring.drift import Reference, alarm, compare

ROOT = Path(__file__).resolve().parents[1]
BANKING = Path(os.environ.get("BANKING77", ROOT.parent / "shared/data/banking77"))
NULL_WINDOWS = int(os.environ.get("DRIFT_NULL_WINDOWS", 500))
DRIFTED_WINDOWS = int(os.environ.get("DRIFT_WINDOWS", 100))
"""Threes of windows."""
WINDOW = 200
SEED = 7


def rows_of(texts: Sequence[str]) -> pd.DataFrame:
    """Return texts as the rows that are compared."""
    return pd.DataFrame({"text": list(texts), "characters": [len(text) for text in texts]})


def own_messages() -> pd.DataFrame:
    """Return text and intent of the project's messages; lines with planted defects are left out."""
    rows = []
    for line in (ROOT / "data/01_raw/support_messages.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            rows.append((row["body"].strip(), row["answer"]["intent"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return pd.DataFrame([row for row in rows if row[0] and isinstance(row[1], str)], columns=["text", "topic"])


def banking() -> pd.DataFrame:
    """Return text and topic of Banking77's training rows."""
    return pd.read_csv(BANKING / "train.csv").rename(columns={"category": "topic"})


@dataclass(frozen=True)
class World:
    """Messages that are usual, and others."""

    name: str
    usual: pd.DataFrame
    others: pd.DataFrame | None
    """None: half of the topics, drawn anew each time, are usual, and the other half are not."""
    reference: int
    """Messages of the reference."""

    def draw(self, random: Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return usual texts and others, each in an order of chance."""
        usual, others = self.usual, self.others
        if others is None:
            topics = random.permutation(sorted(usual["topic"].unique()))
            is_usual = usual["topic"].isin(topics[: len(topics) // 2])
            usual, others = usual[is_usual], usual[~is_usual]
        return random.permutation(usual["text"].to_numpy(object)), random.permutation(others["text"].to_numpy(object))


def worlds() -> list[World]:
    """Return what can be measured here."""
    own = own_messages()
    found = [World("own messages, half of the intents new", own, None, 400)]
    if (BANKING / "train.csv").exists():
        bank = banking()
        found += [
            World("Banking77, half of the topics new", bank, None, 4_000),
            World("own messages, Banking77 comes in", own, bank, 800),
        ]
    else:
        print(f"monitoring: there is no {BANKING / 'train.csv'}; set BANKING77 to the data set's folder", file=sys.stderr)
    return found


def measure(world: World) -> dict[str, float]:
    """Return the number of false alarms, the shares of windows found, and seconds a window."""
    false, mixed, alarms, full, seconds = 0, [], [], [], []
    for trial in range(NULL_WINDOWS):
        random = np.random.default_rng([SEED, trial])
        usual, others = world.draw(random)
        size = min(world.reference, len(usual) - WINDOW)
        reference, rest = Reference.of(rows_of(usual[:size])), usual[size:]
        start = time.monotonic()
        false += compare(reference, rows_of(rest[:WINDOW])).drifted
        seconds.append(time.monotonic() - start)
        if trial >= DRIFTED_WINDOWS:
            continue
        new = WINDOW * 3 // 10
        three = [
            np.concatenate([random.choice(rest, WINDOW - new, replace=False), others[at * new : (at + 1) * new]])
            for at in range(3)
        ]
        found = [compare(reference, rows_of(window)).drifted for window in three]
        mixed += found
        alarms.append(alarm(found))
        full.append(compare(reference, rows_of(others[:WINDOW])).drifted)
    return {
        "false": false,
        "mixed": float(np.mean(mixed)),
        "alarms": float(np.mean(alarms)),
        "full": float(np.mean(full)),
        "seconds": float(np.median(seconds)),
    }


def row(what: str, ours: float, unit: str, goal: str | None = None, peer: float | None = None) -> dict[str, Any]:
    """Make a row of the part's table."""
    kind = "info" if goal is None else "goal"
    return {"what": what, "ours": ours, "peer": peer, "unit": unit, "ratio": None, "kind": kind, "goal": goal}


def drift() -> list[dict[str, Any]]:
    """Measure every world of drift."""
    rows = []
    for world in worlds():
        found = measure(world)
        p = float(binomtest(int(found["false"]), NULL_WINDOWS, 0.01, alternative="greater").pvalue)
        rows += [
            row(
                f"{world.name}: false alarms (p of at most 1 %: {p:.2g})", 100 * found["false"] / NULL_WINDOWS, "%", "p >= 0.001"
            ),
            row(f"{world.name}: wholly new windows found", 100 * found["full"], "%", "100"),
            row(f"{world.name}: windows found, 30 % new", 100 * found["mixed"], "%", ">= 81"),
            row(f"{world.name}: alarms in three such windows", 100 * found["alarms"], "%", ">= 90"),
            row(f"{world.name}: a window", found["seconds"], "s"),
        ]
    return rows


def run() -> list[dict[str, Any]]:
    """Measure everything."""
    return drift()
