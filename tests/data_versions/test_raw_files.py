"""Rows that hold a text are found in every format, and taken out without touching the others."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.artefacts import canonical_json
from luthier.configuration import DataParameters, FolderParameters
from luthier.data_versions.needles import Needles
from luthier.data_versions.raw_files import RawFile, RawRows, mentions, raw_files, search, take_out
from luthier.errors import UserError
from luthier.executors import key_of
from luthier.reading import read
from luthier.text.pii import placeholder

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
ROWS = st.lists(st.fixed_dictionaries({"id": st.uuids().map(str), "said": TEXT}), min_size=1, max_size=8)


def jsonl(rows):
    """Return rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows):
    """Return rows as CSV with a byte-order mark; cells may go over several lines."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["id", "said"], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def parquet(rows):
    """Return rows as Parquet."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    return sink.getvalue()


FORMATS = {
    "jsonl": jsonl,
    "csv": as_csv,
    "json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1).encode(),
    "parquet": parquet,
}
PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("kind", FORMATS)
@given(rows=ROWS, data=st.data())
@settings(max_examples=30)
def test_the_other_rows_are_what_they_were(tmp_path_factory, kind, rows, data):
    gone = data.draw(st.sets(st.sampled_from([row["id"] for row in rows])))
    path = tmp_path_factory.mktemp("raw") / f"rows.{kind}"
    path.write_bytes(FORMATS[kind](rows))
    file = RawFile(str(path), path.name, kind, "mine")
    lines = tuple(line for line, row, _ in read(str(path), kind, path.name) if row["id"] in gone)
    take_out(RawRows(file, lines, frozenset(), frozenset()))
    assert [row for _, row, _ in read(str(path), kind, path.name)] == [row for row in rows if row["id"] not in gone]
    if kind in ("jsonl", "csv"):  # not only the same rows: the same bytes
        assert path.read_bytes() == FORMATS[kind]([row for row in rows if row["id"] not in gone])


@pytest.mark.parametrize("ending", PACKED)
def test_a_packed_file_stays_packed(tmp_path, ending):
    rows = [{"id": "a", "said": "one"}, {"id": "b", "said": "two"}]
    path = tmp_path / f"rows.jsonl{ending}"
    path.write_bytes(PACKED[ending](jsonl(rows)))
    found = search(RawFile(str(path), path.name, "jsonl", "mine"), Needles(texts=frozenset({"ONE"})), "id", "")
    assert found is not None
    assert found.lines == (1,)
    take_out(found)
    assert [row for _, row, _ in read(str(path), "jsonl", path.name)] == rows[1:]


def test_a_file_in_a_bucket_is_written_there(bucket):
    bucket.pipe_file("bucket/rows.jsonl", jsonl([{"id": "a", "said": "one"}, {"id": "b", "said": "two"}]))
    file = RawFile("s3://bucket/rows.jsonl", "s3://bucket/rows.jsonl", "jsonl", "mine")
    take_out(search(file, Needles(names=frozenset("b")), "id", ""))
    assert json.loads(bucket.cat_file("bucket/rows.jsonl")) == {"id": "a", "said": "one"}


def test_an_id_counts_as_an_id_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl([{"id": "a", "said": "b"}, {"id": "b", "said": "a"}]))
    found = search(RawFile(str(path), path.name, "jsonl", "mine"), Needles(names=frozenset("b")), "id", "")
    assert found.lines == (2,)


@pytest.mark.parametrize("written", ["+49 170 1234567", "+49-170-1234567", "+491701234567"])
def test_a_number_is_found_however_it_is_spaced(tmp_path, written):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl([{"id": "a", "said": f"call me: {written}."}, {"id": "b", "said": "call me: +49 170 7654321."}]))
    wanted = Needles.of_text("+49 (170) 123 4567", "key", None)
    assert placeholder("phone", "+491701234567", "key") in wanted.placeholders
    found = search(RawFile(str(path), path.name, "jsonl", "mine"), wanted, "id", "key")
    assert found.lines == (1,)


def test_all_files_of_the_sources_are_read_and_what_lies_beside_them(tmp_path):
    raw = tmp_path / "data" / "01_raw"
    raw.mkdir(parents=True)
    (raw / "mine.jsonl").write_bytes(jsonl([{"id": "a", "said": "secret"}]))
    (raw / "other.csv").write_bytes(as_csv([{"id": "z", "said": "a secret"}]))
    (raw / "schema.json").write_text('{"title": "nothing"}\n{"of": "secret"}')
    (tmp_path / "labels.jsonl").write_bytes(jsonl([{"request": "r", "answer": "secret"}]))
    folders = FolderParameters(root=str(tmp_path), base_models="", shards="", work="")
    files = raw_files(DataParameters(path="data/01_raw/mine.jsonl"), folders, [str(tmp_path / "labels.jsonl")])
    wanted = Needles(texts=frozenset({"secret"}))
    found = [rows for file in files if (rows := search(file, wanted, "id", ""))]
    assert {rows.file.shown: rows.lines for rows in found} == {
        "data/01_raw/mine.jsonl": (1,),
        "data/01_raw/other.csv": (2,),
        "labels.jsonl": (1,),
    }
    assert mentions(str(tmp_path), found, wanted) == [("data/01_raw/schema.json", 2)]


def test_a_row_that_is_not_csv_is_found_and_taken_out_alone(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,said\r\na,"he said "secret" to me","and\r\nb,"so\r\nit is"\r\n')
    found = search(RawFile(str(path), path.name, "csv", "mine"), Needles(texts=frozenset({"secret"})), "id", "")
    assert found is not None
    take_out(found)
    assert path.read_bytes() == b'id,said\r\nb,"so\r\nit is"\r\n'


@pytest.mark.parametrize("source", ["mine", None])
def test_a_csv_file_that_cannot_be_searched_is_told(tmp_path, source):
    path = tmp_path / "rows.csv"
    path.write_text('id,said\na,"secret\nb,c\n')
    with pytest.raises(UserError, match=r"rows\.csv cannot be read as csv: one quote too many or too few"):
        search(RawFile(str(path), path.name, "csv", source), Needles(texts=frozenset({"secret"})), "id", "")


@pytest.mark.parametrize(("wanted", "found"), [("17", ["mails", "chats"]), ("mails:17", ["mails"]), ("chats:17", ["chats"])])
def test_a_row_is_called_as_it_stands_there_and_as_records_are(tmp_path, wanted, found):
    for name in ("mails", "chats"):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl([{"id": 17, "said": name}, {"id": 18, "said": "17"}]))
    folders = FolderParameters(root=str(tmp_path), base_models="", shards="", work="")
    data = DataParameters(sources={name: {"path": f"{name}.jsonl"} for name in ("mails", "chats")})
    rows = [search(file, Needles(names=frozenset({wanted})), "id", "") for file in raw_files(data, folders, [])]
    assert [(one.file.source, one.lines) for one in rows if one] == [(name, (1,)) for name in found]
    assert all(one.keys == {key_of(one.file.source, canonical_json({"id": 17, "said": one.file.source}))} for one in rows if one)
