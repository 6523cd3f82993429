"""What do slips of the keyboard cost? The same messages once more, by kind of noise, and the paired drop of each metric."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from luthier.configuration import Parameters
from luthier.errors import UserError, did_you_mean
from luthier.pipelines.evaluation.score import means_of
from luthier.records import user_text
from luthier.stats import mean_of
from luthier.text.extracted import extracted_texts
from luthier.text.noise import Noise, add_noise

Record = Mapping[str, Any]
_ATTEMPTS = 8  # a draw that loses a value of the answer, or changes nothing, is drawn again

_STILL = {"neighbour": 0.0, "dropped": 0.0, "doubled": 0.0, "swapped": 0.0, "lower": 0.0, "upper": 0.0, "unpunctuated": 0.0}
KINDS: Mapping[str, Noise] = {
    # about one letter in fifteen is wrong: a phone, in a hurry
    "typos": Noise(**{**_STILL, "neighbour": 0.02, "dropped": 0.02, "doubled": 0.01, "swapped": 0.02}),
    "casing": Noise(**{**_STILL, "lower": 0.5, "upper": 0.5}),
    # all of it at once
    "noise": Noise(neighbour=0.02, dropped=0.02, doubled=0.01, swapped=0.02, lower=0.5, upper=0.1, unpunctuated=0.8),
}


class Robustness(Parameters):
    """What is done to the messages."""

    kinds: dict[str, Noise] = Field(default_factory=dict)
    """Names of known kinds (`[typos, casing, noise]`), or kinds of your own by name (`{hasty: {dropped: 0.1}}`)."""
    protect: tuple[str, ...] | None = None
    """Fields of a JSON answer whose text, where the message holds it, must survive; null: all of them; empty: none.
    A plain answer is one text, which survives unless this is empty."""

    @field_validator("kinds", mode="before")
    @classmethod
    def _known(cls, kinds: Any) -> Any:
        if not isinstance(kinds, list | tuple):
            return kinds
        unknown = [f"{name!r}{did_you_mean(str(name), KINDS)}" for name in kinds if name not in KINDS]
        if unknown:
            raise ValueError(f"no kind of noise {', '.join(unknown)}; known: {', '.join(KINDS)}")
        return {name: KINDS[name] for name in kinds}


def perturb(records: Sequence[Record], parameters: Robustness, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return, for each kind of noise, the records whose user's turns it changed, changed.

    A record keeps its `id` and its right answer. What the answer takes from the message is there after it as before; a
    record in which that cannot be had, or nothing can be changed, is left out. The same seed gives the same texts, whatever
    the order of records.

    Args:
        records: `id` and `messages`, the last one the right answer.
        parameters: kinds, and what to protect.
        seed: of all draws.
    """
    return {
        kind: [changed for record in records if (changed := _perturbed(record, noise, parameters.protect, f"{seed}:{kind}"))]
        for kind, noise in parameters.kinds.items()
    }


def _perturbed(record: Record, noise: Noise, protect: Sequence[str] | None, seed_key: str) -> dict[str, Any] | None:
    messages = list(record["messages"])
    before = user_text(messages[:-1])
    needed = extracted_texts(messages, protect)
    for attempt in range(_ATTEMPTS):
        noisy = [
            {**message, "content": add_noise(message["content"], noise, f"{seed_key}:{record['id']}:{turn}:{attempt}")}
            if message["role"] == "user"
            else dict(message)
            for turn, message in enumerate(messages)
        ]
        after = user_text(noisy[:-1])
        if after != before and all(text in after for text in needed):
            return {**record, "messages": noisy}
    return None


def drops(clean: pd.DataFrame, noisy: Mapping[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """Return what each kind of noise costs each model, on the messages that it changed.

    Args:
        clean: scores of the messages as they are.
        noisy: scores of the changed messages by kind; a part of the same ids is enough.
        seed: of the bootstrap.

    Returns:
        columns `kind`, `model`, `metric`, `examples`, `clean`, `noisy`, `drop` (clean minus noisy), `low`, `high`: paired, with
        the 95 % bootstrap interval of the drop. Metrics are those that both have, by the names that
        `score.compare` gives them.

    Raises:
        UserError: if a changed message was never scored as it is.
    """
    rows = []
    for kind, scores in noisy.items():
        for model, table in scores.groupby("model", sort=True):
            before = clean[clean["model"] == model].set_index("id")
            after = table.sort_values("id").set_index("id")
            missing = after.index.difference(before.index)
            if len(missing):
                raise UserError(
                    f"{len(missing)} messages changed by {kind} were not answered unchanged by {model}: {missing[0]} ..."
                )
            before = before.loc[after.index]
            means = means_of(before)
            for metric, column in means_of(after).items():
                if metric not in means:
                    continue
                one, other = before[column].to_numpy(dtype=np.float64), after[column].to_numpy(dtype=np.float64)
                cost = mean_of(one - other, seed)
                figures = {"clean": float(one.mean()), "noisy": float(other.mean())}
                bounds = {"drop": cost.value, "low": cost.low, "high": cost.high}
                rows.append({"kind": kind, "model": model, "metric": metric, "examples": len(one), **figures, **bounds})
    return pd.DataFrame(rows, columns=["kind", "model", "metric", "examples", "clean", "noisy", "drop", "low", "high"])
