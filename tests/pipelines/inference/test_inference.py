"""Every row of a file comes out once, answered or with the reason; whatever stopped it, the result is the same bytes."""

import gzip
import json

import fsspec
import jsonschema
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import openai_server
from sharp import QUESTIONS, folders_in, sharp_tiny

from luthier.answers import AnswerStore, LocalAnswerer
from luthier.candidates import Asking, Registered
from luthier.configuration import DataParameters, ModelParameters
from luthier.errors import UserError
from luthier.packages import PackagedModel, load_package
from luthier.pipelines.inference import nodes
from luthier.pipelines.inference import predict as predicting
from luthier.pipelines.inference.nodes import answer_rows
from luthier.pipelines.inference.parameters import InferenceParameters
from luthier.pipelines.inference.predict import PREDICTION, Model, forget, predict
from luthier.pipelines.inference.rows import AskedRow, Reading
from luthier.registry import Version
from luthier.text.prepare import PromptSettings, ScrubSettings, prompt_messages
from tests.pipelines.deployment.tiny_packages import PROMPT, make, random_adapter, tiny_base

LENGTH = 6
DATA = DataParameters(path="x.jsonl", system="Be brief.", user="{{ body }}", assistant="{{ answer }}")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tiny model gains nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with the sharp tiny model in it, as a base model of the user's own."""
    folder = tmp_path_factory.mktemp("home")
    model, tokenizer = sharp_tiny(folder)
    model.save_pretrained(folder / "sharp")
    tokenizer.save_pretrained(folder / "sharp")
    return folder


@pytest.fixture(scope="module")
def tiny(home):
    """Return the sharp tiny model and its tokenizer."""
    return sharp_tiny(home)


def answered(home, folder, data=DATA, length=LENGTH, **parameters):
    """Run the node with the sharp model as the base; return the table's rows, the report and the handle."""
    chosen = {"model": "base", "precision": "fp32", "rows_per_chunk": 5} | parameters
    model = ModelParameters(base=str(home / "sharp"))
    shards, report = answer_rows(InferenceParameters(**chosen), data, model, length, folders_in(folder))
    assert shards.schema == PREDICTION
    rows = shards.to_table().to_pylist()
    assert len(rows) == len(shards) == report["rows"]
    return rows, report, shards


