"""A profile of parts, merged, is the profile of the whole: exactly, in any order, and it survives JSON."""

import json
import zlib
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.text import profile as module
from luthier.text.profile import BINS, EDGES, Lengths, Profile, Vocabulary, dense, merge, plot, profile_texts

ROW = st.tuples(
    st.one_of(
        st.text(max_size=30), st.sampled_from(["the machine leaks", "mail <EMAIL_k3f7qz> or <CARD_abcdef>", "退款 please", " \n"])
    ),
    st.lists(st.integers(0, 200_000), max_size=8),
    st.sampled_from(["en", "de", None]),
    st.sampled_from(["a", "b", None]),
    st.sampled_from(["mail", "chat"]),
)
ROWS = st.lists(ROW, max_size=10)
PINNED = '[{"191": 1, "757": 1, "1169": 1, "1874": 1, "3898": 1}, {"0": 1, "1509": 1, "2377": 1}, "8c7110279fbe2d65"]'
REFERENCE = profile_texts(["the machine leaks water", "please help"]).vocabulary


def profile_of(rows, vocabulary=REFERENCE):
    columns = list(zip(*rows, strict=True)) or [[]] * 5
    return profile_texts(*columns, vocabulary=vocabulary)


@given(one=ROWS, two=ROWS, three=ROWS)
@settings(deadline=None, max_examples=60)
def test_merging_is_exact_commutative_and_associative(one, two, three):
    a, b, c = map(profile_of, (one, two, three))
    whole = profile_of([*three, *one, *two])
    assert merge(merge(a, b), c) == merge(a, merge(b, c)) == merge(merge(c, b), a) == whole
    assert merge(a, b).to_json() == merge(b, a).to_json()
    assert merge(merge(a, b), c).to_json() == whole.to_json()


@given(rows=ROWS)
@settings(deadline=None, max_examples=60)
def test_nothing_changes_nothing_and_json_gives_the_profile_back(rows):
    found = profile_of(rows)
    assert merge(found, Profile()) == merge(Profile(), found) == found
    assert Profile.from_json(found.to_json()) == found
    assert Profile.from_json(found.to_json()).to_json() == found.to_json()


def test_batches_do_not_show(monkeypatch):
    texts = [f"text {'machine ' * (n % 7)}{n}" for n in range(50)]
    whole = profile_texts(texts, labels=[str(n % 3) for n in range(50)])
    monkeypatch.setattr(module, "_AT_ONCE", 7)
    assert profile_texts(iter(texts), labels=(str(n % 3) for n in range(50))) == whole


def test_what_is_counted():
    texts = ["", " \n", "x" * 10_000, "die Mühle, <EMAIL_k3f7qz> <EMAIL_abcdef> <NATIONAL_ID_abcdef> 84213", "ab <EMAIL_>"]
    found = profile_texts(texts, [[], [1], [1, 2], [2], [2]], ["en", None, "en", "de", ""], list("aabbb"), ["s"] * 5)
    assert (found.texts, found.empty, found.very_long, found.non_ascii) == (5, 2, 1, 1)
    assert found.pii == {"email": 2, "national_id": 1}
    assert found.languages == {"": 2, "de": 1, "en": 2}
    assert (found.labels, found.sources) == ({"a": 2, "b": 3}, {"s": 5})
    assert found.characters.total == sum(map(len, texts))
    assert (found.tokens.count, found.tokens.total, found.tokens.smallest, found.tokens.largest) == (5, 5, 0, 2)
    assert sorted(found.token_bins.values()) == [2, 3]
    assert found.words == 5  # x..., die, Mühle, ab, email: neither placeholders nor numbers
    assert sum(found.word_bins.values()) == 5 + 2  # and the pairs of neighbours
    assert (found.empty_share, found.very_long_share) == (0.4, 0.2)
    assert found.non_ascii_share == 1 / found.characters.total


def test_pairs_of_words_have_an_order_and_do_not_cross_texts():
    def pairs(*texts):
        found = dense(profile_texts(texts).word_bins)
        return found - sum(dense(profile_texts([word]).word_bins) for text in texts for word in text.split())

    assert pairs("a b").sum() == 1
    assert pairs("a", "b", "").sum() == 0
    assert (pairs("a b") != pairs("b a")).any()
    assert (pairs("a b", "c a b") == pairs("a b", "c a", "a b")).all()
    # a pair is not a word said twice
    assert (pairs("a a") != dense(profile_texts(["a"]).word_bins)).any()


@given(values=st.lists(st.integers(0, 2_000_000), min_size=1, max_size=200), share=st.floats(0, 1))
@settings(deadline=None, max_examples=200)
def test_quantiles_are_as_good_as_the_bins(values, share):
    lengths = module._lengths(np.array(values, np.int64))
    assert lengths.mean == sum(values) / len(values)
    found = lengths.quantile(share)
    exact = sorted(values)[int(share * (len(values) - 1))]
    assert abs(found - exact) <= max(1, 0.1 * exact)
    assert min(values) <= found <= max(values)


