"""What userfaultfd means for a VMA and its entries (include/linux/userfaultfd_k.h, mm_inline.h).

Headers of the kernel, not files of its mm/; everybody asks these questions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.hw.pte import MARKER_UFFD_WP, SOFTLEAF_MARKER, UFFD_WP, is_uffd_wp_marker, mk_softleaf
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

if TYPE_CHECKING:
    from emulator.hw.pgtable import PageTable


def vma_is_shmem(vma: VmAreaStruct) -> bool:
    """Is it a mapping, shared or private, of a file of memory (include/linux/shmem_fs.h)?"""
    return vma.vm_file is not None and vma.vm_file.f_mapping.shmem


def userfaultfd_missing(vma: VmAreaStruct) -> bool:
    """Are faults on pages that are not there told?"""
    return vma.vm_flags & VM_UFFD_MISSING != 0


def userfaultfd_wp(vma: VmAreaStruct) -> bool:
    """Are writes to protected pages told?"""
    return vma.vm_flags & VM_UFFD_WP != 0


def userfaultfd_minor(vma: VmAreaStruct) -> bool:
    """Are faults on pages told that the file has, and the page table has not?"""
    return vma.vm_flags & VM_UFFD_MINOR != 0


def userfaultfd_pte_wp(vma: VmAreaStruct, pte: int) -> bool:
    """Is this entry protected, and the VMA still registered for that? (Left-over bits mean nothing.)"""
    return bool(vma.vm_flags & VM_UFFD_WP and pte & UFFD_WP)


def userfaultfd_armed(vma: VmAreaStruct) -> bool:
    """Is the VMA registered in any mode?"""
    return vma.vm_flags & VM_UFFD_FLAGS != 0


def uffd_disable_fault_around(vma: VmAreaStruct) -> bool:
    """Must pages be mapped one by one, as somebody wants to hear of each, or has protected some?"""
    return vma.vm_flags & (VM_UFFD_WP | VM_UFFD_MINOR) != 0


def vma_can_userfault(vma: VmAreaStruct, vm_flags: int) -> bool:
    """May the VMA be registered in the modes of ``vm_flags``? Only memory may, and for MINOR only files of it."""
    if vma.vm_flags & VM_DROPPABLE:
        return False
    return vma_is_shmem(vma) or (vma_ops.vma_is_anonymous(vma) and not vm_flags & VM_UFFD_MINOR)


def vma_has_uffd_without_event_remap(vma: VmAreaStruct) -> bool:
    """Does the VMA lose its registration when it moves?"""
    ctx = vma.uffd_ctx
    return ctx is not None and not ctx.features & UFFD_FEATURE_EVENT_REMAP


def userfaultfd_wp_use_markers(vma: VmAreaStruct) -> bool:
    """Does write-protecting an empty entry leave a marker? With files always: something may be there all the same."""
    ctx = vma.uffd_ctx
    if not userfaultfd_wp(vma) or ctx is None:
        return False
    return not vma_ops.vma_is_anonymous(vma) or bool(ctx.features & UFFD_FEATURE_WP_UNPOPULATED)


def pte_install_uffd_wp_if_needed(vma: VmAreaStruct, table: PageTable, slot: int, entry: int) -> None:
    """What a file mapping had in the slot, which is empty now, was ``entry``: a marker remembers its protection.

    The lock of the table is held.
    """
    if vma_ops.vma_is_anonymous(vma) or not userfaultfd_wp(vma):
        return
    if entry & UFFD_WP or is_uffd_wp_marker(entry):
        table.set(slot, mk_softleaf(SOFTLEAF_MARKER, MARKER_UFFD_WP))
