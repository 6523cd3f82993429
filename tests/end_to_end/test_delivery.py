"""A pull request's whole life, by the steps of the workflows: a parameter changes, ci, merge, train, the gate's comment, approval,
deploy, rollback. MLflow's server, the gateway and its users are real; GitHub is a server of this machine that keeps what it is told.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from commands import ROOT, command, environment, require
from github_server import GitHub, github
from observed import free_port, until
from workflows import Done, Runner, checkout, load

from tests.end_to_end.test_loop import FIRST, PARAMETERS, words, write

KEY, ADMIN = "sk-client-0123456789", "sk-admin-0123456789"
MONITORING = """
monitoring:
  patience_seconds: 5
  drift: {window: 100, draws: 799}
  experiment:
    guardrails:
      - {metric: errors, margin: 0.01}
      - {metric: log_seconds, margin: 0.7}  # other tests of this machine slow one variant more than the other
      - {metric: voted, margin: 0.05}
"""


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def process(line: list[str], folder: Path, variables: dict[str, str], log: Path):
    """Run a process and all that it starts; end them with the context."""
    with log.open("w") as file:
        started = subprocess.Popen(line, cwd=folder, env=variables, stdout=file, stderr=file, start_new_session=True)
    try:
        yield started
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(60)


def project_in(workspace: Path) -> str:
    """Give the checkout a model that learns its task in seconds; return a file of traffic."""
    fill = words()[:150]
    (workspace / "conf/test/parameters.yml").write_text(PARAMETERS.replace("epochs: 5", "epochs: 2"))
    (workspace / "conf/test/parameters_monitoring.yml").write_text(MONITORING)
    write(workspace / "data/01_raw/messages.jsonl", 1500, FIRST, fill, 1)
    return write(workspace.parent / "usual.jsonl", 3000, FIRST, fill, 2)


@pytest.mark.slow
def test_a_pull_request_from_its_first_check_to_its_rollback(tmp_path, capsys):
    require(Path(sys.prefix, ".dev").exists(), "the environment that `make test` makes")
    began, port, store_port = time.monotonic(), free_port(), free_port()

    def tell(what: str) -> None:
        with capsys.disabled():
            print(f"{time.monotonic() - began:5.0f} s  {what}", flush=True)

    def show(done: Done, good: bool = True) -> None:
        for step in done.steps:
            tell(f"      {step.outcome:8} {step.name}")
        assert done.success == good, done.log()

    workspace = checkout(tmp_path / "repository")
    (workspace / ".venv").symlink_to(sys.prefix)
    traffic = project_in(workspace)
    git(workspace, "add", "-A", ":!.venv")
    git(workspace, "commit", "-qm", "Messages of ours")
    store = [sys.executable, "-m", "mlflow", "server", "-h", "127.0.0.1", "-p", str(store_port), "--workers", "1"]
    store += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path / 'mlflow.db'}",
        "--artifacts-destination",
        str(tmp_path / "artefacts"),
    ]
    shared = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{store_port}",
        "LUTHIER_LOG_URI": f"sqlite:///{tmp_path / 'deployments.db'}",
        "LUTHIER_DATA": str(tmp_path / "bucket"),
    }
    traffic_log = {"LUTHIER_REQUEST_LOG_URI": f"sqlite:///{tmp_path / 'requests.db'}"}
    address = f"http://127.0.0.1:{port}"
    bare = {name: value for name, value in environment().items() if not name.startswith(("PYTEST", "LUTHIER", "COV"))}
    bare |= {"PYTHONPATH": str(workspace / "src"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    def runner(server: GitHub, ref: str, name: str) -> Runner:
        commit = git(workspace, "rev-parse", "HEAD")
        return Runner(
            workspace,
            tmp_path / "runner" / name,
            bare,
            {
                **{
                    "ref": f"refs/heads/{ref}",
                    "ref_name": ref,
                    "sha": commit,
                    "api_url": server.url,
                    "token": "ghs_0123456789abcdef",
                },
                **{"repository": server.repository, "run_id": "17", "run_attempt": "1", "actor": "alice"},
            },
            variables={
                "": {"KEDRO_CONF": "test"},
                "training": shared,
                "staging": shared,
                "production": {**shared, **traffic_log, "GATEWAY_URL": address},
                "rollback": {**shared, "GATEWAY_URL": address},
            },
            secrets={
                "production": {"LUTHIER_ADMIN_KEY": ADMIN, "LUTHIER_API_KEYS": f"ci:{KEY}"},
                "rollback": {"LUTHIER_API_KEYS": f"ci:{KEY}"},
            },
        )

    def answers(text: str) -> tuple[str, str]:
        body = {"model": "luthier", "messages": [{"role": "user", "content": text}]}
        answer = requests.post(
            f"{address}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )
        return answer.headers["x-luthier-version"], answer.json()["choices"][0]["message"]["content"]

    def staging(server: GitHub, name: str, share: str = "0.1", hours: str = "5") -> tuple[dict[str, str], Done]:
        workflow, body = server.dispatched[-1]
        assert workflow == "deploy.yml"
        inputs = body["inputs"] | {"share": share, "hours": hours}
        done = runner(server, "main", f"{name}-staging").run_job("deploy.yml", "staging", inputs)
        show(done)
        assert "data/01_raw/messages.jsonl" in done.summary  # what its reviewers see
        assert load("deploy.yml")["jobs"]["production"]["environment"]["name"] == "production"
        tell("      approved")
        return inputs, done

    # a machine of its own: its folder of work is not the runner's. It starts again until there is something to serve
    gateway = [*command("serve", "--env", "test", "--port", str(port))]
    supervised = ["bash", "-c", 'until "$@"; do sleep 5; done', "bash", *gateway]
    keys = {"LUTHIER_API_KEYS": f"ci:{KEY}", "LUTHIER_ADMIN_KEY": ADMIN}
    machine = bare | shared | traffic_log | keys | {"LUTHIER_WORK": str(tmp_path / "gateway")}
    with (
        github() as server,
        process(store, tmp_path, bare, tmp_path / "mlflow.log"),
        process(supervised, workspace, machine, tmp_path / "gateway.log"),
    ):
        until(lambda: requests.get(f"http://127.0.0.1:{store_port}/health", timeout=5).ok, 120)
        tell("the first model: train")
        trained = runner(server, "main", "train-1").run_job("train.yml", "train")
        show(trained)
        assert trained.outputs == {} or trained.outputs["version"] == "1"
        tell("deploy: nothing is in production yet")
        inputs, tried = staging(server, "deploy-1")
        first = runner(server, "main", "deploy-1").run_job("deploy.yml", "production", inputs, staging=tried)
        show(first)
        assert "nothing to compare it with" in first.log()
        assert first.outcomes()["Take it back"] == "skipped"

        # a pull request changes a parameter
        git(workspace, "switch", "-qc", "longer")
        parameters = workspace / "conf/test/parameters.yml"
        parameters.write_text(parameters.read_text().replace("epochs: 2", "epochs: 5"))
        git(workspace, "commit", "-qam", "Five passes")
        tell("ci on the pull request, of the tests a few")
        some = {"PYTEST_ADDOPTS": "tests/test_stats.py -k power_that_is_stated", "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")}
        checks = runner(server, "longer", "ci")
        checks.environ = bare | some | {"PATH": f"{_as_root(tmp_path)}:{bare['PATH']}"}
        show(checks.run_job("ci.yml", "test"))
        site = checks.run_job("ci.yml", "site")
        show(site)
        assert (workspace / "build/site/ci-cd.html").exists()
        assert (workspace / "build/site/viz/index.html").exists()
        git(workspace, "switch", "-q", "main")
        git(workspace, "merge", "-q", "--no-ff", "-m", "Merge: five passes", "longer")
        server.pulls[git(workspace, "rev-parse", "HEAD")] = [12]

        tell("merged: train")
        trained = runner(server, "main", "train-2").run_job("train.yml", "train")
        show(trained)
        (comment,) = server.comments[12].values()
        assert "### Gate: " in comment
        assert comment.split("\n", 1)[1].strip() == trained.summary.strip()
        assert server.dispatched[-1] == ("deploy.yml", {"ref": "main", "inputs": {"version": "2"}})
        for line in trained.summary.strip().splitlines():
            tell(f"      {line}")

        tell("deploy: half of the users try it")
        inputs, tried = staging(server, "deploy-2", share="0.5", hours="0.1")
        simulate = command("simulate", traffic, "--count", "3000", "--rate", "20", "--votes", "1", "--env", "test")
        simulate += ["--up", "right=0.95", "--up", "wrong=0.05", "--url", address]
        with process(simulate, workspace, bare | keys, tmp_path / "simulate.log"):
            second = runner(server, "main", "deploy-2").run_job("deploy.yml", "production", inputs, staging=tried)
        show(second)
        told = [
            line for step in second.steps for line in step.log.splitlines() if re.match(r"(Promote|Roll back|Version \d)", line)
        ]
        for line in told:
            tell(f"      {line}")
        assert any(line.startswith("Promote: ") for line in told)
        assert answers("the invoice")[0] == "2"

        tell("rollback, by hand")
        back = runner(server, "main", "rollback").run_job("rollback.yml", "rollback", {"reason": "answers are too long"})
        show(back)
        assert answers("the invoice")[0] == "1"

        tell("deploy again, and production does not answer: its key is wrong")
        wrong = runner(server, "main", "deploy-3")
        wrong.secrets = {"production": {"LUTHIER_API_KEYS": "ci:sk-of-somebody-else"}}
        third = wrong.run_job("deploy.yml", "production", inputs | {"hours": "0"}, staging=tried)
        show(third, good=False)
        assert third.outcomes()["Some of the users try it"] == "skipped"
        assert third.outcomes()["Take it back"] == "success"
        until(lambda: answers("the invoice")[0] == "1", 30)  # the gateway looks at the log every second
        log = subprocess.run(
            command("models", "--log", "--env", "test"),
            cwd=workspace,
            env=bare | shared,
            capture_output=True,
            text=True,
            check=True,
        )
        for line in log.stdout.splitlines():
            tell(f"      {line}")
        assert "answers are too long (alice)" in log.stdout
        refused = runner(server, "main", "rollback-2").run_job(
            "rollback.yml", "rollback", {"version": "9", "reason": "no such version"}
        )
        assert not refused.success
        assert "no version 9" in refused.log()


def _as_root(folder: Path) -> Path:
    """Return a folder with `sudo` and `apt-get` for a machine where the services are there already, and none may be installed."""
    tools = folder / "tools"
    tools.mkdir()
    for name, text in (("sudo", 'exec "$@"'), ("apt-get", 'echo "apt-get $*"')):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    return tools
