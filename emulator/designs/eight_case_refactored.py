"""The vma_merge() of J. Matena's RFC 1/4: first it decides whether prev and next can merge, then it adjusts.

Source: "mm: refactor of vma_merge()", 18 February 2022, on 5.17-rc4. The RFC's other patches build on it. It must do
exactly what ``eight-case`` does. What the review asked for is not in it: booleans for the three numbers (L. Howlett),
one of which is needed in one place only.
"""

from __future__ import annotations

from emulator.designs.eight_case import (
    EightCase,
    area_and_next,
    can_vma_merge_after,
    can_vma_merge_before,
    is_mergeable_anon_vma,
    merge_into_next,
    told,
    vma_adjust,
)
from emulator.mm import vma
from emulator.mm_types import VM_SPECIAL, VmAreaStruct


def vma_merge(vmg: vma.VmaMergeStruct) -> VmAreaStruct | None:
    """As in ``eight-case``: the VMA that the range is part of then, or None."""
    if vmg.vm_flags & VM_SPECIAL:
        return None
    area, following = area_and_next(vmg)
    prev = vmg.prev if can_vma_merge_after(vmg) else None
    into_next = following if can_vma_merge_before(vmg, following) else None
    if prev is not None:
        merged, end = prev, vmg.end  # cases 2, 5, 7
        if into_next is not None and is_mergeable_anon_vma(prev.anon_vma, into_next.anon_vma, None):
            end = into_next.vm_end  # cases 1, 6
        error = vma_adjust(prev, prev.vm_start, end, prev.vm_pgoff, expand=prev)
    elif into_next is not None:  # cases 3, 4, 8
        merged = into_next
        error = merge_into_next(vmg, area, into_next)
    else:
        return None
    return None if error else merged


def vma_merge_existing_range(vmg: vma.VmaMergeStruct) -> VmAreaStruct | None:
    """Cases 4 to 8."""
    return told(vmg, vma_merge(vmg))


def vma_merge_new_range(vmg: vma.VmaMergeStruct) -> VmAreaStruct | None:
    """Cases 1 to 3."""
    return told(vmg, vma_merge(vmg))


class EightCaseRefactored(EightCase):
    """Decisions first."""

    name = "eight-case-refactored"
    summary = "vma_merge() of 5.17 as the 2022 RFC 1/4 rewrites it (for --profile 5.17)"
    source = "J. Matena, mm: refactor of vma_merge(), RFC PATCH 1/4, 18 February 2022"
    replaces = {
        "vma.vma_merge_existing_range": vma_merge_existing_range,
        "vma.vma_merge_new_range": vma_merge_new_range,
    }
