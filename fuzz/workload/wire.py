"""The wire form of a workload: canonical msgpack, the bytes of every ``corpus/**/*.msgpack``.

::

    ["vmafuzz", 1, geometry, [step, ...]]
    step       op | [[op, op(, op)], [[op number, point, nth], ...]]
    op         [code, process, argument, ...(, fail_nth)]

``fail_nth`` is there when it is not 0; a workload has exactly one encoding that ``encode`` gives. Bytes that
spell the same workload otherwise (wider integers, ``fail_nth`` 0 written out) decode too. Decoding reads
integers, texts and lists and nothing else, within fixed limits, and executes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgpack

from emulator.errors import UsageError
from emulator.geometry import GEOMETRIES
from emulator.workload import (
    COLLISION_OPS_MAX,
    OP_BY_CODE,
    OPS,
    SCHEDULE_MAX,
    STEPS_MAX,
    Op,
    Step,
    Switch,
    Workload,
)
from fuzz.workload.domains import (
    FAIL_NTH_MAX,
    FAIL_NTHS,
    NTH_MAX,
    NTHS,
    OP_DOMAINS,
    PROCS,
    OpDomains,
    describe,
    is_point,
)

MAGIC: Final = "vmafuzz"
VERSION: Final = 1
SIZE_MAX: Final = 64 << 10  # bytes

# Every list of a workload is shorter; longer than STEPS_MAX, so that too many steps are called by that name.
_LIST_MAX: Final = 256
_TEXT_MAX: Final = 256  # bytes of one text

Document: TypeAlias = tuple[Any, ...]
Upgrade: TypeAlias = Callable[[Document], Document]

# Version n to the function that turns a document of version n into one of version n + 1. It gets a tuple of
# at least two elements, hostile content included, and raises UsageError for what it cannot read.
UPGRADES: Final[dict[int, Upgrade]] = {}

_BY_CODE: Final[dict[str, dict[int, OpDomains]]] = {
    name: {code: table[kind] for code, kind in OP_BY_CODE.items()} for name, table in OP_DOMAINS.items()
}
_CODES: Final = {kind: spec.code for kind, spec in OPS.items()}


def encode(workload: Workload) -> bytes:
    """The canonical bytes. ``workload`` is taken to be within the domains (see ``repair``)."""
    steps: list[Any] = []
    for step in workload.steps:
        ops = [_encode_op(op) for op in step.ops]
        steps.append(ops[0] if len(ops) == 1 else [ops, step.schedule])
    data: bytes = msgpack.packb([MAGIC, VERSION, workload.geometry, steps])
    return data


def _encode_op(op: Op) -> list[int]:
    packed = [_CODES[op.kind], op.proc, *op.args]
    if op.fail_nth:
        packed.append(op.fail_nth)
    return packed


def decode(data: bytes) -> Workload:
    """The workload that the bytes spell.

    Raises ``UsageError`` with one line that says what is wrong and where. Steps and the ops of a collision
    are counted from 0, as everywhere.
    """
    document = upgrade(_unpack(data))
    if len(document) != 4:
        raise UsageError(f"a workload has 4 parts (magic, version, geometry, steps), not {len(document)}")
    geometry, raw_steps = document[2], document[3]
    if type(geometry) is not str or geometry not in GEOMETRIES:
        raise UsageError(f"unknown geometry {_show(geometry)}; there are {', '.join(GEOMETRIES)}")
    if type(raw_steps) is not tuple:
        raise UsageError(f"the steps are no list but {_show(raw_steps)}")
    if len(raw_steps) > STEPS_MAX:
        raise UsageError(f"{len(raw_steps)} steps are too many, {STEPS_MAX} is the most")
    by_code = _BY_CODE[geometry]
    steps: list[Step] = []
    for raw in raw_steps:
        try:
            if type(raw) is not tuple or not raw:
                raise UsageError(f"a step is an op or a collision, not {_show(raw)}")
            if type(raw[0]) is tuple:
                steps.append(_decode_collision(raw, by_code))
            else:
                steps.append(Step((_decode_op(raw, by_code),)))
        except UsageError as error:
            raise UsageError(f"step {len(steps)}: {error}") from None
    return Workload(geometry, tuple(steps))


def upgrade(document: Document, upgrades: dict[int, Upgrade] = UPGRADES, version: int = VERSION) -> Document:
    """The document as ``version`` writes it, through ``upgrades``; raises ``UsageError`` if it cannot be."""
    found = document[1]
    if type(found) is not int:
        raise UsageError(f"the version is no number but {_show(found)}")
    if found > version:
        raise UsageError(f"version {found} is newer than this vmafuzz, which reads up to {version}")
    while found < version:
        if found not in upgrades:
            oldest = min(upgrades, default=version)
            raise UsageError(f"version {found} is unknown; the oldest that can be read is {oldest}")
        document = upgrades[found](document)
        found += 1
    return document


def _unpack(data: bytes) -> Document:
    if len(data) > SIZE_MAX:
        raise UsageError(f"{len(data)} bytes are too many for a workload, {SIZE_MAX} is the most")
    try:
        document = msgpack.unpackb(
            data,
            use_list=False,
            raw=False,
            max_str_len=_TEXT_MAX,
            max_bin_len=0,
            max_array_len=_LIST_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, RecursionError) as error:
        # StackError and FormatError, both ValueErrors, come without a text.
        reason = str(error) or {"StackError": "nested too deeply"}.get(type(error).__name__, "malformed")
        raise UsageError(f"not the msgpack of a workload: {reason}") from None
    if type(document) is not tuple or len(document) < 2 or document[0] != MAGIC:
        raise UsageError(f'not a workload: it does not begin with "{MAGIC}" and a version')
    return document


def _decode_op(raw: tuple[Any, ...], by_code: dict[int, OpDomains]) -> Op:
    code = raw[0]
    spec = by_code.get(code) if type(code) is int else None
    if spec is None:
        raise UsageError(f"unknown operation {_show(code)}")
    kind, count, _, _, _, members = spec
    given = len(raw) - 2
    if given != count and given != count + 1:
        raise UsageError(f"{kind}: {count} arguments after code and process, this has {max(given, 0)}")
    proc = raw[1]
    if type(proc) is not int or proc not in PROCS:
        raise UsageError(f"{kind}: process {_show(proc)} is {describe(PROCS)}")
    args = raw[2 : 2 + count]
    for position, value in enumerate(args):
        if type(value) is not int or value not in members[position]:
            raise _refused(spec, args)
    if given == count:
        return Op(kind, proc, args)
    fail_nth = raw[-1]
    if type(fail_nth) is not int or fail_nth not in FAIL_NTHS:
        raise UsageError(f"{kind}: fail_nth {_show(fail_nth)} is outside 0..{FAIL_NTH_MAX}")
    return Op(kind, proc, args, fail_nth)


def _refused(spec: OpDomains, args: tuple[Any, ...]) -> UsageError:
    """Which argument it was. Slow: for the error path."""
    for name, value, values in zip(spec.names, args, spec.values, strict=True):
        if type(value) is not int:
            return UsageError(f"{spec.kind}: {name} is no integer but {_show(value)}")
        if value not in values:
            return UsageError(f"{spec.kind}: {name} {value} is {describe(values)}")
    raise AssertionError("an argument was refused and then was not")


def _decode_collision(raw: tuple[Any, ...], by_code: dict[int, OpDomains]) -> Step:
    if len(raw) != 2 or type(raw[1]) is not tuple:
        raise UsageError("a collision is a list of ops and a list of schedule entries")
    raw_ops, raw_schedule = raw
    if not 2 <= len(raw_ops) <= COLLISION_OPS_MAX:
        raise UsageError(f"a collision has 2 to {COLLISION_OPS_MAX} ops, this has {len(raw_ops)}")
    ops: list[Op] = []
    for raw_op in raw_ops:
        try:
            if type(raw_op) is not tuple or not raw_op:
                raise UsageError(f"not an operation: {_show(raw_op)}")
            ops.append(_decode_op(raw_op, by_code))
        except UsageError as error:
            raise UsageError(f"op {len(ops)}: {error}") from None
    if len(raw_schedule) > SCHEDULE_MAX:
        raise UsageError(f"schedule: {len(raw_schedule)} switches are too many, {SCHEDULE_MAX} is the most")
    return Step(tuple(ops), tuple([_decode_switch(entry, len(ops)) for entry in raw_schedule]))


def _decode_switch(raw: Any, ops: int) -> Switch:
    if type(raw) is not tuple or len(raw) != 3:
        raise UsageError(f"a schedule entry is [op, point, nth], not {_show(raw)}")
    op, point, nth = raw
    if type(op) is not int or not 0 <= op < ops:
        raise UsageError(f"schedule: there is no op {_show(op)} in this collision of {ops}")
    if type(point) is not str or not is_point(point):
        raise UsageError(f"schedule: {_show(point)} is no name of a preemption point (area.what)")
    if type(nth) is not int or nth not in NTHS:
        raise UsageError(f"schedule: nth {_show(nth)} is outside 1..{NTH_MAX}")
    return Switch(op, point, nth)


def _show(value: object) -> str:
    """A hostile value in one short printable piece."""
    if isinstance(value, (tuple, dict)):
        return "a list" if isinstance(value, tuple) else "a map"
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."
