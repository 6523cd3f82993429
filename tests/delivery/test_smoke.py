"""A version is tried by a real gateway before it gets anybody's traffic, and a gateway that runs is asked the same."""

import json
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from commands import environment
from kedro.framework.project import configure_project

from luthier.cli import cli
from luthier.errors import UserError
from luthier.serving.parameters import ExperimentParameters
from luthier.smoke import check_gateway
from luthier.watching.canary import plan, share_of
from tests.serving.processes import ADMIN, KEY, ROOT, lay_out, serving


@pytest.fixture
def told(home, monkeypatch):
    """Return what runs a command in the project around a registry: its exit code, and what it printed."""
    lay_out(home)
    configure_project("luthier")
    monkeypatch.chdir(home.project)
    for name, value in (environment() | {"MLFLOW_TRACKING_URI": home.uri, "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    for name in ("LUTHIER_ADMIN_KEY", "LUTHIER_API_KEYS"):
        monkeypatch.delenv(name, raising=False)

    def tell(*arguments):
        done = CliRunner().invoke(cli, [*arguments, "--env", "test"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return done.exit_code, " ".join(done.output.split())

    return tell


def test_a_version_is_tried_before_anything_is_in_production(home, told):
    assert told("models", "--number", "candidate") == (0, "3")
    code, said = told("smoke", "2")
    assert code == 0, said
    for found in (
        "version 2 answers luthier@2",
        "a stream comes to its end",
        "nobody is answered without a key",
        "metrics are shown",
    ):
        assert found in said
    assert not (home.project / "data/06_models/serving").exists()  # its rows are nobody's requests
    # nor is there anything to compare it with
    code, said = told("canary", "2")
    assert code == 0
    assert "nothing to compare" in said


def test_a_damaged_package_fails(home, told):
    stored = Path(urlsplit(home.registry().resolve(1).source).path, "chat_template.jinja")
    text = stored.read_bytes()
    try:
        stored.write_bytes(text + b"{{ 1 }}")
        code, said = told("smoke", "1")
    finally:
        stored.write_bytes(text)
    assert code == 1
    assert "chat_template.jinja" in said


def test_what_cannot_be_tried_is_told_at_once(home, told, monkeypatch):
    home.registry().promote(1)
    monkeypatch.setenv("LUTHIER_ADMIN_KEY", ADMIN)
    for arguments, words in {
        ("smoke", "17"): "no version 17",
        ("smoke", "1", "--url", "http://127.0.0.1:9"): "LUTHIER_API_KEYS is not set",
        ("canary", "1"): "Version 1 is the champion already",
        ("canary", "9"): "no version 9",
        ("canary", "2", "--url", "http://127.0.0.1:9"): "The gateway does not answer at 127.0.0.1:9",
    }.items():
        code, said = told(*arguments)
        assert code == 1
        assert words in said
    monkeypatch.delenv("LUTHIER_ADMIN_KEY")
    assert "LUTHIER_ADMIN_KEY is not set" in told("canary", "2")[1]
    assert told("canary", "2", "--share", "1.5")[0] == 2


@pytest.mark.slow
def test_users_get_a_share_until_it_is_over(home):
    """One gateway, as it costs seconds: what runs is asked; a share is dealt, and ends whatever happens."""
    home.registry().promote(1)
    kept: list[ExperimentParameters] = []
    with serving(home) as server:
        url = server.address

        def dealt():
            variants = server.post("/admin/reload", ROOT).json()["experiment"]["variants"]
            return {variant["name"]: (variant["version"], variant["weight"]) for variant in variants}

        good: list[str] = []
        check_gateway(url, KEY, "luthier", 1, 60, good.append)
        assert len(good) == 5
        with pytest.raises(UserError, match="does not answer luthier as version 2; version 1 answers"):
            check_gateway(url, KEY, "luthier", 2, 0, good.append)
        with pytest.raises(UserError, match="status 401"):
            check_gateway(url, "sk-a-wrong-key-of-nobody", "luthier", 1, 600, good.append)

        experiment = plan(3, 0.5, datetime.now(UTC))
        with share_of(url, ADMIN, experiment, kept.append):
            assert dealt() == {"champion": (1, 0.5), "canary": (3, 0.5)}
            assert {server.ask(user=f"user-{n}").headers["x-luthier-version"] for n in range(30)} == {"1", "3"}
            with pytest.raises(UserError, match="is running: end it first"), share_of(url, ADMIN, experiment, kept.append):
                pass
        assert dealt() == {"champion": (1, 1.0)}
        with pytest.raises(KeyboardInterrupt), share_of(url, ADMIN, plan(3, 0.5, datetime.now(UTC)), kept.append):
            raise KeyboardInterrupt
        assert dealt() == {"champion": (1, 1.0)}
        # what runs there was written down here, each time
        assert [len(one.variants) for one in kept] == [2, 1, 2, 1]
        written = json.loads((home.project / "data/06_models/serving/experiment.json").read_text())
        assert written["asked"]["id"] == kept[-1].id
