"""What was done to the rows is what the comparison says."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.cli.data import _drift, _told
from luthier.data_versions.diff import compare
from luthier.data_versions.prepared import resolve
from luthier.errors import UserError
from luthier.records import SPLIT_RECORD
from luthier.shards import write_shards
from tests.data_versions.stored import NEW, OLD, record

SPLITS, LABELS = ("train", "test"), (None, "a", "b")
ROWS = st.dictionaries(
    st.sampled_from([f"m-{number}" for number in range(9)]),
    st.tuples(st.sampled_from(["hello", "bye"]), st.sampled_from(SPLITS), st.sampled_from(LABELS)),
    max_size=9,
)


def shards_of(rows, folder):
    """Return the records as a table."""
    table = pa.Table.from_pylist([record(name, *facts) for name, facts in rows.items()], SPLIT_RECORD)
    return write_shards(table, folder, rows_per_shard=3)


@given(old=ROWS, new=ROWS)
@settings(max_examples=40)
def test_every_row_is_told_and_the_way_back_is_the_opposite(tmp_path_factory, old, new):
    folder = tmp_path_factory.mktemp("rows")
    before, after = shards_of(old, folder / "old"), shards_of(new, folder / "new")
    found, back = compare(before, after), compare(after, before)
    assert set(found.added) == new.keys() - old.keys()
    assert set(found.removed) == old.keys() - new.keys()
    both = old.keys() & new.keys()
    expected = {
        name: tuple(column for column, at in (("messages", 0), ("label", 2)) if old[name][at] != new[name][at]) for name in both
    }
    assert found.changed == {name: columns for name, columns in expected.items() if columns}
    assert found.moved == {name: (old[name][1], new[name][1]) for name in both if old[name][1] != new[name][1]}
    assert found.is_empty == (old == new)
    for mix, rows in ((found.labels, 2), (found.splits, 1)):
        assert sum(pair[0] for pair in mix.values()) == len(old)
        assert {name: pair[1] for name, pair in mix.items() if pair[1]} == {
            name: count for name in mix if (count := sum((facts[rows] or "") == name for facts in new.values()))
        }
    assert (set(back.added), set(back.removed)) == (set(found.removed), set(found.added))
    assert back.changed == found.changed
    assert back.labels == {name: pair[::-1] for name, pair in found.labels.items()}


KIND = ["my grinder is broken and makes a loud noise", "where is the parcel that you sent", "please cancel my order today"]
OTHER = ["the bicycle needs new brakes and a chain", "which helmet fits a child of six years", "the saddle is too low for me"]


@pytest.mark.parametrize(("kind", "drifted"), [(KIND, False), (OTHER, True)])
def test_rows_that_came_are_told_when_they_are_of_another_kind(tmp_path, kind, drifted):
    old = {f"m-{number}": (f"{KIND[number % 3]} {number % 7}", "train", None) for number in range(90)}
    came = {f"n-{number}": (f"{kind[number % 3]} {number % 7}", "train", None) for number in range(30)}
    before, after = shards_of(old, tmp_path / "old"), shards_of(old | came, tmp_path / "new")
    found = _drift(before, after, set(came))
    assert found is not None
    assert (found["rows"], found["drifted"]) == (30, drifted)
    assert (" words (effect " in _told(found, 30)) == drifted
    assert _drift(before, after, set(list(came)[:19])) is None


def test_a_version_is_found_by_each_of_its_names():
    known, models, aliases = [OLD, NEW], {1: OLD, 2: "2025-01-01T00.00.00.000Z"}, {"champion": 1, "candidate": 2}
    for which in (OLD, "2026-01-01", "1", "champion"):
        assert resolve(which, known, models, aliases) == OLD
    for which in (NEW, "newest", "2026-01-02"):
        assert resolve(which, known, models, aliases) == NEW


@pytest.mark.parametrize(
    ("which", "told"),
    [
        ("2026", "More than one version of the data begins with '2026'"),
        ("champoin", r"did you mean 'champion'\?"),
        ("", "No version of the data begins with ''"),
        ("candidate", "candidate: version 2 of the model was trained on 2025-01-01T00.00.00.000Z, which is gone"),
        ("7", "7: no version 7 of the model is registered whose data is known"),
    ],
)
def test_what_is_no_version_is_told_with_those_that_are(which, told):
    with pytest.raises(UserError, match=told):
        resolve(which, [OLD, NEW], {1: OLD, 2: "2025-01-01T00.00.00.000Z"}, {"champion": 1, "candidate": 2})


def test_without_any_data_it_is_told_how_to_make_some():
    with pytest.raises(UserError, match="kedro run --pipeline data_processing"):
        resolve("newest", [], {}, {})
