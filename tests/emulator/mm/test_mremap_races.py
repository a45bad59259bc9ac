"""mremap beside the walkers of the reverse map: a move must not hide an entry from them, nor lead them astray."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest

from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import PRESENT, pte_pfn
from emulator.uapi import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE
from emulator.workload import Op
from tests.emulator.kernel_world import World
from tests.emulator.references import check_all, every_cut, every_two_cuts

FIXED = MREMAP_MAYMOVE | MREMAP_FIXED


def back_to_its_neighbours() -> World:
    """Pages 3-5 of a written VMA lie at 40: moved back, they merge into a VMA that walkers meet first."""
    world = World()
    world.mmap(0, 9)
    for page in range(9):
        world.write(page)
    assert world.do("mremap", 3, 3, 3, FIXED, 40) == 40
    return world


def whole_tables() -> World:
    """Two page tables full of pages at 8, which move whole."""
    world = World()
    world.mmap(8, 16)
    for page in range(8, 24):
        world.write(page)
    return world


def entries() -> World:
    """Written pages at 40 that nothing merges with."""
    world = World()
    world.mmap(40, 3)
    for page in range(40, 43):
        world.write(page)
    return world


# name, world, move, page that the walker is after, where that page goes
MOVES = [
    ("merging", back_to_its_neighbours, (40, 3, 3, FIXED, 3), 41, 4),
    ("tables", whole_tables, (8, 16, 16, FIXED, 72), 13, 77),
    ("entries", entries, (40, 3, 3, FIXED, 81), 41, 82),
    ("dontunmap", entries, (40, 3, 3, FIXED | MREMAP_DONTUNMAP, 81), 41, 82),
]


@pytest.mark.parametrize("walker", ["migrate", "reclaim"])
@pytest.mark.parametrize(
    ("make", "move", "page", "target"), [pytest.param(*row[1:], id=row[0]) for row in MOVES]
)
def test_move_beside_a_walker(
    make: Callable[[], World], move: tuple[int, ...], page: int, target: int, walker: str
) -> None:
    """Wherever one interrupts the other: the page is found, its contents arrive, every entry and count is right."""
    before = make().content(page)
    ops = (Op("mremap", 0, move), Op(walker, 0, (page,)))
    for world, outcomes, cut in chain(every_cut(make, ops), every_two_cuts(make, ops)):
        assert outcomes[0].ret == move[4], cut
        check_all(world)
        check_tlbs(world)
        assert world.do("read", target) == 0, cut
        assert world.content(target) == before, cut
        check_all(world)


def check_tlbs(world: World) -> None:
    """No cached translation that the page tables do not have."""
    for mm in world.machine.procs.values():
        for tlb in world.machine.tlbs:
            for (asid, number), cached in tlb.entries.items():
                if asid == mm.asid:
                    entry = walk_slot(mm, world.machine.geometry, number << 12)[2]
                    assert entry & PRESENT
                    assert pte_pfn(entry) == pte_pfn(cached)
