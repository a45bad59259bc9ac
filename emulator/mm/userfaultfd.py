"""Write-protecting and registering: what userfaultfd does to VMAs and to entries that are there (mm/userfaultfd.c).

mm/userfaultfd.c is cut by concept: filling empty pages stands in ``userfaultfd_fill.py``, moving pages in
``userfaultfd_move_pages.py``; contexts and the checks of the ioctls in ``fs_userfaultfd.py``. Addresses and lengths are
bytes. Where Linux may take a VMA's own lock, mmap_lock is held for reading.
"""

from __future__ import annotations

from emulator.mm import (
    mprotect,
    rmap,
    userfaultfd_k,
    vma_modify,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import (
    VM_SHARED,
    VM_UFFD_FLAGS,
    MmStruct,
    UserfaultfdCtx,
    VmAreaStruct,
)
from emulator.uapi import ENOENT, ENOMEM

# ---- finding VMAs


def find_vma_and_prepare_anon(mm: MmStruct, addr: int) -> VmAreaStruct | int:
    """The VMA at ``addr``, which becomes faulted, whatever it is used for then. -ENOENT, -ENOMEM."""
    area = mm.mm_mt.lookup(addr)
    if area is None:
        return -ENOENT
    if not area.vm_flags & VM_SHARED and rmap.anon_vma_prepare(area):
        return -ENOMEM
    return area


def uffd_mfill_lock(mm: MmStruct, start: int, length: int) -> VmAreaStruct | int:
    """Lock the one registered VMA that holds the whole destination. With an error nothing is locked."""
    mm.mmap_lock.down_read()
    mm.machine.sched.point("uffd.locked")
    area = find_vma_and_prepare_anon(mm, start)
    if not isinstance(area, int) and (start + length > area.vm_end or area.uffd_ctx is None):
        area = -ENOENT
    if isinstance(area, int):
        mm.mmap_lock.up_read()
    return area


# ---- write protection


def uffd_wp_range(area: VmAreaStruct, start: int, length: int, enable_wp: bool) -> int:
    """Protect what is mapped in part of a VMA, or allow writes again. 0 or -ENOMEM (no table for markers)."""
    if enable_wp:
        flags = mprotect.MM_CP_UFFD_WP
    else:
        flags = mprotect.MM_CP_UFFD_WP_RESOLVE
        if mprotect.vma_wants_manual_pte_write_upgrade(area):
            flags |= mprotect.MM_CP_TRY_CHANGE_WRITABLE
    return mprotect.change_protection(area, start, start + length, flags)


def mwriteprotect_range(ctx: UserfaultfdCtx, start: int, length: int, enable_wp: bool) -> int:
    """Every VMA in the range, holes left out. -ENOENT at the first one that is not registered for it, or for none."""
    mm = ctx.mm
    mm.mmap_lock.down_read()
    mm.machine.sched.point("uffd.locked")
    end = start + length
    error = -ENOENT
    for area in mm.mm_mt.overlapping(start, end):
        if not userfaultfd_k.userfaultfd_wp(area):
            error = -ENOENT
            break
        first, last = max(area.vm_start, start), min(area.vm_end, end)
        error = uffd_wp_range(area, first, last - first, enable_wp)
        if error:
            break
    mm.mmap_lock.up_read()
    return error


# ---- registering VMAs


def userfaultfd_set_ctx(area: VmAreaStruct, ctx: UserfaultfdCtx | None, vm_flags: int) -> None:
    """Register a VMA in the modes of ``vm_flags``, and no other."""
    area.uffd_ctx = ctx
    area.vm_flags = area.vm_flags & ~VM_UFFD_FLAGS | vm_flags


def userfaultfd_reset_ctx(area: VmAreaStruct) -> None:
    """The VMA is registered no longer. What is protected in its page tables stays so, without meaning."""
    userfaultfd_set_ctx(area, None, 0)


def userfaultfd_clear_vma(
    prev: VmAreaStruct | None, area: VmAreaStruct, start: int, end: int
) -> VmAreaStruct | int:
    """End the registration of [start, end) of one VMA: the VMA that holds it afterwards, or -ENOMEM."""
    if userfaultfd_k.userfaultfd_wp(area):
        uffd_wp_range(area, start, end - start, False)
    whole = start == area.vm_start and end == area.vm_end
    changed = vma_modify.vma_modify_flags_uffd(
        prev, area, start, end, area.vm_flags & ~VM_UFFD_FLAGS, None, give_up_on_oom=whole
    )
    if not isinstance(changed, int):
        userfaultfd_reset_ctx(changed)
    return changed


def userfaultfd_register_range(
    ctx: UserfaultfdCtx, area: VmAreaStruct, vm_flags: int, start: int, end: int
) -> int:
    """Register every VMA from ``area`` on in [start, end). mmap_lock is held for writing. 0 or -ENOMEM."""
    mm = ctx.mm
    prev = area if area.vm_start < start else vma_ops.vma_prev(area)
    following: VmAreaStruct | None = area
    while following is not None and following.vm_start < end:
        if following.uffd_ctx is not ctx or following.vm_flags & vm_flags != vm_flags:
            start = max(start, following.vm_start)
            new_flags = following.vm_flags & ~VM_UFFD_FLAGS | vm_flags
            changed = vma_modify.vma_modify_flags_uffd(
                prev, following, start, min(end, following.vm_end), new_flags, ctx, give_up_on_oom=False
            )
            if isinstance(changed, int):
                return changed
            userfaultfd_set_ctx(changed, ctx, vm_flags)
            following = changed
        prev = following
        start = following.vm_end
        following = mm.mm_mt.find(start)
    return 0


def userfaultfd_release_all(mm: MmStruct, ctx: UserfaultfdCtx) -> None:
    """The context is closed: no VMA is registered with it any more."""
    mm.mmap_lock.down_write()
    mm.machine.sched.point("uffd.locked")
    prev: VmAreaStruct | None = None
    area = mm.mm_mt.find(0)
    while area is not None:
        if area.uffd_ctx is ctx:
            changed = userfaultfd_clear_vma(prev, area, area.vm_start, area.vm_end)
            assert not isinstance(changed, int)  # a whole VMA needs no split
            area = changed
        prev = area
        area = mm.mm_mt.find(area.vm_end)
    mm.mmap_lock.up_write()
