"""Reading what /proc tells of pages: pagemap of a process, kpagecount and kpageflags of frames. Needs root."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from typing import Final

from emulator.geometry import GEOMETRIES, PAGE_SHIFT, PAGE_SIZE
from oracle.live.processor import SYS_IOCTL, SYS_MADVISE, SYS_MOVE_PAGES, Processor

PM_PFN: Final = (1 << 55) - 1
PM_EXCLUSIVE: Final = 1 << 56
PM_UFFD_WP: Final = 1 << 57
PM_GUARD: Final = 1 << 58
PM_SWAP: Final = 1 << 62
PM_PRESENT: Final = 1 << 63

# Of an entry with PM_SWAP: what the lowest five bits say of a marker, and in the bits above them which one it is.
PM_SWAP_TYPE: Final = 31
PM_MARKER: Final = 31
PM_MARKER_POISON: Final = 2 << 5

_MADV_COLD: Final = 20
_MPOL_MF_MOVE: Final = 2
_PAGEMAP_SCAN: Final = 0xC060_6610  # since Linux 6.7
_PAGE_IS_FILE: Final = 1 << 2
_PAGE_IS_PRESENT: Final = 1 << 3
_PAGE_IS_SWAPPED: Final = 1 << 4  # guard regions too
_PAGE_IS_ZERO: Final = 1 << 5  # a page of zeros, the huge one too, of which pagemap says that it is a file's
_PAGE_IS_HUGE: Final = 1 << 6  # mapped by a PMD
_REGIONS: Final = 256  # that one scan gives
_REGION: Final = 3  # words: start, end, categories
_WORD: Final = 8  # bytes of an entry
_ARENA: Final = GEOMETRIES["x86-64"]

Frames = dict[int, tuple[int, int]]
"""Frame number to (mapcount, KPF_* bits)."""


class PageReader:
    """Reads pages of the arena. Raises ``OSError`` where frame numbers cannot be seen."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._counts = os.open("/proc/kpagecount", os.O_RDONLY | os.O_CLOEXEC)
        self._flags = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
        self._regions = (ctypes.c_uint64 * (_REGION * _REGIONS))()
        self._scan = (ctypes.c_uint64 * 12)()

    def check(self, pagemap: int) -> None:
        """Raises ``OSError`` when the numbers of frames are hidden from us, as from everybody but root."""
        page = ctypes.addressof(self._scan) >> PAGE_SHIFT
        entry = int.from_bytes(os.pread(pagemap, _WORD, page * _WORD), "little")
        if not entry & PM_PFN:
            raise OSError(
                errno.EPERM, "/proc/self/pagemap hides frame numbers; be root, or compare maps only"
            )
        self.entries(pagemap)

    def settle(self) -> None:
        """Empty the batches of this CPU: what waits there to become mlocked, or evictable, becomes that now.

        Most calls on locked memory do so themselves (lru_add_drain). MADV_COLD does before it looks at any page,
        and makes none but a page of this object look unused.
        """
        page = ctypes.addressof(self._scan) & -PAGE_SIZE
        result = self._processor.call(SYS_MADVISE, page, PAGE_SIZE, _MADV_COLD)
        if result < 0:
            raise OSError(-result, "MADV_COLD")

    def settle_everywhere(self) -> None:
        """Empty the batches of all CPUs, as a daemon may have filled another one's.

        move_pages(2) does before it moves anything, and moves nothing: a page of this object is to go to node 0, or
        to stay where it is if there is no such node.
        """
        place = ctypes.c_uint64(ctypes.addressof(self._scan) & -PAGE_SIZE)
        node, status = ctypes.c_int(0), ctypes.c_int()
        words = ctypes.addressof(place), ctypes.addressof(node), ctypes.addressof(status)
        result = self._processor.call(SYS_MOVE_PAGES, 0, 1, *words, _MPOL_MF_MOVE)
        if result < 0:
            raise OSError(-result, "move_pages")

    def entries(self, pagemap: int) -> list[tuple[int, int]]:
        """(arena page, pagemap entry) of each page of the open ``pagemap`` that has something, page cache left out.

        Which pages of a file are present depends on what the kernel maps around a fault: of these nothing is said, save
        of huge ones that are mapped as a whole.
        """
        found: list[tuple[int, int]] = []
        for start, end, categories in self._populated(pagemap):
            if (
                categories & (_PAGE_IS_FILE | _PAGE_IS_PRESENT | _PAGE_IS_ZERO | _PAGE_IS_HUGE)
                == _PAGE_IS_FILE | _PAGE_IS_PRESENT
            ):
                continue
            data = os.pread(pagemap, (end - start) * _WORD, start * _WORD)
            first = start - (_ARENA.arena_start >> PAGE_SHIFT)
            found += enumerate(memoryview(data).cast("Q"), first)
        return found

    def _populated(self, pagemap: int) -> Iterable[tuple[int, int, int]]:
        """(start, end, categories): ranges of virtual pages that are present or swapped, by the kernel's own scan."""
        wanted = _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED
        told = wanted | _PAGE_IS_FILE | _PAGE_IS_ZERO | _PAGE_IS_HUGE
        start, end = _ARENA.arena_start, _ARENA.arena_end
        while start < end:
            # struct pm_scan_arg: size, flags, start, end, walk_end
            self._scan[:5] = [ctypes.sizeof(self._scan), 0, start, end, 0]
            # vec, vec_len, max_pages; categories inverted, all of, any of, returned
            self._scan[5:] = [ctypes.addressof(self._regions), _REGIONS, 0, 0, 0, wanted, told]
            count = self._processor.call(SYS_IOCTL, pagemap, _PAGEMAP_SCAN, ctypes.addressof(self._scan))
            if count < 0:
                raise OSError(-count, "PAGEMAP_SCAN")
            for i in range(0, _REGION * count, _REGION):
                region = self._regions[i : i + _REGION]
                yield region[0] >> PAGE_SHIFT, region[1] >> PAGE_SHIFT, region[2]
            start = self._scan[4]

    def frames(self, numbers: Iterable[int]) -> Frames:
        """What is known of frames. Neighbours are read together."""
        found: Frames = {}
        wanted = sorted(numbers)
        position = 0
        while position < len(wanted):
            first = wanted[position]
            size = 1
            while position + size < len(wanted) and wanted[position + size] == first + size:
                size += 1
            counts = memoryview(os.pread(self._counts, size * _WORD, first * _WORD)).cast("Q")
            flags = memoryview(os.pread(self._flags, size * _WORD, first * _WORD)).cast("Q")
            found.update(zip(range(first, first + size), zip(counts, flags, strict=True), strict=True))
            position += size
        return found


def frame_numbers(entries: Iterable[tuple[int, int]]) -> set[int]:
    """The frames of present pages."""
    return {entry & PM_PFN for _, entry in entries if entry & PM_PRESENT}
