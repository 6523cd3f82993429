"""A description that is true passes; whatever is changed in it or in the data is found; nothing goes over the network."""

import copy
import hashlib
import json
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.pipelines.data_processing.croissant import croissant
from luthier.pipelines.data_processing.croissant_check import check
from luthier.pipelines.data_processing.dataset_facts import Commit, Describe, Facts, File, Source, columns_of, measured

MESSAGE = pa.struct([(name, pa.string()) for name in ("role", "content", "name", "tool_calls", "tool_call_id")])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("rejected", pa.list_(MESSAGE)),
        ("label", pa.string()),
        ("meta", pa.string()),
        ("source", pa.string()),
        ("weight", pa.float64()),
        ("split", pa.string()),
        ("provenance", pa.string()),
    ]
)
SPLITS = ("train", "validation", "test")


def message(role, content, **more):
    return dict.fromkeys(MESSAGE.names) | {"role": role, "content": content} | more


def record(n):
    """Return a record; in some of them stands what readers stumble over."""
    messages = [message("user", f"Frage {n}: ü 😀 \n NaN"), message("assistant", "" if n % 3 else f"Antwort {n}")]
    if n % 4 == 1:
        messages.append(message("assistant", None, tool_calls='[{"id": "1"}]', name="bot"))
    return {
        "key": f"{n:032x}",
        "id": f"id {n}",
        "messages": messages,
        "rejected": [message("user", "a"), message("assistant", "no")] if n % 2 else None,
        "label": None if n % 5 == 0 else "nan",
        "meta": "{}",
        "source": "support",
        "weight": n / 3,
        "split": SPLITS[n % 3],
        "provenance": None,
    }


def write(folder, shards, schema=SCHEMA):
    """Write lists of records as shards and return what `Facts.files` says of them."""
    files = []
    for number, rows in enumerate(shards):
        path = folder / "data" / f"part-{number:05d}.parquet"
        path.parent.mkdir(exist_ok=True, parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
        data = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        files.append(File(path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), rows=len(rows)))
    return tuple(files)


def facts_of(files, schema=SCHEMA, **changes):
    """Return facts about shards."""
    rows = sum(file.rows for file in files)
    values = {
        "describe": Describe(name="Support", creator="Ada", creator_type="Person", license="https://spdx.org/licenses/MIT.html"),
        "files": files,
        "splits": {name: len([n for n in range(rows) if n % 3 == place]) for place, name in enumerate(SPLITS)},
        "columns": columns_of(schema),
        "sources": (
            Source(name="support", uri="data/01_raw/a b.jsonl", sha256="ab" * 32, rows=12, format="jsonl", shape="messages"),
        ),
        "commit": Commit(sha="c0ffee", dirty=True, date="2026-01-02"),
        "parameters": {"clean": {"nfc": True}, "seed": 1},
        "counts": {"ingest": {"in": 12, "out": 11, "dropped": 1}, "clean": {"in": 11, "out": 11, "changed": 2}},
        "dropped": {"ingest": {"is not JSON": 1}},
        "labels": {"train": {"a": 3, "b": 1}, "test": {"a": 1}},
        "label_deviation": {"train": 0.05, "test": 0.2},
        "profile": {
            "characters": {"mean": 20.5, "p50": 18, "p95": 60},
            "languages": {"en": 9, "de": 2},
            "out_of_vocabulary": 0.01,
        },
    }
    return Facts(**(values | changes))


@pytest.fixture
def described(tmp_path):
    """Return a folder with three shards (the middle one empty) and their description."""
    files = write(tmp_path, [[record(n) for n in range(7)], [], [record(n) for n in range(7, 11)]])
    return tmp_path, croissant(facts_of(files))


