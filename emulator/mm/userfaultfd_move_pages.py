"""UFFDIO_MOVE as a call: which VMAs it is about, and its way over tables and huge pages (mm/userfaultfd.c).

What becomes of single pages stands in ``userfaultfd_pages.py``. Addresses and lengths are bytes.
"""

from __future__ import annotations

from emulator.geometry import LEVEL_PMD, LEVEL_PTE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PFN_SHIFT, SPECIAL
from emulator.mm import (
    huge_memory,
    huge_memory_move,
    pgtable_generic,
    userfaultfd,
    userfaultfd_pages,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_SHARED,
    VM_WRITE,
    UserfaultfdCtx,
    VmAreaStruct,
)
from emulator.uapi import EAGAIN, EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM


def vma_move_compatible(area: VmAreaStruct) -> bool:
    return not area.vm_flags & (VM_PFNMAP | VM_IO | VM_HUGETLB | VM_MIXEDMAP)


def validate_move_areas(ctx: UserfaultfdCtx, src_vma: VmAreaStruct, dst_vma: VmAreaStruct) -> int:
    """Are the VMAs of one kind, writable, anonymous, and the destination registered? 0 or -EINVAL."""
    if (src_vma.vm_flags ^ dst_vma.vm_flags) & (VM_ACCESS_FLAGS | VM_LOCKED):
        return -EINVAL
    if not src_vma.vm_flags & VM_WRITE or dst_vma.uffd_ctx is not ctx:
        return -EINVAL
    if not vma_move_compatible(src_vma) or not vma_move_compatible(dst_vma):
        return -EINVAL
    anonymous = vma_ops.vma_is_anonymous(src_vma) and vma_ops.vma_is_anonymous(dst_vma)
    return 0 if anonymous else -EINVAL


def find_vmas(
    ctx: UserfaultfdCtx, dst: int, src: int, length: int
) -> tuple[VmAreaStruct, VmAreaStruct] | int:
    """The two VMAs, each of which holds a whole range: (destination, source), or -errno.

    The destination becomes faulted, whatever comes of the call.
    """
    dst_vma = userfaultfd.find_vma_and_prepare_anon(ctx.mm, dst)
    if isinstance(dst_vma, int):
        return dst_vma
    src_vma = ctx.mm.mm_mt.lookup(src)
    if src_vma is None:
        return -ENOENT
    if src_vma.vm_flags & VM_SHARED or src + length > src_vma.vm_end:
        return -EINVAL
    if dst_vma.vm_flags & VM_SHARED or dst + length > dst_vma.vm_end:
        return -EINVAL
    return validate_move_areas(ctx, src_vma, dst_vma) or (dst_vma, src_vma)


def move_step(
    dst_vma: VmAreaStruct, src_vma: VmAreaStruct, dst: int, src: int, end: int, holes: bool
) -> int:
    """Move what can be moved in one go from ``src``, at most up to ``end``: the bytes, -EAGAIN, or another errno."""
    mm = dst_vma.vm_mm
    src_pmd = pgtable_generic.find_table(mm, src, LEVEL_PMD)
    if src_pmd is None:
        if not holes:
            return -ENOENT
        src_pmd = pgtable_generic.alloc_table(mm, src, LEVEL_PMD)
    dst_pmd = pgtable_generic.alloc_table(mm, dst, LEVEL_PMD)
    if src_pmd is None or dst_pmd is None:
        return -ENOMEM
    dst_entry = dst_pmd.entries.get(pgtable_generic.slot_of(mm, dst, LEVEL_PMD), 0)
    if dst_entry and not isinstance(dst_entry, PageTable):
        return -EEXIST
    src_slot = pgtable_generic.slot_of(mm, src, LEVEL_PMD)
    entry = huge_memory.pmd_trans_huge_lock(src_pmd, src_slot)
    if entry:
        whole = not (src | dst) & ~mm.machine.geometry.pmd_mask and end - src >= mm.machine.geometry.pmd_size
        if whole and not dst_entry:
            return huge_memory_move.move_pages_huge_pmd(dst_vma, src_vma, dst_pmd, src_pmd, dst, src)
        exclusive = entry & SPECIAL or mm.machine.phys.frames[entry >> PFN_SHIFT].anon_exclusive & 1
        src_pmd.ptl.unlock()
        if not exclusive:
            return -EBUSY
        huge_memory.split_huge_pmd(src_vma, src_pmd, src_slot, src)
        return -EAGAIN
    if not src_pmd.entries.get(src_slot, 0) and not holes:
        return -ENOENT
    if pgtable_generic.alloc_table(mm, src, LEVEL_PTE) is None:
        return -EAGAIN if src_pmd.entries.get(src_slot, 0) else -ENOMEM
    if pgtable_generic.alloc_table(mm, dst, LEVEL_PTE) is None:
        return -EAGAIN if dst_pmd.entries.get(pgtable_generic.slot_of(mm, dst, LEVEL_PMD), 0) else -ENOMEM
    move = userfaultfd_pages.PageMove(dst_vma, src_vma, dst, src, end - src)
    return userfaultfd_pages.move_pages_ptes(move, holes)


def move_pages(ctx: UserfaultfdCtx, dst_start: int, src_start: int, length: int, holes: bool) -> int:
    """Move [src_start, +length) to ``dst_start``. The bytes moved, or the errno of the first page.

    Where the pages are not what they were a moment ago, they are looked at again.
    """
    mm = ctx.mm
    mm.mmap_lock.down_read()
    mm.machine.sched.point("uffd.locked")
    found = find_vmas(ctx, dst_start, src_start, length)
    moved = 0
    error = 0
    if isinstance(found, int):
        error = found
    else:
        while moved < length and not error:
            result = move_step(*found, dst_start + moved, src_start + moved, src_start + length, holes)
            if result > 0:
                moved += result
            elif result != -EAGAIN:
                error = result
    mm.mmap_lock.up_read()
    return moved or error
