"""The mremap system call (mm/mremap.c): checks, routes, the move of a VMA.

The page-table half of mm/mremap.c stands in ``mremap_tables.py``.
"""

from __future__ import annotations

from emulator.geometry import PAGE_MASK, PAGE_SHIFT, page_align
from emulator.mm import (
    fs_userfaultfd,
    gup_populate,
    ksm,
    mmap,
    mremap_tables,
    munmap,
    rmap,
    sys,
    userfaultfd_k,
    vma,
    vma_link,
)
from emulator.mm_types import (
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_PFNMAP,
    VM_SEALED,
    VM_SHARED,
    MmStruct,
    VmAreaStruct,
)
from emulator.uapi import (
    EAGAIN,
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_UNMERGEABLE,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
)

MREMAP_NO_RESIZE = 1
MREMAP_SHRINK = 2
MREMAP_EXPAND = 3


class VmaRemapStruct:
    """struct vma_remap_struct (vrm): one mremap call. Bytes, except ``charged`` (pages)."""

    __slots__ = (
        "addr",
        "charged",
        "checks_first",
        "delta",
        "flags",
        "mm",
        "new_addr",
        "new_len",
        "old_len",
        "populate_expand",
        "remap_type",
        "vma",
    )

    def __init__(
        self, mm: MmStruct, addr: int, old_len: int, new_len: int, flags: int, new_addr: int
    ) -> None:
        self.mm = mm
        self.addr = addr
        self.old_len = old_len
        self.new_len = new_len
        self.flags = flags
        self.new_addr = new_addr
        self.checks_first = mm.machine.profile.mremap_checks_first
        self.vma: VmAreaStruct | None = None
        self.delta = 0  # |old_len - new_len|, as the caller gave them
        self.remap_type = 0
        self.populate_expand = False
        self.charged = 0

    def source(self) -> VmAreaStruct:
        """The VMA that is worked on; set by then."""
        assert self.vma is not None
        return self.vma


def vrm_implies_new_addr(vrm: VmaRemapStruct) -> bool:
    return vrm.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) != 0


def vrm_set_remap_type(vrm: VmaRemapStruct) -> None:
    """Does the mapping grow, shrink or keep its length, and by how much?"""
    vrm.delta = abs(vrm.old_len - vrm.new_len)
    if vrm.old_len == vrm.new_len:
        vrm.remap_type = MREMAP_NO_RESIZE
    else:
        vrm.remap_type = MREMAP_SHRINK if vrm.old_len > vrm.new_len else MREMAP_EXPAND


def vrm_set_new_addr(vrm: VmaRemapStruct) -> int:
    """Choose where to move to. FIXED: there; DONTUNMAP alone: near there; neither: anywhere."""
    source = vrm.source()
    map_flags = MAP_FIXED if vrm.flags & MREMAP_FIXED else 0
    if source.vm_flags & VM_MAYSHARE:
        map_flags |= MAP_SHARED
    hint = vrm.new_addr if vrm_implies_new_addr(vrm) else 0
    pgoff = vma.linear_page_index(source, vrm.addr)
    result = mmap.get_unmapped_area(vrm.mm, source.vm_file, hint, vrm.new_len, pgoff, map_flags)
    if result < 0:
        return result
    vrm.new_addr = result
    return 0


def vrm_calc_charge(vrm: VmaRemapStruct) -> bool:
    """Charge what an accountable move adds: all of it for DONTUNMAP, else ``delta``.

    ``delta`` counts for a shrinking move too, whose tail has been unmapped and uncharged by now: its pages stay
    charged for ever. So does Linux 6.18 (Committed_AS grows); the accounting oracle reports it.
    """
    if not vrm.source().vm_flags & VM_ACCOUNT:
        return True
    charged = (vrm.new_len if vrm.flags & MREMAP_DONTUNMAP else vrm.delta) >> PAGE_SHIFT
    if mmap.security_vm_enough_memory(vrm.mm, charged):
        return False
    vrm.charged = charged
    return True


