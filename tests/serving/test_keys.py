"""Keys: who has one gets in, nobody else does, and no key shows anywhere."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.serving.keys import ADMIN_VARIABLE, CLIENT_VARIABLE, is_loopback, read_keys

ALICE, BATCH, ADMIN = "sk-alice-0123456789", "sk-batch-0123456789", "sk-admin-0123456789"
SET = {CLIENT_VARIABLE: f"alice:{ALICE}, {BATCH},", ADMIN_VARIABLE: ADMIN}


def test_a_key_tells_who_it_is():
    keys = read_keys(SET, "0.0.0.0")
    assert keys.client(f"Bearer {ALICE}") == "alice"
    assert keys.client(f"bearer  {BATCH} ") == "key-2"
    assert keys.is_admin(f"Bearer {ADMIN}")
    assert not keys.made


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        ALICE,
        f"Basic {ALICE}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        f"Bearer alice:{ALICE}",
        "Bearer \ud83d",
    ],
)
def test_nothing_else_gets_in(header):
    keys = read_keys(SET, "0.0.0.0")
    assert keys.client(header) is None
    assert not keys.is_admin(header)


def test_each_key_opens_its_own_door_only():
    keys = read_keys(SET, "0.0.0.0")
    assert not keys.is_admin(f"Bearer {ALICE}")
    assert keys.client(f"Bearer {ADMIN}") is None


@given(st.none() | st.text())
def test_no_header_gets_in_or_fails(header):
    keys = read_keys(SET, "0.0.0.0")
    assert keys.client(header) is None
    assert not keys.is_admin(header)


def test_on_this_machine_alone_keys_are_made_and_each_start_has_its_own():
    first, second = read_keys({}, "127.0.0.1"), read_keys({}, "127.0.0.1")
    assert first.made.keys() == {CLIENT_VARIABLE, ADMIN_VARIABLE}
    assert first.client(f"Bearer {first.made[CLIENT_VARIABLE]}") == "local"
    assert first.is_admin(f"Bearer {first.made[ADMIN_VARIABLE]}")
    assert second.client(f"Bearer {first.made[CLIENT_VARIABLE]}") is None
    assert len(set(first.made.values())) == 2


def test_what_is_set_is_not_made():
    keys = read_keys({CLIENT_VARIABLE: ALICE}, "::1")
    assert keys.made.keys() == {ADMIN_VARIABLE}


def test_where_others_can_reach_it_no_key_is_made():
    with pytest.raises(UserError, match=r"LUTHIER_API_KEYS: is not set, and others can reach 0\.0\.0\.0"):
        read_keys({}, "0.0.0.0")
    keys = read_keys({CLIENT_VARIABLE: ALICE}, "0.0.0.0")
    assert keys.admin is None
    assert not keys.is_admin("Bearer ")


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({CLIENT_VARIABLE: "short"}, "entry 1: is shorter than 16"),
        ({CLIENT_VARIABLE: f"a:{ALICE},b:{ALICE}"}, "entry 2: this key is given twice"),
        ({CLIENT_VARIABLE: f"a:{ALICE},a:{BATCH}"}, "the name a is given twice"),
        ({CLIENT_VARIABLE: "sk-with a gap-0123456789"}, "without spaces"),
        ({CLIENT_VARIABLE: "sk-é0123456789-0123456789"}, "printable ASCII"),
        ({CLIENT_VARIABLE: ALICE, ADMIN_VARIABLE: ALICE}, "is nobody else's"),
        ({CLIENT_VARIABLE: ALICE, ADMIN_VARIABLE: "short"}, "LUTHIER_ADMIN_KEY: is shorter"),
    ],
)
def test_a_mistake_is_told_without_the_key(environ, told):
    with pytest.raises(UserError, match=told) as caught:
        read_keys(environ, "127.0.0.1")
    for value in (ALICE, BATCH, "sk-", "short,", "0123456789"):
        assert value not in str(caught.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError) as caught:
        read_keys({CLIENT_VARIABLE: "short,a:tiny", ADMIN_VARIABLE: "small"}, "127.0.0.1")
    assert str(caught.value).count("is shorter") == 3


def test_no_key_or_hash_shows(caplog):
    with caplog.at_level(logging.DEBUG):
        keys = read_keys(SET, "0.0.0.0")
        made = read_keys({}, "localhost")
    shown = f"{keys!r} {keys} {made!r} {caplog.text}"
    for key in (ALICE, BATCH, ADMIN, *made.made.values()):
        assert key not in shown
    assert "digest" not in shown
    assert "b'" not in shown


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_is_told_from_other_addresses(host, alone):
    assert is_loopback(host) is alone
