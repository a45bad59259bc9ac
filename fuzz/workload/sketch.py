"""A light guess at what is mapped while a workload is made, so that new operations meet old ones.

It follows each operation as if it succeeded and knows no merging: the seams of old mappings are where
interesting things happen. It is never asked whether something is right; oracles do not use it.
"""

from __future__ import annotations

from itertools import pairwise

from emulator.geometry import GEOMETRIES, Geometry
from emulator.uapi import (
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_SHARED,
    MAP_TYPE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from emulator.workload import FOLL_WRITE, MEMFD, Op, Step
from fuzz.workload.domains import OP_DOMAINS
from fuzz.workload.repair import Labels, repair_step

TOUCHED_MAX = 16


class Span:
    """Pages [start, end) that were mapped together; ``home`` is where ``start`` was when it was mapped."""

    __slots__ = ("cached", "end", "faulted", "file", "home", "huge", "prot", "start", "uffd")

    def __init__(
        self, start: int, end: int, home: int, prot: int, file: int, *, faulted: bool, huge: bool
    ) -> None:
        self.start = start
        self.end = end
        self.home = home
        self.prot = prot
        self.file = file
        self.faulted = faulted  # something wrote to it
        self.huge = huge  # MADV_HUGEPAGE
        self.cached = False  # of a file of memory: a memfd, or shared and anonymous
        self.uffd = 0  # registered with userfaultfd: UFFDIO_REGISTER_MODE_*

    def __repr__(self) -> str:
        return f"Span({self.start}..{self.end} home {self.home}{' faulted' if self.faulted else ''})"

    def part(self, start: int, end: int) -> Span:
        """A copy of the pages [start, end) of it."""
        part = self.at(start, end, self.home + start - self.start)
        part.uffd = self.uffd
        return part

    def at(self, start: int, end: int, home: int) -> Span:
        """A span like it in another place, where it is not registered."""
        other = Span(start, end, home, self.prot, self.file, faulted=self.faulted, huge=self.huge)
        other.cached = self.cached
        return other


class Sketch:
    """The spans of each living process, the pages that were touched last, and the labels in use."""

    __slots__ = ("geometry", "heaps", "labels", "spaces", "touched")

    def __init__(self, geometry: str) -> None:
        self.geometry: Geometry = GEOMETRIES[geometry]
        self.labels = Labels()
        self.spaces: dict[int, list[Span]] = {0: []}  # ascending by address
        self.heaps: dict[int, int] = {}  # where the heap of a process ends that has moved it
        self.touched: dict[int, list[int]] = {0: []}  # pages that hold something of their own, oldest first

    def add(self, step: Step) -> Step | None:
        """Follow the step, as far as it is valid here; what of it is, or None."""
        fixed = repair_step(step, OP_DOMAINS[self.geometry.name], self.labels)
        if fixed is not None:
            for op in fixed.ops:
                self._follow(op, self.spaces[op.proc])
        return fixed

    def span_at(self, proc: int, page: int) -> Span | None:
        """The span that holds the page."""
        for span in self.spaces.get(proc, ()):
            if span.start <= page < span.end:
                return span
        return None

    def is_free(self, proc: int, start: int, end: int) -> bool:
        """Whether pages [start, end) lie in the arena and nothing is mapped there."""
        if start < 0 or end > self.geometry.arena_pages:
            return False
        return all(span.end <= start or span.start >= end for span in self.spaces.get(proc, ()))

    def gap(self, proc: int, length: int) -> int | None:
        """The highest place where ``length`` pages are free, as the kernel chooses; None if there is none."""
        end = self.geometry.arena_pages
        for span in reversed(self.spaces.get(proc, [])):
            if end - span.end >= length:
                break
            end = min(end, span.start)
        return end - length if end >= length else None

    # ---- one op

    def _follow(self, op: Op, spans: list[Span]) -> None:
        kind, args = op.kind, op.args
        if kind == "mmap":
            self._follow_mmap(op.proc, spans, args)
        elif kind == "munmap":
            self._unmap(spans, args[0], args[0] + args[1])
        elif kind == "mremap":
            self._follow_mremap(op.proc, spans, args)
        elif kind == "mprotect":
            for span in self._isolate(spans, args[0], args[0] + args[1]):
                span.prot = args[2]
        elif kind == "madvise":
            self._follow_madvise(spans, args)
        elif kind == "brk":
            self._follow_brk(op.proc, spans, args[0])
        elif kind == "uffd_register":
            for span in self._isolate(spans, args[0], args[0] + args[1]):
                span.uffd = args[2] if span.cached or not span.file else 0
        elif kind == "uffd_unregister":
            for span in self._isolate(spans, args[0], args[0] + args[1]):
                span.uffd = 0
        elif kind == "uffd_close":
            for span in spans:
                span.uffd = 0
        elif kind in ("uffd_copy", "uffd_move", "uffd_continue"):
            span_there = self.span_at(op.proc, args[0])
            if span_there is not None and span_there.uffd:
                span_there.faulted = True
                self._touch(op.proc, args[0])
        elif kind == "fork":
            self.heaps[args[0]] = self.heaps.get(op.proc, self.geometry.heap_page)
            self.spaces[args[0]] = [span.at(span.start, span.end, span.home) for span in spans]
            self.touched[args[0]] = list(self.touched[op.proc])
        elif kind == "exit":
            del self.spaces[op.proc]
        elif kind in ("write", "fill") or (kind in ("gup_fast", "gup_slow") and args[1] & FOLL_WRITE):
            touched = self.span_at(op.proc, args[0])
            if touched is not None:
                touched.faulted = True
                self._touch(op.proc, args[0])

    def _touch(self, proc: int, page: int) -> None:
        pages = self.touched[proc]
        if page in pages:
            pages.remove(page)
        pages.append(page)
        del pages[:-TOUCHED_MAX]

    def _follow_mmap(self, proc: int, spans: list[Span], args: tuple[int, ...]) -> None:
        start, length, prot, flags, file, offset = args
        if length == 0:
            return
        if flags & MAP_FIXED:
            self._unmap(spans, start, start + length)
        elif not self.is_free(proc, start, start + length):
            place = None if flags & MAP_FIXED_NOREPLACE else self.gap(proc, length)
            if place is None:
                return
            start = place
        if start + length <= self.geometry.arena_pages:
            home = offset if file else start
            new = Span(start, start + length, home, prot, file, faulted=False, huge=False)
            new.cached = file == MEMFD + 1 or (not file and flags & MAP_TYPE == MAP_SHARED)
            self._insert(spans, new)

    def _follow_brk(self, proc: int, spans: list[Span], end: int) -> None:
        old = self.heaps.get(proc, self.geometry.heap_page)
        if end < self.geometry.heap_page or (end > old and not self.is_free(proc, old, end + 1)):
            return
        self._unmap(spans, end, old)
        if end > old:
            prot = PROT_READ | PROT_WRITE
            self._insert(spans, Span(old, end, old, prot, 0, faulted=False, huge=False))
        self.heaps[proc] = end

    def _follow_mremap(self, proc: int, spans: list[Span], args: tuple[int, ...]) -> None:
        start, old_len, new_len, flags, target = args
        if old_len == 0 or new_len == 0:
            return
        if not flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
            if new_len <= old_len:
                self._unmap(spans, start + new_len, start + old_len)
                return
            if self.is_free(proc, start + old_len, start + new_len):
                span = self.span_at(proc, start + old_len - 1)
                if span is not None and span.end == start + old_len:
                    span.end = start + new_len
                return
            chosen = self.gap(proc, new_len) if flags & MREMAP_MAYMOVE else None
            if chosen is None:
                return
            target = chosen
        elif not flags & MREMAP_MAYMOVE or (start < target + new_len and target < start + old_len):
            return
        elif not flags & MREMAP_FIXED and not self.is_free(proc, target, target + new_len):
            chosen = self.gap(proc, new_len)
            if chosen is None:
                return
            target = chosen
        self._move(proc, spans, args, target)

    def _move(self, proc: int, spans: list[Span], args: tuple[int, ...], target: int) -> None:
        start, old_len, new_len, flags, _ = args
        if target + new_len > self.geometry.arena_pages:
            return
        for page in list(self.touched[proc]):
            if start <= page < start + min(old_len, new_len):
                self._touch(proc, page - start + target)
        self._unmap(spans, target, target + new_len)
        moved = self._isolate(spans, start, start + min(old_len, new_len))
        if not flags & MREMAP_DONTUNMAP:
            self._unmap(spans, start, start + old_len)
        for span in moved:
            place = target + span.start - start
            # What nothing has written to takes the page offset of its new place.
            home = span.home if span.faulted or span.file else place
            new = span.at(place, place + span.end - span.start, home)
            if span is moved[-1] and new_len > old_len:
                new.end = target + new_len
            self._insert(spans, new)

    def _follow_madvise(self, spans: list[Span], args: tuple[int, ...]) -> None:
        start, length, advice = args
        if advice in (MADV_HUGEPAGE, MADV_NOHUGEPAGE):
            for span in self._isolate(spans, start, start + length):
                span.huge = advice == MADV_HUGEPAGE

    # ---- lists of spans

    def _insert(self, spans: list[Span], new: Span) -> None:
        position = 0
        while position < len(spans) and spans[position].start < new.start:
            position += 1
        spans.insert(position, new)

    def _isolate(self, spans: list[Span], start: int, end: int) -> list[Span]:
        """Cut at ``start`` and ``end``; the spans between them."""
        inside: list[Span] = []
        position = 0
        while position < len(spans):
            span = spans[position]
            if span.end > start and span.start < end:
                cuts = sorted({span.start, max(span.start, start), min(span.end, end), span.end})
                pieces = [span.part(low, high) for low, high in pairwise(cuts)]
                spans[position : position + 1] = pieces
                inside += [piece for piece in pieces if piece.start >= start and piece.end <= end]
                position += len(pieces) - 1
            position += 1
        return inside

    def _unmap(self, spans: list[Span], start: int, end: int) -> None:
        if end > start:
            self._isolate(spans, start, end)
            spans[:] = [span for span in spans if span.end <= start or span.start >= end]