@pytest.fixture
def offline(monkeypatch):
    """Let every connection fail."""

    def refuse(*_):
        raise AssertionError("something wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_true_description_passes_without_network(described, offline):
    folder, document = described
    assert check(document, folder) == []
    assert check(json.loads(json.dumps(document)), folder) == []


def test_mlcroissant_reads_every_record_of_all_shards(described):
    import mlcroissant

    folder, document = described
    (folder / "croissant.json").write_text(json.dumps(document))
    found = list(mlcroissant.Dataset(folder / "croissant.json").records("records"))
    assert [entry["records/id"].decode() for entry in found] == [f"id {n}" for n in range(11)]
    for n, entry in enumerate(found):
        texts = [turn["records/messages/content"] for turn in entry["records/messages"]]
        expected = [turn["content"] for turn in record(n)["messages"]]
        assert [text if text is None else text.decode() for text in texts] == expected


def test_a_file_that_only_looks_like_a_shard_is_not_read(described):
    folder, document = described
    (folder / "data" / "deeper").mkdir()
    for stray in ("data/part-99999.parquet", "data/deeper/part-00000.parquet"):
        pq.write_table(pa.Table.from_pylist([record(99)], schema=SCHEMA), folder / stray)
    import mlcroissant

    (folder / "croissant.json").write_text(json.dumps(document))
    assert len(list(mlcroissant.Dataset(folder / "croissant.json").records("records"))) == 11


def test_a_path_with_glob_characters_means_itself(tmp_path):
    (file,) = write(tmp_path, [[record(1)]])
    odd = "data/part[1]*?.parquet"
    (tmp_path / file.path).rename(tmp_path / odd)
    document = croissant(facts_of((file.model_copy(update={"path": odd}),), splits={"validation": 1}))
    assert check(document, tmp_path) == []


def test_facts_that_are_equal_give_equal_descriptions(tmp_path):
    files = write(tmp_path, [[record(n) for n in range(3)]])
    assert json.dumps(croissant(facts_of(files))) == json.dumps(croissant(facts_of(files)))


def test_a_tampered_shard_is_found(described):
    folder, document = described
    path = folder / "data" / "part-00002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert [problem for problem in check(document, folder) if "part-00002" in problem and "sha256 differs" in problem]


def test_a_shard_that_is_missing_cut_or_elsewhere_is_found(described):
    folder, document = described
    path = folder / "data" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    found = check(document, folder)
    assert any("contentSize" in problem for problem in found)
    path.unlink()
    assert any("there is no file" in problem for problem in check(document, folder))
    for url in ("../x.parquet", "/etc/passwd", "https://example.org/x.parquet"):
        changed = copy.deepcopy(document)
        changed["distribution"][0]["contentUrl"] = url
        assert any("must be a path below" in problem for problem in check(changed, folder))


def test_what_is_no_parquet_is_told(described):
    folder, document = described
    path = folder / "data" / "part-00000.parquet"
    path.write_bytes(b"not parquet")
    document["distribution"][0] |= {"contentSize": "11 B", "sha256": hashlib.sha256(b"not parquet").hexdigest()}
    assert any("is no Parquet file" in problem for problem in check(document, folder))


@pytest.mark.parametrize("column", SCHEMA.names)
def test_a_missing_column_is_found_on_either_side(tmp_path, column):
    less = pa.schema([field for field in SCHEMA if field.name != column])
    rows = [{name: value for name, value in record(n).items() if name != column} for n in range(3)]
    files = write(tmp_path, [rows], less)
    assert f"part-00000.parquet has no column {column}, which the description states" in check(
        croissant(facts_of(files)), tmp_path
    )
    files = write(tmp_path, [[record(n) for n in range(3)]])
    told = check(croissant(facts_of(files, less)), tmp_path)
    assert f"part-00000.parquet has a column {column}, which the description leaves out" in told


def test_a_missing_member_of_the_messages_is_found(described):
    folder, document = described
    messages = next(field for field in document["recordSet"][1]["field"] if field["name"] == "messages")
    del messages["subField"][1]
    assert any("messages has the members" in problem for problem in check(document, folder))


@pytest.mark.parametrize(
    "key", ["@context", "@type", "conformsTo", "name", "license", "url", "creator", "datePublished", "distribution", "recordSet"]
)
def test_a_missing_key_is_found(described, key):
    folder, document = described
    del document[key]
    assert f"{key} is missing or empty" in check(document, folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"creator": {"@type": "Person"}}, "creator has no name"),
        ({"conformsTo": "http://mlcommons.org/croissant/1.0"}, "conformsTo does not name"),
        ({"@context": {"@vocab": "http://schema.org/"}}, "@vocab"),
        ({"@context": "https://schema.org/"}, "must be an object"),
        ({"isLiveDataset": True}, "isLiveDataset"),
        ({"version": "tomorrow"}, "mlcroissant warns"),
        ({"variableMeasured": [{"name": "rows", "value": 3}]}, "rows are stated as 3, but the shards have 11"),
    ],
)
def test_a_false_statement_is_found(described, change, told):
    folder, document = described
    assert any(told in problem for problem in check(document | change, folder))


