"""What can become of a range that is to be collapsed into a huge page (enum scan_result of mm/khugepaged.c)."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from emulator.uapi import EAGAIN, EBUSY, ENOMEM


class ScanResult(Enum):
    """enum scan_result: what became of one range."""

    FAIL = auto()
    SUCCEED = auto()
    PMD_NULL = auto()  # there are no page tables, or they vanished
    PMD_NONE = auto()  # nothing was ever mapped there
    PMD_MAPPED = auto()  # a huge page already
    EXCEED_NONE_PTE = auto()  # holes that userfaultfd wants to hear of
    PTE_NON_PRESENT = auto()
    PTE_UFFD_WP = auto()
    PAGE_COUNT = auto()  # somebody has a reference
    PAGE_LRU = auto()
    PAGE_LOCK = auto()
    PAGE_ANON = auto()  # anonymous memory was there, and is not any more
    PAGE_NULL = auto()  # the file has no page there
    PAGE_COMPOUND = auto()  # the file has a page of another size there
    PAGE_FILLED = auto()  # a hole of the file was filled meanwhile
    PTE_MAPPED_HUGEPAGE = auto()  # the file has a huge page; PTEs map it, or nothing does
    VMA_NULL = auto()
    VMA_CHECK = auto()
    ADDRESS_RANGE = auto()
    DEL_PAGE_LRU = auto()
    ALLOC_HUGE_PAGE_FAIL = auto()
    TRUNCATED = auto()  # the file has nothing there, or has thrown it away meanwhile


DONE: Final = (ScanResult.SUCCEED, ScanResult.PMD_MAPPED)

# After these the next range is tried, after the others not.
GOES_ON: Final = (
    ScanResult.PMD_NULL, ScanResult.PTE_NON_PRESENT, ScanResult.PTE_UFFD_WP, ScanResult.PAGE_COUNT,
    ScanResult.PAGE_LOCK, ScanResult.PAGE_LRU, ScanResult.DEL_PAGE_LRU, ScanResult.PAGE_NULL, ScanResult.PAGE_COMPOUND,
)  # fmt: skip

# madvise_collapse_errno: everything else is -EINVAL.
ERRNO: Final = {
    ScanResult.ALLOC_HUGE_PAGE_FAIL: -ENOMEM,
    ScanResult.EXCEED_NONE_PTE: -EBUSY,
    ScanResult.PAGE_COUNT: -EAGAIN,
    ScanResult.PAGE_LOCK: -EAGAIN,
    ScanResult.PAGE_LRU: -EAGAIN,
    ScanResult.DEL_PAGE_LRU: -EAGAIN,
    ScanResult.PAGE_FILLED: -EAGAIN,
}
