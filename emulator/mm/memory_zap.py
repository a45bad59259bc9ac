"""Unmapping ranges and freeing page tables: the zap half of mm/memory.c.

``madvise(MADV_DONTNEED)`` frees a table that it has emptied as a whole (mm/pt_reclaim.c).
"""

from __future__ import annotations

from emulator.geometry import LEVEL_PTE, PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import (
    DIRTY,
    MARKER_GUARD,
    MARKER_UFFD_WP,
    PFN_SHIFT,
    PRESENT,
    SOFTLEAF_MARKER,
    SOFTLEAF_SWAP,
    softleaf_type,
    softleaf_value,
)
from emulator.mm import (
    huge_memory,
    memory,
    mmu_gather,
    pagewalk,
    pgtable_generic,
    rmap_counts,
    swap_state,
    userfaultfd_k,
)
from emulator.mm_types import MmStruct, VmAreaStruct


def zap_install_uffd_wp_if_needed(
    vma: VmAreaStruct, table: PageTable, slot: int, pte: int, drop_markers: bool
) -> None:
    """``pte`` has been cleared in a file mapping: what userfaultfd protects there stays so, unless markers go too."""
    if not drop_markers:
        userfaultfd_k.pte_install_uffd_wp_if_needed(vma, table, slot, pte)


def zap_present_pte(
    gather: mmu_gather.MmuGather,
    vma: VmAreaStruct,
    table: PageTable,
    slot: int,
    addr: int,
    pte: int,
    drop_markers: bool,
) -> None:
    """Clear a present entry; its page is freed when the gather has flushed. Protection of a file's page stays."""
    m = gather.mm.machine
    folio = memory.vm_normal_folio(vma, addr, pte)
    table.set(slot, 0)
    gather.remove_range(addr, addr + PAGE_SIZE)
    zap_install_uffd_wp_if_needed(vma, table, slot, pte, drop_markers)
    m.sched.point("zap.pte_cleared")
    if folio is None:
        return
    if pte & DIRTY and not folio.anon:
        folio.dirty = True
    rmap_counts.folio_remove_rmap_ptes(folio, (pte >> PFN_SHIFT) - folio.pfn, 1, vma)
    gather.remove_folio(folio)


def zap_nonpresent_pte(
    gather: mmu_gather.MmuGather, vma: VmAreaStruct, table: PageTable, slot: int, pte: int, drop_markers: bool
) -> None:
    """Clear an entry that is not present; no TLB holds it."""
    kind = softleaf_type(pte)
    if kind == SOFTLEAF_MARKER and not drop_markers:
        marker = softleaf_value(pte)
        if marker & MARKER_GUARD or (marker & MARKER_UFFD_WP and vma.vm_ops is not None):
            return
    table.set(slot, 0)
    if kind == SOFTLEAF_SWAP:
        swap_state.swap_put_entries_direct(gather.mm.machine, softleaf_value(pte))
    # a migration entry holds no reference: the migration finds it gone
    zap_install_uffd_wp_if_needed(vma, table, slot, pte, drop_markers)


def zap_pte_range(
    gather: mmu_gather.MmuGather,
    vma: VmAreaStruct,
    pmd: PageTable,
    slot: int,
    addr: int,
    end: int,
    drop_markers: bool,
    reclaim_pt: bool,
) -> None:
    """[addr, end), which one PTE table translates. ``reclaim_pt``: free the table if that empties all of it."""
    table = pagewalk.pte_offset_map_lock(pmd, slot)
    if table is None:
        return
    reclaim_pt = reclaim_pt and end - addr == gather.mm.machine.geometry.pmd_size
    point = gather.mm.machine.sched.point
    entries = table.entries
    if entries:
        point("zap.pte_locked")
        first = pgtable_generic.slot_of(gather.mm, addr, LEVEL_PTE)
        for i in range((end - addr) >> PAGE_SHIFT):
            pte: int = entries.get(first + i, 0)  # type: ignore[assignment]
            if pte & PRESENT:
                zap_present_pte(gather, vma, table, first + i, addr + (i << PAGE_SHIFT), pte, drop_markers)
            elif pte:
                zap_nonpresent_pte(gather, vma, table, first + i, pte, drop_markers)
    if not reclaim_pt or entries:
        table.ptl.unlock()
    elif pmd.ptl.owner is None:  # against the order of the locks, so not waited for
        pmd.ptl.lock()
        pmd.set(slot, 0)
        pmd.ptl.unlock()
        table.ptl.unlock()
    else:
        table.ptl.unlock()
        point("zap.table_empty")
        try_to_free_pte(pmd, slot)


