"""The generator: always valid, the same for the same seed, and its operations meet."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given

from emulator.geometry import GEOMETRIES
from emulator.sched.points import POINTS
from emulator.uapi import MREMAP_FIXED, MREMAP_MAYMOVE, MREMAP_RELOCATE_ANON
from emulator.workload import COLLISION_OPS_MAX, OPS, STEPS_MAX, Op, Step, Workload
from fuzz.workload import swarm
from fuzz.workload.domains import ANY, END, all_ops
from fuzz.workload.generate import Generator
from fuzz.workload.recipes import RECIPES, Recipe, expand
from fuzz.workload.repair import is_valid
from fuzz.workload.schedules import AREAS, Schedules, way_of
from fuzz.workload.sketch import Sketch, Span
from fuzz.workload.swarm import COMPANIONS, WEIGHTS
from fuzz.workload.text import from_text
from fuzz.workload.wire import encode
from tests.fuzz.strategies import SAMPLE_POINTS, generated, geometries, quick, seeds

MANY = [generated(seed) for seed in range(2000)]
RELOCATE = MREMAP_RELOCATE_ANON


@quick
@given(seeds, geometries)
def test_valid(seed: int, geometry: str) -> None:
    """Every seed gives a valid workload in every world."""
    workload = generated(seed, geometry)
    assert is_valid(workload)
    assert workload.geometry == geometry
    assert workload.steps


def test_deterministic() -> None:
    """A seed names a workload: on every run, however the points were collected. Short ones may meet."""
    for seed in range(20):
        backwards = Generator(Random(seed), mremap_flags_extra=8, points=reversed(SAMPLE_POINTS))
        assert encode(backwards.generate()) == encode(generated(seed))
    assert len({encode(workload) for workload in MANY}) >= 0.99 * len(MANY)


def test_steps_wanted() -> None:
    """The number of steps is about what was asked for, and never more than a workload may have."""
    for seed in range(50):
        assert 12 <= len(generated(seed, steps=12).steps) <= 20 or ends_early(generated(seed, steps=12))
        assert len(generated(seed, steps=500).steps) <= STEPS_MAX


def ends_early(workload: Workload) -> bool:
    return workload.steps[-1].ops[0].kind == "exit"


def test_everything_is_drawn() -> None:
    """Every operation, alone and beside others, and every point that fits it occurs in a campaign."""
    kinds = Counter(op.kind for workload in MANY for op in all_ops(workload))
    assert kinds.keys() == OPS.keys()
    collisions = [step for workload in MANY for step in workload.steps if len(step.ops) > 1]
    beside = Counter(op.kind for step in collisions for op in step.ops)
    assert beside.keys() == OPS.keys() - {"exit"}
    points = {switch.point for step in collisions for switch in step.schedule}
    assert points == {*SAMPLE_POINTS, ANY, END}
    assert any(len(step.ops) == COLLISION_OPS_MAX for step in collisions)
    assert WEIGHTS.keys() == OPS.keys()
    assert COMPANIONS.keys() == OPS.keys() - {"exit"}
    assert AREAS.keys() == OPS.keys() | {"collapse"}


def test_shares() -> None:
    """One step in five is a collision, one system call in ten fails, most moves ask for relocation."""
    steps = [step for workload in MANY for step in workload.steps]
    assert 0.15 < sum(len(step.ops) > 1 for step in steps) / len(steps) < 0.27
    ops = [op for workload in MANY for op in all_ops(workload)]
    calls = [op for op in ops if op.kind in ("mmap", "munmap", "mremap", "mprotect", "madvise", "fork")]
    assert 0.07 < sum(op.fail_nth > 0 for op in calls) / len(calls) < 0.13
    assert {op.fail_nth for op in calls} >= set(range(9))
    assert max(op.fail_nth for op in calls) <= 12
    moves = [op for op in ops if op.kind == "mremap" and op.args[3] & MREMAP_MAYMOVE]
    assert sum(op.args[3] & RELOCATE > 0 for op in moves) / len(moves) > 0.6


def test_without_extra_flags() -> None:
    """For the mainline interface no flag is made up that it does not have."""
    for seed in range(100):
        workload = Generator(Random(seed), points=SAMPLE_POINTS).generate()
        assert not any(op.kind == "mremap" and op.args[3] & ~7 for op in all_ops(workload))


def test_extra_flags_are_told_apart() -> None:
    """Of a design's several flags each is asked for alone, and all together."""
    drawn = set()
    for seed in range(60):
        workload = Generator(Random(seed), mremap_flags_extra=24, points=SAMPLE_POINTS).generate()
        drawn |= {op.args[3] & 24 for op in all_ops(workload) if op.kind == "mremap"}
    assert drawn == {0, 8, 16, 24}


