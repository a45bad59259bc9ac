"""Merging and expanding VMAs, and what is asked of them everywhere (mm/vma.c, mm/vma.h).

Splitting stands in ``vma_modify.py``, copies and files in ``vma_link.py``; mapping and unmapping of regions, which
mm/vma.c holds too since 6.11, in ``mmap.py`` and ``munmap.py``.
All functions expect the caller to hold mmap_lock for write. Addresses are bytes, pgoff pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.fs_types import File
from emulator.geometry import PAGE_SHIFT
from emulator.hw.pte import EXEC, RW, USER
from emulator.mm import huge_memory, rmap, vma_link
from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_EXEC,
    VM_SHARED,
    VM_SPECIAL,
    VM_UFFD_WP,
    VM_WRITE,
    MmStruct,
    UserfaultfdCtx,
    VmAreaStruct,
)
from emulator.rmap_types import AnonVma
from emulator.uapi import ENOMEM

if TYPE_CHECKING:
    from emulator.machine import Machine

VMA_MERGE_START = 0
VMA_MERGE_ERROR_NOMEM = 1
VMA_MERGE_NOMERGE = 2
VMA_MERGE_SUCCESS = 3


class VmaMergeStruct:
    """struct vma_merge_struct (vmg): the range [start, end) that is to be merged, and with what attributes.

    ``middle`` is the VMA that holds the range already, None for a new range. ``prev`` and ``next`` are the
    VMAs before and after. ``copied_from``: mremap's source. ``state``: VMA_MERGE_*.
    """

    __slots__ = (
        "anon_name",
        "anon_vma",
        "copied_from",
        "duplicated",
        "end",
        "file",
        "give_up_on_oom",
        "just_expand",
        "middle",
        "mm",
        "next",
        "pgoff",
        "policy",
        "prev",
        "start",
        "state",
        "target",
        "uffd_ctx",
        "vm_flags",
    )

    def __init__(self, mm: MmStruct, start: int, end: int, vm_flags: int, pgoff: int) -> None:
        self.mm = mm
        self.start = start
        self.end = end
        self.vm_flags = vm_flags
        self.pgoff = pgoff
        self.prev: VmAreaStruct | None = None
        self.middle: VmAreaStruct | None = None
        self.next: VmAreaStruct | None = None
        self.target: VmAreaStruct | None = None
        self.copied_from: VmAreaStruct | None = None
        self.duplicated: VmAreaStruct | None = None  # VMA that dup_anon_vma gave an anon_vma, for undo
        self.file: File | None = None
        self.anon_vma: AnonVma | None = None
        self.policy: object = None
        self.uffd_ctx: UserfaultfdCtx | None = None
        self.anon_name: str | None = None
        self.just_expand = False  # never merge with next (brk)
        self.give_up_on_oom = False
        self.state = VMA_MERGE_START


def vmg_of_vma(prev: VmAreaStruct | None, vma: VmAreaStruct, start: int, end: int) -> VmaMergeStruct:
    """VMG_VMA_STATE: the part [start, end) of ``vma``, with the attributes that ``vma`` has."""
    pgoff = vma.vm_pgoff + ((start - vma.vm_start) >> PAGE_SHIFT)
    vmg = VmaMergeStruct(vma.vm_mm, start, end, vma.vm_flags, pgoff)
    vmg.prev = prev
    vmg.middle = vma
    vmg.file = vma.vm_file
    vmg.anon_vma = vma.anon_vma
    vmg.policy = vma.vm_policy
    vmg.uffd_ctx = vma.uffd_ctx
    vmg.anon_name = vma.anon_name
    return vmg


# ---- small helpers of the headers


def vma_is_anonymous(vma: VmAreaStruct) -> bool:
    """No vm_ops: private anonymous memory (include/linux/mm.h)."""
    return vma.vm_ops is None


def vma_pages(vma: VmAreaStruct) -> int:
    return (vma.vm_end - vma.vm_start) >> PAGE_SHIFT


def linear_page_index(vma: VmAreaStruct, address: int) -> int:
    """The page offset of ``address`` in the space of the VMA's object (include/linux/pagemap.h)."""
    return ((address - vma.vm_start) >> PAGE_SHIFT) + vma.vm_pgoff


