"""remap_file_pages of mm/mmap.c: since 4.0 another mapping of the file in the place of the old one.

Bytes; ``pgoff`` in pages.
"""

from __future__ import annotations

from emulator.geometry import PAGE_MASK
from emulator.mm import gup_populate, mmap, shmem
from emulator.mm_types import VM_ACCESS_FLAGS, VM_LOCKED, VM_SHARED, MmStruct
from emulator.uapi import EINVAL, MAP_FIXED, MAP_LOCKED, MAP_POPULATE, MAP_SHARED


def sys_remap_file_pages(mm: MmStruct, start: int, size: int, prot: int, pgoff: int) -> int:
    """Let [start, start+size), which one file is mapped to, show its pages from ``pgoff`` on. 0 or -errno.

    -EINVAL: not a shared mapping, or several that differ; otherwise what mmap says. The lock is held for reading first,
    and what was seen then must still be so when it is held for writing.
    """
    start &= PAGE_MASK
    size &= PAGE_MASK
    if prot or not size:
        return -EINVAL
    point = mm.machine.sched.point
    mm.mmap_lock.down_read()
    area = mm.mm_mt.lookup(start)
    seen = None if area is None else (area.vm_flags, area.vm_file)
    mm.mmap_lock.up_read()
    if area is None or not area.vm_flags & VM_SHARED:
        return -EINVAL
    point("remap_file_pages.seen")
    mm.mmap_lock.down_write()
    point("mmap.locked")
    result = -EINVAL
    area = mm.mm_mt.lookup(start)
    if area is not None and (area.vm_flags, area.vm_file) == seen and alike_up_to(mm, start, start + size):
        flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE
        if area.vm_flags & VM_LOCKED:
            flags |= MAP_LOCKED
        file = area.vm_file
        assert file is not None
        file.f_count += 1  # its last mapping may be replaced
        result = mmap.do_mmap(mm, file, start, size, area.vm_flags & VM_ACCESS_FLAGS, flags, pgoff)
        file.f_count -= 1
        shmem.shmem_put_file(mm.machine, file)
    mm.mmap_lock.up_write()
    if result < 0:
        return result
    gup_populate.mm_populate(mm, start, size)
    return 0


def alike_up_to(mm: MmStruct, start: int, end: int) -> bool:
    """Is [start, end) mapped without a hole, all of the same file and with the same flags?"""
    areas = mm.mm_mt.overlapping(start, end)
    first = areas[0]
    for before, area in zip(areas, areas[1:], strict=False):
        if area.vm_start != before.vm_end or area.vm_file is not first.vm_file or area.vm_flags != first.vm_flags:
            return False
    return areas[-1].vm_end >= end
