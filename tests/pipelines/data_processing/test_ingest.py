"""Every row of a file comes out once, with its line; a row that cannot be read comes out with the reason."""

import csv
import gzip
import io
import json
import re
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import serial

from luthier.configuration import DataParameters, FolderParameters
from luthier.errors import UserError
from luthier.pipelines.data_processing.ingest import ingest
from luthier.reading import csv_rows, format_of
from luthier.records import INGESTED

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
OBJECTS = st.dictionaries(
    TEXT, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT | st.lists(TEXT, max_size=2), max_size=3
)
CELLS = st.text(st.one_of(st.sampled_from('\n",;é '), st.characters(codec="utf-8", exclude_characters="\x00\r")), max_size=8)


def folders_at(path):
    """Return a project in a folder."""
    return FolderParameters(root=str(path), base_models="", shards="", work="")


def read(path, rows_per_shard=50_000, **settings):
    """Read a file into dictionaries."""
    data = DataParameters(path=path.name, user="u", assistant="a", **settings)
    rows, facts = ingest(data, folders_at(path.parent), serial(), rows_per_shard)
    assert rows.schema == INGESTED
    assert sum(fact["rows"] for fact in facts) == len(rows)
    return [{name: value for name, value in row.items() if name != "source"} for row in rows.iter_rows()]


def values(rows):
    """Return the rows' values, all of which could be read."""
    assert all(row["error"] is None for row in rows)
    return [json.loads(row["row"]) for row in rows]


@given(rows=st.lists(OBJECTS, min_size=1, max_size=8), ascii_only=st.booleans(), end=st.sampled_from(["", "\n", "\n\n \n"]))
@settings(deadline=None, max_examples=60)
def test_json_lines_read_back(tmp_path_factory, rows, ascii_only, end):
    path = tmp_path_factory.mktemp("raw") / "x.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows) + end, encoding="utf-8")
    found = read(path)
    assert values(found) == rows
    assert [row["line"] for row in found] == list(range(1, len(rows) + 1))
    assert {row["file"] for row in found} == {"x.jsonl"}


@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_csv_reads_back_with_newlines_and_quotes_in_its_cells(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("raw") / "x.csv"
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("a", "b"), *rows])
    path.write_bytes(buffer.getvalue().encode())
    found = read(path)
    assert values(found) == [{"a": a, "b": b} for a, b in rows]
    # a row's line is the one on which it begins, as an editor counts
    begins = 2
    for row, (a, b) in zip(found, rows, strict=True):
        assert row["line"] == begins
        begins += 1 + (a + b).count("\n")


@given(rows=st.lists(st.fixed_dictionaries({"a": st.none() | TEXT, "b": st.none() | st.integers(0, 9)}), min_size=1, max_size=8))
@settings(deadline=None, max_examples=30)
def test_parquet_reads_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("raw") / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([("a", pa.string()), ("b", pa.int64())])), path, row_group_size=3)
    assert values(read(path)) == rows