def write(path, rows):
    """Write rows as JSON Lines; a text stands as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


ROWS = [{"body": text, "n": str(number)} for number, text in enumerate(QUESTIONS)]


def test_every_row_comes_out_with_its_answer_and_what_answered(home, tiny, tmp_path):
    bad = [*ROWS[:3], {"body": 7}, "{not json", {"other": "x"}, {"body": "y" * 5000}, *ROWS[3:]]
    rows, report, _ = answered(home, tmp_path, source=str(write(tmp_path / "x.jsonl", bad)))
    errors = {row["id"]: row["error"] for row in rows if row["error"] is not None}
    assert set(errors) == {"4", "5", "6", "7"}
    assert "body must be text" in errors["4"]
    assert "is not JSON" in errors["5"]
    assert "no column is known" in errors["6"]
    assert "more than the model's 4,096" in errors["7"]
    assert [row["id"] for row in rows] == [str(line) for line in range(1, len(bad) + 1)]
    assert [json.loads(row["row"]) for row in rows if row["error"] is None] == ROWS
    asked = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["body"]}] for row in ROWS]
    own = LocalAnswerer("x", "x", lambda: tiny, LENGTH, 8192).answer(asked, lambda _: None)
    good = [row for row in rows if row["error"] is None]
    assert [(row["answer"], row["tokens"], row["finish"]) for row in good] == [(a.text, a.tokens, a.finish) for a in own]
    assert [row["log_probability"] for row in good] == pytest.approx([answer.log_probability for answer in own], abs=1e-3)
    assert all((row["answer"] is None) == (row["error"] is not None) for row in rows)
    assert {(row["model"], row["manifest"]) for row in rows} == {(report["model"], report["manifest"])}
    assert report["manifest"].startswith(f"{home / 'sharp'}@")
    assert (report["answered"], len(report["first_errors"])) == (len(ROWS), 4)
    assert [(file["file"], file["rows"]) for file in report["files"]] == [("x.jsonl", len(bad))]


def test_a_number_that_json_does_not_know_is_null_in_the_row(home, tmp_path):
    table = pa.table({"body": ["a", "b"], "score": [float("nan"), float("inf")], "more": [[1.5, float("nan")], []]})
    pq.write_table(table, tmp_path / "x.parquet")
    rows = answered(home, tmp_path, source="x.parquet")[0]
    found = [json.loads(row["row"], parse_constant=pytest.fail) for row in rows]
    assert found == [{"body": "a", "score": None, "more": [1.5, None]}, {"body": "b", "score": None, "more": []}]


def test_the_form_of_the_file_changes_no_answer(home, tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    table = pa.Table.from_pylist(ROWS)
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.ndjson.zst").write_bytes(zstandard.compress(lines))
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    pq.write_table(table, tmp_path / "e.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "f.csv")
    with fsspec.open("memory://g.jsonl", "wb") as file:
        file.write(lines)
    sources = [*sorted(str(path.name) for path in tmp_path.iterdir()), "memory://g.jsonl"]
    found = [[row["answer"] for row in answered(home, tmp_path, source=source)[0]] for source in sources]
    assert len(found) == 7
    assert all(answers == found[0] for answers in found)
    assert len(list((tmp_path / "data/07_model_output/answers").glob("*/*"))) == 3  # one of them was answered


def test_rows_are_called_by_their_id_or_by_file_and_line(home, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", [{"id": "x", "prompt": "a"}])
    write(tmp_path / "in" / "b.jsonl", [{"prompt": "b"}, {"key": 7, "prompt": "c"}, {"id": 9, "prompt": "d"}])
    names = [row["id"] for row in answered(home, tmp_path, source="in")[0]]
    assert names == ["x", "in/b.jsonl:1", "in/b.jsonl:2", "9"]
    rows = answered(home, tmp_path, source="in/b.jsonl", id="key", max_rows=2)[0]
    assert [(row["id"], row["error"]) for row in rows] == [("1", "has no key (inference.id)"), ("7", None)]


SOURCE = st.lists(st.sampled_from(QUESTIONS) | st.none(), min_size=1, max_size=14)


def made(texts):
    """Return rows that ask these texts; None is a row that cannot be asked."""
    asked = [[{"role": "user", "content": text}] if text else [] for text in texts]
    return [AskedRow(str(n), "{}", turns, None if turns else "bad") for n, turns in enumerate(asked)]


@given(texts=SOURCE, size=st.integers(1, 6), stops=st.integers(0, 3), per_file=st.integers(1, 8))
@settings(max_examples=10)
def test_however_it_is_cut_and_stopped_the_result_is_the_same(tiny, tmp_path_factory, texts, size, stops, per_file):
    class Stopping(LocalAnswerer):
        left = stops

        def answer(self, conversations, progress):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().answer(conversations, progress)

    def run(kind, folder, kept=None):
        answerer = kind("x", "x", lambda: tiny, LENGTH, 8192)
        held, pulled = [], 0

        def rows():
            nonlocal pulled
            for row in made(texts):
                pulled += 1
                yield row

        store = AnswerStore(folder / "answers", size)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predicting, "ROWS_PER_SHARD", per_file)
            table, counts = predict(rows(), Model(answerer, "x@1", "sha"), store, folder / "tables", held.append)
        assert counts.rows == len(texts) == sum(held) == pulled
        assert kept in (None, counts.kept)
        return table

    if not any(texts[:size]):
        return  # refused, see below
    whole, torn = (tmp_path_factory.mktemp(name) for name in ("whole", "torn"))
    table = run(LocalAnswerer, whole, kept=0)
    assert [row["error"] for row in table.iter_rows()] == [None if text else "bad" for text in texts]
    try:
        run(Stopping, torn)
    except KeyboardInterrupt:
        assert not list((torn / "tables").iterdir())
    assert run(LocalAnswerer, torn).sha256 == table.sha256
    assert run(LocalAnswerer, torn, kept=sum(map(bool, texts))).sha256 == table.sha256


def test_memory_holds_one_chunk(tiny, tmp_path):
    pulled, most, came = 0, 0, 0

    def rows():
        nonlocal pulled, most
        for row in made(QUESTIONS * 4):
            pulled += 1
            most = max(most, pulled - came)
            yield row

    def progress(count):
        nonlocal came
        came += count

    answerer = LocalAnswerer("x", "x", lambda: tiny, 2, 8192)
    predict(rows(), Model(answerer, "x", "x"), AnswerStore(tmp_path / "answers", 7), tmp_path / "tables", progress)
    assert most <= 7 + 1
    assert came == 48


def test_old_tables_are_forgotten_and_new_ones_kept(tiny, tmp_path, monkeypatch):
    answerer = LocalAnswerer("x", "x", lambda: tiny, 2, 8192)
    store = AnswerStore(tmp_path / "answers", 7)
    table, _ = predict(iter(made(["hi"])), Model(answerer, "x", "x"), store, tmp_path / "tables", lambda _: None)
    forget(tmp_path / "tables")
    assert table.folder.exists()
    monkeypatch.setattr(predicting, "SECONDS_KEPT", -1)
    forget(tmp_path / "tables")
    assert not table.folder.exists()


TEMPLATE = PromptSettings(system="Be brief.", user="{{ body }}", scrub=ScrubSettings())


def turns(row, settings=TEMPLATE, column=None):
    """Return what is asked about a row."""
    return Reading(settings, None, column, "key").turns(row)


def test_one_question_is_the_same_question_in_any_form():
    body = "write to <b>anna@example.com</b>  now"
    expected = prompt_messages({"body": body}, TEMPLATE, "key")
    assert "anna" not in expected[-1]["content"]
    assert expected[0] == {"role": "system", "content": "Be brief."}
    said = [{"role": "user", "content": body}]
    forms = [
        ({"body": body}, None),
        ({"messages": said}, None),
        ({"messages": json.dumps(said)}, None),
        ({"messages": [*said, {"role": "assistant", "content": "done"}]}, None),
        ({"text": body}, None),
        ({"prompt": body}, None),
        ({"body": "another", "mine": body}, "mine"),
    ]
    for row, column in forms:
        assert turns(row, column=column) == expected
    own = turns({"messages": [{"role": "system", "content": "Be long."}, *said]})
    assert own == [{"role": "system", "content": "Be long."}, expected[-1]]


def test_a_registered_version_is_asked_as_it_is_served(home, tmp_path):
    base = tiny_base(home / "packages")
    package = make(tmp_path / "package", base, random_adapter(tmp_path / "adapter", base))
    version = Version(3, (), package.sha256, "pass", {}, {}, "", "", "", "")
    registered = Registered("luthier", version, package.folder)
    served = PackagedModel(*load_package(package.folder, torch.float32))
    assert (registered.name, registered.settings, registered.max_new_tokens) == ("luthier@3", PROMPT, 12)
    asking = Asking(registered.max_new_tokens, 8192, "fp32")
    answerer = registered.answerer(ModelParameters(base="tiny:llama"), folders_in(home), asking)
    reading = Reading(registered.settings, None, None, "")
    said = [[{"role": "user", "content": text}] for text in QUESTIONS[:4]]
    rows = [{"messages": messages} for messages in said[:2]] + [{"body": messages[0]["content"]} for messages in said[2:]]
    replies = answerer.answer([reading.turns(row) for row in rows], lambda _: None)
    assert [reply.text for reply in replies] == [served.answer(messages) for messages in said]
    assert package.sha256 in answerer.identity


def test_an_endpoint_sees_no_personal_data_and_stands_on_each_row(home, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write(tmp_path / "x.jsonl", [{"body": "I am anna@example.com"}, {"prompt": "hello there"}])
    with openai_server(*tiny) as server:
        endpoint = {"url": server.url, "model": "tiny-llama"}
        rows, report, _ = answered(home, tmp_path, source="x.jsonl", model="champion", endpoint=endpoint)
        sent = json.dumps(server.seen)
    assert "anna" not in sent
    assert {row["model"] for row in rows} == {f"tiny-llama@{server.address.removeprefix('http://')}"}
    assert rows[0]["manifest"].startswith(f"{server.url} tiny-llama ")
    assert [row["error"] for row in rows] == [None, None]
    assert (report["answered"], json.loads(rows[0]["row"])["body"]) == (2, "I am anna@example.com")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"source": None}, "kedro run --pipeline inference --params inference.source=data/my.jsonl"),
        ({"source": "nothing.jsonl"}, "inference.source: there is no file nothing.jsonl"),
        ({"source": "x.txt"}, "inference.source: .*say inference.format"),
        ({"source": "empty.jsonl"}, "inference.source: there are no rows in it"),
        (
            {"source": "x.jsonl"},
            r"nothing can be asked about any of the first 2 rows.*inference.column(.|\n)*1: no column is known",
        ),
        ({"source": "x.jsonl", "format": "parquet"}, "inference.source: .*cannot be read as parquet"),
        ({"source": "x.jsonl", "model": 3}, "inference.model: no MLflow run"),
    ],
)
def test_mistakes_are_told(home, tmp_path, parameters, expected):
    write(tmp_path / "x.jsonl", [{"bodi": "a"}, {"bodi": "b"}])
    (tmp_path / "x.txt").write_text("a")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=expected):
        answered(home, tmp_path, **parameters)


SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["praise", "complaint"]}, "order": {"type": "string", "maxLength": 3}},
    "required": ["intent", "order"],
    "additionalProperties": False,
}


def with_schema(folder, schema):
    """Return the data's parameters with an answer schema: JSON, or a text that is none."""
    (folder / "schema.json").write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return DATA.model_copy(update={"answer_schema": "schema.json"})


