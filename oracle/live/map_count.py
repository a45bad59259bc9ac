"""Bringing a process of a live workload near to ``vm.max_map_count``.

The setting is everybody's, and stays as it is. The process uses up what it may have beyond the wanted number of
mappings: permissions cut the filling above the arena into single pages, which costs neither memory nor address space,
and is no data. Its children begin with the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from emulator.geometry import PAGE_SIZE
from oracle.live.processor import SYS_MPROTECT, Processor
from oracle.live.surroundings import ARENA_END, ARENA_START, Filling, mappings

SETTING: Final = Path("/proc/sys/vm/max_map_count")

_MOST: Final = 1 << 17  # mappings: more would take seconds
_PROT_NONE: Final = 0
_PROT_READ: Final = 1


def refused() -> str:
    """Why no process can be brought near to it; empty if one can."""
    count = int(SETTING.read_text())
    return f"vm.max_map_count is {count}: too many mappings to make" if count > _MOST else ""


def leave(processor: Processor, maps: int, filling: Filling) -> None:
    """Let this process, and its children to come, have so many mappings in the arena, or as many as it has."""
    _protect(processor, filling.start, filling.size, _PROT_NONE)  # one mapping again, if it was cut before
    inside, outside = _counts()
    missing = int(SETTING.read_text()) - max(maps, inside) - outside
    if missing < 0 or missing * PAGE_SIZE >= filling.size:
        raise OSError(f"{missing} mappings cannot be made")
    if missing & 1:
        _protect(processor, filling.start, PAGE_SIZE, _PROT_READ)
    for number in range(missing // 2):
        _protect(processor, filling.start + (2 * number + 2) * PAGE_SIZE, PAGE_SIZE, _PROT_READ)


def _counts() -> tuple[int, int]:
    """How many mappings this process has in the arena, and elsewhere. [vsyscall] is none, though it is listed."""
    listed = [mapping for mapping in mappings() if mapping.name != "[vsyscall]"]
    inside = sum(ARENA_START <= mapping.start < ARENA_END for mapping in listed)
    return inside, len(listed) - inside


def _protect(processor: Processor, start: int, size: int, permissions: int) -> None:
    result = processor.call(SYS_MPROTECT, start, size, permissions)
    if result:
        raise OSError(-result, f"the filling at {start:x} cannot be cut")
