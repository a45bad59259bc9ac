"""try_to_unmap and try_to_migrate: what entries become, and which pages must stay."""

from __future__ import annotations

from emulator.hw.pte import (
    PRESENT,
    SOFTLEAF_MIGRATION_READ,
    SOFTLEAF_MIGRATION_READ_EXCLUSIVE,
    SOFTLEAF_MIGRATION_WRITE,
    SWP_EXCLUSIVE,
    is_migration,
    is_swap,
    softleaf_type,
    softleaf_value,
)
from emulator.mm_types import VM_LOCKED, Folio
from emulator.uapi import MAP_FIXED, MAP_SHARED, PROT_READ
from tests.emulator.kernel_world import RW, World
from tests.emulator.mm.world import PIN_RW, faulted, isolated, let_go, warnings
from tests.emulator.references import check_all


def locked_in_swap_cache(world: World, page: int, proc: int = 0) -> Folio:
    """The folio of a page, locked, with swap space, as reclaim has it before it unmaps."""
    folio = isolated(world, page, proc)
    assert world.image.swap_state.add_to_swap(world.machine, folio)
    return folio


def test_try_to_unmap_leaves_swap_entries() -> None:
    """Every process gets a swap entry; it says exclusive only where the page was."""
    world = faulted()
    world.write(1)
    world.fork()
    world.write(1, proc=1)
    for page, proc, exclusive in ((0, 0, False), (1, 1, True)):
        folio = locked_in_swap_cache(world, page, proc)
        world.image.rmap_unmap.try_to_unmap(folio)
        assert not folio.mapped()
        entry = world.pte(page, proc)
        assert is_swap(entry)
        assert softleaf_value(entry) == folio.swap
        assert bool(entry & SWP_EXCLUSIVE) is exclusive
        assert folio.anon_exclusive == 0
        assert folio.dirty
        let_go(world, folio)
    assert world.machine.swap.count == {1: 2, 2: 1}
    check_all(world)


def test_pinned_page_is_not_unmapped() -> None:
    """Its process must go on to see what the device writes: the entry is as before, the page still exclusive."""
    world = faulted()
    assert world.do("gup_slow", 0, PIN_RW, 0) == 0
    entry = world.pte(0)
    folio = locked_in_swap_cache(world, 0)
    world.image.rmap_unmap.try_to_unmap(folio)
    assert world.pte(0) == entry
    assert folio.mapped()
    assert folio.anon_exclusive == 1
    assert world.machine.swap.count == {folio.swap: 0}
    world.image.rmap_unmap.try_to_migrate(folio)
    assert world.pte(0) == entry
    assert folio.anon_exclusive == 1


def test_locked_memory_is_not_unmapped_for_reclaim() -> None:
    """mlock keeps pages in memory; migration may move them all the same."""
    world = faulted()
    world.vma(0).vm_flags |= VM_LOCKED
    folio = locked_in_swap_cache(world, 0)
    world.image.rmap_unmap.try_to_unmap(folio)
    assert world.pte(0) & PRESENT
    world.image.rmap_unmap.try_to_migrate(folio)
    assert is_migration(world.pte(0))


def test_unmapping_without_swap_space_warns() -> None:
    """Where should the contents go? The page stays."""
    world = faulted()
    folio = world.folio(0)
    folio.lock.lock()
    world.image.rmap_unmap.try_to_unmap(folio)
    assert warnings(world) == ["unmap-without-swap"]
    assert world.pte(0) & PRESENT


def test_file_page_is_just_unmapped() -> None:
    """It is in the page cache; a dirty entry makes it dirty."""
    world = World()
    world.mmap(0, 2, RW, MAP_SHARED | MAP_FIXED, 1)
    world.write(0)
    folio = world.folio(0)
    folio.dirty = False
    folio.lock.lock()
    world.image.rmap_unmap.try_to_unmap(folio)
    assert world.pte(0) == 0
    assert folio.dirty
    assert folio.refcount == 1
    folio.lock.unlock()
    check_all(world)


def test_try_to_migrate_remembers_what_the_entries_were() -> None:
    """Writable, exclusive but read-only, shared: three kinds of migration entry."""
    world = faulted()
    world.write(1)
    world.fork()
    world.write(2)
    world.write(3)
    world.do("mprotect", 3, 1, PROT_READ)
    kinds = {}
    for page in (0, 2, 3):
        folio = isolated(world, page)
        world.image.rmap_unmap.try_to_migrate(folio)
        kinds[page] = softleaf_type(world.pte(page))
        assert softleaf_value(world.pte(page)) == folio.pfn
        assert not folio.mapped()
    assert kinds == {
        0: SOFTLEAF_MIGRATION_READ,
        2: SOFTLEAF_MIGRATION_WRITE,
        3: SOFTLEAF_MIGRATION_READ_EXCLUSIVE,
    }
    assert softleaf_type(world.pte(0, 1)) == SOFTLEAF_MIGRATION_READ


def test_migrating_a_writable_page_that_is_not_exclusive_warns() -> None:
    """Somebody let two processes write to one page."""
    world = faulted()
    folio = isolated(world, 0)
    folio.anon_exclusive = 0
    world.image.rmap_unmap.try_to_migrate(folio)
    assert warnings(world) == ["writable-not-exclusive"]
