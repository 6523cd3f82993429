"""DVC runs the pipelines as its stages, and lineage carries its hashes."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import grimp
import pytest
import yaml
from commands import ROOT, environment, require
from mlflow import MlflowClient
from storage import ENVIRONMENT, s3_server

from luthier.dvc import md5_known, with_md5
from luthier.pipeline_registry import PARAMETERS, register_pipelines

RAW = "data/01_raw/mine.jsonl"


def md5(text: bytes) -> str:
    """Return the md5 of bytes."""
    return hashlib.md5(text).hexdigest()


@pytest.fixture
def project(tmp_path):
    """Return a project with a raw file of which DVC knows nothing."""
    file = tmp_path / RAW
    file.parent.mkdir(parents=True)
    file.write_bytes(b"one")
    return tmp_path


def lock(project, **hashes):
    """Write a dvc.lock."""
    deps = [{"path": path, "md5": md5} for path, md5 in hashes.items()]
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"one": {"cmd": "x", "deps": deps}}}))


def test_a_file_that_dvc_does_not_know_has_no_md5(project):
    assert md5_known(project, project / RAW) is None
    assert md5_known(project, project / "nothing") is None
    assert md5_known(project, Path("/etc/hostname")) is None
    entries = [{"file": RAW, "sha256": "x"}, {"file": "s3://bucket/x.jsonl", "sha256": "y"}]
    assert with_md5(entries, project) == entries


def test_a_file_beside_which_its_md5_stands_has_it_while_it_is_true(project):
    (project / f"{RAW}.dvc").write_text(yaml.safe_dump({"outs": [{"path": "mine.jsonl", "md5": md5(b"one")}]}))
    assert with_md5([{"file": RAW, "sha256": "x"}], project) == [{"file": RAW, "sha256": "x", "md5": md5(b"one")}]
    (project / RAW).write_bytes(b"two")
    assert md5_known(project, project / RAW) is None
    lock(project, **{RAW: md5(b"two")})
    assert md5_known(project, project / RAW) == md5(b"two")


def test_a_file_in_a_folder_has_the_folders_while_it_is_as_listed(project):
    listed = json.dumps([{"md5": md5(b"one"), "relpath": "mine.jsonl"}]).encode()
    folder = f"{md5(listed)}.dir"
    (project / "data" / "01_raw.dvc").write_text(yaml.safe_dump({"outs": [{"path": "01_raw", "md5": folder}]}))
    assert md5_known(project, project / RAW) is None  # the list is not here
    cached = project / ".dvc" / "cache" / "files" / "md5" / folder[:2] / folder[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(listed)
    assert md5_known(project, project / RAW) == folder
    (project / RAW).write_bytes(b"two")
    assert md5_known(project, project / RAW) is None


def test_what_dvc_cannot_read_is_not_known(project):
    (project / "dvc.lock").write_text("{")
    (project / f"{RAW}.dvc").write_text("- no mapping")
    assert md5_known(project, project / RAW) is None


def test_stages_name_all_that_their_pipelines_read_and_the_parameters_that_there_are():
    """A data set that passes between pipelines and is no output of a stage would be lost by `dvc checkout`."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    catalog = {}
    for file in (ROOT / "conf" / "base").glob("catalog_*.yml"):
        catalog |= yaml.safe_load(file.read_text())
    path_of = {name: entry.get("filepath", "").replace("${globals:data}", "data") for name, entry in catalog.items()}
    made = {path for stage in stages.values() for out in stage["outs"] for path in out}
    for name, stage in stages.items():
        pipeline = register_pipelines()[name]
        inputs = {path_of[one] for one in pipeline.inputs() if not one.startswith("param")}
        assert inputs <= set(stage["deps"]), name
        assert inputs <= made
        blocks = {one.removeprefix("params:") for one in pipeline.inputs() if one.startswith("params:")} - {"folders"}
        tracked = {key for entry in stage["params"] for keys in entry.values() for key in keys}
        assert blocks == tracked, name
        assert tracked <= {*PARAMETERS, "seed"}
        for entry in stage["params"]:
            for file, keys in entry.items():
                assert set(keys) <= yaml.safe_load((ROOT / file).read_text()).keys()
        for path in stage["deps"]:
            assert path.startswith("data/0") or "$" in path or (ROOT / path).exists(), path


def test_stages_depend_on_all_code_that_their_pipelines_import():
    graph = grimp.build_graph("luthier")
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        room = f"luthier.pipelines.{name}"
        modules = {room, *graph.find_descendants(room)}
        imported = set().union(*map(graph.find_upstream_modules, modules)) - modules - {"luthier"}
        files = {f"src/{module.replace('.', '/')}" for module in imported}
        tracked = [path.removesuffix(".py") for path in stage["deps"] if path.startswith("src/")]
        assert {file for file in files if not any(f"{file}/".startswith(f"{path}/") for path in tracked)} == set(), name


# --- with DVC itself


