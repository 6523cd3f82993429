"""Languages are told apart, short texts and code are left alone, and nothing is downloaded."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from luthier.text.language import detect

SPANISH = "hola, donde esta mi pedido? lo necesito para el lunes"
ENGLISH = "hello, where is my order? I need it for Monday"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        (ENGLISH.upper(), "en"),
        (ENGLISH.replace(" ", "\n"), "en"),
        ("请问我的订单在哪里", "zh"),
        ("我的订单QF-863149在哪里", "zh"),
        ("где мой заказ", "ru"),
        ("Wo ist <EMAIL_k3f7qz> https://example.com/where/is/my/order?", None),
        ("Wo bleibt meine Bestellung? ```where is my order in this house```", "de"),
        ("QF-863149 0049-12 abc123def456", None),
        ("hi", None),
        ("👍👍👍👍👍👍", None),
        ("", None),
        ("\ud800 \x00", None),
        ("where is my order \udfff please", "en"),
    ],
)
def test_languages(text, language):
    ((found, confidence),) = detect([text])
    assert found == language
    assert (confidence == 0) == (language is None)
    assert 0 <= confidence <= 1


def test_threads_agree_and_no_network_is_needed(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it went to the network"))
    texts = [ENGLISH, SPANISH, "hi"] * 50
    with ThreadPoolExecutor(8) as pool:
        assert len({tuple(found) for found in pool.map(lambda _: detect(texts), range(16))}) == 1


@pytest.mark.parametrize("text", ["a" * 90_000, "`" * 90_000, "a1" * 45_000, "a.-" * 30_000, "退" * 90_000, "<EMAIL_" * 10_000])
def test_no_text_takes_long(text):
    detect(["loads the model"])
    start = time.process_time()
    detect([text])
    assert time.process_time() - start < 1
