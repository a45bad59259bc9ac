"""The page-table walks of madvise(2): paging out, dropping swap, guard regions (mm/madvise.c).

Split from ``madvise.py``, which has the call itself. All walks run under mmap_lock for reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import (
    ACCESSED,
    DIRTY,
    MARKER_GUARD,
    PRESENT,
    SOFTLEAF_MARKER,
    SPECIAL,
    is_guard,
    is_poison_marker,
    is_swap,
    mk_softleaf,
    pte_pfn,
    softleaf_value,
)
from emulator.mm import (
    huge_memory_split,
    memory,
    mmu_gather,
    pagewalk,
    pgtable_generic,
    rmap_counts,
    swap,
    swap_state,
    vmscan,
)
from emulator.mm_types import Folio, MmStruct, VmAreaStruct
from emulator.uapi import ENOMEM

if TYPE_CHECKING:
    from emulator.machine import Machine

INSTALLED = 0
POPULATED = 1  # a guard region was to be installed where pages are: they must be zapped first


def locked_tables(mm: MmStruct, start: int, end: int) -> Iterator[tuple[PageTable, range]]:
    """Every PTE table of [start, end), locked while it is yielded, with its slots; huge pages and holes left out."""
    for pmd, slot, addr, stop in pagewalk.pmd_ranges(mm, start, end):
        table = pagewalk.pte_offset_map_lock(pmd, slot)
        if table is not None:
            first = pgtable_generic.slot_of(mm, addr, LEVEL_PTE)
            yield table, range(first, first + ((stop - addr) >> PAGE_SHIFT))
            table.ptl.unlock()


# ---- MADV_PAGEOUT, MADV_COLD


def split_locked_folio(m: Machine, folio: Folio) -> bool:
    """Split a large folio that the caller has locked and referenced; lock and reference are given back."""
    first = folio.pfn
    split = huge_memory_split.split_folio(m, folio) == 0
    folio = m.phys.frames[first]
    folio.lock.unlock()
    swap.folio_put(m, folio)
    return split


class ColdOrPageout:
    """The walk of MADV_COLD and MADV_PAGEOUT over part of a VMA."""

    __slots__ = ("anon_only", "area", "folios", "pageout")

    def __init__(self, area: VmAreaStruct, pageout: bool) -> None:
        self.area = area
        self.pageout = pageout
        # of a file that the caller may not write, only the private copies
        file = area.vm_file
        self.anon_only = pageout and file is not None and not file.writable
        self.folios: list[Folio] = []  # isolated, to be reclaimed

    def isolate(self, folio: Folio) -> None:
        """Take a folio for reclaim, unless it is of the unevictable list, where it is put back."""
        if not self.pageout or not vmscan.folio_isolate_lru(folio):
            return
        if folio.unevictable:
            vmscan.folio_putback_lru(self.area.vm_mm.machine, folio)
        else:
            self.folios.append(folio)

    def reclaim(self) -> None:
        if self.folios:
            vmscan.shrink_folio_list(self.area.vm_mm.machine, self.folios)

    def walk(self, start: int, end: int) -> None:
        """All that is mapped in [start, end), one PMD's worth at a time."""
        for pmd, slot, addr, stop in pagewalk.pmd_ranges(self.area.vm_mm, start, end):
            self.pmd_range(pmd, slot, addr, stop)

    def pmd_range(self, pmd: PageTable, slot: int, addr: int, end: int) -> None:
        """What one PMD entry maps of [addr, end)."""
        entry = pmd.entries.get(slot, 0)
        if not isinstance(entry, PageTable) and not self.huge_pmd(pmd, slot, addr, end):
            return
        self.pte_range(pmd, slot, addr, end)
        self.reclaim()

    def huge_pmd(self, pmd: PageTable, slot: int, addr: int, end: int) -> bool:
        """A huge page: handled as a whole. True: it was split, or vanished; go on with its PTEs."""
        m = self.area.vm_mm.machine
        pmd.ptl.lock()
        entry = pmd.entries.get(slot, 0)
        if isinstance(entry, PageTable):
            pmd.ptl.unlock()
            return True
        if entry & (PRESENT | SPECIAL) != PRESENT:
            pmd.ptl.unlock()
            return False
        folio = m.phys.frames[pte_pfn(entry)]
        if rmap_counts.folio_maybe_mapped_shared(folio) or (self.anon_only and not folio.anon):
            pmd.ptl.unlock()
            return False
        if end - addr != m.geometry.pmd_size:
            swap.folio_get(folio)
            pmd.ptl.unlock()
            folio.lock.lock()
            return split_locked_folio(m, folio)
        self.whole_pmd(pmd, slot, addr, folio)
        pmd.ptl.unlock()
        self.reclaim()
        return False

    def whole_pmd(self, pmd: PageTable, slot: int, addr: int, folio: Folio) -> None:
        """A huge page that nobody else maps lies in the range; the lock of ``pmd`` is held."""
        self.isolate(folio)

    def whole_folio(self, table: PageTable, slot: int, addr: int, folio: Folio) -> None:
        """A folio has all its pages mapped in the range, from ``slot`` on; the lock of ``table`` is held."""
        # mapped by nobody else when there is one mapping a page
        if folio.mapcount() == folio.nr_pages and not (self.anon_only and not folio.anon):
            self.isolate(folio)

    def absent(self, table: PageTable, slot: int, entry: int) -> None:
        """An entry that is not present, and not empty; the lock of ``table`` is held."""

    def pte_range(self, pmd: PageTable, slot: int, addr: int, end: int) -> None:
        """The PTEs of [addr, end), which one table holds."""
        area = self.area
        m = area.vm_mm.machine
        table = pagewalk.pte_offset_map_lock(pmd, slot)
        while addr < end and table is not None:
            pte_slot = pgtable_generic.slot_of(area.vm_mm, addr, LEVEL_PTE)
            pte: int = table.entries.get(pte_slot, 0)  # type: ignore[assignment]
            folio = memory.vm_normal_folio(area, addr, pte) if pte & PRESENT else None
            if folio is None:
                if pte and not pte & PRESENT:
                    self.absent(table, pte_slot, pte)
                addr += PAGE_SIZE
                continue
            nr = 1
            if folio.order:
                nr = memory.folio_pte_batch(folio, table, pte_slot, pte, (end - addr) >> PAGE_SHIFT)
                if nr < folio.nr_pages:
                    # partly in the range, or partly mapped: only its pages can be handled
                    if not self.may_split(folio):
                        addr += nr * PAGE_SIZE
                        continue
                    swap.folio_get(folio)
                    table.ptl.unlock()
                    if not split_locked_folio(m, folio):
                        addr += nr * PAGE_SIZE
                    table = pagewalk.pte_offset_map_lock(pmd, slot)
                    continue
            self.whole_folio(table, pte_slot, addr, folio)
            addr += nr * PAGE_SIZE
        if table is not None:
            table.ptl.unlock()

    def may_split(self, folio: Folio) -> bool:
        """May a large folio be split for this walk? Takes its lock when it may."""
        if rmap_counts.folio_maybe_mapped_shared(folio) or (self.anon_only and not folio.anon):
            return False
        return folio.lock.trylock()


