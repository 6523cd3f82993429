"""The loop closes: users change, the model is trained again and wins; a bad one wins the gate, loses its users and is taken back.

All are real processes, as `make observe` starts them; the model is tiny, and learns its task: the last word says the intent.
"""

import json
import random
import re
import time
from pathlib import Path

import pytest
import requests
from commands import ROOT, kedro_in, output
from observed import ADMIN, Webhook, free_ports, observed, require_programs, simulate, until

FIRST = {
    "billing": ["refund", "invoice", "charge"],
    "delivery": ["parcel", "courier", "tracking"],
    "account": ["password", "login", "username"],
}
LATER = {"repair": ["brake", "wheel", "gears"], "booking": ["rental", "lesson", "guide"]}
PARAMETERS = """
model: {base: "tiny:llama"}
data:
  path: null
  sources:
    messages: {path: data/01_raw/messages.jsonl}
    traffic: {path: data/01_raw/traffic, optional: true}
  id: null
  system: null
  user: "{{ text }}"
  assistant: "{{ answer }}"
  label: "{{ intent }}"
  meta: []
  answer_schema: null
  safety_checks: null
training: {method: full, precision: fp32, batch_size: 16, epochs: 5, learning_rate: 6.0e-3, evaluate_every: 200, checkpoint_every: 200}
evaluation: {max_new_tokens: 60, precision: fp32, slices: {by: []}, robustness: {kinds: []}}
"""
MONITORING = """
monitoring:
  every_seconds: 1
  patience_seconds: 8
  drift: {window: 100, draws: 799}
  quality: {labels: data/01_raw/labels.jsonl}
  experiment:
    guardrails:  # but for log_seconds: two processors do all of this and other tests, so that seconds say little of a model
      - {metric: errors, margin: 0.01}
      - {metric: log_characters, margin: 0.25}
      - {metric: voted, margin: 0.05}
  act: {gateway: "http://127.0.0.1:PORT"}
"""


def words() -> list[str]:
    """Return common words, in an order of their own."""
    texts = (ROOT / "data/01_raw/general_text.jsonl").read_text(encoding="utf-8").splitlines()
    found = sorted({word for line in texts for word in re.findall(r"\b[a-z]{3,7}\b", json.loads(line)["text"])})
    random.Random(0).shuffle(found)
    return found


