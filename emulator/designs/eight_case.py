"""The vma_merge() of Linux 5.17 with its eight cases, and the __vma_adjust() that carries them out.

Source: mm/mmap.c of 5.17, as J. Matena's RFC of 18 February 2022 found it ("Removing limitations of merging anonymous
VMAs", 1/4). Run it with ``--profile 5.17``: there it must do what mainline does.

The range is a hole that is about to be filled (mmap, brk, the destination of mremap), or a part of one VMA, ``area``,
that is about to get other attributes. ``prev`` is the VMA before the range, which may be the one that holds it.

==== =========================================  =====================================
case range                                      becomes part of
==== =========================================  =====================================
1    a hole                                     prev, which takes next in as well
2    a hole                                     prev
3    a hole                                     next
4    the end of prev                            next
5    the beginning of area                      prev
6    all of area                                prev, which takes next in as well
7    all of area                                prev
8    all of area                                next, and not the other way round: whoever walks the rmap must find
                                                 the final permissions as soon as the locks are dropped
==== =========================================  =====================================
"""

from __future__ import annotations

from typing import NamedTuple

from emulator.designs.base import Design
from emulator.geometry import PAGE_SHIFT
from emulator.mm import huge_memory, rmap, vma, vma_modify
from emulator.mm_types import VM_SOFTDIRTY, VM_SPECIAL, VmAreaStruct
from emulator.rmap_types import AnonVma
from emulator.uapi import EINVAL, ENOMEM

# ---- may they merge?


def is_mergeable_vma(vmg: vma.VmaMergeStruct, neighbour: VmAreaStruct) -> bool:
    """All attributes are equal, and the neighbour has no close() hook."""
    return (
        not (neighbour.vm_flags ^ vmg.vm_flags) & ~VM_SOFTDIRTY
        and neighbour.vm_file is vmg.file
        and not vma.has_close(neighbour)
        and neighbour.uffd_ctx is vmg.uffd_ctx
        and neighbour.anon_name == vmg.anon_name
    )


def is_mergeable_anon_vma(one: AnonVma | None, other: AnonVma | None, neighbour: VmAreaStruct | None) -> bool:
    """Equal; or one of them is missing, and the neighbour, if one is given, has a chain of a single entry.

    A neighbour that is not faulted has an empty chain: a faulted range does not merge with it.
    """
    if (one is None or other is None) and (neighbour is None or len(neighbour.anon_vma_chain) == 1):
        return True
    return one is other


def can_vma_merge_before(vmg: vma.VmaMergeStruct, following: VmAreaStruct | None) -> bool:
    """Does the range end where ``following`` begins, and fit it?"""
    pages = (vmg.end - vmg.start) >> PAGE_SHIFT
    return (
        following is not None
        and vmg.end == following.vm_start
        and following.vm_policy == vmg.policy
        and is_mergeable_vma(vmg, following)
        and is_mergeable_anon_vma(vmg.anon_vma, following.anon_vma, following)
        and following.vm_pgoff == vmg.pgoff + pages
    )


def can_vma_merge_after(vmg: vma.VmaMergeStruct) -> bool:
    """Does the range begin where ``prev`` ends, and fit it?"""
    prev = vmg.prev
    return (
        prev is not None
        and prev.vm_end == vmg.start
        and prev.vm_policy == vmg.policy
        and is_mergeable_vma(vmg, prev)
        and is_mergeable_anon_vma(vmg.anon_vma, prev.anon_vma, prev)
        and prev.vm_pgoff + vma.vma_pages(prev) == vmg.pgoff
    )


def area_and_next(vmg: vma.VmaMergeStruct) -> tuple[VmAreaStruct | None, VmAreaStruct | None]:
    """The VMA after ``prev``, and the one that the range may merge with: the next one when the range is all of it."""
    tree = vmg.mm.mm_mt
    area = tree.find(vmg.prev.vm_end if vmg.prev is not None else 0)
    if area is not None and area.vm_end == vmg.end:  # cases 6, 7, 8
        return area, vma.vma_next(area)
    return area, area


def vma_merge(vmg: vma.VmaMergeStruct) -> VmAreaStruct | None:
    """Merge the range with its neighbours: the VMA that it is part of then. None: it cannot be, or memory lacks."""
    if vmg.vm_flags & VM_SPECIAL:
        return None
    area, following = area_and_next(vmg)
    prev = vmg.prev
    if can_vma_merge_after(vmg):
        assert prev is not None
        end = vmg.end  # cases 2, 5, 7
        if following is not None and can_vma_merge_before(vmg, following):
            if is_mergeable_anon_vma(prev.anon_vma, following.anon_vma, None):
                end = following.vm_end  # cases 1, 6
        error = vma_adjust(prev, prev.vm_start, end, prev.vm_pgoff, expand=prev)
        return None if error else prev
    if following is not None and can_vma_merge_before(vmg, following):
        return None if merge_into_next(vmg, area, following) else following
    return None


