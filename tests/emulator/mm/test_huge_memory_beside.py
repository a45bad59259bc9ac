"""Huge pages changed in two ways at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.hw.pte import PRESENT, SPECIAL
from emulator.hw.pte import RW as PTE_RW
from emulator.uapi import MADV_HUGEPAGE, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ
from emulator.workload import Op, Switch
from tests.emulator.kernel_world import World
from tests.emulator.mm.world import PIN_RW, huge, is_huge
from tests.emulator.references import TO_THE_END, check_all, every_cut

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


def test_mprotect_waits_for_a_split() -> None:
    """A split under way when mprotect comes: the PTEs that it leaves get the new permissions, not the vanished PMD.

    Reclaim splits the entry and then finds the page pinned since it looked, so the PTEs stay.
    """
    world = huge()
    ops = (Op("reclaim", 0, (0,)), Op("gup_fast", 0, (0, PIN_RW, 1)), Op("mprotect", 0, (0, 8, PROT_READ)))
    schedule = (
        Switch(0, "reclaim.added_to_swap", 1),
        Switch(1, "gup_fast.done", 1),
        Switch(0, "thp.pmd_invalidated", 1),
        Switch(2, "", TO_THE_END),
    )
    outcomes = world.collide(ops, schedule)
    assert [o.ret for o in outcomes] == [0, 0, 0]
    assert not is_huge(world, 0)
    assert [bool(world.pte(page) & PTE_RW) for page in range(8)] == [False] * 8
    check_all(world)


RACES = {
    "reclaim": Op("reclaim", 0, (0,)),
    "migrate": Op("migrate", 0, (0,)),
    "pin": Op("gup_fast", 0, (0, 3, 1)),
    "get": Op("gup_fast", 0, (0, 0, 1)),
    "pin_read": Op("gup_slow", 0, (0, 2, 1)),
    "write": Op("write", 0, (0, 1)),
    "child_writes": Op("write", 1, (0, 1)),
    "pageout_part": Op("madvise", 0, (0, 3, 21)),
}
CHANGES = {
    "write": Op("write", 0, (1, 1)),
    "munmap_part": Op("munmap", 0, (4, 2)),
    "mprotect": Op("mprotect", 0, (0, 8, PROT_READ)),
    "mprotect_part": Op("mprotect", 0, (0, 2, PROT_READ)),
    "mremap": Op("mremap", 0, (0, 8, 8, MOVE, 24)),
    "mremap_misaligned": Op("mremap", 0, (0, 8, 8, MOVE, 25)),
    "fork": Op("fork", 0, (2,)),
    "exit": Op("exit", 0, ()),
}


def alone() -> World:
    return huge(16)


def shared() -> World:
    world = huge(16)
    world.fork()
    return world


def untouched() -> World:
    world = World()
    world.mmap(0, 16)
    assert world.do("madvise", 0, 16, MADV_HUGEPAGE) == 0
    world.fork()
    return world


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [alone, shared, untouched])
def test_huge_pages_beside(make: Callable[[], World], change: str, race: str) -> None:
    """A huge page changed at the same time in two ways, cut anywhere: sound, and permissions as the VMA says."""
    for world, _, where in every_cut(make, (CHANGES[change], RACES[race])):
        check_all(world)
        for mm in world.machine.procs.values():
            for address, _, entry in mm.pgd.leaves(world.machine.geometry):
                vma = mm.mm_mt.lookup(address)
                assert vma is not None, where
                if entry & PRESENT and not entry & SPECIAL and entry & PTE_RW:
                    assert vma.vm_flags & 2, f"{where}: writable at {address:#x} in {vma}"
