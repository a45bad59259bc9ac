"""Finding and making page tables."""

from __future__ import annotations

import pytest

from emulator.geometry import LEVEL_PGD, LEVEL_PMD, LEVEL_PTE, LEVEL_PUD
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PSE, mk_pte
from tests.emulator.kernel_world import World

LEVELS = [LEVEL_PTE, LEVEL_PMD, LEVEL_PUD]


@pytest.mark.parametrize("geometry", ["small4", "small8", "x86-64"])
@pytest.mark.parametrize("level", LEVELS)
def test_make_and_find(level: int, geometry: str) -> None:
    """A made table is found for every address that it translates, and for none beyond."""
    world = World(geometry)
    generic, mm, g = world.image.pgtable_generic, world.mm(), world.machine.geometry
    address = world.address(0)
    assert generic.find_table(mm, address, level) is None
    table = generic.alloc_table(mm, address, level)
    assert table is not None
    assert table.level == level
    reach = 1 << g.shifts[level + 1]
    start = address & -reach
    assert table.base(g) == start
    for inside in (start, address, start + reach - 4096):
        assert generic.find_table(mm, inside, level) is table
        assert generic.alloc_table(mm, inside, level) is table
        assert generic.slot_of(mm, inside, level) == (inside - start) >> g.shifts[level]
    assert generic.find_table(mm, start + reach, level) is None


def test_the_root_is_always_there() -> None:
    """The PGD needs no allocation."""
    world = World()
    assert world.image.pgtable_generic.find_table(world.mm(), 0, LEVEL_PGD) is world.mm().pgd


def test_huge_page_in_the_way() -> None:
    """Below a huge page there is no table, and none can be made."""
    world = World()
    generic, mm = world.image.pgtable_generic, world.mm()
    pmd = generic.alloc_table(mm, 0, LEVEL_PMD)
    pmd.set(0, mk_pte(8, PSE))
    assert generic.find_table(mm, 0, LEVEL_PTE) is None
    assert generic.alloc_table(mm, 0, LEVEL_PTE) is None
    assert generic.find_table(mm, 0, LEVEL_PMD) is pmd


@pytest.mark.parametrize(
    ("nth", "made", "name"), [(1, 0, "pud_alloc"), (2, 1, "pmd_alloc"), (3, 2, "pte_alloc")]
)
def test_out_of_memory(nth: int, made: int, name: str) -> None:
    """Each level is a fault point of its own; tables made before it stay for the next try."""
    world = World()
    generic, mm = world.image.pgtable_generic, world.mm()
    task = world.machine.sched.current
    task.fail_count, task.fail_nth = 0, nth
    assert generic.alloc_table(mm, 0, LEVEL_PTE) is None
    assert task.failed == name
    tables = 0
    table: object = mm.pgd.get(0)
    while isinstance(table, PageTable):
        tables += 1
        table = table.get(0)
    assert tables == made
    assert generic.alloc_table(mm, 0, LEVEL_PTE) is not None