def vma_address(vma: VmAreaStruct, pgoff: int, nr: int) -> int | None:
    """Where the VMA maps the first page of [pgoff, pgoff+nr) that it maps; None if it maps none."""
    if pgoff >= vma.vm_pgoff:
        address = vma.vm_start + ((pgoff - vma.vm_pgoff) << PAGE_SHIFT)
        return address if address < vma.vm_end else None
    if pgoff + nr > vma.vm_pgoff:
        return vma.vm_start
    return None


def vm_page_prot(vm_flags: int) -> int:
    """Entry permission bits for a mapping. RW is left out of private ones: the first write must fault.

    So must it where userfaultfd wants to know of it.
    """
    prot = 0
    if vm_flags & VM_ACCESS_FLAGS:
        prot = USER
        if vm_flags & VM_EXEC:
            prot |= EXEC
        if vm_flags & (VM_WRITE | VM_SHARED | VM_UFFD_WP) == VM_WRITE | VM_SHARED:
            prot |= RW
    return prot


def has_close(vma: VmAreaStruct) -> bool:
    return vma.vm_ops is not None and vma.vm_ops.close


def vma_tree_fails(m: Machine, point: str) -> bool:
    """A fault point: is there no memory for the tree of VMAs? (Only a maple tree needs any.)"""
    return m.profile.maple_tree and m.should_fail(point)


def vma_prev(vma: VmAreaStruct) -> VmAreaStruct | None:
    return vma.vm_mm.mm_mt.prev_of(vma.vm_start)


def vma_next(vma: VmAreaStruct) -> VmAreaStruct | None:
    return vma.vm_mm.mm_mt.find(vma.vm_end)


# ---- predicates


def vma_is_fork_child(vma: VmAreaStruct | None) -> bool:
    """Has it, or had it, pages of a parent process: its chain holds more than its own anon_vma."""
    return vma is not None and vma.anon_vma is not None and len(vma.anon_vma_chain) != 1


def is_mergeable_vma(vmg: VmaMergeStruct, merge_next: bool) -> bool:
    """Are the attributes of the neighbour those of the range? (All but address, pgoff and anon_vma.)"""
    vma = vmg.next if merge_next else vmg.prev
    assert vma is not None
    profile = vmg.mm.machine.profile
    return (
        not (vma.vm_flags ^ vmg.vm_flags) & ~profile.vm_ignore_merge
        and vma.vm_file is vmg.file
        and vma.vm_policy == vmg.policy
        and vma.uffd_ctx is vmg.uffd_ctx
        and vma.anon_name == vmg.anon_name
        and not (profile.close_forbids_merge and has_close(vma))
    )


def is_mergeable_anon_vma(vmg: VmaMergeStruct, merge_next: bool) -> bool:
    """May the range and the neighbour share one anon_vma?

    One of them being unfaulted is fine, unless a fork child's chain would have to be duplicated.
    """
    target = vmg.next if merge_next else vmg.prev
    assert target is not None
    src = vmg.middle
    src_anon = vmg.anon_vma
    if target.anon_vma is None and src_anon is not None:
        if not vmg.mm.machine.profile.merges_with_unfaulted:
            return False
        return not (vma_is_fork_child(src) or vma_is_fork_child(vmg.copied_from))
    if target.anon_vma is not None and src_anon is None:
        return not vma_is_fork_child(target)
    return src_anon is target.anon_vma


def can_vma_merge_before(vmg: VmaMergeStruct) -> bool:
    """Can the range merge with ``next``? It must end where next begins, in page offsets too."""
    assert vmg.next is not None
    pages = (vmg.end - vmg.start) >> PAGE_SHIFT
    return (
        vmg.next.vm_pgoff == vmg.pgoff + pages
        and is_mergeable_vma(vmg, True)
        and is_mergeable_anon_vma(vmg, True)
    )


