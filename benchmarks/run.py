"""Run the benchmarks: `make bench`, or `make bench PART=training` for one part.

Each part is a module here with a function `run() -> list[dict]` of rows with what, ours, peer, unit, ratio, kind and goal;
`data-memory` is the function `memory` of the module `data`.
The table is printed and written to data/08_reporting/bench/PART.json with the machine and the versions.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from luthier.artefacts import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "training",
    "banking77",
    "data",
    "data-memory",
    "data-scaling",
    "generation",
    "gate",
    "serving",
    "monitoring",
    "monitoring-evidently",
)


def machine() -> dict[str, object]:
    """Describe the machine and the versions that the figures belong to."""
    names = ("torch", "transformers", "accelerate", "peft", "luthier")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def show(part: str, rows: list[dict]) -> None:
    """Print the table of a part."""
    table = Table(title=part, title_justify="left")
    for column in ("what", "ours", "peer", "unit", "ratio, median [low, high]", "goal"):
        table.add_column(column)
    for row in rows:
        ratio = row["ratio"]
        told = f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "-"
        peer = "-" if row["peer"] is None else f"{row['peer']:.4g}"
        table.add_row(row["what"], f"{row['ours']:.4g}", peer, row["unit"], told, str(row["goal"] or "-"))
    Console(width=140).print(table)


def main(asked: list[str]) -> int:
    """Run the parts asked for, all by default."""
    unknown = [part for part in asked if part not in PARTS]
    if unknown:
        print(f"There is no part {unknown[0]!r}; parts: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    for part in asked or PARTS:
        module, _, function = part.partition("-")
        rows = getattr(importlib.import_module(module), function or "run")()
        if not rows:
            continue
        show(part, rows)
        facts = {"part": part, "machine": machine(), "rows": rows}
        write_atomically(ROOT / "data/08_reporting/bench" / f"{part}.json", json.dumps(facts, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
