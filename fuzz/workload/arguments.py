"""Arguments of operations that suit what is mapped: where memory is, where there is none, and what meets there."""

from __future__ import annotations

from random import Random
from typing import Final

from emulator.uapi import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_STACK,
    MCL_CURRENT,
    MCL_FUTURE,
    MLOCK_ONFAULT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    UFFDIO_COPY_MODE_WP,
    UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
    UFFDIO_WRITEPROTECT_MODE_WP,
)
from emulator.workload import (
    FILE_PAGES,
    FILES_MAX,
    FOLL_LONGTERM,
    FOLL_PIN,
    FOLL_WRITE,
    MAPS_MAX,
    MEMFD,
    OFFSETS_MAX,
    OPS,
    OVERCOMMIT,
    POLICIES,
    PROCESS_ADVICE_ALLOWED,
    RESOURCES,
    SCAN_MAX,
    THP_ORDERS,
    UFFD_FEATURES_ALLOWED,
    VMA_NAMES,
    Domain,
)
from fuzz.workload.domains import submasks
from fuzz.workload.places import Places
from fuzz.workload.sketch import Sketch

# Advice that only makes the layout or the pages richer, and how often it is what madvise is called with.
_ADVICE_SHARE: Final = 0.25
_ADVICE: Final = (
    MADV_RANDOM, MADV_SEQUENTIAL, MADV_SEQUENTIAL, MADV_NORMAL, MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK,
    MADV_KEEPONFORK, MADV_DONTDUMP, MADV_DODUMP, MADV_WILLNEED, MADV_COLD, MADV_FREE, MADV_FREE, MADV_POPULATE_READ,
    MADV_POPULATE_WRITE, MADV_GUARD_INSTALL, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, MADV_REMOVE, MADV_REMOVE,
    MADV_DONTNEED_LOCKED,
)  # fmt: skip
_FILES: Final = 0.15  # of the mappings have a file
_SHARED_MEMORY: Final = 0.1  # of those without one are shared
_FILES_REGISTERED: Final = 0.3  # where there is userfaultfd
_SHARED_MEMORY_REGISTERED: Final = 0.4
_SELDOM_FLAG: Final = 0.08  # of the mappings have one of these
_SELDOM_FLAGS: Final = (
    MAP_GROWSDOWN, MAP_GROWSDOWN, MAP_LOCKED, MAP_POPULATE, MAP_STACK, MAP_DROPPABLE ^ MAP_PRIVATE
)  # fmt: skip
# Arguments of few values, all as good as another: how many there are.
_ANY_OF: Final = {
    Domain.OFFSET: OFFSETS_MAX, Domain.FILE_OFFSET: FILE_PAGES + 1, Domain.VMA_NAME: len(VMA_NAMES) + 1,
    Domain.POLICY: len(POLICIES), Domain.PKEY: 2, Domain.SWITCH: 2, Domain.RESOURCE: len(RESOURCES),
    Domain.OVERCOMMIT: len(OVERCOMMIT),
}  # fmt: skip
_REGISTERED: Final = (
    "uffd_unregister", "uffd_zeropage", "uffd_wp", "uffd_poison", "uffd_continue"
)  # where something is registered


