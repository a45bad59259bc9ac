"""Locking memory (mm/mlock.c). Bytes.

What it does to folios is in ``mlock_folio.py``.
"""

from __future__ import annotations

from emulator.geometry import LEVEL_PTE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, page_align
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PRESENT, SPECIAL, pte_pfn
from emulator.mm import gup_populate, memory, mlock_folio, pagewalk, pgtable_generic, sys, vma, vma_modify
from emulator.mm_types import (
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_LOCKONFAULT,
    VM_SPECIAL,
    Folio,
    MmStruct,
    VmAreaStruct,
)
from emulator.uapi import EINVAL, ENOMEM, EPERM, MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, MLOCK_ONFAULT
from emulator.workload import RLIMIT_MEMLOCK


def can_do_mlock(mm: MmStruct) -> bool:
    """Is any locking allowed at all: RLIMIT_MEMLOCK is not 0, or does not bind."""
    return sys.rlimit(mm, RLIMIT_MEMLOCK) != 0


def allow_mlock_munlock(folio: Folio, area: VmAreaStruct, step: int) -> bool:
    """May the folio, of which ``step`` pages lie in the range, be marked? Locking takes whole ones only."""
    return not area.vm_flags & VM_LOCKED or step == folio.nr_pages


def mlock_pte_range(area: VmAreaStruct, pmd: PageTable, slot: int, addr: int, end: int) -> None:
    """Mark what one PMD entry maps of [addr, end) as locked, or no longer, as ``area`` now is."""
    mark = mlock_folio.mlock_folio if area.vm_flags & VM_LOCKED else mlock_folio.munlock_folio
    m = area.vm_mm.machine
    pmd.ptl.lock()
    entry = pmd.entries.get(slot, 0)
    if not isinstance(entry, PageTable):
        if entry & (PRESENT | SPECIAL) == PRESENT:
            mark(m, m.phys.frames[pte_pfn(entry)])
        pmd.ptl.unlock()
        return
    pmd.ptl.unlock()
    table = pagewalk.pte_offset_map_lock(pmd, slot)
    while addr < end and table is not None:
        pte_slot = pgtable_generic.slot_of(area.vm_mm, addr, LEVEL_PTE)
        pte: int = table.entries.get(pte_slot, 0)  # type: ignore[assignment]
        folio = memory.vm_normal_folio(area, addr, pte) if pte & PRESENT else None
        step = 1
        if folio is not None:
            if folio.order:
                step = memory.folio_pte_batch(folio, table, pte_slot, pte, (end - addr) >> PAGE_SHIFT)
            if allow_mlock_munlock(folio, area, step):
                mark(m, folio)
        addr += step * PAGE_SIZE
    if table is not None:
        table.ptl.unlock()


def mlock_vma_pages_range(area: VmAreaStruct, start: int, end: int, newflags: int) -> None:
    """[start, end) of a VMA gets ``newflags``, and its pages the mark that goes with it, or lose it.

    Meanwhile VM_IO beside VM_LOCKED tells those who come by the rmap not to count the same page.
    """
    area.vm_flags = newflags | VM_IO if newflags & VM_LOCKED else newflags
    mlock_folio.mlock_drain_local(area.vm_mm.machine)
    for pmd, slot, addr, stop in pagewalk.pmd_ranges(area.vm_mm, start, end):
        mlock_pte_range(area, pmd, slot, addr, stop)
    mlock_folio.mlock_drain_local(area.vm_mm.machine)
    area.vm_flags = newflags


def mlock_fixup(
    prev: VmAreaStruct | None, area: VmAreaStruct, start: int, end: int, newflags: int
) -> VmAreaStruct | int:
    """[start, end) of one VMA gets ``newflags``. The VMA that holds it afterwards, or -errno."""
    mm = area.vm_mm
    oldflags = area.vm_flags
    if newflags == oldflags or oldflags & (VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE):
        return area
    changed = vma_modify.vma_modify_flags(prev, area, start, end, newflags)
    if isinstance(changed, int):
        return changed
    pages = (end - start) >> PAGE_SHIFT
    if not newflags & VM_LOCKED:
        mm.locked_vm -= pages
    elif not oldflags & VM_LOCKED:
        mm.locked_vm += pages
    newflags |= changed.vm_flags & mm.machine.profile.vm_ignore_merge
    if newflags & VM_LOCKED and oldflags & VM_LOCKED:
        changed.vm_flags = newflags  # its pages are locked already, and would be twice
    else:
        mlock_vma_pages_range(changed, start, end, newflags)
    return changed