def test_bins_cover_every_length_once():
    assert EDGES[0] == 0
    assert EDGES[-1] == 2**24
    assert (np.diff(EDGES) > 0).all()
    assert (EDGES[2:] - 1 <= 2 ** (1 / 8) * EDGES[1:-1] + 1).all()
    far = module._lengths(np.array([0, 1, 2**24 - 1, 2**24, 2**40]))
    assert far.bins == {0: 1, 1: 1, len(EDGES) - 2: 1, len(EDGES) - 1: 2}
    assert far.quantile(1.0) <= 2**40
    assert Lengths().quantile(0.5) == Lengths().mean == 0


def test_words_out_of_vocabulary_are_counted():
    reference = profile_texts(["The machine leaks", "please help QF-1"]).vocabulary
    found = profile_texts(["MACHINE machine Wasserdampf <EMAIL_k3f7qz> 99", "please Pumpe"], vocabulary=reference)
    assert (found.words, found.unknown_words, found.unknown_share) == (5, 2, 0.4)
    assert found.known_from == reference.digest
    assert profile_texts(["never seen"]).unknown_words == 0


def test_a_known_word_is_always_known_and_an_unknown_one_seldom():
    draw = np.random.default_rng(7)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = sorted({"".join(draw.choice(letters, 9)) for _ in range(50_000)})
    reference = profile_texts(words).vocabulary
    assert profile_texts(words, vocabulary=reference).unknown_words == 0
    strangers = profile_texts([f"{word}x" for word in words[:20_000]], vocabulary=reference)
    assert strangers.unknown_share > 0.998
    assert len(reference.gaps) < 300_000


@given(places=st.sets(st.integers(0, 2**20 - 1), max_size=50))
@settings(deadline=None, max_examples=50)
def test_the_bits_survive_their_coding(places):
    bits = np.zeros(2**20, np.bool_)
    bits[list(places)] = True
    assert (Vocabulary.of(bits).bits() == bits).all()


def test_different_vocabularies_cannot_be_merged():
    other = profile_texts(["another"]).vocabulary
    one, two = profile_texts(["a"], vocabulary=REFERENCE), profile_texts(["a"], vocabulary=other)
    with pytest.raises(ValueError, match=f"{REFERENCE.digest} and {other.digest}"):
        merge(one, two)
    with pytest.raises(ValueError, match="None"):
        merge(one, profile_texts(["a"]))


def test_columns_of_other_lengths_are_told():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        profile_texts(["a", "b"], labels=["x"])


@pytest.mark.parametrize("text", ["{", "{}x", '{"version": 2}', '{"text": 1}', "[]"])
def test_what_is_no_profile_is_told(text):
    with pytest.raises(ValueError, match="Profile"):
        Profile.from_json(text)


def test_memory_is_bounded():
    texts = [f"{zlib.crc32(str(n).encode()):x} word{n}" for n in range(30_000)]
    found = profile_texts(texts, ([n, n + 1] for n in range(30_000)))
    assert max(len(found.word_bins), len(found.token_bins)) <= BINS
    assert len(found.characters.bins) <= len(EDGES)
    assert len(found.to_json()) < 500_000


def test_the_bins_are_these_on_every_machine():
    found = profile_texts(["The machine leaks"], [[0, 1, 49_151]])
    assert json.dumps([found.word_bins, found.token_bins, found.vocabulary.digest]) == PINNED


def test_lone_surrogates_and_other_oddities_do_no_harm():
    found = profile_texts(["\ud800 ok \udfff", "\x00", "é" * 3, "👩‍👩‍👧"])
    assert found.texts == 4
    assert found.words == 2


@pytest.mark.parametrize("filled", [True, False])
def test_the_plot_shows_each_part(filled):
    rows = [("text " * (n % 9) + "<EMAIL_k3f7qz>", [1] * n, ["en", None][n % 2], f"label-{n % 20}", "mail") for n in range(60)]
    figure = plot(profile_of(rows) if filled else Profile())
    figure.canvas.draw()
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Characters a text", "Tokens a text", "Labels", "Languages", "Sources", "Personal data by kind",
    ]  # fmt: skip
    shown = [text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]]
    if filled:
        assert {"label-0", "8 others", "(unknown)", "email", "mail"} <= set(shown)
        assert any(text.startswith("median") for text in shown)
    else:
        assert shown.count("none") == 6


def test_merging_many_is_merging_in_any_tree():
    parts = [profile_texts([f"text number {n}", "x" * n]) for n in range(9)]
    assert reduce(merge, parts) == reduce(merge, parts[::-1])
