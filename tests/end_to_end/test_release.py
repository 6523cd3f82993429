"""The life of a release by the real commands: two trainings, into production, back again, and what is refused on the way."""

import hashlib
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result
from commands import command, environment, kedro_in, output
from kedro.framework.project import configure_project

from luthier.cli import before_plugins, cli

RAW = Path("data", "01_raw", "support_messages.jsonl")


def done(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run a command as a process and return what it printed."""
    ended = kedro_in(folder, *arguments)
    assert ended.returncode == code, output(ended)
    assert "Traceback" not in output(ended)
    return output(ended)


@pytest.fixture(scope="module")
def released(finished, tmp_path_factory) -> Path:
    """Return a project with two versions, the second one in production over the first. Read it, or take `own`."""
    folder = tmp_path_factory.mktemp("released") / "project"
    shutil.copytree(finished, folder)
    refused = done(folder, "promote", code=1)
    assert re.search(r"Version 1 may not be promoted: the gate said '(undecided|fail)'.*--force --reason TEXT", refused)
    assert "Version 1 is the champion" in done(folder, "promote", "1", "--force", "--reason", "the first one")
    again = ("run", "--env", "test", "--pipelines", "training,evaluation,deployment", "--params")
    assert "Registered as version 2" in done(folder, *again, "seed=7,training.max_steps=2,evaluation.max_examples=4")
    assert "in place of version 1" in done(folder, "promote", "--force", "--reason", "a [trial]")
    return folder


@pytest.fixture
def own(released, tmp_path, monkeypatch) -> Path:
    """Return a copy of that project that a test may change, as the working folder; the stored packages belong to all."""
    folder = tmp_path / "project"
    shutil.copytree(released, folder)
    configure_project("luthier")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def told(*arguments: str, code: int = 0) -> Result:
    """Run a command in this process, in the working folder."""
    ended = CliRunner().invoke(cli, arguments)
    assert ended.exit_code == code, ended.output
    assert "Traceback" not in ended.output
    return ended


def production() -> dict[str, int]:
    """Return which version each alias points to, as `kedro models` says."""
    rows = json.loads(told("models", "--json").stdout)
    return {alias: row["number"] for row in rows for alias in row["aliases"]}


def log() -> list[dict]:
    return json.loads(told("models", "--log", "--json").stdout)


def test_a_rollback_brings_back_the_champion_before(own):
    assert production() == {"candidate": 2, "champion": 2, "previous": 1}
    begun = time.perf_counter()
    back = done(own, "rollback", "--reason", "worse answers")
    print(f"kedro rollback: {time.perf_counter() - begun:.2f} s")
    assert "Version 1 is the champion, in place of version 2" in back
    assert production() == {"candidate": 2, "champion": 1}
    assert [(line["action"], line["from_version"], line["version"], line["forced"], line["reason"]) for line in log()] == [
        ("promote", None, 1, True, "the first one"),
        ("promote", 1, 2, True, "a [trial]"),
        ("rollback", 2, 1, False, "worse answers"),
    ]
    assert "version 1 is the first champion" in told("rollback", code=1).output
    assert "Version 2 is the champion" in told("rollback", "--to", "2").output
    assert "in place of version 2" in told("rollback", "--to", "1").output
    assert len(log()) == 5


def test_the_tables_name_versions_and_lines(own):
    table, lines = told("models").stdout, told("models", "--log").stdout
    rows = {row["number"]: row for row in json.loads(told("models", "--json").stdout)}
    assert sorted(rows) == [1, 2]
    for row in rows.values():
        assert row["gate"] in ("undecided", "fail")
        assert row["run"][:8] in table
        for name, value in row["figures"].items():
            assert f"{name} {value:.4g}" in table
        for name, sha256 in row["data"].items():
            assert f"{name} {sha256[:8]}" in table
    assert rows[1]["manifest"] != rows[2]["manifest"]
    assert rows[1]["data"] == rows[2]["data"]  # another seed of the training: the same data
    for line in log():
        assert line["manifest"] == rows[line["version"]]["manifest"]
        assert f"{line['action']}, forced" in lines
        assert line["reason"] in lines


@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_word_of_a_table_is_broken_in_a_terminal(own, monkeypatch, width):
    versions, lines = json.loads(told("models", "--json").stdout), log()
    for name, value in {"COLUMNS": str(width), "TTY_COMPATIBLE": "1", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    table, history = (re.sub(r"\x1b\[[0-9;]*m", "", told("models", *options).stdout) for options in ((), ("--log",)))
    assert max(map(len, (table + history).splitlines())) <= width
    for row in versions:
        assert {row["gate"], *row["aliases"], *row["figures"], row["created"][:10]} <= set(table.split())
    for line in lines:
        assert {line["who"], *line["reason"].split(), line["at"][:10]} <= set(history.split())
    assert ("in a window of 116 columns: run, data" in table) == (width < 116)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("promote 9 --force --reason x", 1, "no version 9; there are 1, 2, and the aliases candidate, champion, previous"),
        ("promote champoin --force --reason x", 1, "did you mean 'champion'"),
        ("promote 2 --force --reason x", 1, "Version 2 is the champion already"),
        ("promote 1 --force", 1, "--force goes with --reason TEXT"),
        ("promote 1 --reason x", 1, "may not be promoted: the gate said"),
        ("promote 1 2", 2, "unexpected extra argument"),
        ("promote --forse", 2, "--force"),
        ("rollback --to 9", 1, "no version 9"),
        ("rollback --to 2", 1, "champion already"),
        ("rollback --to", 2, "requires an argument"),
        ("models --env nowhere", 1, "There is no environment nowhere"),
        ("gate --env nowhere", 1, "There is no environment nowhere"),
        ("lineage zzz", 1, "No run begins with 'zzz'"),
        ("lineage 9", 1, "no version 9"),
        ("export champion conf", 1, "conf is there already"),
        ("export 9 somewhere", 1, "no version 9"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_and_changes_nothing(own, arguments, code, words):
    before = log()
    assert words in told(*arguments.split(), code=code).output
    assert log() == before


def test_the_gate_tells_by_its_exit_code(own):
    newest = max(own.glob("data/08_reporting/gate_decision.json/*/gate_decision.json"))
    decision = json.loads(newest.read_text())
    codes = {"pass": 0, "fail": 1, "undecided": 3}
    assert json.loads(told("gate", "--json", code=codes[decision["decision"]]).stdout) == decision
    for said, code in codes.items():
        later = newest.parents[1] / f"9999-{code}" / newest.name
        later.parent.mkdir()
        later.write_text(json.dumps(decision | {"decision": said}))
        page = told("gate", "--markdown", code=code).stdout
        assert said in page.splitlines()[0]
        for rule in decision["rules"]:
            assert f"| {rule['rule']} |" in page
        shutil.rmtree(later.parent)


def test_the_champion_is_followed_back_to_the_bytes_of_its_sources(own):
    sha256 = hashlib.sha256((own / RAW).read_bytes()).hexdigest()
    chain = told("lineage", "champion", "--html", "pages/chain.html").output
    for text in (chain, Path("pages/chain.html").read_text()):
        assert RAW.as_posix() in text
        assert sha256 in text
    found = json.loads(told("lineage", "2", "--json").stdout)
    assert found["made"]["tuned_model"].split("sha256:")[1] in chain
    assert [run["sources"][0]["sha256"] for run in found["earlier"]] == [sha256]


def test_an_exported_model_is_loaded_by_transformers_alone(own):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    told("export", "champion", "plain", "--precision", "fp32")
    model, tokenizer = AutoModelForCausalLM.from_pretrained("plain"), AutoTokenizer.from_pretrained("plain")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=4)
    assert answer.shape[1] > prompt["input_ids"].shape[1]


def test_a_package_that_was_changed_is_not_put_into_production(own):
    (row,) = [row for row in json.loads(told("models", "--json").stdout) if row["number"] == 1]
    stored = Path(urlsplit(row["source"]).path, "chat_template.jinja")
    text = stored.read_bytes()
    try:
        stored.write_bytes(text + b"{{ messages }}")
        assert "chat_template.jinja" in told("rollback", code=1).output
    finally:
        stored.write_bytes(text)
    assert production()["champion"] == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_rollback_that_is_ended_on_its_way_changed_nothing_and_keeps_no_lock(own, number):
    before = log()
    busy = sqlite3.connect("mlflow.db", isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")  # the rollback checks the package, then waits for us with its line
    lock = Path("mlflow.db-luthier.lock")
    lock.unlink()
    process = subprocess.Popen(command("rollback"), cwd=own, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        _wait_until(lambda: lock.exists() and "rollback" in lock.read_text())
        assert re.search(r"Another is at it, so nothing was changed \(.*, rollback, since ", told("rollback", code=1).output)
        time.sleep(0.5)
        process.send_signal(number)
        busy.execute("ROLLBACK")
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 1)
    assert b"Traceback" not in said
    assert log() == before
    assert production() == {"candidate": 2, "champion": 2, "previous": 1}
    assert "Version 1 is the champion" in told("rollback").output


def _wait_until(happened) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_alias_that_was_moved_behind_the_log_is_moved_back_by_the_next_command(own):
    connection = sqlite3.connect("mlflow.db")
    with connection:
        connection.execute("UPDATE registered_model_aliases SET version = 1 WHERE alias = 'champion'")
    connection.close()
    assert production() == {"candidate": 2, "champion": 2, "previous": 1}
    last = log()[-1]
    assert (last["action"], last["version"], last["reason"]) == ("repair", 2, "the aliases said previous 1, champion 1")
    assert len(log()) == 3


def test_a_release_command_waits_for_no_plug_in(own):
    arguments = command("models")
    traced = [arguments[0], "-X", "importtime", *arguments[1:]]
    ended = subprocess.run(traced, cwd=own, env=environment(), capture_output=True, text=True, check=True)
    imported = set(re.findall(r"\| +(\w+)", ended.stderr))
    assert "luthier" in imported
    assert not imported & {"mlflow", "kedro_mlflow", "kedro_viz", "torch", "transformers", "pandas"}


def test_what_is_not_ours_is_left_to_kedro(own, tmp_path, monkeypatch):
    for arguments in ([], ["run"], ["catalog", "list"], ["--version"]):
        monkeypatch.setattr(sys, "argv", ["kedro", *arguments])
        before_plugins()
    monkeypatch.setattr(sys, "argv", ["kedro", "models"])
    for folder, package in ((tmp_path / "nowhere", None), (tmp_path / "another", "another")):
        folder.mkdir()
        monkeypatch.chdir(folder)
        if package:
            Path("pyproject.toml").write_text(f'[tool.kedro]\npackage_name = "{package}"\n')
        before_plugins()
    monkeypatch.chdir(own / "conf")
    with pytest.raises(SystemExit) as ended:
        before_plugins()
    assert ended.value.code == 0
