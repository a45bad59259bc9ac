"""The collision oracle: what operations did at the same time, some serial order of them would have done too.

All orders (two or three operations: six at most) are tried on copies of the specification, each operation with the
outcome that it gave; an order explains the collision when the specification allows every outcome and the machine's
pages, processes and pins are as it says. Reclaim, migration and read-ahead change nothing visible, wherever they
come in the order.

Weaker outcomes are allowed nowhere yet: mmap_lock makes every system call and fault of the model one point in time,
and an access that needs no fault touches one page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from emulator.workload import token
from oracle.finding import Finding, finding
from oracle.specification_failure import alternatives, settle
from oracle.specification_page import Refusal
from oracle.visible import Difference, VisibleOracle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulator.workload import Outcome, Step
    from oracle.specification import Specification


class Explanation(NamedTuple):
    """A serial order (op numbers) that gives what the collision gave, and the state after it."""

    order: tuple[int, ...]
    after: Specification


class CollisionOracle:
    """Looks for the serial order that explains a collision."""

    __slots__ = ("_visible",)

    def __init__(self, visible: VisibleOracle) -> None:
        self._visible = visible

    def explain(
        self, spec: Specification, step: Step, index: int, outcomes: list[Outcome]
    ) -> Explanation | Finding:
        """The order that explains step number ``index``, or the finding that there is none."""
        table = self._visible.touched(step.ops, outcomes)
        search = _Search(self._visible, step, index, outcomes, table)
        return search.run(spec) or search.finding()


class _Search:
    """A depth-first search over the orders of one collision."""

    __slots__ = ("best", "index", "outcomes", "step", "table", "visible")

    def __init__(
        self,
        visible: VisibleOracle,
        step: Step,
        index: int,
        outcomes: list[Outcome],
        table: dict[int, dict[int, int]],
    ) -> None:
        self.visible = visible
        self.step = step
        self.index = index
        self.outcomes = outcomes
        self.table = table
        # how far the most successful order came: (ops allowed, what then was wrong, in which order)
        self.best: tuple[int, Refusal | Difference | None, tuple[int, ...]] = (-1, None, ())

    def run(self, spec: Specification) -> Explanation | None:
        return self._extend(spec, ())

    def _extend(self, spec: Specification, order: tuple[int, ...]) -> Explanation | None:
        ops = self.step.ops
        if len(order) == len(ops):
            return self._compare(spec, order)
        for number in range(len(ops)):
            if number not in order:
                for after in self._do(spec, number, order):
                    found = self._extend(after, (*order, number))
                    if found is not None:
                        return found
        return None

    def _do(self, spec: Specification, number: int, order: tuple[int, ...]) -> Iterator[Specification]:
        """The states that op ``number`` may have left after the ops of ``order``."""
        op, outcome = self.step.ops[number], self.outcomes[number]
        mark = token(self.index, number)
        if outcome.injected:
            view = self.visible.view
            settled = spec.copy()
            if settle(settled, op, outcome, mark, lambda *page: view.shows(spec, *page)) is None:
                yield settled
            yield from alternatives(spec, op, outcome, mark)
            return
        after = spec.copy()
        refusal = after.apply(op, outcome, mark)
        if refusal is None:
            yield after
        else:
            self._note(len(order), refusal, (*order, number))

    def _compare(self, spec: Specification, order: tuple[int, ...]) -> Explanation | None:
        if spec.wild:
            self.visible.settle_wild_writes(spec)
        difference = self.visible.first_difference(spec, self.table)
        if difference is None:
            return Explanation(order, spec)
        self._note(len(order), difference, order)
        return None

    def _note(self, length: int, what: Refusal | Difference | None, order: tuple[int, ...]) -> None:
        if length > self.best[0]:
            self.best = (length, what, order)

    def finding(self) -> Finding:
        """That no order explains it, with the order that came closest."""
        length, what, order = self.best
        rule, cause, detail = what or ("result", "", "no state after an injected failure is allowed")
        kinds = "+".join(sorted(op.kind for op in self.step.ops))
        names = ", ".join(f"op {i} {self.step.ops[i].kind}" for i in order)
        return finding(
            "collision",
            "no-serial-order",
            f"no order of the operations gives this; the closest ({names}): {detail}",
            self.index,
            cause=", ".join([word for word in (kinds, rule, cause) if word]),
            op=order[-1] if length < len(self.step.ops) else None,
        )
