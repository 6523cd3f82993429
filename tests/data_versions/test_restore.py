"""What is brought back is what it was, all of it or nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.data_versions.restore import restore
from luthier.data_versions.store import DataSet
from luthier.errors import UserError
from tests.data_versions.stored import NEW, NEXT, OLD, catalog, save_document, save_table, tree


@pytest.fixture
def sets(tmp_path):
    """Return two tables and a document in two versions."""
    found = catalog(str(tmp_path / "data"), "one", "two", documents=["report"])
    for version, number in ((OLD, 1), (NEW, 2)):
        for dataset in found[:2]:
            save_table(dataset, version, [{"n": number}])
        save_document(found[2], version, {"n": number})
    return found


def test_the_old_bytes_are_the_newest_version(sets):
    restore(sets, OLD, NEXT)
    for dataset in sets:
        assert dataset.versions() == [NEXT, NEW, OLD]
        assert tree(Path(dataset.path, NEXT)) == tree(Path(dataset.path, OLD))
        assert dataset.leftovers() == []
    sets[0].remove(OLD)  # it shares the bytes, not the fate
    assert tree(Path(sets[0].path, NEXT))


@pytest.mark.parametrize("step", ["copy", "show"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_is_broken_off_leaves_the_data_as_it_was(sets, tmp_path, monkeypatch, step, at):
    before, done = tree(tmp_path), []
    real = getattr(DataSet, step)

    def broken(self, *arguments):
        done.append(self)
        if len(done) == at + 1:
            raise KeyboardInterrupt
        real(self, *arguments)

    monkeypatch.setattr(DataSet, step, broken)
    with pytest.raises(KeyboardInterrupt):
        restore(sets, OLD, NEXT)
    assert tree(tmp_path) == before


def test_killed_while_copying_it_changes_nothing_and_given_again_it_is_whole(sets, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from luthier.data_versions.store import DataSet\n"
        "from luthier.data_versions.restore import restore\n"
        "from tests.data_versions.stored import OLD, NEXT, catalog\n"
        "real, done = DataSet.copy, []\n"
        "def killed(self, *arguments):\n"
        "    real(self, *arguments)\n"
        "    done.append(self)\n"
        "    if len(done) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "DataSet.copy = killed\n"
        "restore(catalog(sys.argv[1], 'one', 'two', documents=['report']), OLD, NEXT)\n"
    )
    root = str(Path(__file__).parents[2])
    settings = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], check=False, env=settings)
    assert done.returncode == -signal.SIGKILL
    assert [dataset.versions() for dataset in sets] == [[NEW, OLD]] * 3
    assert [len(dataset.leftovers()) for dataset in sets] == [1, 1, 0]
    restore(sets, OLD, NEXT)
    assert [dataset.versions() for dataset in sets] == [[NEXT, NEW, OLD]] * 3


def test_a_version_that_is_not_whole_is_told(sets):
    sets[1].remove(OLD)
    with pytest.raises(UserError, match=rf"Version {OLD} is not whole, so it cannot be brought back: two missing"):
        restore(sets, OLD, NEXT)


def test_a_clock_that_is_behind_is_told(sets):
    with pytest.raises(UserError, match="is the clock right"):
        restore(sets, OLD, "2020-01-01T00.00.00.000Z")
    assert sets[0].versions() == [NEW, OLD]
