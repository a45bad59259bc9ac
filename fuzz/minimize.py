"""Makes a workload as small as it can be while it still shows what it is kept for.

Tiers, from coarse to fine, each until nothing of it helps: cut the tail; drop steps; drop what belongs
together; take collisions apart; simplify failures and schedules; simplify arguments; shrink the address
space; smaller world, lower labels. A candidate counts only when it is smaller in one fixed order (fewer ops,
then fewer bytes of canonical encoding, then plainer arguments, then the bytes themselves), so the end does
not hang on the path, every chain of steps ends, and the same call gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import combinations, permutations
from typing import Final, TypeAlias

from emulator.errors import UsageError
from emulator.geometry import GEOMETRIES, PAGE_SHIFT
from emulator.workload import Domain, Op, Step, Switch, Workload
from fuzz.workload.domains import args_in, count_ops
from fuzz.workload.repair import repair
from fuzz.workload.simplify import (
    boundaries,
    complexity,
    cut_pages,
    in_world,
    renumbered,
    reordered,
    simpler_ops,
    step_without,
    swap_pages,
    without_child,
    without_move,
    without_pin,
)
from fuzz.workload.wire import encode

BUDGET: Final = 3000  # calls of ``keeps``
_PAIRS_MAX: Final = 16  # steps; for longer workloads pairs are too many to try

Keeps: TypeAlias = Callable[[Workload], bool]
Progress: TypeAlias = Callable[[int, Workload], None]
Size: TypeAlias = tuple[int, int, int, bytes]


def minimize(
    workload: Workload,
    keeps: Keeps,
    *,
    failing_step: int | None = None,
    budget: int = BUDGET,
    progress: Progress | None = None,
) -> Workload:
    """The smallest workload found for which ``keeps`` is true; ``keeps`` must be deterministic.

    ``failing_step``: number of the step at which the finding showed, if known; what follows is tried away
    first. ``budget``: the most calls of ``keeps``; when it is spent the best so far is the result.
    ``progress`` is called with the number of calls so far and each new best.
    Raises ``UsageError`` when ``keeps(workload)`` is false: there is nothing to keep.
    """
    if not keeps(workload):
        raise UsageError("the workload does not show what it shall keep, so there is nothing to minimise")
    search = _Search(workload, keeps, budget - 1, progress)
    with suppress(_Spent):
        search.run(failing_step)
    return search.best


def size_of(workload: Workload) -> Size:
    """What minimising reduces; a total order."""
    data = encode(workload)
    return count_ops(workload), len(data), complexity(workload), data


class _Spent(Exception):
    """The budget is used up."""


class _Search:
    """The best workload so far, and the ways to a better one."""

    __slots__ = ("best", "budget", "calls", "keeps", "progress", "seen", "size")

    def __init__(self, start: Workload, keeps: Keeps, budget: int, progress: Progress | None) -> None:
        self.best = start
        self.size = size_of(start)
        self.keeps = keeps
        self.budget = budget
        self.calls = 0
        self.progress = progress
        self.seen: set[bytes] = {self.size[-1]}  # tried already

    def attempt(self, candidate: Workload) -> bool:
        """Whether the candidate, repaired, is smaller and keeps; then it is the best from now on."""
        candidate = repair(candidate)
        size = size_of(candidate)
        data = size[-1]
        if size >= self.size or data in self.seen:
            return False
        if self.calls >= self.budget:
            raise _Spent
        self.seen.add(data)
        self.calls += 1
        if not self.keeps(candidate):
            return False
        self.best = candidate
        self.size = size
        if self.progress is not None:
            self.progress(self.calls + 1, candidate)
        return True

    def attempt_steps(self, steps: Iterable[Step]) -> bool:
        return self.attempt(Workload(self.best.geometry, tuple(steps)))

    def attempt_op(self, number: int, position: int, op: Op) -> bool:
        step = self.best.steps[number]
        ops = (*step.ops[:position], op, *step.ops[position + 1 :])
        return self.replace_step(number, (Step(ops, step.schedule),))

    def replace_step(self, number: int, steps: tuple[Step, ...]) -> bool:
        old = self.best.steps
        return self.attempt_steps(old[:number] + steps + old[number + 1 :])

    # ---- the order of passes

    def run(self, failing_step: int | None) -> None:
        if failing_step is not None:
            self.attempt_steps(self.best.steps[: failing_step + 1])
        coarse = (self.cut_tail, self.drop_steps, self.drop_groups, self.thin_collisions)
        fine = (
            self.simplify_schedules,
            self.simplify_ops,
            self.shrink_space,
            self.smaller_world,
            self.tidy,
        )
        self.until_stable(coarse)
        self.smaller_world()  # early: it makes the numbers of the fine passes small
        while True:
            before = self.best
            self.until_stable(fine)
            self.until_stable(coarse)
            if self.best == before:
                self.drop_pairs()
            if self.best == before:
                return

    def until_stable(self, passes: tuple[Callable[[], None], ...]) -> None:
        while True:
            before = self.best
            for one in passes:
                one()
            if self.best == before:
                return

    # ---- fewer steps

    def cut_tail(self) -> None:
        """The shortest beginning that halving finds."""
        cut = len(self.best.steps) // 2
        while cut:
            steps = self.best.steps
            if cut < len(steps) and self.attempt_steps(steps[: len(steps) - cut]):
                continue
            cut //= 2

    def drop_steps(self) -> None:
        """Chunks of steps, from the end, then smaller chunks, down to single steps."""
        chunk = max(1, len(self.best.steps) // 2)
        while True:
            start = len(self.best.steps) - chunk
            while start > -chunk:
                low = max(start, 0)
                self.attempt_steps(self.best.steps[:low] + self.best.steps[start + chunk :])
                start = min(start, len(self.best.steps)) - chunk
            if chunk == 1:
                return
            chunk //= 2

    def drop_groups(self) -> None:
        """Steps that only make sense together: a child's, a pin's, a move and what finds the pages there."""
        for label in sorted(set(args_in(self.best, (Domain.NEW_PROC,)))):
            self.attempt(without_child(self.best, label))
        for label in sorted(set(args_in(self.best, (Domain.NEW_PIN,)))):
            self.attempt(without_pin(self.best, label))
        for number in reversed(range(len(self.best.steps))):
            for position in reversed(range(self.ops_at(number))):
                if position < self.ops_at(number):
                    candidate = without_move(self.best, number, position)
                    if candidate is not None:
                        self.attempt(candidate)

    def drop_pairs(self) -> None:
        """Any two steps at once."""
        count = len(self.best.steps)
        if not 2 < count <= _PAIRS_MAX:
            return
        steps = self.best.steps
        for a, b in combinations(reversed(range(count)), 2):
            if self.attempt_steps(steps[:b] + steps[b + 1 : a] + steps[a + 1 :]):
                return

    def thin_collisions(self) -> None:
        """Fewer ops at once: without one of them, one after the other, one before or after the others."""
        for number in reversed(range(len(self.best.steps))):
            while self.ops_at(number) > 1 and self.thin(number):
                pass

    def thin(self, number: int) -> bool:
        step = self.best.steps[number]
        positions = range(len(step.ops))
        if any(self.replace_step(number, (step_without(step, position),)) for position in positions):
            return True
        for order in permutations(step.ops):
            if self.replace_step(number, tuple([Step((op,)) for op in order])):
                return True
        if len(step.ops) > 2:
            for position in positions:
                alone, rest = Step((step.ops[position],)), step_without(step, position)
                if self.replace_step(number, (alone, rest)) or self.replace_step(number, (rest, alone)):
                    return True
        return False

    def ops_at(self, number: int) -> int:
        """How many ops the step has; 0 when there is no such step (repair may drop some)."""
        return len(self.best.steps[number].ops) if number < len(self.best.steps) else 0

    # ---- plainer steps

    def simplify_schedules(self) -> None:
        for number in reversed(range(len(self.best.steps))):
            if self.ops_at(number) > 1:
                self.simplify_schedule(number)

    def simplify_schedule(self, number: int) -> None:
        """Fewer switches, then lower counts."""
        self.reschedule(number, ())
        position = len(self.schedule_at(number))
        while position > 0:
            position -= 1
            schedule = self.schedule_at(number)
            if position < len(schedule):
                self.reschedule(number, schedule[:position] + schedule[position + 1 :])
        for position in range(len(self.schedule_at(number))):
            for lower in (self._first, self._half, self._one_less):
                while self.lower_nth(number, position, lower):
                    pass

    @staticmethod
    def _first(nth: int) -> int:
        return 1

    @staticmethod
    def _half(nth: int) -> int:
        return nth // 2

    @staticmethod
    def _one_less(nth: int) -> int:
        return nth - 1

    def lower_nth(self, number: int, position: int, lower: Callable[[int], int]) -> bool:
        schedule = self.schedule_at(number)
        if position >= len(schedule) or schedule[position].nth == 1:
            return False
        switch = schedule[position]
        changed = switch._replace(nth=max(1, lower(switch.nth)))
        return self.reschedule(number, (*schedule[:position], changed, *schedule[position + 1 :]))

    def schedule_at(self, number: int) -> tuple[Switch, ...]:
        return self.best.steps[number].schedule if number < len(self.best.steps) else ()

    def reschedule(self, number: int, schedule: tuple[Switch, ...]) -> bool:
        if number >= len(self.best.steps):
            return False
        return self.replace_step(number, (Step(self.best.steps[number].ops, schedule),))

    def simplify_ops(self) -> None:
        """Each op with plainer arguments, as long as one helps."""
        for number in reversed(range(len(self.best.steps))):
            for position in range(self.ops_at(number)):
                while position < self.ops_at(number):
                    op = self.best.steps[number].ops[position]
                    variants = simpler_ops(op, self.best.geometry)
                    if not any(self.attempt_op(number, position, variant) for variant in variants):
                        break

    # ---- smaller space

    def shrink_space(self) -> None:
        """Cut pages out of the address space where nothing depends on them, large pieces first."""
        geometry = GEOMETRIES[self.best.geometry]
        for unit in (geometry.pud_size >> PAGE_SHIFT, geometry.hpage_pmd_nr, 1):
            edges = boundaries(self.best)
            index = len(edges) - 1
            while index > 0:
                edges = boundaries(self.best)
                index = min(index, len(edges) - 1)
                if index == 0 or not self.narrow(edges[index - 1], edges[index], unit):
                    index -= 1

    def narrow(self, low: int, high: int, unit: int) -> bool:
        """Take multiples of ``unit`` pages out of [low, high): all that fit, half of them, one."""
        fit = (high - low) // unit
        tried: set[int] = set()
        for count in (fit, fit - 1, fit // 2, 1):
            if count > 0 and count not in tried:
                tried.add(count)
                if self.attempt(cut_pages(self.best, high - count * unit, high)):
                    return True
        return False

    def smaller_world(self) -> None:
        """A geometry with smaller page tables."""
        size = GEOMETRIES[self.best.geometry].ptrs_per_table
        for name, geometry in sorted(GEOMETRIES.items(), key=lambda item: item[1].ptrs_per_table):
            if geometry.ptrs_per_table < size and (
                self.attempt(in_world(self.best, name)) or self.attempt(self.best._replace(geometry=name))
            ):
                return

    def tidy(self) -> None:
        """One spelling for workloads that do the same: labels, ranges and independent steps in order."""
        self.attempt(renumbered(self.best))
        for low, middle, high in zip(*(boundaries(self.best)[n:] for n in range(3)), strict=False):
            self.attempt(swap_pages(self.best, low, middle, high))
        for number in range(len(self.best.steps)):
            if self.ops_at(number) > 1:
                step = self.best.steps[number]
                for order in permutations(range(len(step.ops))):
                    if self.replace_step(number, (reordered(step, order),)):
                        break
        for number in range(len(self.best.steps) - 1):
            steps = self.best.steps
            if number + 1 < len(steps):
                swapped = (steps[number + 1], steps[number])
                self.attempt_steps(steps[:number] + swapped + steps[number + 2 :])
