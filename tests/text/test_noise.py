"""Noise changes words by its rates and no value, the same on every machine."""

import re
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.text.noise import Noise, add_noise

NONE = dict.fromkeys(("neighbour", "dropped", "doubled", "swapped", "lower", "upper", "sentence", "unpunctuated"), 0.0)
STRONG = Noise(neighbour=0.3, dropped=0.2, doubled=0.2, swapped=0.3, lower=0.4, upper=0.3, sentence=0.3, unpunctuated=1.0)
WORDS = "where does the machine leak, please? it will not heat. "
PINNED = "YEEE DDID THE JZHCEN LLEEQ LLSQZE IT QLL NOT QTT "
VALUES = [
    "<EMAIL_k3f9qz>",
    "<PHONE_abcdef>",
    "QF-863149",
    "12.50",
    "https://example.com/where/Is?it",
    "```python\nPrint(where, machine)\n```",
    "`burr set`",
    "burr_set_large",
    "getUserName",
    "someone@example.com",
    "4th",
    "/usr/lib/thing",
    "example.com",
    "{where:machine}",
    "machine.start(slowly)",
]


def noise(**rates):
    return Noise(**{**NONE, **rates})


@given(text=st.text(max_size=80), key=st.text(max_size=4))
@settings(deadline=None, max_examples=200)
def test_no_rate_no_change_and_white_space_stays(text, key):
    assert add_noise(text, noise(), key) == text
    noisy = add_noise(text, STRONG, key)
    assert re.findall(r"\s+", noisy) == re.findall(r"\s+", text)
    assert bool(noisy.strip()) == bool(text.strip())
    assert add_noise(text, STRONG, key) == noisy


@given(
    pieces=st.lists(st.sampled_from([*VALUES, "where", "machine", "please!"]), min_size=1, max_size=8),
    between=st.sampled_from([" ", "\n", "  "]),
    key=st.text(max_size=4),
)
@settings(deadline=None, max_examples=200)
def test_values_stay(pieces, between, key):
    noisy = add_noise(between.join(pieces), STRONG, key)
    place = 0
    for value in (piece for piece in pieces if piece in VALUES):
        place = noisy.index(value, place) + len(value)


@pytest.mark.parametrize("value", ["<EMAIL_k3f9qz>", "QF-863149", "getUserName", "`burr set`"])
@pytest.mark.parametrize("frame", ["({})", "{}.", '"{}",', "order:{}!", "{}"])
def test_values_stay_within_punctuation(value, frame):
    text = f"where {frame.format(value)} machine"
    assert all(value in add_noise(text, STRONG, str(n)) for n in range(30))


DECOMPOSED = st.lists(st.sampled_from(["cafe\u0301", "machine\u0323\u0301", "leaking", "nai\u0308ve"]), max_size=6).map(" ".join)


@given(text=st.one_of(DECOMPOSED, st.text(st.characters(exclude_categories=["Cs"]), max_size=60)), key=st.text(max_size=3))
@settings(deadline=None, max_examples=200)
def test_marks_keep_the_letter_that_carries_them(text, key):
    slips = noise(neighbour=0.3, dropped=0.3, doubled=0.2, swapped=0.2)

    def carried(text):
        return [pair for pair in pairwise(text) if unicodedata.category(pair[1]) in ("Mn", "Mc", "Me")]

    assert carried(add_noise(text, slips, key)) == carried(text)
    add_noise(text, STRONG, key).encode()


@pytest.mark.parametrize("text", ["请问我的订单在哪里", "मेरा ऑर्डर कहाँ है", "أين طلبي من فضلك", "👩‍👩‍👧 🇩🇪 ❤️", "not no yes it is"])
def test_scripts_without_case_and_short_words_have_no_slips(text):
    slips = noise(neighbour=0.4, dropped=0.3, doubled=0.1, swapped=0.2)
    assert all(add_noise(text, slips, str(n)) == text for n in range(20))


@pytest.mark.parametrize(("kind", "change"), [("dropped", -1), ("doubled", 1), ("swapped", 0), ("neighbour", 0)])
def test_the_rate_of_slips_is_what_was_asked_for(kind, change):
    text = "machine leaking water everywhere " * 300
    letters = sum(character.isalpha() for character in text)
    noisy = add_noise(text, noise(**{kind: 0.1}), "k")
    assert noisy != text
    if change:
        assert (len(noisy) - len(text)) / letters == pytest.approx(change * 0.1, abs=0.015)
    else:
        changed = sum(a != b for a, b in zip(noisy, text, strict=True)) / letters
        # a swap moves two letters, sometimes equal ones, and the last letter of a word has none to swap with
        assert changed == pytest.approx(0.1 if kind == "neighbour" else 0.16, abs=0.025)


def test_neighbours_lie_on_the_keys_around_and_keep_their_case():
    near = noise(neighbour=1.0)
    assert {add_noise("gggg", near, str(n))[0] for n in range(100)} == set("ftyhvb")
    assert {add_noise("GGGG", near, str(n))[0] for n in range(100)} == set("FTYHVB")
    assert {add_noise("yyyy", noise(neighbour=1.0, keyboard="qwertz"), str(n))[0] for n in range(100)} == set("asx")
    assert add_noise("éééé", near, "k") == "éééé"


@pytest.mark.parametrize(
    ("casing", "wanted"),
    [
        ("lower", "hello there. is QF-863149 lost? yes! getUser <EMAIL_k3f9qz>"),
        ("upper", "HELLO THERE. IS QF-863149 LOST? YES! getUser <EMAIL_k3f9qz>"),
        ("sentence", "Hello there. Is QF-863149 lost? Yes! getUser <EMAIL_k3f9qz>"),
    ],
)
def test_casing(casing, wanted):
    assert add_noise("Hello There. IS QF-863149 lost? yes! getUser <EMAIL_k3f9qz>", noise(**{casing: 1.0}), "k") == wanted


def test_casing_is_chosen_for_whole_texts_at_its_share():
    found = [add_noise("Hello There", noise(lower=0.3, upper=0.1), str(n)) for n in range(2_000)]
    assert set(found) == {"Hello There", "hello there", "HELLO THERE"}
    assert found.count("hello there") / 2_000 == pytest.approx(0.3, abs=0.04)
    assert found.count("HELLO THERE") / 2_000 == pytest.approx(0.1, abs=0.03)


def test_missing_punctuation():
    text = "Hello, it doesn't work... Why? Version 2.5, file.txt: ? :)"
    assert add_noise(text, noise(unpunctuated=1.0), "k") == "Hello it doesnt work Why Version 2.5, file.txt: ? :)"


def test_keys_differ():
    assert len({add_noise(WORDS * 5, Noise(), f"7:{n}") for n in range(20)}) == 20


def test_the_bytes_are_these_on_every_machine():
    assert add_noise(WORDS, STRONG, "7:abc:1") == PINNED


@pytest.mark.parametrize("rates", [{"lower": 0.6, "upper": 0.6}, {"dropped": 0.6, "swapped": 0.5}, {"upper": -0.1}])
def test_shares_that_do_not_fit_are_told(rates):
    with pytest.raises(ValidationError, match="together they must not exceed 1|greater than or equal to 0"):
        Noise(**rates)
