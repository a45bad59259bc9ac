"""Shared anonymous memory: a file of its own, faults, swap, charges, and the end of it (mm/shmem.c)."""

from __future__ import annotations

import pytest

from emulator.fs_types import AddressSpace
from emulator.mm_types import VM_ACCOUNT, VM_MAYSHARE, VM_NORESERVE, VM_SHARED
from emulator.uapi import (
    EBADF,
    EFAULT,
    EINVAL,
    ENOMEM,
    MADV_COLD,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_MERGEABLE,
    MADV_PAGEOUT,
    MADV_POPULATE_WRITE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    SIGBUS,
)
from emulator.workload import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE, MEMFD, Op
from tests.emulator.kernel_world import RW, World, committing
from tests.emulator.mm.world import fail_next
from tests.emulator.references import check_all, every_cut

SHARED = MAP_SHARED | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
LONGTERM = FOLL_PIN | FOLL_WRITE | FOLL_LONGTERM


def shared(pages: int = 4, flags: int = 0, profile: str = "6.18") -> World:
    """One mapping of shared anonymous memory, its first page written."""
    world = World(profile=profile)
    world.mmap(0, pages, RW, SHARED | flags)
    world.write(0)
    return world


def objects(world: World) -> list[AddressSpace]:
    """What there is of shared anonymous memory."""
    return [mapping for label, mapping in world.machine.shared_memory.items() if label != MEMFD]


def load(world: World, page: int, proc: int = 0) -> dict[int, int]:
    assert world.do("read", page, proc=proc) == 0
    assert world.last.data is not None
    return dict(world.last.data)


@pytest.mark.live
def test_a_mapping_has_a_file_of_its_own() -> None:
    """It begins at page 0 of it, as long as it is, and so merges with no neighbour of its kind, however alike."""
    world = shared()
    world.mmap(4, 4, RW, SHARED)
    first, second = world.vma(0), world.vma(4)
    assert world.layout() == [(0, 4), (4, 4)]
    assert first.vm_file is not None
    assert second.vm_file is not None
    assert first.vm_file is not second.vm_file
    assert (first.vm_pgoff, second.vm_pgoff) == (0, 0)
    flags = VM_SHARED | VM_MAYSHARE
    assert first.vm_flags & (flags | VM_ACCOUNT | VM_NORESERVE) == flags
    assert load(world, 4) == {}


@pytest.mark.live
def test_parts_of_it_split_and_merge_again() -> None:
    world = shared(6)
    assert world.do("mprotect", 2, 2, PROT_READ) == 0
    assert world.layout() == [(0, 2), (2, 2), (4, 2)]
    assert world.do("write", 2, 0) < 0
    assert world.do("mprotect", 2, 2, RW) == 0
    assert world.layout() == [(0, 6)]
    assert world.do("mremap", 2, 2, 2, MOVE, 20) == 20
    assert world.do("mremap", 20, 2, 2, MOVE, 2) == 2
    assert world.layout() == [(0, 6)]


@pytest.mark.live
@pytest.mark.parametrize(
    ("flags", "result"),
    [
        (MAP_SHARED | MAP_FIXED | MAP_GROWSDOWN, -EINVAL),
        (MAP_SHARED_VALIDATE | MAP_FIXED, -EINVAL),
        (MAP_SHARED | MAP_FIXED | MAP_NORESERVE | MAP_POPULATE, 0),
    ],
)
def test_what_may_be_mapped(flags: int, result: int) -> None:
    world = World()
    assert world.do("mmap", 0, 2, RW, flags, 0, 0) == result


@pytest.mark.live
def test_parent_and_child_see_what_the_other_writes() -> None:
    """fork copies no page tables: both fault in the pages of the file."""
    world = shared()
    world.fork()
    assert world.pte(0, 1) == 0
    token = world.write(1, 2, proc=1)
    assert load(world, 1) == {2: token}
    assert load(world, 0, 1) == world.content(0)
    assert world.folio(0) is world.folio(0, 1)
    assert world.do("exit", proc=0) == 0
    assert load(world, 1, 1) == {2: token}
    check_all(world)


