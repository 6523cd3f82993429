"""How often drift is found, and how often it is seen where there is none, on real text; how soon an experiment ends.

Worlds of drift: the messages of the project, and Banking77 where BANKING77 names its folder. A window has 200 messages.
Peers of the experiment: a test of fixed size with the same power. One core, some minutes.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy.stats import binomtest, norm

from data import environment
from luthier.pipelines.monitoring.changes import what_changed
from luthier.pipelines.monitoring.drift import Reference, alarm, compare
from luthier.pipelines.monitoring.sequential import Arm, p_above

ROOT = Path(__file__).resolve().parents[1]
BANKING = Path(os.environ.get("BANKING77", ROOT.parent / "shared/data/banking77"))
NULL_WINDOWS = int(os.environ.get("DRIFT_NULL_WINDOWS", 500))
DRIFTED_WINDOWS = int(os.environ.get("DRIFT_WINDOWS", 100))
"""Threes of windows."""
WINDOW = 200
LARGE_WINDOW = 100_000
PEER_WINDOWS = int(os.environ.get("EVIDENTLY_WINDOWS", 30))
"""Of each kind: Evidently takes seconds for one."""
EXPERIMENTS = 2_000
VOTES, LOOK, ALPHA, MARGIN = 20_000, 50, 0.025, 0.05
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


def evidently() -> list[dict[str, Any]]:
    """Let ours and Evidently judge the same windows of each world: `make bench PART=monitoring-evidently`."""
    python = environment("evidently")
    return [] if python is None else [found for world in worlds() for found in _against(world, python)]


def _against(world: World, python: Path) -> list[dict[str, Any]]:
    random = np.random.default_rng([SEED, 1])
    usual, others = world.draw(random)
    size = min(world.reference, len(usual) - WINDOW)
    reference, rest, new = usual[:size], usual[size:], WINDOW * 3 // 10
    kinds: dict[str, list[np.ndarray]] = {"false alarms": [], "30 % new": [], "wholly new": []}
    for _ in range(PEER_WINDOWS):
        kinds["false alarms"].append(random.choice(rest, WINDOW, replace=False))
        mixed = (random.choice(rest, WINDOW - new, replace=False), random.choice(others, new, replace=False))
        kinds["30 % new"].append(np.concatenate(mixed))
        kinds["wholly new"].append(random.choice(others, WINDOW, replace=False))
    windows = [window.tolist() for kind in kinds.values() for window in kind]
    said = json.dumps({"reference": reference.tolist(), "windows": windows})
    script = [str(python), str(ROOT / "benchmarks/monitoring_peer.py")]
    theirs = json.loads(subprocess.run(script, input=said, check=True, capture_output=True, text=True).stdout)
    ours, seconds = [], []
    known = Reference.of(rows_of(reference))
    for window in windows:
        start = time.monotonic()
        ours.append(compare(known, rows_of(window)).drifted)
        seconds.append(time.monotonic() - start)
    rows = []
    for number, kind in enumerate(kinds):
        mine, peers = (found[number * PEER_WINDOWS : (number + 1) * PEER_WINDOWS] for found in (ours, theirs["windows"]))
        for name, told in (("any", "its preset"), ("text", "its test of the text alone")):
            peer = 100 * float(np.mean([one[name] for one in peers]))
            rows.append(row(f"{world.name}: {kind}, against Evidently, {told}", 100 * float(np.mean(mine)), "%", peer=peer))
    took = float(np.median([one["seconds"] for one in theirs["windows"]]))
    rows.append(row(f"{world.name}: a window, against Evidently", float(np.median(seconds)), "s", "< peer", took))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return [*rows, row(f"{world.name}: memory of the process", memory, "GB", peer=theirs["gigabytes"])]


def large() -> list[dict[str, Any]]:
    """Measure a window of 100,000 requests in a process of its own, whose memory is nobody else's."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import monitoring; monitoring.analyse_large()"
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return [
        row(f"a window of {LARGE_WINDOW:,}: drift and what changed", found["seconds"], "s", "<= 30"),
        row(f"a window of {LARGE_WINDOW:,}: memory of the process", found["gigabytes"], "GB", "<= 1"),
    ]


def analyse_large() -> None:
    """Analyse 100,000 messages of the project's kind, and print seconds and gigabytes as JSON."""
    texts = own_messages()["text"].to_numpy(object)
    random = np.random.default_rng(SEED)

    def made(size: int) -> pd.DataFrame:
        # halves of two messages each: as many different texts, of the same length, as real traffic has
        first, second = (random.choice(texts, size) for _ in range(2))
        pairs = [one[: len(one) // 2] + " " + two[len(two) // 2 :] for one, two in zip(first, second, strict=True)]
        names = random.choice(["en", "de", "fr"], size, p=[0.8, 0.15, 0.05])
        labels = random.choice([f"label {number}" for number in range(20)], size)
        return rows_of(pairs).assign(language=names, label=labels, pii=random.poisson(0.3, size))

    expected, window = made(5_000), made(LARGE_WINDOW)
    start = time.monotonic()
    compare(Reference.of(expected), window)
    what_changed(expected, window)
    seconds = time.monotonic() - start
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "gigabytes": kilobytes / 1024**2}))


def ends(shares: tuple[float, float], seed: int) -> np.ndarray:
    """Return the votes after which each experiment shows the challenger to be better; infinite if never.

    Args:
        shares: of thumbs up, the challenger's and the control's.
        seed: of the votes.
    """
    random = np.random.default_rng(seed)
    looks = np.arange(LOOK, VOTES + 1, LOOK)
    sizes = np.cumsum(random.binomial(LOOK, 0.5, (EXPERIMENTS, len(looks))), axis=1)
    arms = []
    for size, share in zip((sizes, looks - sizes), shares, strict=True):
        mean = np.cumsum(random.binomial(np.diff(size, axis=1, prepend=0), share), axis=1) / np.maximum(size, 1)
        arms.append(Arm(size, mean, mean * (1 - mean) * size / np.maximum(size - 1, 1)))
    found = p_above(*arms, 0.0, MARGIN) <= ALPHA
    return np.where(found.any(axis=1), looks[found.argmax(axis=1)], np.inf)


def experiment() -> list[dict[str, Any]]:
    """Measure how often an experiment of two equal variants has a winner, and how soon a better one is found."""
    false = int(np.isfinite(ends((0.6, 0.6), SEED)).sum())
    p = float(binomtest(false, EXPERIMENTS, ALPHA, alternative="greater").pvalue)
    what = f"two equal variants, {VOTES:,} votes, a look every {LOOK}: false winners (p of at most {ALPHA:.1%}: {p:.2g})"
    rows = [row(what, 100 * false / EXPERIMENTS, "%", "p >= 0.001")]
    found = ends((0.65, 0.6), SEED + 1)
    for power in (0.8, 0.9, 0.95):
        horizon = float(np.quantile(found, power))
        fixed = 2 * (0.65 * 0.35 + 0.6 * 0.4) * ((norm.isf(ALPHA) + norm.ppf(power)) / 0.05) ** 2
        what = f"5 points on 60 % with a power of {power:.0%}, given up after {horizon:,.0f}: subjects; peer: fixed size"
        rows.append(row(what, float(np.minimum(found, horizon).mean()), "subjects", "< peer", float(fixed)))
    return rows


def run() -> list[dict[str, Any]]:
    """Measure everything."""
    return [*experiment(), *large(), *drift()]
