"""Makes any workload valid: every argument in its domain, every process and pin made before it is used.

Validity is judged without running anything, so "made" means that an earlier op would make it: the fork or
the GUP may fail when it runs. Within a collision nothing may be used that an op of the same collision makes,
because the schedule decides which comes first.
"""

from __future__ import annotations

from typing import Final

from emulator.workload import (
    COLLISION_OPS_MAX,
    PINS_MAX,
    PROCS_MAX,
    SCHEDULE_MAX,
    STEPS_MAX,
    Domain,
    Op,
    Step,
    Switch,
    Workload,
)
from fuzz.workload.domains import (
    ANY,
    DEFAULT_GEOMETRY,
    FAIL_NTH_MAX,
    NTH_MAX,
    OP_DOMAINS,
    OpDomains,
    clamp,
    is_point,
)

# The kinds that make or need a resource all carry its label in one argument; where it stands.
_LABEL_DOMAINS: Final = (Domain.NEW_PROC, Domain.NEW_PIN, Domain.PIN)
_LABEL_ARG: Final[dict[str, tuple[Domain, int]]] = {
    kind: (domain, position)
    for kind, spec in OP_DOMAINS[DEFAULT_GEOMETRY].items()
    for position, domain in enumerate(spec.domains)
    if domain in _LABEL_DOMAINS
}


def repair(workload: Workload) -> Workload:
    """The valid workload nearest to this one; a valid one comes back equal.

    Total (any integers, any kinds, any number of steps) and idempotent.
    """
    geometry = workload.geometry if workload.geometry in OP_DOMAINS else DEFAULT_GEOMETRY
    table = OP_DOMAINS[geometry]
    labels = Labels()
    steps: list[Step] = []
    for step in workload.steps:
        if len(steps) == STEPS_MAX:
            break
        fixed = repair_step(step, table, labels)
        if fixed is not None:
            steps.append(fixed)
    return Workload(geometry, tuple(steps))


def is_valid(workload: Workload) -> bool:
    """Whether ``repair`` would leave the workload as it is."""
    return repair(workload) == workload


class Labels:
    """Which process and pin labels exist as the steps go by."""

    __slots__ = ("_dirty", "_made_pins", "_made_procs", "_unpinned", "_written", "living", "pins")

    def __init__(self) -> None:
        self.living = [0]  # labels of processes, ascending; as of the beginning of the step
        self.pins: list[int] = []  # labels of pins, ascending; as of the beginning of the step
        self._dirty = False  # the step makes or uses labels
        self._made_procs: list[int] = []
        self._made_pins: list[int] = []
        self._unpinned: list[int] = []
        self._written: list[int] = []  # pins written through in this step

    def free_procs(self) -> list[int]:
        """Labels that a fork may give now."""
        taken = self.living + self._made_procs
        return [label for label in range(1, PROCS_MAX) if label not in taken]

    def free_pins(self) -> list[int]:
        """Labels that a GUP may give now."""
        taken = self.pins + self._made_pins
        return [label for label in range(PINS_MAX) if label not in taken]

    def usable_pins(self, kind: str) -> list[int]:
        """Labels that ``unpin`` or ``pin_write`` may name now: a pin is given back once, and used before."""
        if kind == "unpin":
            return [label for label in self.pins if label not in self._unpinned + self._written]
        return [label for label in self.pins if label not in self._unpinned]

    def note(self, op: Op) -> None:
        """``op`` is part of the step."""
        kind = op.kind
        if kind == "exit":
            self.living.remove(op.proc)
            return
        found = _LABEL_ARG.get(kind)
        if found is None:
            return
        domain, position = found
        label = op.args[position]
        self._dirty = True
        if domain is Domain.NEW_PROC:
            self._made_procs.append(label)
        elif domain is Domain.NEW_PIN:
            self._made_pins.append(label)
        elif kind == "unpin":
            self._unpinned.append(label)
        else:
            self._written.append(label)

    def end_step(self) -> None:
        """What the step made can be used from now on."""
        if not self._dirty:
            return
        self._dirty = False
        kept = [label for label in self.pins if label not in self._unpinned]
        self.pins = sorted(kept + self._made_pins)
        self.living = sorted(self.living + self._made_procs)
        self._made_procs = []
        self._made_pins = []
        self._unpinned = []
        self._written = []


