"""Physical memory: hands out folios of frames.

A frame number is never used twice in the life of a machine, so a stale translation or pointer always shows:
it leads to a folio that is marked freed (as KASAN's quarantine would show it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import KernelBug
from emulator.mm_types import Folio

if TYPE_CHECKING:
    from emulator.sched.scheduler import Scheduler


class PhysicalMemory:
    """Frames 1 and up; frame 1 is the zero page (empty_zero_page), which is never written or freed.

    Nor is the huge page of zeros, which is made when it is needed first.
    """

    __slots__ = ("_next_pfn", "frames", "huge_zero_folio", "live", "sched", "zero_folio")

    def __init__(self, sched: Scheduler) -> None:
        self.sched = sched
        self._next_pfn = 1
        self.frames: dict[int, Folio] = {}  # pfn of any page to its folio, freed ones included
        self.live: dict[int, Folio] = {}  # head pfn to folio, for oracles: what has not been freed
        self.zero_folio = self.alloc(0)
        self.huge_zero_folio: Folio | None = None

    def is_zero(self, folio: Folio) -> bool:
        """Is it a page of zeros that all share?"""
        return folio is self.zero_folio or folio is self.huge_zero_folio

    def alloc(self, order: int) -> Folio:
        """A folio of zeros with one reference, naturally aligned as the buddy allocator gives it."""
        size = 1 << order
        pfn = (self._next_pfn + size - 1) & -size
        self._next_pfn = pfn + size
        folio = Folio(pfn, order, self.sched.folio_lock(self.sched))
        frames = self.frames
        for frame in range(pfn, pfn + size):
            frames[frame] = folio
        self.live[pfn] = folio
        return folio

    def free(self, folio: Folio) -> None:
        """The last reference is gone."""
        if folio.freed:
            raise KernelBug("double-free", f"{folio} freed twice", folio)
        folio.freed = True
        del self.live[folio.pfn]

    def split(self, folio: Folio, orders: list[int]) -> list[Folio]:
        """Replace a large folio by others, of these orders, on the same frames; all counts are the caller's to set."""
        del self.live[folio.pfn]
        folio.freed = True
        pieces = []
        first = 0
        for order in orders:
            piece = Folio(folio.pfn + first, order, self.sched.folio_lock(self.sched))
            for i in range(piece.nr_pages):
                piece.content[i] = folio.content[first + i]
                self.frames[piece.pfn + i] = piece
            self.live[piece.pfn] = piece
            pieces.append(piece)
            first += piece.nr_pages
        return pieces
