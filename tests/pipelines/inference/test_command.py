"""`kedro run --pipeline inference` as its user gives it, in a project with a model in production."""

import json
import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from commands import command, environment, kedro_in, output

from luthier.artefacts import hash_of_file, verify
from luthier.shards import Shards

SOURCE = "data/01_raw/support_messages.jsonl"


def arguments(rows: int, chunk: int) -> list[str]:
    """Return the command's arguments."""
    settings = {"source": SOURCE, "max_rows": rows, "rows_per_chunk": chunk, "precision": "fp32"}
    given = ",".join(f"inference.{name}={value}" for name, value in settings.items())
    return ["run", "--env", "test", "--pipeline", "inference", "--params", given]


def predictions(project: Path) -> list[Shards]:
    """Return all versions, the oldest first."""
    return [Shards(version / "predictions") for version in sorted((project / "data/07_model_output/predictions").iterdir())]


def promote(project: Path) -> None:
    """Put the only version into production."""
    done = kedro_in(project, "promote", "1", "--force", "--reason", "a test", "--env", "test")
    assert done.returncode == 0, output(done)


def test_a_file_is_answered_by_the_champion_and_every_row_says_so(copied):
    promote(copied)
    done = kedro_in(copied, *arguments(60, 16))
    assert done.returncode == 0, output(done)
    (table,) = predictions(copied)
    verify(table.folder)
    rows = list(table.iter_rows())
    source = [json.loads(line) for line in (copied / SOURCE).read_text().splitlines()[:60]]
    assert [json.loads(row["row"]) for row in rows] == source
    assert [row["id"] for row in rows] == [row["id"] for row in source]
    (report,) = (copied / "data/08_reporting/inference_report.json").glob("*/*.json")
    told = json.loads(report.read_text())
    (registered,) = (copied / "data/08_reporting/registered.json").glob("*/*.json")
    version = json.loads(registered.read_text())
    assert {(row["model"], row["manifest"]) for row in rows} == {("luthier@1", version["manifest"])}
    errors = [row for row in rows if row["error"] is not None]
    assert 0 < len(errors) == told["rows"] - told["answered"]
    assert f"luthier@1 answered {told['answered']} of 60 rows, 0 of them in an earlier run" in output(done)
    # the chain of the run: the file that was answered, and the version that answered it
    run = sqlite3.connect(copied / "mlflow.db").execute("select run_uuid from runs order by start_time desc").fetchone()[0]
    chain = json.loads(kedro_in(copied, "lineage", run, "--json", "--env", "test").stdout)
    assert [(file["file"], file["rows"]) for file in chain["sources"]] == [(SOURCE, 60)]
    assert chain["sources"][0]["sha256"] == hash_of_file(copied / SOURCE)
    assert chain["versions"] == {"inference.model": 1}


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_the_result_is_the_same_bytes(copied):
    promote(copied)
    store = copied / "data/07_model_output/answers"
    before = set(store.glob("*/*/manifest.json"))  # of the evaluation

    def finished() -> dict[Path, int]:
        return {chunk: chunk.stat().st_ino for chunk in store.glob("*/[!.]*/manifest.json") if chunk not in before}

    with (copied / "killed.log").open("w") as log:
        running = subprocess.Popen(command(*arguments(400, 8)), cwd=copied, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while len(finished()) < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(running.pid, signal.SIGKILL)
        running.wait(30)
    done_before = finished()
    assert 5 <= len(done_before) < 50
    assert not (copied / "data/07_model_output/predictions").exists()

    again = kedro_in(copied, *arguments(400, 8))
    assert again.returncode == 0, output(again)
    assert finished().items() >= done_before.items()
    kept = int(output(again).split(" rows, ")[1].split(" of them")[0])
    assert kept > 8 * (len(done_before) - 1)

    # the same without a break, with nothing kept from before
    for chunk in finished():
        for path in chunk.parent.iterdir():
            path.unlink()
        chunk.parent.rmdir()
    whole = kedro_in(copied, *arguments(400, 8))
    assert whole.returncode == 0, output(whole)
    assert " 0 of them in an earlier run" in output(whole)
    torn, uninterrupted = predictions(copied)
    assert torn.sha256 == uninterrupted.sha256
