"""Limits of a process (kernel/sys.c, include/linux/sched/signal.h).

A limit is a number of pages. Of address space and of data it counts from nothing: a process of the machine has nothing
beside what a workload maps.
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