@pytest.fixture(scope="module")
def dvc(tmp_path_factory):
    """Return DVC, in a virtual environment of its own: its libraries are not ours. One on the PATH will do."""
    if found := shutil.which("dvc"):
        return found
    place = tmp_path_factory.mktemp("dvc")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [
        str(place / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-compile",
        "dvc[s3]>=3.60,<4",
    ]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    require(done.returncode == 0, "a package index with dvc[s3]")
    return str(place / "bin" / "dvc")


@pytest.mark.slow
def test_dvc_runs_what_has_changed_and_keeps_it_elsewhere(finished, dvc, tmp_path, monkeypatch):
    home = tmp_path / "project"
    shutil.copytree(finished, home)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml", "requirements.lock"):
        (home / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, home / name)
    shutil.copytree(ROOT / "src" / "luthier", home / "src" / "luthier", ignore=shutil.ignore_patterns("__pycache__"))
    stages = home / "dvc.yaml"
    stages.write_text(stages.read_text().replace("env: local", "env: test"))
    shim = home / ".venv" / "bin" / "kedro"
    shim.parent.mkdir(parents=True)
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kedro "$@"\n')
    shim.chmod(0o755)
    settings = environment() | ENVIRONMENT | {"PYTHONPATH": str(ROOT / "src"), "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}

    def run(*command):
        done = subprocess.run(command, cwd=home, env=settings, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def git(*arguments):
        return run("git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false", *arguments)

    # what `kedro run` has made is taken over as it is
    run(str(shim), "data", "metrics", "metrics/evaluation.json", "--env", "test")
    git("init", "--quiet")
    run(dvc, "remote", "add", "folder", str(tmp_path / "folder"))
    run(dvc, "add", "data/01_raw/general_text.jsonl")
    run(dvc, "commit", "--force", "--quiet")
    git("add", "--all")
    assert ".dvc/cache" not in git("status", "--short")
    git("commit", "--quiet", "-m", "one")
    run(dvc, "push", "--remote", "folder")
    first = {path.name for path in (home / "data/06_models/tuned_model").iterdir()}
    assert run(dvc, "repro").count("didn't change, skipping") == 3

    # a parameter of training: its stage and the one after it
    parameters = home / "conf" / "base" / "parameters_training.yml"
    parameters.write_text(parameters.read_text().replace("learning_rate: 2.0e-3", "learning_rate: 1.0e-3"))
    said = run(dvc, "repro")
    assert "Stage 'data_processing' didn't change, skipping" in said
    assert "Running stage 'training'" in said
    assert "Running stage 'evaluation'" in said
    changes = json.loads(run(dvc, "metrics", "diff", "--json"))["metrics/evaluation.json"]
    assert changes["tuned.nll_per_token"]["diff"] != 0
    assert not any(name.startswith("base.") for name in changes)
    assert "learning_rate" in run(dvc, "params", "diff")
    assert run("git", "status", "--short").split() == [
        "M",
        "conf/base/parameters_training.yml",
        "M",
        "dvc.lock",
        "M",
        "metrics/evaluation.json",
    ]

    # lineage carries the hash under which DVC keeps what was read, and what it writes down is no change of the code
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    trained = client.search_runs(["1"], "tags.`luthier.dvc.examples` != ''", order_by=["attributes.start_time"])[0].data.tags
    locked = yaml.safe_load((home / "dvc.lock").read_text())["stages"]
    (known,) = (out["md5"] for out in locked["data_processing"]["outs"] if out["path"] == "data/05_model_input/examples")
    assert trained["luthier.dvc.examples"] == known
    added = yaml.safe_load((home / "data/01_raw/general_text.jsonl.dvc").read_text())["outs"][0]["md5"]
    (source,) = with_md5([{"file": "data/01_raw/general_text.jsonl"}], home)
    assert source["md5"] == added

    # elsewhere: a folder, and a bucket
    git("commit", "--quiet", "--all", "-m", "two")
    both = {path.name for path in (home / "data/06_models/tuned_model").iterdir()}
    assert both > first
    with s3_server() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3", endpoint_url=address, use_listings_cache=False).mkdir("kept")
        run(dvc, "remote", "add", "bucket", "s3://kept/luthier")
        run(dvc, "remote", "modify", "bucket", "endpointurl", address)
        for remote in ("bucket", "folder"):
            run(dvc, "push", "--remote", remote)
            shutil.rmtree(home / ".dvc" / "cache")
            shutil.rmtree(home / "data/06_models/tuned_model")
            run(dvc, "pull", "--remote", remote)
            assert {path.name for path in (home / "data/06_models/tuned_model").iterdir()} == both

    # an earlier commit: Kedro's newest version is that of the commit
    git("checkout", "--quiet", "HEAD~1", "--", "dvc.lock")
    run(dvc, "fetch", "--remote", "folder")
    run(dvc, "checkout", "--force")
    assert {path.name for path in (home / "data/06_models/tuned_model").iterdir()} == first