def vrm_uncharge(vrm: VmaRemapStruct) -> None:
    if vrm.source().vm_flags & VM_ACCOUNT:
        vrm.mm.machine.committed -= vrm.charged
        vrm.charged = 0


def vrm_stat_account(vrm: VmaRemapStruct, length: int) -> None:
    """Count ``length`` bytes as newly mapped."""
    flags = vrm.source().vm_flags
    mmap.vm_stat_account(vrm.mm, flags, length >> PAGE_SHIFT)
    if flags & VM_LOCKED:
        vrm.mm.locked_vm += length >> PAGE_SHIFT


def prep_move_vma(vrm: VmaRemapStruct) -> int:
    """Can the source be cut where the move needs it? KSM pages are unmerged, as nothing would find them elsewhere."""
    if vrm.mm.map_count >= sys.sysctl_max_map_count(vrm.mm) - 3:
        return -ENOMEM
    source = vrm.source()
    cut = source.vm_start != vrm.addr or source.vm_end != vrm.addr + vrm.old_len
    if cut and source.vm_ops is not None and not source.vm_ops.may_split:
        return -EINVAL
    flags = source.vm_flags  # they stay: the scanner may merge pages here and in the new place again
    return min(0, ksm.ksm_madvise(source, vrm.addr, vrm.addr + vrm.old_len, MADV_UNMERGEABLE, flags))


def unmap_source_vma(vrm: VmaRemapStruct) -> None:
    """Unmap [addr, addr+old_len): the source after a move, or the destination after a failed one.

    The charge moves along with the memory, so VM_ACCOUNT is hidden meanwhile and put back on what is left.
    """
    mm = vrm.mm
    source = vrm.source()
    addr, end = vrm.addr, vrm.addr + vrm.old_len
    accountable = bool(source.vm_flags & VM_ACCOUNT) and not vrm.flags & MREMAP_DONTUNMAP
    old_start, old_end = source.vm_start, source.vm_end
    if accountable:
        source.vm_flags &= ~VM_ACCOUNT
    error = munmap.do_munmap(mm, addr, end - addr)
    vrm.vma = None
    if error:
        # Out of memory: the VMA could not be split. What stays mapped is charged again.
        mm.machine.committed += (end - addr) >> PAGE_SHIFT
        return
    if accountable:
        if old_start < addr:
            before = mm.mm_mt.prev_of(addr)
            assert before is not None
            before.vm_flags |= VM_ACCOUNT
        if old_end > end:
            after = mm.mm_mt.find(end)
            assert after is not None
            after.vm_flags |= VM_ACCOUNT


def copy_vma_and_data(vrm: VmaRemapStruct) -> tuple[int, VmAreaStruct | None]:
    """Make the destination VMA and move the page tables to it: (error, destination VMA).

    When the tables cannot be moved they are moved back, and ``vrm`` is turned so that the caller unmaps the
    destination instead of the source.
    """
    source = vrm.source()
    pgoff = vma.linear_page_index(source, vrm.addr)
    copied = vma_link.copy_vma(source, vrm.new_addr, vrm.new_len, pgoff)
    if copied is None:
        vrm_uncharge(vrm)
        return -ENOMEM, None
    source, new, need_rmap_locks = copied
    vrm.vma = source
    pmc = mremap_tables.PagetableMoveControl(source, new, vrm.addr, vrm.new_addr, vrm.old_len)
    pmc.need_rmap_locks = need_rmap_locks
    vrm.mm.machine.sched.point("mremap.vma_copied")
    moved = mremap_tables.move_page_tables(pmc)
    error = mremap_error(vrm, moved)
    if error:
        move_back(vrm, source, new, moved)
    return error, new


def mremap_error(vrm: VmaRemapStruct, moved: int) -> int:
    """-ENOMEM when not everything moved, the error of the VMA's mremap() hook, or 0."""
    if moved < vrm.old_len:
        return -ENOMEM
    source = vrm.source()
    if source.vm_ops is not None and not source.vm_ops.mremap:
        return -EINVAL
    return 0


