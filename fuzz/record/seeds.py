"""Cuts a recording into workloads of useful size, to begin campaigns with.

A window is a run of consecutive memory calls of one address space and of the children that it forks meanwhile, with
the page faults on what these calls touch. Before it stand ops that build what was mapped there when it began.
Addresses are fitted into the arena (``fuzz.record.compress``); what the kernel chose becomes MAP_FIXED, so that the
same ranges meet in the small world.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from emulator.designs.mainline import Mainline
from emulator.geometry import GEOMETRIES, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, page_align
from emulator.image import KernelImage
from emulator.mm_types import VM_ACCESS_FLAGS, VM_MAYSHARE, VM_NORESERVE, VM_WRITE, VmAreaStruct
from emulator.uapi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MLOCK_ONFAULT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from emulator.workload import (
    ADVICE_ALLOWED,
    FILE_PAGES,
    MEMFD,
    OFFSETS_MAX,
    PROCS_MAX,
    STEPS_MAX,
    Op,
    Step,
    Workload,
)
from fuzz.record.compress import Compression
from fuzz.record.context import Observer
from fuzz.record.events import Call, Fault, Recording
from fuzz.record.replay import Replay
from fuzz.record.threads import Space, Thread
from fuzz.workload import wire
from fuzz.workload.repair import repair

GEOMETRY: Final = "small8"
CALLS_MAX: Final = 12  # calls in a window
CALLS_MIN: Final = 3
FAULTS_MAX: Final = 12  # faults kept in a window
_ON_RANGES: Final = frozenset(("munmap", "mprotect", "madvise", "mlock", "mlock2", "munlock"))
_WRITE: Final = 2  # error codes of page faults
_FETCH: Final = 16


class _Area(NamedTuple):
    """A VMA as it stood when a window began."""

    start: int
    end: int
    flags: int
    file: int  # label of its address space, 0 for anonymous
    offset: int  # pages
    faulted: bool


class _Seen(NamedTuple):
    """One thing that happened in a window. Bytes."""

    kind: str  # op kind
    proc: int
    ranges: tuple[tuple[int, int], ...]
    numbers: tuple[int, ...] = ()


class _Window:
    def __init__(self, space: Space) -> None:
        self.areas = [_area(vma) for vma in space.mm.mm_mt]
        self.seen: list[_Seen] = []
        self.calls = 0
        self.labels: dict[int, int] = {space.mm.asid: 0}  # number of an address space to process label
        self.spaces = [space]


def seeds(recording: Recording) -> list[Workload]:
    """Workloads made of ``recording``, each once, in the order in which they begin."""
    cutter = _Cutter()
    Replay(recording, KernelImage(Mainline), observer=cutter).run()
    cutter.close_all()
    distinct: dict[bytes, Workload] = {}
    for window in cutter.done:
        workload = _workload(window)
        if workload is not None:
            distinct.setdefault(wire.encode(workload), workload)
    return list(distinct.values())


class _Cutter(Observer):
    """Collects windows while a recording is replayed."""

    def __init__(self) -> None:
        self.done: list[_Window] = []
        self._open: list[_Window] = []

    def call(self, thread: Thread, call: Call) -> None:
        assert thread.space is not None
        if call.result is None or not call.known:
            return
        window = self._window(thread.space)
        seen = _seen_call(call, window.labels[thread.space.mm.asid], thread)
        if seen is None:
            return
        window.seen.append(seen)
        window.calls += 1
        if window.calls == CALLS_MAX:
            self._close(window)

    def fault(self, thread: Thread, fault: Fault) -> None:
        assert thread.space is not None
        window = self._window(thread.space)
        kind = "write" if fault.error_code & _WRITE else "exec" if fault.error_code & _FETCH else "read"
        page = fault.address & PAGE_MASK
        window.seen.append(_Seen(kind, window.labels[thread.space.mm.asid], ((page, page + PAGE_SIZE),)))

    def fork(self, parent: Thread, child: Thread) -> None:
        assert parent.space is not None
        assert child.space is not None
        window = self._window(parent.space)
        label = len(window.spaces)
        if label < PROCS_MAX:
            window.seen.append(_Seen("fork", window.labels[parent.space.mm.asid], (), (label,)))
            window.labels[child.space.mm.asid] = label
            window.spaces.append(child.space)

    def leave(self, thread: Thread) -> None:
        space = thread.space
        assert space is not None
        if space.mm.mm_users > 1:
            return
        for window in self._open:
            if space.mm.asid in window.labels:
                label = window.labels[space.mm.asid]
                window.seen.append(_Seen("exit", label, ()))
                if label == 0:
                    self._close(window)
                return

    def close_all(self) -> None:
        """The recording has ended."""
        for window in list(self._open):
            self._close(window)

    def _window(self, space: Space) -> _Window:
        for window in self._open:
            if space.mm.asid in window.labels:
                return window
        window = _Window(space)
        self._open.append(window)
        return window

    def _close(self, window: _Window) -> None:
        self._open.remove(window)
        if window.calls >= CALLS_MIN:
            self.done.append(window)


def _area(vma: VmAreaStruct) -> _Area:
    label = vma.vm_file.f_mapping.label if vma.vm_file is not None else 0
    return _Area(vma.vm_start, vma.vm_end, vma.vm_flags, label, vma.vm_pgoff, vma.anon_vma is not None)


def _span(start: int, length: int) -> tuple[int, int]:
    start &= PAGE_MASK
    return start, start + page_align(length)


def _seen_call(call: Call, proc: int, thread: Thread) -> _Seen | None:
    """The op that a call becomes; None for one that leaves memory as it was or has no counterpart."""
    args, result = call.args, call.result
    assert result is not None
    if call.name == "mmap" and result >= 0:
        flags = args[3]
        file = 0 if flags & MAP_ANONYMOUS else (args[4] & 0xFF) + 1
        return _Seen("mmap", proc, (_span(result, args[1]),), (args[2], flags, file, args[5] >> PAGE_SHIFT))
    if call.name in _ON_RANGES and args[1] < 1 << 47:
        return _Seen(call.name, proc, (_span(args[0], args[1]),), args[2:3])
    if call.name == "mremap" and result >= 0:
        ranges = (_span(args[0], args[1]), _span(result, args[2]))
        return _Seen("mremap", proc, ranges, (args[3],))
    if call.name == "brk" and thread.space is not None and thread.space.mm.brk:
        old, new = page_align(thread.space.mm.brk), page_align(result)
        if new > old:
            numbers = (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0)
            return _Seen("mmap", proc, ((old, new),), numbers)
        if new < old:
            return _Seen("munmap", proc, ((new, old),))
    return None


def _workload(window: _Window) -> Workload | None:
    """The window as a valid workload; None when it does not fit or nothing is left of it."""
    calls = [seen.ranges for seen in window.seen if seen.kind not in ("read", "write", "exec")]
    touched = [bounds for ranges in calls for bounds in ranges if bounds[0] < bounds[1]]
    areas = [area for area in window.areas if any(_meets(area.start, area.end, t) for t in touched)]
    kept = _near_faults(window.seen, touched)
    ranges = touched + [bounds for seen in kept for bounds in seen.ranges]
    ranges += [_clip(area, touched) for area in areas]
    places = Compression(ranges)
    if not ranges or places.pages > GEOMETRIES[GEOMETRY].arena_pages:
        return None
    files = _Files()
    ops = [op for area in areas for op in _build(area, _clip(area, touched), places, files)]
    for number, seen in enumerate(kept):
        op = _op(seen, places, files, number)
        if op is not None:
            ops.append(op)
    return repair(Workload(GEOMETRY, tuple(Step((op,)) for op in ops[:STEPS_MAX])))


def _meets(start: int, end: int, bounds: tuple[int, int]) -> bool:
    """Do they overlap, or touch so that they could merge?"""
    return start <= bounds[1] and bounds[0] <= end


def _near_faults(seen: list[_Seen], touched: list[tuple[int, int]]) -> list[_Seen]:
    """What happened, but of the faults only some, and only those on memory that the calls are about."""
    kept = []
    faults = 0
    for one in seen:
        if one.kind in ("read", "write", "exec"):
            if faults == FAULTS_MAX or not any(_meets(*one.ranges[0], bounds) for bounds in touched):
                continue
            faults += 1
        kept.append(one)
    return kept


def _clip(area: _Area, touched: list[tuple[int, int]]) -> tuple[int, int]:
    """The part of a VMA that matters: what the calls touch of it, and a little around."""
    near = [bounds for bounds in touched if _meets(area.start, area.end, bounds)]
    room = 2 * PAGE_SIZE
    return (
        max(area.start, min(bounds[0] for bounds in near) - room),
        min(area.end, max(bounds[1] for bounds in near) + room),
    )


class _Files:
    """Numbers the files of a window as the workload's few files."""

    def __init__(self) -> None:
        self._labels: dict[int, int] = {}

    def label(self, file: int) -> int:
        if not file:
            return 0
        return self._labels.setdefault(file, len(self._labels) % MEMFD + 1)


