"""Where a VMA maps a folio: the page-table half of an rmap walk (mm/page_vma_mapped.c)."""

from __future__ import annotations

from collections.abc import Iterator

from emulator.geometry import LEVEL_PMD, PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PFN_SHIFT, PRESENT, SPECIAL, is_migration
from emulator.mm import pgtable_generic
from emulator.mm_types import Folio, VmAreaStruct

Mapped = tuple[PageTable, int, int, int]
"""(table, slot, address, entry); the table is a PMD table where a huge page is mapped as a whole."""


def check_pte(folio: Folio, entry: int, migration: bool) -> bool:
    """Does the entry map a page of the folio, or (``migration``) stand for one under migration?"""
    if migration:
        if not is_migration(entry):
            return False
    elif entry & (PRESENT | SPECIAL) != PRESENT:
        return False
    return folio.pfn <= entry >> PFN_SHIFT < folio.pfn + folio.nr_pages


def page_vma_mapped_walk(
    folio: Folio, vma: VmAreaStruct, address: int, *, migration: bool = False, sync: bool = False
) -> Iterator[Mapped]:
    """Every entry of the VMA, from ``address`` (bytes) on, that maps a page of the folio.

    The table's lock is held at each yield; a caller that ends the walk early unlocks it. A caller that splits the
    huge page that it was given goes on with the PTEs. ``migration`` looks for migration entries instead. Entries
    are peeked at without the lock first, so one that is just being changed under it may be missed; not with
    ``sync``, which is implied by ``migration``.
    """
    mm = vma.vm_mm
    g = mm.machine.geometry
    end = address + PAGE_SIZE  # the index of a KSM folio, which is always small, says nothing
    if folio.order:
        end = min(vma.vm_end, vma.vm_start + ((folio.index + folio.nr_pages - vma.vm_pgoff) << PAGE_SHIFT))
    sync = sync or migration
    while address < end:
        stop = min(end, (address & g.pmd_mask) + g.pmd_size)
        pmd = pgtable_generic.find_table(mm, address, LEVEL_PMD)
        if pmd is None:
            address = stop
            continue
        pmd_slot = (address >> g.pmd_shift) & g.index_mask
        table = pmd.entries.get(pmd_slot, 0)
        if not isinstance(table, PageTable):
            if table or (sync and folio.order):
                pmd.ptl.lock()
                entry = pmd.entries.get(pmd_slot, 0)
                if entry and not isinstance(entry, PageTable) and check_pte(folio, entry, migration):
                    yield pmd, pmd_slot, address, entry
                    entry = pmd.entries.get(pmd_slot, 0)
                pmd.ptl.unlock()
                if isinstance(entry, PageTable):
                    continue  # split meanwhile
            address = stop
            continue
        entries = table.entries
        first = (address >> PAGE_SHIFT) & g.index_mask
        if not sync:
            # the peek: go for the lock at the first entry that could be it
            while address < stop:
                entry = entries.get(first, 0)
                if entry & PRESENT:  # type: ignore[operator]
                    break
                address += PAGE_SIZE
                first += 1
            if address >= stop:
                continue
        table.ptl.lock()
        if pmd.entries.get(pmd_slot) is not table:
            table.ptl.unlock()
            continue
        for slot in range(first, first + ((stop - address) >> PAGE_SHIFT)):
            entry = entries.get(slot, 0)
            if entry and check_pte(folio, entry, migration):  # type: ignore[arg-type]
                yield table, slot, address + ((slot - first) << PAGE_SHIFT), entry  # type: ignore[misc]
        table.ptl.unlock()
        address = stop
