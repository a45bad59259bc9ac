"""Collecting what an unmap frees until TLBs are flushed (mm/mmu_gather.c).

A page may be freed only when no CPU can reach it any more: entries are cleared first, then TLBs flushed, then the
pages given back.
"""

from __future__ import annotations

from emulator.mm import swap, swap_state
from emulator.mm_types import Folio, MmStruct


class MmuGather:
    """struct mmu_gather (tlb): what has been unmapped and not flushed yet. Bytes; ``end`` 0: nothing."""

    __slots__ = ("end", "folios", "mm", "start")

    def __init__(self, mm: MmStruct) -> None:
        self.mm = mm
        self.start = 0
        self.end = 0
        self.folios: list[Folio] = []  # one entry for each reference to give back

    def remove_range(self, start: int, end: int) -> None:
        """[start, end) had translations that TLBs may hold (tlb_remove_tlb_entry)."""
        if not self.end:
            self.start, self.end = start, end
            return
        self.start = min(self.start, start)
        self.end = max(self.end, end)

    def remove_folio(self, folio: Folio) -> None:
        """The reference of a removed entry is to be given back after the flush (tlb_remove_page)."""
        self.folios.append(folio)


def tlb_flush_mmu(gather: MmuGather) -> None:
    """Flush, then free. The gather is empty afterwards. Not under a spinlock."""
    m = gather.mm.machine
    if gather.end:
        m.sched.point("zap.before_flush")
        m.flush_tlb_range(gather.mm, gather.start, gather.end)
        gather.end = 0
    if gather.folios:
        m.sched.point("zap.flushed")
        folios = gather.folios
        gather.folios = []
        for folio in folios:
            swap_state.free_swap_cache(m, folio)
            swap.folio_put(m, folio)
