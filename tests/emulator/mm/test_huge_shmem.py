"""Huge pages of files of memory: unmapped, moved, forked, punched, swapped out, migrated, mapped by PTEs.

A huge page has 512 pages in the worlds that are compared with the running kernel.
"""

from __future__ import annotations

import pytest

from emulator.geometry import LEVEL_PMD, PAGE_SHIFT
from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import RW as PTE_RW
from emulator.mm_types import VmAreaStruct
from emulator.uapi import (
    EINVAL,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_REMOVE,
    MAP_NORESERVE,
    PROT_READ,
    SIGBUS,
    UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP,
)
from emulator.workload import FOLL_PIN
from tests.emulator.kernel_world import RW, World, profile_with
from tests.emulator.mm.test_khugepaged_shmem import (
    MEMORY,
    MOVE,
    PRIVATE,
    SHARED,
    both,
    collapse,
    collapsed,
    load,
    mapping_of,
    memfd,
    orders,
    shared,
    size,
)
from tests.emulator.mm.world import is_huge
from tests.emulator.references import check_all


@both
def test_unmapping_a_part_clears_the_entry(geometry: str) -> None:
    """The folio stays huge in the page cache; faults map it by PTEs where the VMA does not hold all of it."""
    world = collapsed(geometry)
    nr = size(world)
    folio = world.folio(0)
    before = load(world, 1)
    assert world.do("munmap", nr - 1, 1) == 0
    assert not world.pte(0)
    assert load(world, 1) == before
    assert not is_huge(world, 1)
    assert mapping_of(world, 0).pages[nr - 1] is folio
    check_all(world)


@both
def test_a_huge_entry_moves_whole_and_in_parts_not_at_all(geometry: str) -> None:
    world = collapsed(geometry, 2)
    nr = size(world)
    before = load(world, 1), load(world, nr + 1)
    assert world.do("mremap", 0, nr, nr, MOVE, 4 * nr) == 4 * nr
    assert is_huge(world, 4 * nr)
    assert world.do("mremap", nr, nr - 1, nr - 1, MOVE, 6 * nr) == 6 * nr
    assert not world.pte(6 * nr)
    assert (load(world, 4 * nr + 1), load(world, 6 * nr + 1)) == before
    check_all(world)


@both
def test_protection_of_the_whole_and_of_a_part(geometry: str) -> None:
    world = collapsed(geometry)
    nr = size(world)
    assert world.do("mprotect", 0, nr, PROT_READ) == 0
    assert is_huge(world, 0)
    assert not world.pte(0) & PTE_RW
    assert world.do("mprotect", 0, nr, RW) == 0
    world.write(2)
    assert is_huge(world, 0)
    assert world.do("mprotect", 1, 1, PROT_READ) == 0
    assert not world.pte(0)
    world.write(3)
    assert not is_huge(world, 3)
    check_all(world)


@both
def test_fork_copies_nothing(geometry: str) -> None:
    world = collapsed(geometry)
    world.fork()
    assert is_huge(world, 0)
    assert not world.pte(0, 1)
    world.write(5, proc=1)
    assert is_huge(world, 0, 1)
    assert load(world, 5) == load(world, 5, 1)
    check_all(world)


@pytest.mark.live
def test_fork_copies_nothing_of_a_private_mapping_either() -> None:
    """One that is faulted has its page tables copied, save where a PMD maps the file."""
    world = World("x86-64")
    world.mmap(0, 512, RW, PRIVATE, MEMORY)
    world.write(3)
    assert world.do("madvise", 3, 1, MADV_DONTNEED) == 0
    assert world.do("read", 0) == 0
    assert collapse(world, 0, 512) == 0
    world.fork()
    assert world.do("read", 0, proc=1) == 0
    assert is_huge(world, 0, 1)
    check_all(world)


def test_a_private_mapping_is_read_only_and_copied_page_by_page() -> None:
    """Its PMD goes with the first write; what is read next is mapped by PTEs, the table being there."""
    world = memfd(PRIVATE)
    for page in (0, 3):
        assert world.do("read", page) == 0
    assert collapse(world, 0, 8) == 0
    assert is_huge(world, 0)
    assert not world.pte(0) & PTE_RW
    folio = world.folio(0)
    world.write(3)
    assert world.folio(3).anon
    assert world.content(3) != {}
    assert load(world, 0) == {}
    assert world.folio(0) is folio
    assert folio.mapcounts == [1, 1, 1, 0, 1, 1, 1, 1]
    world.fork()
    world.write(0, proc=1)
    assert load(world, 0) == {}
    check_all(world)


