"""Hypothesis strategies for workloads: wild, within the domains, valid."""

from __future__ import annotations

from random import Random
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st

from emulator.geometry import GEOMETRIES
from emulator.workload import (
    COLLISION_OPS_MAX,
    OPS,
    PROCS_MAX,
    SCHEDULE_MAX,
    Op,
    Step,
    Switch,
    Workload,
)
from fuzz.workload.domains import ANY, END, FAIL_NTH_MAX, NTH_MAX, OP_DOMAINS, Values
from fuzz.workload.generate import Generator
from fuzz.workload.repair import repair

# Tests of the workload side do not need the emulator's own points, only some of every area.
SAMPLE_POINTS: Final = (
    "fault.handle",
    "fork.copy_pte",
    "gup_fast.pte_read",
    "gup_fast.pinned",
    "gup_slow.follow",
    "migrate.copied",
    "mremap.pte_moved",
    "reclaim.unmapped",
    "relocate.folio_locked",
    "relocate.folio_relocated",
    "rmap.walk_next",
    "thp.pmd_split",
    "unmap.pte_cleared",
    "zap.pte",
)

quick: Final = settings(max_examples=60, deadline=None)

geometries: Final = st.sampled_from(sorted(GEOMETRIES))
points: Final = st.sampled_from((ANY, END, *SAMPLE_POINTS, "a.b.c_2"))


def _value(values: Values) -> st.SearchStrategy[int]:
    if isinstance(values, range):
        return st.integers(values.start, values.stop - 1)
    return st.sampled_from(sorted(values))


def _op_of(kind: str, geometry: str) -> st.SearchStrategy[Op]:
    args = st.tuples(*[_value(values) for values in OP_DOMAINS[geometry][kind].values])
    fail_nth = st.just(0) | st.integers(0, FAIL_NTH_MAX)
    return st.builds(Op, st.just(kind), st.integers(0, PROCS_MAX - 1), args, fail_nth)


_OPS: Final = {
    geometry: st.one_of([_op_of(kind, geometry) for kind in sorted(OPS)]) for geometry in GEOMETRIES
}


@st.composite
def _collisions(draw: st.DrawFn, geometry: str) -> Step:
    ops = draw(st.lists(_OPS[geometry], min_size=2, max_size=COLLISION_OPS_MAX))
    switch = st.builds(Switch, st.integers(0, len(ops) - 1), points, st.integers(1, NTH_MAX))
    return Step(tuple(ops), tuple(draw(st.lists(switch, max_size=SCHEDULE_MAX))))


@st.composite
def encodable(draw: st.DrawFn) -> Workload:
    """Every argument in its domain; processes and pins may be used without having been made."""
    geometry = draw(geometries)
    single = st.builds(lambda op: Step((op,)), _OPS[geometry])
    steps = draw(st.lists(st.one_of(single, single, _collisions(geometry)), max_size=8))
    return Workload(geometry, tuple(steps))


@st.composite
def wild(draw: st.DrawFn) -> Workload:
    """Any integers, kinds and names at all, in a workload's shape."""
    number = st.integers(-3, 300) | st.integers()
    kind = st.sampled_from([*sorted(OPS), "reboot"])
    op = st.builds(Op, kind, number, st.lists(number, max_size=7).map(tuple), number)
    switch = st.builds(Switch, number, points | st.text(max_size=5), number)
    step = st.builds(
        Step, st.lists(op, max_size=5).map(tuple), st.lists(switch, max_size=SCHEDULE_MAX + 2).map(tuple)
    )
    return Workload(draw(geometries | st.just("moon")), tuple(draw(st.lists(step, max_size=8))))


seeds: Final = st.integers(0, 2**32)


def generated(seed: int, geometry: str = "small8", steps: int | None = None) -> Workload:
    """What the generator makes of a seed, for a design that adds MREMAP_RELOCATE_ANON."""
    return Generator(Random(seed), geometry, mremap_flags_extra=8, points=SAMPLE_POINTS).generate(steps)


# Short ones from scratch, which Hypothesis shrinks well, and long ones as a campaign has them.
valid: Final = encodable().map(repair) | seeds.map(generated)