def _build(area: _Area, bounds: tuple[int, int], places: Compression, files: _Files) -> list[Op]:
    """Ops that map what stood there before the window, written to when it was faulted."""
    page, end = places.page(bounds[0]), places.page(bounds[1])
    prot = area.flags & VM_ACCESS_FLAGS
    flags = MAP_FIXED | (MAP_SHARED if area.flags & VM_MAYSHARE else MAP_PRIVATE)
    flags |= MAP_NORESERVE if area.flags & VM_NORESERVE else 0
    write = area.faulted and not area.flags & VM_MAYSHARE
    first_prot = prot | PROT_READ | PROT_WRITE if write else prot
    offset = (area.offset + ((bounds[0] - area.start) >> PAGE_SHIFT)) % FILE_PAGES if area.file else 0
    ops = [Op("mmap", 0, (page, end - page, first_prot, flags, files.label(-area.file), offset))]
    if write:
        ops.append(Op("write", 0, (page, 0)))
        if not prot & VM_WRITE:
            ops.append(Op("mprotect", 0, (page, end - page, prot)))
    return ops


def _op(seen: _Seen, places: Compression, files: _Files, number: int) -> Op | None:
    kind, proc, numbers = seen.kind, seen.proc, seen.numbers
    if kind == "fork":
        return Op("fork", proc, numbers)
    if kind == "exit":
        return Op("exit", proc, ()) if proc else None
    page = places.page(seen.ranges[0][0])
    length = places.page(seen.ranges[0][1]) - page
    if kind == "write":
        return Op("write", proc, (page, number % OFFSETS_MAX))
    if kind in ("read", "exec"):
        return Op(kind, proc, (page,))
    if kind == "mmap":
        prot, flags, file, offset = numbers
        shared = flags & MAP_SHARED
        kept = MAP_FIXED | (MAP_SHARED if shared else MAP_PRIVATE) | flags & MAP_NORESERVE
        label = files.label(file) or (1 if shared else 0)  # shared anonymous memory is a file as well
        return Op("mmap", proc, (page, length, prot & VM_ACCESS_FLAGS, kept, label, offset % FILE_PAGES))
    if kind in ("munmap", "mlock", "munlock"):
        return Op(kind, proc, (page, length))
    if kind == "mlock2":
        return Op("mlock2", proc, (page, length, numbers[0] & MLOCK_ONFAULT))
    if kind == "mprotect":
        return Op("mprotect", proc, (page, length, numbers[0] & VM_ACCESS_FLAGS))
    if kind == "madvise":
        return Op("madvise", proc, (page, length, numbers[0])) if numbers[0] in ADVICE_ALLOWED else None
    return _mremap(seen, places, page, length)


def _mremap(seen: _Seen, places: Compression, page: int, length: int) -> Op:
    """A move becomes one to a fixed address; what grew or shrank or did neither goes on doing so."""
    (start, end), (new_start, new_end) = seen.ranges
    new_page = places.page(new_start)
    new_length = places.page(new_end) - new_page
    if new_end - new_start > end - start:
        new_length = max(new_length, length + 1)
    elif new_end - new_start < end - start:
        new_length = max(1, min(new_length, length - 1))
    else:
        new_length = length
    flags = seen.numbers[0] & 0xFF
    if new_start != start:
        flags |= MREMAP_MAYMOVE | MREMAP_FIXED
    return Op("mremap", seen.proc, (page, length, new_length, flags, new_page))
