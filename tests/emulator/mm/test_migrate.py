"""Migration: contents, sharing and exclusivity move with the page, and whoever meets it half way is none the wiser."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.hw.pte import DIRTY, PRESENT, SOFT_DIRTY, is_migration
from emulator.hw.pte import RW as PTE_RW
from emulator.uapi import (
    MADV_DONTNEED,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE, Op, Switch
from tests.emulator.kernel_world import RW, World
from tests.emulator.populated import forked, huge, written
from tests.emulator.references import TO_THE_END, check_all, every_cut, every_two_cuts

# ---- one folio


@pytest.mark.parametrize("fork", [False, True])
def test_the_page_moves(fork: bool) -> None:
    """Another frame, the same contents, permissions and sharing; the old frame is freed."""
    world = written(fork=fork)
    old, before, entry = world.folio(1), world.content(1), world.pte(1)
    assert world.do("migrate", 1) == 1
    new = world.folio(1)
    assert new is not old
    assert old.freed
    assert world.content(1) == before
    assert world.pte(1) & PTE_RW == entry & PTE_RW
    assert new.anon_exclusive == (0 if fork else 1)
    assert (new.mapping, new.index) == (old.mapping, old.index)
    if fork:
        assert world.folio(1, proc=1) is new
    check_all(world)
    token = world.write(1, 2)
    assert world.content(1, 0) == {**(before or {}), 2: token}
    if fork:
        assert world.content(1, proc=1) == before
    check_all(world)


def test_a_read_only_exclusive_page_stays_exclusive() -> None:
    """mprotect made the entry read-only; the mark that it may be reused travels in the entry."""
    world = written()
    assert world.do("mprotect", 0, 4, PROT_READ) == 0
    assert world.do("migrate", 1) == 1
    assert not world.pte(1) & PTE_RW
    assert world.folio(1).anon_exclusive == 1
    assert world.do("mprotect", 0, 4, RW) == 0
    folio = world.folio(1)
    world.write(1, 1)
    assert world.folio(1) is folio
    check_all(world)


def test_soft_dirty_is_kept() -> None:
    """The soft-dirty bit goes through the migration entry."""
    world = written()
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(1), 0)
    table.set(1, world.pte(1) | SOFT_DIRTY)
    assert world.do("migrate", 1) == 1
    assert world.pte(1) & SOFT_DIRTY
    assert world.do("migrate", 2) == 1
    assert not world.pte(2) & SOFT_DIRTY


@pytest.mark.parametrize("page", [5, 9])
def test_nothing_to_migrate(page: int) -> None:
    """An unmapped place, and the zero page."""
    world = written()
    world.mmap(5, 1)
    assert world.do("read", 5) == 0
    assert world.do("migrate", page) == 0
    check_all(world)


@pytest.mark.parametrize("flags", [FOLL_PIN, FOLL_PIN | FOLL_WRITE, 0, FOLL_WRITE])
def test_a_page_in_use_stays(flags: int) -> None:
    """Pins and references alike: the mappings come back as they were; that it is dirty the folio knows by now."""
    world = written()
    folio, entry = world.folio(1), world.pte(1)
    assert world.do("gup_fast", 1, flags, 0) == 0
    assert world.do("migrate", 1) == 0
    assert world.folio(1) is folio
    assert world.pte(1) | DIRTY == entry
    assert world.pte(1) & DIRTY or folio.dirty
    assert folio.anon_exclusive == 1
    check_all(world)


def test_out_of_memory() -> None:
    """Without a page to move to nothing happens."""
    world = written()
    entry = world.pte(1)
    assert world.do("migrate", 1, fail_nth=1) == 0
    assert world.last.injected
    assert world.pte(1) == entry
    check_all(world)


def test_a_page_in_the_swap_cache() -> None:
    """The cache finds the new folio; a process that still holds the swap entry reads from it."""
    world = forked()
    assert world.do("reclaim", 1) == 1
    assert world.do("read", 1) == 0
    old, before = world.folio(1), world.content(1)
    assert old.swapcache
    assert world.do("migrate", 1) == 1
    new = world.folio(1)
    assert old.freed
    assert new.swapcache
    check_all(world)
    assert world.do("read", 1, proc=1) == 0
    assert world.folio(1, proc=1) is new
    assert world.content(1, proc=1) == before
    check_all(world)


def test_a_dirty_page_stays_dirty() -> None:
    """Else the next reclaim would drop what was never written."""
    world = written()
    assert world.do("reclaim", 1) == 1
    world.write(1, 1)
    assert world.do("migrate", 1) == 1
    assert world.folio(1).dirty
    assert world.do("reclaim", 1) == 1
    assert sorted(world.content(1) or {}) == [0, 1]
    check_all(world)


def test_file_pages() -> None:
    """The page cache gets the new folio, as do all processes; a later fault finds it."""
    world = World()
    world.mmap(0, 2, flags=MAP_SHARED | MAP_FIXED, file=1)
    world.write(0, 2)
    world.fork(1)
    assert world.do("read", 0, proc=1) == 0
    old, before = world.folio(0), world.content(0)
    assert world.do("migrate", 0) == 1
    new = world.folio(0)
    assert old.freed
    assert world.folio(0, proc=1) is new
    assert world.machine.files[0].f_mapping.pages[0] is new
    assert world.content(0) == before
    check_all(world)
    world.mmap(4, 2, flags=MAP_SHARED | MAP_FIXED, file=1)
    assert world.do("read", 4) == 0
    assert world.folio(4) is new
    check_all(world)


# ---- huge pages


def test_a_huge_page_moves_whole() -> None:
    """It stays one folio, mapped by PTEs afterwards."""
    world = huge()
    old, before = world.folio(0), world.contents()
    assert world.do("migrate", 5) == 1
    new = world.folio(0)
    assert old.freed
    assert new.order == 3
    assert all(world.folio(page) is new for page in range(8))
    assert new.anon_exclusive == 0xFF
    assert world.contents() == before
    check_all(world)


def test_no_memory_for_a_huge_page() -> None:
    """Then it is split, and its pages move."""
    world = huge()
    before = world.contents()
    frames = {world.folio(0).pfn + i for i in range(8)}
    assert world.do("migrate", 5, fail_nth=1) == 1
    assert world.last.injected
    assert all(world.folio(page).order == 0 for page in range(8))
    assert not frames & {world.folio(page).pfn for page in range(8)}
    assert world.contents() == before
    check_all(world)


def test_a_partly_mapped_huge_page_is_split() -> None:
    """Only what is mapped moves, the rest is freed."""
    world = huge()
    assert world.do("munmap", 0, 3) == 0
    before = world.contents()
    assert world.do("migrate", 5) == 1
    assert all(world.folio(page).order == 0 for page in range(3, 8))
    assert world.contents() == before
    check_all(world)


def test_a_pinned_huge_page_stays() -> None:
    """Its PMD is split on the way, and all its pages are mapped and exclusive again."""
    world = huge()
    folio, before = world.folio(0), world.contents()
    assert world.do("gup_fast", 3, FOLL_PIN | FOLL_WRITE, 0) == 0
    assert world.do("migrate", 0) == 0
    assert all(world.folio(page) is folio for page in range(8))
    assert folio.anon_exclusive == 0xFF
    assert world.contents() == before
    check_all(world)


# ---- beside something else

BESIDE = {
    "read": Op("read", 0, (1,)),
    "write": Op("write", 0, (1, 3)),
    "fork": Op("fork", 0, (2,)),
    "munmap": Op("munmap", 0, (0, 4)),
    "dontneed": Op("madvise", 0, (0, 4, MADV_DONTNEED)),
    "read-only": Op("mprotect", 0, (0, 4, PROT_READ)),
    "move": Op("mremap", 0, (0, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, 20)),
    "shift": Op("mremap", 0, (0, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, 21)),
    "reclaim": Op("reclaim", 0, (1,)),
    "migrate": Op("migrate", 0, (1,)),
    "exit": Op("exit", 0, ()),
    "child-write": Op("write", 1, (1, 3)),
    "child-munmap": Op("munmap", 1, (1, 1)),
    "child-exit": Op("exit", 1, ()),
    "child-get": Op("gup_fast", 1, (1, 0, 0)),
}
MOVED = {"move": 20, "shift": 21}


def check_contents(
    world: World, before: dict[int, dict[int, int]], beside: str, where: str, pages: int = 4
) -> None:
    """Pages of the first process hold what they should, and no migration entry is left."""
    for mm in world.machine.procs.values():
        assert not any(is_migration(entry) for _, level, entry in mm.pgd.leaves(world.machine.geometry)), (
            where
        )
    if beside == "exit":
        return
    for page in range(pages):
        content = world.content(page + MOVED.get(beside, 0))
        if beside == "munmap" and page < 4:
            assert content is None, where
        elif beside == "dontneed" and page < 4:
            assert content == {}, where
        elif beside == "write" and page == 1:
            assert content is not None, where
            assert {k: v for k, v in content.items() if k != 3} == before[1], where
            assert 3 in content, where
        else:
            assert content == before[page], where


@pytest.mark.parametrize(
    ("beside", "make"),
    [
        (beside, make)
        for beside, op in BESIDE.items()
        for make in (written, forked)
        if make is forked or not op.proc
    ],
)
def test_migrate_beside(beside: str, make: Callable[[], World]) -> None:
    """Wherever the two meet: nothing is lost, mixed up, leaked or left as a migration entry."""
    before = make().contents()
    for world, _, where in every_cut(make, (Op("migrate", 0, (1,)), BESIDE[beside])):
        check_all(world)
        check_contents(world, before, beside, where)
        if beside == "read-only":
            assert world.do("write", 1, 0) < 0, where
        if 1 in world.machine.procs and beside != "child-munmap":
            child = world.content(1, proc=1)
            assert child is not None, where
            assert child[0] == before[1][0], where
            assert len(child) == (2 if beside == "child-write" else 1), where


@pytest.mark.parametrize(
    "beside", ["write", "fork", "munmap", "move", "reclaim", "child-write", "child-exit"]
)
def test_migrate_beside_with_two_cuts(beside: str) -> None:
    """As above where both are interrupted, in a forked world."""
    before = forked().contents()
    for world, _, where in every_two_cuts(forked, (Op("migrate", 0, (1,)), BESIDE[beside]), step=2):
        check_all(world)
        check_contents(world, before, beside, where)


@pytest.mark.parametrize("beside", ["write", "fork", "munmap", "dontneed", "reclaim"])
def test_huge_migrate_beside(beside: str) -> None:
    """As above with a huge page."""
    before = huge().contents()
    for world, _, where in every_cut(huge, (Op("migrate", 0, (1,)), BESIDE[beside])):
        check_all(world)
        check_contents(world, before, beside, where, pages=8)


def test_a_reader_waits_for_the_copy() -> None:
    """A fault on the migration entry ends when the copy is mapped, and reads from there."""
    world = written()
    before = world.content(1)
    ops = (Op("read", 0, (1,)), Op("migrate", 0, (1,)))
    outcomes = world.collide(ops, (Switch(1, "migrate.copied", 1), Switch(0, "", TO_THE_END)))
    assert outcomes[1].ret == 1
    assert dict(outcomes[0].data or ()) == before
    names = [name for op, name in world.machine.sched.trace if op == 0]
    assert "fault.begin" in names
    assert world.pte(1) & PRESENT
    check_all(world)


def test_somebody_finds_the_folio_in_the_swap_cache() -> None:
    """While it is copied, another process takes a reference by its swap entry: the migration gives up, undone."""
    world = forked()
    assert world.do("reclaim", 1) == 1
    assert world.do("read", 1) == 0
    old, before = world.folio(1), world.content(1)
    ops = (Op("migrate", 0, (1,)), Op("read", 1, (1,)))
    outcomes = world.collide(ops, (Switch(0, "migrate.copied", 1), Switch(1, "", TO_THE_END)))
    assert [o.ret for o in outcomes] == [0, 0]
    assert dict(outcomes[1].data or ()) == before
    assert world.folio(1) is world.folio(1, proc=1) is old
    check_all(world)


def test_mprotect_meets_the_entry() -> None:
    """Write permission taken from a migration entry does not come back with the page."""
    world = written()
    ops = (Op("migrate", 0, (1,)), Op("mprotect", 0, (0, 4, PROT_READ)))
    outcomes = world.collide(ops, (Switch(0, "migrate.unmapped", 1), Switch(1, "", TO_THE_END)))
    assert [o.ret for o in outcomes] == [1, 0]
    assert not world.pte(1) & PTE_RW
    assert world.folio(1).anon_exclusive == 1
    check_all(world)


def test_fork_meets_the_entry() -> None:
    """Both processes get the copy, read-only and not exclusive."""
    world = written()
    ops = (Op("migrate", 0, (1,)), Op("fork", 0, (1,)))
    outcomes = world.collide(ops, (Switch(0, "migrate.unmapped", 1), Switch(1, "", TO_THE_END)))
    assert [o.ret for o in outcomes] == [1, 0]
    folio = world.folio(1)
    assert world.folio(1, proc=1) is folio
    assert not (world.pte(1) | world.pte(1, proc=1)) & PTE_RW
    assert folio.anon_exclusive == 0
    check_all(world)