@pytest.mark.live
@pytest.mark.parametrize(
    ("advice", "result"),
    [
        (MADV_DONTNEED, 0),
        (MADV_PAGEOUT, 0),
        (MADV_COLD, 0),
        (MADV_WILLNEED, 0),
        (MADV_MERGEABLE, 0),
        (MADV_POPULATE_WRITE, 0),
        (MADV_FREE, -EINVAL),
        (MADV_WIPEONFORK, -EINVAL),
    ],
)
def test_advice_loses_nothing(advice: int, result: int) -> None:
    """Only page tables forget what DONTNEED names; there is nothing to free, to wipe, or to merge."""
    world = shared()
    before = load(world, 0)
    assert world.do("madvise", 0, 4, advice) == result
    assert load(world, 0) == before
    assert load(world, 1) == {}
    check_all(world)


@pytest.mark.live
def test_mremap_shows_it_twice_moves_it_and_leaves_it() -> None:
    """A move of no length maps the file once more; DONTUNMAP leaves a mapping that shows the same pages."""
    world = shared()
    was = load(world, 0)
    assert world.do("mremap", 0, 0, 2, MOVE, 10) == 10
    assert load(world, 10) == was
    assert world.do("mremap", 0, 4, 4, MOVE | MREMAP_DONTUNMAP, 20) == 20
    assert load(world, 20) == load(world, 0) == was
    token = world.write(21)
    assert load(world, 11) == load(world, 1) == {0: token}
    assert len({id(world.vma(page).vm_file) for page in (0, 10, 20)}) == 1


@pytest.mark.live
def test_growing_shows_the_end_of_the_file() -> None:
    world = shared(2)
    assert world.do("mremap", 0, 2, 4, 0, 0) == 0
    assert world.do("read", 1) == 0
    assert world.do("read", 2) == SIGBUS
    assert world.do("write", 3, 0) == SIGBUS
    assert world.do("madvise", 0, 4, MADV_POPULATE_WRITE) == -EFAULT


@pytest.mark.live
def test_it_may_have_a_name_and_be_locked() -> None:
    world = shared()
    assert world.do("set_vma_name", 0, 2, 1) == 0
    assert world.layout() == [(0, 2), (2, 2)]
    assert world.do("set_vma_name", 0, 2, 0) == 0
    assert world.layout() == [(0, 4)]
    assert world.do("mlock", 0, 4) == 0
    assert world.do("madvise", 0, 4, MADV_PAGEOUT) == -EINVAL
    assert world.do("madvise", 0, 4, MADV_DONTNEED) == -EINVAL


def test_a_memfd_and_shared_memory_that_is_mapped_anew_have_names_too() -> None:
    """What makes a file of memory anonymous is that it is in no folder (shmem_mmap)."""
    world = World()
    world.mmap(0, 1, RW, MAP_SHARED | MAP_FIXED, MEMFD + 1)
    world.mmap(2, 1, RW, MAP_PRIVATE | MAP_FIXED, MEMFD + 1)
    world.mmap(4, 1, RW, MAP_SHARED | MAP_FIXED)
    assert world.do("remap_file_pages", 4, 1, 0) == 0
    for page in (0, 2, 4):
        assert world.do("set_vma_name", page, 1, 1) == 0
    world.mmap(6, 1, RW, MAP_SHARED | MAP_FIXED, 1)
    assert world.do("set_vma_name", 6, 1, 1) == -EBADF


def test_old_kernels_name_only_private_memory() -> None:
    assert shared(profile="5.17").do("set_vma_name", 0, 2, 1) == -EBADF


