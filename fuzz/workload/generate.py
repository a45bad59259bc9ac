"""Makes random valid workloads whose operations meet.

Each workload draws its own weights and leaves some kinds of operation out (swarm testing), so that a campaign
also sees long runs of few kinds. Tastes come from ``swarm``, arguments from ``arguments``, stages from
``recipes``, interleavings from ``schedules``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Final

from emulator.workload import (
    FOLL_PIN,
    OPS,
    STEPS_MAX,
    UFFD_FEATURES_ALLOWED,
    Domain,
    Op,
    Step,
    Workload,
)
from fuzz.workload.arguments import Arguments
from fuzz.workload.domains import DEFAULT_GEOMETRY, MREMAP_FLAGS_MASK, submasks
from fuzz.workload.places import Places
from fuzz.workload.recipes import expand
from fuzz.workload.schedules import Schedules
from fuzz.workload.sketch import Sketch
from fuzz.workload.swarm import WEIGHTS, draw_swarm

_FEATURES_FIRST: Final = 0.6  # of the workloads with userfaultfd begin with one that has features
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
_FAIL: Final = 0.1  # of the system calls
_FAIL_NTH: Final = 12
_RECIPE: Final = 0.15  # of the steps, before counting what a recipe brings
_LENGTHS: Final = (4, 6, 8, 10, 12, 16, 20)  # steps


class Generator:
    """Makes workloads and single operations for one geometry.

    ``mremap_flags_extra``: MREMAP_* bits that the design under test adds; most moves then carry them.
    ``points``: names of preemption points for schedules, by default those of the emulator.
    ``weights``: which kinds of operation, how often. ``alone``: no collisions, and nothing is made to fail.
    """

    __slots__ = ("alone", "arguments", "extra", "geometry", "places", "rng", "schedules", "swarm", "weights")

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
        self._begin()

    def _begin(self) -> None:
        """Another taste, and other places."""
        self.places = Places(self.rng, Sketch(self.geometry).geometry)
        self.swarm = draw_swarm(self.rng, self.weights, relocates=bool(self.extra))
        memory_files = "uffd_register" in self.swarm.kinds
        self.arguments = Arguments(self.rng, self.places, self.extra, memory_files=memory_files)

    # ---- workloads

    def generate(self, steps: int | None = None) -> Workload:
        """A new workload, of about ``steps`` steps; always valid."""
        rng = self.rng
        self._begin()
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
            "x": self.arguments.extra_flags() if rng.random() < 0.85 else 0,
        }
        if abs(symbols["d"] - symbols["a"]) < 2 * length:
            symbols["d"] = symbols["a"] + 3 * length
        if symbols["D"] == symbols["H"]:
            symbols["D"] += 2 * huge if symbols["H"] + 4 * huge <= places.arena else -2 * huge
        ops = expand(recipe, symbols, proc)
        return ops if rng.random() < 0.8 else ops[: rng.randrange(1, len(ops) + 1)]

    # ---- single operations

    def op(self, sketch: Sketch) -> Op:
        """An operation that suits what is mapped. Some process must be living."""
        rng = self.rng
        swarm = self.swarm
        living = sketch.labels.living
        proc = living[0] if rng.random() < 0.5 else rng.choice(living)
        while True:
            kind = rng.choices(swarm.kinds, cum_weights=swarm.cumulated)[0]
            args = self.arguments.draw(kind, sketch, proc, None)
            if args is not None:
                return Op(kind, proc, args)

    def companion(self, sketch: Sketch, op: Op, near: range | None) -> Op:
        """An operation to run beside ``op``, on the pages ``near``; mostly of the same process."""
        rng = self.rng
        swarm = self.swarm
        proc = op.proc if rng.random() < 0.7 else rng.choice(sketch.labels.living)
        if op.kind == "mremap" and op.args[3] & self.extra and rng.random() < _GUP_BESIDE_DESIGN:
            args = self.arguments.draw("gup_fast", sketch, op.proc, near)
            if args is not None:
                return Op("gup_fast", op.proc, (args[0], args[1] | FOLL_PIN, args[2]))
        while True:
            kind = rng.choices(swarm.companions, cum_weights=swarm.companions_cumulated)[0]
            args = self.arguments.draw(kind, sketch, proc, near)
            if args is not None:
                return Op(kind, proc, args)

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
