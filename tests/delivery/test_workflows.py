"""The workflows, the recipes for other systems, the image and the manifests: what linters say, and what none of them knows."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import ROOT, environment, require
from github_server import TOKEN, github
from workflows import WORKFLOWS, Runner, evaluate, load

from luthier.cli import cli

PINNED = re.compile(r"uses: (\S+@[0-9a-f]{40}) # (v\d+\.\d+\.\d+)$")
NAMES = sorted(path.name for path in WORKFLOWS.glob("*.yml"))
OTHERS = ("gitlab-ci.yml", "circleci.yml", "azure-pipelines.yml", "Jenkinsfile")
DEPLOY = ROOT / "deploy"


def tool(*arguments: str | Path, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run a linter of the development dependencies."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = shutil.which(str(arguments[0]), path=path)
    require(found is not None, f"{arguments[0]} (make test installs it)")
    line = [str(found), *map(str, arguments[1:])]
    return subprocess.run(line, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)


def accepted(*arguments: str | Path) -> str:
    done = tool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_actionlint_finds_nothing_and_would_find_something(tmp_path):
    accepted("actionlint", *WORKFLOWS.glob("*.yml"))
    broken = (WORKFLOWS / "train.yml").read_text().replace("steps.version.outputs.version", "steps.versoin.outputs.version")
    (tmp_path / "train.yml").write_text(broken)
    assert "versoin" in tool("actionlint", tmp_path / "train.yml").stdout


def test_zizmor_finds_nothing_and_would_find_something(tmp_path):
    accepted("zizmor", "--offline", "--quiet", ROOT / ".github")
    broken = (WORKFLOWS / "rollback.yml").read_text().replace('--reason "$REASON (', '--reason "${{ inputs.reason }} (')
    (tmp_path / "rollback.yml").write_text(broken)
    assert "template-injection" in tool("zizmor", "--offline", "--quiet", tmp_path / "rollback.yml").stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_may_do_nothing_but_what_it_says(name):
    text, said = (WORKFLOWS / name).read_text(), load(name)
    assert said["permissions"] == {}
    assert "group" in said["concurrency"]
    for line in text.splitlines():
        assert "uses:" not in line or PINNED.search(line), line
    for job in said["jobs"].values():
        assert job["timeout-minutes"]
        assert job["permissions"]
        assert "secrets." not in str(job) or job["environment"], "secrets are those of an environment"
        assert "secrets." not in str(job.get("env", "")), "only the step that needs a secret sees it"
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), "values come by the environment: none is read as code"
            assert "secrets." not in str(step.get("with", ""))


def test_each_action_has_one_version():
    pins = {found[1] for name in NAMES for found in map(PINNED.search, (WORKFLOWS / name).read_text().splitlines()) if found}
    assert len(pins) == len({pin.split("@")[0] for pin in pins})


def test_nothing_of_a_fork_meets_a_secret_or_a_runner_of_ours():
    for name in NAMES:
        said = load(name)
        if "pull_request" not in said["on"]:
            continue
        assert "secrets." not in (WORKFLOWS / name).read_text()
        for job in said["jobs"].values():
            assert job["runs-on"] == "ubuntu-24.04"
            assert set(job["permissions"].values()) == {"read"} or "github.event_name == 'push'" in job["if"]
    assert not any("pull_request_target" in load(name)["on"] or "workflow_run" in load(name)["on"] for name in NAMES)


def test_a_gpu_where_there_is_one_and_the_cpu_where_there_is_none():
    runs_on = load("train.yml")["jobs"]["train"]["runs-on"].strip("${} ")
    for inputs, variables, runner in (
        ({}, {}, "ubuntu-24.04"),
        ({}, {"TRAIN_RUNNER": "gpu"}, "gpu"),
        ({"runner": "ubuntu-24.04"}, {"TRAIN_RUNNER": "gpu"}, "ubuntu-24.04"),
    ):
        assert evaluate(runs_on, {"inputs": inputs, "vars": variables}) == runner


def commands_of(text: str) -> set[tuple[str, str]]:
    """Return our commands in a file, each with its options."""
    found = re.findall(r"\.venv/bin/kedro ([a-z]+)([^\n]*)", text)
    return {(name, option) for name, rest in found for option in re.findall(r"--[a-z-]+", rest) or [""]}


@pytest.mark.parametrize(
    "path", [*(WORKFLOWS / name for name in NAMES), *(DEPLOY / "ci" / name for name in OTHERS)], ids=lambda p: p.name
)
def test_the_commands_exist_and_take_these_options(path):
    for name, option in commands_of(path.read_text()):
        options = {text for parameter in cli.commands[name].params for text in parameter.opts}
        assert not option or option in options, (name, option)


def test_other_systems_give_the_same_commands():
    ours = commands_of("".join((WORKFLOWS / f"{name}.yml").read_text() for name in ("train", "deploy", "rollback", "monitor")))
    # these show the gate in their own log, and stages are started by the system itself
    ours -= {("comment", ""), ("dispatch", ""), ("gate", "--markdown"), ("run", "--params")}
    for name in OTHERS:
        assert commands_of((DEPLOY / "ci" / name).read_text()) == ours


@pytest.mark.parametrize(
    ("schema", "file", "options"),
    [
        ("gitlab-ci", "deploy/ci/gitlab-ci.yml", ["--data-transform", "gitlab-ci"]),
        ("circle-ci", "deploy/ci/circleci.yml", []),
        # the schema's patterns are older than Unicode mode
        (
            "azure-pipelines",
            "deploy/ci/azure-pipelines.yml",
            ["--data-transform", "azure-pipelines", "--regex-variant", "nonunicode"],
        ),
        ("compose-spec", "deploy/compose.yaml", []),
        ("dependabot", ".github/dependabot.yml", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_other_systems_fit_their_schemas(schema, file, options):
    accepted("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *options, file)


def test_the_image_is_built_as_hadolint_likes_it():
    accepted("hadolint", DEPLOY / "Dockerfile")
    stages = re.findall(r"^FROM \S+ AS (\S+)", (DEPLOY / "Dockerfile").read_text(), flags=re.M)
    targets = load("release.yml")["jobs"]["image"]["strategy"]["matrix"]["target"]
    assert set(targets) <= set(stages)
    assert stages[-1] == "cpu"


@pytest.mark.parametrize("overlay", ["base", "vllm"])
def test_the_manifests_are_whole(overlay, tmp_path):
    rendered = tmp_path / "all.yaml"
    rendered.write_text(accepted("kubectl", "kustomize", DEPLOY / "kubernetes" / overlay))
    accepted("kubernetes-validate", "--strict", rendered)
    objects = [one for one in yaml.safe_load_all(rendered.read_text()) if one]
    named = {(one["kind"], one["metadata"]["name"]) for one in objects}
    ports = {one["metadata"]["name"]: one["spec"]["ports"][0]["port"] for one in objects if one["kind"] == "Service"}
    for pod in (one["spec"]["template"]["spec"] for one in objects if "template" in one.get("spec", {})):
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["image"] != "luthier", "the image is set for all"
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"]["memory"]
            for source in container.get("envFrom", []):
                assert "secretRef" in source or ("ConfigMap", source["configMapRef"]["name"]) in named
        for volume in pod["volumes"]:
            assert "configMap" not in volume or ("ConfigMap", volume["configMap"]["name"]) in named
    # who is asked is there: by Prometheus, and by the gateway
    maps = {one["metadata"]["name"].rsplit("-", 1)[0]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
    settings = yaml.safe_load(maps["prometheus"]["prometheus.yml"])
    targets = [target for job in settings["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    targets += settings["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert dict(target.split(":") for target in targets) == {
        name: str(ports[name]) for name in ("gateway", "monitor", "alertmanager")
    }
    rules = {path.name: path.read_text() for path in (DEPLOY / "prometheus" / "rules").glob("*.yml")}
    assert maps["prometheus-rules"] == rules
    if overlay == "vllm":
        from luthier.serving.parameters import ServingParameters

        engine = ServingParameters(**yaml.safe_load(maps["serving"]["parameters_serving.yml"])["serving"]).engine
        # both servers are asked, whatever holds which version: what is taken back is answered by the one that still has it
        servers = tuple(f"http://{name}:{port}/v1" for name, port in sorted(ports.items()) if name.startswith("vllm-"))
        assert len(servers) == 2
        assert engine.urls == dict.fromkeys(("champion", "previous", "candidate"), servers)
        pods = [
            one["spec"]["template"]["metadata"]["labels"]
            for one in objects
            if one["metadata"]["name"].startswith("vllm-") and one["kind"] == "Deployment"
        ]
        for policy in (one["spec"] for one in objects if one["kind"] == "NetworkPolicy"):
            assert all(policy["podSelector"]["matchLabels"].items() <= labels.items() for labels in pods)
            assert policy["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"app": "gateway"}}}]


def test_a_tag_that_is_not_the_version_is_refused_before_anything_is_published(tmp_path):
    jobs = load("release.yml")["jobs"]
    first = {name for name, job in jobs.items() if "needs" not in job}
    assert not any("write" in jobs[name]["permissions"].values() for name in first)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "changelog.py", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.2.3"\n')
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "All"], ["tag", "v1.2.3"], ["tag", "v1.2.4"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    for tag, passes in {"v1.2.3": True, "v1.2.4": False}.items():
        runner = Runner(tmp_path, tmp_path / "runner", environment(), {"ref_name": tag}, {}, {})
        assert all(runner.run_job("release.yml", name).success for name in first) == passes


def test_the_changelog_names_what_came_since_the_version_before(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def changelog(tag):
        script = ROOT / "scripts" / "changelog.py"
        return subprocess.run([sys.executable, script, tag], cwd=tmp_path, capture_output=True, text=True, check=False)

    git("init", "-q")
    for version, subjects in {"0.9.0": ["One", "Two"], "0.10.0": ["Three"]}.items():
        (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\nversion = "{version}"\n')
        for subject in subjects:
            git("add", "-A")
            git("commit", "--allow-empty", "-qm", subject)
        git("tag", f"v{version}")
    said = changelog("v0.10.0").stdout
    assert "Since v0.9.0:" in said
    assert "- Three (" in said
    assert "One" not in said
    refused = changelog("v0.11.0")
    assert refused.returncode == 1
    assert "v0.10.0 would" in refused.stderr


def test_a_gate_that_does_not_pass_is_told_and_proposes_nothing(copied, tmp_path):
    (copied / ".venv").symlink_to(sys.prefix)
    with github() as server:
        server.pulls = {"abc": [5]}
        facts = {
            "ref": "refs/heads/main",
            "ref_name": "main",
            "sha": "abc",
            "repository": server.repository,
            "api_url": server.url,
        }
        runner = Runner(
            copied,
            tmp_path / "runner",
            environment() | {"PYTHONPATH": str(ROOT / "src")},
            facts | {"token": TOKEN},
            variables={"": {"KEDRO_CONF": "test"}, "training": {"MLFLOW_TRACKING_URI": f"sqlite:///{copied / 'mlflow.db'}"}},
            secrets={},
            without=frozenset({"Install", "Data, training, evaluation, registration"}),
        )
        done = runner.run_job("train.yml", "train")
        assert done.outcomes()["What does the gate say?"] == "failure"
        assert done.outcomes()["Tell the pull request"] == "success", done.log()
        assert done.outcomes()["Reports"] == "success"
        assert done.outcomes()["Propose it"] == "skipped"
        assert done.outputs == {}
        (comment,) = server.comments[5].values()
        assert comment.split("\n", 1)[1].strip() == done.summary.strip()
        assert "### Gate: " in comment
        assert server.dispatched == []
        # where the registry would be lost with the runner, nothing is begun
        runner.variables = {"": {"KEDRO_CONF": "test"}}
        done = runner.run_job("train.yml", "train")
        assert done.outcomes()["Is there a registry to work with?"] == "failure"
        assert "docs/ci-cd.md" in done.log()
        assert done.outcomes()["Data, training, evaluation, registration"] == "skipped"


def test_what_training_keeps_is_what_it_finds_again():
    steps = {step.get("name"): step for step in load("train.yml")["jobs"]["train"]["steps"]}
    restored, saved = steps["Checkpoints of a run that was cut off"]["with"], steps["Keep the checkpoints"]["with"]
    assert (restored["path"], restored["key"]) == (saved["path"], saved["key"])
    assert all(saved["key"].startswith(key) for key in restored["restore-keys"].splitlines())
    assert steps["Keep the checkpoints"]["if"] == "${{ always() }}"
    work = yaml.safe_load((ROOT / "conf/base/parameters.yml").read_text())["folders"]["work"]
    assert restored["path"].removeprefix("${{ env.LUTHIER_WORK }}") == work.removeprefix("${globals:work}")
