"""A record's side depends on its content and the seed, on nothing else."""

import hashlib

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.pipelines.data_processing.parameters import Split
from luthier.pipelines.data_processing.split import SPLITS, position, split

SHARES = Split(validation=0.1, test=0.2)


def table(count, prefix=""):
    """Return a table of that many contents."""
    keys = [hashlib.sha256(f"{prefix}{n}".encode()).hexdigest() for n in range(count)]
    names = [f"{prefix}{n}" for n in range(count)]
    return pa.table({"id": pa.array(names, pa.string()), "content_hash": pa.array(keys, pa.string())})


def sides(records, seed=0, shares=SHARES):
    """Return the side of each content."""
    found = split(records, shares, seed)
    return dict(zip(found.column("content_hash").to_pylist(), found.column("split").to_pylist(), strict=True))


@given(st.integers(0, 100), st.randoms(use_true_random=False), st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_a_record_keeps_its_side_whatever_rows_come_go_or_move(more, order, seed):
    records = table(150)
    before = sides(records, seed)
    places = list(range(150))
    order.shuffle(places)
    others = pa.concat_tables([table(more, "other"), records.take(places[:100])])
    after = sides(others, seed)
    assert all(after[key] == before[key] for key in after.keys() & before.keys())
    assert len(after.keys() & before.keys()) == 100


def test_rows_and_their_order_stay():
    records = table(100)
    assert split(records, SHARES, 0).drop_columns(["split"]).equals(records)


def test_shares_come_out_as_asked():
    found = list(sides(table(20_000)).values())
    assert set(found) == set(SPLITS)
    assert found.count("test") / 20_000 == pytest.approx(0.2, abs=0.01)
    assert found.count("validation") / 20_000 == pytest.approx(0.1, abs=0.01)


def test_a_larger_test_share_only_adds_to_the_test_side():
    small, large = (sides(table(500), shares=Split(validation=0, test=share)) for share in (0.1, 0.3))
    assert {key for key, side in small.items() if side == "test"} < {key for key, side in large.items() if side == "test"}
    assert "validation" not in small.values()


def test_another_seed_gives_another_split():
    one, other = sides(table(500), 0), sides(table(500), 1)
    assert one != other
    agree = sum(one[key] == other[key] for key in one) / 500
    assert agree == pytest.approx(0.7**2 + 0.1**2 + 0.2**2, abs=0.1)


@given(st.text(), st.integers())
@settings(deadline=None, max_examples=100)
def test_positions_are_shares(key, seed):
    assert 0 <= position(key, seed) < 1


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_records_are_told(count):
    with pytest.raises(UserError, match=f"{count} records are too few"):
        split(table(count), SHARES, 0)