def can_vma_merge_after(vmg: VmaMergeStruct) -> bool:
    """Can the range merge with ``prev``?"""
    prev = vmg.prev
    assert prev is not None
    return (
        prev.vm_pgoff + vma_pages(prev) == vmg.pgoff
        and is_mergeable_vma(vmg, False)
        and is_mergeable_anon_vma(vmg, False)
    )


def can_vma_merge_left(vmg: VmaMergeStruct) -> bool:
    return vmg.prev is not None and vmg.prev.vm_end == vmg.start and can_vma_merge_after(vmg)


def can_vma_merge_right(vmg: VmaMergeStruct, can_merge_left: bool) -> bool:
    """With ``can_merge_left`` all three become one, so prev and next must not have two anon_vmas."""
    following = vmg.next
    if following is None or vmg.end != following.vm_start or not can_vma_merge_before(vmg):
        return False
    if not can_merge_left:
        return True
    assert vmg.prev is not None
    prev_anon, next_anon = vmg.prev.anon_vma, following.anon_vma
    return prev_anon is None or next_anon is None or prev_anon is next_anon


def can_merge_remove_vma(vma: VmAreaStruct) -> bool:
    """A VMA with a close() hook must not vanish in a merge."""
    return not has_close(vma)


# ---- merging


def dup_anon_vma(vmg: VmaMergeStruct, dst: VmAreaStruct, src: VmAreaStruct) -> int:
    """An unfaulted ``dst`` takes over the anon_vma of ``src``; remembered in the vmg for undo."""
    if src.anon_vma is None or dst.anon_vma is not None:
        return 0
    dst.anon_vma = src.anon_vma
    error = rmap.anon_vma_clone(dst, src, rmap.VMA_OP_MERGE_UNFAULTED)
    if error:
        return error
    vmg.duplicated = dst
    return 0


Change = tuple[VmAreaStruct, int, int, int]
"""A VMA and the range [start, end) (bytes) and pgoff it is to get."""


def commit_merge(vmg: VmaMergeStruct, changes: list[Change], removed: list[VmAreaStruct]) -> int:
    """Give VMAs new ranges (the merge target first) and remove those that it swallowed.

    The only step that can fail is the first: room in the tree. Walkers of the rmap see old or new ranges.
    """
    mm = vmg.mm
    m = mm.machine
    if vma_tree_fails(m, "vma_tree_prealloc"):
        return -ENOMEM
    target, start, end, _ = changes[0]
    adjusted = changes[1][1] if len(changes) > 1 else None
    huge_memory.vma_adjust_trans_huge(target, start, end, adjusted)
    anon_vma = next(
        (v.anon_vma for v in (target, *removed, *(c[0] for c in changes[1:])) if v.anon_vma), None
    )
    mapping = target.vm_file.f_mapping if target.vm_file else None
    if mapping:
        mapping.i_mmap_rwsem.down_write()
    if anon_vma:
        rmap.anon_vma_lock_write(anon_vma)
        m.sched.point("merge.rmap_locked")
        for vma, *_ in changes:
            rmap.anon_vma_interval_tree_pre_update_vma(vma)
    if mapping:
        for vma, *_ in changes:
            mapping.i_mmap.remove(vma)
    for vma in removed:
        mm.mm_mt.erase(vma)
    # whoever shrinks goes first, so that the ranges in the tree never overlap
    for vma, new_start, new_end, pgoff in sorted(
        changes, key=lambda c: c[2] - c[1] - c[0].vm_end + c[0].vm_start
    ):
        mm.mm_mt.move(vma, new_start, new_end)
        vma.vm_pgoff = pgoff
    if mapping:
        for vma, *_ in reversed(changes):  # the target last (vma_complete)
            mapping.i_mmap.insert(vma)
    if anon_vma:
        for vma, *_ in changes:
            rmap.anon_vma_interval_tree_post_update_vma(vma)
        rmap.anon_vma_unlock_write(anon_vma)
    if mapping:
        mapping.i_mmap_rwsem.up_write()
    for vma in removed:
        remove_merged(vma)
    return 0


