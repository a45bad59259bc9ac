"""Unmapping: flushed before freed, what stays, and which page tables go."""

from __future__ import annotations

import pytest

from emulator.geometry import LEVEL_PMD, LEVEL_PTE, LEVEL_PUD
from emulator.hw.pte import (
    DIRTY,
    MARKER_GUARD,
    MARKER_UFFD_WP,
    PRESENT,
    SOFTLEAF_MARKER,
    is_guard,
    is_migration,
    mk_softleaf,
)
from emulator.uapi import MADV_DONTNEED, MAP_FIXED, MAP_SHARED
from emulator.workload import Op
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World
from tests.emulator.mm.world import faulted, huge, isolated, let_go
from tests.emulator.references import check_all, every_cut


def tables(world: World, page: int) -> list[int]:
    """The levels of the tables that exist on the way to the page."""
    find = world.image.pgtable_generic.find_table
    return [
        level
        for level in (LEVEL_PTE, LEVEL_PMD, LEVEL_PUD)
        if find(world.mm(), world.address(page), level) is not None
    ]


@pytest.mark.parametrize("large", [False, True], ids=["small", "huge"])
@pytest.mark.parametrize("op", [("munmap", 0, 8), ("madvise", 0, 8, MADV_DONTNEED), ("exit",)])
def test_flushed_before_freed(op: tuple, large: bool) -> None:  # type: ignore[type-arg]
    """No TLB of any CPU reaches a page when it is freed; until the flush it is not."""
    world = huge() if large else faulted(8)
    folio, mm = world.folio(0), world.mm()
    key = (mm.asid, world.address(0) >> 12)
    for tlb in world.machine.tlbs:
        tlb.entries[key] = world.pte(0)
    seen: list[tuple[str, bool, bool]] = []
    world.machine.sched.point = lambda name: seen.append(
        (name, folio.freed, any(key in tlb.entries for tlb in world.machine.tlbs))
    )
    assert world.do(*op) == 0
    events = {name: (freed, cached) for name, freed, cached in seen if name.startswith("zap.")}
    assert events["zap.before_flush"] == (False, True)
    assert events["zap.flushed"] == (False, False)
    assert folio.freed


def test_dirty_file_pages_stay_dirty() -> None:
    """The entry's dirty bit goes to the folio, or the file would lose the write."""
    world = World()
    world.mmap(0, 2, RW, MAP_SHARED | MAP_FIXED, 1)
    assert world.do("read", 0) == 0
    world.write(0)
    folio = world.folio(0)
    assert world.pte(0) & DIRTY
    folio.dirty = False
    assert world.do("munmap", 0, 2) == 0
    assert folio.dirty
    check_all(world)


def test_swap_space_goes_with_the_last_entry() -> None:
    """Unmapped in one process it stays for the other."""
    world = faulted()
    world.fork()
    assert world.do("reclaim", 0) == 1
    assert world.do("munmap", 0, 4) == 0
    assert world.machine.swap.count == {1: 1}
    check_all(world)
    assert world.do("munmap", 0, 4, proc=1) == 0
    assert world.machine.swap.count == {}
    check_all(world)


def test_an_unmapped_folio_leaves_the_swap_cache() -> None:
    """Nobody can find it any more: neither folio nor slot may stay."""
    world = faulted()
    assert world.do("reclaim", 0) == 1
    assert world.do("read", 0) == 0
    folio = world.folio(0)
    assert folio.swapcache
    assert world.do("madvise", 0, 4, MADV_DONTNEED) == 0
    assert folio.freed
    assert world.machine.swap.count == {}
    check_all(world)


def test_a_migration_entry_holds_nothing() -> None:
    """It is just cleared; the migration ends without that mapping."""
    world = faulted()
    folio = isolated(world, 0)
    world.image.rmap_unmap.try_to_migrate(folio)
    assert is_migration(world.pte(0))
    assert world.do("madvise", 0, 4, MADV_DONTNEED) == 0
    assert world.pte(0) == 0
    world.image.migrate.remove_migration_ptes(folio, folio)
    let_go(world, folio)
    assert folio.freed
    check_all(world)


