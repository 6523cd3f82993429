"""Folders on S3 are whole or not there, and what comes back is what was put."""

import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from kedro.io import DatasetError, Version
from storage import ENVIRONMENT, s3_server

from luthier.artefacts import MANIFEST, staged, verify
from luthier.datasets import ModelDirectoryDataset, ShardsDataset
from luthier.errors import UserError
from luthier.models import ModelDirectory
from luthier.remote import cache_folder, fetch, open_storage, upload
from luthier.shards import Shards, write_shards

OLD, NEW = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"
TABLE = pa.table({"n": list(range(10))})


@pytest.fixture(scope="module")
def server():
    """Return the address of an S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture
def options(server, tmp_path, monkeypatch):
    """Return what fsspec needs to reach an empty bucket; copies go to a folder of this test."""
    for name, value in (ENVIRONMENT | {"LUTHIER_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    found = {"endpoint_url": server}
    storage = fsspec.filesystem("s3", use_listings_cache=False, **found)
    if storage.exists("bucket"):
        storage.rm("bucket", recursive=True)
    storage.mkdir("bucket")
    return found


def dataset(options, load=None, save=None, kind=ShardsDataset):
    """Return a versioned dataset as a new run sees it."""
    return kind("s3://bucket/data/table", version=Version(load, save), credentials=options)


def test_a_table_comes_back_from_any_machine(options):
    dataset(options, save=OLD).save(TABLE)
    shutil.rmtree(cache_folder())  # as another machine sees it
    loaded = dataset(options).load()
    assert isinstance(loaded, Shards)
    assert loaded.to_table().equals(TABLE)
    verify(loaded.folder)
    assert dataset(options).load().folder == loaded.folder


def test_a_handle_and_a_model_keep_their_facts(options, tmp_path):
    with staged(tmp_path / "model", base={"name": "x"}, method="lora") as folder:
        (folder / "sub").mkdir()
        (folder / "sub/a.txt").write_text("hello")
    dataset(options, save=OLD, kind=ModelDirectoryDataset).save(ModelDirectory(tmp_path / "model"))
    shutil.rmtree(cache_folder())
    loaded = dataset(options, kind=ModelDirectoryDataset).load()
    assert loaded.manifest == ModelDirectory(tmp_path / "model").manifest
    assert (loaded.folder / "sub/a.txt").read_text() == "hello"


def test_an_upload_that_was_broken_off_is_no_version(options):
    dataset(options, save=OLD).save(TABLE)
    storage, _ = open_storage("s3://bucket", **options)
    storage.pipe_file(f"bucket/data/table/{NEW}/table/part-00000.parquet", b"half")
    assert dataset(options).exists()
    assert dataset(options).load().to_table().equals(TABLE)
    with pytest.raises(DatasetError):
        dataset(options, load=NEW).load()
    assert not dataset(options, load=NEW).exists()


def test_no_version_is_overwritten(options, tmp_path):
    shards = write_shards(TABLE, tmp_path / "table")
    storage, path = open_storage("s3://bucket/here", **options)
    upload(shards.folder, storage, path)
    with pytest.raises(FileExistsError):
        upload(shards.folder, storage, path)


@pytest.mark.parametrize("harm", ["changed", "missing", "root"])
def test_damage_is_told_and_leaves_no_copy(options, tmp_path, harm):
    shards = write_shards(TABLE, tmp_path / "table")
    storage, path = open_storage("s3://bucket/here", **options)
    upload(shards.folder, storage, path)
    shutil.rmtree(cache_folder())
    if harm == "changed":
        storage.pipe_file(f"{path}/part-00000.parquet", b"other")
    elif harm == "missing":
        storage.rm_file(f"{path}/part-00000.parquet")
    else:
        text = (shards.folder / MANIFEST).read_text().replace(shards.sha256, "0" * 64)
        storage.pipe_file(f"{path}/{MANIFEST}", text.encode())
    told = {"changed": "has changed", "missing": "is missing", "root": "root hash differs"}[harm]
    with pytest.raises(UserError, match=told):
        fetch(storage, path)
    assert [found.name for found in cache_folder().iterdir()] == []


def test_a_manifest_cannot_name_files_outside(options, tmp_path):
    with staged(tmp_path / "bad") as folder:
        (folder / "a").write_text("x")
    text = (tmp_path / "bad" / MANIFEST).read_text().replace('"a"', '"../../a"')
    storage, path = open_storage("s3://bucket/bad", **options)
    storage.pipe_file(f"{path}/{MANIFEST}", text.encode())
    with pytest.raises(UserError, match="no artefact of ours"):
        fetch(storage, path)


def test_an_unknown_protocol_is_told():
    with pytest.raises(UserError, match="nowhere://"):
        ShardsDataset("nowhere://x/y")


def test_the_cache_is_in_the_users_cache_folder(monkeypatch):
    monkeypatch.delenv("LUTHIER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/luthier")
