"""Splitting large folios: contents, counts, swap space, and who is in the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.hw.pte import SPECIAL, is_swap
from emulator.mm_types import VM_LOCKED
from emulator.uapi import EAGAIN, EBUSY, EINVAL, MAP_FIXED, MAP_SHARED
from emulator.workload import Op
from tests.emulator.kernel_world import RW, World
from tests.emulator.mm.world import PIN_RW, faulted, huge, isolated
from tests.emulator.references import check_all, every_cut


def split(world: World, page: int = 0, proc: int = 0) -> int:
    """split_folio on the folio of the page, and the end of the caller's lock and reference."""
    folio = isolated(world, page, proc)
    first = folio.pfn
    error: int = world.image.huge_memory_split.split_folio(world.machine, folio)
    head = world.machine.phys.frames[first]
    assert head.lock.owner is world.machine.sched.current
    assert (head is folio) is (error != 0)
    head.lock.unlock()
    world.image.swap.folio_put(world.machine, head)
    return error


def filled(children: int = 0) -> World:
    world = huge()
    for page in range(8):
        world.write(page, 1)
    for child in range(1, children + 1):
        world.fork(child)
    return world


@pytest.mark.parametrize(
    ("profile", "locked", "given_back"),
    [("6.18", False, (True, True)), ("6.18", True, (True, False)), ("5.17", False, (False, False))],
)
def test_pages_of_zeros_are_given_back(profile: str, locked: bool, given_back: tuple[bool, bool]) -> None:
    """The zero page takes their place, but for locked memory and on old kernels (observed on 6.18.44)."""
    world = huge(profile=profile)
    world.write(5, 0)
    world.fork(1)
    if locked:
        world.vma(0, 1).vm_flags |= VM_LOCKED
    assert split(world) == 0
    for page in range(8):
        zero = [bool(world.pte(page, proc) & SPECIAL) for proc in (0, 1)]
        assert zero == [back and page not in (3, 5) for back in given_back]
        if not all(zero):
            assert world.folio(page, 1).mapcounts == [2 - sum(zero)]
    assert world.contents(0) == world.contents(1)
    check_all(world)


@pytest.mark.parametrize("children", [0, 2])
@pytest.mark.parametrize("by_ptes", [False, True])
def test_the_pages_stay_what_they_were(children: int, by_ptes: bool) -> None:
    """Same frames, same contents, same index; exclusive or shared, writable or not, as before, in every process."""
    world = filled(children)
    if by_ptes:
        world.image.huge_memory.split_huge_pmd_address(world.vma(0), world.address(0))
    folio = world.folio(0)
    before = [world.contents(proc) for proc in world.machine.procs]
    writable = world.pte(0) & 2
    assert split(world) == 0
    assert folio.freed
    assert [world.contents(proc) for proc in world.machine.procs] == before
    for page in range(8):
        small = world.folio(page)
        assert (small.order, small.pfn, small.index) == (0, folio.pfn + page, folio.index + page)
        assert small.mapping is folio.mapping
        assert small.mapcounts == [1 + children]
        assert small.anon_exclusive == (0 if children else 1)
        assert world.pte(page) & 2 == writable
    check_all(world)


def test_unmapped_pages_are_freed() -> None:
    """What nobody maps any more goes at once: the purpose of splitting."""
    world = filled()
    folio = world.folio(0)
    world.do("munmap", 2, 3)
    assert split(world) == 0
    frames = world.machine.phys.frames
    assert [frames[folio.pfn + i].freed for i in range(8)] == [False] * 2 + [True] * 3 + [False] * 3
    check_all(world)


def test_swap_space_is_split_too() -> None:
    """Each page takes its own slot; one that is only swapped out by now leaves the cache."""
    world = filled()
    folio = isolated(world, 0)
    assert world.image.swap_state.add_to_swap(world.machine, folio)
    slot = folio.swap
    assert world.image.huge_memory_split.split_folio(world.machine, folio) == 0
    small = [world.folio(page) for page in range(8)]
    assert [page.swap for page in small] == list(range(slot, slot + 8))
    assert [world.machine.swap.cache[slot + i] for i in range(8)] == small
    small[0].lock.unlock()
    world.image.swap.folio_put(world.machine, small[0])
    check_all(world)


@pytest.mark.parametrize("flags", [0, PIN_RW])
def test_a_reference_is_in_the_way(flags: int) -> None:
    """Whoever holds one counts on the folio as it is."""
    world = filled()
    assert world.do("gup_slow", 3, flags, 0) == 0
    before = world.contents()
    folio = world.folio(0)
    assert split(world) == -EAGAIN
    assert world.folio(0) is folio
    assert world.contents() == before
    check_all(world)


def test_what_cannot_be_split() -> None:
    """Small folios, those of files, those under writeback, and those that nobody maps."""
    world = faulted()
    assert split(world) == -EINVAL
    files = World()
    files.mmap(0, 1, RW, MAP_SHARED | MAP_FIXED, 1)
    files.write(0)
    assert split(files) == -EINVAL
    world = filled()
    folio = isolated(world, 0)
    folio.writeback = True
    assert world.image.huge_memory_split.split_folio(world.machine, folio) == -EBUSY
    folio.writeback = False
    assert world.image.swap_state.add_to_swap(world.machine, folio)
    world.image.rmap_unmap.try_to_unmap(folio)
    assert is_swap(world.pte(0))
    assert world.image.huge_memory_split.split_folio(world.machine, folio) == -EBUSY


def partly_mapped() -> World:
    """Reclaim and migration of this folio split it."""
    world = filled(1)
    world.do("munmap", 6, 2)
    world.do("munmap", 6, 2, proc=1)
    return world


RACES = {
    "write": Op("write", 0, (0, 2)),
    "child_writes": Op("write", 1, (0, 2)),
    "pin": Op("gup_fast", 0, (1, 3, 1)),
    "pin_read": Op("gup_fast", 1, (1, 2, 1)),
    "get": Op("gup_fast", 1, (1, 0, 1)),
    "munmap": Op("munmap", 0, (0, 4)),
    "dontneed": Op("madvise", 1, (0, 4, 4)),
    "mremap": Op("mremap", 0, (0, 6, 6, 3, 24)),
    "mremap_misaligned": Op("mremap", 0, (0, 6, 6, 3, 25)),
    "fork": Op("fork", 1, (2,)),
    "exit": Op("exit", 1, ()),
    "reclaim": Op("reclaim", 1, (5,)),
    "readahead": Op("swap_readahead", 1, (5,)),
}


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize(
    "by",
    [Op("reclaim", 0, (0,)), Op("migrate", 0, (0,)), Op("madvise", 0, (0, 2, 21))],
    ids=lambda op: op.kind,
)
@pytest.mark.parametrize("make", [partly_mapped, lambda: filled(1)], ids=["partly", "whole"])
def test_split_beside(make: Callable[[], World], by: Op, race: str) -> None:
    """A split interrupted anywhere: every count right afterwards, and what was written is still there."""
    for world, _, where in every_cut(make, (by, RACES[race])):
        check_all(world)
        child = world.machine.procs.get(1)
        if child is not None and race != "dontneed":
            assert all(1 in content for content in world.contents(1).values()), where
