"""From requests and votes to one row a subject: people differ, and who asks most does not count most."""

from typing import get_args

import numpy as np
import pandas as pd

from luthier.serving.api.errors import OurCode

OURS = frozenset(get_args(OurCode))
"""Errors that count against a variant."""


def subjects_of(requests: pd.DataFrame, votes: pd.DataFrame, experiment: str, vote: str = "helpful") -> pd.DataFrame:
    """Return one row for each subject of an experiment, by the variant that it was assigned (intention to treat).

    Whatever answered in the end, a subject counts for its assigned variant: a fallback from a broken challenger would otherwise
    count for the control. Requests without a subject or a variant, and shadows, which nobody sees, are left out.

    Of several votes the first one counts: so each subject is one draw, and nobody decides by voting often.

    Args:
        requests: from `luthier.serving.records.logged.read_requests`.
        votes: from `luthier.serving.records.feedback.read_feedback`.
        experiment: its id.
        vote: name of the votes that count.

    Returns:
        indexed by subject: `assigned` at first, `variants` (number of different ones), `first` (when it came); `errors` (share of
        requests), `log_seconds` and `log_characters` (mean logarithm of time and of length of answers; NaN if there is none),
        `voted` (share of answers), `rating` (1 up, 0 down, NaN without a vote).
    """
    counted = (requests["experiment"] == experiment) & requests["assigned"].notna() & requests["subject"].notna()
    rows = requests[counted.fillna(False).to_numpy(bool) & requests["shadow_of"].isna().to_numpy()].sort_values(["at", "request"])
    ours = votes[(votes["name"] == vote).fillna(False).to_numpy(bool) & votes["rating"].isin(["up", "down"]).to_numpy()]
    ours = ours[ours["request"].isin(rows["request"])].sort_values(["at", "request"])
    answered = rows["error"].isna().to_numpy()
    table = pd.DataFrame(
        {
            "subject": rows["subject"].astype(str),
            "assigned": rows["assigned"].astype(str),
            "at": rows["at"],
            "errors": rows["error"].isin(OURS).to_numpy(np.float64),
            "log_seconds": _log(rows["seconds"], answered),
            "log_characters": _log(rows["answer_characters"], answered),
            "voted": np.where(answered, rows["request"].isin(ours["request"]), np.nan),
        }
    )
    by_subject = table.groupby("subject")
    first = by_subject.agg(assigned=("assigned", "first"), variants=("assigned", "nunique"), first=("at", "first"))
    means = by_subject[["errors", "log_seconds", "log_characters", "voted"]].mean()
    subject_of = rows.set_index("request")["subject"].astype(str)
    rated = ours.assign(subject=subject_of.reindex(ours["request"]).to_numpy()).groupby("subject")["rating"].first()
    return first.join(means).join((rated == "up").astype(np.float64).rename("rating"))


def _log(column: "pd.Series[float]", answered: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> "pd.Series[float]":
    values = column.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    seen = answered & (values > 0)
    return pd.Series(np.log(np.where(seen, values, np.nan)), index=column.index)