def move_back(vrm: VmaRemapStruct, source: VmAreaStruct, new: VmAreaStruct, moved: int) -> None:
    """Undo a failed move of page tables; its tables are still there, so this cannot fail."""
    pmc = mremap_tables.PagetableMoveControl(new, source, vrm.new_addr, vrm.addr, moved)
    pmc.need_rmap_locks = True
    mremap_tables.move_page_tables(pmc)
    vrm.vma = new
    vrm.old_len = vrm.new_len
    vrm.addr = vrm.new_addr


def dontunmap_complete(vrm: VmaRemapStruct, new: VmAreaStruct) -> None:
    """The source VMA stays, empty and not locked; when it was moved whole it becomes unfaulted."""
    source = vrm.source()
    source.vm_flags &= ~VM_LOCKED_MASK
    whole = vrm.addr == source.vm_start and vrm.addr + vrm.old_len == source.vm_end
    if new is not source and whole:
        rmap.unlink_anon_vmas(source)
    if new.vm_flags & VM_LOCKED and not vrm.mm.machine.profile.dontunmap_counts_locked:
        vrm.mm.locked_vm -= vrm.new_len >> PAGE_SHIFT


def move_vma(vrm: VmaRemapStruct) -> int:
    """Move [addr, addr+old_len) of the source to ``new_addr``, ``new_len`` long. Returns the address."""
    error = prep_move_vma(vrm)
    if error:
        return error
    if not vrm_calc_charge(vrm):
        return -ENOMEM
    error, new = copy_vma_and_data(vrm)
    if new is None:
        return error
    if not error:
        # in Linux the last thing that copy_vma_and_data does, which designs replace
        fs_userfaultfd.mremap_userfaultfd_prep(new)
    vrm_stat_account(vrm, vrm.new_len)
    if not error and vrm.flags & MREMAP_DONTUNMAP:
        dontunmap_complete(vrm, new)
    else:
        unmap_source_vma(vrm)
    return error or vrm.new_addr


def shrink_vma(vrm: VmaRemapStruct) -> int:
    """Unmap the tail; it may cross other VMAs and holes."""
    error = munmap.do_munmap(vrm.mm, vrm.addr + vrm.new_len, vrm.delta)
    if error:
        return error
    vrm.vma = vrm.mm.mm_mt.lookup(vrm.addr)
    return 0 if vrm.vma is not None else -EFAULT


def unmap_for_move(vrm: VmaRemapStruct) -> int:
    """What is in the way of a move goes: with FIXED whatever is at the destination, and the tail of a shrinking one."""
    mm = vrm.mm
    if vrm.flags & MREMAP_FIXED:
        error = munmap.do_munmap(mm, vrm.new_addr, vrm.new_len)
        if error:
            return error
        vrm.vma = mm.mm_mt.lookup(vrm.addr)  # the unmap may have split it
        if vrm.vma is None:
            return -EFAULT
    if vrm.remap_type == MREMAP_SHRINK:
        error = shrink_vma(vrm)
        if error:
            return error
        vrm.old_len = vrm.new_len
    return 0


def mremap_to(vrm: VmaRemapStruct) -> int:
    """Move to a new address. What has been unmapped for that stays gone if the move then fails."""
    if not vrm.checks_first:
        vrm_set_remap_type(vrm)
    error = unmap_for_move(vrm)
    if not error and not vrm.checks_first:
        error = check_prep_vma(vrm)  # a shrinking move has its new length by now
    if error:
        return error
    if vrm.flags & MREMAP_DONTUNMAP and not mmap.may_expand_vm(
        vrm.mm, vrm.source().vm_flags, vrm.old_len >> PAGE_SHIFT
    ):
        return -ENOMEM
    return vrm_set_new_addr(vrm) or move_vma(vrm)


