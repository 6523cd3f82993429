"""Repair text without changing what somebody wrote: mojibake, HTML, control characters, white space. Code stays as it is.

Conservative on purpose: no quotes are straightened, no full-width letters or ligatures replaced, entities are decoded
only in what is HTML. Most texts need nothing; a look at their characters finds that out first.
"""

import re
import sys
import unicodedata
from functools import lru_cache
from typing import Any

CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
"""A fenced block of code (CommonMark, section 4.5), or what follows a fence that was never closed."""

# Control characters but tab and line feed, zero-width marks that carry no meaning, byte-order marks, noncharacters.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufdd0-\ufdef\ufffe\uffff]")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")
# what a text must hold to need more than NFC and a look for mojibake; ASCII without it is clean
_UNTIDY = re.compile(
    r"[^\S \n]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufdd0-\ufdef\ufffe\uffff]|  |\n\n\n| \n|\n |^\s|\s\Z|<"
)
_C1 = re.compile("[\x80-\x9f]")
_TAGS = (
    "a|b|blockquote|body|br|center|code|div|em|font|form|h[1-6]|head|hr|html|i|img|li|link|meta|ol|p|pre|script|small|span|"
    "strong|style|sub|sup|table|tbody|td|tfoot|th|thead|title|tr|u|ul"
)
_TAG = re.compile(rf"<(/?)({_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_BLOCKS = ["address", "blockquote", "br", "center", "div", "form", "hr", "li", "ol", "p", "pre", "table", "tr", "ul"]
_BLOCKS += [f"h{level}" for level in range(1, 7)]
_MOST_ROUNDS = 8


def is_html(text: str) -> bool:
    """Tell whether a text is marked up: it holds a line break or an opening and a closing tag of the same name.

    A message that only speaks of a `<b>` is not.
    """
    opened = set()
    for match in _TAG.finditer(text):
        closing, name = match[1], match[2].lower()
        if name in ("br", "hr") or (closing and name in opened):
            return True
        if not closing:
            opened.add(name)
    return False


def html_to_text(markup: str) -> str:
    """Return what a reader of the page would see: one line a block, a dash before a list's entries."""
    import warnings

    from bs4 import BeautifulSoup, Comment, MarkupResemblesLocatorWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        page = BeautifulSoup(markup, "html.parser")
    for unseen in page(["script", "style", "head", "title"]):
        unseen.decompose()
    for comment in page.find_all(string=lambda found: isinstance(found, Comment)):
        comment.extract()
    for cell in page(["td", "th"]):
        cell.insert_after(" ")
    for entry in page("li"):
        entry.insert(0, "- ")
    for block in page(_BLOCKS):
        block.insert_before("\n")
        block.insert_after("\n" if block.name != "br" else "")
    return page.get_text()


def might_be_mojibake(text: str) -> bool:
    """Tell whether ftfy would try anything: false for most texts, at a tenth of the cost of asking for the repair."""
    from ftfy.badness import is_bad

    return bool(_C1.search(text) or is_bad(text))


def _fix_encoding(text: str) -> str:
    """Undo UTF-8 that was read as something else (ftfy); nothing that merely looks unusual is touched."""
    if text.isascii() or not might_be_mojibake(text):
        return text
    from ftfy import TextFixerConfig, fix_text

    config = TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    return fix_text(text, config)


def _tidy(text: str) -> str:
    text = _SPACES.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "\n".join(line.strip(" ") for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text)


STEPS = (
    ("encoding", _fix_encoding),
    ("html", lambda text: html_to_text(text) if "<" in text and is_html(text) else text),
    ("line ends", lambda text: text.replace("\r\n", "\n").replace("\r", "\n")),
    ("invisible characters", lambda text: _INVISIBLE.sub("", text)),
    ("normalisation", lambda text: unicodedata.normalize("NFC", text)),
    ("white space", _tidy),
)


def _round(text: str, changes: list[str]) -> str:
    """Apply each step once to what stands between blocks of code."""
    pieces, end = [], 0
    for block in [*CODE.finditer(text), None]:
        piece = text[end : block.start()] if block else text[end:]
        for name, step in STEPS:
            changed = step(piece)
            if changed != piece and name not in changes:
                changes.append(name)
            piece = changed
        pieces.append(piece)
        if block:
            pieces.append(block[0])
            end = block.end()
    joined = "".join(pieces).strip()
    if joined != "".join(pieces) and "white space" not in changes:
        changes.append("white space")
    return joined


def clean_with_changes(text: str) -> tuple[str, list[str]]:
    """Return the cleaned text, and the names of the steps of `STEPS` that changed it."""
    if not _UNTIDY.search(text) and (text.isascii() or (unicodedata.is_normalized("NFC", text) and not might_be_mojibake(text))):
        return text, []
    changes: list[str] = []
    # one repair may bring another to light: markup that was escaped twice, mojibake in an entity
    for _ in range(_MOST_ROUNDS):
        before, text = text, _round(text, changes)
        if text == before:
            break
    return text, changes


def clean(text: str) -> str:
    r"""Return the text in NFC, without markup and control characters, single spaces, at most one blank line in a row.

    Idempotent: `clean(clean(x)) == clean(x)`. Zero-width joiners stay: Persian, Hindi and emoji need them.

    >>> clean("caf\u0065\u0301  <br>\r\n\r\n\r\nit\u00e2\u20ac\u2122s there ")
    'café\n\nit’s there'
    """
    return clean_with_changes(text)[0]


def need_cleaning(texts: Any) -> Any:
    """Tell which texts of an Arrow array `clean` might change: a hundred times faster than to ask each of them.

    Returns:
        an Arrow array of booleans; false only where `clean` returns the text as it is, and every string in it if it is JSON.
    """
    import pyarrow.compute as pc

    return pc.match_substring_regex(texts, _what_needs_cleaning())


@lru_cache(maxsize=1)
def _what_needs_cleaning() -> str:
    """Return one expression for RE2, which Arrow has: white space and invisible characters, markup, ftfy's own heuristic."""
    from ftfy.badness import BADNESS_RE

    spaces = "\t\r\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    untidy = f"[{spaces}]|{_INVISIBLE.pattern}|  |\n\n\n| \n|\n |\\A[ \n]|[ \n]\\z|<|[\x80-\x9f]"
    bad = _without_layout(BADNESS_RE.pattern)
    # RE2 knows white space and letters of ASCII only; all that is not ASCII for a letter finds more, never less
    bad = bad.replace(r"\s", f"[ \n{spaces}]").replace(r"\w", "[0-9A-Za-z_\x80-\U0010ffff]")
    # a text is in NFC if nothing in it composes with what stands before, and each character is its own NFC
    # (Unicode Standard Annex 15, section 9); Arrow's own utf8_normalize is no help: its NFC takes letters apart
    single = "".join(chr(code) for code in range(sys.maxunicode) if not unicodedata.is_normalized("NFC", chr(code)))
    # in JSON what needs cleaning may be escaped, or begin or end a string
    json = r"\A[\[{].*(?:\\| \"|\" )"
    return f"(?s){json}|{untidy}|{bad}|\\p{{M}}|[\u1161-\u1175\u11a8-\u11c2{single}]"


def _without_layout(pattern: str) -> str:
    """Return a verbose expression without the white space and the comments that it is laid out with."""
    found = re.findall(r"\\.|\[(?:\\.|[^\]\\])*\]|#[^\n]*|\s+|.", pattern, re.DOTALL)
    return "".join(piece for piece in found if not piece.isspace() and not piece.startswith("#"))
