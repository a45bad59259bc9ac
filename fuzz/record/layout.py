"""Layouts of address spaces: ``/proc/PID/maps`` as text, and the machine's in the same form.

Source of the form: Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Final

from emulator.errors import UsageError
from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE, MmStruct, VmAreaStruct
from fuzz.record.events import MapsLine

_LINE: Final = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+) *(.*)"
)

# Seen in every process and no VMA of it: the gate page, which /proc shows at the end.
GATE_NAME: Final = "[vsyscall]"


def parse_maps(lines: Iterable[str]) -> tuple[MapsLine, ...]:
    """The VMAs that the text shows, the gate page left out. Raises UsageError on a line of another form."""
    vmas = []
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line.rstrip("\n"))
        if match is None:
            raise UsageError(f"line {number} is no line of /proc/PID/maps: {line.strip()[:80]!r}")
        start, end, perms, offset, device, inode, name = match.groups()
        if name != GATE_NAME:
            vmas.append(
                MapsLine(int(start, 16), int(end, 16), perms, int(offset, 16), device, int(inode), name)
            )
    return tuple(vmas)


def format_line(line: MapsLine) -> str:
    """A line as ``/proc/PID/maps`` shows it."""
    head = f"{line.start:08x}-{line.end:08x} {line.perms} {line.offset:08x} {line.device} {line.inode}"
    return f"{head:<72} {line.name}".rstrip()


def perms_of(vma: VmAreaStruct) -> str:
    """``rw-p``, from vm_flags (fs/proc/task_mmu.c: shared means VM_MAYSHARE)."""
    flags = vma.vm_flags
    return (
        ("r" if flags & VM_READ else "-")
        + ("w" if flags & VM_WRITE else "-")
        + ("x" if flags & VM_EXEC else "-")
        + ("s" if flags & VM_MAYSHARE else "p")
    )


def machine_layout(mm: MmStruct, inodes: Mapping[int, tuple[str, int, int]]) -> tuple[MapsLine, ...]:
    """The VMAs of a machine's process in the form of ``/proc/PID/maps``, without names.

    ``inodes`` says which inode an address space is, by its label.
    """
    lines = []
    for vma in mm.mm_mt:
        if vma.vm_file is None:
            lines.append(MapsLine(vma.vm_start, vma.vm_end, perms_of(vma), 0, "00:00", 0, ""))
            continue
        device, inode, _ = inodes.get(vma.vm_file.f_mapping.label, ("", 0, 0))
        offset = vma.vm_pgoff << PAGE_SHIFT
        lines.append(MapsLine(vma.vm_start, vma.vm_end, perms_of(vma), offset, device, inode, ""))
    return tuple(lines)


def first_difference(
    recorded: tuple[MapsLine, ...], machine: tuple[MapsLine, ...]
) -> tuple[MapsLine | None, MapsLine | None] | None:
    """The first pair of lines that differ (names are no part of it), None for equal layouts.

    An inode that the machine does not know (device "") is equal to any.
    """
    for ours, theirs in zip_longest(recorded, machine):
        if ours is None or theirs is None:
            return ours, theirs
        if ours[:4] != theirs[:4] or (theirs.device and ours[4:6] != theirs[4:6]):
            return ours, theirs
    return None
