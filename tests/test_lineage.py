"""A run names its commit and local changes; without git it says so."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.lineage import UNKNOWN, FolderInput, FolderSource, commit, environment, flatten, local_changes
from luthier.pipelines.evaluation.parameters import EvaluationParameters

NESTED = st.recursive(
    st.none() | st.integers() | st.text() | st.lists(st.integers(), max_size=3),
    lambda inner: st.dictionaries(st.text("abcxyz_", min_size=1, max_size=4), inner, min_size=1, max_size=4),
    max_leaves=15,
)


def git(folder: Path, *arguments: str) -> str:
    """Run git as a user of its own."""
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *settings, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """Return a repository with one commit."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "data/01_raw").mkdir(parents=True)
    for name in ("code.py", "data/01_raw/messages.jsonl"):
        (tmp_path / name).write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    return tmp_path


def test_the_commit_is_the_one_that_is_checked_out(repository):
    assert commit(repository) == git(repository, "rev-parse", "HEAD")
    before = commit(repository)
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "two")
    assert commit(repository) != before


def test_local_changes_are_those_of_tracked_files_but_the_raw_data(repository):
    assert local_changes(repository) == ""
    (repository / "untracked.py").write_text("x\n")
    (repository / "data/01_raw/messages.jsonl").write_text("somebody's secret\n")
    assert local_changes(repository) == ""
    (repository / "code.py").write_text("two\n")
    assert "-one\n+two" in local_changes(repository)
    git(repository, "add", "code.py")
    assert "-one\n+two" in local_changes(repository)
    assert "secret" not in local_changes(repository)


def test_the_changes_lead_back_to_the_state_that_ran(repository, tmp_path_factory):
    (repository / "code.py").write_text("two\n")
    (repository / ".gitignore").write_text("*credentials*\n")
    git(repository, "add", ".gitignore")
    for name, text in {
        "src/new one.py": "x = 'ä'\n\n",
        "conf/base/extra.yml": "a: 1\n",
        "conf/credentials.yml": "secret\n",
    }.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)
    clone = tmp_path_factory.mktemp("clone") / "again"
    git(repository, "clone", "--quiet", str(repository), str(clone))
    (clone / "change.diff").write_text(local_changes(repository) + "\n")
    git(clone, "checkout", "--quiet", commit(repository))
    git(clone, "apply", "change.diff")
    assert (clone / "code.py").read_text() == "two\n"
    assert (clone / "src/new one.py").read_text() == "x = 'ä'\n\n"
    assert (clone / "conf/base/extra.yml").read_text() == "a: 1\n"
    assert "secret" not in (clone / "change.diff").read_text()


def test_whatever_lies_about_in_a_project_ends_no_run(repository):
    (repository / "src/nested").mkdir(parents=True)
    git(repository / "src/nested", "init", "--quiet")
    (repository / "src/.#locked.py").symlink_to("me@nowhere.1234")
    (repository / "src/old.py").write_bytes("# Zürich\n".encode("latin-1"))
    (repository / "code.py").write_bytes("# Zürich\n".encode("latin-1"))
    changes = local_changes(repository)
    assert "+# Z\ufffdrich" in changes
    assert "src/old.py" in changes
    assert "locked" not in changes


def test_without_a_repository_the_commit_is_unknown(tmp_path):
    assert commit(tmp_path) == UNKNOWN
    assert commit(tmp_path / "nothing") == UNKNOWN
    assert local_changes(tmp_path) == ""


def test_a_repository_without_a_commit_is_unknown(tmp_path):
    git(tmp_path, "init", "--quiet")
    assert commit(tmp_path) == UNKNOWN
    assert local_changes(tmp_path) == ""


@given(st.dictionaries(st.text("abcxyz_", min_size=1, max_size=4), NESTED, max_size=4))
@settings(deadline=None, max_examples=100)
def test_flat_parameters_lead_back_to_the_nested_ones(values):
    again: dict = {}
    for key, value in flatten(values).items():
        *path, last = key.split(".")
        place = again
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    assert again == values


def test_models_are_flattened_and_an_empty_block_is_not_lost():
    flat = flatten({"evaluation": EvaluationParameters(max_new_tokens=7), "empty": {}})
    assert flat["evaluation.max_new_tokens"] == 7
    assert flat["empty"] == {}


def test_the_environment_is_told_in_text():
    tags = environment({"env": None, "runtime_params": {"a": 1}})
    assert tags["luthier.env"] == "base"
    assert all(isinstance(value, str) and value for value in tags.values())


def test_a_folder_is_an_mlflow_input_with_its_digest(tmp_path):
    entry = FolderInput("examples", tmp_path, "0123456789abcdef" * 4)
    assert entry.digest == ("0123456789abcdef" * 4)[:36]
    assert entry.to_dict()["name"] == "examples"
    source = FolderSource.from_dict(entry.source.to_dict())
    assert source.load() == str(tmp_path)
