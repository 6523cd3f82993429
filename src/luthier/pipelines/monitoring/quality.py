"""Are the answers still good? What users say of them, and right answers that come later.

Both are shares, so their intervals are Wilson's (1927), and what is said to be too low is shown by a test that holds at every
look (`sequential`): too few votes show nothing, however bad they are. Of several votes of one subject the first counts, and
nobody counts twice.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from luthier.pipelines.monitoring.sequential import p_below
from luthier.pipelines.monitoring.subjects import OURS
from luthier.serving.records.labels import is_right
from luthier.serving.records.logged import LoggedTexts
from luthier.stats import wilson
from luthier.text.pii import PLACEHOLDER

_ODD = 0.01
_PROMPTS_READ = 5_000
"""Of the newest requests: if one of a hundred is no turns, so many show it."""


@dataclass(frozen=True)
class Share:
    """How many of some are good."""

    good: int
    of: int
    low: float | None
    """Of the 95 % interval; null if there are none."""
    high: float | None

    @classmethod
    def counted(cls, good: int, of: int) -> "Share":
        """Return a share with its interval."""
        if not of:
            return cls(0, 0, None, None)
        return cls(good, of, *wilson(good, of))

    @property
    def value(self) -> float | None:
        """The share itself."""
        return self.good / self.of if self.of else None

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self) | {"value": self.value}


def too_low(share: Share, least: float | None, alpha: float) -> bool:
    """Tell whether it is shown that the true share lies below a limit, however often one has looked."""
    if least is None or not share.of or least <= 0:
        return False
    return p_below(share.good, share.of, min(least, 1 - 1e-9)) <= alpha


def fallen(votes: "pd.Series[bool]", window: int, fall: float, alpha: float) -> dict[str, Any] | None:
    """Compare each of the newest windows of votes with all votes before it, by Fisher's exact test.

    Windows follow each other from the first vote on, so a look between two of them tests nothing anew; it has fallen if two of
    the last three windows say so, the newest among them.

    Args:
        votes: whether each is up, the oldest first.
        window: votes of one.
        fall: the smallest difference that counts.
        alpha: chance that a window is said to be lower though it is not.

    Returns:
        both shares and p of the newest window, and whether it has fallen; None while there are fewer than two windows.
    """
    whole = len(votes) // window
    if whole < 2:
        return None
    found = [
        _lower(votes.iloc[: n * window], votes.iloc[n * window : (n + 1) * window], fall, alpha)
        for n in range(max(1, whole - 3), whole)
    ]
    lower = [one.pop("lower") for one in found]
    return {**found[-1], "fallen": bool(lower[-1] and sum(lower) >= 2)}


def _lower(before: "pd.Series[bool]", now: "pd.Series[bool]", fall: float, alpha: float) -> dict[str, Any]:
    from scipy.stats import fisher_exact  # here, as every command would wait for it

    table = [[int(now.sum()), int((~now).sum())], [int(before.sum()), int((~before).sum())]]
    p = float(fisher_exact(table, alternative="less").pvalue)
    shares = [Share.counted(good, good + bad) for good, bad in table]
    drop = before.mean() - now.mean()
    return {"now": shares[0].as_dict(), "before": shares[1].as_dict(), "p": p, "lower": bool(p <= alpha and drop >= fall)}


def first_votes(votes: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the first vote of each subject on each version, the oldest first: `version`, `served`, `up`.

    Args:
        votes: from `luthier.serving.records.feedback.read_feedback`.
        name: of the votes that count.
    """
    counted = votes[((votes["name"] == name) & votes["rating"].isin(["up", "down"])).to_numpy(bool)].sort_values(
        ["at", "request"]
    )
    who = counted["subject"].fillna(counted["request"])
    counted = counted[~counted.assign(who=who).duplicated(["who", "version"]).to_numpy()]
    return pd.DataFrame(
        {"version": counted["version"], "served": counted["served"], "up": (counted["rating"] == "up").to_numpy(bool)}
    ).reset_index(drop=True)


