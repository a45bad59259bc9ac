"""process_madvise(2): advice about several ranges, of the process itself or of another (mm/madvise.c).

Split from ``madvise.py``, which has the advice. What leads to the other process (a pidfd, the right to see its memory,
CAP_SYS_NICE) is taken for granted.
"""

from __future__ import annotations

from typing import Final

from emulator.mm import fork, madvise
from emulator.mm_types import MmStruct
from emulator.uapi import EINVAL, MADV_COLD, MADV_COLLAPSE, MADV_PAGEOUT, MADV_WILLNEED

REMOTE: Final = (MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_COLLAPSE)  # hints, which lose nothing


def process_madvise_remote_valid(mm: MmStruct, advice: int) -> bool:
    """May another process be given the advice? (What older kernels do not know, they refuse to all.)"""
    return advice in REMOTE and advice not in mm.machine.profile.advice_unknown


def vector_madvise(mm: MmStruct, ranges: list[tuple[int, int]], advice: int) -> int:
    """Each (start, length), bytes, in turn: how many bytes were advised, or the errno of the first range.

    The lock is taken once. What has to begin anew (guard regions) begins with the same range.
    """
    done = result = 0
    madvise.madvise_lock(mm, advice)
    for start, length in ranges:
        if not length:
            continue
        for _ in range(madvise.RESTARTS_MAX):
            result = madvise.madvise_do_behavior(mm, start, length, advice)
            if result != -madvise.ERESTARTNOINTR:
                break
            madvise.madvise_unlock(mm, advice)
            madvise.madvise_lock(mm, advice)
        else:
            raise madvise.restarts_for_ever(mm, start)
        if result < 0:
            break
        done += length
    madvise.madvise_unlock(mm, advice)
    return done or result


def sys_process_madvise(mm: MmStruct, target: MmStruct, ranges: list[tuple[int, int]], advice: int) -> int:
    """process_madvise(2) by ``mm`` on ``target``. Bytes, or -errno; -EINVAL: not to be given to others."""
    checked = target is not mm or not mm.machine.profile.process_madvise_self
    if checked and not process_madvise_remote_valid(mm, advice):
        return -EINVAL
    target.mm_users += 1  # mm_access: it may end meanwhile
    result = vector_madvise(target, ranges, advice)
    fork.mmput(target)
    return result