def remove_merged(vma: VmAreaStruct) -> None:
    """The end of a VMA that a merge swallowed; its memory belongs to the target now."""
    vma_link.vma_unlink_file(vma)
    rmap.unlink_anon_vmas(vma)
    vma.vm_mm.map_count -= 1


def vma_merge_existing_range(vmg: VmaMergeStruct) -> VmAreaStruct | None:
    """[start, end) of ``middle`` gets new attributes: merge it with prev, next or both.

    Returns the VMA that holds the range afterwards, None when nothing merged (``vmg.state`` says why).
    """
    middle, prev, start, end = vmg.middle, vmg.prev, vmg.start, vmg.end
    assert middle is not None
    vmg.state = VMA_MERGE_NOMERGE
    left_side = start == middle.vm_start
    right_side = end == middle.vm_end
    if vmg.vm_flags & VM_SPECIAL or not (left_side or right_side):
        return None
    merge_left = left_side and can_vma_merge_left(vmg)
    merge_right = False
    if right_side:
        vmg.next = vma_next(middle)
        merge_right = can_vma_merge_right(vmg, merge_left)
    following = vmg.next
    if not (merge_left or merge_right):
        return None
    remove_middle = left_side and right_side
    if remove_middle and not can_merge_remove_vma(middle):
        return None
    if merge_left and merge_right:
        assert following is not None
        merge_right = can_merge_remove_vma(following)

    removed = [middle] if remove_middle else []
    sticky = vmg.vm_flags
    if merge_left and merge_right:
        assert prev is not None
        assert following is not None
        vmg.target = prev
        sticky |= prev.vm_flags | following.vm_flags
        changes: list[Change] = [(prev, prev.vm_start, following.vm_end, prev.vm_pgoff)]
        removed.append(following)
        error = dup_anon_vma(vmg, prev, following if following.anon_vma else middle)
    elif merge_left:
        assert prev is not None
        vmg.target = prev
        sticky |= prev.vm_flags
        changes = [(prev, prev.vm_start, end, prev.vm_pgoff)]
        if not remove_middle:
            changes.append((middle, end, middle.vm_end, linear_page_index(middle, end)))
        error = dup_anon_vma(vmg, prev, middle)
    else:
        assert following is not None
        vmg.target = following
        sticky |= following.vm_flags
        pgoff = following.vm_pgoff - ((end - start) >> PAGE_SHIFT)
        changes = [(following, start, following.vm_end, pgoff)]
        if not remove_middle:
            changes.append((middle, middle.vm_start, start, middle.vm_pgoff))
        error = dup_anon_vma(vmg, following, middle)
    if error or commit_merge(vmg, changes, removed):
        abort_merge(vmg)
        return None
    vmg.target.vm_flags |= sticky & vmg.mm.machine.profile.vm_ignore_merge
    vmg.state = VMA_MERGE_SUCCESS
    return vmg.target


def abort_merge(vmg: VmaMergeStruct) -> None:
    """Out of memory: take back what dup_anon_vma did."""
    if vmg.duplicated is not None:
        rmap.unlink_anon_vmas(vmg.duplicated)
        vmg.duplicated = None
    if not vmg.give_up_on_oom and vmg.mm.machine.profile.failed_merge_is_error:
        vmg.state = VMA_MERGE_ERROR_NOMEM