def try_to_free_pte(pmd: PageTable, slot: int) -> None:
    """Free the table of PTEs in that slot if it is (still) empty."""
    pmd.ptl.lock()
    table = pmd.entries.get(slot, 0)
    if isinstance(table, PageTable):
        table.ptl.lock()
        if not table.entries:
            pmd.set(slot, 0)
        table.ptl.unlock()
    pmd.ptl.unlock()


def unmap_page_range(
    gather: mmu_gather.MmuGather,
    vma: VmAreaStruct,
    start: int,
    end: int,
    drop_markers: bool,
    reclaim_pt: bool = False,
) -> None:
    """Unmap [start, end) of one VMA into the gather."""
    size = vma.vm_mm.machine.geometry.pmd_size
    for pmd, slot, addr, stop in pagewalk.pmd_ranges(vma.vm_mm, start, end):
        if not isinstance(pmd.entries[slot], PageTable):
            if stop - addr == size:
                if huge_memory.zap_huge_pmd(gather, vma, pmd, slot, addr):
                    continue
            else:
                huge_memory.split_huge_pmd(vma, pmd, slot, addr)
        zap_pte_range(gather, vma, pmd, slot, addr, stop, drop_markers, reclaim_pt)


def unmap_vmas(mm: MmStruct, vmas: list[VmAreaStruct], start: int, end: int) -> None:
    """Unmap [start, end) in these VMAs, markers included: clear, flush, free. mmap_lock is held for writing."""
    gather = mmu_gather.MmuGather(mm)
    for vma in vmas:
        first, last = max(vma.vm_start, start), min(vma.vm_end, end)
        if first < last:
            unmap_page_range(gather, vma, first, last, True)
    mmu_gather.tlb_flush_mmu(gather)


def zap_page_range_single(vma: VmAreaStruct, start: int, size: int, *, reclaim_pt: bool = False) -> None:
    """Unmap ``size`` bytes of one VMA; guard markers stay. mmap_lock may be held for reading.

    ``reclaim_pt``: free tables that are empty then (MADV_DONTNEED).
    """
    gather = mmu_gather.MmuGather(vma.vm_mm)
    last = min(vma.vm_end, start + size)
    if start < last:
        unmap_page_range(gather, vma, max(vma.vm_start, start), last, False, reclaim_pt)
    mmu_gather.tlb_flush_mmu(gather)


# ---- page tables


def free_table_range(table: PageTable, base: int, addr: int, end: int, floor: int, ceiling: int) -> None:
    """Free the tables below ``table`` (which begins to translate at ``base``) that nobody needs."""
    g = table.mm.machine.geometry
    shift = g.shifts[table.level]
    size = 1 << shift
    for slot in sorted(table.entries):
        lower = table.entries[slot]
        start = base + (slot << shift)
        if start >= end or start + size <= addr or not isinstance(lower, PageTable):
            continue
        if lower.level != LEVEL_PTE:
            free_table_range(lower, start, addr, end, floor, ceiling)
        if floor <= start and start + size <= ceiling:
            table.set(slot, 0)


def free_pgtables(mm: MmStruct, start: int, end: int, floor: int, ceiling: int) -> None:
    """Free the tables of [start, end), where nothing is mapped any more.

    Only those that lie wholly in [floor, ceiling), the hole between the neighbours' mappings: the others are
    shared with a neighbour.
    """
    g = mm.machine.geometry
    # nothing to do, most often: not one PTE table lies in the hole
    low = max(floor, start & g.pmd_mask)
    low = (low + g.pmd_size - 1) & g.pmd_mask
    if low + g.pmd_size > ceiling or low >= end:
        return
    free_table_range(mm.pgd, 0, start, end, floor, ceiling)
