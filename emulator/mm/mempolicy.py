"""On which node memory is to come, as far as VMAs keep it: mbind (mm/mempolicy.c). Bytes.

A policy is a value: two VMAs with equal policies may merge. There is one node, so that a policy changes nothing else.
What a whole task prefers (set_mempolicy) is not kept in VMAs, and their merging does not see it.
"""

from __future__ import annotations

from emulator.geometry import PAGE_MASK, page_align
from emulator.mm import vma_modify
from emulator.mm_types import MmStruct, VmAreaStruct
from emulator.uapi import EFAULT, EINVAL, ENOMEM


def mbind_range(
    prev: VmAreaStruct | None, area: VmAreaStruct, start: int, end: int, policy: object
) -> VmAreaStruct | int:
    """The part [start, end) of one VMA gets the policy. The VMA that holds it afterwards, or -ENOMEM."""
    if area.vm_policy == policy:
        return area
    changed = vma_modify.vma_modify_policy(prev, area, start, end, policy)
    if isinstance(changed, int):
        return changed
    if policy is not None and area.vm_mm.machine.should_fail("mpol_dup"):
        return -ENOMEM
    changed.vm_policy = policy
    return changed


def queue_pages_range(mm: MmStruct, start: int, end: int, discontig_ok: bool) -> int:
    """The checks before anything is changed: -EFAULT for a hole, or (``discontig_ok``) for nothing but a hole."""
    areas = mm.mm_mt.overlapping(start, end)
    mapped = sum(min(area.vm_end, end) - max(area.vm_start, start) for area in areas)
    return 0 if mapped == end - start or (discontig_ok and areas) else -EFAULT


def do_mbind(mm: MmStruct, start: int, length: int, policy: object) -> int:
    """mbind(2) without flags; ``policy`` None is MPOL_DEFAULT. 0, -EINVAL, -EFAULT (a hole), -ENOMEM."""
    if start & ~PAGE_MASK:
        return -EINVAL
    end = start + page_align(length)
    if end == start:
        return 0
    m = mm.machine
    if policy is not None and m.should_fail("mpol_new"):
        return -ENOMEM
    mm.mmap_lock.down_write()
    m.sched.point("mbind.locked")
    result = queue_pages_range(mm, start, end, policy is None)
    prev = mm.mm_mt.prev_of(start)
    for area in [] if result else mm.mm_mt.overlapping(start, end):
        if area.detached:
            continue  # merged into the one before it
        if start > area.vm_start:
            prev = area
        changed = mbind_range(prev, area, max(start, area.vm_start), min(end, area.vm_end), policy)
        if isinstance(changed, int):
            result = changed
            break
        prev = changed
    mm.mmap_lock.up_write()
    return result
