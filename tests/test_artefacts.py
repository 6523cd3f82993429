"""Folders are whole or not there, whatever happens on the way; a manifest tells any change."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.artefacts import (
    MANIFEST,
    canonical_json,
    copy_tree,
    hash_of,
    is_complete,
    read_manifest,
    staged,
    verify,
    write_atomically,
)
from luthier.errors import UserError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
FILES = st.dictionaries(st.sampled_from(["a", "b.txt", "deep/c", "deep/er/d", "ünï code"]), st.binary(max_size=64), min_size=1)


def fill(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def content(folder: Path) -> dict[str, bytes]:
    """Read the files of a folder, without its manifest."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def shuffled(value):
    """Return an equal value whose dictionaries have another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(JSON)
@settings(deadline=None, max_examples=100)
def test_canonical_json_reads_back_and_does_not_see_the_order_of_keys(value):
    assert json.loads(canonical_json(value)) == value
    assert hash_of(value) == hash_of(shuffled(value))


@given(JSON, JSON)
@settings(deadline=None, max_examples=100)
def test_different_values_have_different_hashes(one, other):
    assert (hash_of(one) == hash_of(other)) == (canonical_json(one) == canonical_json(other))


@given(files=FILES)
@settings(deadline=None, max_examples=25)
def test_a_staged_folder_reads_back_and_verifies(tmp_path_factory, files):
    final = tmp_path_factory.mktemp("staged") / "not" / "yet" / "there"
    with staged(final, colour="blue") as staging:
        fill(staging, files)
        assert not final.exists()
    assert content(final) == files
    assert verify(final)["colour"] == "blue"
    assert verify(final) == read_manifest(final)
    assert [path.name for path in final.parent.iterdir()] == [final.name]


@given(files=FILES)
@settings(deadline=None, max_examples=25)
def test_the_root_hash_depends_on_content_alone(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("hash")
    for name, order in (("one", list(files)), ("two", list(reversed(files)))):
        with staged(folder / name) as staging:
            fill(staging, {key: files[key] for key in order})
    with staged(folder / "three") as staging:
        fill(staging, files | {next(iter(files)): files[next(iter(files))] + b"!"})
    one, two, three = (read_manifest(folder / name)["sha256"] for name in ("one", "two", "three"))
    assert one == two != three


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_exception_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(error), staged(tmp_path / "final") as staging:
        fill(staging, {"a": b"half", "deep/c": b"done"})
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_artefact_is_never_overwritten(tmp_path):
    with staged(tmp_path / "final") as staging:
        fill(staging, {"a": b"first"})
    with pytest.raises(FileExistsError), staged(tmp_path / "final") as staging:
        fill(staging, {"a": b"second"})
    assert content(tmp_path / "final") == {"a": b"first"}
    assert verify(tmp_path / "final")
    assert len(list(tmp_path.iterdir())) == 1


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a Python process and wait for its first line."""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a process for good."""
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    process.stdout.close()


STOP_INSIDE = """
import sys, time
from pathlib import Path
from luthier.artefacts import staged
with staged(Path(sys.argv[1])) as staging:
    (staging / "a").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""

STAGE_FOR_EVER = """
import sys
from pathlib import Path
from luthier.artefacts import staged
print("ready", flush=True)
for number in range(1_000_000):
    with staged(Path(sys.argv[1], str(number))) as staging:
        for name in "abc":
            (staging / name).write_text(f"{number}{name}" * 5000)
"""

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from luthier.artefacts import write_atomically
write_atomically(Path(sys.argv[1]), "0" * 200_000)
print("ready", flush=True)
for number in range(1_000_000):
    write_atomically(Path(sys.argv[1]), str(number % 10) * 200_000)