def vrm_can_expand_in_place(vrm: VmaRemapStruct) -> bool:
    """The range ends where the VMA ends, and the space after it is free."""
    source = vrm.source()
    if source.vm_end - vrm.addr != vrm.old_len:
        return False
    end = source.vm_end + vrm.delta
    if vrm.mm.mm_mt.overlapping(source.vm_end, end):
        return False
    length = end - source.vm_start
    return mmap.get_unmapped_area(vrm.mm, None, source.vm_start, length, 0, MAP_FIXED) >= 0


def expand_vma(vrm: VmaRemapStruct) -> int:
    """Grow: in place where possible, else by a move."""
    if vrm_can_expand_in_place(vrm):
        if not vrm_calc_charge(vrm):
            return -ENOMEM
        grown = vma.vma_merge_extend(vrm.source(), vrm.delta)
        if grown is None:
            vrm_uncharge(vrm)
            return -ENOMEM
        vrm.vma = grown
        vrm_stat_account(vrm, vrm.delta)
        return vrm.addr
    if not vrm.flags & MREMAP_MAYMOVE:
        return -ENOMEM
    return vrm_set_new_addr(vrm) or move_vma(vrm)


def mremap_at(vrm: VmaRemapStruct) -> int:
    """No new address was asked for."""
    if vrm.remap_type == MREMAP_NO_RESIZE:
        return vrm.addr
    if vrm.remap_type == MREMAP_SHRINK:
        return munmap.do_munmap(vrm.mm, vrm.addr + vrm.new_len, vrm.delta) or vrm.addr
    return expand_vma(vrm)


def check_prep_vma(vrm: VmaRemapStruct) -> int:
    """The checks on the VMA, in the kernel's order."""
    source = vrm.vma
    if source is None:
        return -EFAULT
    if source.vm_flags & VM_SEALED:
        return -EPERM
    old_len, new_len = vrm.old_len, vrm.new_len
    vrm_set_remap_type(vrm)
    if not vrm_implies_new_addr(vrm):
        vrm.new_addr = vrm.addr
        if vrm.remap_type != MREMAP_EXPAND:
            return 0  # a plain shrink or no-op does not care where VMAs end
    if not old_len and not source.vm_flags & (VM_SHARED | VM_MAYSHARE):
        return -EINVAL
    if vrm.flags & MREMAP_DONTUNMAP and source.vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -EINVAL
    if vrm.remap_type == MREMAP_SHRINK:
        old_len = new_len
    if old_len > source.vm_end - vrm.addr:
        return -EFAULT
    if new_len == old_len:
        return 0
    if source.vm_flags & VM_LOCKED:
        vrm.populate_expand = True
    if source.vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -EFAULT
    if not mmap.mlock_future_ok(vrm.mm, bool(source.vm_flags & VM_LOCKED), vrm.delta):
        return -EAGAIN
    if not mmap.may_expand_vm(vrm.mm, source.vm_flags, vrm.delta >> PAGE_SHIFT):
        return -ENOMEM
    return 0


def allowed_flags(mm: MmStruct) -> int:
    """The MREMAP_* bits that this kernel knows."""
    return MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP | mm.machine.image.design.mremap_flags


def check_mremap_params(vrm: VmaRemapStruct) -> int:
    """The checks that need no VMA, in the kernel's order."""
    flags = vrm.flags
    if flags & ~allowed_flags(vrm.mm) or vrm.addr & ~PAGE_MASK or not vrm.new_len:
        return -EINVAL
    if vrm.checks_first and vrm.new_len > vrm.mm.machine.geometry.task_size:
        return -EINVAL
    if not vrm_implies_new_addr(vrm):
        return 0
    if not flags & MREMAP_MAYMOVE:
        return -EINVAL
    if flags & MREMAP_DONTUNMAP and vrm.old_len != vrm.new_len:
        return -EINVAL
    return check_new_addr(vrm) if vrm.checks_first else 0


