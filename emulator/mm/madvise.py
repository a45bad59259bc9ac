"""madvise(2) (mm/madvise.c).

Advice about pages (DONTNEED, PAGEOUT, guard regions, ...) walks page tables under mmap_lock for reading; advice that is
kept in VMA flags takes it for writing and may split and merge VMAs.

MADV_COLD only splits large folios, as nothing here has an age.
Memory-failure injection is unknown here. Per-VMA locks are not modelled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from emulator.errors import KernelBug
from emulator.geometry import PAGE_MASK, PAGE_SHIFT, page_align
from emulator.mm import (
    gup,
    khugepaged,
    ksm,
    madvise_walk,
    memory_zap,
    mmu_gather,
    rmap,
    shmem,
    swap_state,
    truncate,
    vma,
    vma_modify,
)
from emulator.mm_types import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYBE_GUARD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_SEALED,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
    MmStruct,
    VmAreaStruct,
)
from emulator.uapi import (
    EACCES,
    EAGAIN,
    EBADF,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
)

ADDRESS_SPACE: Final = 1 << 64
MAX_MADVISE_GUARD_RETRIES: Final = 3
RESTARTS_MAX: Final = 64  # a bound on calls that begin anew and make no progress
ERESTARTNOINTR: Final = 513  # internal: drop the locks and run the call again

# Advice kept in flags of the VMA: (cleared, set).
VMA_FLAGS: Final = {
    MADV_NORMAL: (VM_RAND_READ | VM_SEQ_READ, 0),
    MADV_RANDOM: (VM_SEQ_READ, VM_RAND_READ),
    MADV_SEQUENTIAL: (VM_RAND_READ, VM_SEQ_READ),
    MADV_DONTFORK: (0, VM_DONTCOPY),
    MADV_DOFORK: (VM_DONTCOPY, 0),
    MADV_WIPEONFORK: (0, VM_WIPEONFORK),
    MADV_KEEPONFORK: (VM_WIPEONFORK, 0),
    MADV_DONTDUMP: (0, VM_DONTDUMP),
    MADV_DODUMP: (VM_DONTDUMP, 0),
    MADV_HUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
    MADV_NOHUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
}

POPULATES: Final = (MADV_POPULATE_READ, MADV_POPULATE_WRITE)
KSM_ADVICE: Final = (MADV_MERGEABLE, MADV_UNMERGEABLE)  # kept in flags too

# Advice that may throw data away: refused on sealed anonymous memory that cannot be written.
DISCARDS: Final = (
    MADV_FREE, MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_REMOVE, MADV_DONTFORK, MADV_WIPEONFORK, MADV_GUARD_INSTALL
)  # fmt: skip


# ---- one VMA


def madvise_pageout(area: VmAreaStruct, start: int, end: int, pageout: bool) -> int:
    if area.vm_flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB):
        return -EINVAL
    file = area.vm_file
    if pageout and file is not None and not file.writable and area.vm_flags & VM_MAYSHARE:
        return 0
    madvise_walk.ColdOrPageout(area, pageout).walk(start, end)
    return 0


def madvise_willneed(area: VmAreaStruct, start: int, end: int) -> None:
    """Bring what is swapped out into the swap cache; files are not read ahead."""
    if area.vm_file is None:
        swap_state.swapin_walk_range(area, start, end)
    elif area.vm_file.f_mapping.shmem:
        first = vma.linear_page_index(area, start)
        last = first + ((end - start) >> PAGE_SHIFT)
        shmem.shmem_swapin_range(area.vm_mm.machine, area.vm_file.f_mapping, first, last)


def madvise_dontneed_free(area: VmAreaStruct, start: int, end: int, advice: int) -> int:
    """Throw pages away or allow that (FREE). Locked memory: DONTNEED_LOCKED only; FREE: anonymous memory only."""
    if area.vm_flags & (VM_PFNMAP | VM_HUGETLB | (0 if advice == MADV_DONTNEED_LOCKED else VM_LOCKED)):
        return -EINVAL
    if advice != MADV_FREE:
        reclaim_pt = area.vm_mm.machine.profile.pt_reclaim
        memory_zap.zap_page_range_single(area, start, end - start, reclaim_pt=reclaim_pt)
        return 0
    if not vma.vma_is_anonymous(area):
        return -EINVAL
    gather = mmu_gather.MmuGather(area.vm_mm)
    madvise_walk.Free(area, gather).walk(start, end)
    mmu_gather.tlb_flush_mmu(gather)
    return 0


def madvise_remove(area: VmAreaStruct, start: int, end: int) -> int:
    """Punch a hole into the file. mmap_lock is dropped for that, unless an errno says that nothing was done."""
    if area.vm_flags & VM_LOCKED or area.vm_file is None:
        return -EINVAL
    if area.vm_flags & (VM_SHARED | VM_MAYWRITE) != VM_SHARED | VM_MAYWRITE:
        return -EACCES
    mm, file = area.vm_mm, area.vm_file
    first = vma.linear_page_index(area, start)
    file.f_count += 1  # its last mapping may go meanwhile
    mm.mmap_lock.up_read()
    mm.machine.sched.point("madvise.remove_unlocked")
    truncate.punch_hole(mm.machine, file.f_mapping, first, first + ((end - start) >> PAGE_SHIFT))
    file.f_count -= 1
    shmem.shmem_put_file(mm.machine, file)
    mm.mmap_lock.down_read()
    return 0


def is_valid_guard_vma(area: VmAreaStruct, allow_locked: bool) -> bool:
    return not area.vm_flags & (VM_SPECIAL | VM_HUGETLB | (0 if allow_locked else VM_LOCKED))


def prepare_guards(area: VmAreaStruct) -> int:
    """The VMA is to get guard markers, which fork must copy, and becomes faulted. 0 or -ENOMEM."""
    has_flag = area.vm_mm.machine.profile.vm_ignore_merge & VM_MAYBE_GUARD
    area.vm_flags |= has_flag
    # Kernels without the flag make file mappings faulted as well: fork copies page tables of faulted VMAs only.
    return rmap.anon_vma_prepare(area) if vma.vma_is_anonymous(area) or not has_flag else 0


def madvise_guard_install(area: VmAreaStruct, start: int, end: int) -> int:
    """Replace [start, end) by guard markers, on which every access faults."""
    mm = area.vm_mm
    if not is_valid_guard_vma(area, allow_locked=False):
        return -EINVAL
    error = prepare_guards(area)
    if error:
        return error
    for _ in range(MAX_MADVISE_GUARD_RETRIES):
        result = madvise_walk.install_guards(mm, start, end)
        if result != madvise_walk.POPULATED:
            return result
        mm.machine.sched.point("madvise.guard_zap")
        memory_zap.zap_page_range_single(area, start, end - start)
    return -ERESTARTNOINTR


def madvise_guard_remove(area: VmAreaStruct, start: int, end: int) -> int:
    if not is_valid_guard_vma(area, allow_locked=True):
        return -EINVAL
    madvise_walk.remove_guards(area.vm_mm, start, end)
    return 0


def madvise_update_name(
    prev: VmAreaStruct | None, area: VmAreaStruct, start: int, end: int, name: str | None
) -> VmAreaStruct | int:
    """Name part of one anonymous VMA: the VMA that holds it afterwards, or -errno (never -ENOMEM)."""
    shared = shmem.vma_is_anon_shmem(area) and area.vm_mm.machine.profile.anon_shmem_name
    if area.vm_file is not None and not shared:
        return -EBADF
    if area.anon_name == name:
        return area
    changed = vma_modify.vma_modify_name(prev, area, start, end, name)
    if isinstance(changed, int):
        return -EAGAIN if changed == -ENOMEM else changed
    changed.anon_name = name
    return changed


def madvise_update_vma(
    prev: VmAreaStruct | None, area: VmAreaStruct, start: int, end: int, advice: int
) -> VmAreaStruct | int:
    """Advice that is kept in VMA flags: the VMA that holds the range afterwards, or -errno (never -ENOMEM)."""
    flags = area.vm_flags
    if advice == MADV_DOFORK and flags & area.vm_mm.machine.profile.dofork_refused:
        return -EINVAL
    if advice == MADV_DODUMP and flags & VM_SPECIAL:
        return -EINVAL
    if advice in (MADV_KEEPONFORK, MADV_DODUMP) and flags & VM_DROPPABLE:
        return -EINVAL
    if advice == MADV_WIPEONFORK and (area.vm_file is not None or flags & VM_SHARED):
        return -EINVAL
    if advice in KSM_ADVICE:
        new_flags = ksm.ksm_madvise(area, start, end, advice, flags)
        if new_flags < 0:
            return -EAGAIN
    else:
        cleared, added = VMA_FLAGS[advice]
        new_flags = flags & ~cleared | added
    if new_flags == flags:
        return area
    changed = vma_modify.vma_modify_flags(prev, area, start, end, new_flags)
    if isinstance(changed, int):
        return -EAGAIN if changed == -ENOMEM else changed
    changed.vm_flags = new_flags | changed.vm_flags & area.vm_mm.machine.profile.vm_ignore_merge
    return changed


def can_madvise_modify(area: VmAreaStruct, advice: int) -> bool:
    """Sealed anonymous memory that cannot be written must keep its contents."""
    if not area.vm_flags & VM_SEALED or advice not in DISCARDS:
        return True
    return not vma.vma_is_anonymous(area) or bool(area.vm_flags & VM_WRITE)


def madvise_vma_behavior(
    prev: VmAreaStruct | None, area: VmAreaStruct, start: int, end: int, advice: int
) -> VmAreaStruct | int | None:
    """Apply the advice to the part [start, end) of one VMA. The VMA that holds it afterwards, or -errno.

    None: done, but mmap_lock was dropped meanwhile, and no VMA is known any more.
    """
    if not can_madvise_modify(area, advice):
        return -EPERM
    if advice in VMA_FLAGS or advice in KSM_ADVICE:
        return madvise_update_vma(prev, area, start, end, advice)
    if advice == MADV_COLLAPSE:
        error, lock_dropped = khugepaged.madvise_collapse(area, start, end)
        return error or (None if lock_dropped else area)
    if advice == MADV_REMOVE:
        return madvise_remove(area, start, end) or None
    if advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE):
        error = madvise_dontneed_free(area, start, end, advice)
    elif advice in (MADV_PAGEOUT, MADV_COLD):
        error = madvise_pageout(area, start, end, advice == MADV_PAGEOUT)
    elif advice == MADV_GUARD_INSTALL:
        error = madvise_guard_install(area, start, end)
    elif advice == MADV_GUARD_REMOVE:
        error = madvise_guard_remove(area, start, end)
    else:
        error = 0  # MADV_WILLNEED
        madvise_willneed(area, start, end)
    return error or area


# ---- the call


Visit = Callable[[VmAreaStruct | None, VmAreaStruct, int, int], VmAreaStruct | int | None]
"""What is done to a part of a VMA, given the VMA before it; the result as of ``madvise_vma_behavior``."""


def madvise_walk_vmas(mm: MmStruct, start: int, end: int, visit: Visit) -> int:
    """Every VMA in [start, end). A hole makes the result -ENOMEM, but not before the rest is done."""
    area = mm.mm_mt.find(start)
    prev = mm.mm_mt.prev_of(start)
    unmapped_error = 0
    while True:
        if area is None:
            return -ENOMEM
        if start < area.vm_start:
            unmapped_error = -ENOMEM
            start = area.vm_start
            if start >= end:
                return unmapped_error
        stop = min(area.vm_end, end)
        changed = visit(prev, area, start, stop)
        if isinstance(changed, int):
            return changed
        prev = changed
        start = stop if changed is None else changed.vm_end
        if start >= end:
            return unmapped_error
        area = mm.mm_mt.find(start)


def known_advice(mm: MmStruct, advice: int) -> bool:
    if advice in mm.machine.profile.advice_unknown:
        return False
    return advice in VMA_FLAGS or advice in KSM_ADVICE or advice in (
        MADV_REMOVE, MADV_WILLNEED, MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_COLD, MADV_PAGEOUT,
        MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, MADV_COLLAPSE,
    )  # fmt: skip


def madvise_populate(mm: MmStruct, start: int, end: int, write: bool) -> int:
    """Fault [start, end) in. The first error ends it; a hole is one, which older kernels report when they are done."""
    if mm.machine.profile.populate_ends_at_hole:
        return gup.faultin_page_range(mm, start, end, write)
    holes = 0
    while start < end:
        area = mm.mm_mt.find(start)
        if area is None or area.vm_start > start:
            holes = -ENOMEM
        if area is None or area.vm_start >= end:
            break
        stop = min(area.vm_end, end)
        error = gup.faultin_page_range(mm, max(start, area.vm_start), stop, write)
        if error:
            return error
        start = stop
    return holes


def madvise_set_anon_name(mm: MmStruct, start: int, length: int, name: str | None) -> int:
    """prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME): name anonymous memory; None takes the name away.

    -EINVAL: unaligned, or a kernel without names; -EBADF: a file's; -ENOMEM: a hole, the rest is done; -EAGAIN.
    """
    m = mm.machine
    size = page_align(length)
    if not m.profile.anon_vma_name or start & ~PAGE_MASK:
        return -EINVAL
    if name is not None and m.should_fail("anon_name_alloc"):
        return -ENOMEM
    if not size:
        return 0
    mm.mmap_lock.down_write()
    m.sched.point("madvise.locked")
    result = madvise_walk_vmas(
        mm, start, start + size, lambda prev, area, low, high: madvise_update_name(prev, area, low, high, name)
    )
    mm.mmap_lock.up_write()
    return result


def takes_write_lock(advice: int) -> bool:
    """get_lock_mode: what is kept in VMA flags is written under mmap_lock for writing."""
    return advice in VMA_FLAGS or advice in KSM_ADVICE


def madvise_lock(mm: MmStruct, advice: int) -> None:
    """Take mmap_lock as the advice wants it; populating takes it by itself."""
    if advice in POPULATES:
        return
    if takes_write_lock(advice):
        mm.mmap_lock.down_write()
    else:
        mm.mmap_lock.down_read()
    mm.machine.sched.point("madvise.locked")


def madvise_unlock(mm: MmStruct, advice: int) -> None:
    if advice in POPULATES:
        return
    if takes_write_lock(advice):
        mm.mmap_lock.up_write()
    else:
        mm.mmap_lock.up_read()


def madvise_do_behavior(mm: MmStruct, start: int, length: int, advice: int) -> int:
    """madvise of one range under ``madvise_lock``; as ``do_madvise``, or -ERESTARTNOINTR."""
    size = page_align(length)
    if not known_advice(mm, advice) or start & ~PAGE_MASK or start + size >= ADDRESS_SPACE:
        return -EINVAL
    if not size:
        return 0
    if advice in POPULATES:
        return madvise_populate(mm, start, start + size, advice == MADV_POPULATE_WRITE)
    return madvise_walk_vmas(
        mm, start, start + size, lambda prev, area, low, high: madvise_vma_behavior(prev, area, low, high, advice)
    )


def do_madvise(mm: MmStruct, start: int, length: int, advice: int) -> int:
    """madvise(2) on [start, start+length), bytes; the length is rounded up to pages. 0 or -errno.

    -EINVAL: unknown advice, unaligned start, wrong kind of VMA; -ENOMEM: holes, or out of memory in a walk;
    -EAGAIN: out of memory for VMAs; -EPERM: sealed; -EFAULT: populating past a file or a guard. What a collapse
    says stands in ``khugepaged.ERRNO``.
    """
    size = page_align(length)
    if not known_advice(mm, advice) or start & ~PAGE_MASK or start + size >= ADDRESS_SPACE:
        return -EINVAL
    if not size:
        return 0
    for _ in range(RESTARTS_MAX):
        madvise_lock(mm, advice)
        result = madvise_do_behavior(mm, start, length, advice)
        madvise_unlock(mm, advice)
        if result != -ERESTARTNOINTR:
            return result
    raise restarts_for_ever(mm, start)


def restarts_for_ever(mm: MmStruct, start: int) -> KernelBug:
    """A call is run again and again, and never comes further: it never returns."""
    return KernelBug("never-returns", "madvise begins anew again and again without progress", mm.mm_mt.find(start))