@pytest.mark.live
def test_remap_file_pages_keeps_the_file_of_its_only_mapping() -> None:
    world = shared()
    was = load(world, 0)
    assert world.do("remap_file_pages", 0, 4, 1) == 0
    assert load(world, 0) == {}
    assert world.do("read", 3) == SIGBUS
    assert world.do("remap_file_pages", 0, 4, 0) == 0
    assert load(world, 0) == was


def test_a_device_may_keep_it_for_long() -> None:
    """No file system behind it minds a long-term pin for writing."""
    world = shared()
    assert world.do("gup_slow", 0, LONGTERM, 0) == 0
    assert world.do("gup_fast", 0, LONGTERM, 1) == 0
    assert world.do("munmap", 0, 4) == 0
    assert not objects(world)
    assert world.do("pin_write", 0, 1) == 0
    assert world.do("unpin", 0) == 0
    assert world.do("unpin", 1) == 0
    check_all(world)


# ---- charges


@pytest.mark.parametrize(("flags", "charges"), [(0, (4, 4, 4, 4)), (MAP_NORESERVE, (1, 1, 2, 2))])
def test_charges(flags: int, charges: tuple[int, ...]) -> None:
    """All of it when it is mapped, or each page when it comes, in memory or swap; fork, mprotect add nothing."""
    world = shared(4, flags)
    seen = [world.machine.committed]
    world.fork()
    assert world.do("mprotect", 0, 4, PROT_READ) == 0
    assert world.do("mprotect", 0, 4, RW) == 0
    assert world.do("read", 0) == 0
    seen.append(world.machine.committed)
    assert world.do("read", 1, proc=1) == 0
    world.write(1)
    seen.append(world.machine.committed)
    assert world.do("munmap", 0, 4) == 0
    assert world.do("madvise", 0, 4, MADV_PAGEOUT, proc=1) == 0
    seen.append(world.machine.committed)
    assert tuple(seen) == charges
    assert world.do("exit", proc=1) == 0
    assert world.machine.committed == 0
    check_all(world)


def test_what_may_not_be_committed_is_not_mapped() -> None:
    """What stood in its place is gone by then."""
    world = World(profile=committing(5))
    world.mmap(0, 4)
    assert world.do("mmap", 0, 6, RW, SHARED, 0, 0) == -ENOMEM
    assert world.layout() == []
    assert world.machine.committed == 0
    world.mmap(0, 6, RW, SHARED, MEMFD + 1)  # charged page by page
    assert [world.do("write", page, 0) for page in range(6)] == [0, 0, 0, 0, 0, SIGBUS]
    pages = world.machine.shared_memory[MEMFD].pages.values()
    assert not world.machine.phys.live.keys() - {folio.pfn for folio in pages} - {1}


@pytest.mark.parametrize("nth", range(1, 7))
def test_a_mapping_that_fails_charges_nothing(nth: int) -> None:
    world = World()
    result = world.do("mmap", 0, 4, RW, SHARED, 0, 0, fail_nth=nth)
    kept = result == 0
    assert result == (0 if kept else -ENOMEM)
    assert world.machine.committed == (4 if kept else 0)
    assert len(objects(world)) == kept


# ---- swap


def test_reclaim_moves_pages_to_swap_and_an_access_brings_them_back() -> None:
    """The file keeps the slot, no page table does; a page that nobody wrote is dropped, and is zeros again."""
    world = shared()
    was = load(world, 0)
    assert load(world, 1) == {}
    assert world.do("madvise", 0, 4, MADV_PAGEOUT) == 0
    (mapping,) = objects(world)
    assert (list(mapping.pages), list(mapping.swapped)) == ([], [0])
    assert world.pte(0) == world.pte(1) == 0
    check_all(world)
    assert load(world, 0) == was
    assert (list(mapping.pages), list(mapping.swapped)) == ([0], [])
    assert world.folio(0).dirty
    assert not world.machine.swap.count
    check_all(world)


