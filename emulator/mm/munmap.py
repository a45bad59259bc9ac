"""Unmapping: the munmap half of mm/vma.c. The caller holds mmap_lock for write.

Linux lets faults elsewhere go on while a plain munmap frees pages (the lock is downgraded); here the lock is
held to the end: what the others could see is the same.
"""

from __future__ import annotations

from emulator.geometry import PAGE_MASK, page_align
from emulator.mm import memory_zap, mmap, rmap, sys, vma, vma_link, vma_modify
from emulator.mm_types import VM_ACCOUNT, VM_LOCKED, VM_SEALED, MmStruct, VmAreaStruct
from emulator.uapi import EINVAL, ENOMEM, EPERM


class VmaMunmapStruct:
    """struct vma_munmap_struct (vms): the VMAs that an unmap of [start, end) gathers, and what they count."""

    __slots__ = ("end", "mm", "next", "nr_accounted", "nr_pages", "prev", "start", "vmas")

    def __init__(self, mm: MmStruct, start: int, end: int) -> None:
        self.mm = mm
        self.start = start
        self.end = end
        self.vmas: list[VmAreaStruct] = []
        self.prev: VmAreaStruct | None = None
        self.next: VmAreaStruct | None = None
        self.nr_pages = 0
        self.nr_accounted = 0  # pages that are to be uncharged


def vms_gather_munmap_vmas(vms: VmaMunmapStruct) -> int:
    """Cut the first and last VMA at the edges and collect all in between.

    On failure nothing is unmapped, but a front split stays.
    """
    mm = vms.mm
    first = mm.mm_mt.find(vms.start)
    if first is not None and first.vm_start < vms.start:
        if vms.end < first.vm_end and mm.map_count >= sys.sysctl_max_map_count(mm):
            return -ENOMEM
        if first.vm_flags & VM_SEALED:
            return -EPERM
        error = vma_modify._split_vma(first, vms.start, True)
        if error:
            return error
    vmas = mm.mm_mt.overlapping(vms.start, vms.end)
    for area in vmas:
        if area.vm_flags & VM_SEALED:
            return -EPERM
        if area.vm_end > vms.end:
            error = vma_modify._split_vma(area, vms.end, False)
            if error:
                return error
        pages = vma.vma_pages(area)
        vms.nr_pages += pages
        if area.vm_flags & VM_ACCOUNT:
            vms.nr_accounted += pages
    vms.vmas = vmas
    vms.prev = mm.mm_mt.prev_of(vms.start)
    vms.next = mm.mm_mt.find(vms.end)
    return 0


def vms_clear_ptes(vms: VmaMunmapStruct) -> None:
    """Unmap the pages, take the VMAs out of the rmap, free page tables that nobody needs."""
    mm = vms.mm
    memory_zap.unmap_vmas(mm, vms.vmas, vms.start, vms.end)
    for area in vms.vmas:
        rmap.unlink_anon_vmas(area)
        vma_link.vma_unlink_file(area)
    floor = vms.prev.vm_end if vms.prev is not None else 0
    ceiling = vms.next.vm_start if vms.next is not None else mm.machine.geometry.task_size
    memory_zap.free_pgtables(mm, vms.start, vms.end, floor, ceiling)


def vms_detach(vms: VmaMunmapStruct) -> None:
    """Point of no return: the VMAs leave the tree."""
    mm = vms.mm
    for area in vms.vmas:
        mm.mm_mt.erase(area)
    mm.map_count -= len(vms.vmas)


def vms_account(vms: VmaMunmapStruct) -> None:
    """What was unmapped is counted and charged no longer."""
    mm = vms.mm
    for area in vms.vmas:
        pages = vma.vma_pages(area)
        mmap.vm_stat_account(mm, area.vm_flags, -pages)
        if area.vm_flags & VM_LOCKED:
            mm.locked_vm -= pages
    mm.machine.committed -= vms.nr_accounted


def do_munmap(mm: MmStruct, start: int, length: int) -> int:
    """Unmap [start, start+length) (bytes); nothing mapped there is fine."""
    task_size = mm.machine.geometry.task_size
    if start & ~PAGE_MASK or start > task_size or length > task_size - start:
        return -EINVAL
    end = start + page_align(length)
    if end == start:
        return -EINVAL
    if not mm.mm_mt.overlapping(start, end):
        return 0
    vms = VmaMunmapStruct(mm, start, end)
    error = vms_gather_munmap_vmas(vms)
    if error:
        return error
    if vma.vma_tree_fails(mm.machine, "vma_tree_store"):
        return -ENOMEM
    vms_detach(vms)
    vms_clear_ptes(vms)
    vms_account(vms)
    return 0


def sys_munmap(mm: MmStruct, start: int, length: int) -> int:
    """munmap(2)."""
    mm.mmap_lock.down_write()
    mm.machine.sched.point("munmap.locked")
    result = do_munmap(mm, start, length)
    mm.mmap_lock.up_write()
    return result
