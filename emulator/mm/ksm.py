"""Same-page merging as the rest of mm/ sees it (mm/ksm.c): which memory is offered, what undoes a merge, the rmap.

A KSM folio is an anonymous folio whose mapping is a stable node. It is mapped read-only wherever its contents were
found, in any VMA that is mergeable; a write gets a copy, as with any shared page. The scanner itself, which finds and
merges, stands in ``ksm_scan.py``.

Zero pages are merged like others (use_zero_pages=0), and there is one memory node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_SIZE
from emulator.hw.pte import PRESENT, SPECIAL, is_migration, pte_pfn
from emulator.ksm_types import KsmMmSlot, KsmRmapItem, KsmStableNode
from emulator.mm import fault, memory, pagewalk, pgtable_generic, rmap
from emulator.mm import vma as vma_ops
from emulator.mm_types import (
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_SHARED,
    VM_SPECIAL,
    Folio,
    MmStruct,
    VmAreaStruct,
)
from emulator.uapi import EINVAL, ENOMEM, MADV_MERGEABLE

if TYPE_CHECKING:
    from emulator.rmap_types import AnonVma


# ---- which memory


def ksm_compatible(vm_flags: int) -> bool:
    return not vm_flags & (VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE)


def ksm_vma_flags(mm: MmStruct, vm_flags: int) -> int:
    """The flags of a new mapping: mergeable where the process has asked for that for all it maps."""
    if mm.merge_any and not vm_flags & VM_MERGEABLE and ksm_compatible(vm_flags):
        if mm.machine.ksm.slot_of(mm) is None:
            ksm_enter(mm)  # the scanner had found nothing to scan
        return vm_flags | VM_MERGEABLE
    return vm_flags


def ksm_del_vmas(mm: MmStruct) -> int:
    """Take the flag from every VMA, and undo what was merged. An error leaves those after it as they are."""
    for area in mm.mm_mt:
        if area.vm_flags & VM_MERGEABLE:
            error = unmerge_ksm_pages(area, area.vm_start, area.vm_end) if area.anon_vma is not None else 0
            if error:
                return error
            area.vm_flags &= ~VM_MERGEABLE
    return 0


def ksm_add_vmas(mm: MmStruct) -> None:
    for area in mm.mm_mt:
        if ksm_compatible(area.vm_flags):
            area.vm_flags |= VM_MERGEABLE


def ksm_enable_merge_any(mm: MmStruct) -> int:
    """All there is and all that comes becomes mergeable. VMAs do not merge now, they may later. 0 or -ENOMEM."""
    if mm.merge_any:
        return 0
    if mm.machine.ksm.slot_of(mm) is None:
        error = ksm_enter(mm)
        if error:
            return error
    mm.merge_any = True
    ksm_add_vmas(mm)
    return 0


def ksm_disable_merge_any(mm: MmStruct) -> int:
    """Nothing is mergeable any more, also what was so before. -ENOMEM: all of it is again."""
    if not mm.merge_any:
        return 0
    error = ksm_del_vmas(mm)
    if error:
        ksm_add_vmas(mm)
        return error
    mm.merge_any = False
    return 0


def prctl_memory_merge(mm: MmStruct, enable: int, others: tuple[int, int, int]) -> int:
    """prctl(PR_SET_MEMORY_MERGE, enable, *others) (kernel/sys.c)."""
    if any(others) or not mm.machine.profile.ksm_per_process:
        return -EINVAL
    mm.mmap_lock.down_write()
    result = ksm_enable_merge_any(mm) if enable else ksm_disable_merge_any(mm)
    mm.mmap_lock.up_write()
    return result


def ksm_madvise(area: VmAreaStruct, start: int, end: int, advice: int, vm_flags: int) -> int:
    """MADV_MERGEABLE, MADV_UNMERGEABLE for a part of a VMA: the new flags, or -ENOMEM. Pages are unmerged."""
    mm = area.vm_mm
    if advice == MADV_MERGEABLE:
        if area.vm_flags & VM_MERGEABLE or not ksm_compatible(area.vm_flags):
            return vm_flags
        if mm.machine.ksm.slot_of(mm) is None:
            error = ksm_enter(mm)
            if error:
                return error
        return vm_flags | VM_MERGEABLE
    if not vm_flags & VM_MERGEABLE:
        return vm_flags
    if area.anon_vma is not None:
        error = unmerge_ksm_pages(area, start, end)
        if error:
            return error
    return vm_flags & ~VM_MERGEABLE


# ---- undoing


def ksm_page_at(area: VmAreaStruct, addr: int) -> bool:
    """Does the page table map a KSM page there, or hold the migration entry of one? Waits for who changes the entry."""
    mm = area.vm_mm
    pmd = pgtable_generic.find_table(mm, addr, LEVEL_PMD)
    if pmd is None:
        return False
    table = pagewalk.pte_offset_map_lock(pmd, pgtable_generic.slot_of(mm, addr, LEVEL_PMD))
    if table is None:
        return False
    entry: int = table.entries.get(pgtable_generic.slot_of(mm, addr, LEVEL_PTE), 0)  # type: ignore[assignment]
    table.ptl.unlock()
    there = entry & (PRESENT | SPECIAL) == PRESENT or is_migration(entry)
    return there and mm.machine.phys.frames[pte_pfn(entry)].ksm


def break_ksm(area: VmAreaStruct, addr: int) -> int:
    """Give the place a page of its own if it has a KSM page: 0, or -ENOMEM. Under mmap_lock."""
    mm = area.vm_mm
    while ksm_page_at(area, addr):
        mm.machine.sched.point("ksm.break")
        result = memory.handle_mm_fault(area, addr, memory.FAULT_FLAG_UNSHARE)
        if result & memory.VM_FAULT_OOM:
            return -ENOMEM
        if result & memory.VM_FAULT_RETRY:  # waited for under the lock, as nobody told it to retry
            fault.wait_for_migration(mm, addr)
        elif result:
            break
    return 0


def unmerge_ksm_pages(area: VmAreaStruct, start: int, end: int) -> int:
    """No KSM page is left in [start, end) afterwards. The scanner forgets the places when it comes by."""
    for addr in range(start, end, PAGE_SIZE):
        error = break_ksm(area, addr)
        if error:
            return error
    return 0


# ---- processes


def ksm_enter(mm: MmStruct) -> int:
    """__ksm_enter: the process is to be scanned, behind the cursor (so in the next scan). 0 or -ENOMEM."""
    m = mm.machine
    if m.should_fail("ksm_mm_slot"):
        return -ENOMEM
    slots = m.ksm.mm_slots
    slots.insert(slots.index(m.ksm.slot) if m.ksm.slot is not None else len(slots), KsmMmSlot(mm))
    return 0


def ksm_fork(mm: MmStruct, oldmm: MmStruct) -> None:
    """A child of a process that is scanned is scanned too, if memory allows."""
    if mm.machine.ksm.slot_of(oldmm) is not None:
        ksm_enter(mm)


def ksm_exit(mm: MmStruct) -> None:
    """The last user of the address space is gone. What the scanner has of it, it gives up when it comes by."""
    ksm = mm.machine.ksm
    slot = ksm.slot_of(mm)
    if slot is None or ksm.slot is slot:
        return
    ksm.mm_slots.remove(slot)
    if slot.rmap_list:  # next in turn
        ksm.mm_slots.insert(ksm.mm_slots.index(ksm.slot) + 1 if ksm.slot is not None else 0, slot)


# ---- the folio


def folio_stable_node(folio: Folio) -> KsmStableNode | None:
    """The node of a KSM folio; None: not one, or not in the stable tree (yet, or any more)."""
    mapping = folio.mapping
    return mapping if folio.ksm and isinstance(mapping, KsmStableNode) else None


def folio_migrate_ksm(new: Folio, old: Folio) -> None:
    """The stable node follows its page to another frame. Both folios are locked, and ``new`` names the node."""
    node = folio_stable_node(old)
    if node is not None:
        node.folio = new
        old.mapping = None


def ksm_might_need_to_copy(folio: Folio, area: VmAreaStruct, addr: int) -> Folio | None:
    """What a fault is to map for a page found in the swap cache: the folio, or a copy (locked). None: no memory.

    A page that was a KSM page has lost that when it was read back: it then belongs where it is mapped first, and
    every other place gets a copy.
    """
    m = area.vm_mm.machine
    if folio.order:
        return folio
    anon_vma: AnonVma | None = rmap.folio_anon_vma(folio)
    if folio.ksm:
        if folio_stable_node(folio) is not None:
            return folio
    elif anon_vma is None:
        return folio
    else:
        own = area.anon_vma
        if folio.index == vma_ops.linear_page_index(area, addr) and own is not None and anon_vma.root is own.root:
            return folio
    if m.should_fail("ksm_copy"):
        return None
    copy = m.phys.alloc(0)
    copy.content[0] = dict(folio.content[0])
    copy.dirty = True
    copy.lock.lock()
    return copy


def walk_item(folio: Folio, item: KsmRmapItem, in_forks: bool, visit: rmap.Visit) -> bool:
    """The item's own place, or (``in_forks``) the same address in forks of its process. False ends the walk."""
    anon_vma = item.anon_vma
    assert anon_vma is not None
    goes_on = True
    rmap.anon_vma_lock_read(anon_vma)
    for key in anon_vma.rb_root:
        area = key.avc.vma
        if area.vm_start <= item.address < area.vm_end and (item.mm is area.vm_mm) != in_forks:
            area.vm_mm.machine.sched.point("rmap.walk_next")
            goes_on = visit(folio, area, item.address)
            if not goes_on:
                break
    rmap.anon_vma_unlock_read(anon_vma)
    return goes_on


def rmap_walk_ksm(folio: Folio, visit: rmap.Visit) -> None:
    """Every place where a locked KSM folio may be mapped: that of each item, then the same address in forks of it.

    A fork inherits KSM pages without items. What the scanner has not met yet, and no item leads to, is not found.
    """
    rmap.check_folio_locked(folio)
    node = folio_stable_node(folio)
    if node is None:
        return
    for in_forks in (False, True):
        for item in node.hlist:
            if not walk_item(folio, item, in_forks, visit):
                return