class Arguments:
    """Draws arguments for operations of one workload."""

    __slots__ = ("extra", "memory_files", "places", "rng")

    def __init__(self, rng: Random, places: Places, extra: int, *, memory_files: bool = False) -> None:
        """``extra``: MREMAP_* bits that the design under test adds; most moves then carry them.

        ``memory_files``: mappings of files are of files of memory rather than of others.
        """
        self.rng = rng
        self.places = places
        self.extra = extra
        self.memory_files = memory_files

    def draw(self, kind: str, sketch: Sketch, proc: int, near: range | None) -> tuple[int, ...] | None:
        """Arguments, or None when the op makes no sense now. ``mmap`` always does."""
        if kind == "mmap":
            return self._mmap(sketch, proc)
        if kind == "mremap":
            return self._mremap(sketch, proc, near)
        if kind in ("uffd_copy", "uffd_move"):
            return self._fill(kind, sketch, proc, near)
        if kind == "exit":
            return () if len(sketch.labels.living) > 1 or self.rng.random() < 0.05 else None
        rng = self.rng
        if kind == "process_madvise":
            target = proc if rng.random() < 0.6 else rng.choice(sketch.labels.living)
            places = (*self.places.region(sketch, target, near), *self.places.region(sketch, target, None))
            return target, *places, rng.choice(PROCESS_ADVICE_ALLOWED)
        args: list[int] = []
        pages: tuple[int, int] | None = None
        for _, domain in OPS[kind].args:
            if domain is Domain.LENGTH:
                pages = self.places.region(sketch, proc, near)
                if kind == "uffd_register" and rng.random() < 0.4:
                    pages = self.places.cached(sketch, proc, near) or pages
                if kind in _REGISTERED and rng.random() < 0.9:
                    pages = self.places.registered(sketch, proc, near)
                    if pages is None:
                        return None
                args[-1] = pages[0]
                args.append(pages[1])
                continue
            value = self._one(domain, kind, sketch, proc, near)
            if value is None:
                return None
            args.append(value)
        if kind == "madvise" and args[2] == MADV_COLLAPSE and rng.random() < 0.8:
            args[:2] = self.places.whole_huge(args[0], args[1])
        if kind == "uffd_register":
            args[2] = self._register_mode(sketch, proc, args[0])
        return tuple(args)

    def _register_mode(self, sketch: Sketch, proc: int, page: int) -> int:
        """UFFDIO_REGISTER_MODE_*: missing and protected pages; minor faults where there is a page cache."""
        rng = self.rng
        span = sketch.span_at(proc, page)
        if span is not None and span.cached:
            return rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 7))
        return rng.choice((1, 1, 2, 2, 3, 3, rng.randrange(8)))

    def _one(self, domain: Domain, kind: str, sketch: Sketch, proc: int, near: range | None) -> int | None:
        rng = self.rng
        if domain is Domain.PAGE:
            if kind == "exec":
                return self._code(sketch, proc)
            if kind == "brk":
                return self._brk(sketch, proc)
            return self.places.touch(sketch, proc, near)
        if domain is Domain.PROT:
            return rng.choice((0, PROT_READ, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, 7))
        if domain is Domain.ADVICE and rng.random() < _ADVICE_SHARE:
            return rng.choice(_ADVICE)
        if domain is Domain.ADVICE:
            return rng.choice(
                (MADV_DONTNEED, MADV_PAGEOUT, MADV_PAGEOUT, MADV_HUGEPAGE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
                 MADV_COLLAPSE, MADV_MERGEABLE, MADV_UNMERGEABLE)
            )
        if domain is Domain.GUP_FLAGS:
            return rng.choice(
                (
                    0,
                    FOLL_WRITE,
                    FOLL_PIN,
                    FOLL_PIN | FOLL_WRITE,
                    FOLL_PIN | FOLL_WRITE,
                    FOLL_PIN | FOLL_WRITE | FOLL_LONGTERM,
                )
            )
        if domain is Domain.MLOCK2_FLAGS:
            return rng.choice((MLOCK_ONFAULT, MLOCK_ONFAULT, MLOCK_ONFAULT, 0, 2))
        if domain is Domain.MCL_FLAGS:
            return rng.choice((MCL_CURRENT, MCL_FUTURE, MCL_CURRENT | MCL_FUTURE, rng.randrange(8)))
        if domain is Domain.UFFD_FEATURES:
            return rng.choice((0, *sorted(submasks(UFFD_FEATURES_ALLOWED))))
        if domain is Domain.UFFD_REGISTER_MODE:
            return 0  # chosen when it is known what is there
        if domain is Domain.UFFD_COPY_MODE:
            return rng.choice((0, 0, 0, UFFDIO_COPY_MODE_WP, rng.randrange(4)))
        if domain is Domain.UFFD_WP_MODE:
            return rng.choice((UFFDIO_WRITEPROTECT_MODE_WP, UFFDIO_WRITEPROTECT_MODE_WP, 0, rng.randrange(4)))
        if domain in _ANY_OF:
            return rng.randrange(_ANY_OF[domain])
        if domain is Domain.PATTERN:
            return rng.choice((1, 1, 2, 0))
        if domain is Domain.SCAN:
            return 0 if rng.random() < 0.8 else rng.randint(1, SCAN_MAX)
        if domain is Domain.LIMIT:
            return rng.choice((rng.randint(0, 4), rng.randint(0, 40), rng.randint(0, sketch.geometry.arena_pages)))
        if domain is Domain.MAPS:  # of most use when it is about what is mapped
            return rng.choice((rng.randint(2, 10), rng.randint(4, 20), rng.randint(0, MAPS_MAX)))
        if domain is Domain.THP_ORDERS:
            return rng.choice((THP_ORDERS, THP_ORDERS, THP_ORDERS & rng.randrange(THP_ORDERS + 1)))
        labels = sketch.labels
        if domain is Domain.NEW_PROC:
            choices = labels.free_procs()
        elif domain is Domain.NEW_PIN:
            choices = labels.free_pins()[:2]  # low labels read well
        elif domain is Domain.PIN:
            choices = labels.usable_pins(kind)
        else:
            raise AssertionError(f"{kind} has an argument of a domain that only mmap and mremap have")
        return rng.choice(choices) if choices else None

    def _code(self, sketch: Sketch, proc: int) -> int | None:
        """A page to execute; where nothing may be executed, it makes sense now and then only."""
        rng = self.rng
        spans = [span for span in sketch.spaces.get(proc, ()) if span.prot & PROT_EXEC]
        if not spans:
            return self.places.touch(sketch, proc) if rng.random() < 0.1 else None
        span = rng.choice(spans)
        return rng.randrange(span.start, span.end)

    def _brk(self, sketch: Sketch, proc: int) -> int:
        """Where the heap is to end: a little further or nearer, at times not at all in the heap."""
        rng = self.rng
        end = sketch.heaps.get(proc, self.places.heap)
        if rng.random() < 0.1:  # but no gigabyte, which locked memory would fault in page by page
            return min(self.places.page(), end + 2 * self.places.huge)
        page = end + rng.choice((1, 1, 2, 3, self.places.huge, -1, -2, self.places.heap - end))
        return min(max(page, 0), self.places.arena - 1)

    def _mmap(self, sketch: Sketch, proc: int) -> tuple[int, ...]:
        rng = self.rng
        length = self.places.length()
        page = self.places.hole(sketch, proc, length)
        roll = rng.random()
        prot = PROT_READ | PROT_WRITE
        if roll < 0.2:
            prot = rng.choice((PROT_READ, PROT_READ, PROT_READ | PROT_WRITE | PROT_EXEC, 0))
        flags = MAP_PRIVATE
        file = offset = 0
        if rng.random() < (_FILES_REGISTERED if self.memory_files else _FILES):
            file = MEMFD + 1 if self.memory_files and rng.random() < 0.8 else rng.randint(1, FILES_MAX)
            offset = rng.choice((0, 0, rng.randrange(FILE_PAGES)))
            flags = rng.choice((MAP_PRIVATE, MAP_PRIVATE, MAP_SHARED))
        elif rng.random() < (_SHARED_MEMORY_REGISTERED if self.memory_files else _SHARED_MEMORY):
            flags = MAP_SHARED
        roll = rng.random()
        if roll < 0.85:
            flags |= MAP_FIXED
        elif roll < 0.9:
            flags |= MAP_FIXED_NOREPLACE
        if rng.random() < 0.1:
            flags |= MAP_NORESERVE
        if rng.random() < _SELDOM_FLAG:
            flags ^= rng.choice(_SELDOM_FLAGS)
        return page, length, prot, flags, file, offset

    def _mremap(self, sketch: Sketch, proc: int, near: range | None) -> tuple[int, ...]:
        rng = self.rng
        start, length = self.places.region(sketch, proc, near)
        flags = MREMAP_MAYMOVE
        new_length = length
        target = 0
        roll = rng.random()
        if roll < 0.65:
            flags |= MREMAP_FIXED
            if rng.random() < 0.1:
                flags |= MREMAP_DONTUNMAP
        elif roll < 0.7:
            flags |= MREMAP_DONTUNMAP
        else:
            new_length = max(0, length + rng.choice((-length // 2, -1, 1, 1, 2, self.places.huge)))
            if roll < 0.8:
                flags |= MREMAP_FIXED
            elif roll < 0.9:
                flags = 0
        new_length = min(new_length, self.places.arena)
        if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
            target = self.places.target(sketch, proc, start, max(length, new_length))
        if self.extra and flags & MREMAP_MAYMOVE and rng.random() < 0.8:
            flags |= self.extra_flags()
        return start, length, new_length, flags, target

    def _fill(self, kind: str, sketch: Sketch, proc: int, near: range | None) -> tuple[int, ...] | None:
        """uffd_copy, uffd_move: from where something is to where it is awaited."""
        rng = self.rng
        target = self.places.registered(sketch, proc, near)
        if target is None:
            if rng.random() < 0.9:
                return None
            target = self.places.region(sketch, proc, near)
        source, length = self.places.region(sketch, proc, near if rng.random() < 0.3 else None)
        if rng.random() < 0.85:
            length = max(1, min(length, target[1]))
        move_modes = (0, 0, 0, UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES, UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES | 1)
        mode = rng.choice(move_modes if kind == "uffd_move" else (0, 0, 0, UFFDIO_COPY_MODE_WP))
        return target[0], source, length, mode

    def extra_flags(self) -> int:
        """Some of the MREMAP_* bits that the design adds; the only one, if it adds one."""
        bits = [1 << i for i in range(self.extra.bit_length()) if self.extra >> i & 1]
        return self.rng.choice((*bits, self.extra)) if len(bits) > 1 else self.extra
