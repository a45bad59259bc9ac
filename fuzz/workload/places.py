"""Chooses addresses and lengths so that operations meet: near what is mapped, at its edges, at home again."""

from __future__ import annotations

from random import Random
from typing import Final

from emulator.geometry import PAGE_SHIFT, Geometry
from fuzz.workload.sketch import Sketch, Span

_WINDOW_TABLES: Final = 4  # a window is that many page tables long
_LARGE: Final = 64  # entries: from here on a window of whole tables is too wide for operations to meet
_LARGE_WINDOW: Final = 48  # pages of a window then, across the boundary of two tables rather than not
_TRIES: Final = 4
_REGISTERED: Final = 0.25  # of the accesses are to what is registered with userfaultfd, if anything is


class Places:
    """Where operations of one workload happen: in two small windows of the arena, and around what is mapped."""

    __slots__ = ("arena", "heap", "huge", "rng", "windows")

    def __init__(self, rng: Random, geometry: Geometry) -> None:
        self.rng = rng
        self.arena = geometry.arena_pages
        self.heap = geometry.heap_page
        self.huge = geometry.hpage_pmd_nr
        pud = geometry.pud_size >> PAGE_SHIFT
        self.windows = (self._window(pud), self._window(pud))

    def _window(self, pud: int) -> range:
        """Some page tables in a row; four in ten lie across the boundary between two tables of tables."""
        rng = self.rng
        if self.huge >= _LARGE:
            boundary = rng.randrange(self.huge, self.arena, self.huge)
            start = boundary - rng.choice((_LARGE_WINDOW // 2, _LARGE_WINDOW // 2, _LARGE_WINDOW, 0))
            return range(start, start + _LARGE_WINDOW)
        size = _WINDOW_TABLES * self.huge
        inner = range(pud, self.arena, pud)
        if inner and rng.random() < 0.4:
            start = rng.choice(inner) - size // 2
        else:
            start = rng.randrange(0, self.arena - size + 1, self.huge)
        return range(start, start + size)

    def length(self) -> int:
        """A number of pages: mostly small, with what matters to huge pages among it."""
        rng = self.rng
        huge = self.huge
        if rng.random() < (0.95 if huge >= _LARGE else 0.6):
            return rng.choice((1, 1, 2, 2, 3, 4))
        return rng.choice((huge // 2, huge - 1, huge, huge, huge + 1, huge * 2))

    def page(self) -> int:
        """A page of a window, with one in three at the beginning of a page table."""
        rng = self.rng
        page = rng.choice(rng.choice(self.windows))
        return page - page % self.huge if rng.random() < 0.33 else page

    def aligned(self) -> int:
        """A page of a window where a huge page can begin."""
        page = self.rng.choice(self.rng.choice(self.windows))
        return page - page % self.huge

    def span(self, sketch: Sketch, proc: int, near: range | None = None) -> Span | None:
        """Something that is mapped, written to rather than not, in ``near`` if possible."""
        spans = sketch.spaces.get(proc)
        if not spans:
            return None
        rng = self.rng
        if near is not None:
            meeting = [span for span in spans if span.start < near.stop and span.end > near.start]
            if meeting:
                return rng.choice(meeting)
        span = rng.choice(spans)
        return span if span.faulted else rng.choice(spans)

    def touch(self, sketch: Sketch, proc: int, near: range | None = None) -> int:
        """A page to access: mapped as a rule, at an edge rather than not, at times just outside.

        In ``near`` a page that holds something of its own is preferred.
        """
        rng = self.rng
        if near is not None and rng.random() < 0.85:
            held = [page for page in sketch.touched.get(proc, ()) if page in near]
            return rng.choice(held) if held and rng.random() < 0.7 else rng.choice(near)
        span = self.span(sketch, proc)
        registered = [other for other in sketch.spaces.get(proc, ()) if other.uffd]
        if registered and rng.random() < _REGISTERED:
            span = rng.choice(registered)
        roll = rng.random()
        if span is None or roll < 0.04:
            return self.page()
        if roll < 0.35:
            return span.start
        if roll < 0.5:
            return span.end - 1
        if roll < 0.58:
            return min(max(rng.choice((span.start - 1, span.end)), 0), self.arena - 1)
        return rng.randrange(span.start, span.end)

    def region(self, sketch: Sketch, proc: int, near: range | None = None) -> tuple[int, int]:
        """A page and a length: a whole mapping, a part at an edge or in the middle, or more than one."""
        rng = self.rng
        span = self.span(sketch, proc, near)
        if span is None:
            return self.page(), self.length()
        size = span.end - span.start
        roll = rng.random()
        if roll < 0.4 or size == 1:
            start, end = span.start, span.end
        elif roll < 0.55:
            start, end = span.start, rng.randrange(span.start + 1, span.end)
        elif roll < 0.7:
            start, end = rng.randrange(span.start + 1, span.end), span.end
        elif roll < 0.85:
            start = rng.randrange(span.start, span.end)
            end = rng.randrange(start, span.end) + 1
        elif roll < 0.95:  # on into the next mapping, over the hole if there is one
            start = span.start if rng.random() < 0.5 else rng.randrange(span.start, span.end)
            later = [other for other in sketch.spaces[proc] if other.start >= span.end]
            end = later[0].end if later else span.end + 1
        else:
            start, end = span.start - rng.randint(0, 2), span.end + rng.randint(0, 2)
        start = max(start, 0)
        return start, min(end, self.arena) - start

    def whole_huge(self, page: int, length: int) -> tuple[int, int]:
        """The range widened to whole huge pages."""
        start = page - page % self.huge
        end = page + max(length, 1)
        return start, min(end + -end % self.huge, self.arena) - start

    def registered(self, sketch: Sketch, proc: int, near: range | None = None) -> tuple[int, int] | None:
        """A page and a length in something that is registered with userfaultfd; None if nothing is."""
        return self._part([span for span in sketch.spaces.get(proc, ()) if span.uffd], near)

    def cached(self, sketch: Sketch, proc: int, near: range | None = None) -> tuple[int, int] | None:
        """A page and a length in a file of memory; None if none is mapped."""
        return self._part([span for span in sketch.spaces.get(proc, ()) if span.cached], near)

    def _part(self, spans: list[Span], near: range | None) -> tuple[int, int] | None:
        """Some pages of one of the spans, in ``near`` rather than not; None if there are none."""
        rng = self.rng
        if near is not None:
            spans = [span for span in spans if span.start < near.stop and span.end > near.start] or spans
        if not spans:
            return None
        span = rng.choice(spans)
        start = span.start if rng.random() < 0.5 else rng.randrange(span.start, span.end)
        left = span.end - start
        return start, left if rng.random() < 0.4 else rng.randint(1, left)

    def hole(self, sketch: Sketch, proc: int, length: int) -> int:
        """Where to map: against something that is mapped, or in a window."""
        rng = self.rng
        for _ in range(_TRIES):
            span = self.span(sketch, proc)
            if span is None or rng.random() < 0.25:
                page = self.page()
            else:
                page = span.end if rng.random() < 0.6 else span.start - length
            if sketch.is_free(proc, page, page + length):
                return page
        return self.page()  # at times over what is mapped

    def target(self, sketch: Sketch, proc: int, start: int, length: int) -> int:
        """Where to move pages [start, start + length): home, against a mapping, far away in step or not."""
        rng = self.rng
        page = start
        for _ in range(_TRIES):
            page = self._target(sketch, proc, start, length)
            apart = page + length <= start or page >= start + length
            if apart and 0 <= page <= self.arena - length:
                return page
        return min(max(page, 0), self.arena - 1) if rng.random() < 0.2 else self.page()

    def _target(self, sketch: Sketch, proc: int, start: int, length: int) -> int:
        rng = self.rng
        roll = rng.random()
        moved = sketch.span_at(proc, start)
        if moved is not None and roll < 0.35:
            home = moved.home + start - moved.start
            if home != start:
                return home
        if roll < 0.6:
            other = self.span(sketch, proc)
            if other is not None:
                return other.end if rng.random() < 0.6 else other.start - length
        page = self.page()
        if roll < 0.85:  # the same place within its page table: whole tables can move
            page += start % self.huge - page % self.huge
        return page
