"""How often the gate passes a model that stands on the limit, and how often the usual tests would: the figures of docs/gate.md.

Peers: the one-sided t test and the BCa bootstrap of scipy, and the studentised bootstrap (scipy has none), at the same level on
the same rows. The gate's test of yes/no answers is not simulated: all outcomes are enumerated. One core, some minutes.

Prints the Markdown of docs/gate.md; the part's rows hold the figures of the gate and, as the peer's, of the t test.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import binom, bootstrap, nct, norm, ttest_1samp
from scipy.stats import t as student

from luthier.stats import (
    _score,  # the statistic of Tango's test, of which the gate's is the exact form
    needed_examples,
    p_mean_above,
    p_pairs_above,
    power_of_mean,
)

Floats = NDArray[np.float64]
ALPHA = 0.05
EVALUATIONS = int(os.environ.get("GATE_EVALUATIONS", 4_000))
DRAWS = 1_000
"""Of each bootstrap."""
SIZES = (30, 200, 1000)
BOOTSTRAPPED = (30, 200)
"""Examples at which the bootstraps are measured too."""
BATCH = 50
"""Evaluations that are computed together; they share a bootstrap's draws, as scipy has it."""
SEED = 7
SHARES_OF_DIFFERING = np.linspace(0, 1, 2_001)[1:-1]


@dataclass(frozen=True)
class World:
    """A truth that lies on the limit: whatever passes is a mistake."""

    name: str
    limit: float
    draw: Callable[[Generator, tuple[int, int]], tuple[Floats, Floats]]
    """Returns numerators and denominators of shape (evaluations, examples)."""
    least: float | None = -1.0
    """Smallest numerator that could be; None if there is none."""
    shares: tuple[float, float] | None = None
    """Of yes/no answers: the shares of gains and of losses."""


def pairs(random: Generator, shape: tuple[int, int], gains: float, losses: float) -> tuple[Floats, Floats]:
    """Draw differences of two yes/no answers."""
    chance = random.random(shape)
    values = (chance < gains).astype(float) - (chance > 1 - losses)
    return values, np.ones(shape)


def graded(random: Generator, shape: tuple[int, int], gain: float = 0.0, differing: float = 1.0) -> tuple[Floats, Floats]:
    """Draw differences of the field accuracies, of four fields, of two models that find the same messages hard.

    The second is better by `gain` in expectation; both answer alike in all but a share `differing` of the messages.
    """
    ease = random.beta(2, 1, shape)  # two thirds on average
    eased = ease + (1 - ease) * 3 * gain if gain > 0 else ease * (1 + 1.5 * gain)
    apart = (random.binomial(4, eased) - random.binomial(4, ease)) / 4
    return np.where(random.random(shape) < differing, apart, 0.0), np.ones(shape)


def harm(random: Generator, shape: tuple[int, int], share: float) -> tuple[Floats, Floats]:
    """Draw differences that are zero, but for a share of messages that go wholly wrong."""
    return -(random.random(shape) < share).astype(float), np.ones(shape)


def heavy_losses(random: Generator, shape: tuple[int, int], worse: float, degrees: float) -> tuple[Floats, Floats]:
    """Draw differences of losses with the tails of Student's t, and tokens."""
    tokens = random.integers(10, 60, shape).astype(float)
    return (random.standard_t(degrees, shape) * 0.1 - worse) * tokens, tokens


def rare_losses(random: Generator, shape: tuple[int, int], worse: float, sigma: float) -> tuple[Floats, Floats]:
    """Draw losses that are higher by a lognormal amount, and tokens: most of the harm is in few messages."""
    tokens = random.integers(10, 60, shape).astype(float)
    return -worse * random.lognormal(-(sigma**2) / 2, sigma, shape) * tokens, tokens


def yes_no(name: str, gains: float, losses: float) -> World:
    """Return a world of yes/no answers."""
    return World(name, gains - losses, partial(pairs, gains=gains, losses=losses), shares=(gains, losses))


WORLDS = (
    yes_no("two equal models, yes/no, unlike in a third of the messages", 1 / 6, 1 / 6),
    yes_no("yes/no worse by 0.05: 0.05 gained, 0.1 lost", 0.05, 0.1),
    World("two equal models, field accuracy of four fields", 0.0, graded),
    World("the same, alike in 9 of 10 messages", 0.0, partial(graded, differing=0.1)),
    World("worse by the margin 0.05, all over", -0.05, partial(graded, gain=-0.05)),
    World("worse by 0.05: one message in twenty wholly wrong", -0.05, partial(harm, share=0.05)),
    World("worse by 0.02: one message in fifty wholly wrong", -0.02, partial(harm, share=0.02)),
    World("two equal models, loss with heavy tails (t, 2.5 degrees)", 0.0, partial(heavy_losses, worse=0.0, degrees=2.5), None),
    World(
        "loss worse by the margin 0.05, heavy tails (t, 3 degrees)", -0.05, partial(heavy_losses, worse=0.05, degrees=3.0), None
    ),
    *(
        World(
            f"loss worse by 0.05, {told} (lognormal, sigma {sigma:g})", -0.05, partial(rare_losses, worse=0.05, sigma=sigma), None
        )
        for told, sigma in (("most of it in few messages", 1.0), ("nearly all in very few", 1.5))
    ),
)


