"""Facts about characters, looked up for whole arrays of code points."""

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint32]
_UNASKED = 255


def code_points(text: str) -> Codes:
    """Return the code points of a text, shape (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


class Lookup:
    """A function of characters as a table, filled as characters are asked for: all of Unicode takes half a second."""

    def __init__(self, function: Callable[[str], int]) -> None:
        """Remember the function; its values are 0 to 254."""
        self._function = function
        self._table = np.full(sys.maxunicode + 1, _UNASKED, np.uint8)

    def __call__(self, codes: Codes) -> NDArray[np.uint8]:
        """Return the function's value for each code point."""
        found = self._table[codes]
        new = np.unique(codes[found == _UNASKED]).tolist()
        if not new:
            return found
        self._table[new] = [self._function(chr(code)) for code in new]
        return self._table[codes]
