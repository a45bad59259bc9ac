"""Structural mutation and crossover of workloads: total, and only ever yielding valid workloads.

Weighted changes in the manner of syzkaller (``prog/mutation.go``): insertions fall rather at the end, where
the state is richest, and after a change the next follows with a chance of one in five, at times more, so that
single steps as well as leaps are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from random import Random
from typing import Final

from emulator.geometry import GEOMETRIES
from emulator.uapi import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE
from emulator.workload import COLLISION_OPS_MAX, PROCS_MAX, STEPS_MAX, Domain, Op, Step, Workload
from fuzz.workload.domains import FLAG_MASKS, OP_DOMAINS, map_ops
from fuzz.workload.generate import Generator
from fuzz.workload.repair import repair
from fuzz.workload.schedules import Schedules
from fuzz.workload.sketch import Sketch
from fuzz.workload.tweak import Tweaks

STEPS_GROWN_MAX: Final = 20  # no insertion beyond: longer ones cost time and rarely find more
FAIL_NTH_DRAWN: Final = 16
_DESIGN: Final = 0.6
_TRIES: Final = 6  # for a change that changes something
_AGAIN: Final = (0.2, 0.2, 0.2, 0.5, 0.8)  # chance of one more change; which of them is drawn for each mutant
_COLLISIONS_MAX: Final = 0.5  # of the steps

# Kinds with the same arguments: one may become the other.
_KIN: Final = (
    ("gup_fast", "gup_slow"),
    ("munmap", "mlock", "munlock"),
    ("read", "exec", "reclaim", "migrate", "swap_readahead"),
    ("uffd_zeropage", "uffd_poison", "uffd_unregister"),
    ("uffd_copy", "uffd_move"),
)
_KIN_OF: Final = {kind: group for group in _KIN for kind in group}


def mutate(
    workload: Workload,
    rng: Random,
    *,
    mremap_flags_extra: int = 0,
    points: Iterable[str] | None = None,
    steps_max: int = STEPS_GROWN_MAX,
) -> Workload:
    """A valid workload that differs from this one in a few places. Never raises.

    ``mremap_flags_extra`` and ``points`` as for ``Generator``; ``steps_max``: insertions stop there.
    """
    return Mutator(rng, mremap_flags_extra=mremap_flags_extra, points=points, steps_max=steps_max).mutate(
        workload
    )


def crossover(a: Workload, b: Workload, rng: Random) -> Workload:
    """A valid workload with steps of both, in the world of ``a``. Never raises."""
    left, right = list(a.steps), list(b.steps)
    roll = rng.random()
    if roll < 0.4:  # the stage of one, the play of the other
        steps = left[: _late(rng, len(left))] + right[rng.randint(0, len(right)) :]
    elif roll < 0.75:  # a piece of b inside a
        start = rng.randint(0, len(right))
        place = _late(rng, len(left))
        steps = left[:place] + right[start : start + rng.randint(1, 6)] + left[place:]
    else:  # interleaved
        steps = []
        while left or right:
            source = left if left and (not right or rng.random() < 0.5) else right
            taken = min(len(source), rng.randint(1, 3))
            steps += source[:taken]
            del source[:taken]
    return repair(Workload(a.geometry, tuple(steps[:STEPS_GROWN_MAX])))


def _late(rng: Random, size: int) -> int:
    """A place from 0 to ``size``, rather late than early."""
    return size - int((size + 1) * rng.random() ** 2)


class Mutator:
    """Changes one workload after another; ``rng`` may be replaced between calls."""

    __slots__ = (
        "_cumulated",
        "_generator",
        "_moves",
        "extra",
        "geometry",
        "mremap_flags",
        "rng",
        "schedules",
        "steps",
        "steps_max",
    )

    def __init__(
        self,
        rng: Random,
        *,
        mremap_flags_extra: int = 0,
        points: Iterable[str] | None = None,
        steps_max: int = STEPS_GROWN_MAX,
    ) -> None:
        self.rng = rng
        self.extra = mremap_flags_extra
        self.mremap_flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP | mremap_flags_extra
        self.schedules = Schedules(points)
        self.steps_max = min(steps_max, STEPS_MAX)
        self.geometry = ""
        self.steps: list[Step] = []  # of the workload that is being changed
        self._generator: Generator | None = None
        weighted = self._weighted()
        self._moves = [move for _, move in weighted]
        self._cumulated = list(accumulate(weight for weight, _ in weighted))

    def _weighted(self) -> list[tuple[int, Callable[[], bool]]]:
        return [
            (100, self._insert),
            (120, self._tweak),
            (30, self._toggle),
            (35, self._delete),
            (20, self._duplicate),
            (20, self._swap),
            (15, self._relocate_step),
            (15, self._copy_segment),
            (35, self._fail),
            (40, self._together),
            (8, self._apart),
            (80, self._reschedule),
            (90, self._company),
            (10, self._hand_over),
            (20, self._kin),
            (5, self._translate),
            (1, self._other_world),
        ]

    def mutate(self, workload: Workload) -> Workload:
        """A valid workload that differs from this one in a few places. Never raises."""
        rng = self.rng
        start = repair(workload)
        result = start
        for _ in range(_TRIES):
            self.geometry = result.geometry
            self.steps = list(result.steps)
            self._generator = None
            again = rng.choice(_AGAIN)
            while True:
                # with nothing there yet, nothing can be changed
                move = rng.choices(self._moves, cum_weights=self._cumulated)[0] if self.steps else self._insert
                if move() and rng.random() >= again:
                    break
            result = repair(Workload(self.geometry, tuple(self.steps[:STEPS_MAX])))
            if result != start:
                break
        return result

    # ---- what the changes share

    def generator(self) -> Generator:
        """For new operations in the world of this workload."""
        made = self._generator
        if made is None or made.geometry != self.geometry:
            made = Generator(self.rng, self.geometry, mremap_flags_extra=self.extra, schedules=self.schedules)
            self._generator = made
        return made

    def sketch(self, before: int) -> Sketch:
        """What is mapped before step ``before``."""
        sketch = Sketch(self.geometry)
        for step in self.steps[:before]:
            sketch.add(step)
        return sketch

    def pick(self) -> int:
        """A step; there must be one."""
        return self.rng.randrange(len(self.steps))

    def pick_collision(self) -> int | None:
        """A step that is a collision."""
        found = [number for number, step in enumerate(self.steps) if len(step.ops) > 1]
        return self.rng.choice(found) if found else None

    def _full(self) -> bool:
        """So many steps that one should rather go; the more the likelier, or mutants would only grow."""
        free = self.steps_max // 4
        return len(self.steps) >= free + self.rng.random() * (self.steps_max - free)

    def replace(self, number: int, position: int, op: Op) -> bool:
        """Put ``op`` into a step; True when that changes it."""
        step = self.steps[number]
        if step.ops[position] == op:
            return False
        ops = (*step.ops[:position], op, *step.ops[position + 1 :])
        self.steps[number] = Step(ops, step.schedule)
        return True

    # ---- steps

    def _insert(self) -> bool:
        if self._full():
            return self._delete()
        rng = self.rng
        place = _late(rng, len(self.steps))
        sketch = self.sketch(place)
        if not sketch.labels.living:
            return False
        generator = self.generator()
        if rng.random() < 0.1:
            room = self.steps_max - len(self.steps)
            new = [Step((op,)) for op in generator.recipe(sketch)[:room]]
        else:
            new = [generator.dress(sketch, generator.op(sketch))]
        self.steps[place:place] = new
        return True

    def _delete(self) -> bool:
        if not self.steps:
            return False
        rng = self.rng
        place = self.pick()
        del self.steps[place : place + (1 if rng.random() < 0.75 else rng.randint(2, 4))]
        return True

    def _duplicate(self) -> bool:
        if not self.steps or self._full():
            return self._delete()
        self.steps.insert(_late(self.rng, len(self.steps)), self.steps[self.pick()])
        return True

    def _swap(self) -> bool:
        if len(self.steps) < 2:
            return False
        a, b = self.pick(), self.pick()
        self.steps[a], self.steps[b] = self.steps[b], self.steps[a]
        return a != b

    def _relocate_step(self) -> bool:
        if len(self.steps) < 2:
            return False
        step = self.steps.pop(self.pick())
        self.steps.insert(self.rng.randint(0, len(self.steps)), step)
        return True

    def _copy_segment(self) -> bool:
        size = self.rng.randint(2, 4)
        if len(self.steps) < size or len(self.steps) + size > self.steps_max or self._full():
            return self._delete()
        start = self.rng.randint(0, len(self.steps) - size)
        place = _late(self.rng, len(self.steps))
        self.steps[place:place] = self.steps[start : start + size]
        return True

    def _translate(self) -> bool:
        """Shift everything, so that other page-table boundaries lie inside."""
        geometry = GEOMETRIES[self.geometry]
        huge = geometry.hpage_pmd_nr
        shift = self.rng.choice((-huge, -1, 1, huge // 2, huge, geometry.ptrs_per_table * huge))
        table = OP_DOMAINS[self.geometry]

        def shifted(op: Op) -> Op:
            domains = table[op.kind].domains
            args = [
                (value + shift) % geometry.arena_pages if domain is Domain.PAGE else value
                for value, domain in zip(op.args, domains, strict=True)
            ]
            return Op(op.kind, op.proc, tuple(args), op.fail_nth)

        moved = map_ops(Workload(self.geometry, tuple(self.steps)), shifted)
        self.steps = list(moved.steps)
        return bool(self.steps)

    def _other_world(self) -> bool:
        small = [name for name, geometry in GEOMETRIES.items() if geometry.bits < 9 and name != self.geometry]
        self.geometry = self.rng.choice(small)
        # The changes that follow count on arguments that fit the world.
        self.steps = list(repair(Workload(self.geometry, tuple(self.steps))).steps)
        return True

    # ---- collisions

    def _crowded(self) -> bool:
        """So many collisions that one should rather be taken apart; without this they would only grow."""
        collisions = sum(len(step.ops) > 1 for step in self.steps)
        return collisions > self.rng.random() * len(self.steps) * _COLLISIONS_MAX

    def _together(self) -> bool:
        """Two steps that follow each other happen at the same time."""
        if self._crowded():
            return self._apart()
        fits = [
            number
            for number in range(len(self.steps) - 1)
            if len(self.steps[number].ops) + len(self.steps[number + 1].ops) <= COLLISION_OPS_MAX
        ]
        if not fits:
            return False
        place = self.rng.choice(fits)
        ops = self.steps[place].ops + self.steps[place + 1].ops
        self.steps[place : place + 2] = [Step(ops, self.schedules.draw(self.rng, ops))]
        return True

    def _apart(self) -> bool:
        place = self.pick_collision()
        if place is None or len(self.steps) + COLLISION_OPS_MAX > STEPS_MAX:
            return False
        ops = list(self.steps[place].ops)
        self.rng.shuffle(ops)
        self.steps[place : place + 1] = [Step((op,)) for op in ops]
        return True

    def _reschedule(self) -> bool:
        place = self.pick_collision()
        if place is None:
            return False
        step = self.steps[place]
        self.steps[place] = Step(step.ops, self.schedules.mutate(self.rng, step.ops, step.schedule))
        return self.steps[place] != step

    def _company(self) -> bool:
        """An op that ran alone gets another to run beside it."""
        if self._crowded():
            return self._apart()
        singles = [
            n for n, step in enumerate(self.steps) if len(step.ops) == 1 and step.ops[0].kind != "exit"
        ]
        if not singles:
            return False
        # what only the design under test does is where company is most wanted
        designs = [n for n in singles if self._asks_design(self.steps[n].ops[0])]
        if designs and self.rng.random() < _DESIGN:
            singles = designs
        place = singles[min(_late(self.rng, len(singles)), len(singles) - 1)]
        sketch = self.sketch(place)
        if not sketch.labels.living:
            return False
        self.steps[place] = self.generator().collision(sketch, self.steps[place].ops[0])
        return True

    def _asks_design(self, op: Op) -> bool:
        """Whether the op uses a flag that only the design under test knows."""
        return op.kind == "mremap" and op.args[3] & self.extra != 0

    # ---- single ops

    def _pick_op(self) -> tuple[int, int, Op] | None:
        if not self.steps:
            return None
        number = self.pick()
        position = self.rng.randrange(len(self.steps[number].ops))
        return number, position, self.steps[number].ops[position]

    def _tweak(self) -> bool:
        tweaks = Tweaks(self.rng, Workload(self.geometry, tuple(self.steps)), self.mremap_flags)
        changed = False
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            picked = self._pick_op()
            if picked is not None:
                number, position, op = picked
                changed |= self.replace(number, position, tweaks.tweak(op))
        return changed

    def _toggle(self) -> bool:
        picked = self._pick_op()
        if picked is None:
            return False
        number, position, op = picked
        domains = OP_DOMAINS[self.geometry][op.kind].domains
        flagged = [n for n, domain in enumerate(domains) if domain in FLAG_MASKS]
        if not flagged:
            return False
        at = self.rng.choice(flagged)
        mask = FLAG_MASKS[domains[at]]
        if domains[at] is Domain.MREMAP_FLAGS:
            mask = self.mremap_flags
        bits = [1 << n for n in range(mask.bit_length()) if mask >> n & 1]
        flipped = op.args[at] ^ self.rng.choice(bits)
        return self.replace(number, position, op._replace(args=(*op.args[:at], flipped, *op.args[at + 1 :])))

    def _fail(self) -> bool:
        picked = self._pick_op()
        if picked is None:
            return False
        number, position, op = picked
        roll = self.rng.random()
        if op.fail_nth and roll < 0.3:
            fail_nth = 0
        elif op.fail_nth and roll < 0.8:
            fail_nth = max(1, op.fail_nth + self.rng.choice((-1, 1, 1, 2)))
        else:
            fail_nth = self.rng.randint(1, FAIL_NTH_DRAWN)
        return self.replace(number, position, op._replace(fail_nth=fail_nth))

    def _hand_over(self) -> bool:
        """Another process does it."""
        picked = self._pick_op()
        if picked is None:
            return False
        number, position, op = picked
        return self.replace(number, position, op._replace(proc=self.rng.randrange(PROCS_MAX)))

    def _kin(self) -> bool:
        picked = self._pick_op()
        if picked is None:
            return False
        number, position, op = picked
        group = _KIN_OF.get(op.kind)
        if group is None:
            return False
        return self.replace(number, position, op._replace(kind=self.rng.choice(group)))
