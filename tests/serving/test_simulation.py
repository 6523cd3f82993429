"""`kedro simulate`: messages of any file become traffic that the gateway counts, as often and as mixed as asked."""

import json
from collections import Counter

import pytest
from commands import ROOT as PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.configuration import DataParameters, FolderParameters
from luthier.errors import UserError
from luthier.serving.keys import first_key
from luthier.serving.records.feedback import read_feedback
from luthier.simulation import Sent, Told, Traffic, label_file, read_messages
from luthier.simulation import send as send_into
from tests.serving.gateways import KEY, gateway_of
from tests.serving.scripted import scripted

DATA = DataParameters(
    path="unused", user="{% if subject %}{{ subject }}\n\n{% endif %}{{ body }}", assistant="{{ answer | json }}"
)
FOLDERS = FolderParameters(root=str(PROJECT), base_models="", shards="", work="")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with scripted() as script, gateway_of(tmp_path_factory.mktemp("log"), {3: [script.url]}) as found:
        yield found


def send(*what, **more):
    told = Told()
    send_into(*what, told, **more)
    return told


def traffic(**more):
    known = {
        "usual": [Sent("hello", "Hello")],
        "drifted": [],
        "share": 0.0,
        "rate": 1000,
        "count": 40,
        "votes": 0.0,
        "up": {"": 0.8},
    }
    return Traffic(**known | more)


def test_every_message_is_answered_logged_and_voted_on_as_asked(running, tmp_path):
    before = len(running.rows())
    sent = traffic(votes=1.0, up={"": 1.0, "champion": 0.0})
    with label_file(tmp_path / "some" / "labels.jsonl") as keep:
        keep({"request": "before", "answer": "\u2028"})
    with label_file(tmp_path / "some" / "labels.jsonl") as keep:
        told = send(sent, running.address, KEY, "luthier", on_label=keep)
    assert (told.answered, told.failed) == ({"champion, version 3": 40}, {})
    assert told.votes == {"down for champion": 40}
    rows = running.rows().iloc[before:]
    assert len(rows) == 40
    assert rows["subject"].nunique() == len(rows)
    votes = read_feedback(running.log_uri).set_index("request").loc[rows["request"]]
    assert votes["rating"].eq("down").all()
    labels = [json.loads(line) for line in (tmp_path / "some" / "labels.jsonl").read_text().rstrip("\n").split("\n")]
    assert len(labels) == 41
    assert {label["request"] for label in labels} == {"before", *rows["request"]}


def test_who_knows_the_right_answer_votes_by_it(running):
    usual = [Sent("a", "a"), Sent("b", "something else")]
    told = send(traffic(usual=usual, votes=1.0, up={"": 0.5, "right": 1.0, "wrong": 0.0}), running.address, KEY, "luthier")
    assert told.votes == {"up for champion": 20, "down for champion": 20}
    told = send(traffic(usual=usual, votes=1.0, up={"": 0.5, "right": 1.0, "champion": 0.0}), running.address, KEY, "luthier")
    assert told.votes == {"down for champion": 40}


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999", "127.0.0.1:8080", "nonsense", "http://"])
def test_an_address_that_is_none_is_told(address):
    with pytest.raises(UserError, match="--url: .* is no address of a gateway"):
        send(traffic(), address, KEY, "luthier")


def test_refusals_are_counted_by_their_code(running):
    told = send(traffic(usual=[Sent("x" * 300_000)], count=3), running.address, KEY, "luthier")
    assert told.failed == {"invalid_value": 3}
    assert not told.answered


def test_nobody_there_and_a_wrong_key_are_told_before_anything_is_sent(running):
    with pytest.raises(UserError, match="No gateway answers at http://127.0.0.1:9 .*kedro serve"):
        send(traffic(), "http://127.0.0.1:9", KEY, "luthier")
    with pytest.raises(UserError, match="does not know the key in LUTHIER_API_KEYS"):
        send(traffic(), running.address, "sk-wrong", "luthier")


@settings(max_examples=30)
@given(usual=st.integers(1, 20), drifted=st.integers(1, 20), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_messages_are_mixed_by_their_share_and_all_come_before_one_comes_again(usual, drifted, share, seed):
    sent = traffic(
        usual=[Sent(f"u{n}") for n in range(usual)],
        drifted=[Sent(f"d{n}") for n in range(drifted)],
        share=share,
        count=400,
        seed=seed,
    )
    texts = [one.text for one in sent.messages()]
    assert texts == [one.text for one in sent.messages()]
    for kind in ("u", "d"):
        counts = Counter(text for text in texts if text[0] == kind).values()
        assert not counts or max(counts) - min(counts) <= 1 or len(counts) < {"u": usual, "d": drifted}[kind]
    assert abs(sum(text[0] == "d" for text in texts) / 400 - share) < 0.15


def test_files_are_read_by_the_templates_or_by_their_columns(tmp_path):
    rows = [
        {"subject": "Kettle", "body": "leaks", "answer": {"intent": "x"}},
        {"subject": None, "body": "where is it"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        {"text": "plain", "label": "a"},
        {"nothing": 1},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "nonsense\n")
    found = read_messages(str(file), DATA, FOLDERS, "MESSAGES")
    assert found == [Sent("Kettle\n\nleaks", '{"intent":"x"}'), Sent("where is it"), Sent("hi"), Sent("plain")]
    (tmp_path / "none.jsonl").write_text('{"nothing": 1}\n')
    with pytest.raises(UserError, match=r"--drifted: no row of .*none\.jsonl holds a message"):
        read_messages(str(tmp_path / "none.jsonl"), DATA, FOLDERS, "--drifted")
    with pytest.raises(UserError, match=r"MESSAGES: there is no file"):
        read_messages(str(tmp_path / "missing.jsonl"), DATA, FOLDERS, "MESSAGES")


def test_the_key_is_the_first_one_that_the_gateway_knows():
    assert first_key({"LUTHIER_API_KEYS": "ada:sk-0123456789abcdef,sk-other"}) == "sk-0123456789abcdef"
    assert first_key({"LUTHIER_API_KEYS": " sk-0123456789abcdef"}) == "sk-0123456789abcdef"
    with pytest.raises(UserError, match="LUTHIER_API_KEYS is not set"):
        first_key({})
