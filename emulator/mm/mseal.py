"""Sealing memory: it cannot be unmapped, moved, shrunk or given other permissions any more (mm/mseal.c). Bytes."""

from __future__ import annotations

from emulator.geometry import PAGE_MASK, page_align
from emulator.mm import vma, vma_modify
from emulator.mm_types import VM_SEALED, MmStruct
from emulator.uapi import EINVAL, ENOMEM, ENOSYS


def range_contains_unmapped(mm: MmStruct, start: int, end: int) -> bool:
    """Is there a hole in [start, end)?"""
    position = start
    for area in mm.mm_mt.overlapping(start, end):
        if area.vm_start > position:
            return True
        position = area.vm_end
    return position < end


def mseal_apply(mm: MmStruct, start: int, end: int) -> int:
    """Seal every VMA in [start, end), in which there is no hole. Out of memory: those before stay sealed."""
    area = mm.mm_mt.lookup(start)
    assert area is not None
    prev = area if start > area.vm_start else vma.vma_prev(area)
    position = start
    while position < end:
        area = mm.mm_mt.lookup(position)
        assert area is not None
        stop = min(area.vm_end, end)
        if not area.vm_flags & VM_SEALED:
            changed = vma_modify.vma_modify_flags(prev, area, position, stop, area.vm_flags | VM_SEALED)
            if isinstance(changed, int):
                return changed
            changed.vm_flags |= VM_SEALED
            area = changed
        prev = area
        position = stop
    return 0


def sys_mseal(mm: MmStruct, start: int, length: int, flags: int) -> int:
    """mseal(2): 0, -EINVAL, -ENOMEM (a hole, nothing is sealed; or out of memory)."""
    if not mm.machine.profile.mseal:
        return -ENOSYS
    size = page_align(length)
    if flags or start & ~PAGE_MASK:
        return -EINVAL
    if not size:
        return 0
    mm.mmap_lock.down_write()
    mm.machine.sched.point("mseal.locked")
    holes = range_contains_unmapped(mm, start, start + size)
    result = -ENOMEM if holes else mseal_apply(mm, start, start + size)
    mm.mmap_lock.up_write()
    return result
