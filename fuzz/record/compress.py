"""Fits the address ranges of a real program into a small arena, keeping what touches what.

Every address that occurs as the beginning or end of a range becomes a mark. The distance between two neighbouring
marks is kept up to a small maximum and shortened to it above, so ranges that meet, overlap or leave a gap go on doing
so. Bytes in, arena pages out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from emulator.geometry import PAGE_SHIFT

DISTANCE_MAX: Final = 6  # pages between two marks
FIRST_PAGE: Final = 8  # of the arena, so that there is room below


class Compression:
    """Where each address of one window goes."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """``ranges`` are (start, end) in bytes; both ends become marks."""
        marks = sorted({address >> PAGE_SHIFT for bounds in ranges for address in bounds})
        self._marks = marks
        self._places = []
        place = FIRST_PAGE
        for i, mark in enumerate(marks):
            if i:
                place += min(mark - marks[i - 1], DISTANCE_MAX)
            self._places.append(place)

    @property
    def pages(self) -> int:
        """How many arena pages are needed."""
        return self._places[-1] + 1 if self._places else 0

    def page(self, address: int) -> int:
        """The arena page of an address in bytes; one that is no mark stays behind the mark below it."""
        page = address >> PAGE_SHIFT
        i = bisect_right(self._marks, page) - 1
        if i < 0:
            return 0
        room = self._places[i + 1] - self._places[i] - 1 if i + 1 < len(self._marks) else DISTANCE_MAX
        return self._places[i] + min(page - self._marks[i], room)
