"""Puts a client's own values back into an answer, in the place of their placeholders.

The client wrote `ada@example.org`, the model saw and wrote `<EMAIL_k3xq7a>`, the client reads `ada@example.org` again. In a
stream, a placeholder comes in pieces: what may be the beginning of one waits for the next piece.

    "to <EMA" -> "to "      "IL_k3xq7a> or" -> "ada@example.org or"
"""

import json
import re
from collections.abc import Mapping


class Restorer:
    """Puts values back, piece by piece; what it returns in all is the same however the text is cut.

    >>> restorer = Restorer({"<EMAIL_k3xq7a>": "ada@example.org"})
    >>> restorer.feed("to <EMA") + "|" + restorer.feed("IL_k3xq7a> now") + restorer.end()
    'to |ada@example.org now'
    """

    def __init__(self, values: Mapping[str, str], in_json: bool = False) -> None:
        """Know the values.

        Args:
            values: placeholder -> what stood in its place, as `luthier.text.prepare.prepare` returns them.
            in_json: the answer is JSON, so values are spelt as a string of it has them: a quote must not end the string.
        """
        self._values = {name: json.dumps(value, ensure_ascii=False)[1:-1] if in_json else value for name, value in values.items()}
        self._whole = re.compile("|".join(map(re.escape, self._values)))
        self._starts = {name[0] for name in values}
        self._beginnings = {name[:end] for name in values for end in range(1, len(name))}
        self._longest = max(map(len, values), default=0)
        self._held = ""

    def feed(self, text: str) -> str:
        """Return what is sure after one more piece."""
        if not self._held and not any(start in text for start in self._starts):
            return text
        text = self._held + text
        done, end = [], 0
        for match in self._whole.finditer(text):
            # what is put back is not looked at again: it is the client's, even where it looks like a placeholder
            done += [text[end : match.start()], self._values[match[0]]]
            end = match.end()
        rest = text[end:]
        kept = next((size for size in range(min(self._longest, len(rest)), 0, -1) if rest[-size:] in self._beginnings), 0)
        self._held = rest[len(rest) - kept :]
        return "".join(done) + rest[: len(rest) - kept]

    def end(self) -> str:
        """Return what was held back: the text is over, so it was no placeholder."""
        held, self._held = self._held, ""
        return held
