"""A worker process that answers, dies at any moment, and is there again."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import psutil
import pytest
import torch
from commands import ROOT

from luthier.errors import UserError
from luthier.generation import generate
from luthier.packages import load_package
from luthier.serving.api.errors import ApiError
from luthier.serving.engines.supervised import Supervised
from luthier.serving.engines.worker_protocol import WorkerSettings
from luthier.serving.parameters import LimitParameters
from luthier.text.chat import encode_prompt

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "where is my parcel"}]


def body(**options):
    return {"model": "luthier@1", "messages": MESSAGES, "max_tokens": 24, "temperature": 0.0, **options}


@pytest.fixture(scope="module")
def package(versions):
    version = versions.registry().resolve(1)
    return versions.registry().fetch(version, versions.folder / "cache"), version.manifest


@asynccontextmanager
async def supervised(package, silence=20.0, **changes):
    folder, manifest = package
    settings = {
        "package": folder,
        "manifest": manifest,
        "name": "luthier@1",
        "precision": "fp32",
        "slots": 4,
        "cache_tokens": 4096,
        "limits": LimitParameters(),
    }
    engine = Supervised(WorkerSettings(**{**settings, **changes}), silence_seconds=silence, total_seconds=60)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def streamed(engine, **options):
    """Return the text of a stream."""
    return "".join([text async for text in pieces(engine, **options)])


async def pieces(engine, **options):
    async for chunk in engine.stream(body(stream=True, stream_options={"include_usage": True}, **options)):
        if chunk["choices"]:
            yield chunk["choices"][0]["delta"].get("content") or ""


async def refusal(engine, **options):
    with pytest.raises(ApiError) as caught:
        await engine.chat(body(**options))
    return caught.value


def test_it_answers_as_the_package_does_plain_and_streamed_and_survives_every_kill(package, monkeypatch):
    monkeypatch.setenv("LUTHIER_API_KEYS", "sk-nobody-elses-0123456789")
    model, tokenizer, _ = load_package(package[0], torch.float32)
    (expected,) = generate(model, tokenizer, [encode_prompt(tokenizer, MESSAGES)], 24, 4096)

    async def scenario():
        async with supervised(package) as engine:
            first = engine.pid
            # the gateway's keys are none of its business
            assert "LUTHIER_API_KEYS" not in psutil.Process(first).environ()
            plain = await engine.chat(body(logprobs=True, top_logprobs=2))
            assert plain["choices"][0]["message"]["content"] == expected.text
            assert len(plain["choices"][0]["logprobs"]["content"]) == plain["usage"]["completion_tokens"]
            assert await streamed(engine) == expected.text
            # the tokens of a worker that is gone still count
            before = engine.status().tokens_total

            # killed while it is idle: the next request waits for the next worker
            os.kill(first, signal.SIGKILL)
            again = await engine.chat(body())
            assert again["choices"][0]["message"]["content"] == expected.text
            assert engine.pid != first
            assert engine.status().tokens_total > before

            # killed in the middle of answers: who has read nothing gets a whole one, who has read something an error
            long = body(max_tokens=400)
            waiting = [asyncio.create_task(engine.chat(long)) for _ in range(3)]
            begun = pieces(engine, max_tokens=800)
            await anext(begun)
            while not await anext(begun):
                pass
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(ApiError) as caught:
                while True:
                    await anext(begun)
            assert caught.value.status == 503
            answers = await asyncio.gather(*waiting)
            assert len({answer["choices"][0]["message"]["content"] for answer in answers}) == 1
            assert engine.restarts == 2
            assert engine.status().alive
            assert engine.status().running == 0
        assert not psutil.pid_exists(engine.pid)

    asyncio.run(scenario())


def test_schemas_that_would_compile_for_ever_are_refused_and_keep_nobody_waiting(package):
    def patterns(last):
        every = [{"type": "string", "pattern": f".*{letter}.*"} for letter in f"abcdefghijklmnopqrst{last}"]
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": {"allOf": every}}}

    async def scenario():
        async with supervised(package, silence=60.0) as engine:
            endless = [asyncio.create_task(refusal(engine, response_format=patterns(last))) for last in "uvwxyz"]
            # more than a worker has threads are at it
            await asyncio.sleep(1)
            assert (await engine.chat(body()))["choices"][0]["message"]["content"]
            assert not all(task.done() for task in endless)
            for error in await asyncio.gather(*endless):
                assert (error.status, error.param) == (400, "response_format")
                assert "fewer patterns" in error.message
            assert engine.restarts == 0

    asyncio.run(scenario())


def test_a_worker_that_hangs_is_ended_and_who_asked_it_is_answered_by_the_next(package):
    async def scenario():
        async with supervised(package, silence=5.0) as engine:
            stopped = engine.pid
            os.kill(stopped, signal.SIGSTOP)
            answer = await engine.chat(body())
            assert answer["choices"][0]["message"]["content"]
            assert engine.pid != stopped
            assert not psutil.pid_exists(stopped)
        # a closed one answers nobody, and lets nobody wait
        with pytest.raises(ApiError) as caught:
            await asyncio.wait_for(engine.chat(body()), 5)
        assert caught.value.status == 503

    asyncio.run(scenario())


def test_what_a_client_did_wrong_is_told_as_such_and_kills_nobody(package):
    async def scenario():
        async with supervised(package) as engine:
            pid = engine.pid
            long = await refusal(engine, messages=[{"role": "user", "content": "x" * 2000}])
            assert (long.status, long.code) == (400, "context_length_exceeded")
            schema = {"name": "x", "schema": {"type": "nothing"}}
            wrong = await refusal(engine, response_format={"type": "json_schema", "json_schema": schema})
            assert (wrong.status, wrong.param) == (400, "response_format")
            # a request that says nothing gets what there is room for
            (room,) = [(await engine.chat({"messages": [{"role": "user", "content": "x" * 900}]}))["usage"]["completion_tokens"]]
            assert 0 < room <= engine.context - 900
            assert engine.pid == pid
            assert engine.restarts == 0

    asyncio.run(scenario())


def test_a_package_that_is_not_what_was_registered_does_not_start(package):
    async def scenario():
        async with supervised(package, manifest="0" * 64):
            pass

    with pytest.raises(UserError, match=r"(?s)luthier@1 cannot be served: .*root hash"):
        asyncio.run(scenario())


def test_no_worker_outlives_who_started_it(package):
    """Not even one who was killed with -9."""
    program = f"""
import asyncio, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from tests.serving.test_supervised import supervised
async def main():
    async with supervised(({str(package[0])!r}, {package[1]!r})) as engine:
        print(engine.pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([worker], timeout=20)[1] == []