@pytest.mark.parametrize(
    ("marker", "file", "stays"),
    [(MARKER_GUARD, 0, True), (MARKER_UFFD_WP, 0, False), (MARKER_UFFD_WP, 1, True)],
)
def test_markers(marker: int, file: int, stays: bool) -> None:
    """MADV_DONTNEED keeps guards, and userfaultfd marks in files; munmap drops everything."""
    world = World()
    world.mmap(0, 4, RW, PRIVATE_FIXED, file)
    world.write(0)
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(1), LEVEL_PTE)
    table.set(1, mk_softleaf(SOFTLEAF_MARKER, marker))
    assert world.do("madvise", 0, 4, MADV_DONTNEED) == 0
    assert bool(table.get(1)) is stays
    assert world.do("munmap", 0, 4) == 0
    assert table.entries == {}


def test_guards_do_not_outlive_munmap() -> None:
    """What is mapped there next is not guarded."""
    world = faulted(8)
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(1), LEVEL_PTE)
    table.set(1, mk_softleaf(SOFTLEAF_MARKER, MARKER_GUARD))
    assert world.do("munmap", 1, 2) == 0
    world.mmap(1, 2)
    assert not is_guard(world.pte(1))
    world.write(1)


# ---- page tables


def test_tables_go_when_nothing_is_mapped() -> None:
    """All levels of the hole are freed."""
    world = World()
    world.mmap(0, 8)
    world.write(0)
    assert tables(world, 0) == [LEVEL_PTE, LEVEL_PMD, LEVEL_PUD]
    assert world.do("munmap", 0, 8) == 0
    assert world.mm().pgd.entries == {}


@pytest.mark.parametrize("neighbour", [7, 8])
def test_a_table_that_a_neighbour_uses_stays(neighbour: int) -> None:
    """Page 7 is in the same PTE table, page 8 only in the same upper ones."""
    world = World()
    world.mmap(0, 7)
    world.mmap(neighbour, 1)
    world.write(0)
    world.write(neighbour)
    token = world.content(neighbour)
    assert world.do("munmap", 0, 7) == 0
    assert world.content(neighbour) == token
    assert tables(world, 0) == ([LEVEL_PTE] if neighbour == 7 else []) + [LEVEL_PMD, LEVEL_PUD]
    check_all(world)


def test_tables_between_two_neighbours() -> None:
    """Unmapping the middle of a large mapping frees the tables that lie wholly in the hole, and no other."""
    world = World()
    world.mmap(0, 40)
    for page in range(40):
        world.write(page)
    before = world.contents()
    assert world.do("munmap", 4, 30) == 0
    assert [LEVEL_PTE in tables(world, page) for page in (0, 8, 16, 24, 32)] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert world.contents() == {page: before[page] for page in (*range(4), *range(34, 40))}
    check_all(world)


def test_a_big_sparse_mapping() -> None:
    """With real page tables: a gigabyte with three pages in it costs what those cost."""
    world = World("x86-64")
    world.mmap(0, 1 << 18)
    for page in (0, 70_000, (1 << 18) - 1):
        world.write(page)
    world.fork()
    assert world.content(70_000, 1) == world.content(70_000)
    assert world.do("munmap", 0, 1 << 18) == 0
    assert world.mm().pgd.entries == {}
    assert world.pte(70_000, 1) & PRESENT


RACES = {
    "reclaim": Op("reclaim", 0, (0,)),
    "migrate": Op("migrate", 0, (0,)),
    "read": Op("read", 0, (0,)),
    "write": Op("write", 0, (0, 1)),
    "pin": Op("gup_fast", 0, (0, 3, 1)),
    "get": Op("gup_fast", 0, (0, 0, 1)),
    "child_writes": Op("write", 1, (0, 1)),
    "child_exits": Op("exit", 1, ()),
}


def family() -> World:
    world = faulted(8)
    world.fork()
    return world


def huge_family() -> World:
    world = huge()
    world.fork()
    return world


def swapped() -> World:
    world = family()
    assert world.do("reclaim", 0) == 1
    assert world.do("read", 0, proc=1) == 0
    return world


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize(
    "zap",
    [
        ("munmap", (0, 8)),
        ("madvise", (0, 8, MADV_DONTNEED)),
        ("madvise", (0, 2, MADV_DONTNEED)),
        ("exit", ()),
    ],
)
@pytest.mark.parametrize("make", [family, huge_family, swapped])
def test_zap_beside(make: object, zap: tuple, race: str) -> None:  # type: ignore[type-arg]
    """An unmapping interrupted anywhere: every reference is accounted for, and no page is lost or freed too early."""
    assert callable(make)
    for world, _, where in every_cut(make, (Op(zap[0], 0, zap[1]), RACES[race])):
        check_all(world)
        for pin in world.machine.pins.values():
            assert not pin.folio.freed, where
