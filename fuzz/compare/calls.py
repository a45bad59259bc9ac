"""Which calls can let VMAs merge, and at which addresses they then touch their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from emulator.geometry import PAGE_MASK, page_align
from emulator.mm_types import MmStruct

Range = tuple[int, int]
"""[start, end], bytes: places where neighbours touch may lie anywhere in it, both ends included."""

# Advice that changes vm_flags: NORMAL RANDOM SEQUENTIAL DONTFORK DOFORK MERGEABLE UNMERGEABLE HUGEPAGE NOHUGEPAGE
# DONTDUMP DODUMP WIPEONFORK KEEPONFORK. All other advice leaves VMAs as they are.
_ADVICE: Final = frozenset((0, 1, 2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19))
_ON_A_RANGE: Final = frozenset(
    "mprotect pkey_mprotect mlock mlock2 munlock mseal set_vma_name mbind uffd_register uffd_unregister".split()
)
_ON_EVERYTHING: Final = frozenset(("mlockall", "munlockall", "memory_merge", "uffd_close"))


def touched(name: str, args: Sequence[int], result: int, mm: MmStruct, brk: int) -> Range | None:
    """Where a successful call may have let VMAs merge; None: nowhere.

    ``args`` are the system call's, in bytes. ``result`` is an address where the call returns one. ``brk`` is the end of
    the heap before the call.
    """
    if result < 0:
        return None
    if name == "mmap":
        return result, result + page_align(args[1])
    if name == "mremap":
        addr, old, new = args[0], page_align(args[1]), page_align(args[2])
        if result != addr:
            return result, result + new
        return (addr + new, addr + new) if new > old else None
    if name == "brk":
        return (page_align(brk), page_align(result)) if result > brk else None
    if name == "madvise" and args[2] not in _ADVICE:
        return None
    if name == "madvise" or name in _ON_A_RANGE:
        start = args[0] & PAGE_MASK
        return start, page_align(args[0] + args[1])
    if name in _ON_EVERYTHING:
        return 0, mm.machine.geometry.task_size
    return None
