"""Walks from a folio to the places that map it: what they visit, what they need, what they find wrong."""

from __future__ import annotations

import pytest

from emulator.errors import KernelBug
from emulator.mm_types import Folio, VmAreaStruct
from emulator.sched.scheduler import Task
from emulator.uapi import MAP_FIXED, MAP_SHARED, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ
from emulator.workload import Switch
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World
from tests.emulator.mm.world import anon_vma_of, faulted, huge, isolated


def walk(world: World, folio: Folio) -> list[tuple[int, int]]:
    """(process, page) of each visit of an rmap walk."""
    visits: list[tuple[int, int]] = []

    def visit(_: Folio, vma: VmAreaStruct, address: int) -> bool:
        visits.append((vma.vm_mm.label, world.page(address)))
        return True

    folio.lock.lock()
    world.image.rmap.rmap_walk(folio, visit)
    folio.lock.unlock()
    return visits


def test_walk_visits_the_family() -> None:
    """A page that was shared before the fork is looked for in parent and child, in tree order."""
    world = faulted()
    world.fork()
    assert walk(world, world.folio(0)) == [(0, 0), (1, 0)]


def test_walk_of_a_childs_own_page_stays_with_the_child() -> None:
    """What a child wrote hangs at the child's anon_vma: the parent is not visited."""
    world = faulted()
    world.fork()
    world.write(0, proc=1)
    assert walk(world, world.folio(0, 1)) == [(1, 0)]


def test_walk_visits_only_what_covers_the_page() -> None:
    """After a split the VMA without the page is left out."""
    world = faulted()
    world.write(3)
    world.do("mprotect", 2, 2, PROT_READ)
    assert anon_vma_of(world, 3) is anon_vma_of(world, 0)
    assert walk(world, world.folio(3)) == [(0, 3)]


def test_walk_follows_a_move() -> None:
    """A moved VMA keeps its page offset, so the walk finds the new place."""
    world = faulted()
    assert world.do("mremap", 0, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, 20) == 20
    assert walk(world, world.folio(20)) == [(0, 20)]


def test_walk_ends_when_the_visitor_says_so() -> None:
    """False ends it."""
    world = faulted()
    world.fork()
    folio = world.folio(0)
    seen: list[int] = []

    def visit(_: Folio, vma: VmAreaStruct, address: int) -> bool:
        seen.append(vma.vm_mm.label)
        return False

    folio.lock.lock()
    world.image.rmap.rmap_walk(folio, visit)
    assert seen == [0]
    assert anon_vma_of(world, 0).rwsem.readers == []


def test_walk_of_a_file_page() -> None:
    """Every mapping of the file that covers the page, in any process, and no other."""
    world = World()
    world.mmap(0, 4, RW, MAP_SHARED | MAP_FIXED, 1)
    world.mmap(10, 2, RW, PRIVATE_FIXED, 1)
    assert world.do("read", 1) == 0
    world.fork()
    assert walk(world, world.folio(1)) == [(0, 1), (1, 1), (0, 11), (1, 11)]  # a copy behind its original
    assert world.do("read", 3) == 0
    assert walk(world, world.folio(3)) == [(0, 3), (1, 3)]


def test_walk_needs_the_folio_lock() -> None:
    """Without it the mapping could change under the walk."""
    world = faulted()
    with pytest.raises(KernelBug, match="folio-not-locked"):
        world.image.rmap.rmap_walk(world.folio(0), lambda *_: True)


@pytest.mark.parametrize("mapped_only", [True, False])
def test_walk_from_a_freed_anon_vma(mapped_only: bool) -> None:
    """A mapped folio whose anon_vma is gone: the use after free that a wrong merge leads to."""
    world = faulted()
    folio = world.folio(0)
    folio.lock.lock()
    anon_vma_of(world, 0).freed = True
    with pytest.raises(KernelBug, match="use-after-free"):
        world.image.rmap.rmap_walk(folio, lambda *_: True, mapped_only=mapped_only)


def test_walk_that_meets_a_vma_without_the_page() -> None:
    """A VMA in the tree under a range that it does not have any more."""
    world = faulted()
    folio = world.folio(0)
    folio.lock.lock()
    world.vma(0).vm_pgoff += 8
    with pytest.raises(KernelBug, match="rmap-address"):
        world.image.rmap.rmap_walk(folio, lambda *_: True)


def test_unmapped_folio_has_no_anon_vma_to_give() -> None:
    """Once it is not mapped, nothing keeps its anon_vma: neither the reference nor the lock is given."""
    world = faulted()
    assert world.do("gup_slow", 0, 0, 0) == 0
    folio = world.machine.pins[0].folio
    assert world.do("munmap", 0, 4) == 0
    folio.lock.lock()
    assert world.image.rmap.folio_get_anon_vma(folio) is None
    assert world.image.rmap.folio_lock_anon_vma_read(folio) is None
    world.image.rmap.rmap_walk(folio, lambda *_: True, mapped_only=True)


