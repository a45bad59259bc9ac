"""The text form of a workload: lossless, for people to read, diff and write by hand.

::

    # a comment
    world small8
    mmap     addr=4 len=8 prot=rw flags=private|fixed
    write    addr=4 at=0
    fork     child=1
    p1: read     addr=4
    mremap   addr=4 old_len=8 new_len=8 flags=maymove|fixed new_addr=64 (fail_nth 3)
    together
      munmap   addr=4 len=2
      gup_fast addr=5 flags=pin|write pin=0
      schedule 1 until gup_fast.pte_read, 0 until end
    end

Addresses and lengths are pages. Without ``pN:`` an op is of process 0. ``file``, ``off`` and ``new_addr`` may
be left out when they are 0, ``xN`` in a schedule when it is 1, and ``any`` there is every preemption point.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from emulator.errors import UsageError
from emulator.geometry import GEOMETRIES
from emulator.uapi import MREMAP_DONTUNMAP, MREMAP_FIXED
from emulator.workload import (
    COLLISION_OPS_MAX,
    OPS,
    SCHEDULE_MAX,
    STEPS_MAX,
    Op,
    Step,
    Switch,
    Workload,
)
from fuzz.workload.domains import (
    ANY,
    FAIL_NTHS,
    NTHS,
    OP_DOMAINS,
    PROCS,
    OpDomains,
    describe,
    is_point,
)
from fuzz.workload.symbols import parse_value, show_value

TEXT_MAX: Final = 1 << 20  # characters; comments need room

_OPTIONAL: Final = ("file", "off", "new_addr")  # 0 when left out
_TARGET_FLAGS: Final = MREMAP_FIXED | MREMAP_DONTUNMAP  # with these new_addr counts, and is shown even if 0
_KIND_WIDTH: Final = 8  # arguments stand in one column; a longer name pushes its own line only
_ANY_WORD: Final = "any"
_SCHEDULE_WIDTH: Final = 90  # characters before a schedule goes on in another line

_OP = re.compile(
    r"(?:p(?P<proc>\d{1,9})\s*:\s*)?(?P<kind>\w+)(?P<args>[^()]*)(?:\(\s*fail_nth\s+(?P<fail>\d{1,9})\s*\))?",
    re.ASCII,
)
_SWITCH = re.compile(r"(?P<op>\d{1,9})\s+until\s+(?P<point>\S+)(?:\s+x(?P<nth>\d{1,9}))?", re.ASCII)


def to_text(workload: Workload) -> str:
    """The text form; the same workload gives the same text, and ``from_text`` gives the workload back."""
    lines = [f"world {workload.geometry}"]
    for step in workload.steps:
        if len(step.ops) == 1:
            lines.append(show_op(step.ops[0]))
            continue
        lines.append("together")
        lines += ["  " + show_op(op) for op in step.ops]
        lines += ["  " + line for line in show_schedule(step.schedule)]
        lines.append("end")
    return "\n".join(lines) + "\n"


def show_op(op: Op) -> str:
    """One op as its line of the text form."""
    words = [op.kind.ljust(_KIND_WIDTH)]
    for (name, domain), value in zip(OPS[op.kind].args, op.args, strict=True):
        if value or name not in _OPTIONAL or (name == "new_addr" and op.args[3] & _TARGET_FLAGS):
            words.append(f"{name}={show_value(domain, value)}")
    if op.fail_nth:
        words.append(f"(fail_nth {op.fail_nth})")
    prefix = f"p{op.proc}: " if op.proc else ""
    return prefix + " ".join(words).rstrip()


def show_schedule(schedule: tuple[Switch, ...]) -> list[str]:
    """A schedule as one or more ``schedule`` lines; none when it is empty."""
    lines: list[str] = []
    for switch in schedule:
        count = f" x{switch.nth}" if switch.nth != 1 else ""
        item = f"{switch.op} until {switch.point or _ANY_WORD}{count}"
        if lines and len(lines[-1]) + len(item) < _SCHEDULE_WIDTH:
            lines[-1] += ", " + item
        else:
            lines.append("schedule " + item)
    return lines


def from_text(text: str) -> Workload:
    """The workload that the text spells. Raises ``UsageError`` that names the line."""
    if len(text) > TEXT_MAX:
        raise UsageError(f"{len(text)} characters are too many for a workload, {TEXT_MAX} is the most")
    return _Reader().read(text)


class _Reader:
    """Reads line by line; knows the line it is at, for errors."""

    __slots__ = ("geometry", "line", "opened", "ops", "schedule", "steps", "table")

    def __init__(self) -> None:
        self.line = 0
        self.geometry = ""
        self.table: dict[str, OpDomains] = {}
        self.steps: list[Step] = []
        self.opened = 0  # line of the ``together`` that is open, or 0
        self.ops: list[Op] = []
        self.schedule: list[Switch] = []

    def read(self, text: str) -> Workload:
        for raw in text.split("\n"):
            self.line += 1
            line = raw.split("#", 1)[0].strip()
            if line:
                self.read_line(line)
        if not self.geometry:
            self.fail(f'there is no "world" line; begin with "world {next(iter(GEOMETRIES))}"')
        if self.opened:
            self.fail(f'the "together" of line {self.opened} has no "end"')
        return Workload(self.geometry, tuple(self.steps))

    def fail(self, reason: str) -> NoReturn:
        raise UsageError(f"line {self.line}: {reason}")

    def read_line(self, line: str) -> None:
        word, *more = line.split(None, 1)
        rest = more[0] if more else ""
        if not self.geometry:
            self.read_world(word, rest)
        elif word == "together" and not rest:
            if self.opened:
                self.fail(f'"together" within the "together" of line {self.opened}')
            self.opened = self.line
        elif word == "end" and not rest:
            self.close_collision()
        elif word == "schedule":
            self.read_schedule(rest)
        elif word == "world":
            self.fail("the world is already known: one workload, one world")
        elif self.opened:
            self.ops.append(self.read_op(line))
        else:
            self.add_step(Step((self.read_op(line),)))

    def read_world(self, word: str, name: str) -> None:
        if word != "world":
            self.fail(f'a workload begins with its world, as in "world {next(iter(GEOMETRIES))}"')
        if name not in GEOMETRIES:
            self.fail(f"unknown world {_short(name)}; there are {', '.join(GEOMETRIES)}")
        self.geometry = name
        self.table = OP_DOMAINS[name]

    def close_collision(self) -> None:
        if not self.opened:
            self.fail('"end" without "together"')
        count = len(self.ops)
        if not 2 <= count <= COLLISION_OPS_MAX:
            self.fail(f"a collision has 2 to {COLLISION_OPS_MAX} ops, this has {count}")
        if len(self.schedule) > SCHEDULE_MAX:
            self.fail(f"a schedule has at most {SCHEDULE_MAX} switches, this has {len(self.schedule)}")
        for switch in self.schedule:
            if switch.op >= count:
                self.fail(f"the schedule speaks of op {switch.op}, but the ops are 0 to {count - 1}")
        self.add_step(Step(tuple(self.ops), tuple(self.schedule)))
        self.opened = 0
        self.ops = []
        self.schedule = []

    def add_step(self, step: Step) -> None:
        if len(self.steps) == STEPS_MAX:
            self.fail(f"more than {STEPS_MAX} steps")
        self.steps.append(step)

    def read_schedule(self, text: str) -> None:
        if not self.opened:
            self.fail('"schedule" belongs between "together" and "end"')
        for item in text.split(","):
            match = _SWITCH.fullmatch(item.strip())
            if match is None:
                self.fail(f'schedule: {_short(item.strip())} is not like "0 until rmap.walk_next x2"')
            nth = int(match["nth"] or 1)
            point = match["point"]
            if point == _ANY_WORD:
                point = ANY
            elif not is_point(point):
                self.fail(f"schedule: {_short(point)} is no name of a preemption point (area.what, any, end)")
            if nth not in NTHS:
                self.fail(f"schedule: x{nth} is {describe(NTHS)}")
            self.schedule.append(Switch(int(match["op"]), point, nth))

    def read_op(self, line: str) -> Op:
        match = _OP.fullmatch(line)
        if match is None:
            self.fail(f'{_short(line)} is not like "p1: munmap addr=4 len=2 (fail_nth 1)"')
        kind = match["kind"]
        spec = self.table.get(kind)
        if spec is None:
            self.fail(f"unknown operation {_short(kind)}; there are {' '.join(OPS)}")
        proc = int(match["proc"] or 0)
        if proc not in PROCS:
            self.fail(f"process p{proc} is {describe(PROCS)}")
        fail_nth = int(match["fail"] or 0)
        if fail_nth not in FAIL_NTHS:
            self.fail(f"{kind}: fail_nth {fail_nth} is {describe(FAIL_NTHS)}")
        return Op(kind, proc, self.read_args(spec, match["args"].split()), fail_nth)

    def read_args(self, spec: OpDomains, words: list[str]) -> tuple[int, ...]:
        given: dict[str, str] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                self.fail(f"{spec.kind}: {_short(word)} is not like name=value")
            if name not in spec.names:
                takes = " ".join(spec.names) or "none"
                self.fail(f"{spec.kind}: there is no argument {_short(name)}; it takes {takes}")
            if name in given:
                self.fail(f"{spec.kind}: {name} is given twice")
            given[name] = value
        args: list[int] = []
        for name, domain, values in zip(spec.names, spec.domains, spec.values, strict=True):
            if name not in given:
                if name not in _OPTIONAL:
                    self.fail(f"{spec.kind}: {name}= is missing")
                args.append(0)
                continue
            try:
                number = parse_value(domain, given[name])
            except ValueError as error:
                self.fail(f"{spec.kind}: {name}: {error}")
            if number not in values:
                self.fail(f"{spec.kind}: {name} {_short(given[name])} is {describe(values)}")
            args.append(number)
        return tuple(args)


def _short(text: str) -> str:
    """What somebody wrote, quoted, in one short printable piece."""
    shown = ascii(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."
