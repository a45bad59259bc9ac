"""Reading /proc/PID: what of it concerns the arena, cut to the bytes that are worth sending. Parsing is ``parse``'s."""

from __future__ import annotations

import os
import re
from typing import Final

from emulator.geometry import GEOMETRIES

_READ: Final = 1 << 16  # bytes; the kernel gives about a page at a time
_ARENA_END: Final = b"%x-" % GEOMETRIES["x86-64"].arena_end  # where the filling begins
_COUNTERS: Final = re.compile(
    rb"VmSize:\s+(\d+) kB\nVmLck:\s+(\d+) kB\n.*VmData:\s+(\d+) kB\nVmStk:\s+(\d+) kB\n", re.DOTALL
)

Counts = tuple[int, ...]
"""VmSize, VmLck, VmData, VmStk in kB."""


class ProcFiles:
    """The open files of one process's /proc directory."""

    def __init__(self, pid: int) -> None:
        self._smaps = os.open(f"/proc/{pid}/smaps", os.O_RDONLY | os.O_CLOEXEC)
        self._status = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        self.pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._smaps)
        os.close(self._status)
        os.close(self.pagemap)

    def mappings(self, skipped: int) -> list[bytes]:
        """Each VMA below the arena's end but the first ``skipped``: its line of maps and its VmFlags."""
        return cut_smaps(self._read_smaps())[skipped:]

    def _read_smaps(self) -> bytes:
        data = b""
        while chunk := os.pread(self._smaps, _READ, len(data)):
            data += chunk
            if _ARENA_END in chunk:
                break
        return data

    def counts(self) -> Counts:
        return cut_status(os.pread(self._status, _READ, 0))


def cut_smaps(data: bytes) -> list[bytes]:
    """The text of smaps up to the arena's end as ``line of maps + newline + flags``, one for each VMA."""
    found = []
    header = data[: data.index(b"\n")] if data else _ARENA_END
    for record in data.split(b"\nVmFlags: ")[1:]:
        if header.startswith(_ARENA_END):
            break
        flags, _, rest = record.partition(b"\n")
        found.append(header + b"\n" + flags)
        header = rest[: rest.find(b"\n")]
    return found


def cut_status(data: bytes) -> Counts:
    """The counters in the text of /proc/PID/status. Raises ``ValueError`` for a process without memory."""
    match = _COUNTERS.search(data)
    if match is None:
        raise ValueError("no VmSize in /proc/PID/status")
    return tuple(map(int, match.groups()))
