"""What a workflow tells GitHub arrives once, however often it is told."""

import pytest
from click.testing import CliRunner
from github_server import github

from luthier.cli import cli
from luthier.errors import UserError
from luthier.github import comment, dispatch


@pytest.fixture
def server():
    with github() as state:
        yield state


def test_a_comment_is_put_once_and_then_replaced(server):
    server.pulls = {"abc": [7]}
    server.comments[7] = {number: f"talk {number}" for number in range(1, 251)}  # on the third page there is room for ours
    assert comment("first", "gate", server.variables("abc")) == [7]
    assert comment("second", "gate", server.variables("abc")) == [7]
    assert comment("something else", "drift", server.variables("abc")) == [7]
    ours = [text for number, text in server.comments[7].items() if number > 250]
    assert [text.split("\n", 1)[1] for text in ours] == ["second", "something else"]
    assert len(server.comments[7]) == 252


def test_a_commit_of_several_pull_requests_or_none(server):
    server.pulls = {"abc": list(range(1, 131))}
    assert comment("hello", "gate", server.variables("abc")) == list(range(1, 131))
    assert all(len(server.comments[number]) == 1 for number in range(1, 131))
    assert comment("hello", "gate", server.variables("def")) == []


def test_a_workflow_is_started_with_its_inputs(server, monkeypatch):
    dispatch("deploy.yml", {"version": "3"}, server.variables("abc", "main"))
    assert server.dispatched == [("deploy.yml", {"ref": "main", "inputs": {"version": "3"}})]
    for name, value in server.variables("abc", "main").items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(cli, ["dispatch", "monitor.yml"])
    assert (done.exit_code, done.output) == (0, "monitor.yml is started.\n")
    assert server.dispatched[-1] == ("monitor.yml", {"ref": "main"})
    done = CliRunner().invoke(cli, ["dispatch", "deploy.yml", "version"])
    assert done.exit_code == 1
    assert "write NAME=VALUE" in done.output


def test_mistakes_are_told_and_no_token_is_shown(server):
    with pytest.raises(UserError, match="GITHUB_SHA, GITHUB_TOKEN: not set"):
        comment("hello", "gate", {"GITHUB_REPOSITORY": "team/models"})
    wrong = server.variables("abc") | {"GITHUB_TOKEN": "ghs_of_somebody_else"}
    with pytest.raises(UserError, match=r"GitHub refused \(401\)") as refused:
        comment("hello", "gate", wrong)
    assert "ghs_" not in str(refused.value)
    with pytest.raises(UserError, match="GitHub does not answer at 127.0.0.1:9"):
        dispatch("deploy.yml", {}, server.variables("abc") | {"GITHUB_API_URL": "http://127.0.0.1:9"})