def repair_step(step: Step, table: dict[str, OpDomains], labels: Labels) -> Step | None:
    """The valid step nearest to ``step`` after the steps that ``labels`` has seen; None when nothing is left.

    ``table`` is the geometry's part of ``OP_DOMAINS``; ``labels`` moves on to after the step.
    """
    if len(step.ops) == 1:
        alone = _repair_op(step.ops[0], table, labels)
        if alone is None:
            return None
        labels.note(alone)
        labels.end_step()
        return step if alone is step.ops[0] and not step.schedule else Step((alone,))
    ops: list[Op] = []
    kept: list[int] = []  # the old number of each op that stays
    for number, op in enumerate(step.ops):
        if len(ops) == COLLISION_OPS_MAX:
            break
        if op.kind == "exit":
            continue  # what runs beside it would lose its process half-way
        fixed = _repair_op(op, table, labels)
        if fixed is not None:
            labels.note(fixed)
            ops.append(fixed)
            kept.append(number)
    labels.end_step()
    if not ops:
        return None
    if len(ops) == 1:
        return Step((ops[0],))
    return Step(tuple(ops), _repair_schedule(step.schedule, len(step.ops), kept))


def _repair_schedule(schedule: tuple[Switch, ...], ops: int, kept: list[int]) -> tuple[Switch, ...]:
    """The switches of ops that stay, under their new numbers."""
    if len(kept) == ops and len(schedule) <= SCHEDULE_MAX:
        for op, point, nth in schedule:
            if not (0 <= op < ops and 0 < nth <= NTH_MAX and is_point(point)):
                break
        else:
            return schedule
    fixed: list[Switch] = []
    for op, point, nth in schedule:
        number = op % ops
        if number in kept and len(fixed) < SCHEDULE_MAX:
            name = point if is_point(point) else ANY
            fixed.append(Switch(kept.index(number), name, min(max(nth, 1), NTH_MAX)))
    return tuple(fixed)


def _repair_op(op: Op, table: dict[str, OpDomains], labels: Labels) -> Op | None:
    """The op with every argument in its domain and every label known, or None when there is no such op."""
    spec = table.get(op.kind)
    living = labels.living
    if spec is None or not living:
        return None
    proc = op.proc if op.proc in living else living[op.proc % PROCS_MAX % len(living)]
    args = _repair_args(op.args, spec)
    label = _LABEL_ARG.get(op.kind)
    if label is not None:
        domain, position = label
        if domain is Domain.NEW_PROC:
            choices = labels.free_procs()
        elif domain is Domain.NEW_PIN:
            choices = labels.free_pins()
        else:
            choices = labels.usable_pins(op.kind)
        if not choices:
            return None
        wanted = args[position]
        if wanted not in choices:
            args = (*args[:position], choices[wanted % len(choices)], *args[position + 1 :])
    fail_nth = min(max(op.fail_nth, 0), FAIL_NTH_MAX)
    if proc == op.proc and args is op.args and fail_nth == op.fail_nth:
        return op
    return Op(op.kind, proc, args, fail_nth)


def _repair_args(args: tuple[int, ...], spec: OpDomains) -> tuple[int, ...]:
    _, arity, _, domains, allowed, members = spec
    if len(args) != arity:
        args = (args + (0,) * arity)[:arity]
    for position, value in enumerate(args):
        if value not in members[position]:
            return tuple([clamp(d, v, ok) for d, v, ok in zip(domains, args, allowed, strict=True)])
    return args
