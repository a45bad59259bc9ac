"""Limits of a process (kernel/sys.c, include/linux/sched/signal.h), and vm.max_map_count (mm/util.c).

A limit is a number of pages, of ``max_map_count`` one of VMAs. Of address space, data and VMAs it counts from nothing:
a process of the machine has nothing beside what a workload maps.
"""

from __future__ import annotations

from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import MmStruct
from emulator.workload import RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_STACK


def do_prlimit(mm: MmStruct, resource: int, pages: int) -> int:
    """Set the soft limit; 0. Whoever limits locked memory gives CAP_IPC_LOCK up, which would lift the limit."""
    mm.rlim = {**mm.rlim, resource: pages}
    return 0


def rlimit(mm: MmStruct, resource: int) -> int | None:
    """The soft limit in pages; None: there is none, or it does not bind."""
    if resource in mm.rlim:
        return mm.rlim[resource]
    profile = mm.machine.profile
    if resource == RLIMIT_STACK:
        return profile.rlimit_stack >> PAGE_SHIFT
    return profile.memlock_pages if resource == RLIMIT_MEMLOCK else None


def within(mm: MmStruct, resource: int, pages: int) -> bool:
    """May there be so many pages of it?"""
    limit = rlimit(mm, resource)
    return limit is None or pages <= limit


def check_data_rlimit(mm: MmStruct, brk: int) -> bool:
    """May the heap end at ``brk`` (bytes)? The break is refused else, also one that would shrink it."""
    limit = rlimit(mm, RLIMIT_DATA)
    return limit is None or brk - mm.start_brk <= limit << PAGE_SHIFT


def max_map_count_store(mm: MmStruct, count: int) -> int:
    """Let vm.max_map_count leave ``mm`` and its children to come so many VMAs, or as many as it has; 0.

    Linux has one number for everybody. A process whose other mappings use it up is as near to it as is wanted, and
    nobody else has to live with a lower one: so does the live oracle. To make them takes the lock, so nothing comes
    between a look at the number and what follows from it.
    """
    mm.mmap_lock.down_write()
    mm.max_map_count = max(count, mm.map_count)
    mm.mmap_lock.up_write()
    return 0


def sysctl_max_map_count(mm: MmStruct) -> int:
    """How many VMAs ``mm`` may have."""
    return mm.machine.profile.max_map_count if mm.max_map_count is None else mm.max_map_count