def check_new_addr(vrm: VmaRemapStruct) -> int:
    """The checks on an address that the caller gave, if only as a hint."""
    task_size = vrm.mm.machine.geometry.task_size
    if vrm.new_len > task_size or vrm.new_addr > task_size - vrm.new_len or vrm.new_addr & ~PAGE_MASK:
        return -EINVAL
    if vrm.addr + vrm.old_len > vrm.new_addr and vrm.new_addr + vrm.new_len > vrm.addr:
        return -EINVAL
    # Both ranges may have to be cut in three: stay four maps below the limit (see prep_move_vma).
    if vrm.mm.map_count + 2 >= sys.sysctl_max_map_count(vrm.mm) - 3:
        return -ENOMEM
    return 0


def vma_multi_allowed(source: VmAreaStruct) -> bool:
    """May it be one of several VMAs that move in one call? (Our files all obey MREMAP_FIXED.)"""
    return not userfaultfd_k.userfaultfd_armed(source)


def remap_move(vrm: VmaRemapStruct) -> int:
    """A pure move with FIXED: every VMA in the range moves, the gaps between them are kept.

    Returns the new address of the first. An error leaves those before it moved.
    """
    mm = vrm.mm
    start, end = vrm.addr, vrm.addr + vrm.old_len
    target = vrm.new_addr
    result = -EFAULT
    seen = False
    last_end = 0
    position = start
    while position < end:
        source = mm.mm_mt.find(position)
        if source is None or source.vm_start >= end:
            break
        if not seen and start < source.vm_start:
            return -EFAULT
        addr = max(source.vm_start, start)
        length = min(end, source.vm_end) - addr
        offset = source.vm_start - last_end if seen else 0
        last_end = source.vm_end
        vrm.vma = source
        vrm.addr = addr
        vrm.new_addr = target + offset
        vrm.old_len = vrm.new_len = length
        if not vma_multi_allowed(source) and (seen or source.vm_end < end):
            return -EFAULT
        moved_to = check_prep_vma(vrm) or mremap_to(vrm)
        if moved_to < 0:
            return moved_to
        if not seen:
            result = moved_to
        seen = True
        target = moved_to + length
        position = addr + length
    return result


def mremap_locked(vrm: VmaRemapStruct) -> int:
    """The route, under mmap_lock. Returns an address or -errno."""
    mm = vrm.mm
    vrm.vma = mm.mm_mt.lookup(vrm.addr)
    if not vrm_implies_new_addr(vrm):
        return check_prep_vma(vrm) or mremap_at(vrm)
    if not vrm.checks_first:
        error = check_new_addr(vrm) if vrm.vma is not None else -EFAULT
        if error:
            return error
    if vrm.flags & MREMAP_FIXED and vrm.old_len == vrm.new_len and mm.machine.profile.mremap_moves_several:
        return remap_move(vrm)
    error = check_prep_vma(vrm) if vrm.checks_first else 0
    return error or mremap_to(vrm)


def do_mremap(vrm: VmaRemapStruct) -> int:
    """Checks and the lock. Returns an address or -errno."""
    mm = vrm.mm
    vrm.old_len = page_align(vrm.old_len)
    vrm.new_len = page_align(vrm.new_len)
    error = check_mremap_params(vrm)
    if error:
        return error
    mm.mmap_lock.down_write()
    mm.machine.sched.point("mremap.locked")
    result = mremap_locked(vrm)
    mm.mmap_lock.up_write()
    if result >= 0 and vrm.populate_expand:
        gup_populate.mm_populate(mm, vrm.new_addr + vrm.old_len, vrm.delta)
    return result


def sys_mremap(mm: MmStruct, addr: int, old_len: int, new_len: int, flags: int, new_addr: int) -> int:
    """mremap(2). Bytes; returns the new address or -errno."""
    return do_mremap(VmaRemapStruct(mm, addr, old_len, new_len, flags, new_addr))
