"""Contexts of userfaultfd, their ioctls, and what a fault that they are told of ends with (fs/userfaultfd.c).

Not a file of the kernel's mm/, but part of the image; what the ioctls do to VMAs and pages stands in
``userfaultfd.py`` and its parts.

Nobody waits for a fault here: every context has UFFD_FEATURE_SIGBUS, so an access that would have to be served by
somebody else ends with SIGBUS, and GUP with -EFAULT. Events (fork, mremap) count as read the moment they are sent, so
``mmap_changing`` and its -EAGAIN are never seen. A process has one context at most, which the first call makes.
There is no UFFD_FEATURE_WP_ASYNC.

Addresses and lengths are bytes. The calls that fill or move pages give the bytes done, as the ioctl writes them back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from emulator.geometry import PAGE_MASK
from emulator.mm import memory, userfaultfd, userfaultfd_fill, userfaultfd_k, userfaultfd_move_pages, vma
from emulator.mm_types import (
    VM_MAYWRITE,
    VM_UFFD_FLAGS,
    VM_UFFD_MINOR,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    MmStruct,
    UserfaultfdCtx,
    VmAreaStruct,
)
from emulator.uapi import (
    EBADF,
    EBUSY,
    EINVAL,
    ENOMEM,
    EPERM,
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
    UFFD_FEATURE_MOVE,
    UFFD_FEATURE_POISON,
    UFFD_FEATURE_SIGBUS,
    UFFD_FEATURE_WP_UNPOPULATED,
    UFFDIO_CONTINUE_MODE_DONTWAKE,
    UFFDIO_CONTINUE_MODE_WP,
    UFFDIO_COPY_MODE_DONTWAKE,
    UFFDIO_COPY_MODE_WP,
    UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
    UFFDIO_MOVE_MODE_DONTWAKE,
    UFFDIO_REGISTER_MODE_MINOR,
    UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP,
    UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
    UFFDIO_WRITEPROTECT_MODE_WP,
)

FEATURES_ALWAYS: Final = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_POISON | UFFD_FEATURE_MOVE
FEATURES_OPTIONAL: Final = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_WP_UNPOPULATED

VM_FLAGS_OF_MODE: Final = {
    UFFDIO_REGISTER_MODE_MISSING: VM_UFFD_MISSING,
    UFFDIO_REGISTER_MODE_WP: VM_UFFD_WP,
    UFFDIO_REGISTER_MODE_MINOR: VM_UFFD_MINOR,
}


# ---- contexts


def new_userfaultfd(mm: MmStruct, features: int) -> int:
    """userfaultfd(2) and UFFDIO_API. -EBUSY: the process has a context; -EINVAL: unknown features; -ENOMEM."""
    if mm.userfaultfd is not None:
        return -EBUSY
    if features & ~(FEATURES_ALWAYS | FEATURES_OPTIONAL):
        return -EINVAL
    if mm.machine.should_fail("userfaultfd_ctx_alloc"):
        return -ENOMEM
    mm.userfaultfd = UserfaultfdCtx(mm, features | FEATURES_ALWAYS)
    return 0


def context(mm: MmStruct) -> UserfaultfdCtx | int:
    """The context of the process, made if it has none; -ENOMEM."""
    if mm.userfaultfd is None:
        error = new_userfaultfd(mm, 0)
        if error:
            return error
    assert mm.userfaultfd is not None
    return mm.userfaultfd


def userfaultfd_ioctl(mm: MmStruct, call: Callable[..., int], *args: int) -> int:
    """``call`` with the context of the process, made if it has none, and ``args``. It stays until the call is done."""
    ctx = context(mm)
    if isinstance(ctx, int):
        return ctx
    ctx.references += 1
    mm.machine.sched.point("uffd.file_held")
    result = call(ctx, *args)
    fput(ctx)
    return result


def close(mm: MmStruct) -> int:
    """close(2) of the file: the process may open another. -EBADF: it has none."""
    ctx = mm.userfaultfd
    if ctx is None:
        return -EBADF
    mm.userfaultfd = None
    fput(ctx)
    return 0


def fput(ctx: UserfaultfdCtx) -> None:
    """One use of the file less. With the last, what is registered is so no longer (userfaultfd_release)."""
    ctx.references -= 1
    if not ctx.references:
        userfaultfd.userfaultfd_release_all(ctx.mm, ctx)


def handle_userfault(vmf: memory.VmFault) -> int:
    """A fault in a registered VMA that its context is told of. No page-table lock is held."""
    vmf.m.sched.point("uffd.fault")
    return memory.VM_FAULT_SIGBUS


# ---- what becomes of contexts in fork and mremap


def dup_userfaultfd(area: VmAreaStruct, parent: UserfaultfdCtx | None) -> int:
    """fork: ``area``, a child's copy, keeps its registration with EVENT_FORK only, and by a context of the child's own.

    -ENOMEM. ``parent`` is the context of the original.
    """
    if parent is None:
        return 0
    if not parent.features & UFFD_FEATURE_EVENT_FORK:
        userfaultfd.userfaultfd_reset_ctx(area)
        return 0
    mm = area.vm_mm
    if mm.userfaultfd is None:
        if mm.machine.should_fail("userfaultfd_ctx_alloc"):
            return -ENOMEM
        mm.userfaultfd = UserfaultfdCtx(mm, parent.features)
    area.uffd_ctx = mm.userfaultfd
    return 0


def mremap_userfaultfd_prep(area: VmAreaStruct) -> None:
    """mremap: ``area``, where the memory is now, stays registered with EVENT_REMAP only.

    All of the VMA: when it has merged with a neighbour that was registered too, that one is not any more either. So
    does Linux 6.18; ``docs/mainline-findings.md`` has it.
    """
    if userfaultfd_k.vma_has_uffd_without_event_remap(area):
        userfaultfd.userfaultfd_reset_ctx(area)


# ---- ioctls


def validate_unaligned_range(mm: MmStruct, start: int, length: int) -> int:
    """0 or -EINVAL: not whole pages, empty, or not in user space."""
    m = mm.machine
    if length & ~PAGE_MASK or length <= 0 or start < m.profile.mmap_min_addr:
        return -EINVAL
    return -EINVAL if start + length > m.geometry.task_size else 0


def validate_range(mm: MmStruct, start: int, length: int) -> int:
    """As ``validate_unaligned_range``; the start has to be aligned too."""
    return -EINVAL if start & ~PAGE_MASK else validate_unaligned_range(mm, start, length)


def register_flags(mode: int) -> int:
    """The VM flags that UFFDIO_REGISTER_MODE_* bits stand for; 0 where they are not allowed."""
    known = sum(VM_FLAGS_OF_MODE)
    if mode & ~known:
        return 0
    return sum(flag for bit, flag in VM_FLAGS_OF_MODE.items() if mode & bit)


def check_register(ctx: UserfaultfdCtx, areas: list[VmAreaStruct], vm_flags: int) -> int:
    """May all these VMAs be registered with ``ctx``? 0 or -errno. Holes between them do not matter."""
    if not areas:
        return -EINVAL
    for area in areas:
        if not userfaultfd_k.vma_can_userfault(area, vm_flags):
            return -EINVAL
        if not area.vm_flags & VM_MAYWRITE:
            return -EPERM
        if area.uffd_ctx is not None and area.uffd_ctx is not ctx:
            return -EBUSY
    return 0


def userfaultfd_register(ctx: UserfaultfdCtx, start: int, length: int, mode: int) -> int:
    """UFFDIO_REGISTER of every VMA in the range, in the modes UFFDIO_REGISTER_MODE_*.

    A VMA that has other modes loses them, but for one that has all of the wanted ones already.
    """
    mm = ctx.mm
    vm_flags = register_flags(mode)
    if not vm_flags:
        return -EINVAL
    error = validate_range(mm, start, length)
    if error:
        return error
    mm.mmap_lock.down_write()
    mm.machine.sched.point("uffd.locked")
    areas = mm.mm_mt.overlapping(start, start + length)
    error = check_register(ctx, areas, vm_flags)
    if not error:
        error = userfaultfd.userfaultfd_register_range(ctx, areas[0], vm_flags, start, start + length)
    mm.mmap_lock.up_write()
    return error


def userfaultfd_unregister(ctx: UserfaultfdCtx, start: int, length: int) -> int:
    """UFFDIO_UNREGISTER: every VMA in the range is registered no longer, and none of its pages protected."""
    mm = ctx.mm
    error = validate_range(mm, start, length)
    if error:
        return error
    mm.mmap_lock.down_write()
    mm.machine.sched.point("uffd.locked")
    error = unregister_areas(ctx, start, start + length)
    mm.mmap_lock.up_write()
    return error


def unregister_areas(ctx: UserfaultfdCtx, start: int, end: int) -> int:
    """The work of ``userfaultfd_unregister`` under the lock. An error leaves the VMAs before it done."""
    mm = ctx.mm
    areas = mm.mm_mt.overlapping(start, end)
    if not areas:
        return -EINVAL
    for area in areas:
        if area.uffd_ctx is not None and area.uffd_ctx is not ctx:
            return -EINVAL
        if not userfaultfd_k.vma_can_userfault(area, area.vm_flags & VM_UFFD_FLAGS):
            return -EINVAL
    following: VmAreaStruct | None = areas[0]
    prev = areas[0] if areas[0].vm_start < start else vma.vma_prev(areas[0])
    while following is not None and following.vm_start < end:
        if following.uffd_ctx is not None:
            start = max(start, following.vm_start)
            stop = min(end, following.vm_end)
            cleared = userfaultfd.userfaultfd_clear_vma(prev, following, start, stop)
            if isinstance(cleared, int):
                return cleared
            following = cleared
        prev = following
        start = following.vm_end
        following = mm.mm_mt.find(start)
    return 0


def userfaultfd_copy(ctx: UserfaultfdCtx, dst: int, src: int, length: int, mode: int) -> int:
    """UFFDIO_COPY: fill empty pages of one registered VMA with copies of the pages at ``src``.

    UFFDIO_COPY_MODE_WP: protected at once. The bytes filled, or the errno of the first page.
    """
    error = validate_unaligned_range(ctx.mm, src, length) or validate_range(ctx.mm, dst, length)
    if error:
        return error
    if mode & ~(UFFDIO_COPY_MODE_DONTWAKE | UFFDIO_COPY_MODE_WP):
        return -EINVAL
    return userfaultfd_fill.mfill_atomic_copy(ctx, dst, src, length, bool(mode & UFFDIO_COPY_MODE_WP))


def userfaultfd_zeropage(ctx: UserfaultfdCtx, start: int, length: int) -> int:
    """UFFDIO_ZEROPAGE: zeros in empty pages of one registered VMA: the zero page, or in a shared mapping pages.

    Result as ``userfaultfd_copy``.
    """
    return validate_range(ctx.mm, start, length) or userfaultfd_fill.mfill_atomic_zeropage(ctx, start, length)


def userfaultfd_continue(ctx: UserfaultfdCtx, start: int, length: int, mode: int) -> int:
    """UFFDIO_CONTINUE: map what a file of memory has in empty pages of one registered VMA.

    UFFDIO_CONTINUE_MODE_WP: protected at once. Result as ``userfaultfd_copy``.
    """
    error = validate_range(ctx.mm, start, length)
    if error:
        return error
    if mode & ~(UFFDIO_CONTINUE_MODE_DONTWAKE | UFFDIO_CONTINUE_MODE_WP):
        return -EINVAL
    return userfaultfd_fill.mfill_atomic_continue(ctx, start, length, bool(mode & UFFDIO_CONTINUE_MODE_WP))


def userfaultfd_poison(ctx: UserfaultfdCtx, start: int, length: int) -> int:
    """UFFDIO_POISON: let every access to empty pages of one registered VMA fail. Result as ``userfaultfd_copy``."""
    return validate_range(ctx.mm, start, length) or userfaultfd_fill.mfill_atomic_poison(ctx, start, length)


def userfaultfd_writeprotect(ctx: UserfaultfdCtx, start: int, length: int, mode: int) -> int:
    """UFFDIO_WRITEPROTECT: protect what is mapped in the range (UFFDIO_WRITEPROTECT_MODE_WP), or allow writes again."""
    error = validate_range(ctx.mm, start, length)
    if error:
        return error
    known = UFFDIO_WRITEPROTECT_MODE_WP | UFFDIO_WRITEPROTECT_MODE_DONTWAKE
    if mode & ~known or mode == known:
        return -EINVAL
    return userfaultfd.mwriteprotect_range(ctx, start, length, bool(mode & UFFDIO_WRITEPROTECT_MODE_WP))


def userfaultfd_move(ctx: UserfaultfdCtx, dst: int, src: int, length: int, mode: int) -> int:
    """UFFDIO_MOVE: move pages to empty places of a registered VMA. The bytes moved, or the errno of the first page."""
    error = validate_range(ctx.mm, dst, length) or validate_range(ctx.mm, src, length)
    if error:
        return error
    if mode & ~(UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES | UFFDIO_MOVE_MODE_DONTWAKE):
        return -EINVAL
    return userfaultfd_move_pages.move_pages(ctx, dst, src, length, bool(mode & UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES))
