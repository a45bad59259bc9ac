"""Collapsing the pages of a file of memory into a huge one: the file half of mm/khugepaged.c.

The page cache comes first, page tables second: every page of the range is locked, unmapped wherever it is mapped and
taken off the LRU; what nobody else uses is copied, holes become zeros, and the huge page takes the place of all in the
page cache. Then empty tables of PTEs go, so that faults map the huge page as a whole, and the range that was asked for
gets it at once. Private copies of pages stay where they are, and keep their process from having it.

Nothing looks at the length of the file: a huge page may reach beyond its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.fs_types import AddressSpace
from emulator.geometry import LEVEL_PMD, PAGE_SHIFT
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PRESENT, SPECIAL, pte_pfn
from emulator.khugepaged_types import ScanResult
from emulator.mm import (
    huge_memory_fault,
    khugepaged,
    memory,
    pgtable_generic,
    rmap_counts,
    rmap_unmap,
    shmem,
    swap,
    userfaultfd_k,
    vmscan,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import VM_UFFD_MISSING, Folio, MmStruct, VmAreaStruct

if TYPE_CHECKING:
    from emulator.machine import Machine


# ---- may the pages of the file be collapsed


def hpage_collapse_scan_file(m: Machine, mapping: AddressSpace, start: int) -> ScanResult:
    """Look at the pages that the file has from ``start`` on, without their locks. SUCCEED, or what speaks against it.

    PTE_MAPPED_HUGEPAGE: it is a huge page already.
    """
    for index in range(start, start + m.geometry.hpage_pmd_nr):
        folio = mapping.pages.get(index)
        if folio is None:
            continue
        if folio.order == m.geometry.hpage_pmd_order and folio.index == start:
            return ScanResult.PTE_MAPPED_HUGEPAGE
        if not folio.lru:
            return ScanResult.PAGE_LRU
        if vmscan.folio_expected_ref_count(folio) != folio.refcount:
            return ScanResult.PAGE_COUNT
    return ScanResult.SUCCEED


# ---- the page cache


class Collapse:
    """A collapse of pages [start, end) of a file under way. ``isolated``: its folios, locked and unmapped."""

    __slots__ = ("charged", "isolated", "m", "mapping", "new", "start")

    def __init__(self, m: Machine, mapping: AddressSpace, start: int, new: Folio) -> None:
        self.m = m
        self.mapping = mapping
        self.start = start
        self.new = new
        self.isolated: list[Folio] = []
        self.charged = 0  # pages for holes

    @property
    def end(self) -> int:
        return self.start + self.new.nr_pages


def collapse_file(m: Machine, mapping: AddressSpace, start: int) -> ScanResult:
    """Put a huge page in the place of all pages of the range. PTE_MAPPED_HUGEPAGE: it, or another, is there now."""
    if m.should_fail("folio_alloc_huge"):
        return ScanResult.ALLOC_HUGE_PAGE_FAIL
    new = m.phys.alloc(m.geometry.hpage_pmd_order)
    new.lock.lock()
    new.index = start
    m.sched.point("collapse.unlocked")
    collapse = Collapse(m, mapping, start, new)
    result = isolate_pages(collapse)
    if result is ScanResult.SUCCEED:
        result = charge_holes(collapse)
    if result is ScanResult.SUCCEED:
        m.sched.point("collapse.isolated")
        copy_pages(collapse)
        m.sched.point("collapse.copied")
        result = check_holes(collapse)
    if result is not ScanResult.SUCCEED:
        roll_back(collapse)
        return result
    replace_pages(collapse)
    retract_page_tables(m, mapping, start)
    new.lock.unlock()
    free_old_pages(collapse)
    return ScanResult.PTE_MAPPED_HUGEPAGE


def isolate_pages(collapse: Collapse) -> ScanResult:
    """Lock every folio of the range, take it off the LRU and unmap it; swapped-out ones are read first."""
    mapping = collapse.mapping
    index = collapse.start
    while index < collapse.end:
        folio = mapping.pages.get(index)
        if folio is None and index not in mapping.swapped:
            if index == collapse.start and not shmem.shmem_has_pages(mapping, index, collapse.end):
                return ScanResult.TRUNCATED
            index += 1
            continue
        if folio is None:
            got = shmem.shmem_get_folio(collapse.m, mapping, index, allocate=False)
            if isinstance(got, int):
                return ScanResult.FAIL
            folio = got
        elif folio.lock.trylock():
            swap.folio_get(folio)
        else:
            return ScanResult.PAGE_LOCK
        result = isolate_page(collapse, folio)
        if result is not ScanResult.SUCCEED:
            folio.lock.unlock()
            swap.folio_put(collapse.m, folio)
            return result
        index += folio.nr_pages
    return ScanResult.SUCCEED


def isolate_page(collapse: Collapse, folio: Folio) -> ScanResult:
    """One locked folio, with a reference of ours. Another one is that of the isolation."""
    m = collapse.m
    if folio.order == m.geometry.hpage_pmd_order and folio.index == collapse.start:
        return ScanResult.PTE_MAPPED_HUGEPAGE
    if folio.mapping is not collapse.mapping:
        return ScanResult.TRUNCATED
    if not vmscan.folio_isolate_lru(folio):
        return ScanResult.DEL_PAGE_LRU
    if folio.mapped():
        rmap_unmap.try_to_unmap(folio, ignore_mlock=True)
    # any other use of it has to come by the page cache, and to wait for the lock
    if folio.refcount != 2 + folio.nr_pages:
        vmscan.folio_putback_lru(m, folio)
        return ScanResult.PAGE_COUNT
    collapse.isolated.append(folio)
    m.sched.point("collapse.page_isolated")
    return ScanResult.SUCCEED


def charge_holes(collapse: Collapse) -> ScanResult:
    """shmem_charge: the file is to have pages where it has none."""
    holes = collapse.new.nr_pages - sum(folio.nr_pages for folio in collapse.isolated)
    for _ in range(holes):
        if not shmem.shmem_acct_blocks(collapse.m, collapse.mapping):
            return ScanResult.FAIL
        collapse.charged += 1
    return ScanResult.SUCCEED


def copy_pages(collapse: Collapse) -> None:
    """The contents of all pages; nobody can write to them."""
    for folio in collapse.isolated:
        first = folio.index - collapse.start
        for i, page in enumerate(folio.content):
            collapse.new.content[first + i] = dict(page)


def check_holes(collapse: Collapse) -> ScanResult:
    """Nobody has filled a hole meanwhile, and nobody wants to be told when it is touched."""
    mapping = collapse.mapping
    ours = sum(folio.nr_pages for folio in collapse.isolated)
    there = sum(index in mapping.pages or index in mapping.swapped for index in range(collapse.start, collapse.end))
    if there != ours:
        return ScanResult.PAGE_FILLED
    if ours == collapse.new.nr_pages:
        return ScanResult.SUCCEED
    mapping.i_mmap_rwsem.down_read()
    # the page behind the range counts as well (vma_interval_tree_foreach takes the last page, not the end)
    missing = any(
        area.vm_flags & VM_UFFD_MISSING
        and area.vm_pgoff <= collapse.end
        and area.vm_pgoff + vma_ops.vma_pages(area) > collapse.start
        for area in mapping.i_mmap
    )
    mapping.i_mmap_rwsem.up_read()
    return ScanResult.EXCEED_NONE_PTE if missing else ScanResult.SUCCEED


def replace_pages(collapse: Collapse) -> None:
    """The huge page into the page cache, which has a reference for each page."""
    new = collapse.new
    new.mapping = collapse.mapping
    new.dirty = True
    collapse.mapping.large_folios = True
    swap.folio_ref_add(new, new.nr_pages - 1)  # the reference of the allocation is one of them
    for index in range(collapse.start, collapse.end):
        collapse.mapping.pages[index] = new


def free_old_pages(collapse: Collapse) -> None:
    """Our references, those of the isolation and those of the page cache go."""
    for folio in collapse.isolated:
        folio.mapping = None
        folio.lru = True
        folio.lock.unlock()
        swap.folio_put_refs(collapse.m, folio, 2 + folio.nr_pages)
        collapse.m.sched.point("collapse.page_released")


def roll_back(collapse: Collapse) -> None:
    """Everything as it was, save that nothing is mapped."""
    m = collapse.m
    shmem.shmem_unacct_blocks(m, collapse.mapping, collapse.charged)
    for folio in collapse.isolated:
        folio.lock.unlock()
        vmscan.folio_putback_lru(m, folio)
        swap.folio_put(m, folio)
    collapse.new.lock.unlock()
    swap.folio_put(m, collapse.new)


# ---- page tables


def file_backed_vma_is_retractable(area: VmAreaStruct) -> bool:
    """May its tables of PTEs be taken away behind its back? Not with private copies, or with markers in them."""
    guards = area.vm_mm.machine.profile.vm_ignore_merge
    return area.anon_vma is None and not userfaultfd_k.userfaultfd_wp(area) and not area.vm_flags & guards


def retract_page_tables(m: Machine, mapping: AddressSpace, start: int) -> None:
    """Take empty tables away wherever the huge page could be mapped as a whole. It is locked: no fault fills them."""
    g = m.geometry
    mapping.i_mmap_rwsem.down_read()
    for area in mapping.i_mmap:
        addr = area.vm_start + ((start - area.vm_pgoff) << PAGE_SHIFT)
        inside = area.vm_pgoff <= start and addr + g.pmd_size <= area.vm_end
        if not inside or addr & ~g.pmd_mask or not file_backed_vma_is_retractable(area):
            continue
        result, pmd = khugepaged.find_pmd_or_thp_or_none(area.vm_mm, addr)
        if result is not ScanResult.SUCCEED or pmd is None:
            continue
        m.sched.point("collapse.table_found")
        slot = pgtable_generic.slot_of(area.vm_mm, addr, LEVEL_PMD)
        pmd.ptl.lock()
        table = pmd.entries.get(slot, 0)
        if isinstance(table, PageTable):
            table.ptl.lock()
            if file_backed_vma_is_retractable(area):
                pmd.set(slot, 0)
                m.flush_tlb_range(area.vm_mm, addr, addr + g.pmd_size)
            table.ptl.unlock()
        pmd.ptl.unlock()
    mapping.i_mmap_rwsem.up_read()


def collapse_pte_mapped_thp(mm: MmStruct, addr: int) -> ScanResult:
    """try_collapse_pte_mapped_thp: map the file's huge page by a PMD, in place of PTEs that map it. Under mmap_lock."""
    g = mm.machine.geometry
    area = mm.mm_mt.lookup(addr)
    if area is None or area.vm_file is None or addr < area.vm_start or addr + g.pmd_size > area.vm_end:
        return ScanResult.VMA_CHECK
    result, _ = khugepaged.find_pmd_or_thp_or_none(mm, addr)
    if result is ScanResult.PMD_MAPPED:
        return result
    if not huge_memory_fault.thp_vma_allowable_collapse(area):
        return ScanResult.VMA_CHECK
    if userfaultfd_k.userfaultfd_wp(area):
        return ScanResult.PTE_UFFD_WP
    folio = area.vm_file.f_mapping.pages.get(vma_ops.linear_page_index(area, addr))
    if folio is None:
        return ScanResult.PAGE_NULL
    swap.folio_get(folio)
    folio.lock.lock()
    if folio.mapping is not area.vm_file.f_mapping:  # thrown away meanwhile, or split: what is there now is smaller
        result = ScanResult.PAGE_NULL
    elif folio.order != g.hpage_pmd_order:
        result = ScanResult.PAGE_COMPOUND
    else:
        result = map_in_place_of_ptes(area, addr, folio)
    folio.lock.unlock()
    swap.folio_put(mm.machine, folio)
    return result


