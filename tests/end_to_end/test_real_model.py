"""The README's first command, with the real model: it gets measurably better on messages that it has not seen."""

import json
import resource

import pytest
from commands import kedro_in, output


@pytest.mark.slow
def test_the_real_model_gets_better(project):
    done = kedro_in(project, "run", timeout=2_400)
    assert done.returncode == 0, output(done)
    (path,) = (project / "data/08_reporting/evaluation.json").glob("*/evaluation.json")
    evaluation = json.loads(path.read_text())
    print(done.stdout)
    over_base = evaluation["differences"]["tuned_minus_base"]["field_accuracy"]
    over_majority = evaluation["differences"]["tuned_minus_majority"]["field_accuracy"]
    assert over_base["value"] >= 0.30
    assert over_base["low"] > 0
    assert over_majority["value"] >= 0.10
    assert over_majority["low"] > 0
    # the largest of all child processes, in KiB
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 6 * 2**20