def test_ptes_map_all_of_it_where_there_is_room() -> None:
    """A write where nothing else is mapped brings all the pages of the folio (finish_fault), else one.

    A read brings those around the page that nothing is in the place of.
    """
    world = collapsed()
    assert world.do("madvise", 5, 1, MADV_GUARD_INSTALL) == 0
    assert world.do("madvise", 5, 1, MADV_GUARD_REMOVE) == 0
    world.write(4)
    folio = world.folio(4)
    assert folio.mapcounts == [1, 1, 1, 1, 1, 1, 1, 1]
    assert world.do("madvise", 5, 1, MADV_GUARD_INSTALL) == 0
    assert world.do("madvise", 0, 8, MADV_DONTNEED) == 0
    world.write(4)
    assert folio.mapcounts == [0, 0, 0, 0, 1, 0, 0, 0]
    assert load(world, 6) == {}
    assert folio.mapcounts == [1, 1, 1, 1, 1, 0, 1, 1]
    check_all(world)


@pytest.mark.live
def test_reading_maps_large_folios_around_also_behind_the_end() -> None:
    """With a private copy in the way there are PTEs for all the other pages of the folio, behind the end too."""
    world = World("x86-64")
    world.mmap(0, 512, RW, PRIVATE, MEMORY)
    world.write(2)
    assert collapse(world, 0, 512) == -EINVAL
    assert world.do("read", 400) == SIGBUS
    assert world.do("read", 0) == 0
    assert load(world, 400) == {}
    world.write(401)
    assert load(world, 401) != {}
    check_all(world)