def map_in_place_of_ptes(area: VmAreaStruct, addr: int, folio: Folio) -> ScanResult:
    """``collapse_pte_mapped_thp`` with the folio locked."""
    mm = area.vm_mm
    result, pmd = khugepaged.find_pmd_or_thp_or_none(mm, addr)
    if result is ScanResult.SUCCEED:
        assert pmd is not None
        result = remove_pte_table(area, addr, pmd, folio)
        if result is not ScanResult.SUCCEED:
            return result
    elif result not in (ScanResult.PMD_NULL, ScanResult.PMD_NONE):
        return result
    pmd = pgtable_generic.alloc_table(mm, addr, LEVEL_PMD)
    if pmd is None or not huge_memory_fault.do_set_pmd(memory.VmFault(area, addr, 0, pmd), folio):
        return ScanResult.FAIL
    swap.folio_get(folio)
    return ScanResult.SUCCEED


def remove_pte_table(area: VmAreaStruct, addr: int, pmd: PageTable, folio: Folio) -> ScanResult:
    """Take the table of PTEs away, if there is nothing in it but the pages of the folio."""
    mm = area.vm_mm
    m = mm.machine
    slot = pgtable_generic.slot_of(mm, addr, LEVEL_PMD)
    pmd.ptl.lock()
    table = pmd.entries.get(slot, 0)
    if not isinstance(table, PageTable):
        pmd.ptl.unlock()
        return ScanResult.FAIL
    table.ptl.lock()
    result = ScanResult.SUCCEED
    for i, entry in sorted(table.entries.items()):
        assert isinstance(entry, int)
        if not entry & PRESENT:
            result = ScanResult.PTE_NON_PRESENT
            break
        if entry & SPECIAL or pte_pfn(entry) != folio.pfn + i:
            result = ScanResult.FAIL
            break
    if result is ScanResult.SUCCEED:
        clear_ptes(area, table, folio)
        pmd.set(slot, 0)
        m.flush_tlb_range(mm, addr, addr + m.geometry.pmd_size)
    table.ptl.unlock()
    pmd.ptl.unlock()
    return result