def replay(workload: Workload) -> list[tuple[Sketch, Op]]:
    """Each op of a plain step with what is mapped before it."""
    sketch = Sketch(workload.geometry)
    found = []
    for step in workload.steps:
        if len(step.ops) == 1 and step.ops[0].proc in sketch.spaces:
            before = Sketch(workload.geometry)
            before.spaces = {
                proc: [s.part(s.start, s.end) for s in spans] for proc, spans in sketch.spaces.items()
            }
            found.append((before, step.ops[0]))
        sketch.add(step)
    return found


def test_operations_meet() -> None:
    """Accesses hit what is mapped, mappings touch each other, moves come home, faulted memory moves."""
    count: Counter[str] = Counter()
    for workload in MANY:
        for sketch, op in replay(workload):
            spans = sketch.spaces[op.proc]
            if op.kind in ("read", "write", "gup_fast", "gup_slow"):
                count["touch"] += 1
                count["hit"] += sketch.span_at(op.proc, op.args[0]) is not None
            elif op.kind == "mmap" and spans:
                count["map"] += 1
                edges = {edge for span in spans for edge in (span.start, span.end)}
                count["against"] += bool({op.args[0], op.args[0] + op.args[1]} & edges)
            elif op.kind == "mremap":
                span = sketch.span_at(op.proc, op.args[0])
                count["move"] += 1
                if span is not None:
                    count["moved"] += 1
                    count["faulted"] += span.faulted
                    home = span.home + op.args[0] - span.start
                    if op.args[3] & MREMAP_FIXED and op.args[4] == home != op.args[0]:
                        count["home"] += 1
    assert count["hit"] / count["touch"] > 0.8
    assert count["against"] / count["map"] > 0.35
    assert count["moved"] / count["move"] > 0.85
    assert count["faulted"] / count["moved"] > 0.4
    assert count["home"] / count["moved"] > 0.06


def test_collapses_of_whole_huge_pages() -> None:
    """Most of them ask for ranges that can be collapsed, as others are refused at once."""
    huge = GEOMETRIES[MANY[0].geometry].hpage_pmd_nr
    asked = [op for workload in MANY for op in all_ops(workload) if way_of(op) == "collapse"]
    whole = [op for op in asked if op.args[1] and not (op.args[0] % huge or op.args[1] % huge)]
    assert len(whole) > 0.7 * len(asked) > 20


def test_swarm() -> None:
    """Workloads differ in what they are made of: each kind but the central ones is often left out."""
    for kind in ("fork", "gup_fast", "reclaim", "munmap"):
        without = sum(all(op.kind != kind for op in all_ops(workload)) for workload in MANY)
        assert len(MANY) * 0.2 < without < len(MANY) * 0.95


def test_schedules_suit_their_ops() -> None:
    """A switch waits for a point that its op can pass; otherwise most schedules would do nothing."""
    suits = wrong = 0
    for workload in MANY:
        for step in workload.steps:
            for switch in step.schedule:
                if switch.point in (ANY, END):
                    continue
                kind = way_of(step.ops[switch.op])
                own, passed = AREAS[kind]
                if switch.point.split(".")[0] in (*own, *passed, kind):
                    suits += 1
                else:
                    wrong += 1
    assert suits > 500
    assert wrong == 0


