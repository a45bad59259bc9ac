"""Finding and making page tables (mm/pgtable-generic.c and the pgd/pud/pmd/pte_alloc of mm/memory.c)."""

from __future__ import annotations

from emulator.geometry import LEVEL_PGD
from emulator.hw.pgtable import PageTable
from emulator.mm_types import MmStruct

_NAMES = ("pte_alloc", "pmd_alloc", "pud_alloc")


def new_table(mm: MmStruct, level: int) -> PageTable:
    """A fresh table, not yet linked anywhere."""
    m = mm.machine
    return PageTable(level, mm, m.sched.spinlock("page table lock", m.sched), m.store_log)


def find_table(mm: MmStruct, addr: int, level: int) -> PageTable | None:
    """The table of ``level`` whose entries translate ``addr``; None where absent or a huge page stands above."""
    table = mm.pgd
    g = mm.machine.geometry
    while table.level != level:
        entry = table.entries.get((addr >> g.shifts[table.level]) & g.index_mask, 0)
        if entry.__class__ is not PageTable:
            return None
        table = entry
    return table


def alloc_table(mm: MmStruct, addr: int, level: int) -> PageTable | None:
    """As ``find_table``, making tables on the way. None: out of memory (a fault point), or a huge page."""
    table = mm.pgd
    m = mm.machine
    g = m.geometry
    while table.level != level:
        slot = (addr >> g.shifts[table.level]) & g.index_mask
        entry = table.entries.get(slot, 0)
        if entry == 0:
            if m.should_fail(_NAMES[table.level - 1]):
                return None
            table.ptl.lock()  # pmd_install: somebody else may have been faster
            entry = table.entries.get(slot, 0)
            if entry == 0:
                entry = new_table(mm, table.level - 1)
                table.set(slot, entry)
            table.ptl.unlock()
        if entry.__class__ is not PageTable:
            return None
        table = entry
    return table


def slot_of(mm: MmStruct, addr: int, level: int) -> int:
    """The slot of ``addr`` in a table of ``level``."""
    g = mm.machine.geometry
    return (addr >> g.shifts[level]) & g.index_mask


def mm_alloc_pgd(mm: MmStruct) -> None:
    mm.pgd = new_table(mm, LEVEL_PGD)
