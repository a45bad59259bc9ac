"""Faulting ranges in ahead of their use: the populating half of mm/gup.c. Bytes."""

from __future__ import annotations

from emulator.geometry import PAGE_SIZE
from emulator.mm import fault, gup, memory, userfaultfd_k
from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_IO,
    VM_LOCKONFAULT,
    VM_PFNMAP,
    VM_SHARED,
    VM_WRITE,
    MmStruct,
    VmAreaStruct,
)
from emulator.uapi import EAGAIN, EFAULT, ENOMEM
from emulator.workload import FOLL_WRITE


def populate_vma_page_range(area: VmAreaStruct, start: int, end: int) -> int:
    """Fault [start, end) of one VMA in, breaking COW where it may be written. 0, -EFAULT or -ENOMEM.

    Stops at the first page that cannot be had. Under mmap_lock, for reading at least: a page that is being migrated
    is waited for with the lock held, as the migration does not need it.
    """
    if area.vm_flags & VM_LOCKONFAULT:
        return 0  # locked when somebody touches them
    if not area.vm_flags & VM_ACCESS_FLAGS:
        return -EFAULT
    flags = memory.FAULT_FLAG_WRITE if area.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE else 0
    mm = area.vm_mm
    for address in range(start, end, PAGE_SIZE):
        mm.machine.sched.point("populate.page")
        result = populate_page(area, address, flags)
        if result:
            return -ENOMEM if result & memory.VM_FAULT_OOM else -EFAULT
    return 0


def populate_page(area: VmAreaStruct, address: int, flags: int) -> int:
    """Fault one page in until it can be taken: 0 or VM_FAULT_*."""
    foll_flags = FOLL_WRITE if flags & memory.FAULT_FLAG_WRITE else 0
    while True:
        result = memory.handle_mm_fault(area, address, flags)
        if result & memory.VM_FAULT_RETRY:
            fault.wait_for_migration(area.vm_mm, address)
        elif result or not userfaultfd_k.userfaultfd_wp(area):
            return result
        elif gup.follow_page_mask(area, address, foll_flags) is not None:  # a page that came may be protected
            return 0


def _mm_populate(mm: MmStruct, start: int, length: int, ignore_errors: bool) -> int:
    """__mm_populate: every VMA in the range. With ``ignore_errors`` a failure only ends its own VMA."""
    result = 0
    if not length:
        return 0
    mm.mmap_lock.down_read()
    for area in mm.mm_mt.overlapping(start, start + length):
        if area.vm_flags & (VM_IO | VM_PFNMAP):
            continue
        error = populate_vma_page_range(area, max(start, area.vm_start), min(start + length, area.vm_end))
        if error and not ignore_errors:
            result = error
            break
    mm.mmap_lock.up_read()
    return result


def mm_populate(mm: MmStruct, start: int, length: int) -> None:
    """After a call that has succeeded already: errors are not told."""
    _mm_populate(mm, start, length, ignore_errors=True)


def mlock_posix_error_return(error: int) -> int:
    """What mlock(2) tells of a failure to populate."""
    return {-EFAULT: -ENOMEM, -ENOMEM: -EAGAIN}.get(error, error)
