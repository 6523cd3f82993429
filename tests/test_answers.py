"""Answers are generated once; whoever stopped it, and whatever was there before, what is stored is the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import KEY, openai_server
from sharp import ASKED, QUESTIONS, folders_in, sharp_tiny

from luthier.answers import AnswerStore, LocalAnswerer, Refusal, identity_of
from luthier.artefacts import is_complete, read_manifest
from luthier.endpoint import Endpoint, EndpointAnswerer
from luthier.errors import UserError

LENGTH = 6


@pytest.fixture(scope="module")
def one_thread():
    """Compute in one thread, as the processes of these tests do: in several, sums are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(one_thread, tmp_path_factory):
    """Return the tiny model and its tokenizer."""
    return sharp_tiny(tmp_path_factory.mktemp("models"))


class Counted(LocalAnswerer):
    """A model on this machine that remembers how much it was asked, and whether it was loaded."""

    def __init__(self, tiny, identity="tiny", **settings):
        self.loads, self.asked, self.checks = 0, [], 0

        def load():
            self.loads += 1
            return tiny

        super().__init__(
            **{"name": "x", "identity": identity, "load": load, "max_new_tokens": LENGTH, "batch_tokens": 200} | settings
        )

    def check(self):
        self.checks += 1

    def answer(self, conversations, progress):
        self.asked.append(len(conversations))
        return super().answer(conversations, progress)


def stored(folder: Path) -> dict[str, str]:
    """Return the hash of the answers of each chunk that is finished."""
    chunks = [path.parent for path in folder.glob("*/[!.]*/manifest.json")]
    return {chunk.name: read_manifest(chunk)["files"]["answers.parquet"]["sha256"] for chunk in chunks}


def test_answers_are_generated_once_and_the_model_is_not_even_loaded_again(tiny, tmp_path):
    first, again = Counted(tiny), Counted(tiny, name="another name")
    store = AnswerStore(tmp_path, rows_per_chunk=5)
    answers = store.answer(first, ASKED)
    assert first.asked == [5, 5, 2]
    assert len({answer.text for answer in answers}) > 3
    assert store.answer(again, ASKED) == answers
    assert (again.loads, again.asked, again.checks) == (0, [], 0)
    # a table gives every turn every field
    assert store.answer(again, [[turn | {"name": None, "tool_calls": None} for turn in turns] for turns in ASKED]) == answers
    assert again.loads == 0


@given(before=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), max_size=3))
@settings(max_examples=5)
def test_what_was_stored_before_changes_no_byte(tiny, tmp_path_factory, before):
    alone, crowded = (AnswerStore(tmp_path_factory.mktemp("store"), rows_per_chunk=4) for _ in range(2))
    answers = alone.answer(Counted(tiny), ASKED)
    for start, length in before:
        crowded.answer(Counted(tiny), ASKED[start : start + length])
    assert [answer.text for answer in crowded.answer(Counted(tiny), ASKED)] == [answer.text for answer in answers]
    assert stored(alone.folder).items() <= stored(crowded.folder).items()


@pytest.mark.parametrize("change", ["identity", "question", "order", "system"])
def test_whatever_decides_answers_asks_anew(tiny, tmp_path, change):
    store = AnswerStore(tmp_path)
    store.answer(Counted(tiny), ASKED)
    asked = {
        "identity": ASKED,
        "question": [*ASKED[:-1], [{"role": "user", "content": "else?"}]],
        "order": ASKED[::-1],
        "system": [[{"role": "system", "content": "Be long."}, *turns[1:]] for turns in ASKED],
    }[change]
    other = Counted(tiny, identity="other" if change == "identity" else "tiny")
    store.answer(other, asked)
    assert (other.asked, other.checks) == ([len(ASKED)], 1)


def test_the_identity_names_all_that_decides():
    settings = {"precision": "fp32", "max_new_tokens": 6, "batch_tokens": 100}
    told = {identity_of("a", **settings), identity_of("b", **settings)}
    for name, value in {"precision": "bf16", "max_new_tokens": 7, "batch_tokens": 99, "constraint": "c"}.items():
        told.add(identity_of("a", **settings | {name: value}))
    assert len(told) == 6


def test_a_conversation_that_does_not_fit_is_refused_and_counts_as_answered_with_nothing(tiny, tmp_path, caplog):
    asked = [ASKED[0], [{"role": "user", "content": "y" * 5000}], ASKED[1]]
    store = AnswerStore(tmp_path)
    came = []
    chunk = store.chunk(Counted(tiny), asked, came.append)
    assert sum(came) == 3
    assert [isinstance(reply, Refusal) for reply in chunk.replies] == [False, True, False]
    assert "more than the model's 4,096" in chunk.replies[1].error
    again = store.chunk(Counted(tiny), asked, came.append)
    assert (again.kept, again.replies) == (True, chunk.replies)
    answers = store.answer(Counted(tiny), asked)
    assert [bool(answer.text) for answer in answers] == [True, False, True]
    assert "1 conversations were refused" in caplog.text


