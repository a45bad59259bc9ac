"""From the text of /proc to views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from emulator.geometry import PAGE_SHIFT
from emulator.workload import shared_memory, token
from oracle.live.calls import ARENA_START
from oracle.live.pages import (
    PM_EXCLUSIVE,
    PM_GUARD,
    PM_MARKER,
    PM_MARKER_POISON,
    PM_PFN,
    PM_PRESENT,
    PM_SWAP,
    PM_SWAP_TYPE,
    PM_UFFD_WP,
    Frames,
)
from oracle.live.proc import Counts
from oracle.live.view import Counters, PageView, VmaView

# Names of VmFlags (fs/proc/task_mmu.c) that are compared: those that the machine keeps.
FLAG_NAMES: Final = frozenset("gd pf lo lf io sr rr dc de ac nr ht wf dd mm hg nh mg dp sl gu um uw ui".split())

# Bits of /proc/kpageflags that are compared (include/uapi/linux/kernel-page-flags.h).
KPF_NAMES: Final = {
    1 << 12: "anon",
    1 << 13: "swapcache",
    1 << 15: "head",
    1 << 16: "tail",
    1 << 21: "ksm",
    1 << 22: "thp",
    1 << 33: "mlocked",
}
_KPF_ANON: Final = 1 << 12
_KPF_THP: Final = 1 << 22  # beside _KPF_ZERO_PAGE: the huge page of zeros
_KPF_ZERO_PAGE: Final = 1 << 24

_PROT: Final = {ord("r"): 1, ord("w"): 2, ord("x"): 4}
_PAGES_PER_KB: Final = 4  # kB a page
_CACHE_MAX: Final = 1 << 16

Entries = Mapping[int, Sequence[tuple[int, int]]]
"""By label, (arena page, entry of /proc/PID/pagemap)."""


class VmaParser:
    """Makes VMAs of the records that ``proc.cut_smaps`` gives; the same record is parsed once."""

    def __init__(self, files: Mapping[int, int]) -> None:
        self._files = files  # inode to label
        self._shared: dict[int, int] = {}  # the same of shared anonymous memory, whose inodes are never used again
        self._known: dict[bytes, VmaView] = {}

    def __call__(self, record: bytes, step: int) -> VmaView:
        """A record seen after step ``step``: a file that nobody knew before is the memory that the step has mapped."""
        vma = self._known.get(record)
        if vma is None:
            if len(self._known) >= _CACHE_MAX:
                self._known.clear()
            inode = inode_of(record)
            if inode and inode not in self._files:
                self._shared.setdefault(inode, shared_memory(token(step, 0)))
            vma = self._known[record] = parse_vma(record, {**self._files, **self._shared})
        return vma

    def forget_shared(self) -> None:
        """Another workload begins."""
        self._shared.clear()


def inode_of(record: bytes) -> int:
    """The inode that a VMA's line of maps shows; 0: it has no file."""
    return int(record.split(None, 5)[4])


def parse_vma(record: bytes, files: Mapping[int, int]) -> VmaView:
    """One VMA from its line of maps and, behind a newline, its VmFlags; ``files``: inode to label."""
    line, _, flags = record.partition(b"\n")
    places, access, offset, _, inode = line.split(None, 5)[:5]
    start, end = (int(place, 16) - ARENA_START >> PAGE_SHIFT for place in places.split(b"-"))
    label = files.get(int(inode))
    return VmaView(
        start,
        end,
        sum(_PROT.get(letter, 0) for letter in access),
        access.endswith(b"s"),
        0 if label is None else label + 1,
        int(offset, 16) >> PAGE_SHIFT,
        FLAG_NAMES.intersection(flags.decode("ascii").split()),
    )


def counters(counts: Counts, empty: Counts) -> Counters:
    """Counters as differences to those of an empty arena."""
    return Counters(*((now - before) // _PAGES_PER_KB for now, before in zip(counts, empty, strict=True)))


def parse_pages(
    entries: Mapping[int, list[tuple[int, int]]], frames: Frames
) -> dict[int, tuple[PageView, ...]]:
    """The pages of every process by label. Frames and swap slots are numbered in the order of labels and pages."""
    numbers: dict[int, int] = {}
    return {
        label: tuple(_page(page, entry, frames, numbers) for page, entry in entries[label])
        for label in sorted(entries)
    }


def _page(page: int, entry: int, frames: Frames, numbers: dict[int, int]) -> PageView:
    if entry & PM_GUARD:
        return PageView(page, "guard", False, -1, -1, frozenset())
    place = entry & (PM_PFN | PM_SWAP)
    protection = ("wp",) if entry & PM_UFFD_WP else ()
    if entry & PM_SWAP:
        if entry & PM_SWAP_TYPE == PM_MARKER:
            state = "poison" if entry & PM_MARKER_POISON else "marker"
            return PageView(page, state, False, -1, -1, frozenset())
        number = numbers.setdefault(place, len(numbers))
        return PageView(page, "swap", False, number, -1, frozenset(protection))
    count, flags = frames[place]
    if flags & _KPF_ZERO_PAGE:
        huge = ("thp",) if flags & _KPF_THP else ()
        return PageView(page, "zero", False, -1, -1, frozenset((*huge, *protection)))
    if not flags & _KPF_ANON:  # how often others map its pages hangs on what the kernel maps around faults
        number = numbers.setdefault(place, len(numbers))
        return PageView(page, "file", False, number, -1, frozenset(("thp", *protection)))
    names = frozenset((*(name for bit, name in KPF_NAMES.items() if flags & bit), *protection))
    exclusive = bool(entry & PM_EXCLUSIVE)
    return PageView(page, "present", exclusive, numbers.setdefault(place, len(numbers)), count, names)


def present_frames(entries: Entries) -> dict[int, dict[int, int]]:
    """By label, arena page to frame number."""
    return {
        label: {page: entry & PM_PFN for page, entry in of_process if entry & PM_PRESENT}
        for label, of_process in entries.items()
    }
