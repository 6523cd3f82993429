"""A file of the catalog is the newest version when all of it was written, and not before."""

import gc
import os
import signal
import subprocess
import sys
import textwrap

import fsspec
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from kedro.io import DataCatalog, Version
from kedro.io.core import generate_timestamp
from kedro_datasets.json import JSONDataset

from luthier.datasets.whole_files import write_whole_files

VALUES = {
    "json.JSONDataset": {"ä": [1, None]},
    "text.TextDataset": "zwei\nZeilen, é",
    "pandas.ParquetDataset": pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
    "matplotlib.MatplotlibDataset": plt.figure(),
}


@pytest.fixture(autouse=True)
def whole():
    """Write whole files, as every run of the project does."""
    write_whole_files()


def dataset(kind, tmp_path):
    """Return a data set as the catalog makes it."""
    entry = {"type": kind, "filepath": str(tmp_path / "report.file"), "versioned": True}
    return DataCatalog.from_config({"it": entry}, save_version=generate_timestamp())["it"]


def files(folder):
    """Return all files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", VALUES)
def test_what_is_saved_is_there_and_nothing_beside_it(kind, tmp_path):
    dataset(kind, tmp_path).save(VALUES[kind])
    assert [path.name for path in files(tmp_path)] == ["report.file"]
    read = dataset(kind, tmp_path)
    read.resolve_load_version()
    if kind == "pandas.ParquetDataset":
        pd.testing.assert_frame_equal(read.load(), VALUES[kind])
    elif kind != "matplotlib.MatplotlibDataset":
        assert read.load() == VALUES[kind]


@pytest.mark.parametrize("error", [KeyboardInterrupt, TypeError])
def test_what_is_broken_off_leaves_nothing(error, tmp_path):
    def encoded(_):
        raise error

    unfit = JSONDataset(filepath=str(tmp_path / "report.json"), version=Version(None, "new"), save_args={"default": encoded})
    with pytest.raises(error if error is KeyboardInterrupt else Exception):
        unfit.save({"a": "x" * 100_000, "b": object()})
    assert files(tmp_path) == []


def test_a_file_that_is_there_is_written_as_ever(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with fsspec.open(str(tmp_path / "link.txt"), "w") as file:
        file.write("new")
    assert (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink()


def test_a_file_that_nobody_closes_is_there_all_the_same(tmp_path):
    fsspec.filesystem("file").open(str(tmp_path / "left.txt"), "w").write("all of it")
    gc.collect()
    assert (tmp_path / "left.txt").read_text() == "all of it"


def test_a_version_that_is_killed_half_way_is_no_version(tmp_path):
    JSONDataset(filepath=str(tmp_path / "report.json"), version=Version(None, "1")).save({"a": 1})
    script = f"""
        import os
        from kedro.io import Version
        from kedro_datasets.json import JSONDataset
        from luthier.datasets.whole_files import write_whole_files

        write_whole_files()
        kill = {{"default": lambda _: os.kill(os.getpid(), {int(signal.SIGKILL)})}}
        data = JSONDataset(filepath={str(tmp_path / "report.json")!r}, version=Version(None, "2"), save_args=kill)
        data.save({{"a": "x" * 100_000, "b": object()}})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(path.name.startswith(".staging-") for path in files(tmp_path))  # it had written a part
    assert JSONDataset(filepath=str(tmp_path / "report.json"), version=Version(None, None)).load() == {"a": 1}
