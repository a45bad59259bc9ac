"""From the text of /proc to views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from emulator.geometry import PAGE_SHIFT
from oracle.live.calls import ARENA_START
from oracle.live.proc import Counts
from oracle.live.view import Counters, VmaView

# Names of VmFlags (fs/proc/task_mmu.c) that are compared: those that the machine keeps.
FLAG_NAMES: Final = frozenset("gd pf lo lf io sr rr dc de ac nr ht wf dd mm hg nh mg sl gu".split())

_PROT: Final = {ord("r"): 1, ord("w"): 2, ord("x"): 4}
_PAGES_PER_KB: Final = 4  # kB a page
_CACHE_MAX: Final = 1 << 16


class VmaParser:
    """Makes VMAs of the records that ``proc.cut_smaps`` gives; the same record is parsed once."""

    def __init__(self, files: Mapping[int, int]) -> None:
        self._files = files  # inode to label
        self._known: dict[bytes, VmaView] = {}

    def __call__(self, record: bytes) -> VmaView:
        vma = self._known.get(record)
        if vma is None:
            if len(self._known) >= _CACHE_MAX:
                self._known.clear()
            vma = self._known[record] = parse_vma(record, self._files)
        return vma


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