def test_answers_are_held_to_the_schema_on_demand_and_kept_apart_from_free_ones(home, tmp_path):
    source, data = str(write(tmp_path / "x.jsonl", ROWS)), with_schema(tmp_path, SCHEMA)
    free, _, _ = answered(home, tmp_path, data, 60, source=source)
    held, report, _ = answered(home, tmp_path, data, 60, source=source, constrain=True)
    assert {row["finish"] for row in held} == {"stop"}
    assert len({row["answer"] for row in held}) > 1
    for row in held:
        jsonschema.validate(json.loads(row["answer"]), SCHEMA)
    assert "schema=" in report["identity"]
    again, report, _ = answered(home, tmp_path, data, 60, source=source)
    assert again == free
    assert "schema=" not in report["identity"]
    assert not {row["answer"] for row in free} & {row["answer"] for row in held}


def test_a_registered_version_is_held_to_its_own_schema(home, tmp_path, monkeypatch):
    base = tiny_base(home / "packages")
    package = make(tmp_path / "package", base, random_adapter(tmp_path / "adapter", base))
    assert json.loads((package.folder / "answer_schema.json").read_text()) == {"type": "object"}
    registered = Registered("luthier", Version(3, (), package.sha256, "pass", {}, {}, "", "", "", ""), package.folder)
    monkeypatch.setattr(nodes, "fetch_version", lambda which, folders, parameter: registered)
    chosen = {"source": str(write(tmp_path / "x.jsonl", ROWS[:4])), "model": 3, "precision": "fp32", "constrain": True}
    data, model = with_schema(tmp_path, {"type": "string"}), ModelParameters(base="tiny:llama")
    table, _ = answer_rows(InferenceParameters(**chosen), data, model, LENGTH, folders_in(home / "packages"))
    assert [row["answer"][0] for row in table.iter_rows()] == ["{"] * 4
    (package.folder / "answer_schema.json").write_text("{}")
    with pytest.raises(UserError, match=r"inference\.constrain: answer_schema\.json of luthier@3 holds no schema"):
        answer_rows(InferenceParameters(**chosen), data, model, LENGTH, folders_in(home / "packages"))


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (None, r"inference\.constrain: data\.answer_schema holds no schema"),
        ({}, r"inference\.constrain: data\.answer_schema holds no schema"),
        ("{", r"data\.answer_schema: schema\.json cannot be read as JSON"),
        ({"not": {"type": "string"}}, r"inference\.constrain: answers cannot be held to data\.answer_schema.*not"),
    ],
)
def test_what_answers_cannot_be_held_to_is_told_before_any_is_given(home, tmp_path, schema, expected):
    data = DATA if schema is None else with_schema(tmp_path, schema)
    source = str(write(tmp_path / "x.jsonl", ROWS))
    with pytest.raises(UserError, match=expected):
        answered(home, tmp_path, data, source=source, constrain=True)
    assert not (tmp_path / "data").exists()
    answered(home, tmp_path, data, source=source)


def test_one_thing_answers():
    with pytest.raises(ValueError, match=r"either inference\.model or inference\.endpoint"):
        InferenceParameters(model=3, endpoint={"url": "http://host/v1", "model": "m"})
    with pytest.raises(ValueError, match=r"inference\.constrain .* an endpoint cannot be held"):
        InferenceParameters(constrain=True, endpoint={"url": "http://host/v1", "model": "m"})
