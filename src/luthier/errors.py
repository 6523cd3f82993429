"""The one exception for what a user can mend: the command line prints its message, never a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend: says what is wrong, where, and what to write instead."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known word, or an empty string.

    >>> did_you_mean("lerning_rate", ["learning_rate", "epochs"])
    " (did you mean 'learning_rate'?)"
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