def test_what_two_map_is_reclaimed_for_both() -> None:
    world = shared()
    was = load(world, 0)
    world.fork()
    assert load(world, 0, 1) == was
    assert world.do("reclaim", 0) == 1
    assert world.pte(0) == world.pte(0, 1) == 0
    assert load(world, 0, 1) == was
    check_all(world)


def test_pinned_or_locked_pages_stay() -> None:
    world = shared()
    assert world.do("gup_fast", 0, FOLL_PIN, 0) == 0
    assert world.do("reclaim", 0) == 0
    (mapping,) = objects(world)
    assert list(mapping.pages) == [0]
    assert world.do("unpin", 0) == 0
    assert world.do("mlock", 0, 4) == 0
    assert world.do("reclaim", 0) == 0
    assert sorted(mapping.pages) == [0, 1, 2, 3]


def test_without_swap_space_a_page_stays_dirty() -> None:
    world = shared()
    was = load(world, 0)
    assert world.do("reclaim", 0, fail_nth=1) == 0
    (mapping,) = objects(world)
    assert mapping.pages[0].dirty
    assert load(world, 0) == was
    check_all(world)


def test_willneed_reads_into_the_swap_cache() -> None:
    world = shared()
    was = load(world, 0)
    assert world.do("madvise", 0, 4, MADV_PAGEOUT) == 0
    assert world.do("madvise", 1, 3, MADV_WILLNEED) == 0
    assert not world.machine.swap.cache
    assert world.do("madvise", 0, 1, MADV_WILLNEED) == 0
    (cached,) = world.machine.swap.cache.values()
    assert load(world, 0) == was
    assert world.folio(0) is cached
    check_all(world)


def test_what_is_in_swap_goes_with_the_last_mapping() -> None:
    world = shared()
    assert world.do("madvise", 0, 4, MADV_PAGEOUT) == 0
    assert world.do("madvise", 0, 4, MADV_WILLNEED) == 0
    assert world.do("munmap", 0, 4) == 0
    assert not world.machine.swap.count
    assert not world.machine.swap.cache
    check_all(world)


def test_out_of_memory_on_the_way_back_loses_nothing() -> None:
    world = shared()
    was = load(world, 0)
    assert world.do("madvise", 0, 4, MADV_PAGEOUT) == 0
    fail_next(world, 1)
    assert world.do("gup_slow", 0, FOLL_PIN, 0, fail_nth=1) < 0
    assert load(world, 0) == was
    check_all(world)


@pytest.mark.parametrize(
    "beside",
    [
        Op("reclaim", 0, (0,)),
        Op("read", 1, (0,)),
        Op("munmap", 0, (0, 4)),
        Op("exit", 0, ()),
        Op("migrate", 0, (0,)),
        Op("madvise", 1, (0, 4, MADV_WILLNEED)),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_every_interleaving_keeps_the_contents(beside: Op, swapped: bool) -> None:
    """Another process writes to a page that is reclaimed, read back, moved or let go at the same time."""

    def make() -> World:
        world = shared()
        world.fork()
        if swapped:
            assert world.do("madvise", 0, 4, MADV_PAGEOUT) == 0
        else:
            load(world, 0, 1)
        return world

    for world, outcomes, where in every_cut(make, (Op("write", 1, (0, 1)), beside)):
        assert outcomes[0].ret == 0, where
        got = load(world, 0, 1)
        assert set(got) == {0, 1}, where
        check_all(world)
        world.do("exit", proc=1)
        if 0 in world.machine.procs:
            world.do("exit")
        assert not objects(world), where
        assert not world.machine.swap.count, where
        assert list(world.machine.phys.live.values()) == [world.machine.phys.zero_folio], where


def test_protections_hold() -> None:
    world = World()
    world.mmap(0, 2, PROT_NONE, SHARED)
    assert world.do("read", 0) < 0
    assert world.do("gup_slow", 0, FOLL_WRITE, 0) == -EFAULT
