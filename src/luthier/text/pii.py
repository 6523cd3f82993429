"""Find personal data and secrets in text, and put keyed placeholders in their place.

Patterns propose, checks decide: cards by Luhn's checksum (ISO/IEC 7812-1), IBANs by country length and mod 97 (ISO
13616), addresses of machines by `ipaddress`. A placeholder is stateless, `<EMAIL_k3f9qz>`: a keyed hash of the normalised
value, so that the same person stays the same person all over a data set, in prompts and answers alike, on any machine.
Names and street addresses have no pattern: a recognizer, such as `luthier.text.presidio`, may add them.
"""

import hmac
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Kind = Literal["secret", "email", "iban", "card", "national_id", "ip", "phone"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # where two overlap, the one that stands first here wins
ModelKind = Literal["name", "address"]  # what patterns cannot find, and a recognizer can
AnyKind = Kind | ModelKind
PII_KINDS: tuple[AnyKind, ...] = (*KINDS, *get_args(ModelKind))
PLACEHOLDER = re.compile(r"<(?:" + "|".join(kind.upper() for kind in PII_KINDS) + r")_[a-z2-7]{6}>")

# Lengths of IBANs by country: the IBAN registry of SWIFT, release 99.
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28, "CH": 21,
    "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26,
    "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27,
    "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25,
    "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23,
    "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """Personal data at `start:end` of a text."""

    start: int
    end: int
    kind: AnyKind


Finder = Callable[[str], Iterator[tuple[int, int]]]
Recognizer = Callable[[str], Sequence[Finding]]
"""Findings of a model: in any order, and they may overlap, but the same for the same text."""

_DIGIT = re.compile(r"\d")
_URL_WITH_CREDENTIALS = re.compile(
    r"(?<![a-zA-Z0-9])[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s/:@<>]{1,128}:[^\s/@<>]{1,256}@[^\s<>\"'»)]{0,1000}[^\s<>\"'»).,;:!?]"
)
# Formats as their issuers document them: OpenAI, GitHub, AWS, Slack, Google, GitLab, Hugging Face, Stripe, JWT (RFC 7519).
_KNOWN_SECRET = re.compile(
    r"(?<![\w-])(?:sk-[\w-]{20,200}|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}|AIza[\w-]{35}|glpat-[\w-]{20,255}|hf_[A-Za-z0-9]{30,255}"
    r"|[spr]k_(?:live|test)_[A-Za-z0-9]{16,255}|eyJ[\w-]{10,4096}\.[\w-]{10,4096}\.[\w-]{10,4096})(?![\w-])"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.{0,16384}?-----END [A-Z ]{0,40}PRIVATE KEY-----", re.DOTALL)
# A word that names itself: `acme-token-7f3a-…`, `password: hunter2x`.
_NAMED_SECRET = re.compile(
    r"(?<![\w-])(?:[a-z0-9]{1,40}-){0,4}(?:token|secret|recovery|apikey|passcode)(?:-[a-z0-9]{1,40}){2,12}(?![\w-])",
    re.IGNORECASE,
)
_LABELLED_SECRET = re.compile(
    r"\b(?:password|passwd|passwort|api[ _-]?key|access[ _-]?token|secret[ _-]?key)\b[ \t]{0,3}(?:is|ist|[:=])[ \t]{0,3}[\"'`]?"
    r"((?=[^\s\"'`<>]{0,100}\d)[^\s\"'`<>]{6,100}?)(?=[\"'`.,;!?)]{0,3}(?:\s|$))",
    re.IGNORECASE,
)
_LOCAL_PART = re.compile(r"[\w+-](?:[\w.!#$%&'*+/=?^`{|}~-]{0,62}[\w+-])?$")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_][\w-]{0,61}[^\W_]")
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?=[ -]?[A-Za-z0-9])")
# a sign of a script without spaces may stand right beside a number
_CARD = re.compile(r"(?<![\dA-Za-z_.-])\d(?:[ -]?\d){12,18}(?![\dA-Za-z_-])")
# American Express, Diners, Visa, Mastercard, Discover and UnionPay, by first digits and length.
_CARD_NUMBER = re.compile(r"3[47]\d{13}|3[0689]\d{12}|4\d{12}(?:\d{3}){0,2}|5\d{15}|2[2-7]\d{14}|6\d{15,18}")
_NATIONAL_ID = re.compile(
    r"(?<![\w-])(?:(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}"  # United States: social security number
    r"|(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]"  # United Kingdom: NINO
    r"|[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]"  # Italy: codice fiscale
    r"|[XYZ]?\d{7,8}-?[A-HJ-NP-TV-Z])(?![\w-])"  # Spain: DNI and NIE, by their letter
)
_SPANISH = re.compile(r"([XYZ]?)(\d{7,8})-?([A-Z])")
_IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w|-)")
_IPV6 = re.compile(r"(?<![\w:.-])[0-9A-Fa-f:]{2,39}(?:\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])")
# a full stop and a space end a sentence, and the number with it
_PHONE = re.compile(r"(?<![\w+.:/#-])(?:\+|\((?=\+?\d{1,5}\))\+?)?\d(?:(?:[ \t()\-/]|\.(?![ \t])){0,3}\d){6,16}(?![\w-])")
_DATE_OR_TIME = re.compile(r"(?:\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}[./-]\d{1,2}[./-]\d{1,2})(?!\d)")
_NORTH_AMERICAN = re.compile(r"(?:1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])?\d{3}[.-]\d{4}|\d{3} \d{3} \d{4}")


_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648, in lower case


def luhn(digits: str) -> bool:
    """Tell whether a number's last digit is its checksum by Luhn's method."""
    doubled = [int(digit) * 2 if place % 2 else int(digit) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """Tell whether a text without spaces is an IBAN: its country's length, and 1 modulo 97."""
    text = text.upper()
    if len(text) != IBAN_LENGTHS.get(text[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


# A pattern is searched only in a text that holds one of these, case folded: each match holds one. Ten times faster.
_SECRET_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    (("://",), _URL_WITH_CREDENTIALS),
    (("sk-", "gh", "akia", "asia", "xox", "aiza", "glpat-", "hf_", "k_live_", "k_test_", "eyj"), _KNOWN_SECRET),
    (("-----begin",), _PRIVATE_KEY),
    (("token-", "secret-", "recovery-", "apikey-", "passcode-"), _NAMED_SECRET),
    (("passw", "key", "token"), _LABELLED_SECRET),
)


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    folded = text.casefold()
    for marks, pattern in _SECRET_PATTERNS:
        if not any(mark in folded for mark in marks):
            continue
        for match in pattern.finditer(text):
            if pattern is _LABELLED_SECRET:
                yield match.span(1)
            elif pattern is not _NAMED_SECRET or _DIGIT.search(match[0]):
                yield match.span()


def _emails(text: str) -> Iterator[tuple[int, int]]:
    at = text.find("@")
    while at >= 0:
        local = _LOCAL_PART.search(text, max(0, at - 64), at)
        domain = _DOMAIN.match(text, at + 1)
        if local and domain:
            yield local.start(), domain.end()
        at = text.find("@", at + 1)


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN_START.finditer(text):
        letters, place, length = 0, match.start(), IBAN_LENGTHS.get(match[0][:2].upper(), 0)
        while letters < length and place < len(text):
            character = text[place]
            if character.isascii() and character.isalnum():
                letters += 1
            elif character not in " -" or text[place - 1] in " -":
                break
            place += 1
        ended = place == len(text) or not (text[place].isascii() and text[place].isalnum())
        if letters == length and ended and is_iban(re.sub("[ -]", "", text[match.start() : place])):
            yield match.start(), place


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if _CARD_NUMBER.fullmatch(digits) and luhn(digits):
            yield match.span()


def _national_ids(text: str) -> Iterator[tuple[int, int]]:
    for match in _NATIONAL_ID.finditer(text):
        spanish = _SPANISH.fullmatch(match[0])
        if spanish:
            prefix, digits, letter = spanish.groups()
            if len(digits) + len(prefix) != 8:
                continue
            number = int({"": "", "X": "0", "Y": "1", "Z": "2"}[prefix] + digits)
            if "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] != letter:
                continue
        yield match.span()


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for pattern in (_IPV4, _IPV6):
        if pattern is _IPV6 and "::" not in text and text.count(":") < 7:
            continue
        for match in pattern.finditer(text):
            start, end = match.span()
            # a colon after an address ends a clause; `::` alone is no address of anybody
            while end > start and text[end - 1] == ":" and text[end - 2 : end] != "::":
                end -= 1
            try:
                ipaddress.ip_address(text[start:end])
            except ValueError:
                continue
            if end - start > 2:
                yield start, end


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for match in _PHONE.finditer(text):
        found = match[0]
        digits = re.sub(r"\D", "", found)
        if _DATE_OR_TIME.match(found):
            continue
        international = found.lstrip("(").startswith(("+", "00")) and 8 <= len(digits) <= 17
        # a national number begins with the trunk prefix and is grouped; a run of digits may be any number
        national = found.startswith(("0", "(0")) and 9 <= len(digits) <= 12 and len(found) > len(digits)
        if international or national or _NORTH_AMERICAN.fullmatch(found):
            yield match.span()


FINDERS: dict[Kind, Finder] = {
    "secret": _secrets,
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "national_id": _national_ids,
    "ip": _addresses,
    "phone": _phones,
}


# What every finding of a kind holds, for RE2, which Arrow has. It finds more than the patterns, never less.
_MIGHT_HOLD: dict[Kind, str] = {
    "secret": r"://[^ /:@<>]+:[^ /@<>]+@|-----BEGIN|sk-|gh[pousr]_|github_pat_|AKIA|ASIA|xox|AIza|glpat-|hf_|k_live_|k_test_|eyJ"
    r"|(?i:token-|secret-|recovery-|apikey-|passcode-|passw|api[ _-]?key|access[ _-]?token|secret[ _-]?key)",
    "email": "@",
    "iban": r"[A-Za-z]{2}\p{Nd}{2}[ -]?[A-Za-z0-9]",
    "card": r"(?:\p{Nd}[ -]?){12}\p{Nd}",
    "national_id": r"\p{Nd}{3}-\p{Nd}{2}-\p{Nd}{4}|\p{Nd}{7}|[A-Z]{6}\p{Nd}{2}[A-Z]"
    r"|[A-Z] ?\p{Nd}{2} ?\p{Nd}{2} ?\p{Nd}{2} ?[A-D]",
    "ip": r"\p{Nd}\.\p{Nd}{1,3}\.\p{Nd}{1,3}\.\p{Nd}|::|[0-9A-Fa-f]:[0-9A-Fa-f]{1,4}:",
    "phone": r"(?:\p{Nd}[ \t().\-/]{0,3}){6}\p{Nd}",
}


FEW = 64
"""Texts below which to ask each is faster: Arrow builds its patterns anew each time, which takes 10 ms."""


def might_hold(texts: Any) -> Any:
    """Tell in which texts of an Arrow array `find` might find something: a hundred times faster than to ask each of them.

    Returns:
        an Arrow array of booleans; false only where `find` returns nothing, in the text or in JSON strings that it holds.
    """
    import pyarrow.compute as pc

    return pc.match_substring_regex(texts, "|".join([*_MIGHT_HOLD.values(), r"\\"]))


def scrub_all(
    texts: Sequence[str],
    key: str,
    kinds: Sequence[Kind] = KINDS,
    keep: Sequence[str] = (),
    recognizer: Recognizer | None = None,
) -> tuple[list[str], dict[int, dict[str, str]]]:
    """Do what `scrub` does, for many texts at once; each is searched for those kinds only that it might hold.

    A recognizer reads every text: the quick look knows patterns only.

    Returns:
        the texts, and by the number of each text in which something was found the values behind its placeholders.
    """
    if len(texts) < FEW:
        each = [scrub(text, key, kinds, keep, recognizer) for text in texts]
        return [text for text, _ in each], {number: found for number, (_, found) in enumerate(each) if found}
    import pyarrow as pa
    import pyarrow.compute as pc

    scrubbed, values = list(texts), dict[int, dict[str, str]]()
    places = np.arange(len(scrubbed)) if recognizer else np.flatnonzero(might_hold(pa.array(scrubbed, pa.string())))
    while len(places):
        some = pa.array([scrubbed[place] for place in places], pa.string())
        held = {kind: np.asarray(pc.match_substring_regex(some, _MIGHT_HOLD[kind])) for kind in kinds}
        again = []
        for number, place in enumerate(places.tolist()):
            text = scrubbed[place]
            if findings := find(text, [kind for kind in kinds if held[kind][number]], keep, recognizer):
                scrubbed[place] = _without(text, findings, key, values.setdefault(place, {}))
                again.append(place)
        places = np.array(again, np.int64)
    return scrubbed, values


def find(
    text: str, kinds: Sequence[Kind] = KINDS, keep: Sequence[str] = (), recognizer: Recognizer | None = None
) -> list[Finding]:
    """Return what was found, in the order of the text, without overlaps.

    Args:
        text: any text.
        kinds: what to look for; where two findings overlap, the kind that stands first in `KINDS` wins.
        keep: regular expressions; a finding that lies wholly in a match of one of them is none. One that is longer stays one:
            who keeps help@shop.example does not keep anna.help@shop.example.
        recognizer: finds more; what patterns found, or `keep` keeps, is cut out of its findings.
    """
    # every pattern needs a digit, an at sign or two colons, but for secrets, which may be letters alone
    if not (_DIGIT.search(text) or "@" in text or "::" in text):
        kinds = [kind for kind in kinds if kind == "secret"]
    taken = [match.span() for match in PLACEHOLDER.finditer(text)] if "<" in text else []
    kept = [match.span() for pattern in keep for match in re.finditer(pattern, text)]
    found: list[Finding] = []
    for kind in KINDS:
        if kind not in kinds:
            continue
        for start, end in FINDERS[kind](text):
            if _lies_in(start, end, kept) or any(re.fullmatch(pattern, text[start:end]) for pattern in keep):
                kept.append((start, end))
            elif all(end <= first or last <= start for first, last in taken):
                taken.append((start, end))
                found.append(Finding(start, end, kind))
    for finding in recognizer(text) if recognizer else ():
        # the rest of a name that runs into an e-mail address is still somebody's name
        for start, end in _outside(finding, [*taken, *kept]):
            piece = text[start:end]
            if any(character.isalnum() for character in piece):
                end -= len(piece) - len(piece.rstrip())
                start += len(piece) - len(piece.lstrip())
                taken.append((start, end))
                found.append(Finding(start, end, finding.kind))
    return sorted(found, key=lambda finding: finding.start)


def _lies_in(start: int, end: int, spans: Iterable[tuple[int, int]]) -> bool:
    return any(first <= start and end <= last for first, last in spans)


def _outside(finding: Finding, taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what of a finding no span of `taken` covers."""
    pieces, start = [], finding.start
    for first, last in sorted(span for span in taken if span[0] < span[1]):
        if first < finding.end and last > start:
            pieces.append((start, first))
            start = last
    return [(first, last) for first, last in [*pieces, (start, finding.end)] if first < last]


# What does not tell two values of a kind apart. Names keep their other signs: vowels of many scripts are marks, not letters.
_NO_MATTER = {
    **dict.fromkeys(("iban", "card", "phone", "national_id"), re.compile(r"\W")),
    **dict.fromkeys(get_args(ModelKind), re.compile(r"[\s.,'’-]")),
}
_SPACE = re.compile(r"\s")


def placeholder(kind: AnyKind, value: str, key: str) -> str:
    """Return the placeholder of a value: the same for the same value, however it is spaced or cased."""
    normal = _NO_MATTER.get(kind, _SPACE).sub("", value).casefold()
    # half of a surrogate pair is no text, but JSON can hold it
    said = f"{kind}:{normal}".encode("utf-8", "surrogatepass")
    bits = int.from_bytes(hmac.digest(key.encode(), said, "sha256")[:4], "big") >> 2
    return f"<{kind.upper()}_{''.join(_BASE32[bits >> shift & 31] for shift in range(25, -1, -5))}>"


def scrub(
    text: str,
    key: str,
    kinds: Sequence[Kind] = KINDS,
    keep: Sequence[str] = (),
    recognizer: Recognizer | None = None,
) -> tuple[str, dict[str, str]]:
    """Replace what is found by placeholders.

    Scrubbing twice is scrubbing once.

    Args:
        text: any text.
        key: of the hash: data sets scrubbed with the same key agree on who is who.
        kinds: what to look for.
        keep: regular expressions of what stays, as `find` takes them.
        recognizer: finds more; asked again until it finds no more in what is left.

    Returns:
        the text, and the value that stands behind each placeholder, so that an answer can be mapped back.
    """
    values: dict[str, str] = {}
    # once more after each round: taking a value out may bring another one to light
    while findings := find(text, kinds, keep, recognizer):
        text = _without(text, findings, key, values)
    return text, values


def _without(text: str, findings: Sequence[Finding], key: str, values: dict[str, str]) -> str:
    """Put placeholders in the place of findings, and note what stood there."""
    pieces, end = [], 0
    for finding in findings:
        value = text[finding.start : finding.end]
        name = placeholder(finding.kind, value, key)
        values.setdefault(name, value)
        pieces += [text[end : finding.start], name]
        end = finding.end
    return "".join(pieces) + text[end:]


def restore(text: str, values: dict[str, str]) -> str:
    """Put the values back in the place of their placeholders; unknown placeholders stay."""
    return PLACEHOLDER.sub(lambda match: values.get(match[0], match[0]), text)
