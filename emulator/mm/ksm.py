"""Which VMAs offer their pages to the same-page scanner (mm/ksm.c).

The flag matters to merging of VMAs. The scanner itself does not run here: no page is ever shared by it.
"""

from __future__ import annotations

from emulator.mm_types import (
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_SHARED,
    VM_SPECIAL,
    MmStruct,
)
from emulator.uapi import EINVAL


def ksm_compatible(vm_flags: int) -> bool:
    return not vm_flags & (VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE)


def ksm_vma_flags(mm: MmStruct, vm_flags: int) -> int:
    """The flags of a new mapping: mergeable where the process has asked for that for all it maps."""
    if mm.merge_any and ksm_compatible(vm_flags):
        return vm_flags | VM_MERGEABLE
    return vm_flags


def ksm_enable_merge_any(mm: MmStruct) -> int:
    """All there is and all that comes becomes mergeable. VMAs do not merge now, they may later."""
    if not mm.merge_any:
        mm.merge_any = True
        for area in mm.mm_mt:
            area.vm_flags = ksm_vma_flags(mm, area.vm_flags)
    return 0


def ksm_disable_merge_any(mm: MmStruct) -> int:
    if mm.merge_any:
        mm.merge_any = False
        for area in mm.mm_mt:
            area.vm_flags &= ~VM_MERGEABLE
    return 0


def prctl_memory_merge(mm: MmStruct, enable: int, others: tuple[int, int, int]) -> int:
    """prctl(PR_SET_MEMORY_MERGE, enable, *others) (kernel/sys.c)."""
    if any(others) or not mm.machine.profile.ksm_per_process:
        return -EINVAL
    mm.mmap_lock.down_write()
    result = ksm_enable_merge_any(mm) if enable else ksm_disable_merge_any(mm)
    mm.mmap_lock.up_write()
    return result