def test_a_field_that_reads_from_another_column_is_found(described):
    folder, document = described
    fields = {field["name"]: field for field in document["recordSet"][1]["field"]}
    fields["id"]["source"]["extract"]["column"], fields["meta"]["source"]["extract"]["column"] = "meta", "id"
    assert any("row 0 reads differently through the description: id" in problem for problem in check(document, folder))
    contents = {field["name"]: field for field in fields["messages"]["subField"]}
    contents["content"]["source"]["transform"], contents["role"]["source"]["transform"] = (
        contents["role"]["source"]["transform"],
        contents["content"]["source"]["transform"],
    )
    assert any("messages" in problem for problem in check(document, folder))


def test_a_shard_that_is_left_out_and_a_pattern_that_reads_more_are_found(described):
    folder, document = described
    document["distribution"][-1]["includes"][1:2] = ["data/part-*.parquet"]
    told = check(document, folder)
    assert "data/part-00001.parquet is in no file set: its records are not read" in told
    assert "a file set includes data/part-*.parquet, whose hash is stated nowhere" in told


def test_a_structure_that_mlcroissant_refuses_is_told_not_raised(described):
    folder, document = described
    document["recordSet"][1]["field"][0]["dataType"] = "sc:Nonsense"
    assert any("mlcroissant refuses it" in problem for problem in check(document, folder))


def test_a_data_set_without_splits_or_labels_is_described_too(tmp_path):
    schema = pa.schema([SCHEMA.field("id"), SCHEMA.field("messages")])
    files = write(tmp_path, [[{"id": "1", "messages": [message("user", "a")]}]], schema)
    document = croissant(facts_of(files, schema, splits={}, profile={}, sources=()))
    # no sources is worth telling: where rows come from is what a description is for
    assert check(document, tmp_path) == ["prov:wasDerivedFrom is missing or empty"]


def test_without_a_date_and_a_commit_the_missing_date_is_told(tmp_path):
    files = write(tmp_path, [[record(0)]])
    assert "datePublished is missing or empty" in check(croissant(facts_of(files, commit=None)), tmp_path)
    dated = facts_of(files, commit=None, describe=Describe(date_published="2026-03-04"))
    assert check(croissant(dated), tmp_path) == []


def test_the_provenance_names_sources_code_and_parameters(described):
    _, document = described
    (source,) = document["prov:wasDerivedFrom"]
    assert (source["url"], source["sha256"]) == ("data/01_raw/a b.jsonl", "ab" * 32)
    activity = document["prov:wasGeneratedBy"]
    assert activity["prov:wasAssociatedWith"]["softwareVersion"] == "c0ffee with uncommitted changes"
    assert json.loads(activity["additionalProperty"][0]["value"]) == {"clean": {"nfc": True}, "seed": 1}


def test_a_column_of_an_unknown_type_is_told():
    with pytest.raises(ValueError, match=r"the column when is of type date32"):
        croissant(facts_of((), pa.schema([("when", pa.date32())])))


@pytest.mark.parametrize("value", ["a", True, float("nan"), float("inf"), None, [1]])
def test_a_profile_holds_numbers_alone(value):
    with pytest.raises(ValidationError, match="x/y is neither a finite number"):
        facts_of((), profile={"x": {"y": value}})


NUMBERS = st.one_of(st.integers(-9, 9), st.floats(-9, 9))
PROFILES = st.recursive(
    st.dictionaries(st.text(max_size=3), NUMBERS, max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(profile=PROFILES)
@settings(max_examples=50)
def test_every_number_of_a_profile_is_stated(profile):
    stated = croissant(facts_of((), profile=profile))["variableMeasured"]
    assert [entry["value"] for entry in stated][4:] == [value for _, value in measured(profile)]


@given(name=st.text(min_size=1), creator=st.text(min_size=1))
@settings(max_examples=100)
def test_a_citation_stays_one_entry_whatever_stands_in_it(name, creator):
    cited = croissant(facts_of((), describe=Describe(name=name, creator=creator)))["citeAs"]
    depth = 0
    for character in cited:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth <= 2
    assert depth == 0


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@settings(max_examples=15)
def test_any_text_in_messages_reads_back(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts")
    rows = [record(n) | {"id": text, "messages": [message("user", text)]} for n, text in enumerate(texts)]
    files = write(folder, [rows])
    assert check(croissant(facts_of(files)), folder) == []
