"""Page tables, and the log of stores to them."""

from __future__ import annotations

import pytest

from emulator.geometry import GEOMETRIES, LEVEL_PGD, LEVEL_PMD, LEVEL_PTE, LEVEL_PUD
from emulator.hw.pgtable import PageTable, walk_slot
from emulator.hw.pte import PSE, mk_pte
from tests.emulator.kernel_world import World


def tables(world: World, address: int) -> list[PageTable]:
    """The tables from the root to the PTE table of ``address``."""
    generic = world.image.pgtable_generic
    assert generic.alloc_table(world.mm(), address, LEVEL_PTE) is not None
    return [generic.find_table(world.mm(), address, level) for level in (3, 2, 1, 0)]


@pytest.mark.parametrize("name", sorted(GEOMETRIES))
def test_walk(name: str) -> None:
    """The walker stops at the missing table, at the huge page, or at the PTE."""
    world = World(name)
    g = world.machine.geometry
    address = world.address(g.hpage_pmd_nr + 1)
    assert walk_slot(world.mm(), g, address)[0].level == LEVEL_PGD
    pgd, pud, pmd, pte = tables(world, address)
    assert walk_slot(world.mm(), g, address) == (pte, 1, 0)
    pte.set(1, mk_pte(5, 0))
    assert walk_slot(world.mm(), g, address) == (pte, 1, mk_pte(5, 0))
    pmd.set(1, mk_pte(512, PSE))
    assert walk_slot(world.mm(), g, address) == (pmd, 1, mk_pte(512, PSE))
    assert (pgd.level, pud.level) == (LEVEL_PGD, LEVEL_PUD)


def test_log() -> None:
    """Every store that changes something is logged: table, slot, old, new."""
    world = World()
    *_, pmd, pte = tables(world, 0)
    log = world.machine.store_log
    log.clear()
    pte.set(3, 0)
    assert log == []
    pte.set(3, 5)
    pte.set(3, 6)
    pte.set(3, 0)
    pmd.set(0, 0)
    assert log == [(pte, 3, 0, 5), (pte, 3, 5, 6), (pte, 3, 6, 0), (pmd, 0, pte, 0)]
    assert pte.get(3) == 0
    assert 3 not in pte.entries


def test_parent_and_base() -> None:
    """A table knows where it hangs, also after it moved; unlinked it translates nothing."""
    world = World()
    g = world.machine.geometry
    _, pud, pmd, pte = tables(world, 0)
    assert (pte.parent, pte.slot) == (pmd, 0)
    pmd.set(0, 0)
    assert pte.parent is None
    assert pte.base(g) is None
    pmd.set(5, pte)
    assert pte.base(g) == 5 * g.pmd_size
    # stored in the new place before the old one is cleared: it stays linked where it is now
    pmd.set(6, pte)
    pmd.set(5, 0)
    assert pte.parent is pmd
    assert pte.base(g) == 6 * g.pmd_size
    pud.set(0, 0)
    assert pte.base(g) is None
    assert pmd.parent is None


def test_leaves() -> None:
    """All entries in address order, huge ones with their level, tables themselves not."""
    world = World()
    g = world.machine.geometry
    *_, pmd, pte = tables(world, 0)
    pte.set(7, 70)
    pte.set(2, 20)
    pmd.set(3, mk_pte(8, PSE))
    far = 5 * g.pud_size + 4096
    tables(world, far)[3].set(1, 30)
    assert list(world.mm().pgd.leaves(g)) == [
        (2 * 4096, LEVEL_PTE, 20),
        (7 * 4096, LEVEL_PTE, 70),
        (3 * g.pmd_size, LEVEL_PMD, mk_pte(8, PSE)),
        (far, LEVEL_PTE, 30),
    ]


def test_store_log_is_of_the_last_step() -> None:
    """Each step begins with an empty log."""
    world = World()
    world.mmap(0, 1)
    world.write(0)
    assert world.machine.store_log
    world.do("read", 0)
    assert not world.machine.store_log
