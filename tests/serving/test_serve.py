"""`kedro serve` from the first check to the last row."""

import json
import signal
import threading
import time

import pytest
from commands import kedro_in, output
from openai import BadRequestError, NotFoundError

from tests.serving.processes import ADMIN, ALICE, KEY, ROOT, eventually, lay_out, serving, start

QUESTION = [{"role": "user", "content": "where is my parcel"}]


def refusal(home, *arguments, **variables):
    """Return what `kedro serve` says that does not start."""
    with start(home, *arguments, **variables) as process:
        try:
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "Traceback" not in said
    return " ".join(said.split())


def test_mistakes_are_told_before_an_engine_starts(home):
    assert "kedro promote" in refusal(home)
    home.registry().promote(1)
    assert "LUTHIER_API_KEYS, entry 1: is shorter" in refusal(home, LUTHIER_API_KEYS="short")
    assert "LUTHIER_API_KEYS: is not set" in refusal(home, "--host", "0.0.0.0", LUTHIER_API_KEYS="")
    assert "serving.host" in refusal(home, "--host", "no.such.host.invalid")
    lay_out(home, "serving:\n  limits:\n    ques: 3\n  prot: 80\n")
    told = refusal(home)
    assert "test/parameters_serving.yml:3" in told
    assert "did you mean" in told
    assert "serving.prot" in told


def test_the_address_of_another_gateway_cannot_be_had(home):
    import socket

    home.registry().promote(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in refusal(home, "--port", str(taken.getsockname()[1]))


def test_from_the_first_request_to_the_last_row(home):
    """One process, as it costs seconds: clients, promotion, rollback, experiment, feedback, an end in the middle of answers, corrections."""
    home.registry().promote(1)
    with serving(home) as server:
        # answers
        client = server.client
        plain = client.chat.completions.create(model="luthier", messages=QUESTION, max_tokens=24, temperature=0, logprobs=True)
        stream = client.chat.completions.create(model="luthier", messages=QUESTION, max_tokens=24, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == plain.choices[0].message.content
        assert plain.model == "luthier@1"
        assert len(plain.choices[0].logprobs.content) == plain.usage.completion_tokens
        held = client.chat.completions.create(
            model="champion", messages=QUESTION, max_tokens=200, temperature=1.5, response_format=SCHEMA
        )
        assert held.choices[0].finish_reason == "length" or set(json.loads(held.choices[0].message.content)) == {"intent"}
        with pytest.raises(NotFoundError):
            client.chat.completions.create(model="luthier@17", messages=QUESTION)
        with pytest.raises(BadRequestError, match="context"):
            client.chat.completions.create(model="luthier", messages=[{"role": "user", "content": "x" * 9000}])
        assert server.get("/readyz", {}).status_code == 200
        assert server.get("/metrics", {}).status_code == 401

        # the candidate is ready, so a promotion elsewhere needs no start
        assert eventually(lambda: "candidate" in server.get("/v1/models").text)
        server.registry().promote()
        committed = time.monotonic()
        assert eventually(lambda: server.champion() == 3)
        assert time.monotonic() - committed < 5
        assert server.post("/admin/rollback", ROOT, json={"reason": "a test"}).json()["aliases"]["champion"] == 1
        assert server.champion() == 1
        assert server.post("/admin/rollback", ALICE, json={"reason": "a test"}).status_code == 401
        assert server.post("/admin/rollback", ROOT, json={"reason": "again"}).status_code == 409

        # a share for another version, and a vote on its answer
        share = {"id": "b", "variants": [{"name": "second", "version": 3, "weight": 1.0}]}
        assert server.post("/admin/experiment", ROOT, json=share).status_code == 200
        answer = server.ask()
        assert answer.headers["x-luthier-variant"] == "second"
        vote = {"request_id": answer.json()["id"], "name": "helpful", "rating": "down", "correction": "It comes tomorrow."}
        assert server.post("/v1/feedback", json=vote).json()["result"] == "created"

        # the end: answers under way come to theirs, and all is written down
        texts = []
        asking = [threading.Thread(target=lambda: texts.append(server.ask(max_tokens=300).status_code)) for _ in range(3)]
        for thread in asking:
            thread.start()
        assert eventually(lambda: "luthier_requests_running 3" in metrics(server), 10)
        workers = server.workers()
        assert server.stop(signal.SIGINT) == 0
        for thread in asking:
            thread.join()
        assert texts == [200] * 3
        assert not any(worker.is_running() for worker in workers)
    rows = server.rows()
    assert (rows["status"] == 200).sum() == len(rows) - (rows["error"].notna()).sum()
    assert rows.iloc[-1]["served"] == "second"
    written = kedro_in(home.project, "corrections", "corrections.jsonl", "--env", "test")
    assert "1 corrections are in corrections.jsonl" in output(written)
    (corrected,) = map(json.loads, (home.project / "corrections.jsonl").read_text().splitlines())
    assert corrected["messages"][-1]["content"] == vote["correction"]
    said = "\n".join(server.said)
    assert KEY not in said
    assert ADMIN not in said
    assert "Traceback" not in said


SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "triage",
        "schema": {
            "type": "object",
            "properties": {"intent": {"enum": ["refund", "delivery"]}},
            "required": ["intent"],
            "additionalProperties": False,
        },
    },
}


def metrics(server):
    return server.get("/metrics", ROOT).text


def test_keys_are_made_where_there_are_none_and_ctrl_c_before_it_answers_leaves_nothing_behind(home):
    home.registry().promote(1)
    process = start(home, LUTHIER_API_KEYS="", LUTHIER_ADMIN_KEY="")
    assert process.stdout is not None
    first = process.stdout.readline()
    assert "starting its engine" in first
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in said
    with serving(home, LUTHIER_API_KEYS="", LUTHIER_ADMIN_KEY="") as server:
        printed = "\n".join(server.said)
        assert "#key=sk-" in printed
        key = printed.split("#key=")[1].split()[0]
        assert server.get("/v1/models", {"Authorization": f"Bearer {key}"}).status_code == 200
        assert server.get("/v1/models", {}).status_code == 401