def write(file, count, intents, fill, seed, answer='{"intent":"%s"}'):
    """Write messages of six words and one that says the intent."""
    chance, lines = random.Random(seed), []
    for _ in range(count):
        intent = chance.choice(sorted(intents))
        text = " ".join([*chance.sample(fill, 6), chance.choice(intents[intent])])
        lines.append(json.dumps({"text": text, "intent": intent, "answer": answer % intent}) + "\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines))
    return str(file)


def run(project, *arguments):
    done = kedro_in(project, *arguments, "--env", "test")
    assert done.returncode == 0, output(done)
    return output(done)


def versions(project) -> dict[int, dict]:
    return {row["number"]: row for row in json.loads(kedro_in(project, "models", "--json", "--env", "test").stdout)}


def log_of(project) -> list[dict]:
    return json.loads(kedro_in(project, "models", "--log", "--json", "--env", "test").stdout)


def reports(project, name) -> list:
    return [json.loads(file.read_text()) for file in sorted((project / f"data/08_reporting/{name}.json").glob("*/*.json"))]


def found(project, experiment) -> list[dict]:
    """Return what each look found of an experiment; nothing once it has ended."""
    return [one for report in reports(project, "experiments") for one in report if one["experiment"] == experiment]


def ask(address, text) -> tuple[str, str]:
    """Return the version that answered, and its likeliest answer: drawn by chance, one in some is wrong."""
    body = {"model": "champion", "messages": [{"role": "user", "content": text}], "temperature": 0}
    key = {"Authorization": "Bearer sk-client-0123456789"}
    answer = requests.post(f"{address}/v1/chat/completions", json=body, headers=key, timeout=60)
    return answer.headers["x-luthier-version"], answer.json()["choices"][0]["message"]["content"]


@pytest.mark.slow
def test_the_loop_closes(project, capsys):
    require_programs()
    began = time.monotonic()

    def tell(what: str) -> None:
        with capsys.disabled():
            print(f"{time.monotonic() - began:5.0f} s  {what}", flush=True)

    webhook, ports, fill = Webhook(), free_ports(), words()
    address = f"http://127.0.0.1:{ports.gateway}"
    (project / "conf/test/parameters.yml").write_text(PARAMETERS)
    (project / "conf/test/parameters_monitoring.yml").write_text(MONITORING.replace("PORT", str(ports.gateway)))
    (project / "data/01_raw/labels.jsonl").touch()
    write(project / "data/01_raw/messages.jsonl", 1500, FIRST, fill[:150], 1)
    usual = write(project / "usual.jsonl", 2000, FIRST, fill[:150], 2)
    changed = write(project / "changed.jsonl", 2000, LATER, fill[150:300], 3)
    votes = ("--votes", "1", "--up", "right=0.95", "--up", "wrong=0.1")

    def send(*files, count, rate=20.0):
        mixed = ["--drifted", files[1], "--share", "0.5"] if files[1:] else []
        labels = ("--labels", str(project / "data/01_raw/labels.jsonl"))
        assert (
            simulate(
                project, ports, files[0], count, rate, *mixed, *votes, *labels, "--seed", str(time.monotonic_ns() % 1000)
            ).wait(300)
            == 0
        )

    def deal(name, control, challenger):
        variants = [{"name": n, "version": v, "weight": 0.5} for n, v in (("control", control), ("challenger", challenger))]
        answer = requests.post(
            f"{address}/admin/experiment",
            json={"id": name, "variants": variants},
            headers={"Authorization": f"Bearer {ADMIN}"},
            timeout=120,
        )
        assert answer.ok, answer.text

    # train, gate, promote
    run(project, "run")
    assert versions(project)[1]["gate"] == "pass"
    run(project, "promote")
    tell("version 1 is trained, has passed the gate and is in production")
    with observed(project, webhook, ports, act=True) as processes:
        send(usual, count=220)
        until(lambda: reports(project, "monitoring_decision"), 60)
        assert reports(project, "monitoring_decision")[-1]["decision"] == "keep"
        assert "LuthierDrift" not in webhook.fired
        tell("people who ask what they always asked: keep")

        # drift, alert, retraining on messages whose labels came
        send(changed, count=420)
        until(lambda: "LuthierDrift" in webhook.fired, 90)
        tell("people ask otherwise: LuthierDrift reached the webhook")
        until(lambda: any(line["action"] == "retrain" for line in log_of(project)), 60)
        until(lambda: 2 in versions(project), 240)
        second = versions(project)[2]
        assert second["gate"] == "pass", second
        assert versions(project)[1]["aliases"] == ["champion"]
        tell("the monitor has trained version 2, and the gate passed it")

        # challenger, A/B, promotion
        deal("second", "champion", "candidate")
        send(usual, changed, count=900)
        until(lambda: found(project, "second"), 60)
        until(lambda: found(project, "second")[-1]["decision"] != "keep collecting", 60)
        assert found(project, "second")[-1]["decision"] == "promote", found(project, "second")[-1]
        tell(f"A/B: {found(project, 'second')[-1]['why']}")
        run(project, "promote", "candidate")

        # a bad batch: the gate cannot know that its labels are wrong
        write(project / "data/01_raw/bad.jsonl", 1500, FIRST | LATER, fill[:300], 4, '{"intent":"about %s, I am sure"}')
        run(
            project,
            "run",
            "--params",
            "data.sources.messages.path=data/01_raw/bad.jsonl,data.sources.traffic.path=data/01_raw/none",
        )
        assert versions(project)[3]["gate"] == "pass"
        run(project, "promote")
        tell("version 3 learnt wrong answers, passed the gate and is in production")
        deal("third", "previous", "champion")
        send(usual, changed, count=500)
        until(lambda: log_of(project)[-1]["action"] == "rollback", 90)
        line = log_of(project)[-1]
        assert line["version"] == 2
        assert line["who"].startswith("kedro monitor")
        assert "third" in line["reason"]
        tell(f"taken back: {line['reason']}")
        taken_back = [
            ask(address, record["text"]) == ("2", record["answer"])
            for file in (usual, changed)
            for record in map(json.loads, Path(file).read_text().splitlines()[:20])
        ]
        tell(f"version 2 answers again, {sum(taken_back)} of 40 rightly")
        assert sum(taken_back) >= 36  # of 40: the tiny model errs now and then
        assert all(process.poll() is None for process in processes.values())
    assert time.monotonic() - began < 600
