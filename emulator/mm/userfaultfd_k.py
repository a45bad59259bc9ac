"""What userfaultfd means for a VMA and its entries (include/linux/userfaultfd_k.h).

A header of the kernel, not a file of its mm/; everybody asks these questions.
"""

from __future__ import annotations

from emulator.hw.pte import UFFD_WP
from emulator.mm import vma as vma_ops
from emulator.mm_types import (
    VM_DROPPABLE,
    VM_UFFD_FLAGS,
    VM_UFFD_MINOR,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VmAreaStruct,
)
from emulator.uapi import UFFD_FEATURE_EVENT_REMAP, UFFD_FEATURE_WP_UNPOPULATED


def userfaultfd_missing(vma: VmAreaStruct) -> bool:
    """Are faults on pages that are not there told?"""
    return vma.vm_flags & VM_UFFD_MISSING != 0


def userfaultfd_wp(vma: VmAreaStruct) -> bool:
    """Are writes to protected pages told?"""
    return vma.vm_flags & VM_UFFD_WP != 0


def userfaultfd_pte_wp(vma: VmAreaStruct, pte: int) -> bool:
    """Is this entry protected, and the VMA still registered for that? (Left-over bits mean nothing.)"""
    return bool(vma.vm_flags & VM_UFFD_WP and pte & UFFD_WP)


def userfaultfd_armed(vma: VmAreaStruct) -> bool:
    """Is the VMA registered in any mode?"""
    return vma.vm_flags & VM_UFFD_FLAGS != 0


def vma_can_userfault(vma: VmAreaStruct, vm_flags: int) -> bool:
    """May the VMA be registered in the modes of ``vm_flags``? Anonymous memory only; MINOR needs a page cache."""
    return vma_ops.vma_is_anonymous(vma) and not (vm_flags & VM_UFFD_MINOR or vma.vm_flags & VM_DROPPABLE)


def vma_has_uffd_without_event_remap(vma: VmAreaStruct) -> bool:
    """Does the VMA lose its registration when it moves?"""
    ctx = vma.uffd_ctx
    return ctx is not None and not ctx.features & UFFD_FEATURE_EVENT_REMAP


def userfaultfd_wp_use_markers(vma: VmAreaStruct) -> bool:
    """Does write-protecting an empty entry leave a marker?"""
    ctx = vma.uffd_ctx
    return userfaultfd_wp(vma) and ctx is not None and bool(ctx.features & UFFD_FEATURE_WP_UNPOPULATED)
