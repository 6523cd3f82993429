"""What a late step would miss is told before the first row is read, all at once."""

import json
import sys

import pytest
from sharp import folders_in, with_template
from tables import record, records, serial, split_records

from luthier.artefacts import MANIFEST
from luthier.configuration import DataParameters, ModelParameters
from luthier.errors import UserError
from luthier.models import resolve_base
from luthier.pipelines.data_processing.deduplicate import deduplicate
from luthier.pipelines.data_processing.nodes import ingest_rows
from luthier.pipelines.data_processing.parameters import DataProcessingParameters, Deduplicate, Split
from luthier.pipelines.data_processing.split import split

TINY = ModelParameters(base="tiny:llama")
WRONG = {
    "previous": ({"split": {"previous": "old"}}, r"data_processing\.split\.previous: .*old cannot be read"),
    "no split table": ({"split": {"previous": "rows.parquet"}}, r"data_processing\.split\.previous: .* is no split table"),
    "an empty folder": ({"split": {"previous": "empty"}}, r"data_processing\.split\.previous: .* no Parquet file"),
    "benchmark": (
        {"decontaminate": {"benchmarks": ["bench.jsonl", "gone.jsonl"]}},
        r"decontaminate\.benchmarks: there is no file gone",
    ),
    "a strange benchmark": (
        {"decontaminate": {"benchmarks": ["odd.csv"]}},
        r"decontaminate\.benchmarks: odd\.csv: none of the known",
    ),
    "paraphrases": ({"augment": {"copies": 1, "paraphrases": "none.yml"}}, r"augment\.paraphrases: .*none\.yml cannot be read"),
    "presidio": ({"scrub": {"presidio": {}}}, r'pip install "luthier\[presidio\]"'),
    "context": ({"tokenise": {"max_tokens": 5000}}, r"tokenise\.max_tokens is 5000.*write 4096 at most"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder with rows, a benchmark and one of an unknown shape, where Presidio is not installed."""
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    (tmp_path / "bench.jsonl").write_text("not json\n" + json.dumps({"prompt": "a", "completion": "b"}))
    (tmp_path / "odd.csv").write_text("x,y\n1,2\n")
    (tmp_path / "empty").mkdir()
    split_records([record("a")]).files[0].rename(tmp_path / "rows.parquet")
    return tmp_path


def ingest(place, changes, path="rows.jsonl", model=TINY):
    """Take the first step with these parameters."""
    parameters = DataProcessingParameters.model_validate({"executor": {"backend": "serial"}, **changes})
    return ingest_rows(DataParameters(path=path), model, parameters, folders_in(place))


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_a_later_step_would_miss_is_told_before_the_first_row(place, name):
    changes, told = WRONG[name]
    with pytest.raises(UserError, match=told):
        ingest(place, changes)
    assert not (place / "data").exists()


def test_all_that_is_wrong_is_told_at_once(place):
    def changes(names):
        return {key: value for name in names for key, value in WRONG[name][0].items()}

    files, models = ("previous", "benchmark", "paraphrases"), ("presidio", "context")
    with pytest.raises(UserError, match="no row was read") as error:
        ingest(place, changes(files + models), "gone.csv", ModelParameters(base="some-team/some-model"))
    for told in [r"data\.path: there is no file gone\.csv", *(WRONG[name][1] for name in files)]:
        assert error.match(told)
    assert "some-model" not in str(error.value)  # it may be large, and is not fetched for files that are not there
    with pytest.raises(UserError, match="no row was read") as error:
        ingest(place, changes(models))
    for name in models:
        assert error.match(WRONG[name][1])


def test_a_base_that_cannot_be_trained_with_is_told(place):
    dumb = with_template(resolve_base(TINY, folders_in(place)), place / "dumb", None)
    (dumb.folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="no chat template"):
        ingest(place, {}, model=ModelParameters(base="dumb"))
    for file in dumb.folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="the tokenizer of dumb cannot be loaded"):
        ingest(place, {}, model=ModelParameters(base="dumb"))
    with pytest.raises(UserError, match="there is no folder"):
        ingest(place, {}, model=ModelParameters(base="./gone"))


def test_what_is_there_is_taken_and_what_is_not_used_need_not_be(place):
    unique = records([record(f"message {n} {n}") for n in range(40)])
    kept, _, clusters = deduplicate(unique, Deduplicate(), serial())
    table = split(kept, clusters, Split(), 0, serial())[1]
    rows, _ = ingest(
        place,
        {
            "split": {"previous": str(table.folder)},
            "decontaminate": {"benchmarks": ["bench.jsonl"]},
            "augment": {"paraphrases": "none.yml"},
        },
    )
    assert len(rows) == 1
