"""What identifies somebody is found whatever stands around it, what merely looks like it is left, and nothing leaks."""

import json
import re
import string

import pytest
from commands import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.text import pii
from luthier.text.pii import FINDERS, KINDS, PLACEHOLDER, find, is_iban, luhn, might_hold, placeholder, restore, scrub, scrub_all

KEY = "test"
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=200)
TRICKY = st.lists(
    st.sampled_from(
        [
            "@",
            ".",
            ":",
            "-",
            "+",
            " ",
            "a",
            "b.co",
            "12",
            "3456",
            "::",
            "00",
            "(",
            ")",
            "/",
            "<",
            ">",
            "DE89",
            "4111",
            "sk-",
            "é",
            "\n",
        ]
    ),
    max_size=40,
).map("".join)


@pytest.fixture(scope="module", autouse=True)
def looked_at_together():
    """Few texts would be asked one by one; here they stand for many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pii, "FEW", 0)
        yield


def luhn_complete(digits):
    return next(digits + last for last in string.digits if luhn(digits + last))


def iban(country, body):
    for check in range(100):
        if is_iban(f"{country}{check:02d}{body}"):
            return f"{country}{check:02d}{body}"
    raise AssertionError


NAME = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=12)
DIGITS = st.text(string.digits, min_size=12, max_size=18)
IDENTIFIERS = st.one_of(
    st.builds(lambda a, b, c: ("email", f"{a}.{b}@{c}.example.org"), NAME, NAME, NAME),
    st.builds(lambda first, rest: ("card", luhn_complete(first + rest)), st.sampled_from("456"), st.text(string.digits, min_size=14, max_size=14)),
    st.builds(lambda body: ("iban", iban("DE", body)), st.text(string.digits, min_size=18, max_size=18)),
    st.builds(lambda body: ("iban", " ".join([iban("GB", "WEST" + body)[i : i + 4] for i in range(0, 22, 4)])), st.text(string.digits, min_size=14, max_size=14)),
    st.ip_addresses(v=4).map(lambda ip: ("ip", str(ip))),
    st.ip_addresses(v=6, network="2001:db8::/32").map(lambda ip: ("ip", str(ip))),
    st.builds(lambda n: ("phone", f"+44 20 7946 {n:04d}"), st.integers(0, 9999)),
    st.builds(lambda n: ("phone", f"(212) 555-{n:04d}"), st.integers(0, 9999)),
    st.builds(lambda a, b: ("secret", f"https://{a}:{b}@example.com/x"), NAME, NAME),
    st.builds(lambda s: ("secret", "ghp_" + s), st.text(string.ascii_letters + string.digits, min_size=36, max_size=36)),
    st.builds(lambda s: ("secret", "AKIA" + s), st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=16)),
)  # fmt: skip
AROUND = st.sampled_from(["", "Hi, ", "mail me: ", "(", "« ", "是 ", "\n", "my card, ", '"'])
AFTER = st.sampled_from(["", ".", ", thanks", ")", " »", "\n", "!", '"'])


@given(AROUND, IDENTIFIERS, AFTER)
@settings(max_examples=400, deadline=None)
def test_every_identifier_is_found_whole(before, identifier, after):
    kind, value = identifier
    scrubbed, values = scrub(before + value + after, KEY)
    assert scrubbed == before + placeholder(kind, value, KEY) + after
    assert restore(scrubbed, values) == before + value + after


@given(st.one_of(ANY_TEXT, TRICKY))
@example("a@b.com@c.com")
@settings(max_examples=400, deadline=None)
def test_scrubbing_twice_is_scrubbing_once_and_nothing_is_left_to_find(text):
    scrubbed, values = scrub(text, KEY)
    assert find(scrubbed) == []
    assert scrub(scrubbed, KEY) == (scrubbed, {})
    assert set(values) <= set(PLACEHOLDER.findall(scrubbed)) | {
        name for name in values if any(name in v for v in values.values())
    }


@given(st.one_of(ANY_TEXT, TRICKY))
@settings(max_examples=300, deadline=None)
def test_the_cheap_look_first_hides_nothing(text):
    """No finder finds anything in a text that `find` sends back at once."""
    if not find(text):
        alone = [kind for kind in KINDS if any(True for _ in FINDERS[kind](text))]
        assert not alone or PLACEHOLDER.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "order QF-48213 of 2026-11-24, 12:30:45, version 1.2.3",
        "It cost 1,234.56 and weighs 12 kg; 3 of 10 came.",
        "Ring the bell at 5 or 10 past 8.",
        "on 01.02.2024 10 boxes, from 12/05/2026 to 13/05/2026",
        "4111 1111 1111 1112 fails its checksum, DE89 3704 0044 0532 0130 01 too",
        "meet @home, tweet @luthier, a@b",
        "std::vector and ratio 4:3",
        "tracking 00123456789012345678901",
        "the secret-garden-path is nice, a token of thanks",
        "999.1.2.3 is no address",
    ],
)
def test_what_only_looks_like_it_is_left(text):
    assert [text[f.start : f.end] for f in find(text)] == []


def test_the_same_person_has_one_placeholder_and_another_key_another_one():
    assert placeholder("phone", "+44 20 7946 0812", KEY) == placeholder("phone", "+44(20)7946-0812", KEY)
    assert placeholder("email", "A@Example.org", KEY) == placeholder("email", "a@example.org", KEY)
    assert placeholder("email", "a@example.org", KEY) != placeholder("email", "a@example.org", "other")


def test_everything_planted_in_the_sample_is_found():
    """Addresses apart: they need a model (the Presidio adapter)."""
    planted = json.loads((ROOT / "data/01_raw/planted_defects.json").read_text())["defects"]
    lines = (ROOT / "data/01_raw/support_messages.jsonl").read_bytes().splitlines()
    wanted = 0
    for defect in planted:
        for personal in defect.get("personal") or []:
            if personal["type"] == "address":
                continue
            row = json.loads(lines[defect["line"] - 1])
            scrubbed, values = scrub(row["body"], KEY)
            wanted += 1
            assert personal["text"] not in scrubbed, personal
            assert personal["text"] in values.values(), (personal, values)
    assert wanted >= 20


def test_nothing_else_in_the_sample_is_taken_for_personal_data():
    planted = json.loads((ROOT / "data/01_raw/planted_defects.json").read_text())["defects"]
    known = {defect["line"] for defect in planted}
    surprises = []
    for number, line in enumerate((ROOT / "data/01_raw/support_messages.jsonl").read_bytes().splitlines(), 1):
        if number in known:
            continue
        row = json.loads(line)
        surprises += [(number, row["body"][f.start : f.end]) for f in find(row["body"])]
    assert surprises == []


@given(st.lists(ANY_TEXT | TRICKY | IDENTIFIERS.map(lambda found: found[1]), max_size=6))
@settings(deadline=None, max_examples=400)
def test_the_quick_look_misses_nothing(texts):
    import pyarrow as pa

    held = might_hold(pa.array(texts, pa.string())).to_pylist()
    assert all(find(text) == [] for text, might in zip(texts, held, strict=True) if not might)
    together, values = scrub_all(texts, KEY)
    assert together == [scrub(text, KEY)[0] for text in texts]
    assert values == {number: found for number, text in enumerate(texts) if (found := scrub(text, KEY)[1])}


@pytest.mark.parametrize("phone", ["(415) 555-7981", "0171/9434506", "+44 20 7946 0958", "415.555.0199"])
def test_a_number_in_the_next_sentence_does_not_hide_a_phone_number(phone):
    assert scrub(f"Call {phone}. 80312 is my order.", KEY)[0] == f"Call {placeholder('phone', phone, KEY)}. 80312 is my order."


def test_the_quick_look_misses_nothing_of_the_shipped_messages():
    import pyarrow as pa

    texts = (ROOT / "data/01_raw/support_messages.jsonl").read_text(encoding="utf-8").splitlines()
    held = might_hold(pa.array(texts)).to_pylist()
    assert all(might for text, might in zip(texts, held, strict=True) if find(text))


@pytest.mark.parametrize("secret", ["glpat-VYqUabcdEFGHijklMNOPqr", "sk_live_AbCdEfGhIjKlMnOpQrStUv", "ghp_" + "aBcD" * 9])
def test_a_secret_of_letters_alone_is_found(secret):
    assert scrub(f"the key is {secret} ok", KEY)[1] == {placeholder("secret", secret, KEY): secret}


@pytest.mark.parametrize("number", ["6011541735106814", "DE89370400440532013000"])
def test_a_number_is_found_right_beside_chinese(number):
    text, values = scrub(f"卡号{number}地址", KEY)
    assert list(values.values()) == [number]
    assert number not in text


@pytest.mark.parametrize(
    ("text", "keep", "left"),
    [
        ("mail help@shop.example now", r"help@shop\.example", "mail help@shop.example now"),
        ("mail help@shop.example now", r"^help@shop\.example$", "mail help@shop.example now"),
        ("mail help@shop.example.org now", r"help@shop\.example|help@shop\.example\.org", "mail help@shop.example.org now"),
        ("mail anna@shop.example now", r"\S+@shop\.example", "mail anna@shop.example now"),
        ("mail anna@shop.example now", r"mail \S+", "mail anna@shop.example now"),
        ("mail anna.help@shop.example now", r"help@shop\.example", None),
        ("mail thehelp@shop.example.com now", r"help@shop\.example", None),
        ("mail anna@shop.example now", "shop", None),
        ("mail anna@shop.example now", r"@shop\.example", None),
        ("call 020 7946 0958 now", "0958", None),
    ],
)
def test_what_is_kept_is_what_lies_wholly_in_a_match(text, keep, left):
    assert scrub(text, KEY, keep=[keep])[0] == (left or scrub(text, KEY)[0])
    assert left != scrub(text, KEY)[0] != text


@given(IDENTIFIERS, NAME | st.sampled_from([".", "-", "+", "@", "1"]), NAME | st.just(""), st.booleans())
@settings(max_examples=300, deadline=None)
def test_keeping_one_value_leaves_no_part_of_a_longer_one(identifier, more, other, before):
    value = identifier[1]
    text = f"{other} {more}{value} {other}" if before else f"{other} {value}{more} {other}"
    start = text.index(value)
    kept = find(text, keep=[re.escape(value)])
    for finding in find(text):
        if not start <= finding.start <= finding.end <= start + len(value):
            assert any(finding.start < one.end and one.start < finding.end for one in kept)
    assert scrub(value, KEY, keep=[re.escape(value)]) == (value, {})