# Yes/no answers, enumerated.


def fewest_gains(counts: NDArray[np.int64], passes: Callable[[int, int], bool]) -> NDArray[np.int64]:
    """Return, for each number of differing answers, the fewest gains with which a test passes, or one more than all."""
    found = []
    for count in counts:
        few, many = -1, int(count) + 1
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if passes(middle, int(count) - middle) else (middle, many)
        found.append(many)
    return np.array(found)


def chance_to_pass(size: int, gains: float, losses: float, passes: Callable[[int, int], bool]) -> float:
    """Return how often a test passes where these are the true shares of gains and losses."""
    differ = gains + losses
    counts = np.arange(binom.ppf(1e-9, size, differ), binom.isf(1e-9, size, differ) + 1).astype(int)
    reached = binom.sf(fewest_gains(counts, passes) - 1, counts, gains / differ)
    return float((binom.pmf(counts, size, differ) * reached).sum())


def worst_chance_to_pass(size: int, limit: float, passes: Callable[[int, int], bool]) -> float:
    """Return the largest chance to pass on the limit, over the share of examples in which two models differ."""
    counts = np.arange(size + 1)
    fewest = fewest_gains(counts, passes)
    differ = SHARES_OF_DIFFERING[abs(limit) <= SHARES_OF_DIFFERING][:, None]
    reached = binom.sf(fewest - 1, counts, np.clip((1 + limit / differ) / 2, 0, 1))
    return float((binom.pmf(counts, size, differ) * reached).sum(axis=1).max())


def exact_passes(gains: int, losses: int, size: int, limit: float) -> bool:
    """Tell whether the gate passes."""
    return p_pairs_above(gains, losses, size, limit) <= ALPHA


def mid_p_passes(gains: int, losses: int) -> bool:
    """Tell whether McNemar's conditional test passes with its mid-p-value."""
    differ = gains + losses
    return bool(binom.sf(gains, differ, 0.5) + binom.pmf(gains, differ, 0.5) / 2 <= ALPHA)


def tango_passes(gains: int, losses: int, size: int, limit: float) -> bool:
    """Tell whether Tango's score is larger than a normal number seldom is."""
    return bool(_score(gains, losses, size, limit) >= norm.isf(ALPHA))


# All others, simulated.


def gate_passes(world: World, numerators: Floats, denominators: Floats) -> NDArray[np.bool_]:
    """Tell in which evaluations the gate passes."""
    return p_mean_above(numerators, denominators, world.limit, world.least) <= ALPHA


def t_passes(values: Floats, limit: float) -> NDArray[np.bool_]:
    """Tell in which evaluations the t test passes; values without spread are taken at their word."""
    return ttest_1samp(values, limit, axis=1, alternative="greater").pvalue <= ALPHA


def bca_passes(values: Floats, limit: float, random: Generator) -> NDArray[np.bool_]:
    """Tell in which evaluations the lower bound of the BCa bootstrap lies above the limit."""
    drawn = bootstrap(
        (values,),
        np.mean,
        axis=1,
        n_resamples=DRAWS,
        confidence_level=1 - ALPHA,
        alternative="greater",
        method="BCa",
        rng=random,
    )
    low = drawn.confidence_interval.low
    return np.where(np.isnan(low), values.mean(axis=1), low) > limit  # none is computed of values without spread


