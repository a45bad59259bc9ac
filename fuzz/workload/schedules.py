"""Makes schedules for collisions: who runs until which preemption point.

A schedule of few preemptions finds most of what any schedule finds (SCTBench: one to three), so most have one
or two, at points that the op in question can pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from random import Random
from typing import Final

from emulator.sched.points import POINTS
from emulator.uapi import MADV_COLLAPSE
from emulator.workload import SCHEDULE_MAX, Op, Switch
from fuzz.workload.domains import ANY, END, NTH_MAX, is_point

# Kind of op to areas (the part of a point's name before the first dot) whose points it can pass: first those
# of what it is about, which get most of the stops, then those that it may pass on its way. An area that is
# called as the kind itself belongs to the first.
AREAS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "mmap": ((), ("munmap", "zap", "merge", "anon_vma", "thp", "rmap")),
    "munmap": (("zap",), ("thp", "anon_vma", "rmap")),
    "mremap": (("relocate",), ("munmap", "zap", "merge", "anon_vma", "thp", "rmap")),
    "mprotect": ((), ("merge", "anon_vma", "thp", "rmap")),
    "madvise": (("zap", "reclaim"), ("unmap", "merge", "anon_vma", "thp", "rmap", "ksm")),
    "process_madvise": (("zap", "reclaim"), ("unmap", "merge", "anon_vma", "thp", "rmap", "ksm")),
    "collapse": ((), ("fault", "swapin")),  # madvise, but no advice else does anything like it
    "fork": ((), ("anon_vma", "thp", "rmap")),
    "exit": ((), ("zap", "thp", "anon_vma", "rmap")),
    "read": (("fault",), ("swapin", "thp", "rmap")),
    "write": (("fault",), ("swapin", "anon_vma", "thp", "rmap")),
    "fill": (("fault",), ("swapin", "anon_vma", "thp", "rmap")),
    "exec": (("fault",), ("swapin", "thp", "rmap")),
    "gup_fast": ((), ("gup_slow", "fault", "swapin", "anon_vma", "thp")),
    "gup_slow": (("fault",), ("swapin", "anon_vma", "thp")),
    "unpin": ((), ()),
    "pin_write": ((), ()),
    "reclaim": (("unmap",), ("thp", "rmap")),
    "swap_readahead": (("swapin",), ("reclaim",)),
    "migrate": (("unmap",), ("thp", "rmap")),
    "mlock": (("populate",), ("merge", "fault", "anon_vma", "thp", "rmap")),
    "mlock2": (("mlock", "populate"), ("merge", "fault", "anon_vma", "thp", "rmap")),
    "munlock": (("mlock",), ("merge", "anon_vma", "rmap")),
    "mlockall": (("mlock", "populate"), ("merge", "fault", "anon_vma", "thp", "rmap")),
    "munlockall": (("mlock",), ("merge", "anon_vma", "rmap")),
    "mseal": ((), ("merge", "anon_vma", "rmap")),
    "set_vma_name": ((), ("madvise", "merge", "anon_vma", "rmap")),
    "memory_merge": (("ksm",), ("fault",)),
    "mbind": ((), ("merge", "anon_vma", "rmap")),
    "pkey_mprotect": (("mprotect",), ("merge", "anon_vma", "thp", "rmap")),
    "remap_file_pages": ((), ("mmap", "munmap", "zap", "populate", "merge", "fault", "rmap")),
    "brk": ((), ("munmap", "zap", "populate", "merge", "anon_vma", "rmap")),
    "userfaultfd": ((), ()),
    "uffd_close": (("uffd",), ("mprotect", "merge")),
    "uffd_register": (("uffd",), ("merge",)),
    "uffd_unregister": (("uffd",), ("mprotect", "merge")),
    "uffd_copy": (("uffd",), ("anon_vma", "fault", "swapin")),
    "uffd_zeropage": (("uffd",), ("anon_vma",)),
    "uffd_wp": (("uffd", "mprotect"), ("thp",)),
    "uffd_move": (("uffd", "uffd_move"), ("anon_vma", "thp", "rmap")),
    "uffd_poison": (("uffd",), ("anon_vma",)),
    "uffd_continue": (("uffd",), ("fault", "swapin", "shmem")),
    "ksm_scan": (("ksm",), ("fault", "thp", "rmap")),
    "thp_sizes": ((), ()),
    "setrlimit": ((), ()),
    "max_map_count": ((), ()),
    "overcommit_memory": ((), ()),
}
_OWN: Final = 0.65  # of the stops are in an op's own areas
_LONG: Final = frozenset(
    ("mremap", "fork", "munmap", "madvise", "reclaim", "migrate", "uffd_move", "uffd_copy", "ksm_scan")
)
_LONG_FIRST: Final = 0.6
_DESIGN: Final = 0.7  # of the stops of an mremap are at points that only a design has


def way_of(op: Op) -> str:
    """The key of ``AREAS`` for an op: its kind, or what it is about."""
    return "collapse" if op.kind == "madvise" and op.args[2] == MADV_COLLAPSE else op.kind


class Schedules:
    """Draws schedules over a given set of preemption points, by default all of the emulator's."""

    __slots__ = ("_by_kind", "points")

    def __init__(self, points: Iterable[str] | None = None) -> None:
        self.points = tuple(POINTS if points is None else points)
        self._by_kind = _points_by_kind(self.points)

    def points_of(self, kind: str) -> tuple[str, ...]:
        """The points that an op of this kind (a key of ``AREAS``) can pass."""
        own, passed = self._by_kind.get(kind, ((), ()))
        return own + passed

    def point(self, rng: Random, kind: str) -> str:
        """A point for an op of this kind to be stopped at.

        A design's own points (area ``relocate``) are few and what the campaign is about, so they get a share.
        """
        own, passed = self._by_kind.get(kind, ((), ()))
        if kind == "mremap" and rng.random() < _DESIGN:
            designs = [point for point in own if point.startswith("relocate.")]
            if designs:
                return rng.choice(designs)
        if not (own or passed) or rng.random() < 0.05:
            return ANY
        if own and passed:
            return rng.choice(own if rng.random() < _OWN else passed)
        return rng.choice(own or passed)

    def nth(self, rng: Random, point: str) -> int:
        """How many passes: mostly the first; ``ANY`` counts every point and so needs more."""
        if point == END:
            return 1
        limit = 24 if point == ANY else 8
        return 1 if point != ANY and rng.random() < 0.6 else rng.randint(1, limit)

    def switch(self, rng: Random, ops: tuple[Op, ...], op: int | None = None) -> Switch:
        """One switch that stops one of the ops, mostly at a point of its own."""
        number = rng.randrange(len(ops)) if op is None else op
        if rng.random() < 0.15:
            return Switch(number, END, 1)
        point = self.point(rng, way_of(ops[number]))
        return Switch(number, point, self.nth(rng, point))

    def draw(self, rng: Random, ops: tuple[Op, ...]) -> tuple[Switch, ...]:
        """A schedule: one op stops half-way and the others run, once or twice; sometimes anything."""
        style = rng.random()
        if style < 0.1:
            return tuple([self.switch(rng, ops) for _ in range(rng.randint(0, SCHEDULE_MAX))])
        order = list(range(len(ops)))
        rng.shuffle(order)
        # The window is mostly in an op that works on many pages or in several phases.
        if rng.random() < _LONG_FIRST:
            order.sort(key=lambda number: ops[number].kind not in _LONG)
        first, *others = order
        switches = [self._stop(rng, ops, first)]
        if style < 0.7:  # the others run whole inside the first
            switches += [Switch(other, END, 1) for other in others]
        else:  # the others stop half-way too, and the first goes on meanwhile
            switches += [self._stop(rng, ops, other) for other in others]
            if rng.random() < 0.5:
                switches.append(self._stop(rng, ops, first))
            switches.append(Switch(rng.choice(order), END, 1))
        return tuple(switches[:SCHEDULE_MAX])

    def _stop(self, rng: Random, ops: tuple[Op, ...], number: int) -> Switch:
        point = self.point(rng, way_of(ops[number]))
        return Switch(number, point, self.nth(rng, point))

    def mutate(self, rng: Random, ops: tuple[Op, ...], schedule: tuple[Switch, ...]) -> tuple[Switch, ...]:
        """The schedule with one thing changed: a switch more, less, elsewhere, later; or all of it."""
        switches = list(schedule)
        roll = rng.random()
        if not switches or roll < 0.15:
            return self.draw(rng, ops)
        place = rng.randrange(len(switches))
        op, point, nth = switches[place]
        if roll < 0.35 and len(switches) < SCHEDULE_MAX:
            switches.insert(rng.randint(0, len(switches)), self.switch(rng, ops))
        elif roll < 0.5:
            del switches[place]
        elif roll < 0.65:
            switches[place] = Switch(op, point, min(max(1, nth + rng.choice((-2, -1, 1, 1, 2))), NTH_MAX))
        elif roll < 0.9:
            switches[place] = self.switch(rng, ops, op % len(ops))
        else:
            switches[place] = Switch(rng.randrange(len(ops)), point, nth)
        return tuple(switches)


@lru_cache(maxsize=64)
def _points_by_kind(points: tuple[str, ...]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    # Sorted: the caller's order may be a set's, and draws must not depend on it.
    named = [point for point in sorted(points) if is_point(point) and point not in (ANY, END)]

    def of(areas: tuple[str, ...]) -> tuple[str, ...]:
        return tuple([point for point in named if point.split(".", 1)[0] in areas])

    return {kind: (of((*own, kind)), of(passed)) for kind, (own, passed) in AREAS.items()}
