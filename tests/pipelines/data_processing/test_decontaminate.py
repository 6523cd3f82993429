"""What gives the tests away is found and listed; what merely quotes is listed and stays."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import record, serial, split_records

from luthier.configuration import FolderParameters
from luthier.errors import UserError
from luthier.executors import Executor
from luthier.pipelines.data_processing.decontaminate import Index, References, _index, decontaminate, grams
from luthier.pipelines.data_processing.parameters import Decontaminate
from luthier.records import CONTAMINATED, user_text
from luthier.text.prepare import PromptSettings, ScrubSettings, conversation
from luthier.text.presidio import PresidioSettings

LONG = "the kettle that I bought from you in May has begun to leak at the base whenever it boils and I would like a new one"
KEY = "a key"
PLAIN = PromptSettings()
OTHER = "my subscription was charged twice this month although I paused it in the app before the date that you had named to me"


def run(rows, sides, benchmarks=(), root="", rows_per_shard=50_000, prompt=PLAIN, **settings):
    """Decontaminate; return the ids that stay and the findings."""
    folders = FolderParameters(root=str(root), base_models="", shards="", work="")
    table = split_records(rows, sides, rows_per_shard)
    kept, found = decontaminate(table, Decontaminate(benchmarks=benchmarks, **settings), prompt, KEY, folders, serial())
    assert found.schema == CONTAMINATED
    return {row["id"] for row in kept.iter_rows()}, {row["id"]: row for row in found.iter_rows()}


def test_a_training_record_that_repeats_a_test_record_is_dropped_and_listed():
    rows = [record(LONG, "a", "train"), record(f"Hello, {LONG.upper()}!", "a", "test"), record(OTHER, "b", "other")]
    kept, found = run(rows, ("train", "test", "train"))
    assert kept == {"test", "other"}
    assert (found["train"]["against"], found["train"]["item"]) == ("test split", "test")
    assert found["train"]["overlap"] == 1
    assert found["train"]["same_answer"]


def test_a_quotation_is_listed_and_stays():
    quote = " ".join(LONG.split()[:14])
    rows = [record(f"{OTHER} {quote} {OTHER[::-1]}", "b", "train"), record(LONG, "a", "test")]
    kept, found = run(rows, ("train", "test"))
    assert kept == {"train", "test"}
    assert 0 < found["train"]["overlap"] < 0.5
    assert not found["train"]["dropped"]
    assert not found["train"]["same_answer"]
    kept, _ = run(rows, ("train", "test"), drop_from=0.01)
    assert kept == {"test"}


def test_a_short_text_counts_whole():
    rows = [record("card lost", "a", "same"), record("card not lost", "a", "longer"), record("Card  lost?", "b", "test")]
    kept, found = run(rows, ("train", "train", "test"))
    assert kept == {"longer", "test"}
    assert set(found) == {"same"}
    assert not found["same"]["same_answer"]


def test_benchmark_files_of_any_shape_are_compared(tmp_path):
    (tmp_path / "bench.jsonl").write_text(json.dumps({"prompt": LONG, "completion": "a"}) + "\nnot json\n")
    (tmp_path / "labels.csv").write_text("text,label\ncard lost,x\n")
    rows = [
        record(LONG, "a", "one"),
        record("card lost", "y", "two"),
        record("nothing", "z", "three"),
        record("test", "t", "test"),
    ]
    sides = ("train", "validation", "train", "test")
    kept, found = run(rows, sides, ("bench.jsonl", "labels.csv"), tmp_path)
    assert kept == {"three", "test"}
    assert (found["one"]["item"], found["one"]["same_answer"]) == ("bench.jsonl:1", True)
    assert (found["two"]["item"], found["two"]["same_answer"]) == ("labels.csv:2", False)


WORDS = st.sampled_from(
    ["anna@shop.example", "+49 30 1234567", "<b>now</b>", "cafÃ©", "please", "change", "it\n\n\n", "the", "number"]
)


@given(
    words=st.lists(WORDS, min_size=1, max_size=20),
    template=st.booleans(),
    scrub=st.sampled_from([ScrubSettings(), ScrubSettings(kinds=("phone",)), None]),
)
@settings(deadline=None, max_examples=25)
def test_a_benchmark_is_prepared_as_the_data_is(tmp_path_factory, words, template, scrub):
    root, body = tmp_path_factory.mktemp("bench"), " ".join(words)
    prompt = PromptSettings(user="Re: {{ body }}", assistant="{{ answer | json }}", scrub=scrub)
    row = {"body": body, "answer": {"of": "anna@shop.example"}}
    messages = conversation(row, prompt, KEY)
    known = {"prompt": f"Re: {body}", "completion": '{"of":"anna@shop.example"}'}
    (root / "bench.jsonl").write_text(json.dumps(row if template else known) + "\n")
    rows = [record(user_text(messages), messages[-1]["content"], "same"), record("something else", "b", "test")]
    kept, found = run(rows, ("train", "test"), ("bench.jsonl",), root, prompt=prompt)
    assert kept == {"test"}
    assert (found["same"]["item"], found["same"]["overlap"], found["same"]["same_answer"]) == ("bench.jsonl:1", 1, True)


def test_a_benchmark_with_the_columns_of_the_templates_may_lack_answers(tmp_path):
    (tmp_path / "bench.csv").write_text(f"body\n{LONG}\n")
    prompt = PromptSettings(user="{{ body }}", assistant="{{ answer }}")
    rows = [record(LONG, "a", "train"), record(OTHER, "b", "test")]
    kept, found = run(rows, ("train", "test"), ("bench.csv",), tmp_path, prompt=prompt)
    assert kept == {"test"}
    assert not found["train"]["same_answer"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": LONG}]},
        {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": LONG}]},
        {"conversations": [{"from": "human", "value": LONG}]},
        {"prompt": LONG, "completion": ""},
        {"instruction": LONG, "output": ""},
        {"prompt": LONG, "completion": "a", "label": False},
    ],
)
def test_a_benchmark_of_a_known_shape_may_lack_answers(tmp_path, row):
    (tmp_path / "bench.jsonl").write_text(json.dumps(row) + "\n")
    rows = [record(LONG, "a", "train"), record(OTHER, "b", "test")]
    kept, found = run(rows, ("train", "test"), ("bench.jsonl",), tmp_path)
    assert kept == {"test"}
    assert not found["train"]["same_answer"]


def test_items_that_are_not_compared_are_told(tmp_path, caplog):
    lines = [json.dumps({"messages": [{"role": "user", "content": LONG}]}), "not json", '{"messages": []}']
    (tmp_path / "bench.jsonl").write_text("\n".join(lines))
    kept, _ = run([record(LONG, "a", "train"), record(OTHER, "b", "test")], ("train", "test"), ("bench.jsonl",), tmp_path)
    assert kept == {"test"}
    assert "bench.jsonl: 2 of its items are not compared, such as line 2: " in caplog.text


def test_a_benchmark_is_prepared_anew_by_another_version_of_the_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.text.prepare.load_recognizer", lambda _: None)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"prompt": LONG, "completion": "a"}) + "\n")
    meta = tmp_path / "pipeline/meta.json"
    meta.parent.mkdir()
    prompt = PromptSettings(scrub=ScrubSettings(presidio=PresidioSettings(model=str(meta.parent))))
    folders = FolderParameters(root=str(tmp_path), base_models="", shards="", work="")
    for number, version in enumerate(("1", "1", "2")):
        meta.write_text(version)
        table = split_records([record(OTHER), record("b")], ("train", "test"), 50_000)
        executor = Executor(tmp_path / "work", "serial")
        decontaminate(table, Decontaminate(benchmarks=("bench.jsonl",)), prompt, KEY, folders, executor)
        assert len(list((tmp_path / "work/benchmark_references").iterdir())) == (2 if number == 2 else 1)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing.jsonl", "there is no file missing"),
        ("bench.txt", "ends in .txt: rename it"),
        ("odd.jsonl", "odd.jsonl: none of the known shapes fits half of 1 sampled rows"),
        ("empty.jsonl", "empty.jsonl: there is no row that could be read"),
        ("not.parquet", "not.parquet cannot be read as parquet"),
        ("silent.jsonl", "silent.jsonl: none of its 2 items asks anything, such as line 1: nothing is asked"),
    ],
)
def test_what_is_wrong_with_a_benchmark_is_told_with_its_own_parameter(tmp_path, name, told):
    (tmp_path / "bench.txt").write_text("x")
    (tmp_path / "odd.jsonl").write_text('{"stem": "x", "options": ["a"]}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "not.parquet").write_text("x")
    (tmp_path / "silent.jsonl").write_text('{"messages": [{"role": "system", "content": "x"}]}\n' * 2)
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        run([record("a"), record("b")], ("train", "test"), (name,), tmp_path)
    assert str(caught.value).startswith("data_processing.decontaminate.benchmarks: ")
    assert "data.shape" not in str(caught.value)


def test_test_records_stay_whatever_they_hold():
    rows = [record(LONG, "a", "one"), record(LONG, "b", "two")]
    assert run(rows, ("test", "test"))[0] == {"one", "two"}


def test_how_the_table_is_cut_does_not_matter():
    rows = [record(f"{LONG} {n % 7}", str(n), f"id-{n}") for n in range(30)]
    sides = ("train", "test", "train")
    assert run(rows, sides) == run(rows, sides, rows_per_shard=4)


@given(st.lists(st.text("abc ", max_size=8), max_size=30), st.integers(3, 13))
@settings(deadline=None, max_examples=100)
def test_texts_share_a_gram_where_they_share_a_run_of_words(words, size):
    text = " ".join(words)
    own = text.split()
    found = grams(text, size)
    assert len(found) == len({tuple(own[n : n + size]) for n in range(max(1, len(own) - size + 1))}) if own else len(found) == 0
    if len(own) >= size:
        assert set(grams(" ".join(own[:size]), size).tolist()) <= set(found.tolist())


@given(
    sets=st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=9), min_size=1, max_size=3),
    asked=st.lists(st.integers(0, 2**64 - 1)),
)
@settings(deadline=None, max_examples=40)
def test_known_runs_are_those_of_any_set(tmp_path_factory, sets, asked):
    folders = []
    for own in sets:
        folders.append(tmp_path_factory.mktemp("set"))
        np.save(folders[-1] / "grams.npy", np.unique(np.array(own, np.uint64)))
        np.save(folders[-1] / "owner.npy", np.zeros(len(set(own)), np.int32))
    known = {gram for own in sets for gram in own}
    hashes = np.array([*asked, *known, *(gram ^ 1 for gram in known)], np.uint64)
    found = References(Index(_index(folders, serial()), folders, [], 13)).known(hashes)
    assert found.tolist() == [gram in known for gram in hashes.tolist()]
