"""Walking page tables over ranges (mm/pagewalk.c), and taking the lock of what was found (pte_offset_map_lock)."""

from __future__ import annotations

from collections.abc import Iterator

from emulator.geometry import LEVEL_PMD
from emulator.hw.pgtable import PageTable
from emulator.mm_types import MmStruct


def pmd_ranges(mm: MmStruct, start: int, end: int) -> Iterator[tuple[PageTable, int, int, int]]:
    """[start, end) (bytes) in the pieces that one PMD entry each translates: (PMD table, slot, start, end).

    Empty entries are left out, and whole upper entries without a table stepped over. No lock is held: an entry may
    change before the caller has taken one.
    """
    g = mm.machine.geometry
    shifts, mask = g.shifts, g.index_mask
    addr = start
    while addr < end:
        table = mm.pgd
        while table.level != LEVEL_PMD:
            lower = table.entries.get((addr >> shifts[table.level]) & mask, 0)
            if not isinstance(lower, PageTable):
                break
            table = lower
        size = 1 << shifts[table.level]
        stop = min(end, (addr & -size) + size)
        if table.level == LEVEL_PMD:
            slot = (addr >> shifts[LEVEL_PMD]) & mask
            if table.entries.get(slot, 0):
                yield table, slot, addr, stop
        addr = stop


def pte_offset_map_lock(pmd: PageTable, slot: int) -> PageTable | None:
    """The PTE table in that slot, locked; None where there is none. It is still in its slot when this returns."""
    while True:
        table = pmd.entries.get(slot, 0)
        if not isinstance(table, PageTable):
            return None
        table.ptl.lock()
        if pmd.entries.get(slot) is table:
            return table
        table.ptl.unlock()
