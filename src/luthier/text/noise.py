"""Write a text as a hurried customer would: slips of the keyboard, no capitals or nothing else, full stops forgotten.

Augmentation trains on such texts and the evaluation asks what they cost. What carries a value stays as it is: placeholders,
code, addresses, anything with a digit, names such as `burr_set` or `getUser`. Slips are made in words of four letters and
more only, so that "not" does not become "no", and only in alphabets with upper and lower case: a letter of Arabic or Hindi
may be half of a sign, and Han is typed in another way.
"""

import hashlib
import random
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from luthier.configuration import Parameters

Rate = Annotated[float, Field(ge=0, le=1)]
Keyboard = Literal["qwerty", "qwertz", "azerty"]
Casing = Literal["lower", "upper", "sentence"]

# The rows of letters; each row stands half a key to the right of the one above.
_ROWS: dict[Keyboard, tuple[str, str, str]] = {
    "qwerty": ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "qwertz": ("qwertzuiopü", "asdfghjklöä", "yxcvbnm"),
    "azerty": ("azertyuiop", "qsdfghjklm", "wxcvbn"),
}
_SHORTEST = 4  # letters of a word that may hold a slip
_CODE = r"```.*?(?:```|\Z)|`[^`\n]*`"
_PIECE = re.compile(rf"({_CODE})|[^\s`]+", re.DOTALL)
# Every placeholder of PII holds an underscore. A dot or slash between letters makes an address, a path or a call.
_VALUE = re.compile(r"\d|[@_\\{}=<>|]|\w[./:(]\w|://|^[/~.]+\w")
_WORD = re.compile(r"[^\W\d_]+")
_MARKS = re.compile(r"[.,;:!?…。，！？]+$|(?<=\w)['’](?=\w)")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*$")


class Noise(Parameters):
    """How much goes wrong. All zero leaves a text as it is."""

    neighbour: Rate = 0.01
    """Share of letters struck on the key beside."""
    dropped: Rate = 0.01
    """Share of letters left out."""
    doubled: Rate = 0.005
    """Share of letters struck twice."""
    swapped: Rate = 0.01
    """Share of letters that change places with the next one."""
    lower: Rate = 0.2
    """Share of texts in small letters throughout."""
    upper: Rate = 0.02
    """Share of texts in capitals throughout."""
    sentence: Rate = 0.0
    """Share of texts with capitals at the start of sentences only."""
    unpunctuated: Rate = 0.2
    """Share of marks that are missing at the end of words, and of apostrophes within."""
    keyboard: Keyboard = "qwerty"
    """Which keys lie beside each other."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        for names in (("neighbour", "dropped", "doubled", "swapped"), ("lower", "upper", "sentence")):
            if sum(getattr(self, name) for name in names) > 1:
                raise ValueError(f"{', '.join(names)} are shares of one whole: together they must not exceed 1")
        return self


@cache
def _neighbours(keyboard: Keyboard) -> dict[str, str]:
    """Map each letter, small and capital, to the letters on the keys that touch its own."""
    places = {letter: (row, column) for row, letters in enumerate(_ROWS[keyboard]) for column, letter in enumerate(letters)}
    touching = {(0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0)}
    near = {
        letter: "".join(other for other, (r, c) in places.items() if (r - row, c - column) in touching)
        for letter, (row, column) in places.items()
    }
    return near | {letter.upper(): others.upper() for letter, others in near.items()}


def _is_value(piece: str) -> bool:
    """Tell whether a piece without white space stands for itself and must be kept."""
    if _VALUE.search(piece):
        return True
    # "getUser" and "iPhone", but neither "Hello" nor "HELLO"
    return any(before.islower() and after.isupper() for before, after in pairwise(piece))


def _slips(word: str, noise: Noise, draw: random.Random) -> str:
    """Return a word with slips; no letter that carries combining marks takes part."""
    near = _neighbours(noise.keyboard)
    letters: list[str] = []
    place = 0
    while place < len(word):
        letter = word[place]
        slip = draw.random()
        place += 1
        for kind, rate in (("neighbour", noise.neighbour), ("dropped", noise.dropped), ("doubled", noise.doubled)):
            if slip < rate:
                if kind == "neighbour":
                    others = near.get(letter, letter)
                    letter = others[int(draw.random() * len(others))]
                elif kind == "dropped":
                    letter = ""
                else:
                    letter *= 2
                break
            slip -= rate
        else:
            if slip < noise.swapped and place < len(word):
                letter = word[place] + letter
                place += 1
        letters.append(letter)
    return "".join(letters)


def _with_slips(piece: str, noise: Noise, draw: random.Random) -> str:
    def replace(match: re.Match[str]) -> str:
        word, after = match[0], piece[match.end() : match.end() + 1]
        marked = after != "" and unicodedata.category(after) in ("Mn", "Mc", "Me", "Cf")
        cased = word.lower() != word.upper() and all(letter.isupper() or letter.islower() for letter in word)
        return _slips(word, noise, draw) if len(word) >= _SHORTEST and cased and not marked else word

    return _WORD.sub(replace, piece)


def _without_marks(piece: str, rate: float, draw: random.Random) -> str:
    return _MARKS.sub(lambda match: "" if draw.random() < rate else match[0], piece)


def _cased(piece: str, casing: Casing | None, starts: bool) -> str:
    if casing == "upper":
        return piece.upper()
    if casing == "lower":
        return piece.lower()
    if casing == "sentence":
        piece = piece.lower()
        first = _WORD.search(piece)
        if starts and first:
            return piece[: first.start()] + first[0][0].upper() + piece[first.start() + 1 :]
    return piece


def _draw_casing(noise: Noise, draw: random.Random) -> Casing | None:
    share = draw.random()
    kinds: tuple[tuple[Casing, float], ...] = (("lower", noise.lower), ("upper", noise.upper), ("sentence", noise.sentence))
    for casing, rate in kinds:
        if share < rate:
            return casing
        share -= rate
    return None


def _noisy_pieces(text: str, noise: Noise, draw: random.Random) -> Iterator[str]:
    casing = _draw_casing(noise, draw)
    starts, end = True, 0
    for match in _PIECE.finditer(text):
        yield text[end : match.start()]
        piece, end = match[0], match.end()
        if match[1] or _is_value(piece):
            yield piece
        else:
            noisy = _without_marks(_with_slips(piece, noise, draw), noise.unpunctuated, draw)
            # nothing may vanish, nor two words become one: a mark that stands alone stays
            yield _cased(noisy or piece, casing, starts)
        starts = _SENTENCE_END.search(piece) is not None
    yield text[end:]


def add_noise(text: str, noise: Noise, seed_key: str) -> str:
    """Return the text with noise: the same for the same text, settings and key, on any machine.

    White space stays, and so does every value (see the module's description); words and marks change by the rates.

    Args:
        text: any text.
        noise: the rates.
        seed_key: names the draw, such as `f"{seed}:{key}:{copy}"`.
    """
    draw = random.Random(int.from_bytes(hashlib.sha256(seed_key.encode("utf-8", "surrogatepass")).digest()))
    return "".join(_noisy_pieces(text, noise, draw))
