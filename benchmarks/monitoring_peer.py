"""Evidently in an environment of its own (it does not import on pandas 3): which windows differ from the reference.

Reads {"reference": texts, "windows": [texts]} on stdin; writes what its preset says of each window, seconds and gigabytes.
"""

import json
import resource
import sys
import time

import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset

DEFINITION = DataDefinition(text_columns=["text"], numerical_columns=["characters"])


def dataset(texts: list[str]) -> Dataset:
    """Return texts and their lengths as it takes them."""
    return Dataset.from_pandas(
        pd.DataFrame({"text": texts, "characters": [len(text) for text in texts]}), data_definition=DEFINITION
    )


def main() -> None:
    """Judge each window."""
    said = json.load(sys.stdin)
    reference = dataset(said["reference"])
    found = []
    for window in said["windows"]:
        start = time.monotonic()
        metrics = Report([DataDriftPreset()]).run(dataset(window), reference).dict()["metrics"]
        seconds = time.monotonic() - start
        columns = {
            name: metric["value"]
            for metric in metrics
            for name in ("text", "characters")
            if f"column={name}," in metric["metric_name"]
        }
        share = next(metric["value"]["share"] for metric in metrics if metric["metric_name"].startswith("DriftedColumnsCount"))
        # its own thresholds: of the text the classifier's place among random ones, of the length the p-value
        found.append({"text": columns["text"] >= 0.95, "any": share >= 0.5, "seconds": seconds})
    json.dump({"windows": found, "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2}, sys.stdout)


if __name__ == "__main__":
    main()
