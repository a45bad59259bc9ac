"""The order in which the reverse map of a file goes through its mappings (mm/interval_tree.c). Pages.

By ``vm_pgoff``; of equals, whoever was entered last comes last. A VMA whose range changes is taken out and entered
anew, so among its equals it goes to the end; the copy that fork makes stands right behind its original. It decides
who is unmapped when the walk ends early, and whether a move's source is met before its destination.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT

if TYPE_CHECKING:
    from emulator.mm_types import VmAreaStruct


def start_pgoff(vma: VmAreaStruct) -> int:
    return vma.vm_pgoff


class VmaIntervalTree:
    """``i_mmap`` of a file. A VMA must not change its range while it is in here."""

    __slots__ = ("_vmas",)

    def __init__(self) -> None:
        self._vmas: list[VmAreaStruct] = []

    def __len__(self) -> int:
        return len(self._vmas)

    def __iter__(self) -> Iterator[VmAreaStruct]:
        return iter(self._vmas)

    def insert(self, vma: VmAreaStruct) -> None:
        self._vmas.insert(bisect_right(self._vmas, vma.vm_pgoff, key=start_pgoff), vma)

    def insert_after(self, vma: VmAreaStruct, prev: VmAreaStruct) -> None:
        """Right behind ``prev``, which begins at the same page of the file."""
        self._vmas.insert(self._index(prev) + 1, vma)

    def remove(self, vma: VmAreaStruct) -> None:
        del self._vmas[self._index(vma)]

    def overlapping(self, first: int, last: int) -> list[VmAreaStruct]:
        """Those that map any page of the file from ``first`` to ``last``, both included."""
        begun = self._vmas[: bisect_right(self._vmas, last, key=start_pgoff)]
        return [vma for vma in begun if vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> PAGE_SHIFT) > first]

    def _index(self, vma: VmAreaStruct) -> int:
        at = bisect_left(self._vmas, vma.vm_pgoff, key=start_pgoff)
        while self._vmas[at] is not vma:
            at += 1
        return at