def test_binary_columns_are_text_where_they_are_utf_8_and_dates_are_as_printed(tmp_path):
    rows = [
        {
            "text": "café".encode(),
            "parts": [b"a", None],
            "on": date(2026, 1, 2),
            "at": datetime(2026, 1, 2, 3),
            "paid": Decimal("1.50"),
        },
        {"text": b"\x89PNG", "parts": [], "on": None, "at": None, "paid": None},
        {"text": None, "parts": [b"\xff"], "on": None, "at": None, "paid": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    good, picture, nested = read(tmp_path / "x.parquet")
    told = {"on": "2026-01-02", "at": "2026-01-02 03:00:00", "paid": "1.50"}
    assert values([good]) == [{"text": "café", "parts": ["a", None], **told}]
    assert picture["error"] == "text is not UTF-8: byte 0x89; write it as UTF-8 text, or leave the column out"
    assert nested["error"].startswith("parts is not UTF-8: byte 0xff")


BROKEN = {
    b"not json": "is not JSON",
    b'{"a": 1': "is not JSON",
    b'{"a": "cut': "is not JSON",
    b'{"a": NaN}': "is not JSON",
    b'{"a": -Infinity}': "is not JSON",
    b"[1, 2]": "not a JSON object but list",
    b"null": "not a JSON object but NoneType",
    b'"text"': "not a JSON object but str",
    b'{"a": "caf\xe9"}': "is not UTF-8",
    b"\xff\xfe{\x00": "is not UTF-8",
    b"\x00": "is not JSON",
    b'{"a": "\\ud83d"}': "is not",
    b'{"\\udc00": 1}': "is not",
    b"[" * 200_000: "is not JSON",
    b'{"a":' * 200_000: "is not JSON",
    b'{"a": ' + b"9" * 5000 + b"}": "is not JSON",
}


@pytest.mark.parametrize("line", sorted(BROKEN), ids=lambda line: repr(line[:20]))
def test_a_broken_line_comes_out_with_its_reason_and_harms_no_other(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n' + line + b'\n\n{"n": 2}')
    first, broken, last = read(path)
    assert values([first, last]) == [{"n": 1}, {"n": 2}]
    assert [first["line"], broken["line"], last["line"]] == [1, 2, 4]
    assert broken["error"].startswith(BROKEN[line]) or BROKEN[line] in broken["error"]
    json.loads(broken["row"])


@given(data=st.binary(max_size=60), ending=st.sampled_from(["jsonl", "csv", "parquet"]))
@settings(deadline=None, max_examples=100)
def test_any_bytes_are_read_or_refused_in_the_users_words(tmp_path_factory, data, ending):
    path = tmp_path_factory.mktemp("raw") / f"x.{ending}"
    path.write_bytes(data)
    try:
        rows = read(path)
    except UserError as error:
        assert "data.path: x." in str(error)
    else:
        assert all(row["row"] is not None for row in rows)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": "1"}\n')
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfa\r\n1\r\n")
    assert values(read(tmp_path / "x.jsonl")) == values(read(tmp_path / "x.csv")) == [{"a": "1"}]


def test_csv_that_is_not_utf_8_is_told_not_guessed(tmp_path):
    (tmp_path / "x.csv").write_bytes("a,b\ncafé,1\ntea,2\n".encode("latin-1"))
    broken, good = read(tmp_path / "x.csv")
    assert "UTF-8" in broken["error"]
    assert broken["line"] == 2
    assert values([good]) == [{"a": "tea", "b": "2"}]


def test_csv_rows_with_other_widths_than_the_header_are_told(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1\n1,2\n\n1,2,3\n")
    short, good, long = read(tmp_path / "x.csv")
    assert "1 cells where the header has 2" in short["error"]
    assert "3 cells where the header has 2" in long["error"]
    assert values([good]) == [{"a": "1", "b": "2"}]
    assert [row["line"] for row in (short, good, long)] == [2, 3, 5]


@given(st.lists(st.sampled_from(["a", '"', ",", "\n", "\r\n", " "]), max_size=40).map("".join))
@settings(deadline=None, max_examples=300)
def test_each_line_of_a_csv_file_is_part_of_one_row(text):
    lines = list(io.StringIO(text, newline=""))
    rows = list(csv_rows(lines))
    assert [line for row in rows for line in row.text] == lines
    assert [row.line for row in rows] == [1 + sum(len(row.text) for row in rows[:n]) for n in range(len(rows))]


@given(
    # behind a quote that closes by mistake stands a letter: a comma or a line feed there would make well-formed CSV of it
    rows=st.lists(st.lists(st.text("b ,\n", max_size=3).map("a{}z".format), min_size=2, max_size=2), min_size=1, max_size=6),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    data=st.data(),
)
@settings(deadline=None, max_examples=200)
def test_a_quote_too_many_or_too_few_loses_no_row(tmp_path_factory, rows, quoting, data):
    buffer = io.StringIO()
    csv.writer(buffer, quoting=quoting, lineterminator="\n").writerows([("x", "y"), *rows])
    text = buffer.getvalue()
    at = data.draw(st.integers(0, len(text) - 1))
    broken = text[:at] + text[at + 1 :] if text[at] == '"' else f'{text[:at]}"{text[at:]}'
    path = tmp_path_factory.mktemp("raw") / "x.csv"
    path.write_text(broken)
    try:
        found = read(path)
    except UserError as error:
        assert re.search(r"x\.csv cannot be read as csv: .*quote", str(error))
    else:
        assert len(found) >= len(rows)


def test_a_quote_that_is_never_closed_is_told_with_the_line_of_its_cell(tmp_path):
    rows = [f"message {n},cat\n" for n in range(300)]
    for at, end in ((250, '"hello, you",cat\n'), (299, '"a\nlong one","cat"\n')):
        rows[99] = '"two\nlines","cat\n'
        rows[at] = end
        (tmp_path / "x.csv").write_text("text,category\n" + "".join(rows))
        told = "',' expected after '\"'"
        with pytest.raises(
            UserError, match=rf"x\.csv cannot be read as csv: .*\n  lines 101 to 253: {told} .* begins in line 102"
        ):
            read(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("text,category\n" + "".join(rows[:100]) + "message,cat\n" * 50)
    with pytest.raises(UserError, match=r"lines 101 to 152: unexpected end of data in the cell that begins in line 102"):
        read(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text('"text,category\na,b\n')
    with pytest.raises(UserError, match="its header is not CSV: unexpected end of data"):
        read(tmp_path / "x.csv")


def test_a_line_that_is_not_csv_harms_no_other(tmp_path):
    (tmp_path / "x.csv").write_text('a,b\n"he said "yes" to me",1\n5" disk,2\n"so ""he"" said\nyes",3\nlast,"4')
    broken, disk, quoted, last = read(tmp_path / "x.csv")
    assert values([disk, quoted]) == [{"a": '5" disk', "b": "2"}, {"a": 'so "he" said\nyes', "b": "3"}]
    assert [row["line"] for row in (broken, disk, quoted, last)] == [2, 3, 4, 6]
    assert "is not CSV" in broken["error"]
    assert json.loads(broken["row"]) == '"he said "yes" to me",1'
    assert last["error"].startswith("is not CSV: unexpected end of data in the cell that begins in line 6")


def test_a_cell_may_be_long(tmp_path):
    (tmp_path / "x.csv").write_text("a\n" + "x" * 500_000 + "\n")
    assert len(values(read(tmp_path / "x.csv"))[0]["a"]) == 500_000


def test_only_the_first_rows_are_read_if_asked(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(50)))
    assert read(path, max_rows=7) == read(path)[:7]
    assert read(path, max_rows=70) == read(path)


def test_compressed_files_are_read(tmp_path):
    with gzip.open(tmp_path / "x.jsonl.gz", "wb") as file:
        file.write(b'{"a": 1}\n' * 3000)
    assert len(values(read(tmp_path / "x.jsonl.gz", format="jsonl"))) == 3000
    whole = (tmp_path / "x.jsonl.gz").read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:20] + b"xxxx" + whole[24:], b"no gzip"):
        (tmp_path / "y.gz").write_bytes(broken)
        with pytest.raises(UserError, match=r"data\.path: y\.gz cannot be read as jsonl"):
            read(tmp_path / "y.gz", format="jsonl")


def test_a_source_may_be_there_later_if_it_says_so(tmp_path):
    def ingested(optional):
        sources = {"mine": {"path": "mine.jsonl"}, "later": {"path": "later", "optional": optional}}
        rows, facts = ingest(DataParameters(sources=sources), folders_at(tmp_path), serial(), 10)
        return len(rows), [fact["file"] for fact in facts]

    (tmp_path / "mine.jsonl").write_text('{"a": 1}\n')
    assert ingested(optional=True) == (1, ["mine.jsonl"])
    with pytest.raises(UserError, match="there is no file later"):
        ingested(optional=False)
    (tmp_path / "later").mkdir()
    assert ingested(optional=True) == (1, ["mine.jsonl"])
    (tmp_path / "later" / "some.jsonl").write_text('{"a": 2}\n{"a": 3}\n')
    assert ingested(optional=True) == (3, ["mine.jsonl", "later/some.jsonl"])
    nothing = DataParameters(sources={"later": {"path": "never", "optional": True}})
    with pytest.raises(UserError, match="never: no rows in it"):
        ingest(nothing, folders_at(tmp_path), serial(), 10)


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.jsonl", b""), ("x.jsonl", b"\n \n"), ("x.csv", b""), ("x.csv", b"a,b\n"), ("x.json", b"[]")],
)
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="no rows in it"):
        read(tmp_path / name)


def test_a_missing_file_an_empty_folder_and_an_unknown_ending_are_told(tmp_path):
    with pytest.raises(UserError, match=r"there is no file nothing\.csv"):
        read(tmp_path / "nothing.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"there is no file folder"):
        read(tmp_path / "folder")
    for name, ending in (("x.xlsx", r"\.xlsx"), ("x", "nothing"), ("x.gz", "nothing")):
        with pytest.raises(UserError, match=f"ends in {ending}: say data.format"):
            format_of(name, "auto")
    assert format_of("X.CSV", "auto") == "csv"
    assert format_of("x.json.zst", "auto") == "json"
    assert format_of("x.txt", "jsonl") == "jsonl"


def test_a_folder_a_glob_and_several_sources_are_read_in_a_fixed_order(tmp_path):
    (tmp_path / "raw").mkdir()
    for name, number in (("b.jsonl", 2), ("a.jsonl", 1), ("c.csv", 3)):
        text = f'{{"n": "{number}"}}\n' if name.endswith("l") else f"n\n{number}\n"
        (tmp_path / "raw" / name).write_text(text)
    (tmp_path / "raw" / ".hidden").write_text("x")
    assert [row["n"] for row in values(read(tmp_path / "raw"))] == ["1", "2", "3"]
    data = DataParameters(path="raw/*.jsonl")
    rows, facts = ingest(data, folders_at(tmp_path), serial(), 10)
    assert [json.loads(row["row"])["n"] for row in rows.iter_rows()] == ["1", "2"]
    assert [fact["file"] for fact in facts] == ["raw/a.jsonl", "raw/b.jsonl"]
    sources = {"late": {"path": "raw/c.csv"}, "early": {"path": "raw/a.jsonl", "weight": 2}}
    rows, _ = ingest(DataParameters(path=None, sources=sources), folders_at(tmp_path), serial(), 10)
    assert [row["source"] for row in rows.iter_rows()] == ["late", "early"]


def test_a_json_array_and_zstandard_are_read_and_memory_urls_too(tmp_path):
    import fsspec
    import zstandard

    (tmp_path / "x.json").write_text('[{"n": 1}, 2, {"n": 3}]')
    first, wrong, last = read(tmp_path / "x.json")
    assert values([first, last]) == [{"n": 1}, {"n": 3}]
    assert wrong["error"] == "is not a JSON object but int"
    packed = zstandard.ZstdCompressor().compress(b'{"n": 1}\n' * 100)
    (tmp_path / "x.jsonl.zst").write_bytes(packed)
    assert len(read(tmp_path / "x.jsonl.zst")) == 100
    (tmp_path / "x.jsonl.zst").write_bytes(packed[:-5] + b"xxxxx")
    with pytest.raises(UserError, match="cannot be read as jsonl"):
        read(tmp_path / "x.jsonl.zst")
    with fsspec.open("memory://bucket/y.jsonl", "wb") as file:
        file.write(b'{"n": 7}\n')
    rows, (fact,) = ingest(DataParameters(path="memory://bucket/y.jsonl"), folders_at(tmp_path), serial(), 10)
    assert [json.loads(row["row"]) for row in rows.iter_rows()] == [{"n": 7}]
    assert fact["file"] == "memory:///bucket/y.jsonl"


def test_shards_change_nothing_but_the_number_of_files(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(50)))
    assert read(path, rows_per_shard=7) == read(path)


def test_a_header_that_repeats_a_name_is_told(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(UserError, match="its header names 'a' more than once"):
        read(tmp_path / "x.csv")
