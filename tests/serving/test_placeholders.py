"""Values put back: the same however an answer is cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.serving.placeholders import Restorer
from luthier.text.pii import placeholder, restore

MAIL, PHONE = placeholder("email", "ada@example.org", "k"), placeholder("phone", "+49 30 1234567", "k")
VALUES = {MAIL: "ada@example.org", PHONE: f"<{MAIL}"}
TEXTS = st.lists(
    st.sampled_from([MAIL, PHONE, MAIL[:-1], "<EM", "<", ">", "or ", "ü", placeholder("email", "x@y.org", "k")])
).map("".join)


def restored(pieces: list[str], values: dict[str, str] = VALUES, **how: bool) -> str:
    restorer = Restorer(values, **how)
    return "".join([*map(restorer.feed, pieces), restorer.end()])


@given(TEXTS, st.lists(st.integers(0, 60)))
def test_where_an_answer_is_cut_does_not_matter(text, cuts):
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in zip(places, places[1:], strict=False)]
    assert restored(pieces) == restored([text]) == restored(list(text)) == restore(text, VALUES)


def test_a_placeholder_cut_anywhere_is_put_back():
    text = f"to {MAIL} now"
    for cut in range(len(text) + 1):
        assert restored([text[:cut], text[cut:]]) == "to ada@example.org now"


def test_no_more_is_held_back_than_may_be_the_beginning_of_a_placeholder():
    restorer = Restorer(VALUES)
    assert restorer.feed("a <EMA") == "a "
    assert restorer.feed("X") == "<EMAX"
    assert restorer.feed("1 < 2") == "1 < 2"
    assert Restorer({}).feed("<EMA") == "<EMA"


@pytest.mark.parametrize("value", ['a"b', "line\nbreak", "back\\slash", "ü"])
def test_in_json_a_value_stays_within_its_string(value):
    text = json.dumps({"mail": f"to {MAIL}"})
    assert json.loads(restored(list(text), {MAIL: value}, in_json=True)) == {"mail": f"to {value}"}