def studentised_passes(values: Floats, limit: float, random: Generator) -> NDArray[np.bool_]:
    """Tell in which evaluations the lower bound of the studentised bootstrap lies above the limit."""
    size = values.shape[1]
    rows = random.integers(0, size, (DRAWS, size))
    times = np.apply_along_axis(np.bincount, 1, rows, minlength=size).astype(float)
    means, squares = values @ times.T / size, values**2 @ times.T / size
    variances = squares - means**2
    spreads = np.sqrt(np.where(variances > 1e-12 * squares, variances, 0))
    mean, spread = values.mean(axis=1), values.std(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.nan_to_num((means - mean[:, None]) / spreads, nan=0.0, posinf=np.inf, neginf=-np.inf)
        shift = np.quantile(distances, 1 - ALPHA, axis=1, method="higher") * spread
    return mean - np.where(spread > 0, shift, 0) > limit


@dataclass(frozen=True)
class Rate:
    """How often a test passes, in percent, and how far off that may be: 95 % of simulations lie this near."""

    percent: float
    error: float = 0.0


def simulate(world: World, size: int, random: Generator, bootstraps: bool) -> dict[str, Rate]:
    """Return how often each test passes."""
    passed: dict[str, list[float]] = {}
    for start in range(0, EVALUATIONS, BATCH):
        numerators, denominators = world.draw(random, (min(BATCH, EVALUATIONS - start), size))
        # a ratio is on its limit where the mean of these is zero; a mean stays as it is, so that equal values remain equal
        rows = (numerators, world.limit) if world.least is not None else (numerators - world.limit * denominators, 0.0)
        found = {"t": t_passes(*rows)}
        if world.shares is None:
            found["gate"] = gate_passes(world, numerators, denominators)
        if bootstraps:
            found["BCa"] = bca_passes(*rows, random)
            found["studentised"] = studentised_passes(*rows, random)
        for name, passes in found.items():
            passed.setdefault(name, []).append(float(passes.mean()))
    rates = {
        name: Rate(100 * float(np.mean(parts)), 196 * float(np.std(parts, ddof=1)) / len(parts) ** 0.5)
        for name, parts in passed.items()
    }
    if world.shares is not None:
        rates["gate"] = Rate(100 * chance_to_pass(size, *world.shares, partial(exact_passes, size=size, limit=world.limit)))
    return rates


def examples_for_a_gain() -> dict[str, tuple[int, float]]:
    """Return how many examples the gate and the t test need to see a gain of 0.05 in four evaluations of five, by their formulas.

    With each, the power that is simulated with so many, in percent.
    """
    gain, draw = 0.05, partial(graded, gain=0.05)
    random = np.random.default_rng(SEED)
    spread = float(draw(random, (EVALUATIONS, 500))[0].std())
    gate = needed_examples(partial(power_of_mean, distance=gain, spread=spread, reach=gain + 1, alpha=ALPHA))
    by_t = needed_examples(lambda size: float(nct.sf(student.isf(ALPHA, size - 1), size - 1, gain * size**0.5 / spread)))
    assert gate is not None
    assert by_t is not None
    world = World("a gain", 0.0, draw)
    found = {name: simulate(world, size, random, bootstraps=False)[name].percent for name, size in (("gate", gate), ("t", by_t))}
    return {"gate": (gate, found["gate"]), "t": (by_t, found["t"])}


# What is printed.


def table(rates: dict[tuple[str, int], dict[str, Rate]]) -> list[str]:
    """Return the lines of the Markdown table."""
    columns = [
        (size, test) for size in SIZES for test in ("gate", "t", *(("BCa", "studentised") if size in BOOTSTRAPPED else ()))
    ]
    heads = [f"{size:,}: {test}" if test == "gate" else test for size, test in columns]
    lines = ["| the truth is on the limit | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(columns)]
    for world in WORLDS:
        figures = " | ".join(f"{rates[world.name, size][test].percent:.1f}" for size, test in columns)
        lines.append(f"| {world.name} | {figures} |")
    return lines


def off_by(rates: dict[tuple[str, int], dict[str, Rate]]) -> str:
    """Return how far off the simulation is."""
    every = [rate for found in rates.values() for rate in found.values()]
    small = max(rate.error for rate in every if rate.percent < 10)
    return f"off by up to {small:.1f}, figures of 10 and more by up to {max(rate.error for rate in every):.1f} (95 %)"


def run() -> list[dict[str, Any]]:
    """Simulate every world, print the Markdown, and return the figures."""
    warnings.filterwarnings("ignore", module="scipy")  # values without spread, of which the tests above say what becomes
    rates = {
        (world.name, size): simulate(world, size, np.random.default_rng([SEED, number, size]), size in BOOTSTRAPPED)
        for number, world in enumerate(WORLDS)
        for size in SIZES
    }
    few = SIZES[0]
    worst = {
        (0.0, "mid-p"): worst_chance_to_pass(few, 0, mid_p_passes),
        (-0.1, "Tango's score"): worst_chance_to_pass(few, -0.1, partial(tango_passes, size=few, limit=-0.1)),
    }
    exact = {limit: worst_chance_to_pass(few, limit, partial(exact_passes, size=few, limit=limit)) for limit, _ in worst}
    needed = examples_for_a_gain()
    print(f"In percent of {EVALUATIONS:,} simulated evaluations (bootstraps: of {DRAWS:,} draws each), {off_by(rates)}.")
    print("The gate's figures for yes/no are exact.\n", *table(rates), "", sep="\n")
    rows = [
        row(f"passes on the limit: {name}, {size:,} examples", found["gate"].percent, found["t"].percent, "%")
        for (name, size), found in rates.items()
    ]
    for (limit, peer), level in worst.items():
        what = f"yes/no, {few} examples, limit {limit:g}: passes at most, however many answers differ; the peer is {peer}"
        rows.append(row(what, 100 * exact[limit], 100 * level, "%", goal=100 * ALPHA))
    what = "examples for a power of 80 %, field accuracy better by 0.05"
    rows.append(row(what, needed["gate"][0], needed["t"][0], "examples"))
    rows.append(row("power with so many", needed["gate"][1], needed["t"][1], "%"))
    return rows


def row(what: str, ours: float, peer: float, unit: str, goal: float | None = None) -> dict[str, Any]:
    """Make a row of the part's table, in which the t test is the peer unless it says otherwise; a goal is the most allowed."""
    kind = "info" if goal is None else "goal"
    return {"what": what, "ours": ours, "peer": peer, "unit": unit, "ratio": None, "kind": kind, "goal": goal}