"""


def test_a_killed_process_leaves_no_folder_that_counts_and_the_next_one_succeeds(tmp_path):
    final = tmp_path / "final"
    kill(start(STOP_INSIDE, str(final)))
    assert not final.exists()
    assert [path.name.startswith(".staging-") for path in tmp_path.iterdir()] == [True]
    assert not any(is_complete(path) for path in tmp_path.iterdir())
    with staged(final) as staging:
        fill(staging, {"a": b"whole"})
    assert content(final) == {"a": b"whole"}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_moment_a_process_is_killed_at_every_final_folder_is_whole(tmp_path, seed):
    process = start(STAGE_FOR_EVER, str(tmp_path))
    time.sleep(random.Random(seed).uniform(0.05, 0.3))
    kill(process)
    finals = [path for path in tmp_path.iterdir() if not path.name.startswith(".staging-")]
    for final in finals:
        assert set(verify(final)["files"]) == {"a", "b", "c"}
    assert len(list(tmp_path.iterdir())) - len(finals) <= 1


def test_a_reader_beside_a_writer_that_is_killed_never_sees_a_part_of_a_text(tmp_path):
    path = tmp_path / "latest"
    process = start(WRITE_FOR_EVER, str(path))
    end = time.monotonic() + 0.4
    texts = set()
    while time.monotonic() < end:
        texts.add(path.read_text())
    kill(process)
    texts.add(path.read_text())
    assert len(texts) > 1
    assert {len(text) for text in texts} == {200_000}
    assert all(len(set(text)) == 1 for text in texts)


@given(files=FILES, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_verify_names_a_flipped_bit_a_missing_file_and_a_file_too_many(tmp_path_factory, files, seed):
    folder = tmp_path_factory.mktemp("damage")
    with staged(folder / "final") as staging:
        fill(staging, files)
    name = random.Random(seed).choice(sorted(files))
    data = files[name]
    for damage, expected in (
        (lambda path: path.write_bytes(bytes([data[0] ^ 1]) + data[1:] if data else b"x"), f"{name} has changed"),
        (lambda path: path.unlink(), f"{name} is missing"),
        (lambda path: path.with_name("stranger").write_bytes(b""), "stranger is not in the manifest"),
    ):
        copy = folder / f"copy-{expected.replace('/', '-')}"
        shutil.copytree(folder / "final", copy)
        damage(copy / name)
        with pytest.raises(UserError) as caught:
            verify(copy)
        assert expected in str(caught.value)


def test_verify_notices_an_edited_manifest(tmp_path):
    with staged(tmp_path / "final") as staging:
        fill(staging, {"a": b"x", "b": b"y"})
    manifest = read_manifest(tmp_path / "final")
    (tmp_path / "final" / "b").unlink()
    del manifest["files"]["b"]
    (tmp_path / "final" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="root hash"):
        verify(tmp_path / "final")


@pytest.mark.parametrize("text", ["", '{"files": {', "[]", "{}", '{"files": 3, "sha256": "x"}', "null"])
def test_a_broken_manifest_is_a_users_error(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match="not a finished artefact"):
        verify(tmp_path)


def test_a_folder_without_a_manifest_is_not_complete(tmp_path):
    (tmp_path / "a").write_text("x")
    assert not is_complete(tmp_path)
    assert not is_complete(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a finished artefact"):
        read_manifest(tmp_path)


@given(files=FILES)
@settings(deadline=None, max_examples=25)
def test_a_copy_has_the_same_hash_and_outlives_its_source(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("copy")
    with staged(folder / "one") as staging:
        fill(staging, files)
    with staged(folder / "two") as staging:
        copy_tree(folder / "one", staging)
    assert read_manifest(folder / "one")["sha256"] == read_manifest(folder / "two")["sha256"]
    shutil.rmtree(folder / "one")
    assert verify(folder / "two")
    assert content(folder / "two") == files


def test_writing_atomically_makes_folders_replaces_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "deep" / "file"
    for text in ("first", "zweite: äöü", ""):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(path.parent.iterdir()) == [path]


def test_who_may_read_a_file_stays_as_it_was_though_nobody_may_write_it():
    # root may write anything: it becomes somebody else, once all is imported
    script = "import os, sys; from pathlib import Path; from luthier.artefacts import write_atomically; "
    script += "os.getuid() or os.setuid(65534); write_atomically(Path(sys.argv[1]), 'new', 0o444)"
    with TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        file = Path(place, "file")
        file.write_text("old")
        subprocess.run([sys.executable, "-c", script, str(file)], check=True)
        assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o444)
        assert [path.name for path in Path(place).iterdir()] == ["file"]