def apply_vma_lock_flags(mm: MmStruct, start: int, length: int, flags: int) -> int:
    """Every VMA in [start, start+length) gets lock flags ``flags``. A hole: -ENOMEM, those before it stay changed."""
    end = start + length
    if end < start or end > 1 << 64:
        return -EINVAL
    if end == start:
        return 0
    area = mm.mm_mt.lookup(start)
    if area is None:
        return -ENOMEM
    prev = area if start > area.vm_start else vma.vma_prev(area)
    position = start
    while position < end:
        area = mm.mm_mt.lookup(position)
        if area is None:
            return -ENOMEM
        stop = min(area.vm_end, end)
        newflags = area.vm_flags & ~VM_LOCKED_MASK | flags
        changed = mlock_fixup(prev, area, position, stop, newflags)
        if isinstance(changed, int):
            return changed
        prev = changed
        position = stop
    return 0


def count_mm_mlocked_page_nr(mm: MmStruct, start: int, length: int) -> int:
    """How many pages of [start, start+length) are locked already, on fault or at once."""
    end = start + length
    areas = [area for area in mm.mm_mt.overlapping(start, end) if area.vm_flags & VM_LOCKED]
    return sum(min(area.vm_end, end) - max(area.vm_start, start) for area in areas) >> PAGE_SHIFT


def do_mlock(mm: MmStruct, start: int, length: int, flags: int) -> int:
    """Lock, then fault the range in.

    0, -EPERM (nothing may be locked), -ENOMEM (RLIMIT_MEMLOCK, a hole, or what cannot be faulted in), -EAGAIN.
    """
    if not can_do_mlock(mm):
        return -EPERM
    length = page_align(length + (start & ~PAGE_MASK))
    start &= PAGE_MASK
    limit = sys.rlimit(mm, RLIMIT_MEMLOCK)
    mm.mmap_lock.down_write()
    mm.machine.sched.point("mlock.locked")
    error = -ENOMEM
    more = (length >> PAGE_SHIFT) - (0 if limit is None else count_mm_mlocked_page_nr(mm, start, length))
    if limit is None or mm.locked_vm + more <= limit:
        error = apply_vma_lock_flags(mm, start, length, flags)
    mm.mmap_lock.up_write()
    if error:
        return error
    error = gup_populate._mm_populate(mm, start, length, ignore_errors=False)
    return gup_populate.mlock_posix_error_return(error)


def sys_mlock(mm: MmStruct, start: int, length: int) -> int:
    """mlock(2)."""
    return do_mlock(mm, start, length, VM_LOCKED)


def sys_mlock2(mm: MmStruct, start: int, length: int, flags: int) -> int:
    """mlock2(2)."""
    if flags & ~MLOCK_ONFAULT:
        return -EINVAL
    return do_mlock(mm, start, length, VM_LOCKED_MASK if flags else VM_LOCKED)


def sys_munlock(mm: MmStruct, start: int, length: int) -> int:
    """munlock(2)."""
    length = page_align(length + (start & ~PAGE_MASK))
    mm.mmap_lock.down_write()
    mm.machine.sched.point("mlock.locked")
    result = apply_vma_lock_flags(mm, start & PAGE_MASK, length, 0)
    mm.mmap_lock.up_write()
    return result


def apply_mlockall_flags(mm: MmStruct, flags: int) -> None:
    """Flags for mappings to come and, with MCL_CURRENT or without any, for all there are. Errors are ignored."""
    onfault = VM_LOCKONFAULT if flags & MCL_ONFAULT else 0
    mm.def_flags &= ~VM_LOCKED_MASK
    if flags & MCL_FUTURE:
        mm.def_flags |= VM_LOCKED | onfault
        if not flags & MCL_CURRENT:
            return
    add = VM_LOCKED | onfault if flags & MCL_CURRENT else 0
    prev: VmAreaStruct | None = None
    position = 0
    while (area := mm.mm_mt.find(position)) is not None:
        end = area.vm_end
        newflags = area.vm_flags & ~VM_LOCKED_MASK | add
        changed = mlock_fixup(prev, area, area.vm_start, end, newflags)
        prev = area if isinstance(changed, int) else changed
        position = end


def sys_mlockall(mm: MmStruct, flags: int) -> int:
    """mlockall(2)."""
    if not flags or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        return -EINVAL
    if not can_do_mlock(mm):
        return -EPERM
    limit = sys.rlimit(mm, RLIMIT_MEMLOCK)
    mm.mmap_lock.down_write()
    mm.machine.sched.point("mlock.locked")
    allowed = limit is None or not flags & MCL_CURRENT or mm.total_vm <= limit
    if allowed:
        apply_mlockall_flags(mm, flags)
    mm.mmap_lock.up_write()
    if not allowed:
        return -ENOMEM
    if flags & MCL_CURRENT:
        gup_populate.mm_populate(mm, 0, mm.machine.geometry.task_size)
    return 0


def sys_munlockall(mm: MmStruct) -> int:
    """munlockall(2)."""
    mm.mmap_lock.down_write()
    mm.machine.sched.point("mlock.locked")
    apply_mlockall_flags(mm, 0)
    mm.mmap_lock.up_write()
    return 0