# ---- MADV_FREE


def folio_mark_lazyfree(folio: Folio) -> None:
    """Reclaim may throw the folio away from now on, unless it is written to first (mm/swap.c).

    Linux collects folios in batches before it does this; nobody can tell.
    """
    if folio.anon and folio.swapbacked and folio.lru and not folio.swapcache and not folio.unevictable:
        folio.swapbacked = False


class Free(ColdOrPageout):
    """The walk of MADV_FREE: pages become clean and not worth keeping. What is swapped out is dropped at once."""

    __slots__ = ("gather",)

    def __init__(self, area: VmAreaStruct, gather: mmu_gather.MmuGather) -> None:
        super().__init__(area, pageout=False)
        self.gather = gather

    def whole_pmd(self, pmd: PageTable, slot: int, addr: int, folio: Folio) -> None:
        if not folio.lock.trylock():
            return
        folio.dirty = False
        folio.lock.unlock()
        self.clean(pmd, slot, 1, addr)
        folio_mark_lazyfree(folio)

    def whole_folio(self, table: PageTable, slot: int, addr: int, folio: Folio) -> None:
        if (folio.swapcache or folio.dirty) and not self.make_clean(folio):
            return
        self.clean(table, slot, folio.nr_pages, addr)
        folio_mark_lazyfree(folio)

    def make_clean(self, folio: Folio) -> bool:
        """Take a folio that nobody else maps out of the swap cache, and call it clean."""
        if not folio.lock.trylock():
            return False
        m = self.area.vm_mm.machine
        alone = folio.mapcount() == folio.nr_pages
        if alone and (not folio.swapcache or swap_state.folio_free_swap(m, folio)):
            folio.dirty = False
        folio.lock.unlock()
        return not folio.dirty and not folio.swapcache

    def clean(self, table: PageTable, slot: int, nr: int, addr: int) -> None:
        """Neither young nor dirty: a write has to say so again, once the TLBs are flushed."""
        size = 1 << self.area.vm_mm.machine.geometry.shifts[table.level]
        for i in range(nr):
            entry: int = table.entries[slot + i]  # type: ignore[assignment]
            if entry & (ACCESSED | DIRTY):
                table.set(slot + i, entry & ~(ACCESSED | DIRTY))
                self.gather.remove_range(addr + i * size, addr + (i + 1) * size)

    def absent(self, table: PageTable, slot: int, entry: int) -> None:
        if is_swap(entry):
            table.set(slot, 0)
            swap_state.swap_put_entries_direct(self.area.vm_mm.machine, softleaf_value(entry))
        elif is_poison_marker(entry):
            table.set(slot, 0)


