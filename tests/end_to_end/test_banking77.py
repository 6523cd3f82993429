"""Real data of somebody else's trains end to end with the block of docs/your-own-data.md alone."""

import json
import re

import pytest
import yaml
from commands import ROOT, SHARED, kedro_in, output

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
    done = kedro_in(project, "run", "--env", "test")
    assert done.returncode == 0, output(done)
    (path,) = (project / "data/08_reporting/evaluation.json").glob("*/evaluation.json")
    evaluation = json.loads(path.read_text())
    assert evaluation["fields"] == ["answer"]
    assert evaluation["models"]["tfidf"]["field_accuracy"] == evaluation["models"]["tfidf"]["exact_match"]
