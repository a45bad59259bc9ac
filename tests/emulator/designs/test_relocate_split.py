"""Relocation that splits the VMA where it cannot go on: what that gains, what it costs, what stays wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.relocate_anon import RelocateAnon
from emulator.designs.relocate_split import RelocateSplit
from emulator.geometry import PAGE_SHIFT
from emulator.uapi import (
    ENOMEM,
    MADV_HUGEPAGE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_RELOCATE_ANON,
)
from fuzz.workload import wire
from oracle.judge import Judge
from tests.emulator.designs.test_relocate_anon import SELFTESTS
from tests.emulator.kernel_world import World, kernel_image
from tests.emulator.map_script import ScriptRunner

REGRESSIONS = Path(__file__).parents[3] / "corpus" / "regressions"
FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
RELOCATE = FIXED | MREMAP_RELOCATE_ANON


@pytest.mark.parametrize(("geometry", "far"), [("x86-64", 1000), ("small8", 64), ("small4", 32)])
@pytest.mark.parametrize("script", [pytest.param(row[1], id=row[0]) for row in SELFTESTS])
def test_layout(script: str, geometry: str, far: int) -> None:
    """Where nothing stands in the way it does what the patch does."""
    ScriptRunner(World(geometry, RelocateSplit), far).run(script)


def stumbling(design: type[Design] = RelocateSplit, *, neighbour: bool = True) -> World:
    """Pages 37 to 47 written, a huge page at 40; a written neighbour at 0 to 2, all of them wanting huge pages."""
    world = World("small8", design)
    for page, pages in ((0, 3), (37, 11)):
        if page or neighbour:
            world.mmap(page, pages)
            assert world.do("madvise", page, pages, MADV_HUGEPAGE) == 0
            for number in range(page, page + pages):
                world.write(number)
    assert [world.folio(page).nr_pages for page in (37, 40)] == [1, 8]
    return world


def indexes(world: World, pages: range) -> list[int]:
    """For each page the index of its folio, less where an ordinary page of that place has it."""
    return [world.folio(page).index - (world.address(page) >> PAGE_SHIFT) for page in pages]


def test_relocates_up_to_the_huge_page() -> None:
    """The small pages before it merge with their new neighbour; the patch relocates nothing, mainline cannot."""
    layouts = {}
    for design in (RelocateSplit, RelocateAnon, Mainline):
        world = stumbling(design)
        contents = [world.content(page) for page in range(37, 48)]
        flags = FIXED if design is Mainline else RELOCATE
        assert world.do("mremap", 37, 11, 11, flags, 3) == 3
        assert [world.content(page) for page in range(3, 14)] == contents
        layouts[design.name] = world.layout()
        if design is RelocateSplit:
            assert indexes(world, range(3, 6)) == [0, 0, 0]
            assert world.folio(6).index == world.address(40) >> PAGE_SHIFT
            assert world.folio(3).mapping is world.vma(0).anon_vma
            assert world.folio(6).mapping is world.vma(6).anon_vma
            assert world.machine.committed == world.mm().total_vm  # nothing was uncharged that had not been charged
            world.check()
    assert layouts == {
        "relocate-split": [(0, 6), (6, 8)],
        "relocate-anon": [(0, 3), (3, 11)],
        "mainline": [(0, 3), (3, 11)],
    }


@pytest.mark.parametrize("flags", [RELOCATE, RELOCATE | MREMAP_DONTUNMAP], ids=["", "dontunmap"])
def test_more_vmas_where_nothing_merges(flags: int) -> None:
    """A flaw of the idea: without a neighbour to merge with, the split leaves one VMA more than an ordinary move."""
    world = stumbling(neighbour=False)
    assert world.do("mremap", 37, 11, 11, flags, 3) == 3
    assert world.layout() == [(3, 3), (6, 8), *([(37, 11)] if flags & MREMAP_DONTUNMAP else [])]
    world.check()


def test_growing_move() -> None:
    """What is added belongs to the second part."""
    world = stumbling()
    assert world.do("mremap", 37, 11, 13, RELOCATE, 3) == 3
    assert world.layout() == [(0, 6), (6, 10)]
    world.check()


def test_huge_page_at_the_beginning() -> None:
    """There is nothing to split: as in the patch."""
    world = stumbling()
    assert world.do("mremap", 40, 8, 8, RELOCATE, 3) == 3
    assert world.layout() == [(0, 3), (3, 8), (37, 3)]
    assert world.folio(3).index == world.address(40) >> PAGE_SHIFT
    world.check(committed=False)


def test_destination_of_the_same_family() -> None:
    """The destination shares the source's anon_vma, whose lock is held: it is not taken a second time."""
    world = World("small8", RelocateSplit)
    world.mmap(20, 28)
    assert world.do("madvise", 20, 28, MADV_HUGEPAGE) == 0
    for page in range(20, 48):
        world.write(page)
    assert world.do("mremap", 21, 11, 11, RELOCATE, 48) == 48
    assert world.layout() == [(20, 1), (32, 19), (51, 8)]
    world.check()


def test_every_failure_leaves_what_an_ordinary_move_leaves() -> None:
    """Out of memory at any point: the source is whole, but for the flaws that the patch's undo has."""
    failed: dict[str, int] = {}
    for nth in range(1, 30):
        world = stumbling()
        contents = [world.content(page) for page in range(37, 48)]
        ret = world.do("mremap", 37, 11, 11, RELOCATE, 60, fail_nth=nth)
        if not world.last.injected:
            break
        where = world.machine.sched.current.failed
        failed[where] = failed.get(where, 0) + 1
        at = 60 if ret == 60 else 37
        assert ret in (60, -ENOMEM), where
        assert [world.content(page) for page in range(at, at + 11)] == contents
        world.check(committed=False, counters=False)
        if ret == 60 and world.layout() == [(0, 3), (60, 3), (63, 8)]:
            assert world.machine.committed == world.mm().total_vm
    assert {"vm_area_alloc", "vma_tree_prealloc", "anon_vma_alloc", "anon_vma_chain_alloc"} <= failed.keys()
    assert "pte_alloc" in failed
    assert failed["vm_area_alloc"] >= 2  # of the destination, and of its second part


def test_failed_move_is_undone_in_part() -> None:
    """A flaw that stays: page tables that move in part only still need an undo, and it is the patch's."""
    for nth in range(1, 30):
        world = World("small8", RelocateSplit)
        world.mmap(21, 27)
        for page in range(21, 40):
            world.write(page)
        assert world.do("madvise", 21, 27, MADV_HUGEPAGE) == 0
        world.write(40)
        if world.do("mremap", 21, 27, 27, RELOCATE, 52, fail_nth=nth) == -ENOMEM:
            wrong = [page for page in range(21, 40) if indexes(world, range(page, page + 1)) != [0]]
            if wrong:
                break
    assert wrong == [21, 22, 23, 24]  # they had moved to the first of the destination's tables


@pytest.mark.parametrize(("design", "lost"), [(RelocateAnon, True), (RelocateSplit, False)])
def test_gup_fast_beside_the_failure(design: type[Design], lost: bool) -> None:
    """What the idea is for: a pin that comes between relocation and undo does no harm when nothing is undone."""
    workload = wire.decode((REGRESSIONS / "relocate-anon" / "undo-beside-gup-fast.msgpack").read_bytes())
    found = {finding.oracle for finding in Judge(kernel_image(design), kernel_image(Mainline)).run(workload).findings}
    assert ("undo" in found) == lost
    assert found <= {"kernel", "undo"}  # the folio lock under a spinlock