def test_the_emulators_points() -> None:
    """By default schedules name the emulator's own points, and each is a point that some op can pass."""
    schedules = Schedules()
    passed = {point for kind in AREAS for point in schedules.points_of(kind)}
    assert passed == set(POINTS)
    workload = Generator(Random(2)).generate(40)
    named = {s.point for step in workload.steps for s in step.schedule} - {ANY, END}
    assert named
    assert named <= set(POINTS)


def test_stops_are_where_it_matters() -> None:
    """A move is stopped in the move itself rather than in what it passes on its way."""
    rng = Random(1)
    schedules = Schedules(["mremap.a", "relocate.a", *[f"zap.{letter}" for letter in "abcdefgh"]])
    drawn = Counter(schedules.point(rng, "mremap").split(".")[0] for _ in range(1000))
    assert drawn["relocate"] + drawn["mremap"] > 500
    assert drawn["zap"] > 60


def test_schedules_of_unknown_areas() -> None:
    """An area that is called as an operation belongs to it; ops without points are stopped anywhere."""
    schedules = Schedules(["madvise.walk", "strange.thing"])
    assert schedules.points_of("madvise") == ("madvise.walk",)
    assert schedules.points_of("unpin") == ()
    ops = (Op("unpin", 0, (0,)), Op("madvise", 0, (0, 1, 4)))
    rng = Random(1)
    drawn = {switch for _ in range(200) for switch in schedules.draw(rng, ops)}
    assert {switch.point for switch in drawn if switch.op == 0} <= {ANY, END}
    assert {switch.point for switch in drawn if switch.op == 1} == {ANY, END, "madvise.walk"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes(recipe: Recipe) -> None:
    """Every recipe is valid as it stands, touches only what it mapped, and leaves memory mapped."""
    for geometry in ("small8", "small4"):
        huge = GEOMETRIES[geometry].hpage_pmd_nr
        symbols = {"a": 2 * huge, "n": 3, "m": 2, "d": 8 * huge, "H": 2 * huge, "D": 8 * huge}
        symbols |= {"h": huge, "j": 1, "c": 1, "k": 0, "x": RELOCATE}
        assert recipe.symbols <= symbols.keys()
        workload = Workload(geometry, tuple([Step((op,)) for op in expand(recipe, symbols, 0)]))
        assert is_valid(workload)
        for sketch, op in replay(workload):
            if op.kind not in ("mmap", "fork", "exit", "ksm_scan", "thp_sizes"):
                assert sketch.span_at(op.proc, op.args[0]) is not None, op
        if any(line.extra_at >= 0 for line in recipe.lines):
            assert any(op.kind == "mremap" and op.args[3] & RELOCATE for op in all_ops(workload))


def test_recipes_are_stages_only() -> None:
    """Recipes carry no collision, no failure and no judgement; those are for the fuzzer to find."""
    assert len(RECIPES) >= 20
    assert not any("(" in recipe.name for recipe in RECIPES)
    for recipe in RECIPES:
        symbols = dict.fromkeys("andHDhjckmx", 1)
        assert all(op.fail_nth == 0 for op in expand(recipe, symbols, 0))
        assert 1 < len(recipe.lines) <= 6


def spans_after(steps: str, proc: int = 0) -> list[str]:
    sketch = Sketch("small8")
    for step in from_text("world small8\n" + steps).steps:
        sketch.add(step)
    return [repr(span) for span in sketch.spaces[proc]]


def test_sketch() -> None:
    """The guess at what is mapped follows maps, cuts, moves, forks and the kernel's own choices."""
    base = "mmap addr=4 len=4 prot=rw flags=private|fixed\nwrite addr=5 at=0\n"
    assert spans_after(base) == ["Span(4..8 home 4 faulted)"]
    assert spans_after(base + "munmap addr=5 len=1\n") == [
        "Span(4..5 home 4 faulted)",
        "Span(6..8 home 6 faulted)",
    ]
    move = "mremap addr=6 old_len=2 new_len={} flags=maymove|fixed{} new_addr=20\n"
    assert spans_after(base + move.format(2, "")) == [
        "Span(4..6 home 4 faulted)",
        "Span(20..22 home 6 faulted)",
    ]
    assert spans_after(base + move.format(3, "")) == [
        "Span(4..6 home 4 faulted)",
        "Span(20..23 home 6 faulted)",
    ]
    assert len(spans_after(base + move.format(2, "|dontunmap"))) == 3
    assert spans_after(base + "fork child=2\n", 2) == ["Span(4..8 home 4 faulted)"]
    chosen = "mmap addr=0 len=4 prot=rw flags=private\nmmap addr=0 len=4 prot=rw flags=private\n"
    assert spans_after(chosen) == ["Span(0..4 home 0)", "Span(188..192 home 188)"]
    grown = base + "mmap addr=8 len=1 prot=rw flags=private|fixed\n"
    assert spans_after(grown + "mremap addr=4 old_len=4 new_len=6 flags=maymove\n") == [
        "Span(8..9 home 8)",
        "Span(186..192 home 4 faulted)",
    ]
    assert spans_after(base + "mremap addr=4 old_len=4 new_len=6 flags=none\n") == [
        "Span(4..10 home 4 faulted)"
    ]
    assert spans_after(base + "mremap addr=4 old_len=4 new_len=1 flags=none\n") == [
        "Span(4..5 home 4 faulted)"
    ]


def test_userfaultfd_meets_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few workloads have any of it; there most calls are about memory that is registered, and pages to fill it with."""
    users = [workload for workload in MANY if any("uffd_" in op.kind for op in all_ops(workload))]
    assert 0.05 < len(users) / len(MANY) < 0.2
    monkeypatch.setattr(swarm, "_USERFAULTFD_SHARE", 1)
    counts: Counter[str] = Counter()
    for seed in range(300):
        for sketch, op in replay(generated(seed)):
            if op.kind in ("uffd_wp", "uffd_copy", "uffd_move", "uffd_zeropage"):
                span = sketch.span_at(op.proc, op.args[0])
                counts["calls"] += 1
                counts["registered"] += span is not None and span.uffd != 0
            if op.kind in ("uffd_copy", "uffd_move"):
                counts["filled"] += 1
                counts["from something"] += sketch.span_at(op.proc, op.args[1]) is not None
    assert counts["registered"] > 0.7 * counts["calls"] > 14
    assert counts["from something"] > 0.6 * counts["filled"] > 8


def test_the_sketch_knows_what_is_registered() -> None:
    """Whole spans or parts of them, until they are moved, unregistered or the userfaultfd is closed; not in a child."""
    sketch = Sketch("small8")
    lines = {
        "mmap addr=0 len=8 prot=rw flags=private|fixed": "0-8:0",
        "uffd_register addr=2 len=4 mode=missing|wp": "0-2:0 2-6:3 6-8:0",
        "uffd_unregister addr=4 len=1": "0-2:0 2-4:3 4-5:0 5-6:3 6-8:0",
        "mremap addr=5 old_len=1 new_len=1 flags=maymove|fixed new_addr=20": "0-2:0 2-4:3 4-5:0 6-8:0 20-21:0",
        "fork child=1": "0-2:0 2-4:3 4-5:0 6-8:0 20-21:0",
        "uffd_close": "0-2:0 2-4:0 4-5:0 6-8:0 20-21:0",
    }
    for line, shown in lines.items():
        sketch.add(from_text(f"world small8\n{line}\n").steps[0])
        assert " ".join(f"{span.start}-{span.end}:{span.uffd}" for span in sorted_spans(sketch)) == shown
    assert all(not span.uffd for span in sketch.spaces[1])


def sorted_spans(sketch: Sketch) -> list[Span]:
    return sorted(sketch.spaces[0], key=lambda span: span.start)
