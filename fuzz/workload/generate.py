"""Makes random valid workloads whose operations meet.

Each workload draws its own weights and leaves some kinds of operation out (swarm testing), so that a campaign
also sees long runs of few kinds. Addresses come from ``places``, stages from ``recipes``, interleavings from
``schedules``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from random import Random
from typing import Final, NamedTuple

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
    OFFSETS_MAX,
    OPS,
    POLICIES,
    PROCESS_ADVICE_ALLOWED,
    RESOURCES,
    SCAN_MAX,
    STEPS_MAX,
    THP_ORDERS,
    UFFD_FEATURES_ALLOWED,
    VMA_NAMES,
    Domain,
    Op,
    Step,
    Workload,
)
from fuzz.workload.domains import DEFAULT_GEOMETRY, MREMAP_FLAGS_MASK, submasks
from fuzz.workload.places import Places
from fuzz.workload.recipes import RECIPES, Recipe, expand
from fuzz.workload.schedules import Schedules
from fuzz.workload.sketch import Sketch

# Weights before the swarm: moves and writes most, as merging and relocation are what is tested.
WEIGHTS: Final[dict[str, int]] = {
    "mmap": 14,
    "munmap": 7,
    "mremap": 24,
    "mprotect": 7,
    "madvise": 8,
    "fork": 4,
    "exit": 1,
    "read": 6,
    "write": 14,
    "exec": 1,
    "gup_fast": 6,
    "gup_slow": 4,
    "unpin": 3,
    "pin_write": 2,
    "reclaim": 5,
    "swap_readahead": 2,
    "migrate": 4,
    "process_madvise": 2,
    "mlock": 2,
    "munlock": 1,
    "mlock2": 1,
    "mlockall": 1,
    "munlockall": 1,
    "brk": 3,
    "mseal": 1,
    "set_vma_name": 1,
    "memory_merge": 1,
    "mbind": 1,
    "pkey_mprotect": 1,
    "remap_file_pages": 1,
    "userfaultfd": 1,
    "uffd_close": 1,
    "uffd_register": 10,
    "uffd_unregister": 2,
    "uffd_copy": 5,
    "uffd_zeropage": 2,
    "uffd_wp": 6,
    "uffd_move": 8,
    "uffd_poison": 1,
    "fill": 4,
    "ksm_scan": 3,
    "thp_sizes": 2,
    "setrlimit": 1,
}
# The same for what runs beside another op: what works without the mmap lock, or tries to.
COMPANIONS: Final[dict[str, int]] = {
    "mmap": 1,
    "munmap": 4,
    "mremap": 5,
    "mprotect": 2,
    "madvise": 3,
    "fork": 4,
    "read": 4,
    "write": 5,
    "exec": 1,
    "gup_fast": 12,
    "gup_slow": 3,
    "unpin": 2,
    "pin_write": 2,
    "reclaim": 6,
    "swap_readahead": 2,
    "migrate": 5,
    "process_madvise": 2,
    "mlock": 2,
    "munlock": 1,
    "mlock2": 1,
    "mlockall": 1,
    "munlockall": 1,
    "brk": 1,
    "mseal": 1,
    "set_vma_name": 1,
    "memory_merge": 1,
    "mbind": 1,
    "pkey_mprotect": 1,
    "remap_file_pages": 1,
    "userfaultfd": 2,
    "uffd_close": 3,
    "uffd_register": 2,
    "uffd_unregister": 3,
    "uffd_copy": 3,
    "uffd_zeropage": 2,
    "uffd_wp": 4,
    "uffd_move": 5,
    "uffd_poison": 2,
    "fill": 2,
    "ksm_scan": 3,
    "thp_sizes": 1,
    "setrlimit": 1,
}
# What most workloads are without: it makes the layout richer, and is not what designs change.
_SELDOM: Final = frozenset(
    (
        "mlock", "munlock", "mlock2", "mlockall", "munlockall", "brk", "mseal", "set_vma_name", "memory_merge", "mbind",
        "pkey_mprotect", "remap_file_pages", "process_madvise", "setrlimit",
    )
)  # fmt: skip
# Advice that only makes the layout or the pages richer, and how often it is what madvise is called with.
_ADVICE_SHARE: Final = 0.25
_ADVICE: Final = (
    MADV_RANDOM, MADV_SEQUENTIAL, MADV_SEQUENTIAL, MADV_NORMAL, MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK,
    MADV_KEEPONFORK, MADV_DONTDUMP, MADV_DODUMP, MADV_WILLNEED, MADV_COLD, MADV_FREE, MADV_FREE, MADV_POPULATE_READ,
    MADV_POPULATE_WRITE, MADV_GUARD_INSTALL, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, MADV_REMOVE, MADV_REMOVE,
    MADV_DONTNEED_LOCKED,
)  # fmt: skip
_SHARED_MEMORY: Final = 0.1  # of the mappings without a file are shared
_SELDOM_FLAG: Final = 0.08  # of the mappings have one of these
_SELDOM_FLAGS: Final = (
    MAP_GROWSDOWN, MAP_GROWSDOWN, MAP_LOCKED, MAP_POPULATE, MAP_STACK, MAP_DROPPABLE ^ MAP_PRIVATE
)  # fmt: skip
# Arguments of few values, all as good as another: how many there are.
_ANY_OF: Final = {
    Domain.OFFSET: OFFSETS_MAX, Domain.FILE_OFFSET: FILE_PAGES + 1, Domain.VMA_NAME: len(VMA_NAMES) + 1,
    Domain.POLICY: len(POLICIES), Domain.PKEY: 2, Domain.SWITCH: 2, Domain.RESOURCE: len(RESOURCES),
}  # fmt: skip
_USERFAULTFD: Final = frozenset(kind for kind in WEIGHTS if kind.startswith(("uffd_", "userfaultfd")))
_USERFAULTFD_SHARE: Final = 0.15  # of the workloads have any of it, and then all: no call is worth much alone
_FEATURES_FIRST: Final = 0.6  # of those begin with a userfaultfd that has features
_REGISTERED: Final = ("uffd_unregister", "uffd_zeropage", "uffd_wp", "uffd_poison")  # where something is registered
_ALWAYS: Final = ("mmap", "mremap", "write")  # no swarm leaves these out
_NOT_INJECTED: Final = ("exit", "unpin", "pin_write", "exec", "read", "write", "fill")  # no system calls
# How often an op gets company, which makes about one step in five a collision: those that change mappings
# and the reverse map more often than those that only touch a page.
_COLLIDE: Final = {
    "mremap": 0.4,
    "munmap": 0.3,
    "fork": 0.35,
    "madvise": 0.25,
    "migrate": 0.3,
    "reclaim": 0.3,
    "uffd_move": 0.4,
    "uffd_copy": 0.25,
    "uffd_wp": 0.25,
}
_COLLIDE_OTHERS: Final = 0.12
# A design that rewrites live pages in a move has most to fear from who takes pages without any lock.
_GUP_BESIDE_DESIGN: Final = 0.55
_COLLIDE_DESIGN: Final = 0.55  # of such moves get company
_MOVES_OF_DESIGN: Final = 3  # as many times more do its recipes move something
_FAIL: Final = 0.1  # of the system calls
_FAIL_NTH: Final = 12
_RECIPE: Final = 0.15  # of the steps, before counting what a recipe brings
_LENGTHS: Final = (4, 6, 8, 10, 12, 16, 20)  # steps


class Swarm(NamedTuple):
    """The taste of one workload."""

    kinds: tuple[str, ...]
    cumulated: tuple[int, ...]  # weights of the kinds, summed up
    companions: tuple[str, ...]
    companions_cumulated: tuple[int, ...]
    recipes: tuple[Recipe, ...]


class Generator:
    """Makes workloads and single operations for one geometry.

    ``mremap_flags_extra``: MREMAP_* bits that the design under test adds; most moves then carry them.
    ``points``: names of preemption points for schedules, by default those of the emulator.
    ``weights``: which kinds of operation, how often. ``alone``: no collisions, and nothing is made to fail.
    """

    __slots__ = ("alone", "extra", "geometry", "places", "rng", "schedules", "swarm", "weights")

    def __init__(
        self,
        rng: Random,
        geometry: str = DEFAULT_GEOMETRY,
        *,
        mremap_flags_extra: int = 0,
        points: Iterable[str] | None = None,
        schedules: Schedules | None = None,
        weights: Mapping[str, int] = WEIGHTS,
        alone: bool = False,
    ) -> None:
        self.rng = rng
        self.weights = weights
        self.alone = alone
        self.geometry = geometry
        self.extra = mremap_flags_extra & MREMAP_FLAGS_MASK
        self.schedules = schedules or Schedules(points)
        self.places = Places(rng, Sketch(geometry).geometry)
        self.swarm = self._draw_swarm()

    def _draw_swarm(self) -> Swarm:
        rng = self.rng
        kinds: dict[str, int] = {}
        userfaultfd = rng.choice((2, 4, 8)) if rng.random() < _USERFAULTFD_SHARE else 0
        for kind, weight in self.weights.items():
            if kind in _USERFAULTFD:
                if userfaultfd:
                    kinds[kind] = weight * userfaultfd
            elif kind in _ALWAYS or rng.random() < (0.3 if kind in _SELDOM else 0.75):
                kinds[kind] = weight * rng.choice((1, 2, 2, 2, 4, 8))
        recipes = [recipe for recipe in RECIPES if recipe.kinds <= kinds.keys()]
        if self.extra:
            recipes += [recipe for recipe in recipes if recipe.moves] * _MOVES_OF_DESIGN
        beside = {kind: weight for kind, weight in COMPANIONS.items() if kind in kinds}
        return Swarm(
            tuple(kinds),
            tuple(accumulate(kinds.values())),
            tuple(beside),
            tuple(accumulate(beside.values())),
            tuple(recipes),
        )

    # ---- workloads

    def generate(self, steps: int | None = None) -> Workload:
        """A new workload, of about ``steps`` steps; always valid."""
        rng = self.rng
        self.places = Places(rng, Sketch(self.geometry).geometry)
        self.swarm = self._draw_swarm()
        wanted = min(rng.choice(_LENGTHS) if steps is None else steps, STEPS_MAX)
        sketch = Sketch(self.geometry)
        made: list[Step] = []
        if "userfaultfd" in self.swarm.kinds and rng.random() < _FEATURES_FIRST:
            features = rng.choice(sorted(submasks(UFFD_FEATURES_ALLOWED)))
            made.append(Step((Op("userfaultfd", 0, (features,)),)))  # later on there would be one without
        while len(made) < wanted and sketch.labels.living:
            if rng.random() < _RECIPE or not any(sketch.spaces.values()):
                ops = self.recipe(sketch)
            else:
                ops = [self.op(sketch)]
            for op in ops:
                if not sketch.labels.living:
                    break
                # An op of a recipe may have lost its process or its label meanwhile.
                step = sketch.add(self.dress(sketch, op))
                if step is not None:
                    made.append(step)
        return Workload(self.geometry, tuple(made[:STEPS_MAX]))

    def dress(self, sketch: Sketch, op: Op) -> Step:
        """The op, whose process lives, as a step: as it is, with a failing allocation, or beside one or two others."""
        if self.alone:
            return Step((op,))
        rng = self.rng
        op = self._maybe_fail(op)
        share = _COLLIDE.get(op.kind, _COLLIDE_OTHERS)
        if op.kind == "mremap" and op.args[3] & self.extra:
            share = _COLLIDE_DESIGN
        if op.kind == "exit" or rng.random() >= share:
            return Step((op,))
        return self.collision(sketch, op)

    def collision(self, sketch: Sketch, op: Op) -> Step:
        """``op`` and one or two others that touch the same pages, under a schedule."""
        rng = self.rng
        near = _pages_of(op)
        if op.kind == "mremap" and rng.random() < 0.15:  # where the pages go to
            near = range(op.args[4], op.args[4] + max(1, op.args[2]))
        ops = [op]
        for _ in range(2 if rng.random() < 0.15 else 1):
            ops.append(self._maybe_fail(self.companion(sketch, op, near)))
        rng.shuffle(ops)
        together = tuple(ops)
        return Step(together, self.schedules.draw(rng, together))

    def recipe(self, sketch: Sketch) -> list[Op]:
        """The operations of an idiom; at times only the first of them."""
        rng = self.rng
        places = self.places
        huge = places.huge
        recipe = rng.choice(self.swarm.recipes)
        length = max(2, places.length())
        proc = rng.choice(sketch.labels.living)
        symbols = {
            "a": places.hole(sketch, proc, length),
            "n": length,
            "m": rng.randrange(1, length),
            "d": places.page(),
            "H": places.aligned(),
            "D": places.aligned(),
            "h": huge,
            "j": rng.randrange(1, huge),
            "c": rng.choice(sketch.labels.free_procs() or [0]),
            "k": rng.choice(sketch.labels.free_pins() or [0]),
            "x": self.extra_flags() if rng.random() < 0.85 else 0,
        }
        if abs(symbols["d"] - symbols["a"]) < 2 * length:
            symbols["d"] = symbols["a"] + 3 * length
        if symbols["D"] == symbols["H"]:
            symbols["D"] += 2 * huge if symbols["H"] + 4 * huge <= places.arena else -2 * huge
        ops = expand(recipe, symbols, proc)
        return ops if rng.random() < 0.8 else ops[: rng.randrange(1, len(ops) + 1)]

    # ---- single operations

    def extra_flags(self) -> int:
        """Some of the MREMAP_* bits that the design adds; the only one, if it adds one."""
        bits = [1 << i for i in range(self.extra.bit_length()) if self.extra >> i & 1]
        return self.rng.choice((*bits, self.extra)) if len(bits) > 1 else self.extra

    def op(self, sketch: Sketch) -> Op:
        """An operation that suits what is mapped. Some process must be living."""
        rng = self.rng
        swarm = self.swarm
        living = sketch.labels.living
        proc = living[0] if rng.random() < 0.5 else rng.choice(living)
        while True:
            kind = rng.choices(swarm.kinds, cum_weights=swarm.cumulated)[0]
            args = self._args(kind, sketch, proc, None)
            if args is not None:
                return Op(kind, proc, args)

    def companion(self, sketch: Sketch, op: Op, near: range | None) -> Op:
        """An operation to run beside ``op``, on the pages ``near``; mostly of the same process."""
        rng = self.rng
        swarm = self.swarm
        proc = op.proc if rng.random() < 0.7 else rng.choice(sketch.labels.living)
        if op.kind == "mremap" and op.args[3] & self.extra and rng.random() < _GUP_BESIDE_DESIGN:
            args = self._args("gup_fast", sketch, op.proc, near)
            if args is not None:
                return Op("gup_fast", op.proc, (args[0], args[1] | FOLL_PIN, args[2]))
        while True:
            kind = rng.choices(swarm.companions, cum_weights=swarm.companions_cumulated)[0]
            args = self._args(kind, sketch, proc, near)
            if args is not None:
                return Op(kind, proc, args)

    def _args(self, kind: str, sketch: Sketch, proc: int, near: range | None) -> tuple[int, ...] | None:
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
                if kind in _REGISTERED and rng.random() < 0.9:
                    pages = self.places.registered(sketch, proc, near)
                    if pages is None:
                        return None
                args[-1] = pages[0]
                args.append(pages[1])
                continue
            value = self._arg(domain, kind, sketch, proc, near)
            if value is None:
                return None
            args.append(value)
        if kind == "madvise" and args[2] == MADV_COLLAPSE and rng.random() < 0.8:
            args[:2] = self.places.whole_huge(args[0], args[1])
        return tuple(args)

    def _arg(self, domain: Domain, kind: str, sketch: Sketch, proc: int, near: range | None) -> int | None:
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
            return rng.choice((1, 1, 2, 2, 3, 3, rng.randrange(8)))
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
        if rng.random() < 0.1:
            return self.places.page()
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
        if rng.random() < 0.15:
            file = rng.randint(1, FILES_MAX)
            offset = rng.choice((0, 0, rng.randrange(FILE_PAGES)))
            flags = rng.choice((MAP_PRIVATE, MAP_PRIVATE, MAP_SHARED))
        elif rng.random() < _SHARED_MEMORY:
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

    def _maybe_fail(self, op: Op) -> Op:
        rng = self.rng
        if op.kind in _NOT_INJECTED or rng.random() >= _FAIL:
            return op
        # Low rather than high: most calls allocate a few times only.
        return op._replace(fail_nth=rng.randint(1, rng.randint(1, _FAIL_NTH)))


def _pages_of(op: Op) -> range | None:
    """The pages that an op is about, for others to meet it there."""
    start: int | None = None
    for value, (_, domain) in zip(op.args, OPS[op.kind].args, strict=True):
        if domain is Domain.PAGE and start is None:
            start = value
        elif domain is Domain.LENGTH and start is not None:
            return range(start, start + max(1, value))
    return None if start is None else range(start, start + 1)
