"""Sharing a neighbour's anon_vma at the first write fault, as it was first posted, on today's anon_vmas.

Source: H. Dickins, "[PATCH] rmap 40 better anon_vma sharing", 18 May 2004. A VMA that becomes faulted takes the
anon_vma of the next VMA, or else of the one before it, if the two could be merged after an mprotect: so that they can.

Linux does so to this day, with differences that are taken back here. A VMA had one anon_vma then, and whether a
neighbour's pages may be a parent's too was no question; since 2.6.34 a VMA has a chain of them, and a neighbour is
asked only if its anon_vma is all of its chain. A neighbour with a close() hook was left alone, which Linux does not
look at any more. And there were no flags that a merge ignores.

Left open by 22 years: what to do with the rest of the chain. Chosen here: what the patch says, nothing.
"""

from __future__ import annotations

from emulator.designs.base import Design
from emulator.mm import vma
from emulator.mm_types import VM_ACCESS_FLAGS, VmAreaStruct
from emulator.rmap_types import AnonVma


def is_shareable(area: VmAreaStruct, near: VmAreaStruct) -> bool:
    """Could ``area`` merge with its neighbour if the permissions were the same?"""
    return (
        near.anon_vma is not None
        and near.vm_policy == area.vm_policy
        and near.vm_file is area.vm_file
        and not (near.vm_flags ^ area.vm_flags) & ~VM_ACCESS_FLAGS
        and not vma.has_close(near)
    )


def find_mergeable_anon_vma(area: VmAreaStruct) -> AnonVma | None:
    """The anon_vma of the next VMA, else of the one before, if page offsets and all else but permissions fit."""
    following = vma.vma_next(area)
    if (
        following is not None
        and area.vm_end == following.vm_start
        and following.vm_pgoff == area.vm_pgoff + vma.vma_pages(area)
        and is_shareable(area, following)
    ):
        return following.anon_vma
    prev = vma.vma_prev(area)
    if (
        prev is not None
        and prev.vm_end == area.vm_start
        and area.vm_pgoff == prev.vm_pgoff + vma.vma_pages(prev)
        and is_shareable(area, prev)
    ):
        return prev.anon_vma
    return None


class AnonVmaSharing2004(Design):
    """Share any mergeable neighbour's anon_vma at the first write fault."""

    name = "anon-vma-sharing-2004"
    summary = "rmap 40 of 2004: share a neighbour's anon_vma at the first write fault, a fork child's too"
    source = "H. Dickins, [PATCH] rmap 40 better anon_vma sharing, 18 May 2004"
    replaces = {"vma.find_mergeable_anon_vma": find_mergeable_anon_vma}
