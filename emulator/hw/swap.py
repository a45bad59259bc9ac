"""The swap device: slots with contents, use counts and the swap cache (one entry per slot)."""

from __future__ import annotations

from emulator.errors import KernelBug
from emulator.mm_types import Folio, PageContent


class SwapDevice:
    """Slots 1 and up. A slot lives while its count (page-table entries) is not 0 or it is in the cache.

    Slots are not used twice in the life of a machine, for the reason given in ``emulator.hw.phys``.
    """

    __slots__ = ("_next", "cache", "content", "count")

    def __init__(self) -> None:
        self._next = 1
        self.count: dict[int, int] = {}  # swap_map: page-table entries that hold the slot
        self.cache: dict[int, Folio] = {}  # swap cache
        self.content: dict[int, PageContent] = {}  # what has been written out

    def alloc(self, nr: int) -> int:
        """``nr`` consecutive slots, count 0; returns the first."""
        first = self._next
        self._next += nr
        for slot in range(first, first + nr):
            self.count[slot] = 0
        return first

    def get(self, slot: int) -> None:
        """swap_duplicate: one more page-table entry."""
        if slot not in self.count:
            raise KernelBug("swap-use-after-free", f"swap slot {slot} used after it was freed")
        self.count[slot] += 1

    def put(self, slot: int) -> None:
        """swap_free: one page-table entry fewer. The slot goes with the last, unless it is in the cache."""
        if self.count.get(slot, 0) <= 0:
            raise KernelBug("swap-count-underflow", f"swap slot {slot} freed more often than used")
        self.count[slot] -= 1
        self.drop_if_unused(slot)

    def drop_if_unused(self, slot: int) -> None:
        """Free the slot when neither an entry nor the swap cache needs it."""
        if self.count.get(slot) == 0 and slot not in self.cache:
            del self.count[slot]
            self.content.pop(slot, None)
