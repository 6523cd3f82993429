"""Versions are found as Kedro finds them, and go whole."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kedro.io import Version

from luthier.data_versions.store import File, data_sets, freed, local_files, remove_tree
from luthier.datasets import ShardsDataset
from luthier.errors import UserError
from luthier.remote import cache_folder, fetch
from tests.data_versions.stored import NEW, OLD, SHARDS, catalog, save_document, save_table


def test_a_version_counts_when_kedro_would_load_it(tmp_path):
    table, document = catalog(str(tmp_path / "[odd] name"), "table", documents=["report"])
    assert table.versions() == document.versions() == []
    for version in (OLD, NEW):
        save_table(table, version, [{"n": 1}])
        save_document(document, version, {})
    assert table.versions() == document.versions() == [NEW, OLD]
    Path(table.data(NEW), "manifest.json").unlink()  # an upload that was broken off
    assert table.versions() == [OLD]
    assert document.versions() == [NEW, OLD]


def test_what_has_no_versions_is_none_of_them(tmp_path):
    entries = {
        "plain": {"type": "json.JSONDataset", "filepath": str(tmp_path / "x.json")},
        "_anchor": {"type": SHARDS, "filepath": str(tmp_path / "y"), "versioned": True},
        "log": {"type": "luthier.datasets.RequestLogDataset", "uri": "sqlite:///x.db"},
    }
    assert data_sets(entries) == []


def test_a_removed_version_is_gone_and_others_stay(tmp_path):
    (table,) = catalog(str(tmp_path), "table")
    for version in (OLD, NEW):
        save_table(table, version, [{"n": 1}])
    table.remove(NEW)
    assert table.versions() == [OLD]
    assert [path.name for path in Path(table.path).iterdir()] == [OLD]


def test_a_removal_that_is_killed_leaves_no_half_version(tmp_path):
    (table,) = catalog(str(tmp_path), "table")
    save_table(table, OLD, [{"n": 1}])
    # dies at the first file that it deletes
    code = (
        "import os, shutil, signal, sys; from pathlib import Path; from luthier.data_versions.store import remove_tree\n"
        "shutil.rmtree = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "remove_tree(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(table.path, OLD))], check=False)
    assert done.returncode == -signal.SIGKILL
    assert table.versions() == []
    (left,) = table.leftovers()
    assert left.name.startswith(f".removed-{OLD}")
    remove_tree(left)
    assert table.leftovers() == []


@given(data=st.data())
def test_bytes_are_free_when_the_last_name_of_a_file_goes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("links")
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=5))
    names = {}
    for number, size in enumerate(sizes):
        first = folder / f"{number}-0"
        first.write_bytes(b"x" * size)
        names[number] = [first]
        for copy in range(1, data.draw(st.integers(1, 3))):
            names[number].append(folder / f"{number}-{copy}")
            os.link(first, names[number][-1])
    every = [path for paths in names.values() for path in paths]
    gone = data.draw(st.sets(st.sampled_from(every)))
    files = [file for file in local_files(folder) if Path(file.path) in gone]
    told = freed(files)
    used = sum(paths[0].stat().st_size for paths in names.values())
    for path in gone:
        path.unlink()
    left = {path.stat().st_ino: path.stat().st_size for path in folder.iterdir()}
    assert told == used - sum(left.values())
    shutil.rmtree(folder)


def test_files_of_a_storage_are_free_each():
    assert freed([File("a", 3), File("b", 4)]) == 7


def test_versions_in_a_bucket_go_with_their_copies_here(bucket):
    for version, number in ((OLD, 1), (NEW, 2)):
        ShardsDataset("s3://bucket/data/table", Version(None, version)).save(pa.table({"n": [number]}))
    assert len(list(cache_folder().iterdir())) == 2
    (table,) = catalog("s3://bucket/data", "table")
    assert table.versions() == [NEW, OLD]
    with table.opened(OLD) as folder:
        assert pa.parquet.read_table(folder / "part-00000.parquet").to_pylist() == [{"n": 1}]
    assert sum(file.bytes for file in table.files(OLD)) > 0
    table.show(OLD, "unused", "2026-01-03T00.00.00.000Z")
    assert table.versions()[0] == "2026-01-03T00.00.00.000Z"
    table.remove(OLD)
    assert table.versions() == ["2026-01-03T00.00.00.000Z", NEW]
    table.remove("2026-01-03T00.00.00.000Z")
    assert ShardsDataset("s3://bucket/data/table", Version(None, None)).load().to_table().to_pylist() == [{"n": 2}]
    table.remove(NEW)
    assert table.storage.find("bucket/data") == []
    assert list(cache_folder().iterdir()) == []
    with pytest.raises(UserError, match="not a finished artefact"):
        fetch(table.storage, table.data(NEW))
