"""Mainline with its own faults mended: what is left for the oracles to find is nothing.

Linux loses track of committed memory in five places, of locked memory in one and of a registration with userfaultfd in
one, and in two it tries for ever; ``docs/mainline-findings.md`` shows them with workloads and C programs. ``mainline``
does as Linux does and reports them. This design mends each in a few lines, as a patch to Linux would, so that a
campaign on it says two things: the mends are right, and nothing else is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from emulator.designs.base import Design
from emulator.fs_types import File
from emulator.geometry import PAGE_SHIFT
from emulator.hw.pte import is_uffd_wp_marker
from emulator.mm import memory, memory_file, mremap, munmap, userfaultfd, userfaultfd_k, vma
from emulator.mm_types import VM_ACCOUNT, VM_LOCKED, MmStruct, VmAreaStruct
from emulator.uapi import MREMAP_DONTUNMAP

Original = Callable[..., Any]  # what mainline does


def vrm_calc_charge(original: Original, vrm: mremap.VmaRemapStruct) -> bool:
    """A shrinking move adds nothing: its tail has been unmapped and uncharged by now."""
    if vrm.remap_type == mremap.MREMAP_SHRINK:
        return True
    charged: bool = original(vrm)
    return charged


def move_back(
    original: Original, vrm: mremap.VmaRemapStruct, source: VmAreaStruct, new: VmAreaStruct, moved: int
) -> None:
    """A growing move that failed gives the charge for the growth back.

    The destination is unmapped with its accounting hidden, so nobody else does. (With DONTUNMAP it is not hidden.)
    """
    original(vrm, source, new, moved)
    if source.vm_flags & VM_ACCOUNT and not vrm.flags & MREMAP_DONTUNMAP:
        vrm.mm.machine.committed -= vrm.charged


def unmap_source_vma(original: Original, vrm: mremap.VmaRemapStruct) -> None:
    """When the source cannot be cut and stays mapped, it stays accountable, and is charged once more only if it is."""
    mm, source = vrm.mm, vrm.source()
    addr, end = vrm.addr, vrm.addr + vrm.old_len
    old_start, old_end = source.vm_start, source.vm_end
    accountable = bool(source.vm_flags & VM_ACCOUNT) and not vrm.flags & MREMAP_DONTUNMAP
    original(vrm)
    if not mm.mm_mt.overlapping(addr, end):
        return
    if not accountable:
        mm.machine.committed -= (end - addr) >> PAGE_SHIFT
        return
    for piece in mm.mm_mt.overlapping(old_start, old_end):
        piece.vm_flags |= VM_ACCOUNT


def dontunmap_complete(original: Original, vrm: mremap.VmaRemapStruct, new: VmAreaStruct) -> None:
    """The VMA that stays is not locked any more, all of it: its pages, and no others, count as locked no longer."""
    source = vrm.source()
    locked = vrm.mm.locked_vm - (vma.vma_pages(source) if source.vm_flags & VM_LOCKED else 0)
    original(vrm, new)
    vrm.mm.locked_vm = locked


def grow_downwards(original: Original, area: VmAreaStruct, address: int) -> int:
    """A stack that is not accountable is not charged for its growth: nobody would give that back."""
    start = area.vm_start
    error: int = original(area, address)
    if not error and not area.vm_flags & VM_ACCOUNT:
        area.vm_mm.machine.committed -= (start - address) >> PAGE_SHIFT
    return error


def mmap_new_area(
    original: Original,
    mm: MmStruct,
    vms: munmap.VmaMunmapStruct,
    file: File | None,
    vm_flags: int,
    pgoff: int,
) -> VmAreaStruct | None:
    """A mapping that fails after it took over the charge of what it replaces gives that back too."""
    area: VmAreaStruct | None = original(mm, vms, file, vm_flags, pgoff)
    if area is None and vm_flags & VM_ACCOUNT:
        replaced = [old for old in vms.vmas if old.vm_flags & VM_ACCOUNT]
        mm.machine.committed -= sum(vma.vma_pages(old) for old in replaced)
    return area


def copy_vma(
    original: Original, source: VmAreaStruct, addr: int, length: int, pgoff: int
) -> tuple[VmAreaStruct, VmAreaStruct, bool] | None:
    """A VMA that loses its userfaultfd in the move is without it before it looks for neighbours to merge with."""
    if not userfaultfd_k.vma_has_uffd_without_event_remap(source):
        copied: tuple[VmAreaStruct, VmAreaStruct, bool] | None = original(source, addr, length, pgoff)
        return copied
    plain = copy(source)
    userfaultfd.userfaultfd_reset_ctx(plain)
    copied = original(plain, addr, length, pgoff)
    return None if copied is None else (source, *copied[1:])


def do_fault(original: Original, vmf: memory.VmFault) -> int:
    """What is to be unshared is copied at once, as for a write: a file's huge page would only be mapped again."""
    if vmf.flags & memory.FAULT_FLAG_UNSHARE and vmf.vma.vm_file is not None:
        result: int = memory_file.do_cow_fault(vmf)
        return result
    handled: int = original(vmf)
    return handled


def guard_install_pte_entry(original: Original, entry: int) -> bool:
    """A guard region replaces a marker of userfaultfd, which no zap of a file's pages would clear."""
    in_the_way: bool = original(entry)
    return in_the_way and not is_uffd_wp_marker(entry)


class MainlineFixed(Design):
    """The control of every campaign on mainline."""

    name = "mainline-fixed"
    summary = "mainline, its known faults mended"
    source = "docs/mainline-findings.md"
    mends = "mainline"
    replaces = {
        "mremap.vrm_calc_charge": vrm_calc_charge,
        "mremap.move_back": move_back,
        "mremap.unmap_source_vma": unmap_source_vma,
        "mremap.dontunmap_complete": dontunmap_complete,
        "mmap.mmap_new_area": mmap_new_area,
        "brk.grow_downwards": grow_downwards,
        "vma_link.copy_vma": copy_vma,
        "memory_file.do_fault": do_fault,
        "madvise_walk.guard_install_pte_entry": guard_install_pte_entry,
    }
