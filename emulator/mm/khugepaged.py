"""Collapsing small pages into a huge page, as far as MADV_COLLAPSE needs it (mm/khugepaged.c).

A whole aligned range of one anonymous VMA gets a huge page that holds copies of all its pages; holes become zeros.
MADV_COLLAPSE does not mind how many pages are missing, shared or swapped out; pages that somebody uses (a pin, a
reference, a lock) refuse. The daemon itself, which does mind, is not modelled. What is done with files of memory
stands in ``khugepaged_file.py``.

The order is what keeps others out: the entry of the page table is cleared and flushed under mmap_lock and the
anon_vma lock, so that no fault, no rmap walk and no GUP-fast finds the pages any more; then their references are
counted, each under its folio lock; then they are copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import KernelBug
from emulator.geometry import LEVEL_PMD, PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PRESENT, SPECIAL, UFFD_WP, is_migration, pte_pfn
from emulator.khugepaged_types import DONE, ERRNO, GOES_ON, ScanResult
from emulator.mm import (
    huge_memory_fault,
    khugepaged_file,
    memory,
    memory_swap,
    pagewalk,
    pgtable_generic,
    rmap,
    rmap_counts,
    swap,
    swap_state,
    vmscan,
)
from emulator.mm_types import Folio, MmStruct, VmAreaStruct
from emulator.uapi import EINVAL, ENOMEM

if TYPE_CHECKING:
    from emulator.machine import Machine


# ---- may it be collapsed


def hugepage_vma_revalidate(
    mm: MmStruct, address: int, *, expect_anon: bool
) -> tuple[ScanResult, VmAreaStruct | None]:
    """mmap_lock was dropped meanwhile: the VMA around the range, if it may still have a huge page there.

    ``expect_anon``: of anonymous memory.
    """
    area = mm.mm_mt.find(address)
    if area is None:
        return ScanResult.VMA_NULL, None
    if not huge_memory_fault.thp_vma_suitable_pmd(area, address):
        return ScanResult.ADDRESS_RANGE, None
    if not huge_memory_fault.thp_vma_allowable_collapse(area):
        return ScanResult.VMA_CHECK, None
    if expect_anon and area.vm_ops is not None:
        return ScanResult.PAGE_ANON, None
    return ScanResult.SUCCEED, area


def find_pmd_or_thp_or_none(mm: MmStruct, address: int) -> tuple[ScanResult, PageTable | None]:
    """SUCCEED, and the PMD table whose entry for ``address`` holds a table of PTEs."""
    pmd = pgtable_generic.find_table(mm, address, LEVEL_PMD)
    if pmd is None:
        return ScanResult.PMD_NULL, None
    entry = pmd.entries.get(pgtable_generic.slot_of(mm, address, LEVEL_PMD), 0)
    if not entry:
        return ScanResult.PMD_NONE, None
    if not isinstance(entry, PageTable):
        return ScanResult.PMD_MAPPED, None
    return ScanResult.SUCCEED, pmd


def check_pmd_still_valid(mm: MmStruct, address: int, pmd: PageTable) -> ScanResult:
    result, now = find_pmd_or_thp_or_none(mm, address)
    if result is ScanResult.SUCCEED and now is not pmd:
        return ScanResult.FAIL
    return result


def scan_pte(area: VmAreaStruct, address: int, pte: int) -> ScanResult:
    """May the page that this entry maps go into a huge page? SUCCEED, or why not. Seen without the folio lock."""
    if not pte or (pte & PRESENT and pte & SPECIAL):
        return ScanResult.EXCEED_NONE_PTE if area.uffd_ctx is not None else ScanResult.SUCCEED
    if pte & UFFD_WP:
        return ScanResult.PTE_UFFD_WP
    if not pte & PRESENT:
        return ScanResult.SUCCEED  # it is swapped in later, or refused then
    folio = memory.vm_normal_folio(area, address, pte)
    assert folio is not None
    if not folio.lru:
        return ScanResult.PAGE_LRU
    if folio.lock.owner is not None:
        return ScanResult.PAGE_LOCK
    if vmscan.folio_expected_ref_count(folio) != folio.refcount:
        return ScanResult.PAGE_COUNT
    return ScanResult.SUCCEED


def hpage_collapse_scan_pmd(mm: MmStruct, area: VmAreaStruct, start: int) -> tuple[ScanResult, bool]:
    """Look at one range and collapse it if nothing speaks against it. (What came of it, is mmap_lock still held?)"""
    result, pmd = find_pmd_or_thp_or_none(mm, start)
    if pmd is None:
        return result, True
    table = pagewalk.pte_offset_map_lock(pmd, pgtable_generic.slot_of(mm, start, LEVEL_PMD))
    if table is None:
        return ScanResult.PMD_NULL, True
    unmapped = False
    for slot in range(mm.machine.geometry.hpage_pmd_nr):
        pte: int = table.entries.get(slot, 0)  # type: ignore[assignment]
        result = scan_pte(area, start + (slot << PAGE_SHIFT), pte)
        if result is not ScanResult.SUCCEED:
            break
        unmapped = unmapped or (pte != 0 and not pte & PRESENT)
    table.ptl.unlock()
    if result is not ScanResult.SUCCEED:
        return result, True
    return collapse_huge_page(mm, start, unmapped), False


# ---- the collapse


def collapse_huge_page_swapin(mm: MmStruct, area: VmAreaStruct, start: int, pmd: PageTable) -> ScanResult:
    """Bring what is swapped out back, as read faults would. mmap_lock is dropped unless this says SUCCEED.

    Guard markers are met here, and refuse.
    """
    m = mm.machine
    for address in range(start, start + m.geometry.pmd_size, PAGE_SIZE):
        vmf = memory.VmFault(area, address, memory.FAULT_FLAG_ALLOW_RETRY, pmd)
        table = pmd.entries.get(vmf.pmd_slot, 0)
        if not isinstance(table, PageTable):
            mm.mmap_lock.up_read()
            return ScanResult.PMD_NULL
        pte: int = table.entries.get(vmf.slot, 0)  # type: ignore[assignment]
        if not pte or pte & PRESENT:
            continue
        if is_migration(pte):
            memory.migration_entry_wait(mm, table, vmf.slot, pte)
            continue
        vmf.orig_pte = pte
        fault = memory_swap.do_swap_page(vmf)
        if fault & memory.VM_FAULT_RETRY:  # the lock is dropped already
            return ScanResult.PAGE_LOCK
        if fault:
            mm.mmap_lock.up_read()
            return ScanResult.FAIL
    m.sched.point("collapse.swapped_in")
    return ScanResult.SUCCEED


def collapse_huge_page(mm: MmStruct, address: int, unmapped: bool) -> ScanResult:
    """Collapse one range. Called with mmap_lock for reading, which is dropped; what was seen is looked at again.

    ``unmapped``: some entries were not present.
    """
    m = mm.machine
    mm.mmap_lock.up_read()
    m.sched.point("collapse.unlocked")
    if m.should_fail("folio_alloc_huge"):
        return ScanResult.ALLOC_HUGE_PAGE_FAIL
    folio = m.phys.alloc(m.geometry.hpage_pmd_order)
    result = collapse_prepare(mm, address, unmapped, folio)
    if result is not ScanResult.SUCCEED:
        swap.folio_put(m, folio)
    return result


def collapse_prepare(mm: MmStruct, address: int, unmapped: bool, folio: Folio) -> ScanResult:
    """The two rounds of checks, under mmap_lock for reading and for writing, and the collapse in the second."""
    lock = mm.mmap_lock
    lock.down_read()
    result, area = hugepage_vma_revalidate(mm, address, expect_anon=True)
    pmd = None
    if area is not None:
        result, pmd = find_pmd_or_thp_or_none(mm, address)
    if area is None or pmd is None:
        lock.up_read()
        return result
    if unmapped:
        result = collapse_huge_page_swapin(mm, area, address, pmd)
        if result is not ScanResult.SUCCEED:
            return result
    lock.up_read()
    mm.machine.sched.point("collapse.before_write_lock")
    lock.down_write()
    result, area = hugepage_vma_revalidate(mm, address, expect_anon=True)
    if area is not None:
        result = check_pmd_still_valid(mm, address, pmd)
        if result is ScanResult.SUCCEED:
            result = collapse_locked(area, address, pmd, folio)
    lock.up_write()
    return result


def collapse_locked(area: VmAreaStruct, address: int, pmd: PageTable, folio: Folio) -> ScanResult:
    """Replace the table of PTEs by the entry of the huge page. mmap_lock is held for writing."""
    mm = area.vm_mm
    m = mm.machine
    anon_vma = area.anon_vma
    assert anon_vma is not None
    pmd_slot = pgtable_generic.slot_of(mm, address, LEVEL_PMD)
    rmap.anon_vma_lock_write(anon_vma)
    pmd.ptl.lock()
    table = pmd.entries[pmd_slot]
    assert isinstance(table, PageTable)
    # Who walks without locks is waited for by the flush, and looks at this entry again once it has a page.
    pmd.set(pmd_slot, 0)
    m.flush_tlb_range(mm, address, address + m.geometry.pmd_size)
    pmd.ptl.unlock()
    m.sched.point("collapse.pmd_cleared")
    table.ptl.lock()
    isolated: list[Folio] = []
    result = collapse_huge_page_isolate(area, address, table, isolated)
    table.ptl.unlock()
    if result is not ScanResult.SUCCEED:
        for old in isolated:
            release_pte_folio(m, old)
        pmd.ptl.lock()
        check_pmd_none(area, pmd, pmd_slot)
        pmd.set(pmd_slot, table)
        pmd.ptl.unlock()
        rmap.anon_vma_unlock_write(anon_vma)
        return result
    rmap.anon_vma_unlock_write(anon_vma)  # walks wait for the folio locks, which we have
    m.sched.point("collapse.isolated")
    collapse_huge_page_copy(area, table, folio, isolated)
    pmd.ptl.lock()
    check_pmd_none(area, pmd, pmd_slot)
    huge_memory_fault.map_anon_folio_pmd(folio, pmd, pmd_slot, area, address)
    pmd.ptl.unlock()
    return ScanResult.SUCCEED


def check_pmd_none(area: VmAreaStruct, pmd: PageTable, slot: int) -> None:
    if pmd.entries.get(slot, 0):
        raise KernelBug("collapse-pmd-filled", "something was mapped where pages are being collapsed", area)


def release_pte_folio(m: Machine, folio: Folio) -> None:
    """Unlock, and back to the LRU."""
    folio.lock.unlock()
    vmscan.folio_putback_lru(m, folio)


def collapse_huge_page_isolate(
    area: VmAreaStruct, start: int, table: PageTable, isolated: list[Folio]
) -> ScanResult:
    """Lock every folio that the table maps, see that nobody else uses it, and take it off the LRU.

    ``isolated`` gets those that were, a large one once, whatever comes of it. Nothing maps the table any more.
    """
    m = area.vm_mm.machine
    for slot in range(m.geometry.hpage_pmd_nr):
        pte: int = table.entries.get(slot, 0)  # type: ignore[assignment]
        if not pte or (pte & PRESENT and pte & SPECIAL):
            if area.uffd_ctx is not None:
                return ScanResult.EXCEED_NONE_PTE
            continue
        if not pte & PRESENT:
            return ScanResult.PTE_NON_PRESENT
        if pte & UFFD_WP:
            return ScanResult.PTE_UFFD_WP
        folio = memory.vm_normal_folio(area, start + (slot << PAGE_SHIFT), pte)
        assert folio is not None
        if folio.order and folio in isolated:
            continue
        if not folio.lock.trylock():
            return ScanResult.PAGE_LOCK
        if vmscan.folio_expected_ref_count(folio) != folio.refcount:
            folio.lock.unlock()
            return ScanResult.PAGE_COUNT
        if not vmscan.folio_isolate_lru(folio):
            folio.lock.unlock()
            return ScanResult.DEL_PAGE_LRU
        isolated.append(folio)
        m.sched.point("collapse.page_isolated")
    return ScanResult.SUCCEED


def collapse_huge_page_copy(area: VmAreaStruct, table: PageTable, new: Folio, isolated: list[Folio]) -> None:
    """Copy every page to its place in ``new``, then unmap and let go of the old ones. The table is empty afterwards."""
    m = area.vm_mm.machine
    frames = m.phys.frames
    entries: dict[int, int] = table.entries  # type: ignore[assignment]
    for slot, pte in entries.items():
        if not pte & SPECIAL:
            folio = frames[pte_pfn(pte)]
            new.content[slot] = dict(folio.content[memory.page_of(folio, pte)])
    m.sched.point("collapse.copied")
    for slot in sorted(entries):
        unmap_old_page(area, table, slot)
    for folio in isolated:
        if folio.order:
            folio.lock.unlock()
            swap_state.free_swap_cache(m, folio)
            vmscan.folio_putback_lru(m, folio)


def unmap_old_page(area: VmAreaStruct, table: PageTable, slot: int) -> None:
    """Clear one entry of the table that nobody finds any more; a small page goes back to where it was isolated from."""
    m = area.vm_mm.machine
    pte: int = table.entries[slot]  # type: ignore[assignment]
    if pte & SPECIAL:
        table.ptl.lock()
        table.set(slot, 0)
        table.ptl.unlock()
        return
    folio = m.phys.frames[pte_pfn(pte)]
    if not folio.order:
        release_pte_folio(m, folio)
        m.sched.point("collapse.page_released")
    table.ptl.lock()
    table.set(slot, 0)
    rmap_counts.folio_remove_rmap_ptes(folio, memory.page_of(folio, pte), 1, area)
    table.ptl.unlock()
    swap_state.free_swap_cache(m, folio)
    swap.folio_put(m, folio)


# ---- the call


def madvise_collapse(area: VmAreaStruct, start: int, end: int) -> tuple[int, bool]:
    """MADV_COLLAPSE of the part [start, end) of one VMA (bytes): (0 or -errno, was mmap_lock dropped meanwhile?).

    0 when every whole range in it has a huge page now. The first failure that trying again will not mend ends it;
    ranges collapsed before stay so. mmap_lock is held for reading when this begins, and when it ends.
    """
    mm = area.vm_mm
    m = mm.machine
    g = m.geometry
    if not huge_memory_fault.thp_vma_allowable_collapse(area):
        return -EINVAL, False
    if m.should_fail("collapse_control"):
        return -ENOMEM, False
    first = (start + g.pmd_size - 1) & g.pmd_mask
    last = end & g.pmd_mask
    collapsed = 0
    last_fail = ScanResult.FAIL
    locked, dropped = True, False
    address = first
    while address < last:
        if not locked:
            m.sched.point("collapse.next_range")
            mm.mmap_lock.down_read()
            locked = True
            result, found = hugepage_vma_revalidate(mm, address, expect_anon=False)
            if found is None:
                last_fail = result
                break
            area = found
            last = min(last, area.vm_end & g.pmd_mask)
        if area.vm_file is not None:
            result, locked = khugepaged_file.collapse_file_range(area, address), False
        else:
            result, locked = hpage_collapse_scan_pmd(mm, area, address)
        dropped = dropped or not locked
        address += g.pmd_size
        if result in DONE:
            collapsed += 1
            continue
        last_fail = result
        if result not in GOES_ON:
            break
    if not locked:
        mm.mmap_lock.down_read()
    if collapsed == (last - first) >> g.pmd_shift:
        return 0, dropped
    return ERRNO.get(last_fail, -EINVAL), dropped