# ---- guard regions


def guard_install_pte_entry(entry: int) -> bool:
    """Is the entry in the way of a guard marker? Markers of userfaultfd are, which no zap of a file clears."""
    return entry != 0 and not is_guard(entry)


def install_guards(mm: MmStruct, start: int, end: int) -> int:
    """Put guard markers where nothing is mapped in [start, end).

    INSTALLED; POPULATED at the first page that is in the way (markers before it stay); -ENOMEM.
    """
    g = mm.machine.geometry
    marker = mk_softleaf(SOFTLEAF_MARKER, MARKER_GUARD)
    addr = start
    while addr < end:
        stop = min(end, (addr & g.pmd_mask) + g.pmd_size)
        allocated = pgtable_generic.alloc_table(mm, addr, LEVEL_PTE)
        pmd = pgtable_generic.find_table(mm, addr, LEVEL_PMD)
        pmd_slot = pgtable_generic.slot_of(mm, addr, LEVEL_PMD)
        if pmd is None or allocated is None:
            return POPULATED if pmd is not None and pmd.entries.get(pmd_slot, 0) else -ENOMEM
        table = pagewalk.pte_offset_map_lock(pmd, pmd_slot)
        if table is None:
            continue  # freed again by whoever emptied it
        first = pgtable_generic.slot_of(mm, addr, LEVEL_PTE)
        for slot in range(first, first + ((stop - addr) >> PAGE_SHIFT)):
            entry: int = table.entries.get(slot, 0)  # type: ignore[assignment]
            if guard_install_pte_entry(entry):
                table.ptl.unlock()
                return POPULATED
            if entry != marker:
                table.set(slot, marker)
        table.ptl.unlock()
        addr = stop
    return INSTALLED


def remove_guards(mm: MmStruct, start: int, end: int) -> None:
    """Clear the guard markers of [start, end); everything else stays."""
    for table, slots in locked_tables(mm, start, end):
        for slot in slots:
            if is_guard(table.entries.get(slot, 0)):  # type: ignore[arg-type]
                table.set(slot, 0)