def test_what_was_damaged_is_asked_again(tiny, tmp_path):
    store = AnswerStore(tmp_path, rows_per_chunk=6)
    answers = store.answer(Counted(tiny), ASKED)
    before = stored(tmp_path)
    damaged = next(tmp_path.glob("*/*/answers.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"x" * 9)
    again = Counted(tiny)
    assert [answer.text for answer in store.answer(again, ASKED)] == [answer.text for answer in answers]
    assert again.asked == [6]
    assert stored(tmp_path) == before


def test_an_endpoint_is_asked_once_even_if_it_fails_halfway_and_the_key_is_not_stored(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    store = AnswerStore(tmp_path, rows_per_chunk=4)
    with openai_server(*tiny, key=KEY) as server:

        def asker():
            settings = Endpoint(url=server.url, model="tiny-llama", concurrency=1, retries=0)
            return EndpointAnswerer("hosted", settings, LENGTH)

        server.troubles = [""] * 6 + ["503"]  # the probe, the first chunk, and one of the second
        with pytest.raises(UserError, match="503"):
            store.answer(asker(), ASKED)
        assert len(stored(tmp_path)) == 1
        answers = store.answer(asker(), ASKED)
        assert sorted(server.asked()) == sorted([*QUESTIONS, *QUESTIONS[4:6]])
        seen = len(server.seen)
        assert store.answer(asker(), ASKED) == answers
        assert len(server.seen) == seen  # not even the probe
        server.key = "another"
        with pytest.raises(UserError, match="refuses the key"):
            store.check(asker(), ASKED[1:])
        store.check(asker(), ASKED)
    (manifest, *_) = tmp_path.glob("*/*/manifest.json")
    assert read_manifest(manifest.parent)["served_as"] == ["tiny-llama-1"]
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


RUN = """
import sys
from pathlib import Path
import torch
from sharp import sharp_tiny
from luthier.answers import AnswerStore, LocalAnswerer
torch.set_num_threads(1)
models, store = map(Path, sys.argv[1:])
asked = [[{"role": "user", "content": "x" * n}] for n in range(1, 41)]
answerer = LocalAnswerer("x", "x", lambda: sharp_tiny(models), 12, 200)
print([answer.text for answer in AnswerStore(store, rows_per_chunk=2).answer(answerer, asked)])
"""


def start(models: Path, store: Path) -> "subprocess.Popen[str]":
    """Answer 40 conversations, two a chunk, in a process of its own."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    arguments = [sys.executable, "-c", RUN, str(models), str(store)]
    return subprocess.Popen(arguments, env=environment() | {"PYTHONPATH": paths}, text=True, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_killed_at_any_moment_then_given_twice_at_once_the_answers_are_the_same_bytes(one_thread, tmp_path):
    models, whole, torn = (tmp_path / name for name in ("models", "whole", "torn"))
    model = sharp_tiny(models)
    killed = start(models, torn)
    answerer = LocalAnswerer("x", "x", lambda: model, 12, 200)
    asked = [[{"role": "user", "content": "x" * n}] for n in range(1, 41)]
    answers = [answer.text for answer in AnswerStore(whole, rows_per_chunk=2).answer(answerer, asked)]
    deadline = time.monotonic() + 120
    while len(stored(torn)) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    finished = {path: path.stat().st_ino for path in torn.glob("*/[!.]*/answers.parquet") if is_complete(path.parent)}
    assert 3 <= len(finished) < 20
    again = [start(models, torn), start(models, torn)]
    assert {process.communicate(timeout=120)[0] for process in again} == {f"{answers}\n"}
    assert [process.returncode for process in again] == [0, 0]
    assert len(stored(torn)) == 20
    assert stored(torn) == stored(whole)
    # what had been finished was not made again
    assert all(path.stat().st_ino == number for path, number in finished.items())


def test_the_project_keeps_its_answers_where_its_work_is(tmp_path):
    assert AnswerStore.of(folders_in(tmp_path)).folder == tmp_path / "data/07_model_output/answers"


def test_answering_ends_with_the_command_that_asked():
    code = (
        "import threading, time\nfrom luthier.answers import progress_bar\n"
        "def answer():\n    with progress_bar('x', None) as progress:\n        while True:\n"
        "            progress(0)\n            time.sleep(0.02)\n"
        "threading.Thread(target=answer).start()\ntime.sleep(0.2)\n"  # the main thread ends, as after Ctrl-C
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110, check=False)
    assert "KeyboardInterrupt" in done.stderr