def merge_into_next(vmg: vma.VmaMergeStruct, area: VmAreaStruct | None, following: VmAreaStruct) -> int:
    """Cases 3, 4 and 8: ``following`` grows down over the range. 0 or -ENOMEM."""
    prev = vmg.prev
    if prev is not None and vmg.start < prev.vm_end:  # case 4
        return vma_adjust(prev, prev.vm_start, vmg.start, prev.vm_pgoff, expand=following)
    assert area is not None
    pgoff = following.vm_pgoff - ((vmg.end - vmg.start) >> PAGE_SHIFT)
    return vma_adjust(area, vmg.start, following.vm_end, pgoff, expand=following)


# ---- changing ranges


class Plan(NamedTuple):
    """What an adjustment does besides giving ``area`` a new range."""

    area: VmAreaStruct  # who gets the range
    end: int  # ... up to here, at first (bytes)
    following: VmAreaStruct | None
    removes: int = 0  # how many VMAs go: ``following``, and in case 6 the one after it
    shift: int = 0  # how far the start of ``following`` moves (bytes), when it stays
    exporter: VmAreaStruct | None = None  # whose anon_vma ``importer`` needs if it has none
    importer: VmAreaStruct | None = None


def plan_adjust(area: VmAreaStruct, end: int, expand: VmAreaStruct | None) -> Plan:
    """``area`` is to end at ``end``: what that means for the VMA after it."""
    following = vma.vma_next(area)
    if following is None:
        return Plan(area, end, None)
    if end >= following.vm_end:
        if following is expand:  # case 8: the two change places
            return Plan(following, end, area, 1, 0, area, following)
        removes = 2 if end > following.vm_end else 1  # 2: case 6, 1: cases 1 and 7
        exporter = following if removes == 1 or following.anon_vma is not None else vma.vma_next(following)
        return Plan(area, following.vm_end, following, removes, 0, exporter, area)
    if end > following.vm_start:  # case 5
        return Plan(area, end, following, 0, end - following.vm_start, following, area)
    if end < area.vm_end:  # case 4
        return Plan(area, end, following, 0, end - area.vm_end, area, following)
    return Plan(area, end, following)


def import_anon_vma(plan: Plan) -> int:
    """Who gets memory that may hold pages gets the anon_vma that they hang at. 0 or -ENOMEM.

    The rules above let only cases 1 and 6 need it.
    """
    exporter, importer = plan.exporter, plan.importer
    if exporter is None or importer is None or exporter.anon_vma is None or importer.anon_vma is not None:
        return 0
    importer.anon_vma = exporter.anon_vma
    return rmap.anon_vma_clone(importer, exporter, rmap.VMA_OP_MERGE_UNFAULTED)


def vma_adjust(
    area: VmAreaStruct,
    start: int,
    end: int,
    pgoff: int,
    insert: VmAreaStruct | None = None,
    expand: VmAreaStruct | None = None,
) -> int:
    """__vma_adjust: ``area`` gets the range [start, end) (bytes) and ``pgoff``, its neighbours what follows from it.

    ``insert`` is the other half of a VMA that is being split; ``expand`` the VMA that a merge lets grow. 0 or -ENOMEM;
    only the copy of a chain can fail, and then nothing has changed.
    """
    plan = plan_adjust(area, end, expand) if insert is None else Plan(area, end, None)
    error = import_anon_vma(plan)
    if error:
        return error
    commit_adjust(plan, area, start, pgoff, insert)
    if plan.removes == 2:
        after = vma.vma_next(plan.area)
        assert after is not None
        commit_adjust(Plan(plan.area, after.vm_end, after, 1), area, start, pgoff, None)
    return 0


