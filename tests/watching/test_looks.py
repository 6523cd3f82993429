"""A look compares with the data of what is in production, whatever was prepared since."""

import subprocess
from types import SimpleNamespace

import pytest

from luthier.watching.looks import Looks, data_in_production
from tests.data_versions.stored import NEW, NEXT, OLD, catalog, record, records


@pytest.fixture
def rows(tmp_path):
    """Return records in three versions."""
    (dataset,) = catalog(str(tmp_path / "data"), "split_records")
    for version in (OLD, NEW, NEXT):
        records(dataset, version, [record("a")])
    return dataset


def say(registry, number, tag, version):
    """Tag the run of a version of the model."""
    registry.client.set_tag(registry.resolve(number).run, tag, f"{version} sha256:x")


def test_it_is_the_data_that_the_champion_was_made_from(home, rows):
    registry = home.registry()
    say(registry, 1, "luthier.data.split_records", OLD)
    say(registry, 2, "luthier.made.split_records", NEW)
    found = []
    for number in (1, 2):
        registry.promote(number)
        found.append(data_in_production(registry, rows))
    registry.rollback()
    assert [*found, data_in_production(registry, rows)] == [OLD, NEW, OLD]


def test_where_that_is_unknown_or_gone_it_is_the_newest_and_the_log_says_why(home, rows, caplog):
    registry = home.registry()
    assert data_in_production(registry, rows) is None
    registry.promote(1)
    assert data_in_production(registry, rows) is None
    say(registry, 1, "luthier.data.split_records", OLD)
    rows.remove(OLD)
    assert data_in_production(registry, rows) is None
    told = [line.getMessage() for line in caplog.records if "newest prepared data" in line.getMessage()]
    assert [("No version" in line, "not known" in line, f"{OLD}, which is gone" in line) for line in told] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_a_look_names_that_version(home, rows, tmp_path, monkeypatch):
    registry, given = home.registry(), []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: given.append(command) or SimpleNamespace(returncode=0))
    looks = Looks(tmp_path, "test", str(tmp_path), registry, rows)
    looks.look()
    registry.promote(1)
    say(registry, 1, "luthier.made.split_records", OLD)
    looks.look()
    newest, named = given
    assert named == [*newest, "--load-versions", f"split_records:{OLD}"]
