"""Real data of somebody else's trains end to end with the block of docs/your-own-data.md alone."""

import csv
import json
import re

import pytest
import yaml
from commands import ROOT, SHARED, kedro_in, output

from luthier.pipelines.data_processing.croissant_check import check
from luthier.shards import Shards

BANKING = SHARED / "banking77" / "train.csv"


@pytest.mark.skipif(not BANKING.exists(), reason=f"{BANKING} is not on this machine")
def test_the_documented_block_trains_on_a_csv(project):
    page = (ROOT / "docs" / "your-own-data.md").read_text()
    block = yaml.safe_load(re.search(r"```yaml\n(data:.*?)```", page, re.DOTALL)[1])
    block["data"]["path"] = str(BANKING)
    block["data"]["max_rows"] = 300
    (project / "conf" / "test" / "parameters_data.yml").unlink(missing_ok=True)
    settings = yaml.safe_load((project / "conf" / "test" / "parameters.yml").read_text()) | block
    (project / "conf" / "test" / "parameters.yml").write_text(yaml.safe_dump(settings))
    done = kedro_in(project, "run", "--env", "test", "--pipelines", "data_processing,training,evaluation")
    assert done.returncode == 0, output(done)
    (path,) = (project / "data/08_reporting/evaluation.json").glob("*/evaluation.json")
    evaluation = json.loads(path.read_text())
    assert evaluation["fields"] == ["answer"]
    assert evaluation["models"]["tfidf"]["field_accuracy"] == evaluation["models"]["tfidf"]["exact_match"]


def words(text):
    """Return what is compared of a short text."""
    return tuple(re.findall(r"\w+", text.casefold()))


@pytest.mark.slow
@pytest.mark.skipif(not BANKING.exists(), reason=f"{BANKING} is not on this machine")
def test_training_texts_that_stand_in_the_test_file_are_found_and_the_description_loads(project):
    block = {
        "data": {"path": str(BANKING), "user": "{{ text }}", "assistant": "{{ category }}", "label": "{{ category }}"}
        | {"system": None, "id": None, "answer_schema": None, "max_rows": None},
        "data_processing": {"decontaminate": {"benchmarks": [str(BANKING.with_name("test.csv"))]}},
    }
    (project / "conf" / "local" / "parameters.yml").write_text(yaml.safe_dump(block))
    done = kedro_in(project, "run", "--pipeline", "data_processing", timeout=600)
    assert done.returncode == 0, output(done)
    tables = {
        name: Shards(next((project / "data").glob(f"*/{name}/*/{name}")))
        for name in ("origins", "duplicates", "contaminated", "split_records", "described_data")
    }
    lines = {row["key"]: row["line"] for row in tables["origins"].iter_rows()}
    with (
        BANKING.open(encoding="utf-8", newline="") as file,
        BANKING.with_name("test.csv").open(encoding="utf-8", newline="") as other,
    ):
        texts = [row["text"] for row in csv.DictReader(file)]
        tests = {words(row["text"]) for row in csv.DictReader(other)}
    shared = {text for text in texts if words(text) in tests}
    assert len(shared) >= 6
    kept = {words(row["messages"][-2]["content"]) for row in tables["split_records"].iter_rows() if row["split"] != "test"}
    assert not {words(text) for text in shared} & kept
    found = [row for row in tables["contaminated"].iter_rows() if row["dropped"] and row["against"].endswith("test.csv")]
    assert len(found) >= 6
    assert all(row["key"] in lines and row["item"] for row in found)
    near = [row for row in tables["duplicates"].iter_rows() if row["kind"] == "near"]
    assert near
    assert all(0 < row["similarity"] <= 1 for row in near)
    folder = tables["described_data"].folder
    assert check(json.loads((folder / "croissant.json").read_text()), folder) == []
