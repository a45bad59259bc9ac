"""PG_mlocked: which folios reclaim may not look at, when the mark is set, and how it can outlive the lock."""

from __future__ import annotations

import pytest

from emulator.hw.pte import is_swap
from emulator.uapi import (
    MADV_COLLAPSE,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_PAGEOUT,
    MAP_FIXED,
    MAP_SHARED,
    MCL_FUTURE,
    MLOCK_ONFAULT,
    MREMAP_DONTUNMAP,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from tests.emulator.kernel_world import RW, World
from tests.emulator.mm.world import huge
from tests.emulator.references import check_all

PAGE = 1


def written() -> World:
    """Four pages, the second of them written."""
    world = World()
    world.mmap(0, 4)
    world.write(PAGE)
    return world


def left_marked() -> World:
    """A page that is marked in a VMA that is not locked: DONTUNMAP of another part has unlocked it."""
    world = World()
    world.mmap(PAGE, 1)
    assert world.do("mlock", PAGE, 1) == 0
    assert world.do("mremap", PAGE, 1, 2, 0, 0) == PAGE
    assert world.do("mremap", PAGE, 1, 1, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0) >= 0
    assert world.folio(PAGE + 1).mlocked
    return world


@pytest.mark.live
def test_locking_marks_what_is_there_and_unlocking_takes_the_mark() -> None:
    world = written()
    assert world.do("mlock2", 0, 4, MLOCK_ONFAULT) == 0
    assert world.folio(PAGE).mlocked
    assert world.do("munlock", 0, 4) == 0
    assert not world.folio(PAGE).mlocked
    assert not world.folio(PAGE).unevictable
    check_all(world)


@pytest.mark.live
@pytest.mark.parametrize("flags", [0, MLOCK_ONFAULT])
def test_what_is_faulted_in_later_is_marked_too(flags: int) -> None:
    """Anonymous pages, and copies that a write to a page of zeros makes."""
    world = World()
    world.mmap(0, 4)
    assert world.do("mlock2", 0, 4, flags) == 0
    assert world.do("read", 1) == 0
    world.write(1)
    world.write(2)
    assert [world.folio(page).mlocked for page in (1, 2)] == [True, True]
    check_all(world)


@pytest.mark.live
def test_locking_more_lightly_does_not_count_twice() -> None:
    """From mlock to mlock2 with ONFAULT the VMA stays locked; one munlock is enough."""
    world = written()
    assert world.do("mlock", 0, 4) == 0
    assert world.do("mlock2", 0, 4, MLOCK_ONFAULT) == 0
    assert world.folio(PAGE).mlock_count == 1
    assert world.do("munlock", 0, 4) == 0
    assert not world.folio(PAGE).mlocked


@pytest.mark.live
@pytest.mark.parametrize("first", [0, 1])
def test_two_processes_lock_one_page(first: int) -> None:
    """It is evictable when the second has unlocked it, or has gone."""
    world = written()
    assert world.do("mprotect", 0, 4, PROT_READ) == 0
    world.fork()
    assert not world.folio(PAGE).mlocked
    for proc in (0, 1):
        assert world.do("mlock", 0, 4, proc=proc) == 0
    folio = world.folio(PAGE)
    assert folio.mlock_count == 2
    assert world.do("munlock", 0, 4, proc=first) == 0
    assert folio.mlocked
    assert world.do("munmap", 0, 4, proc=1 - first) == 0
    assert not folio.mlocked
    check_all(world)


@pytest.mark.live
def test_reclaim_passes_over_a_mark_that_is_left() -> None:
    """MREMAP_DONTUNMAP takes VM_LOCKED from its source without a walk (mm/mremap.c, dontunmap_complete)."""
    world = left_marked()
    assert world.do("madvise", PAGE + 1, 1, MADV_PAGEOUT) == 0
    assert not is_swap(world.pte(PAGE + 1))
    assert world.folio(PAGE + 1).mlocked
    assert world.do("munmap", PAGE + 1, 1) == 0
    check_all(world)


@pytest.mark.live
@pytest.mark.parametrize(("isolated", "left"), [(False, True), (True, False)])
def test_isolation_forgets_how_often_a_page_is_locked(isolated: bool, left: bool) -> None:
    """A mark that was left and one of today are two; when reclaim has had the folio in hand, one munlock takes it."""
    world = left_marked()
    if isolated:
        assert world.do("madvise", PAGE + 1, 1, MADV_PAGEOUT) == 0
        assert world.folio(PAGE + 1).unevictable
    assert world.do("mlock2", PAGE + 1, 1, MLOCK_ONFAULT) == 0
    assert world.do("munlock", PAGE + 1, 1) == 0
    assert world.folio(PAGE + 1).mlocked is left
    assert world.do("madvise", PAGE + 1, 1, MADV_PAGEOUT) == 0
    assert is_swap(world.pte(PAGE + 1)) is not left
    check_all(world)


@pytest.mark.live
def test_free_does_not_give_up_what_is_marked() -> None:
    """An unevictable folio stays backed by swap (mm/swap.c, lru_lazyfree)."""
    world = left_marked()
    assert world.do("madvise", PAGE + 1, 1, MADV_FREE) == 0
    assert world.folio(PAGE + 1).swapbacked
    check_all(world)


@pytest.mark.live
def test_a_page_of_shared_memory_that_another_process_has_locked() -> None:
    """Only who maps it alone may page it out, so the lock is in the way when the other has unmapped it, and is not."""
    world = World()
    world.mmap(0, 2, RW, MAP_SHARED | MAP_FIXED)
    world.write(0)
    world.fork()
    assert world.do("mlock", 0, 2, proc=1) == 0
    folio = world.folio(0, 1)
    assert folio.mlocked
    assert world.do("munmap", 0, 2, proc=1) == 0
    assert not folio.mlocked
    assert world.do("madvise", 0, 1, MADV_PAGEOUT) == 0
    assert world.pte(0) == 0
    check_all(world)


def test_reclaim_marks_what_it_finds_locked_and_gives_its_swap_back() -> None:
    """A page that was missed, as one from swap, is marked by try_to_unmap_one; activate_locked frees its slot."""
    world = written()
    assert world.do("reclaim", PAGE) == 1
    assert world.do("mlock2", 0, 4, MLOCK_ONFAULT) == 0
    assert world.do("read", PAGE) == 0
    folio = world.folio(PAGE)
    folio.mlocked = folio.unevictable = False
    assert world.do("reclaim", PAGE) == 0
    assert world.folio(PAGE) is folio
    assert folio.mlocked
    assert not folio.swapcache
    assert not world.machine.swap.count
    check_all(world)


def test_migration_takes_the_mark_along_with_the_mappings() -> None:
    """The old folio loses it with its last mapping, the new one gets it with its first."""
    world = written()
    assert world.do("mlock", 0, 4) == 0
    old = world.folio(PAGE)
    assert world.do("migrate", PAGE) == 1
    new = world.folio(PAGE)
    assert (old.mlocked, new.mlocked, new.mlock_count) == (False, True, 1)
    assert world.do("munlock", 0, 4) == 0
    assert not new.mlocked
    check_all(world)


# ---- large folios


def test_a_huge_page_is_marked_as_a_whole() -> None:
    world = huge()
    assert world.do("mlock2", 0, 8, MLOCK_ONFAULT) == 0
    assert world.folio(0).mlocked
    assert world.do("munlock", 0, 8) == 0
    assert not world.folio(0).mlocked
    check_all(world)


def test_a_part_of_a_large_folio_is_not_marked_and_unlocking_a_part_takes_the_mark() -> None:
    """The VMA is split, and the huge page with it; locking wants a folio whole (allow_mlock_munlock)."""
    world = huge()
    assert world.do("mlock2", 0, 4, MLOCK_ONFAULT) == 0
    assert world.folio(0).order
    assert not world.folio(0).mlocked
    assert world.do("mlock2", 4, 4, MLOCK_ONFAULT) == 0
    assert not world.folio(0).mlocked
    assert world.do("munlock", 0, 8) == 0
    assert world.do("mlock2", 0, 8, MLOCK_ONFAULT) == 0
    assert world.folio(0).mlocked
    assert world.do("munlock", 6, 2) == 0
    assert not world.folio(0).mlocked
    check_all(world)


@pytest.mark.live
def test_large_folios_as_the_running_kernel_marks_them() -> None:
    """The same in 512 pages, and beyond: fault, collapse, split."""
    world = World("x86-64")
    world.mmap(0, 1024)
    assert world.do("madvise", 0, 1024, MADV_HUGEPAGE) == 0
    world.write(3)
    assert world.do("mlock2", 0, 512, MLOCK_ONFAULT) == 0
    assert world.do("munlock", 100, 1) == 0
    assert world.do("mlock2", 100, 1, MLOCK_ONFAULT) == 0
    assert world.do("munlock", 0, 512) == 0
    assert world.do("mlock2", 512, 512, MLOCK_ONFAULT) == 0
    world.write(600)
    assert world.folio(600).mlocked
    assert world.do("munmap", 512, 1) == 0
    assert not world.folio(600).mlocked
    world.mmap(2048, 512)
    world.write(2050)
    assert world.do("mlock2", 2048, 512, MLOCK_ONFAULT) == 0
    assert world.do("madvise", 2048, 512, MADV_COLLAPSE) == 0
    assert world.folio(2050).order
    assert world.folio(2050).mlocked
    check_all(world)


# ---- the batch


@pytest.mark.live
def test_what_was_unmapped_in_locked_memory_looks_used_until_the_batch_is_emptied() -> None:
    """Of two equal pages that a child maps too, three places are merged in the second scan, the fourth in the third."""
    world = World()
    assert world.do("mlockall", MCL_FUTURE) == 0
    world.mmap(0, 2)
    assert world.do("madvise", 0, 2, MADV_MERGEABLE) == 0
    world.fork()
    assert [world.do("ksm_scan", 0) for _ in range(4)] == [0, 3, 1, 0]
    check_all(world)


def test_a_full_batch_is_emptied() -> None:
    """31 small folios, or one that is large."""
    world = World()
    world.mmap(0, 40)
    for page in range(40):
        world.write(page)
    folios = [world.folio(page) for page in range(40)]
    add = world.image.mlock_folio.mlock_folio
    for folio in folios[:30]:
        add(world.machine, folio)
    assert [folio.refcount for folio in folios[:30]] == [2] * 30
    assert not folios[0].unevictable
    add(world.machine, folios[30])
    assert not world.machine.mlock_fbatch
    assert all(folio.unevictable and folio.refcount == 1 for folio in folios[:31])
