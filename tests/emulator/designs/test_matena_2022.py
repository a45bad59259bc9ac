"""The RFC of February 2022: what it lets merge, what its tracepoints count, what it breaks."""

from __future__ import annotations

import pytest

from emulator.designs.base import Design
from emulator.designs.eight_case_refactored import EightCaseRefactored
from emulator.designs.mainline import Mainline
from emulator.designs.matena_2022 import Matena2022
from emulator.geometry import PAGE_SHIFT
from emulator.uapi import MREMAP_FIXED, MREMAP_MAYMOVE
from emulator.workload import Op, Switch
from tests.emulator.kernel_world import World
from tests.emulator.map_script import ScriptRunner
from tests.emulator.mm.world import anon_vma_of

FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
WORLDS = [("x86-64", 1000), ("small8", 64), ("small4", 32)]

# name, sequence, pages of A's VMA with the RFC, without; all of it sound
MERGES = [
    ("new_memory_behind_what_moved", "A = C1+5; W A; mv A -> +1; mv A -> C9; B = C14+5", 10, 5),
    ("mprotect_of_what_moved", "A = C1+5 NR; W A; B = C20+5 NR RX; mv B -> A+5; rw B", 10, 10),
    ("same_place", "A = C1+5; W A; mv A -> +1; mv A -> C1; B = C6+5", 10, 10),
    ("shared_with_a_child", "A = C1+5; W A; fork; mv A -> C9; B = C14+5", 5, 5),
]


@pytest.mark.parametrize(("geometry", "far"), WORLDS)
@pytest.mark.parametrize("design", [Matena2022, EightCaseRefactored, Mainline])
@pytest.mark.parametrize(("script", "merged", "apart"), [pytest.param(*row[1:], id=row[0]) for row in MERGES])
def test_what_merges(
    script: str, merged: int, apart: int, design: type[Design], geometry: str, far: int
) -> None:
    """A faulted VMA that moves whole takes the page offset of its place, and merges there with new memory."""
    pages = merged if design is Matena2022 else apart
    ScriptRunner(World(geometry, design, "5.17"), far).run(f"{script}; => A:{pages}")


def two_anon_vmas(design: type[Design] = Matena2022) -> World:
    """Pages 0-1 and, read-only beside them, 2-3 that have moved there: two VMAs with two anon_vmas, all written."""
    world = World("small8", design, "5.17")
    world.mmap(0, 2, flags=0x4012)
    world.mmap(40, 2, flags=0x4012)
    for page in (0, 1, 40, 41):
        world.write(page)
    assert world.do("mprotect", 40, 2, 1) == 0
    assert world.do("mremap", 40, 2, 2, FIXED, 2) == 2
    assert world.layout() == [(0, 2), (2, 2)]
    return world


@pytest.mark.parametrize(("design", "layout"), [(Matena2022, [(0, 4)]), (Mainline, [(0, 2), (2, 2)])])
def test_different_anon_vmas_merge(design: type[Design], layout: list[tuple[int, int]]) -> None:
    """A VMA that becomes like its neighbour merges into it, and its pages get the neighbour's anon_vma."""
    world = two_anon_vmas(design)
    kept = anon_vma_of(world, 0)
    gone = anon_vma_of(world, 2)
    contents = world.contents()
    assert world.do("mprotect", 2, 2, 3) == 0
    assert world.layout() == layout
    assert world.contents() == contents
    if design is Matena2022:
        assert all(world.folio(page).mapping is kept for page in range(4))
        assert [world.folio(page).index - world.folio(0).index for page in range(4)] == [0, 1, 2, 3]
        assert not gone.freed  # a flaw, kept: the references of two pages are not given back
        assert gone.refcount == 2
        world.check()


@pytest.mark.parametrize(("events", "updated"), [([], True), (["fork"], False), (["fork", "exit"], True)])
def test_shared_pages_stay(events: list[str], updated: bool) -> None:
    """What a child may have keeps its index; when the child is gone, it does not."""
    world = World("small8", Matena2022, "5.17")
    world.mmap(0, 2)
    world.write(0)
    if "fork" in events:
        world.fork()
    if "exit" in events:
        assert world.do("exit", proc=1) == 0
    index = world.folio(0).index
    assert world.do("mremap", 0, 2, 2, FIXED, 40) == 40
    assert (world.folio(40).index == world.address(40) >> PAGE_SHIFT) == updated
    assert (world.folio(40).index == index) != updated
    world.check()


@pytest.mark.parametrize(("design", "reclaimed"), [(Matena2022, 0), (Mainline, 1)])
def test_walk_without_the_anon_vma_lock(design: type[Design], reclaimed: int) -> None:
    """L. Howlett's doubt: while indexes are rewritten nobody keeps rmap walks out, and they do not find the page."""
    world = World("small8", design, "5.17")
    world.mmap(0, 3)
    for page in range(3):
        world.write(page)
    point = "relocate.index_updated" if design is Matena2022 else "mremap.locked"
    move = Op("mremap", 0, (0, 3, 3, FIXED, 40))
    schedule = (Switch(0, point, 2 if design is Matena2022 else 1), Switch(1, "end", 1))
    outcomes = world.collide([move, Op("reclaim", 0, (0,))], schedule)
    assert [outcome.ret for outcome in outcomes] == [40, reclaimed]


def test_part_of_a_vma() -> None:
    """A flaw, kept: every page of the VMA gets a new index, counted from its start, though only the last one moves."""
    world = World("small8", Matena2022, "5.17")
    world.mmap(0, 3)
    for page in range(3):
        world.write(page)
    assert world.do("mremap", 2, 1, 1, FIXED, 40) == 40
    there = world.address(40) >> PAGE_SHIFT
    assert [world.folio(page).index for page in (0, 1, 40)] == [there, there + 1, there + 2]
