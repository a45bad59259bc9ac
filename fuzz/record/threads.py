"""The tasks of a recording and their address spaces, as a replay knows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from emulator.fs_types import File
from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import MmStruct, VmAreaStruct
from fuzz.record.events import Call, Event
from fuzz.record.files import FdTable
from fuzz.record.layout import perms_of


class Told(NamedTuple):
    """A VMA at the moment when the machine's kernel would tell perf of it."""

    start: int
    end: int
    perms: str
    offset: int  # vm_pgoff in bytes
    file: File | None

    def __str__(self) -> str:
        return f"{self.start:x}-{self.end:x} {self.perms} offset {self.offset:x}"


def told(vma: VmAreaStruct) -> Told:
    return Told(vma.vm_start, vma.vm_end, perms_of(vma), vma.vm_pgoff << PAGE_SHIFT, vma.vm_file)


class Space:
    """One address space. ``whole`` says that all its mappings are known from the beginning."""

    __slots__ = ("in_flight", "mm", "placed", "whole")

    def __init__(self, mm: MmStruct, *, whole: bool) -> None:
        self.mm = mm
        self.whole = whole
        self.placed = whole  # where the mmap area begins is known
        self.in_flight: dict[int, Thread] = {}  # tid to a thread in a memory call that the machine has not run


class Thread:
    """One task."""

    __slots__ = ("call", "exec_events", "fds", "pid", "ran", "result", "space", "tid", "told")

    def __init__(self, pid: int, tid: int, space: Space | None, fds: FdTable) -> None:
        self.pid = pid
        self.tid = tid
        self.space = space  # None: nothing is known of it
        self.fds = fds
        self.call: Call | None = None  # the call it is in
        self.ran = False  # the machine has run that call
        self.result: int | str | None = None  # the machine's result, or why it has none
        self.told: list[Told] = []  # what the machine told of mappings, not yet compared
        self.exec_events: list[Event] | None = None  # mappings and faults of the exec it is in


class Listener:
    """Hears what the machine's kernel would tell perf: perf_event_mmap, by wrapping the functions that call it.

    Source: the callers of perf_event_mmap() in mm/. ``close`` takes the wrappers off again.
    """

    def __init__(self, image: Any) -> None:
        self.told: list[Told] = []
        self._undo: list[Callable[[], None]] = []
        for name, wrapper in (
            ("mmap.mmap_region", self._region),
            ("brk.do_brk_flags", self._brk),
            ("brk.expand_downwards", self._stack),
            ("mprotect.mprotect_fixup", self._fixup),
        ):
            self._undo.append(image.attach(name, wrapper))

    def take(self) -> list[Told]:
        """What was told since the last time."""
        news, self.told = self.told, []
        return news

    def close(self) -> None:
        for undo in self._undo:
            undo()

    def _region(self, original: Any, mm: MmStruct, *args: Any) -> int:
        result: int = original(mm, *args)
        if result >= 0:
            self._tell(mm.mm_mt.lookup(result))
        return result

    def _brk(self, original: Any, mm: MmStruct, prev: Any, addr: int, *args: Any) -> int:
        result: int = original(mm, prev, addr, *args)
        if result == 0:
            self._tell(mm.mm_mt.lookup(addr))
        return result

    def _stack(self, original: Any, area: VmAreaStruct, address: int) -> int:
        before = area.vm_start
        result: int = original(area, address)
        if area.vm_start != before:
            self._tell(area)
        return result

    def _fixup(self, original: Any, prev: Any, area: VmAreaStruct, start: int, end: int, newflags: int) -> Any:
        changes = newflags != area.vm_flags
        result = original(prev, area, start, end, newflags)
        if changes and isinstance(result, VmAreaStruct):
            self._tell(result)
        return result

    def _tell(self, area: VmAreaStruct | None) -> None:
        if area is not None:
            self.told.append(told(area))
