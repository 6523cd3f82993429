"""The text of an answer while its tokens come in: what may be shown already, and how each token is spelt."""

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from luthier.serving.api.completion import TokenLogprob, token_logprob

HALF = "\ufffd"  # what half a character is decoded to
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class AnswerText:
    """Decodes an answer token by token, up to the first stop text.

    What was shown is never taken back. So these are held until more is known: half a character, what may be the beginning
    of a stop text, and space, which is dropped at both ends of an answer. All that is shown together is the text that
    `luthier.generation.generate` gives, cut at the first stop text.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        """Start with nothing written.

        Args:
            tokenizer: of the model; used by one thread at a time.
            stops: texts at which the answer ends; the one that is complete first counts.
        """
        self._tokenizer, self._stops = tokenizer, stops
        self._window: list[int] = []  # the newest tokens that were decoded, and those that are not yet
        self._decoded = 0  # how many of the window are
        self._held = ""  # text that is not shown yet
        self._shown = 0  # characters before it
        self._untold: deque[tuple[int, int]] = deque()  # of each token that is not told yet, where its text begins and ends
        self._open = 0  # tokens whose text is not known yet
        self.stopped = False
        """Whether a stop text has come: the answer is over."""

    def feed(self, token: int) -> tuple[str, int]:
        """Return the text that may be shown now, and how many further tokens are shown by it to their end."""
        self._window.append(token)
        self._open += 1
        # tokenizers that write spaces between tokens need one that stands before: the last ones that were decoded
        before, now = self._decode(self._window[: self._decoded]), self._decode(self._window)
        if len(now) > len(before) and not now.endswith(HALF):
            self._take(now[len(before) :])
            self._window = self._window[self._decoded :]
            self._decoded = len(self._window)
        return self._cut() or self._show(len(self._held[: self._safe()].rstrip()))

    def end(self) -> tuple[str, int]:
        """Return the rest, after the last token; as `feed`. After a stop text there is none."""
        if self.stopped:
            return "", 0
        before, now = self._decode(self._window[: self._decoded]), self._decode(self._window)
        self._take(now[len(before) :])
        if cut := self._cut():
            return cut
        shown, told = self._show(len(self._held.rstrip()))
        return shown, told + len(self._untold)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _take(self, text: str) -> None:
        begin = self._shown + len(self._held)
        self._held += text
        self._untold.extend([(begin, begin + len(text))] * self._open)
        self._open = 0

    def _cut(self) -> tuple[str, int] | None:
        """Show what stands before a stop text, if there is one, and all tokens that have a part in it."""
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if not found:
            return None
        self.stopped = True
        _, at = min(found)
        cut = self._shown + at
        shown, told = self._show(len(self._held[:at].rstrip()))
        return shown, told + sum(begin < cut for begin, _ in self._untold)

    def _safe(self) -> int:
        """Return where the longest beginning of a stop text begins that ends what is held; its end, if there is none."""
        beginnings = (
            length
            for stop in self._stops
            for length in range(min(len(stop) - 1, len(self._held)), 0, -1)
            if self._held.endswith(stop[:length])
        )
        return len(self._held) - max(beginnings, default=0)

    def _show(self, length: int) -> tuple[str, int]:
        """Show so many characters of what is held, and tell the tokens whose text is out."""
        text, self._held = self._held[:length], self._held[length:]
        shown = text if self._shown else text.lstrip()
        self._shown += length
        told = 0
        while self._untold and self._untold[0][1] <= self._shown:
            self._untold.popleft()
            told += 1
        return shown, told


class Spelling:
    """How each token of a vocabulary is written."""

    def __init__(self, tokenizer: Any) -> None:
        """Read how the tokenizer spells bytes."""
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        by_bytes = "ByteLevel" in repr(getattr(backend, "decoder", None))
        self._alphabet = {sign: byte for byte, sign in bytes_to_unicode().items()} if by_bytes else {}
        self._special = set(tokenizer.all_special_ids)
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def logprob(self, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> TokenLogprob:
        """Return a token with its log-probability and the likeliest tokens in its place."""
        told = token_logprob(self._spelt(token)[0], logprob, [(self._spelt(other)[0], log) for other, log in top])
        # a piece of a character has bytes too, although no text
        for entry, number in zip((told, *told["top_logprobs"]), (token, *(other for other, _ in top)), strict=True):
            entry["bytes"] = self._spelt(number)[1] or entry["bytes"]
        return told

    def _spelt(self, token: int) -> tuple[str, list[int] | None]:
        """Return a token's text, and its bytes as far as the tokenizer tells them."""
        if token not in self._known:
            self._known[token] = self._text(token), self._bytes(token)
        return self._known[token]

    def _text(self, token: int) -> str:
        text = str(self._tokenizer.decode([token]))
        piece = self._tokenizer.convert_ids_to_tokens(token) or ""
        # decoded alone, a word loses the space before it
        return f" {text}" if piece.startswith("\u2581") and not text.startswith(" ") else text

    def _bytes(self, token: int) -> list[int] | None:
        piece = self._tokenizer.convert_ids_to_tokens(token) or ""
        if token in self._special:
            return None
        if found := _BYTE.fullmatch(piece):
            return [int(found[1], 16)]
        spelt = [self._alphabet.get(sign, -1) for sign in piece]
        return spelt if spelt and min(spelt) >= 0 else None
