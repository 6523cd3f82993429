"""Keys and values of many conversations, kept after their answers: who begins alike reads only the rest.

    slot   0 a a a b b      in use      a new prompt `a a a d e`: its slot is 2 or 3, the first three tokens are
           1 a a a c        in use      copied from slot 0, and `d e` is left to read
           2 f f g g        free
           3                free

The idea is that of llama.cpp's server, whose slots are chosen by likeness, and of RadixAttention (SGLang, arXiv:2312.07104),
without a tree: slots are few, so all are looked through.
"""

from collections.abc import Iterable, Sequence

from luthier.ragged import Cache

WORTH = 8  # tokens that another slot must have in common beyond a row's own: copying takes time too


class PrefixCache:
    """Slots of one cache, and the tokens whose keys and values each holds."""

    def __init__(self, slots: int, capacity: int) -> None:
        """Start with empty slots.

        Args:
            slots: how many conversations are held.
            capacity: tokens of each.
        """
        self.cache = Cache(slots, capacity)
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self._taken = [0] * slots  # when each was last taken
        self._times = 0

    def take(self, tokens: Sequence[int], free: Iterable[int]) -> int:
        """Choose a free slot for a prompt, and leave in it what the prompt begins with.

        Args:
            tokens: the prompt, all of which may be held already but its last token: it is read in any case.
            free: the slots to choose from, at least one.
        """
        slots = list(free)
        shared = {slot: _common(tokens, self.held[slot]) for slot in slots}
        slot = max(slots, key=lambda free: shared[free])
        # a prompt that has little in common with it would take away what another one comes back to
        if 2 * shared[slot] < len(self.held[slot]):
            slot = min(slots, key=lambda free: self._taken[free])
        self._times += 1
        self._taken[slot] = self._times
        kept = self.held[slot][: shared[slot]]
        source, known = self._best(tokens)
        if known >= len(kept) + WORTH:
            kept = self._copied(source, slot, known)
        self.held[slot] = kept
        return slot

    def reuse(self, slot: int, tokens: Sequence[int]) -> None:
        """Look again whether a slot has come to hold more of a row's tokens than the row's own, and copy them."""
        source, known = self._best(tokens)
        if known >= len(self.held[slot]) + WORTH:
            self.held[slot] = self._copied(source, slot, known)

    def is_worth(self, slot: int, tokens: Sequence[int], others: Sequence[int]) -> bool:
        """Tell whether a slot's row would copy some of another one's tokens, once those are read."""
        return _common(tokens, others) >= len(self.held[slot]) + WORTH

    def swap(self, one: int, other: int) -> None:
        """Exchange two slots."""
        tokens = max(len(self.held[one]), len(self.held[other]))
        for pair in self.cache.layers.values():
            for kept in pair:
                spare = kept[one, :, :tokens].clone()
                kept[one, :, :tokens] = kept[other, :, :tokens]
                kept[other, :, :tokens] = spare
        self.held[one], self.held[other] = self.held[other], self.held[one]
        self._taken[one], self._taken[other] = self._taken[other], self._taken[one]

    def _best(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Return the slot that holds most of the beginning of some tokens, and how many."""
        known, source = max((_common(tokens, held), slot) for slot, held in enumerate(self.held))
        return source, known

    def _copied(self, source: int, target: int, tokens: int) -> list[int]:
        if source != target:
            self.cache.move(source, target, tokens)
        return self.held[source][:tokens]


def _common(tokens: Sequence[int], held: Sequence[int]) -> int:
    """Return how many first tokens are the same; the last one does not count, for what follows it is wanted."""
    shorter = min(len(tokens) - 1, len(held))
    return next((at for at in range(shorter) if tokens[at] != held[at]), shorter)
