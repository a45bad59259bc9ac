"""Everything outside the arena: filled, so that the kernel finds free space in the arena only, and kept as it is.

Without MAP_FIXED the kernel looks for a place from the top of the address space downwards. The arena lies below
program, libraries and stack; once every hole above it is filled, its own end is the highest free place.
From then on nothing else may map memory: ``ENVIRONMENT`` makes the C library take all memory from a heap
that is large enough from the beginning.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from emulator.geometry import GEOMETRIES, PAGE_SIZE
from oracle.live.processor import SYS_MMAP, SYS_MUNLOCK, SYS_MUNMAP, Processor

ARENA_START: Final = GEOMETRIES["x86-64"].arena_start
ARENA_END: Final = GEOMETRIES["x86-64"].arena_end

_HEAP: Final = 96 << 20  # bytes; a workload needs a few MiB
# Has to be set when the process starts.
ENVIRONMENT: Final = {
    "PYTHONMALLOC": "malloc",
    "MALLOC_TOP_PAD_": str(_HEAP),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_ARENA_MAX": "1",
}

_STACK_PAGES: Final = 64
_FENCES: Final = 6  # mappings of one page above the arena: a read of smaps that passes the arena ends in them
_MAP_PRIVATE_NORESERVE: Final = 0x4002
_MAP_FIXED_NOREPLACE: Final = 0x100000


class Mapping(NamedTuple):
    """A line of /proc/self/maps. Addresses in bytes, ``end`` past the last."""

    start: int
    end: int
    inode: int
    name: str


class Filling(NamedTuple):
    """A mapping that fills a hole. Bytes."""

    start: int
    size: int


def fill(processor: Processor) -> Filling:
    """Fill every hole above the arena; the largest filling. Raises ``OSError`` when the arena itself is not free.

    The filling cannot be accessed, costs no memory, and never merges with a mapping of the arena, as it is a file.
    """
    processor.grow_stack(_STACK_PAGES)
    taken = [mapping for mapping in mappings() if mapping.end > ARENA_START]
    if taken[0].start < ARENA_END + _FENCES * PAGE_SIZE:
        raise OSError(errno.EADDRINUSE, f"the arena is not free: {taken[0]}")
    file = os.memfd_create("vmafuzz-fill")
    for fence in range(_FENCES):
        _place(processor, file, ARENA_END + fence * PAGE_SIZE, PAGE_SIZE)
    lowest = ARENA_END + _FENCES * PAGE_SIZE
    largest = Filling(0, 0)
    for mapping in taken:
        if mapping.name == "[stack]":
            break
        if mapping.start > lowest:
            _place(processor, file, lowest, mapping.start - lowest)
            largest = max(largest, Filling(lowest, mapping.start - lowest), key=lambda filling: filling.size)
        lowest = mapping.end
    _fill_below_stack(processor, file)
    os.close(file)
    return largest


def _place(processor: Processor, file: int, start: int, size: int) -> None:
    flags = _MAP_PRIVATE_NORESERVE | _MAP_FIXED_NOREPLACE
    result = processor.call(SYS_MMAP, start, size, 0, flags, file, 0)
    if result != start:
        raise OSError(-result, f"the hole at {start:x} cannot be filled")


def _fill_below_stack(processor: Processor, file: int) -> None:
    """The hole below the stack is searched only in part; take what the kernel offers above the arena."""
    size = 1 << 46
    while size >= PAGE_SIZE:
        offered = processor.call(SYS_MMAP, 0, size, 0, _MAP_PRIVATE_NORESERVE, file, 0)
        if offered >= ARENA_END:
            continue
        if offered >= 0:
            processor.call(SYS_MUNMAP, offered, size)
        size >>= 1


def unlock_surroundings(processor: Processor) -> None:
    """After mlockall: what is outside of the arena is unlocked again, as a machine has nothing there."""
    for mapping in mappings():
        if not ARENA_START <= mapping.start < ARENA_END:
            processor.call(SYS_MUNLOCK, mapping.start, mapping.end - mapping.start)


def mappings() -> list[Mapping]:
    """Every mapping of this process, in order."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            fields = line.split(None, 5)
            start, end = fields[0].split("-")
            name = fields[5].strip() if len(fields) > 5 else ""
            found.append(Mapping(int(start, 16), int(end, 16), int(fields[4]), name))
    return found