def commit_adjust(
    plan: Plan, original: VmAreaStruct, start: int, pgoff: int, insert: VmAreaStruct | None
) -> None:
    """Change ranges, remove, insert: under the rmap locks, so that walkers see all or nothing of it."""
    area, following = plan.area, plan.following
    mm = area.vm_mm
    shifted = following if plan.shift else None
    new_start = following.vm_start + plan.shift if following is not None and plan.shift > 0 else None
    huge_memory.vma_adjust_trans_huge(original, start, plan.end, new_start)
    anon_vma = area.anon_vma or (shifted.anon_vma if shifted is not None else None)
    mapping = area.vm_file.f_mapping if area.vm_file is not None else None
    if mapping is not None:
        mapping.i_mmap_rwsem.down_write()
    moving = [area] if shifted is None else [area, shifted]
    if anon_vma is not None:
        if shifted is not None and shifted.anon_vma not in (None, anon_vma):
            mm.machine.warn("adjust-two-anon-vmas", f"{area} and {shifted} change, and one lock is held", anon_vma)
        rmap.anon_vma_lock_write(anon_vma)
        mm.machine.sched.point("merge.rmap_locked")
        for changed in moving:
            rmap.anon_vma_interval_tree_pre_update_vma(changed)
    removed = following if plan.removes else None
    if mapping is not None:
        for changed in moving if removed is None else [*moving, removed]:
            mapping.i_mmap.remove(changed)
    if removed is not None:
        mm.mm_mt.erase(removed)
    move_boundary(plan, start, pgoff)
    if mapping is not None:
        for changed in reversed(moving):
            mapping.i_mmap.insert(changed)
    if insert is not None:
        mm.mm_mt.insert(insert)
        mm.map_count += 1
        if mapping is not None:
            mapping.i_mmap.insert(insert)
    if anon_vma is not None:
        for changed in moving:
            rmap.anon_vma_interval_tree_post_update_vma(changed)
        rmap.anon_vma_unlock_write(anon_vma)
    if mapping is not None:
        mapping.i_mmap_rwsem.up_write()
    if removed is not None:
        anon_vma_merge(area, removed)
        mm.map_count -= 1


def anon_vma_merge(area: VmAreaStruct, removed: VmAreaStruct) -> None:
    """``removed`` is part of ``area`` now, and leaves the rmap."""
    rmap.unlink_anon_vmas(removed)


def move_boundary(plan: Plan, start: int, pgoff: int) -> None:
    """The new ranges. Whoever shrinks goes first, so that the ranges in the tree never overlap."""
    area, following = plan.area, plan.following
    tree = area.vm_mm.mm_mt
    if following is None or not plan.shift:
        tree.move(area, start, plan.end)
    elif plan.shift < 0:
        tree.move(area, start, plan.end)
        tree.move(following, following.vm_start + plan.shift, following.vm_end)
    else:
        tree.move(following, following.vm_start + plan.shift, following.vm_end)
        tree.move(area, start, plan.end)
    area.vm_pgoff = pgoff
    if following is not None:
        following.vm_pgoff += plan.shift >> PAGE_SHIFT


# ---- what today's callers call


def told(vmg: vma.VmaMergeStruct, merged: VmAreaStruct | None) -> VmAreaStruct | None:
    """Leave in ``vmg`` what callers look at. A merge that lacked memory is none: they go on without."""
    vmg.target = merged
    vmg.state = vma.VMA_MERGE_NOMERGE if merged is None else vma.VMA_MERGE_SUCCESS
    return merged


def vma_merge_existing_range(vmg: vma.VmaMergeStruct) -> VmAreaStruct | None:
    """Cases 4 to 8."""
    return told(vmg, vma_merge(vmg))


def vma_merge_new_range(vmg: vma.VmaMergeStruct) -> VmAreaStruct | None:
    """Cases 1 to 3."""
    return told(vmg, vma_merge(vmg))


def vma_merge_extend(area: VmAreaStruct, delta: int) -> VmAreaStruct | None:
    """mremap in place: the VMA grows, and does not merge with what it then touches."""
    error = vma_adjust(area, area.vm_start, area.vm_end + delta, area.vm_pgoff)
    return None if error else area


def _split_vma(area: VmAreaStruct, addr: int, new_below: bool) -> int:
    """Split at ``addr``; the new VMA is the lower part if ``new_below``."""
    if area.vm_ops is not None and not area.vm_ops.may_split:
        return -EINVAL
    new = vma_modify.vm_area_dup(area)
    if new is None:
        return -ENOMEM
    if new_below:
        new.vm_end = addr
    else:
        new.vm_start = addr
        new.vm_pgoff = vma.linear_page_index(area, addr)
    if rmap.anon_vma_clone(new, area, rmap.VMA_OP_SPLIT):
        return -ENOMEM
    if new_below:
        return vma_adjust(area, addr, area.vm_end, vma.linear_page_index(area, addr), insert=new)
    return vma_adjust(area, area.vm_start, addr, area.vm_pgoff, insert=new)


class EightCase(Design):
    """One function for all merges, and one for all changes of ranges."""

    name = "eight-case"
    summary = "the vma_merge() of 5.17 with its eight cases (for --profile 5.17)"
    source = "mm/mmap.c of Linux 5.17"
    replaces = {
        "vma.vma_merge_existing_range": vma_merge_existing_range,
        "vma.vma_merge_new_range": vma_merge_new_range,
        "vma.vma_merge_extend": vma_merge_extend,
        "vma_modify._split_vma": _split_vma,
    }