def labelled(requests: pd.DataFrame, texts: LoggedTexts, labels: dict[str, Any]) -> pd.DataFrame:
    """Return the answers whose label came: `version`, `served`, `right`.

    Answers with personal data are left out: in the log placeholders stand for it, in the label does not.

    Args:
        requests: from `luthier.serving.records.logged.read_requests`.
        texts: of these requests; answers whose label came are read, and no others.
        labels: request -> right answer.
    """
    # who hung up has half an answer, which says nothing of the model
    whole = requests["error"].isna() | requests["error"].isin(OURS)
    known = requests[(requests["shadow_of"].isna() & whole & requests["request"].isin(list(labels))).to_numpy(bool)]
    answers = texts.of(known["request"].tolist())["answer"]
    told = np.array([isinstance(answer, str) and PLACEHOLDER.search(answer) is None for answer in answers], bool)
    known = known[told]
    right = [is_right(a, labels[r]) for r, a in zip(known["request"].tolist(), answers[told].tolist(), strict=True)]
    columns = {"version": known["version"], "served": known["served"], "right": np.array(right, bool)}
    return pd.DataFrame(columns).reset_index(drop=True)


def by_version(requests: pd.DataFrame, votes: pd.DataFrame, right: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what is known of each version that has answered.

    Args:
        requests: from `luthier.serving.records.logged.read_requests`.
        votes: from `first_votes`.
        right: from `labelled`.
    """
    shown = requests[(requests["shadow_of"].isna() & requests["version"].notna()).to_numpy(bool)]
    found = []
    for version in sorted(shown["version"].dropna().unique().tolist()):
        rows = shown[(shown["version"] == version).to_numpy(bool)]
        ups, rights = (table[(table["version"] == version).to_numpy(bool)] for table in (votes, right))
        failed = rows["error"].isin(OURS)
        found.append(
            {
                "version": int(version),
                "requests": len(rows),
                "broken_off": Share.counted(int(failed.sum()), len(rows)).as_dict(),
                "rating": Share.counted(int(ups["up"].sum()), len(ups)).as_dict(),
                "accuracy": Share.counted(int(rights["right"].sum()), len(rights)).as_dict(),
                "seconds": _quantiles(rows["seconds"]),
                "first_token_seconds": _quantiles(rows["first_token_seconds"]),
                "completion_tokens": _quantiles(rows["completion_tokens"]),
            }
        )
    return found


def _quantiles(values: "pd.Series[Any]") -> dict[str, float] | None:
    known = values.dropna().to_numpy(np.float64)
    return {f"{q:g}": float(np.quantile(known, q)) for q in (0.5, 0.95)} if len(known) else None


def checks(requests: pd.DataFrame, texts: LoggedTexts) -> list[dict[str, Any]]:
    """Return what is wrong with the log itself: with more than one request in a hundred, figures that rest on it are too.

    Args:
        requests: from `luthier.serving.records.logged.read_requests`.
        texts: of these requests; the newest prompts are read, and no others.
    """
    shown = requests[requests["shadow_of"].isna().to_numpy(bool)]
    answered = shown[shown["error"].isna().to_numpy(bool)]
    prompts = texts.of(shown["request"].tolist()[-_PROMPTS_READ:])["prompt"]
    told = {
        "answers without a version": (int(answered["version"].isna().sum()), len(shown)),
        "answers without tokens": (int(answered["completion_tokens"].isna().sum()), len(shown)),
        "requests that took no time": (int((shown["seconds"] <= 0).sum()), len(shown)),
        "prompts that are no turns": (sum(not _are_turns(prompt) for prompt in prompts.dropna()), len(prompts)),
    }
    return [{"check": name, "rows": count, "passed": count <= _ODD * of} for name, (count, of) in told.items()]


def _are_turns(prompt: str) -> bool:
    try:
        turns = json.loads(prompt)
    except ValueError:
        return False
    return isinstance(turns, list) and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns)