def vma_merge_new_range(vmg: VmaMergeStruct) -> VmAreaStruct | None:
    """A hole [start, end) is about to be filled: grow prev or next over it, or prev over it and next."""
    prev, following, end = vmg.prev, vmg.next, vmg.end
    vmg.state = VMA_MERGE_NOMERGE
    if vmg.vm_flags & VM_SPECIAL or (prev is None and following is None):
        return None
    merge_left = can_vma_merge_left(vmg)
    merge_right = not vmg.just_expand and can_vma_merge_right(vmg, merge_left)
    if merge_right:
        assert following is not None
        vmg.end = following.vm_end
        vmg.target = following
    if merge_left:
        assert prev is not None
        vmg.start = prev.vm_start
        vmg.pgoff = prev.vm_pgoff
        vmg.target = prev
        if merge_right and following is not None and not can_merge_remove_vma(following):
            vmg.end = end
    if vmg.target is not None and not vma_expand(vmg):
        vmg.state = VMA_MERGE_SUCCESS
        return vmg.target
    return None


def vma_merge_copied_range(vmg: VmaMergeStruct) -> VmAreaStruct | None:
    """As ``vma_merge_new_range`` for mremap: ``middle`` is the VMA that is copied from, elsewhere."""
    vmg.copied_from = vmg.middle
    vmg.middle = None
    return vma_merge_new_range(vmg)


def vma_expand(vmg: VmaMergeStruct) -> int:
    """Grow ``target`` to [start, end), swallowing ``next`` when the range covers it."""
    target, following = vmg.target, vmg.next
    assert target is not None
    sticky = vmg.vm_flags | target.vm_flags
    removed = []
    error = 0
    if following is not None and following is not target and vmg.end == following.vm_end:
        removed.append(following)
        sticky |= following.vm_flags
        error = dup_anon_vma(vmg, target, following)
    if not error and vmg.copied_from is not None:
        # a faulted range that lands on an unfaulted target brings its anon_vma along
        error = dup_anon_vma(vmg, target, vmg.copied_from)
    if error:
        return error  # not reported in the state: callers go on without the merge
    if commit_merge(vmg, [(target, vmg.start, vmg.end, vmg.pgoff)], removed):
        abort_merge(vmg)
        return -ENOMEM
    target.vm_flags |= sticky & vmg.mm.machine.profile.vm_ignore_merge
    return 0


def vma_merge_extend(vma: VmAreaStruct, delta: int) -> VmAreaStruct | None:
    """In-place growth of ``vma`` by ``delta`` bytes (mremap); may swallow the next VMA too."""
    vmg = vmg_of_vma(vma, vma, vma.vm_end, vma.vm_end + delta)
    vmg.middle = None
    if vma.vm_mm.machine.profile.growth_merges:
        vmg.next = vma_next(vma)
        return vma_merge_new_range(vmg)
    vmg.target = vma
    vmg.start, vmg.pgoff = vma.vm_start, vma.vm_pgoff
    return vma if not vma_expand(vmg) else None


# ---- sharing a neighbour's anon_vma at the first write fault


def anon_vma_compatible(a: VmAreaStruct, b: VmAreaStruct) -> bool:
    """Could ``a``, directly below ``b``, merge with it if permissions did not count?"""
    ignored = VM_ACCESS_FLAGS | a.vm_mm.machine.profile.vm_ignore_merge
    return (
        a.vm_end == b.vm_start
        and a.vm_policy == b.vm_policy
        and a.vm_file is b.vm_file
        and not (a.vm_flags ^ b.vm_flags) & ~ignored
        and b.vm_pgoff == a.vm_pgoff + vma_pages(a)
    )


def reusable_anon_vma(old: VmAreaStruct, a: VmAreaStruct, b: VmAreaStruct) -> AnonVma | None:
    """The anon_vma of ``old`` (a or b), if the other may share it: not one of a fork child."""
    if anon_vma_compatible(a, b) and old.anon_vma is not None and len(old.anon_vma_chain) == 1:
        return old.anon_vma
    return None


def find_mergeable_anon_vma(vma: VmAreaStruct) -> AnonVma | None:
    """A neighbour's anon_vma to share, so that the two can merge later; the next neighbour is asked first."""
    following = vma_next(vma)
    if following is not None:
        anon_vma = reusable_anon_vma(following, vma, following)
        if anon_vma is not None:
            return anon_vma
    prev = vma_prev(vma)
    return reusable_anon_vma(prev, prev, vma) if prev is not None else None
