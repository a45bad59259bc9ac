"""What values the arguments of an operation may take in each geometry, and the limits of a schedule.

The wire form, the text form, repair and the mutator all ask here, so they cannot disagree about what a valid
workload is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from emulator.geometry import GEOMETRIES, Geometry
from emulator.workload import (
    ADVICE_ALLOWED,
    FILE_PAGES,
    FILES_MAX,
    MAP_FLAGS_ALLOWED,
    MAPS_MAX,
    OFFSETS_MAX,
    OPS,
    OVERCOMMIT,
    PATTERNS_MAX,
    PINS_MAX,
    POLICIES,
    PROCESS_ADVICE_ALLOWED,
    PROCS_MAX,
    RESOURCES,
    SCAN_MAX,
    THP_ORDERS,
    UFFD_FEATURES_ALLOWED,
    VMA_NAMES,
    Domain,
    Op,
    Step,
    Workload,
)

Values: TypeAlias = range | frozenset[int]

FAIL_NTH_MAX: Final = 255
NTH_MAX: Final = 999
POINT_LENGTH_MAX: Final = 64
MREMAP_FLAGS_MASK: Final = 0xFF  # MAYMOVE FIXED DONTUNMAP, and room for what designs add

# Schedule points that are not in the code. No code passes END: the op runs until it ends or blocks.
ANY: Final = ""  # every preemption point counts
END: Final = "end"

_POINT = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)+")

PROCS: Final = range(PROCS_MAX)
FAIL_NTHS: Final = range(FAIL_NTH_MAX + 1)
NTHS: Final = range(1, NTH_MAX + 1)

# The order of preference: campaigns run in the first, and what cannot be understood falls back to it.
DEFAULT_GEOMETRY: Final = "small8"


def submasks(mask: int) -> frozenset[int]:
    """Every number that is made of bits of ``mask`` only."""
    found = [0]
    bit = 1
    while bit <= mask:
        if mask & bit:
            found += [value | bit for value in found]
        bit <<= 1
    return frozenset(found)


_FIXED: Final[dict[Domain, Values]] = {
    Domain.PROT: range(8),
    Domain.MAP_FLAGS: submasks(MAP_FLAGS_ALLOWED),
    Domain.MREMAP_FLAGS: range(MREMAP_FLAGS_MASK + 1),
    Domain.ADVICE: frozenset(ADVICE_ALLOWED),
    Domain.TARGET: range(PROCS_MAX),
    Domain.PROCESS_ADVICE: frozenset(PROCESS_ADVICE_ALLOWED),
    Domain.FILE: range(FILES_MAX + 1),
    Domain.FILE_OFFSET: range(FILE_PAGES + 1),  # FILE_PAGES itself: wholly behind the end of the file
    Domain.OFFSET: range(OFFSETS_MAX),
    Domain.NEW_PROC: range(1, PROCS_MAX),  # label 0 is the first process, which nobody makes
    Domain.NEW_PIN: range(PINS_MAX),
    Domain.PIN: range(PINS_MAX),
    Domain.GUP_FLAGS: range(8),
    Domain.MLOCK2_FLAGS: range(4),
    Domain.MCL_FLAGS: range(8),
    Domain.VMA_NAME: range(len(VMA_NAMES) + 1),
    Domain.POLICY: range(len(POLICIES)),
    Domain.PKEY: range(3),
    Domain.SWITCH: range(2),
    Domain.RESOURCE: range(len(RESOURCES)),
    Domain.MAPS: range(MAPS_MAX + 1),
    Domain.OVERCOMMIT: range(len(OVERCOMMIT)),
    Domain.UFFD_FEATURES: submasks(UFFD_FEATURES_ALLOWED),
    Domain.UFFD_REGISTER_MODE: range(8),
    Domain.UFFD_COPY_MODE: range(4),
    Domain.UFFD_WP_MODE: range(4),
    Domain.UFFD_MOVE_MODE: range(4),
    Domain.PATTERN: range(PATTERNS_MAX),
    Domain.SCAN: range(SCAN_MAX + 1),
    Domain.THP_ORDERS: submasks(THP_ORDERS),
}

FLAG_MASKS: Final[dict[Domain, int]] = {
    Domain.PROT: 7,
    Domain.MAP_FLAGS: MAP_FLAGS_ALLOWED,
    Domain.MREMAP_FLAGS: MREMAP_FLAGS_MASK,
    Domain.GUP_FLAGS: 7,
    Domain.MLOCK2_FLAGS: 3,
    Domain.MCL_FLAGS: 7,
    Domain.UFFD_FEATURES: UFFD_FEATURES_ALLOWED,
    Domain.UFFD_REGISTER_MODE: 7,
    Domain.UFFD_COPY_MODE: 3,
    Domain.UFFD_WP_MODE: 3,
    Domain.UFFD_MOVE_MODE: 3,
    Domain.THP_ORDERS: THP_ORDERS,
}


def values_of(domain: Domain, geometry: Geometry) -> Values:
    """The values that an argument of this domain may take."""
    if domain is Domain.PAGE:
        return range(geometry.arena_pages)
    if domain in (Domain.LENGTH, Domain.LIMIT):
        return range(geometry.arena_pages + 1)
    return _FIXED[domain]


_SET_MAX: Final = 4096  # values; the pages of x86-64 are too many for sets


class OpDomains(NamedTuple):
    """The arguments of one kind of operation in one geometry, ready for fast checks."""

    kind: str
    arity: int
    names: tuple[str, ...]
    domains: tuple[Domain, ...]
    values: tuple[Values, ...]
    members: tuple[Values, ...]  # the same, for membership tests only: a frozenset answers twice as fast


def _members(values: Values) -> Values:
    return frozenset(values) if len(values) <= _SET_MAX else values


def _table(geometry: Geometry) -> dict[str, OpDomains]:
    return {
        kind: OpDomains(
            kind,
            len(spec.args),
            tuple(name for name, _ in spec.args),
            tuple(domain for _, domain in spec.args),
            tuple(values_of(domain, geometry) for _, domain in spec.args),
            tuple(_members(values_of(domain, geometry)) for _, domain in spec.args),
        )
        for kind, spec in OPS.items()
    }


OP_DOMAINS: Final[dict[str, dict[str, OpDomains]]] = {name: _table(g) for name, g in GEOMETRIES.items()}


def describe(values: Values) -> str:
    """What a refused value should have been: ``outside 0..192``, ``not one of 4, 14, 15, 21``."""
    if isinstance(values, range):
        return f"outside {values.start}..{values.stop - 1}"
    mask = max(values)
    if len(values) == 1 << mask.bit_count():
        return f"not made of the bits {mask:#x}"
    return "not one of " + ", ".join(str(value) for value in sorted(values))


def clamp(domain: Domain, value: int, values: Values) -> int:
    """The allowed value nearest to what was meant; ``value`` itself when it is allowed."""
    if value in values:
        return value
    mask = FLAG_MASKS.get(domain)
    if mask is not None:
        return value & mask
    if not isinstance(values, range):
        return min(values, key=lambda allowed: (abs(allowed - value), allowed))
    if value < values.start:
        return values.start
    if domain is Domain.PAGE:  # keeps the place within a page table: arenas are whole tables
        return value % values.stop
    return values.stop - 1


@lru_cache(maxsize=4096)
def is_point(name: str) -> bool:
    """Whether a schedule may carry this point: ANY, END, or ``area.what``. It need not exist in the code."""
    return name in (ANY, END) or (len(name) <= POINT_LENGTH_MAX and _POINT.fullmatch(name) is not None)


def all_ops(workload: Workload) -> Iterator[Op]:
    """Every op of every step, in order."""
    for step in workload.steps:
        yield from step.ops


def count_ops(workload: Workload) -> int:
    """How many ops the workload has; those of a collision count one by one."""
    return sum(len(step.ops) for step in workload.steps)


def map_ops(workload: Workload, change: Callable[[Op], Op]) -> Workload:
    """The workload with ``change`` applied to each op."""
    return Workload(
        workload.geometry,
        tuple(Step(tuple(change(op) for op in step.ops), step.schedule) for step in workload.steps),
    )


def args_in(workload: Workload, wanted: Collection[Domain]) -> list[int]:
    """Every argument that is of one of these domains, in order, repetitions included."""
    found: list[int] = []
    table = OP_DOMAINS[workload.geometry]
    for op in all_ops(workload):
        for value, domain in zip(op.args, table[op.kind].domains, strict=True):
            if domain in wanted:
                found.append(value)
    return found
