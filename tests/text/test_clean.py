"""Cleaning repairs, loses nothing that can be seen, leaves code alone, and done twice is done once."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.text import clean as module
from luthier.text.clean import CODE, clean, clean_with_changes, html_to_text, is_html, might_be_mojibake, need_cleaning

SPECIAL = "\r\n\t  \u00a0\u2028\u0085\u200b\u200c\u200d\u2060\ufeff\x00\x1f\x7f\u0301\u0308\u1100\u1161\u0344é🏽e\ufdd0"
MESSY = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters(codec="utf-8")), max_size=40)
PIECES = st.lists(
    st.sampled_from(
        ["<p>", "</p>", "<br>", "&lt;b&gt;", "&amp;lt;", "â€™", "Ã©", "```", "\n", " ", "x < y", "<!-- -->", "a", "é"]
    ),
    max_size=12,
).map("".join)


@given(MESSY | PIECES)
@settings(max_examples=300)
@example("<p>&lt;p&gt;x&lt;/p&gt;</p>")
@example("<div>&#96;&#96;&#96;</div>")
def test_cleaning_twice_is_cleaning_once(text):
    assert clean(clean(text)) == clean(text)


@given(MESSY)
@settings(max_examples=150)
def test_clean_text_is_normal_and_has_no_noise(text):
    found = CODE.sub("", clean(text))
    assert unicodedata.is_normalized("NFC", found)
    assert not set(found) & set("\r\t\x00\u200b\ufeff\u00a0")
    assert not any(unicodedata.category(c) == "Cc" for c in found.replace("\n", ""))
    if "```" not in text:
        assert "  " not in found
        assert "\n\n\n" not in found
        assert all(line == line.strip(" ") for line in found.split("\n"))


@given(MESSY.filter(lambda text: not might_be_mojibake(text) and "<" not in text))
@settings(max_examples=150)
def test_cleaning_loses_nothing_that_can_be_seen(text):
    def seen(value):
        unseen = ("Cc", "Cf", "Cn")
        normal = unicodedata.normalize("NFC", "".join(c for c in value if unicodedata.category(c) not in unseen))
        return "".join(normal.split())

    assert unicodedata.normalize("NFC", seen(clean(text))) == unicodedata.normalize("NFC", seen(text))


@given(MESSY | PIECES)
@settings(max_examples=300)
def test_the_quick_look_never_hides_work(text):
    slow, changes = text, []
    for _ in range(8):
        before, slow = slow, module._round(slow, changes)
        if before == slow:
            break
    assert clean_with_changes(text) == (slow, changes)


@given(st.text(max_size=30), st.text(max_size=30))
def test_mojibake_is_told_wherever_ftfy_would_repair(before, after):
    from ftfy import TextFixerConfig, fix_text

    config = TextFixerConfig(
        unescape_html=False, remove_terminal_escapes=False, fix_latin_ligatures=False, fix_character_width=False, uncurl_quotes=False,
        fix_line_breaks=False, fix_surrogates=False, remove_control_chars=False, normalization=None, explain=False,
    )  # fmt: skip
    text = f"{before}é’ü{after}".encode().decode("cp1252", "replace")
    if fix_text(text, config) != text:
        assert might_be_mojibake(text)


def test_joiners_that_carry_meaning_stay():
    for text in ("👩\u200d🔧", "می\u200cخواهم", "क्\u200dष"):
        assert clean(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "“curly” ‘quotes’",
        "ﬁne ligature",
        "ｆｕｌｌ width",
        "½ cup, 5 °C, Å",
        "a < b and c > d",
        "use the <b> tag",
        "R&amp;D",
        "<EMAIL_k3f7qz>",
    ],
)
def test_what_merely_looks_unusual_stays(text):
    assert clean(text) == text


def test_code_is_left_as_it_is():
    code = "```html\n<p>  two  spaces\t</p>\n\n\n\nâ€™\n```"
    assert clean(f"see  this:\n{code} <br>thanks ") == f"see this:\n{code}\nthanks"
    assert clean("```\n  never   closed") == "```\n  never   closed"


def test_html_becomes_what_a_reader_sees():
    page = (
        "<html><head><title>t</title><style>p{}</style></head><body><p>Dear&nbsp;team,</p><ul><li>one</li><li>two</li></ul>"
        "<script>x()</script><!-- no --><table><tr><td>a</td><td>b</td></tr></table></body></html>"
    )
    text = clean(page)
    assert text.split() == ["Dear", "team,", "-", "one", "-", "two", "a", "b"]
    assert clean_with_changes(page)[1] == ["html", "white space"]
    assert is_html("line<br/>line")
    assert not is_html("a <b> tag")
    assert "x" in html_to_text("<p>x")


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_any_text_can_be_cleaned_in_any_markup(text):
    for messy in (f"<p>{text}</p>", text.encode("utf-8", "surrogatepass").decode("latin-1")):
        assert clean(clean(messy)) == clean(messy)


@given(st.lists(MESSY | PIECES | st.text(st.sampled_from("éÃ©â€™Â°ÐвЂ™ΒΞ \u3000\u2003ﬁà¹½")), max_size=5))
@settings(max_examples=400)
def test_a_text_that_need_not_be_cleaned_is_clean(texts):
    import pyarrow as pa

    needed = need_cleaning(pa.array(texts, pa.string())).to_pylist()
    assert all(clean(text) == text for text, need in zip(texts, needed, strict=True) if not need)


def test_most_texts_need_no_cleaning():
    import pyarrow as pa

    texts = [
        "Hello there.\nA second line, with 1,200 words.",
        "Grüße aus Köln – schön!",
        "我的订单在哪里？",
        "Где мой заказ?",
        "😀 ok",
    ]
    assert need_cleaning(pa.array(texts)).to_pylist() == [False] * len(texts)
