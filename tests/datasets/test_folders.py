"""Versions count once they are whole; what a killed run leaves is never the newest."""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from kedro.io import DataCatalog, DatasetError, Version

from luthier.artefacts import MANIFEST, staged, verify
from luthier.datasets import ModelDirectoryDataset, ShardsDataset
from luthier.models import ModelDirectory
from luthier.shards import Shards

OLD, NEW = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"


def dataset(folder, load=None, save=None, kind=ShardsDataset):
    """Return a versioned dataset as a new run sees it."""
    return kind(filepath=str(folder / "table"), version=Version(load, save))


def numbers(shards):
    """Return the column of numbers."""
    return shards.to_table().column("n").to_pylist()


@pytest.fixture
def two(tmp_path):
    """Return a folder with two versions."""
    for version, values in ((OLD, [1]), (NEW, [1, 2])):
        dataset(tmp_path, save=version).save(pa.table({"n": values}))
    return tmp_path


def test_the_newest_whole_version_is_loaded_and_any_other_on_request(two):
    assert numbers(dataset(two).load()) == [1, 2]
    assert numbers(dataset(two, load=OLD).load()) == [1]
    assert dataset(two).exists()
    assert (two / "table" / NEW / "table" / MANIFEST).is_file()


def test_a_half_written_version_is_never_the_newest(two):
    later = two / "table" / "9999-01-01T00.00.00.000Z"
    shutil.copytree(two / "table" / NEW, later)
    assert dataset(two)._get_load_path().parent == later
    (later / "table" / MANIFEST).unlink()
    assert numbers(dataset(two).load()) == [1, 2]
    (later / "table").rename(later / ".staging-table-12345678")
    assert numbers(dataset(two).load()) == [1, 2]
    assert not dataset(two, load=later.name).exists()
    with pytest.raises(DatasetError):
        dataset(two, load=later.name).load()


def test_a_version_is_never_overwritten(two):
    with pytest.raises(DatasetError):
        dataset(two, save=NEW).save(pa.table({"n": [3]}))
    assert numbers(dataset(two).load()) == [1, 2]


def test_a_save_that_fails_leaves_no_version(tmp_path):
    with pytest.raises(DatasetError):
        dataset(tmp_path, save=NEW).save("no table")
    assert not dataset(tmp_path).exists()
    assert not list(tmp_path.rglob(MANIFEST))
    assert not list(tmp_path.rglob(".staging-*"))
    with pytest.raises(DatasetError):
        dataset(tmp_path).load()


def test_loading_gives_a_handle_and_reads_no_data(two):
    loaded = dataset(two).load()
    assert isinstance(loaded, Shards)
    for file in loaded.files:
        file.unlink()
    assert len(dataset(two).load()) == 2


def test_an_unversioned_folder_works_as_well(tmp_path):
    plain = ShardsDataset(filepath=str(tmp_path / "table"))
    assert not plain.exists()
    plain.save(pa.table({"n": [7]}))
    assert plain.exists()
    assert numbers(plain.load()) == [7]


def test_the_catalog_makes_them(tmp_path):
    entry = {
        "type": "luthier.datasets.ShardsDataset",
        "filepath": str(tmp_path / "table"),
        "versioned": True,
        "metadata": {"x": 1},
    }
    catalog = DataCatalog.from_config({"table": entry}, save_version=NEW)
    catalog.save("table", pa.table({"n": [5]}))
    assert numbers(catalog.load("table")) == [5]
    assert str(tmp_path) in str(dataset(tmp_path)._describe())


@pytest.mark.parametrize("rows", [0, 3, 500])
def test_a_preview_is_small_text(tmp_path, rows):
    dataset(tmp_path, save=NEW).save(
        pa.table({"n": pa.array(range(rows), pa.int64()), "text": pa.array(["x" * 999] * rows, pa.string())})
    )
    preview = dataset(tmp_path).preview()
    assert preview["columns"] == ["n", "text"]
    assert len(preview["data"]) == min(20, rows)
    assert all(len(cell) <= 120 for row in preview["data"] for cell in row)
    assert len(pd.DataFrame(preview["data"])) == min(20, rows)


def model(folder: Path, weights: bytes = b"weights") -> ModelDirectory:
    """Return a model as training leaves it."""
    with staged(folder, method="lora", base={"identity": "x@1"}) as staging:
        (staging / "adapter.safetensors").write_bytes(weights)
        (staging / "tokenizer").mkdir()
        (staging / "tokenizer" / "a.json").write_text("{}")
    return ModelDirectory(folder)


def test_a_saved_model_has_the_same_hash_and_facts_and_outlives_the_work(tmp_path):
    made = model(tmp_path / "work")
    before = made.manifest
    dataset(tmp_path, save=NEW, kind=ModelDirectoryDataset).save(made)
    shutil.rmtree(tmp_path / "work")
    loaded = dataset(tmp_path, kind=ModelDirectoryDataset).load()
    assert loaded.manifest == before == verify(loaded.folder)
    assert loaded.manifest["method"] == "lora"


def test_a_model_that_was_not_finished_is_not_saved(tmp_path):
    (tmp_path / "work").mkdir()
    with pytest.raises(DatasetError):
        dataset(tmp_path, save=NEW, kind=ModelDirectoryDataset).save(ModelDirectory(tmp_path / "work"))
    assert not dataset(tmp_path, kind=ModelDirectoryDataset).exists()
