"""What is to be erased is found wherever it stands, and nothing of it is left."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from fsspec import filesystem
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.artefacts import canonical_json
from luthier.data_versions.erase import Record, Where, erase, find
from luthier.data_versions.needles import LEAST, Needles
from luthier.data_versions.raw_files import RawFile
from luthier.data_versions.store import DataSet
from luthier.errors import UserError
from luthier.executors import key_of
from luthier.serving.records.logged import read_requests, row_of
from luthier.serving.records.tables import FEEDBACK, REQUESTS, make_tables, open_database, transaction
from luthier.text.clean import clean_with_changes
from luthier.text.pii import placeholder
from luthier.text.prepare import PromptSettings, ScrubSettings, clean_message, scrub_message
from tests.data_versions.stored import NEW, NEXT, OLD, catalog, record, records, save_document, save_table
from tests.serving.logs import NOON, logged

ANNA, KEY = "anna@example.com", "a key"
THERE = placeholder("email", ANNA, KEY)


@given(before=st.text(max_size=20), after=st.text(max_size=20))
@settings(max_examples=150)
def test_a_value_is_found_in_what_preparation_leaves_of_any_text(before, after):
    settings_ = PromptSettings(scrub=ScrubSettings())
    message = {"role": "user", "content": f"{before} {ANNA} {after}"}
    scrubbed, values = scrub_message(clean_message(message, settings_)[0], settings_, KEY)
    if ANNA not in values.values():  # it became part of something longer, such as another address
        return
    wanted = Needles.of_text(ANNA.upper(), KEY, settings_.scrub)
    table = pa.table({"messages": [[scrubbed]], "n": [1]})
    assert wanted.rows(table).tolist() == [True]
    assert wanted.in_value({"any": [scrubbed["content"]]})


def is_long_enough(text):
    return min(len(text.strip()), len(clean_with_changes(text)[0].strip())) >= LEAST


@given(text=st.text(min_size=LEAST, max_size=20).filter(is_long_enough))
def test_a_text_is_found_in_columns_of_json_and_in_pages(text):
    import html

    import markupsafe

    wanted = Needles.of_text(text, KEY, None)
    inner = f"so {text} it is"
    table = pa.table({"row": [json.dumps({"a": inner}), json.dumps({"a": inner}, ensure_ascii=False), inner, "else"]})
    assert wanted.rows(table).tolist()[:3] == [True] * 3
    assert wanted.in_page(f"<p>{html.escape(inner)}</p>")
    assert wanted.in_page(f"<p>{markupsafe.escape(inner)}</p>")  # as Jinja writes it: &#39; and &#34;


def test_a_text_that_would_stand_everywhere_is_refused():
    with pytest.raises(UserError, match="4 characters at least"):
        Needles.of_text(" ab ", KEY, None)


@pytest.mark.parametrize("text", ["<br><br>", "<p></p><br>", "\u200b" * 5, "<b>hi</b>"])
def test_a_text_of_which_nothing_is_left_is_refused(text):
    with pytest.raises(UserError, match="of which data processing leaves '(hi)?', is too short"):
        Needles.of_text(text, KEY, None)


@pytest.fixture
def home(tmp_path, uri):
    """Return a project in which Anna wrote m-1 of version NEW, and asked the gateway; OLD knows nothing of her."""
    raw = tmp_path / "mine.jsonl"
    rows = [{"id": "m-1", "body": f"Dear all, I am {ANNA} and wait"}, {"id": "m-2", "body": "Nobody writes to me at all"}]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = catalog(str(tmp_path / "data"), "ingested_rows", "records", "split_records", "examples", documents=["sources"])
    others = catalog(str(tmp_path / "data"), documents=["drift", "figures"])
    said = {"m-1": f"Dear all, I am {THERE} and wait", "m-2": rows[1]["body"], "m-3": "An old message of somebody"}
    for version, names in ((OLD, ["m-2", "m-3"]), (NEW, ["m-1", "m-2"])):
        ingested = [
            {"source": "mine", "file": "mine.jsonl", "line": 1, "row": json.dumps(row), "error": None}
            for row in rows
            if row["id"] in names
        ]
        save_table(prepared[0], version, ingested or [{"source": "", "file": "", "line": 0, "row": "{}", "error": ""}])
        for dataset in prepared[1:3]:
            records(dataset, version, [record(name, said[name]) for name in names])
        save_table(prepared[3], version, [{"id": name, "input_ids": [1, 2]} for name in names])
        save_document(prepared[4], version, [{"file": "mine.jsonl"}])
    save_document(others[0], OLD, {"quoted": [said["m-2"]]})
    save_document(others[0], NEW, {"quoted": ["...", said["m-1"]]})
    save_document(others[1], NEW, {"accuracy": 0.5})
    make_tables(open_database(uri))
    asked = [
        logged(1, messages=[{"role": "user", "content": f"it is {THERE}"}], answer="{}", version=1),
        logged(2, messages=[{"role": "user", "content": "it is me"}], answer="{}", version=1),
        logged(3, messages=[{"role": "user", "content": "and me"}], answer="{}", version=1),
    ]
    vote = {"name": "helpful", "rating": "up", "at": NOON.isoformat(), "updated_at": NOON.isoformat()}
    with transaction(open_database(uri)) as connection:
        connection.execute(REQUESTS.insert(), [row_of(request, keep_text=True) for request in asked])
        connection.execute(
            FEEDBACK.insert(),
            [
                {**vote, "request": "r000003", "correction": f"say {THERE}", "comment": None},
                {**vote, "request": "r000002", "correction": "say me", "comment": "good"},
            ],
        )
    (tmp_path / "work" / "step").mkdir(parents=True)
    (tmp_path / "work" / "step" / "part").write_text(ANNA)
    (tmp_path / "answers" / "0a").mkdir(parents=True)
    (tmp_path / "answers" / "0a" / "answers.parquet").write_text(ANNA)
    file = RawFile(str(raw), "mine.jsonl", "jsonl", "mine")
    return Where(str(tmp_path), [file], "id", prepared, others, uri, [tmp_path / "work", tmp_path / "answers"], KEY)


def wanted():
    """Return what to look for."""
    return Needles.of_text(ANNA, KEY, ScrubSettings())


def the_record(home):
    """Return the record of erasures."""
    return Record(filesystem("file"), f"{home.root}/erasures.jsonl")


def test_it_is_found_in_each_place_and_nowhere_else(home):
    found = find(wanted(), home, {1: OLD, 2: NEW, 3: "gone"})
    assert [(rows.file.shown, rows.lines) for rows in found.raw] == [("mine.jsonl", (1,))]
    assert found.prepared == {NEW: ["ingested_rows", "records", "split_records", "examples"]}
    assert [(dataset.name, version) for dataset, version in found.others] == [("drift", NEW)]
    assert found.requests == ["r000001", "r000003"]
    assert [(model.number, model.rows) for model in found.models] == [(2, {"train": 1}), (3, None)]


def test_what_a_request_said_is_found_in_reports_that_quote_it_without_its_id(home):
    said = "Why didn't anybody answer my first three letters?"
    asked = logged(
        4, messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": said}], answer="{}", version=1
    )
    with transaction(open_database(home.log_uri)) as connection:
        connection.execute(REQUESTS.insert(), [row_of(asked, keep_text=True)])
    save_document(home.others[1], OLD, {"examples": [f"{said[:60]}"]})
    found = find(Needles(names=frozenset({"r000004"})), home, {})
    assert found.requests == ["r000004"]
    assert [(dataset.name, version) for dataset, version in found.others] == [("figures", OLD)]


def test_a_row_is_found_by_its_id_with_all_that_quotes_it(home):
    found = find(Needles(names=frozenset({"m-1"})), home, {2: NEW})
    assert [rows.lines for rows in found.raw] == [(1,)]
    assert list(found.prepared) == [NEW]
    assert [(dataset.name, version) for dataset, version in found.others] == [("drift", NEW)]
    assert find(Needles(names=frozenset({"mine"})), home, {2: NEW}).is_nothing


@pytest.mark.parametrize("called", ["mine:m-1", "a key", "another id of an earlier configuration"])
def test_a_row_is_found_by_its_id_however_a_version_calls_it(home, called):
    row = json.loads(Path(home.raw[0].location).read_text().splitlines()[0])
    own = {**record(called, row["body"].replace(ANNA, THERE)), "key": key_of("mine", canonical_json(row))}
    records(home.prepared[1], NEXT, [own, record("m-2")])
    records(home.prepared[2], NEXT, [own, record("m-2")])
    found = find(Needles(names=frozenset({"m-1"})), home, {3: NEXT})
    assert found.prepared[NEXT] == ["records", "split_records"]
    assert [model.rows for model in found.models] == [{"train": 1}]


def test_afterwards_it_stands_nowhere_and_all_else_is_as_it_was(home):
    erase(find(wanted(), home, {2: NEW}), home, the_record(home), "ticket 7")
    assert find(wanted(), home, {}).is_nothing
    assert [json.loads(line)["id"] for line in Path(home.raw[0].location).read_text().splitlines()] == ["m-2"]
    assert [dataset.versions() for dataset in home.prepared] == [[OLD]] * 5
    assert [dataset.versions() for dataset in home.others] == [[OLD], [NEW]]
    assert not any(folder.exists() for folder in home.work)
    requests = read_requests(home.log_uri)
    assert requests["prompt"].isna().tolist() == [True, False, True]
    assert requests["status"].tolist() == [200] * 3  # what was counted stays
    with open_database(home.log_uri).connection() as connection:
        votes = connection.execute(FEEDBACK.select().order_by(FEEDBACK.c.request)).mappings().all()
    assert [(vote["correction"], vote["comment"], vote["rating"]) for vote in votes] == [
        ("say me", "good", "up"),
        (None, None, "up"),
    ]
    bytes_left = b"".join(path.read_bytes() for path in Path(home.root).rglob("*") if path.is_file())
    for text in (ANNA, THERE):
        assert text.encode() not in bytes_left  # not in free pages of the database, nor in the record
    begun, done = the_record(home).lines()
    assert (begun["erasure"], begun["state"], begun["reason"], begun["requests"]) == (1, "begun", "ticket 7", 2)
    assert (done["erasure"], done["state"]) == (1, "done")
    assert begun["models"] == [{"number": 2, "data": NEW, "rows": {"train": 1}}]


def test_what_a_removal_left_that_was_broken_off_goes_too(home, monkeypatch):
    def cut_off(folder):
        raise KeyboardInterrupt

    rmtree, left = shutil.rmtree, []
    for _ in range(8):  # each time one folder further: it has its new name, and all that was in it
        for path in left:
            rmtree(path)
        monkeypatch.setattr("luthier.data_versions.store.shutil.rmtree", cut_off)
        with suppress(KeyboardInterrupt):
            erase(find(wanted(), home, {}), home, the_record(home), "")
        monkeypatch.setattr("luthier.data_versions.store.shutil.rmtree", rmtree)
        left = find(wanted(), home, {}).broken_off
        assert [path.name[:9] for path in left] == [".removed-"]
    erase(find(wanted(), home, {}), home, the_record(home), "")
    assert find(wanted(), home, {}).is_nothing
    bytes_left = b"".join(path.read_bytes() for path in Path(home.root).rglob("*") if path.is_file())
    assert not any(text.encode() in bytes_left for text in (ANNA, THERE))
    assert not any(path.name.startswith(".removed-") for path in Path(home.root).rglob(".*"))


@pytest.mark.parametrize(("mode", "stays"), [(0o600, True), (0o444, False)], ids=["a private file", "one of a store's"])
def test_a_link_to_a_raw_file_stays_one_unless_nobody_may_write_the_file(home, mode, stays):
    raw = Path(home.raw[0].location)
    real = raw.with_name("0cc175b9")
    raw.rename(real)
    raw.symlink_to(real)
    real.chmod(mode)
    erase(find(wanted(), home, {}), home, the_record(home), "")
    assert ANNA not in raw.read_text()
    assert (raw.is_symlink(), raw.stat().st_mode & 0o777) == (stays, mode)
    assert (ANNA in real.read_text()) != stays  # of a store's `dvc gc` removes it


def test_a_number_in_a_report_is_no_row(home):
    report = next(dataset for dataset in home.others if dataset.name == "figures")
    save_document(report, OLD, {"examples": 12, "worst": [{"count": "12", "text": "x"}]})
    save_document(report, "2025-01-01T00.00.00.000Z", {"worst": [{"id": "12"}]})
    found = find(Needles(names=frozenset({"12"})).with_names({"12"}), home, {})
    assert found.others == [(report, "2025-01-01T00.00.00.000Z")]


@pytest.mark.parametrize("at", range(6))
def test_broken_off_anywhere_it_is_finished_when_given_again(home, monkeypatch, at):
    real, done = DataSet.remove, []

    def broken(self, version):
        if len(done) == at:
            raise KeyboardInterrupt
        done.append(version)
        real(self, version)

    monkeypatch.setattr(DataSet, "remove", broken)
    with pytest.raises(KeyboardInterrupt):
        erase(find(wanted(), home, {}), home, the_record(home), "")
    monkeypatch.setattr(DataSet, "remove", real)
    again = find(wanted(), home, {})
    assert not again.is_nothing
    erase(again, home, the_record(home), "")
    assert find(wanted(), home, {}).is_nothing
    assert [dataset.versions() for dataset in home.prepared] == [[OLD]] * 5
    assert [(line["erasure"], line["state"]) for line in the_record(home).lines()] == [(1, "begun"), (2, "begun"), (2, "done")]