def clear_ptes(area: VmAreaStruct, table: PageTable, folio: Folio) -> None:
    """Unmap the pages of the folio, which are all that the table maps, batch by batch."""
    m = area.vm_mm.machine
    while table.entries:
        first, pte = min(table.entries.items())
        assert isinstance(pte, int)
        nr = memory.folio_pte_batch(folio, table, first, pte, folio.nr_pages - first)
        for i in range(first, first + nr):
            table.set(i, 0)
        rmap_counts.folio_remove_rmap_ptes(folio, first, nr, area)
        swap.folio_put_refs(m, folio, nr)


# ---- one range


def collapse_file_range(area: VmAreaStruct, addr: int) -> ScanResult:
    """MADV_COLLAPSE of one huge page's worth of a file mapping. mmap_lock, held for reading, is dropped."""
    mm = area.vm_mm
    m = mm.machine
    assert area.vm_file is not None
    file = area.vm_file
    start = vma_ops.linear_page_index(area, addr)
    file.f_count += 1
    mm.mmap_lock.up_read()
    m.sched.point("collapse.file_unlocked")
    result = hpage_collapse_scan_file(m, file.f_mapping, start)
    if result is ScanResult.SUCCEED:
        result = collapse_file(m, file.f_mapping, start)
    file.f_count -= 1
    shmem.shmem_put_file(m, file)
    if result is ScanResult.PTE_MAPPED_HUGEPAGE:
        m.sched.point("collapse.file_collapsed")
        mm.mmap_lock.down_read()
        result = collapse_pte_mapped_thp(mm, addr)
        mm.mmap_lock.up_read()
    return result
