"""New VMAs merged by expansion, as first posted: what it merges, what it does not, and where its iterator stands."""

from __future__ import annotations

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.merge_new_2024 import MergeNew2024
from emulator.mm_types import VM_PFNMAP
from tests.emulator.kernel_world import World
from tests.emulator.map_script import ScriptRunner
from tests.emulator.mm.vma_bench import FLAGS, Bench

BOTH = [MergeNew2024, Mainline]

# what, VMAs before, hole, VMAs afterwards
NEW = [
    ("nothing near", "", (2, 4), None),
    ("nothing adjacent", "0-1 5-6", (2, 4), None),
    ("prev", "0-2 6-8", (2, 4), "0-4 6-8"),
    ("next", "0-1 4-6", (2, 4), "0-1 2-6"),
    ("next alone", "4-6", (2, 4), "2-6"),
    ("all three", "0-2 4-6", (2, 4), "0-6"),
    ("next brings its anon_vma", "0-2 4-6@1", (2, 4), "0-6@1"),
    ("page offsets of prev do not fit", "0-2:9 4-6", (2, 4), "0-2:9 2-6"),
    ("page offsets of neither fit", "0-2:9 4-6:9", (2, 4), None),
    ("a fork child does not share", "0-2@1F", (2, 4), None),
    ("close() of next", "0-2 4-6C", (2, 4), "0-4 4-6C"),
]


@pytest.mark.parametrize("design", BOTH)
@pytest.mark.parametrize(("before", "hole", "after"), [pytest.param(*row[1:], id=row[0]) for row in NEW])
def test_new(before: str, hole: tuple[int, int], after: str | None, design: type[Design]) -> None:
    """Expansion gives what mainline gives, and every assertion on the iterator holds."""
    bench = Bench(before, design=design)
    merged, vmg = bench.new(*hole)
    assert (merged is not None) == (after is not None) == (vmg.state == bench.image.vma.VMA_MERGE_SUCCESS)
    assert bench.layout() == (before if after is None else after)
    bench.check()


@pytest.mark.parametrize(("design", "after"), [(MergeNew2024, "0-2@1 2-6@2"), (Mainline, "0-4@1 4-6@2")])
def test_two_anon_vmas(design: type[Design], after: str) -> None:
    """Next is asked first, and prev must then have its anon_vma; mainline asks prev first."""
    bench = Bench("0-2@1 4-6@2", design=design)
    assert bench.new(2, 4)[0] is not None
    assert bench.layout() == after
    bench.check()


@pytest.mark.parametrize("design", BOTH)
@pytest.mark.parametrize("before", ["", "0-2 4-6", "4-6"])
def test_special(before: str, design: type[Design]) -> None:
    """A mapping of a device merges with nothing."""
    bench = Bench(before, design=design)
    for near in bench.mm.mm_mt:
        near.vm_flags |= VM_PFNMAP
    assert bench.new(2, 4, FLAGS | VM_PFNMAP)[0] is None
    assert bench.layout() == before
    bench.check()


# the paths that make new memory, each through its system call
CALLS = [
    ("mmap", "A = C1+5; B = C11+5; D = C6+5; => A:15"),
    ("mmap_between_faulted", "A = C1+15; F A; unmap A[5:10]; B = C6+5; => A:15"),
    ("mremap", "A = C1+5; B = C20+5; mv B -> C6; => A:10"),
    ("mremap_onto_itself", "A = C1+15; B = A[5:10]; mv B -> +1; mv B -> A+5; => A:15"),
]


@pytest.mark.parametrize("design", BOTH)
@pytest.mark.parametrize("script", [pytest.param(row[1], id=row[0]) for row in CALLS])
def test_calls(script: str, design: type[Design]) -> None:
    """One function for all."""
    ScriptRunner(World("small8", design), 64).run(script)


@pytest.mark.parametrize("design", BOTH)
def test_brk(design: type[Design]) -> None:
    """The heap grows as one VMA."""
    world = World("small8", design)
    mm = world.mm()
    mm.start_brk = mm.brk = world.address(20)
    for page in (21, 24):
        assert world.image.brk.sys_brk(mm, world.address(page)) == world.address(page)
    assert world.layout() == [(20, 4)]
    world.check()


@pytest.mark.parametrize(("design", "layout"), [(MergeNew2024, "0-3 3-4"), (Mainline, "0-4")])
def test_growth_in_place(design: type[Design], layout: str) -> None:
    """A flaw, kept: what grows up to the next VMA does not merge with it, since next is not given."""
    bench = Bench("0-1 3-4", design=design)
    assert bench.image.vma.vma_merge_extend(bench[0], 2 << 12) is bench[0]
    assert bench.layout() == layout
    bench.check()


def warnings(bench: Bench) -> list[str]:
    return [warning[0] for warning in bench.world.machine.sched.warnings]


@pytest.mark.parametrize(
    ("before", "left"),
    [
        pytest.param("0-2", True, id="prev"),
        pytest.param("0-2 4-6", True, id="all three"),
        pytest.param("4-6@1", False, id="next"),
        pytest.param("0-1 4-6", False, id="next, beside something"),
    ],
)
def test_iterator_after_a_failure(before: str, left: bool) -> None:
    """A flaw, kept: when prev cannot be expanded the iterator stays at it, and the new VMA is to be written there."""
    bench = Bench(before, design=MergeNew2024)
    bench.fail_next(1)
    merged, vmg = bench.new(2, 4)
    assert merged is vmg.target is vmg.anon_vma is None
    assert (vmg.start >> 12, vmg.end >> 12, vmg.pgoff) == (2, 4, 2)
    assert bench.layout() == before
    assert warnings(bench) == (["iterator-not-at-write"] if left else [])


def test_next_that_is_not_behind_the_hole() -> None:
    """L. Howlett's second assertion: whoever calls has made sure that the range is empty."""
    bench = Bench("0-2 3-6", design=MergeNew2024)
    bench.new(2, 4)
    assert "next-in-hole" in warnings(bench)


def test_iterator_that_is_not_before_the_hole() -> None:
    """His first: the iterator of the caller stands before the range that is to be filled."""
    bench = Bench("0-3 6-8", design=MergeNew2024)
    bench.new(2, 4)
    assert "iterator-beyond-hole" in warnings(bench)
