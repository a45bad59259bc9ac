"""The minimiser: never loses what is kept, and ends with what a person would have written."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given

from emulator.errors import UsageError
from emulator.geometry import GEOMETRIES
from emulator.workload import Op, Step, Workload
from fuzz.minimize import minimize, size_of
from fuzz.workload.domains import all_ops
from fuzz.workload.generate import Generator
from fuzz.workload.repair import is_valid, repair
from fuzz.workload.simplify import boundaries, cut_pages, in_world, renumbered, without_move
from fuzz.workload.sketch import Sketch
from fuzz.workload.text import from_text, to_text
from fuzz.workload.wire import encode
from tests.fuzz.strategies import SAMPLE_POINTS, generated, quick, seeds, valid


def text_of(workload: Workload) -> str:
    return to_text(workload)


def has_kinds(*kinds: str) -> Callable[[Workload], bool]:
    """Whether the ops contain these kinds in this order."""

    def keeps(workload: Workload) -> bool:
        wanted = list(kinds)
        for op in all_ops(workload):
            if wanted and op.kind == wanted[0]:
                wanted.pop(0)
        return not wanted

    return keeps


def long_workload(seed: int, *needed: str) -> Workload:
    """A generated workload with these steps scattered in it."""
    rng = Random(seed)
    long_enough = (generated(number, steps=30).steps for number in range(seed, seed + 800, 8))
    steps = next(list(found) for found in long_enough if len(found) >= 30)  # the process may exit early
    places = sorted(rng.randrange(len(steps)) for _ in needed)
    for offset, (place, line) in enumerate(zip(places, needed, strict=True)):
        steps.insert(place + offset, from_text(f"world small8\n{line}\n").steps[0])
    return repair(Workload("small8", tuple(steps)))


@pytest.mark.parametrize("seed", range(8))
def test_three_particular_steps(seed: int) -> None:
    """A predicate that needs three steps of thirty and more shrinks to exactly these."""
    needed = ("munmap addr=33 len=2", "madvise addr=40 len=3 advice=pageout", "migrate addr=77")

    def keeps(workload: Workload) -> bool:
        ops = [op for step in workload.steps if len(step.ops) == 1 for op in step.ops]
        wanted = [("munmap", (33, 2)), ("madvise", (40, 3, 21)), ("migrate", (77,))]
        for op in ops:
            if wanted and (op.kind, op.args) == wanted[0]:
                wanted.pop(0)
        return not wanted

    start = long_workload(seed, *needed)
    assert len(start.steps) >= 33
    calls = 0

    def counted(workload: Workload) -> bool:
        nonlocal calls
        calls += 1
        return keeps(workload)

    small = minimize(start, counted)
    assert text_of(small) == (
        "world small4\nmunmap   addr=33 len=2\nmadvise  addr=40 len=3 advice=pageout\nmigrate  addr=77\n"
    )
    assert calls < 300


def relocation_beside_pin(workload: Workload) -> bool:
    """A move of written memory with a pin taken in its middle, and a look at the memory afterwards."""
    sketch = Sketch(workload.geometry)
    moved: tuple[int, range] | None = None
    for step in workload.steps:
        op = step.ops[0]
        if moved and len(step.ops) == 1 and op.kind in ("read", "write"):
            if op.proc == moved[0] and op.args[0] in moved[1]:
                return True
        for number, move in enumerate(step.ops):
            if move.kind == "mremap" and move.args[3] & 11 == 11 and move.args[1] == move.args[2]:
                start, length, _, _, target = move.args
                span = sketch.span_at(move.proc, start)
                apart = target >= start + length or start >= target + length
                pinned = any(
                    op.kind == "gup_fast" and op.proc == move.proc and op.args[1] & 2
                    for op in step.ops
                    if op.kind == "gup_fast" and start <= op.args[0] < start + length
                )
                stopped = any(s.op == number and s.point.startswith("relocate") for s in step.schedule)
                if span and span.faulted and apart and pinned and stopped and start + length <= span.end:
                    moved = (move.proc, range(target, target + length))
        sketch.add(step)
    return False


def test_quality() -> None:
    """Different long ways to one synthetic bug all end in the same few, plain, short workloads."""
    generator = Generator(Random(8), mremap_flags_extra=8, points=SAMPLE_POINTS)
    results: list[Workload] = []
    for _ in range(20_000):
        workload = generator.generate(16)
        if relocation_beside_pin(workload):
            results.append(minimize(workload, relocation_beside_pin))
            if len(results) == 8:
                break
    assert len(results) == 8
    for small in results:
        assert len(small.steps) == 4
        assert len(list(all_ops(small))) == 5
        assert small.geometry == "small4"
        assert max(boundaries(small)) <= 3
        assert [op.kind for op in small.steps[2].ops] == ["mremap", "gup_fast"]
        assert len(small.steps[2].schedule) == 1
        assert small.steps[3].ops[0].kind == "read"
        assert len(encode(small)) < 90
    # The points may differ, and a path may end where only a larger step would help.
    assert len(set(results)) <= 3


@quick
@given(valid, seeds)
def test_keeps_what_it_keeps(workload: Workload, seed: int) -> None:
    """Whatever the predicate, the result fulfils it, is valid and is no larger; twice gives the same."""
    salt = seed % 5

    def keeps(candidate: Workload) -> bool:
        return candidate == workload or sum(encode(candidate)) % 5 == salt

    small = minimize(workload, keeps, budget=200)
    assert keeps(small)
    assert size_of(small) <= size_of(workload)
    assert is_valid(small)
    assert minimize(workload, keeps, budget=200) == small


def test_nothing_to_keep() -> None:
    """A workload that does not show the finding is refused; nothing is returned that does not keep."""
    with pytest.raises(UsageError, match="nothing to minimise"):
        minimize(generated(1), lambda workload: False)


def test_everything_keeps() -> None:
    """Where anything will do, nothing is left."""
    assert minimize(generated(1), lambda workload: True).steps == ()


def test_only_itself_keeps() -> None:
    """A workload of which nothing can be spared comes back as it was."""
    workload = generated(5)
    assert minimize(workload, lambda candidate: candidate == workload) == workload


def test_budget_and_progress() -> None:
    """No more calls than allowed, each new best reported once and smaller, no workload tried twice."""
    tried: list[bytes] = []
    reports: list[tuple[int, Workload]] = []

    def keeps(workload: Workload) -> bool:
        tried.append(encode(workload))
        return has_kinds("mmap", "write", "mremap", "read")(workload)

    start = next(w for w in map(generated, range(1000)) if has_kinds("mmap", "write", "mremap", "read")(w))
    whole = minimize(start, keeps, progress=lambda calls, best: reports.append((calls, best)))
    assert len(set(tried)) == len(tried)
    assert reports[-1][1] == whole
    assert reports[-1][0] <= len(tried)
    sizes = [size_of(start), *[size_of(best) for _, best in reports]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)

    spent = len(tried)
    tried.clear()
    cut_short = minimize(start, keeps, budget=10)
    assert len(tried) == 10 < spent
    assert has_kinds("mmap", "write", "mremap", "read")(cut_short)


def test_failing_step_is_tried_first() -> None:
    """What follows the step that failed goes with one call."""
    start = long_workload(4, "migrate addr=77")
    failing = next(n for n, step in enumerate(start.steps) if Op("migrate", 0, (77,)) in step.ops)
    tried: list[Workload] = []

    def keeps(workload: Workload) -> bool:
        tried.append(workload)
        return any(op.kind == "migrate" and op.args == (77,) for op in all_ops(workload))

    minimize(start, keeps, failing_step=failing)
    assert tried[1] == Workload("small8", start.steps[: failing + 1])


def test_collisions_are_taken_apart() -> None:
    """A collision stays only if it is needed, its schedule no longer than needed, its ops no more."""
    start = from_text(
        "world small8\ntogether\nread addr=9\nwrite addr=8 at=2\nmigrate addr=7\n"
        "schedule 0 until a.b x3, 1 until c.d x9, 2 until end, 0 until end\nend\n"
    )
    alone = minimize(start, has_kinds("write", "migrate"))
    assert text_of(alone) == "world small4\nwrite    addr=0 at=0\nmigrate  addr=0\n"

    def needs_switch(workload: Workload) -> bool:
        return any(
            switch.point == "c.d" and switch.nth >= 4 and step.ops[switch.op].kind == "write"
            for step in workload.steps
            for switch in step.schedule
        )

    assert text_of(minimize(start, needs_switch)) == (
        "world small4\ntogether\n  write    addr=0 at=0\n  read     addr=0\n  schedule 0 until c.d x4\nend\n"
    )


def test_failures_and_processes_go() -> None:
    """fail_nth, children and pins go when they are not needed, and come down when they are."""
    start = from_text(
        "world small8\nfork child=3\ngup_fast addr=4 flags=write|pin|longterm pin=7\n"
        "p3: munmap addr=4 len=2 (fail_nth 9)\nunpin pin=7\np3: exit\n"
    )
    assert text_of(minimize(start, has_kinds("munmap"))) == "world small4\nmunmap   addr=0 len=1\n"

    def child_fails(workload: Workload) -> bool:
        return any(op.kind == "munmap" and op.proc and op.fail_nth >= 5 for op in all_ops(workload))

    assert text_of(minimize(start, child_fails)) == (
        "world small4\nfork     child=1\np1: munmap   addr=0 len=1 (fail_nth 5)\n"
    )
    assert text_of(minimize(start, has_kinds("gup_fast", "unpin"))) == (
        "world small4\ngup_fast addr=0 flags=none pin=0\nunpin    pin=0\n"
    )


def test_pairs_that_need_each_other() -> None:
    """Two steps that only make sense together go together."""

    def keeps(workload: Workload) -> bool:
        kinds = [op.kind for op in all_ops(workload)]
        return "read" in kinds and kinds.count("munmap") == kinds.count("mmap")

    start = from_text(
        "world small8\nmmap addr=1 len=1 prot=rw flags=private|fixed\nwrite addr=1 at=0\nread addr=1\n"
        "mmap addr=1 len=1 prot=rw flags=private|fixed\nmunmap addr=1 len=1\nmunmap addr=2 len=1\n"
    )
    assert text_of(minimize(start, keeps)) == "world small4\nread     addr=0\n"


def test_addresses_come_down_together() -> None:
    """Two mappings that must touch come down as one, keep touching and become short; alignment may matter."""
    start = from_text(
        "world small8\nmmap addr=83 len=7 prot=r flags=private|fixed|noreserve file=file1 off=5\n"
        "mmap addr=90 len=9 prot=rwx flags=shared|fixed\n"
    )

    def touching(workload: Workload) -> bool:
        maps = [op.args for op in all_ops(workload) if op.kind == "mmap"]
        return len(maps) == 2 and min(a[1] for a in maps) > 0 and maps[0][0] + maps[0][1] == maps[1][0]

    assert text_of(minimize(start, touching)) == (
        "world small4\nmmap     addr=0 len=1 prot=rw flags=private|fixed\n"
        "mmap     addr=1 len=1 prot=rw flags=private|fixed\n"
    )

    def across(workload: Workload) -> bool:
        huge = GEOMETRIES[workload.geometry].hpage_pmd_nr
        maps = [op.args for op in all_ops(workload) if op.kind == "mmap"]
        return touching(workload) and maps[1][0] % huge == 2 and maps[0][1] >= 5

    small = minimize(start, across)
    _, second = all_ops(small)
    assert second.args[1] == 1
    assert second.args[0] <= 10


def test_cut_pages_follows_moves() -> None:
    """A page that is cut out of a range is cut where the range moves to, and where it comes from."""
    workload = from_text(
        "world small8\nmmap addr=8 len=6 prot=rw flags=private|fixed\nwrite addr=13 at=0\n"
        "mremap addr=8 old_len=6 new_len=6 flags=maymove|fixed new_addr=40\nread addr=45\nread addr=60\n"
    )
    assert text_of(cut_pages(workload, 10, 12)) == text_of(cut_pages(workload, 42, 44))
    assert text_of(cut_pages(workload, 10, 12)) == (
        "world small8\nmmap     addr=8 len=4 prot=rw flags=private|fixed\nwrite    addr=11 at=0\n"
        "mremap   addr=8 old_len=4 new_len=4 flags=maymove|fixed new_addr=38\nread     addr=41\n"
        "read     addr=56\n"
    )


@pytest.mark.parametrize("kind", ["uffd_copy", "uffd_move"])
def test_cut_pages_follows_what_userfaultfd_fills(kind: str) -> None:
    """The same for the two places of a copy: what is cut out of one is cut out of the other."""
    workload = from_text(
        f"world small8\nmmap addr=8 len=6 prot=rw flags=private|fixed\n"
        f"{kind} dst=40 src=8 len=6 mode=none\nread addr=45\nread addr=60\n"
    )
    assert cut_pages(workload, 10, 12) == cut_pages(workload, 42, 44)
    assert cut_pages(workload, 10, 12) == from_text(
        f"world small8\nmmap addr=8 len=4 prot=rw flags=private|fixed\n"
        f"{kind} dst=38 src=8 len=4 mode=none\nread addr=41\nread addr=56\n"
    )


@quick
@given(seeds)
def test_simplifications_stay_close(seed: int) -> None:
    """Changes of the whole workload give workloads that differ where they should and nowhere else."""
    workload = generated(seed)
    assert is_valid(renumbered(workload))
    assert [op.kind for op in all_ops(renumbered(workload))] == [op.kind for op in all_ops(workload)]
    assert renumbered(renumbered(workload)) == renumbered(workload)
    edges = boundaries(workload)
    assert cut_pages(workload, edges[-1], edges[-1] + 5) == workload  # nothing up there
    small = repair(in_world(workload, "small4"))
    assert [op.kind for op in all_ops(small)] == [op.kind for op in all_ops(workload)]


def test_a_move_can_be_left_out() -> None:
    """Later ops are rewritten to where the pages would have stayed."""
    workload = from_text(
        "world small8\nmmap addr=8 len=4 prot=rw flags=private|fixed\n"
        "mremap addr=8 old_len=4 new_len=4 flags=maymove|fixed new_addr=40\nwrite addr=42 at=0\n"
    )
    stayed = without_move(workload, 1, 0)
    assert stayed == from_text(
        "world small8\nmmap addr=8 len=4 prot=rw flags=private|fixed\nwrite addr=10 at=0\n"
    )
    assert without_move(workload, 0, 0) is None


def test_labels_in_order() -> None:
    """Labels are given from the lowest, and given again after their end."""
    workload = from_text(
        "world small8\nfork child=3\np3: exit\nfork child=2\np2: gup_fast addr=1 flags=none pin=5\n"
        "gup_slow addr=1 flags=none pin=2\nunpin pin=5\ngup_slow addr=1 flags=none pin=7\nunpin pin=7\n"
    )
    assert text_of(renumbered(workload)) == (
        "world small8\nfork     child=1\np1: exit\nfork     child=1\np1: gup_fast addr=1 flags=none pin=0\n"
        "gup_slow addr=1 flags=none pin=1\nunpin    pin=0\ngup_slow addr=1 flags=none pin=0\nunpin    pin=0\n"
    )


def test_large_world() -> None:
    """A workload with x86-64's huge distances comes to a small world in a few calls."""
    start = from_text(
        "world x86-64\nmmap addr=131072 len=1024 prot=rw flags=private|fixed\nwrite addr=131500 at=1\n"
        "mremap addr=131072 old_len=1024 new_len=1024 flags=maymove|fixed new_addr=200704\nread addr=201132\n"
    )

    def keeps(workload: Workload) -> bool:
        sketch = Sketch(workload.geometry)
        for step in workload.steps:
            (op,) = step.ops
            if op.kind == "read":
                span = sketch.span_at(0, op.args[0])
                return span is not None and span.faulted and span.home != span.start
            sketch.add(step)
        return False

    calls: list[int] = []
    small = minimize(start, keeps, progress=lambda count, best: calls.append(count))
    assert small.geometry == "small4"
    assert max(boundaries(small)) <= 3
    assert calls[-1] < 100


def test_start_may_be_invalid() -> None:
    """A hand-written workload that breaks the rules about labels is minimised all the same."""
    start = Workload("small8", (Step((Op("read", 3, (4,)),)), Step((Op("unpin", 2, (6,)),))))
    small = minimize(start, has_kinds("read"))
    assert text_of(small) == "world small4\nread     addr=0\n"
    assert minimize(start, has_kinds("unpin")) == Workload("small8", start.steps)