def test_anon_vma_lock_is_waited_for() -> None:
    """A walker that finds the lock taken keeps the anon_vma alive while it waits."""
    world = faulted()
    sched = world.machine.sched
    folio, anon_vma = world.folio(0), anon_vma_of(world, 0)
    seen: list[int] = []

    def writer() -> None:
        world.image.rmap.anon_vma_lock_write(anon_vma)
        sched.point("held")
        seen.append(anon_vma.refcount)
        world.image.rmap.anon_vma_unlock_write(anon_vma)

    def reader() -> None:
        folio.lock.lock()
        got = world.image.rmap.folio_lock_anon_vma_read(folio)
        assert got is anon_vma
        world.image.rmap.anon_vma_unlock_read(anon_vma)

    sched.run_collision([Task(0, 0), Task(1, 1)], [writer, reader], [Switch(0, "held", 1), Switch(1, "", 1)])
    assert seen == [2]
    assert anon_vma.refcount == 1


# ---- the page-table half of a walk


def test_mapped_walk_holds_the_lock_of_each_table() -> None:
    """Each entry is given under its table's lock, and none is held afterwards."""
    world = huge(16)
    world.do("mremap", 0, 8, 8, MREMAP_MAYMOVE | MREMAP_FIXED, 20)  # across a table boundary, by PTEs
    folio, vma = world.folio(20), world.vma(20)
    seen = []
    tables = []
    for table, slot, address, entry in world.image.page_vma_mapped.page_vma_mapped_walk(
        folio, vma, world.address(20)
    ):
        assert table.ptl.owner is world.machine.sched.current
        assert table.get(slot) == entry
        seen.append(world.page(address))
        tables.append(table)
    assert seen == list(range(20, 28))
    assert len({id(table) for table in tables}) == 2
    assert all(table.ptl.owner is None for table in tables)


def test_waiting_walker_finds_the_anon_vma_gone() -> None:
    """The VMA is unmapped while a walker waits for the lock: the walker's reference was the last, nothing is walked."""
    world = faulted()
    sched = world.machine.sched
    rmap = world.image.rmap
    folio, anon_vma = isolated(world, 0), anon_vma_of(world, 0)
    folio.lock.owner = None

    def unmap() -> None:
        rmap.anon_vma_lock_write(anon_vma)
        sched.point("held")
        rmap.anon_vma_unlock_write(anon_vma)
        assert world.image.munmap.do_munmap(world.mm(), world.address(0), 4 << 12) == 0

    def walk_it() -> None:
        folio.lock.lock()
        visits: list[VmAreaStruct] = []

        def visit(_: Folio, vma: VmAreaStruct, address: int) -> bool:
            visits.append(vma)
            return True

        rmap.rmap_walk(folio, visit, mapped_only=True)
        assert visits == []
        folio.lock.unlock()

    sched.run_collision([Task(0, 0), Task(1, 1)], [unmap, walk_it], [Switch(0, "held", 1), Switch(1, "", 1)])
    assert anon_vma.freed
    assert world.machine.anon_vmas_live == {}


def test_walks_that_have_nothing_to_walk() -> None:
    """A folio of neither kind: a free walk is empty, and one under the caller's lock is a mistake."""
    world = faulted()
    folio = world.machine.phys.alloc(0)
    folio.lock.lock()
    world.image.rmap.rmap_walk(folio, lambda *_: False)
    world.image.rmap.rmap_walk_locked(folio, lambda *_: False)
    folio.anon = True
    world.image.rmap.rmap_walk(folio, lambda *_: False)
    with pytest.raises(KernelBug, match="no-anon-vma"):
        world.image.rmap.rmap_walk_locked(folio, lambda *_: False)


def test_file_walk_under_the_callers_lock() -> None:
    """The same visits, and no lock taken a second time."""
    world = World()
    world.mmap(0, 2, RW, MAP_SHARED | MAP_FIXED, 1)
    world.write(1)
    folio = isolated(world, 1)
    mapping = world.machine.files[0].f_mapping
    mapping.i_mmap_rwsem.down_write()
    world.image.rmap_unmap.try_to_unmap(folio, locked=True)
    mapping.i_mmap_rwsem.up_write()
    assert not folio.mapped()
    assert world.pte(1) == 0


@pytest.mark.parametrize("present", [True, False])
def test_mapped_walk_tells_present_from_migration(present: bool) -> None:
    """It looks for one of the two, and for this folio alone."""
    world = faulted()
    world.write(1)
    folio = world.folio(0)
    if not present:
        isolated(world, 0)
        world.image.rmap_unmap.try_to_migrate(folio)
    walker = world.image.page_vma_mapped.page_vma_mapped_walk
    found = {
        migration: [
            slot for _, slot, _, _ in walker(folio, world.vma(0), world.address(0), migration=migration)
        ]
        for migration in (False, True)
    }
    assert found == {not present: [0], present: []}


def test_mapped_walk_steps_over_missing_tables() -> None:
    """Nothing is mapped there: nothing is found, at any level."""
    world = faulted()
    folio, vma = world.folio(0), world.vma(0)
    world.mmap(64, 8)
    other = world.vma(64)
    other.vm_pgoff = vma.vm_pgoff
    walker = world.image.page_vma_mapped.page_vma_mapped_walk
    assert list(walker(folio, other, other.vm_start)) == []
    assert world.do("read", 65) == 0
    assert list(walker(folio, other, other.vm_start)) == []
    assert list(walker(folio, other, other.vm_start, sync=True)) == []