@both
@pytest.mark.parametrize(
    ("first", "pages", "pieces"),
    [
        (0, 8, []),
        (0, 1, [(1, 0), (2, 1), (4, 2)]),
        (3, 1, [(0, 1), (2, 0), (4, 0), (5, 0), (6, 1)]),  # the second split is needless
        (3, 3, [(0, 1), (2, 0), (6, 0), (7, 0)]),
        (0, 4, [(4, 0), (5, 0), (6, 1)]),  # as here
        (4, 4, [(0, 2)]),
        (7, 1, [(0, 2), (4, 1), (6, 0)]),
    ],
)
def test_a_hole_splits_it(geometry: str, first: int, pages: int, pieces: list[tuple[int, int]]) -> None:
    """Into pieces as large as may be (try_folio_split_to_order). ``pieces``: (index, order), of 8 pages."""
    world = collapsed(geometry)
    nr = size(world)
    mapping = mapping_of(world, 0)
    before = [load(world, page) for page in (0, 1)]
    scale = nr // 8
    assert world.do("madvise", first * scale, pages * scale, MADV_REMOVE) == 0
    if scale == 1:
        assert orders(mapping) == pieces
    assert sorted(mapping.pages) == [i for i in range(nr) if not first <= i // scale < first + pages]
    kept = [{} if first * scale <= page < (first + pages) * scale else before[page] for page in (0, 1)]
    assert [load(world, page) for page in (0, 1)] == kept
    for page in range(8):
        assert world.do("read", page * scale) == 0
    check_all(world)


def test_a_hole_in_a_pinned_one_is_zeros() -> None:
    """It cannot be split, so what is to go is overwritten, and stays charged."""
    world = collapsed(flags=MAP_NORESERVE)
    folio = world.folio(0)
    assert world.do("gup_fast", 7, FOLL_PIN, 0) == 0
    assert world.do("madvise", 1, 2, MADV_REMOVE) == 0
    assert (load(world, 0), load(world, 1)) == (folio.content[0], {})
    assert world.folio(0) is folio
    assert world.machine.committed == 8
    assert world.do("unpin", 0) == 0
    check_all(world)


@pytest.mark.live
def test_pageout_of_a_part_splits_it() -> None:
    """And nothing more: no entry is left that leads to its pages."""
    world = collapsed("x86-64")
    before = load(world, 0)
    assert world.do("madvise", 0, 100, MADV_PAGEOUT) == 0
    mapping = mapping_of(world, 0)
    assert orders(mapping) == [(i, 0) for i in range(512)]
    assert not mapping.swapped
    assert load(world, 0) == before
    assert load(world, 200) == {}
    check_all(world)


@pytest.mark.live
def test_one_that_reaches_behind_the_end_is_swapped_out_in_small_pages() -> None:
    """What is behind the end is lost."""
    world = World("x86-64", profile=profile_with(swap_synchronous=True))
    world.mmap(0, 512, RW, SHARED, MEMORY)
    world.write(3)
    assert collapse(world, 0, 512) == 0
    world.write(400)
    assert world.do("madvise", 0, 512, MADV_PAGEOUT) == 0
    mapping = mapping_of(world, 0)
    assert sorted(mapping.swapped) == list(range(16))
    assert not mapping.swapped_large
    assert load(world, 3) != {}
    assert not is_huge(world, 3)
    assert world.do("read", 400) == SIGBUS
    check_all(world)


@pytest.mark.live
def test_pageout_of_the_whole_and_back() -> None:
    """It goes in one, and comes back in one from a device that is memory itself."""
    world = World("x86-64", profile=profile_with(swap_synchronous=True))
    world.mmap(0, 512, RW, SHARED)
    world.write(1)
    assert collapse(world, 0, 512) == 0
    before = load(world, 1)
    assert world.do("madvise", 0, 512, MADV_PAGEOUT) == 0
    mapping = mapping_of(world, 0)
    assert mapping.swapped_large == {0: 9}
    assert not mapping.pages
    assert load(world, 1) == before
    assert is_huge(world, 1)
    assert not world.machine.swap.count
    check_all(world)


@pytest.mark.live
@pytest.mark.parametrize("mode", [UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP])
def test_with_userfaultfd_it_comes_back_page_by_page(mode: int) -> None:
    """Each page has a fault of its own."""
    world = World("x86-64", profile=profile_with(swap_synchronous=True))
    world.mmap(0, 512, RW, SHARED)
    world.write(1)
    assert collapse(world, 0, 512) == 0
    assert world.do("madvise", 0, 512, MADV_PAGEOUT) == 0
    assert world.do("userfaultfd", 0) == 0
    assert world.do("uffd_register", 0, 512, mode) == 0
    assert load(world, 1) != {}
    assert world.folio(1).order == 0
    assert len(mapping_of(world, 0).swapped) == 511
    assert world.do("uffd_unregister", 0, 512) == 0
    assert load(world, 2) == {}
    assert not is_huge(world, 2)
    check_all(world)


@pytest.mark.parametrize("synchronous", [True, False])
def test_holes_in_one_that_was_swapped_out_as_a_whole(synchronous: bool) -> None:
    """It is read back as far as it is to stay; what was all to go is dropped where it is."""
    world = World(profile=profile_with(swap_synchronous=synchronous))
    world.mmap(0, 16, RW, SHARED)
    for page in (0, 5, 8):
        world.write(page)
    before = load(world, 5)
    assert collapse(world, 0, 16) == 0
    assert world.do("madvise", 0, 16, MADV_PAGEOUT) == 0
    mapping = mapping_of(world, 0)
    assert mapping.swapped_large == {0: 3, 8: 3}
    assert world.do("madvise", 6, 10, MADV_REMOVE) == 0
    assert not any(index >= 6 for index in {**mapping.pages, **mapping.swapped})
    assert load(world, 5) == before
    assert load(world, 8) == {}
    assert world.do("munmap", 0, 16) == 0
    assert not world.machine.swap.count
    check_all(world)


def test_one_page_that_is_read_ahead_tears_what_was_swapped_out() -> None:
    world = collapsed()
    assert world.do("madvise", 0, 8, MADV_PAGEOUT) == 0
    mapping = mapping_of(world, 0)
    world.image.shmem.shmem_swapin_range(world.machine, mapping, 3, 4)
    assert load(world, 3) == {}
    assert not mapping.swapped_large
    assert len(mapping.swapped) == 7
    assert world.folio(3).order == 0
    check_all(world)


def test_migration_moves_it_whole() -> None:
    """Nothing maps it meanwhile; faults map the copy."""
    world = collapsed()
    old = world.folio(0)
    before = load(world, 1)
    assert world.do("migrate", 3) == 1
    assert old.freed
    assert load(world, 1) == before
    assert is_huge(world, 1)
    check_all(world)


@both
def test_populating_finds_it(geometry: str) -> None:
    world = collapsed(geometry)
    nr = size(world)
    world.do("madvise", 0, nr, MADV_DONTNEED)
    assert not world.pte(0)
    assert world.do("madvise", 0, nr, MADV_POPULATE_READ) == 0
    assert is_huge(world, 0)
    world.do("mlock", 0, nr)
    assert collapse(world, 0, nr) == 0
    assert world.do("munlock", 0, nr) == 0
    check_all(world)


def test_locked_memory_is_unmapped_for_a_collapse() -> None:
    """TTU_IGNORE_MLOCK: reclaim must not, a collapse may."""
    world = shared("small8", 1, 0, 0, 1)
    world.do("mlock2", 0, 8, 1)
    assert collapse(world, 0, 8) == 0
    assert is_huge(world, 0)
    check_all(world)


def entry_level(world: World, area: VmAreaStruct) -> int:
    return walk_slot(world.mm(), world.machine.geometry, area.vm_start)[0].level


def test_tables_go_only_where_the_range_fits() -> None:
    """A mapping that has the file one page further on keeps its table, empty."""
    world = memfd(SHARED, 0)
    world.mmap(33, 15, RW, SHARED, MEMORY)
    world.do("read", 33)
    assert collapse(world, 0, 8) == 0
    assert entry_level(world, world.vma(33)) < LEVEL_PMD
    assert not world.pte(33)
    assert world.do("read", 34) == 0
    assert world.folio(34) is world.folio(0)
    assert world.address(34) >> PAGE_SHIFT != world.folio(34).index
    check_all(world)
