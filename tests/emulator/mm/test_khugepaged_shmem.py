"""MADV_COLLAPSE of files of memory: what becomes a huge page, what refuses, and what becomes of huge pages of files.

A huge page has 512 pages in the worlds that are compared with the running kernel.
"""

from __future__ import annotations

import pytest

from emulator.fs_types import AddressSpace
from emulator.uapi import (
    EAGAIN,
    EBUSY,
    EINVAL,
    ENOMEM,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    SIGBUS,
    UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE, MEMFD, Op, Switch
from tests.emulator.kernel_world import RW, World, committing
from tests.emulator.mm.world import is_huge
from tests.emulator.references import TO_THE_END, check_all

SHARED = MAP_SHARED | MAP_FIXED
PRIVATE = MAP_PRIVATE | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
MEMORY = MEMFD + 1  # as the mmap op names it

both = pytest.mark.parametrize("geometry", ["small8", pytest.param("x86-64", marks=pytest.mark.live)])


def size(world: World) -> int:
    return world.machine.geometry.hpage_pmd_nr


def shared(geometry: str = "small8", ranges: int = 1, flags: int = 0, *written: int) -> World:
    """Shared anonymous memory of so many huge pages, from page 0 on, with these pages written."""
    world = World(geometry)
    world.mmap(0, ranges * size(world), RW, SHARED | flags)
    for page in written:
        world.write(page)
    return world


def memfd(flags: int, *written: int, profile: str = "6.18") -> World:
    """The memfd, mapped from page 0 on, which is two huge pages of a small world long."""
    world = World(profile=profile)
    world.mmap(0, 16, RW, flags, MEMORY)
    for page in written:
        world.write(page)
    return world


def collapse(world: World, page: int, pages: int, proc: int = 0, fail_nth: int = 0) -> int:
    return world.do("madvise", page, pages, MADV_COLLAPSE, proc=proc, fail_nth=fail_nth)


def collapsed(geometry: str = "small8", ranges: int = 1, flags: int = 0) -> World:
    """``shared``, every range of it a huge page, the first pages of each written."""
    world = shared(geometry, ranges, flags)
    for i in range(ranges):
        world.write(i * size(world))
        world.write(i * size(world) + 1)
    assert collapse(world, 0, ranges * size(world)) == 0
    return world


def mapping_of(world: World, page: int, proc: int = 0) -> AddressSpace:
    file = world.vma(page, proc).vm_file
    assert file is not None
    return file.f_mapping


def load(world: World, page: int, proc: int = 0) -> dict[int, int]:
    assert world.do("read", page, proc=proc) == 0
    assert world.last.data is not None
    return dict(world.last.data)


def orders(mapping: AddressSpace) -> list[tuple[int, int]]:
    """(index, order) of each folio in the page cache, in order."""
    return sorted({folio.pfn: (folio.index, folio.order) for folio in mapping.pages.values()}.values())


# ---- what comes of it


@both
def test_a_range_becomes_a_huge_page_of_the_file(geometry: str) -> None:
    """Mapped by a PMD, dirty, in the page cache for each of its pages; old pages are freed, holes are zeros."""
    world = shared(geometry, 1, 0, 1, 3)
    world.do("read", 2)
    nr = size(world)
    old = [world.folio(page) for page in (1, 2, 3)]
    before = world.contents()
    assert collapse(world, 0, nr) == 0
    folio = world.folio(0)
    assert is_huge(world, 0)
    assert (folio.index, folio.order, folio.refcount, folio.entire_mapcount) == (0, nr.bit_length() - 1, nr + 1, 1)
    assert not folio.anon
    assert folio.dirty
    assert mapping_of(world, 0).pages == dict.fromkeys(range(nr), folio)
    assert all(page.freed for page in old)
    after = world.contents()
    assert {page: after[page] for page in before} == before
    assert load(world, nr - 1) == {}
    world.write(nr - 1)
    assert is_huge(world, 0)
    check_all(world)


@both
def test_a_second_time_it_is_there(geometry: str) -> None:
    """Nothing to do where it is mapped; where it is not, it is mapped, and a table with PTEs of it goes."""
    world = collapsed(geometry)
    nr = size(world)
    folio = world.folio(0)
    assert collapse(world, 0, nr) == 0
    world.do("madvise", 1, 1, MADV_DONTNEED)
    assert not is_huge(world, 0)
    assert collapse(world, 0, nr) == 0
    assert is_huge(world, 0)
    assert world.folio(0) is folio
    check_all(world)


@both
def test_other_mappings_are_unmapped_and_get_it_by_a_fault(geometry: str) -> None:
    """The child's table of PTEs goes too, so its next read maps the whole."""
    world = shared(geometry, 1, 0, 0)
    world.fork()
    nr = size(world)
    world.do("read", 0, proc=1)
    assert collapse(world, 0, nr) == 0
    assert not world.pte(0, 1)
    assert load(world, 0, 1) == load(world, 0)
    assert is_huge(world, 0, 1)
    assert world.folio(0, 1) is world.folio(0)
    assert world.folio(0).entire_mapcount == 2
    check_all(world)


@both
def test_a_child_that_has_no_page_tables_yet(geometry: str) -> None:
    """The huge page is mapped all the same (set_huge_pmd)."""
    world = collapsed(geometry)
    world.fork()
    assert not world.pte(0, 1)
    assert collapse(world, 0, size(world), proc=1) == 0
    assert is_huge(world, 0, 1)
    check_all(world)


def test_swapped_out_pages_come_back() -> None:
    world = shared("small8", 1, 0, 0, 1, 2)
    before = [load(world, page) for page in (0, 1, 2)]
    assert [world.do("reclaim", page) for page in (0, 2)] == [1, 1]
    assert len(mapping_of(world, 0).swapped) == 2
    assert collapse(world, 0, 8) == 0
    assert [load(world, page) for page in (0, 1, 2)] == before
    assert not world.machine.swap.count
    check_all(world)


def test_holes_are_charged_where_pages_are() -> None:
    """Of memory that is charged page by page; a collapse that would be too much leaves everything as it was."""
    world = shared("small8", 1, MAP_NORESERVE, 0)
    assert world.machine.committed == 1
    assert collapse(world, 0, 8) == 0
    assert world.machine.committed == 8
    assert world.do("munmap", 0, 8) == 0
    assert world.machine.committed == 0
    full = World(profile=committing(4))
    full.mmap(0, 16, RW, SHARED, MEMORY)
    full.write(0)
    assert collapse(full, 0, 8) == -EINVAL
    assert full.machine.committed == 1
    assert load(full, 0) != {}
    check_all(full)


@pytest.mark.live
def test_it_may_reach_behind_the_end_of_the_file() -> None:
    """What is behind the end can be read and written by who has it mapped as a whole, until it is split."""
    world = World("x86-64")
    world.mmap(0, 513, RW, SHARED, MEMORY)
    world.write(3)
    assert world.do("read", 100) == SIGBUS
    assert collapse(world, 0, 512) == 0
    world.write(100)
    assert load(world, 100) != {}
    assert world.do("madvise", 3, 1, MADV_COLD) == 0  # splits it
    assert orders(mapping_of(world, 0)) == [(i, 0) for i in range(16)]
    assert world.machine.committed == 16
    assert world.do("read", 100) == SIGBUS
    assert load(world, 3) != {}
    check_all(world)


# ---- what refuses


@pytest.mark.live
@pytest.mark.parametrize(
    ("kind", "page", "pages", "expected"),
    [
        (SHARED, 0, 512, 0),
        (SHARED, 0, 1024, -EINVAL),  # nothing in the second range
        (SHARED, 512, 512, -EINVAL),
        (SHARED, 0, 1100, -ENOMEM),  # done, and a hole
        (SHARED, 1, 511, 0),  # no whole range
        (SHARED, 600, 10, -EINVAL),  # not even the end of one: counted as fewer than none
        (PRIVATE, 0, 512, -EINVAL),  # a private copy is in the way
    ],
)
def test_results(kind: int, page: int, pages: int, expected: int) -> None:
    """Of a mapping of the memfd of two huge pages, page 3 of which was written, and a hole behind."""
    world = World("x86-64")
    world.mmap(0, 1024 if pages != 1100 else 1023, RW, kind, MEMORY)
    world.write(3)
    assert collapse(world, page, pages) == expected


@pytest.mark.live
@pytest.mark.parametrize(
    ("at", "length", "expected"), [(0, 512, 0), (512, 700, 0), (1, 1023, -EINVAL), (0, 511, -EINVAL)]
)
def test_the_place_must_fit_the_file(at: int, length: int, expected: int) -> None:
    """Page 0 of the file at the beginning of a range, and a whole range in the VMA."""
    world = World("x86-64")
    world.mmap(at, length, RW, SHARED, MEMORY)
    assert world.do("read", at) == 0
    assert collapse(world, at, length) == expected


@pytest.mark.live
def test_not_against_nohugepage_and_not_a_file_on_a_disk() -> None:
    world = World("x86-64")
    world.mmap(0, 512, RW, SHARED, MEMORY)
    world.mmap(512, 512, RW, SHARED, 1)
    world.write(0)
    world.write(512)
    assert collapse(world, 512, 512) == -EINVAL
    assert world.do("madvise", 0, 512, MADV_NOHUGEPAGE) == 0
    assert collapse(world, 0, 512) == -EINVAL
    assert world.do("madvise", 0, 512, MADV_HUGEPAGE) == 0
    assert collapse(world, 0, 512) == 0
    assert world.do("madvise", 0, 512, MADV_NOHUGEPAGE) == 0
    assert world.do("madvise", 1, 1, MADV_DONTNEED) == 0
    assert load(world, 0) != {}  # there, but by PTEs
    assert not is_huge(world, 0)


@pytest.mark.live
def test_guards_and_private_copies_keep_the_table() -> None:
    """The page cache has its huge page, but here it cannot be mapped."""
    world = World("x86-64")
    world.mmap(0, 512, RW, SHARED, MEMORY)
    world.mmap(512, 512, RW, PRIVATE, MEMORY)
    world.write(0)
    assert world.do("read", 512) == 0
    world.write(514)
    assert world.do("madvise", 8, 1, MADV_GUARD_INSTALL) == 0
    assert collapse(world, 512, 512) == -EINVAL
    assert world.folio(514).anon
    assert collapse(world, 0, 512) == -EINVAL
    assert orders(mapping_of(world, 0)) == [(0, 9)]
    assert load(world, 512) == load(world, 0)
    assert world.do("munmap", 0, 512) == 0
    world.mmap(0, 512, RW, SHARED, MEMORY)
    assert collapse(world, 0, 512) == 0
    check_all(world)


@pytest.mark.live
@pytest.mark.parametrize(
    ("first", "mode", "expected"),
    [
        (511, UFFDIO_REGISTER_MODE_MISSING, -EBUSY),
        (512, UFFDIO_REGISTER_MODE_MISSING, -EBUSY),  # as Linux counts, the page behind the range belongs to it
        (513, UFFDIO_REGISTER_MODE_MISSING, 0),
        (100, UFFDIO_REGISTER_MODE_WP, 0),
    ],
)
def test_holes_that_a_userfaultfd_wants_to_hear_of(first: int, mode: int, expected: int) -> None:
    """Whoever maps the file: a child has registered its pages from ``first`` on."""
    world = World("x86-64")
    world.mmap(0, 1100, RW, SHARED)
    world.write(0)
    world.fork()
    assert world.do("userfaultfd", 0, proc=1) == 0
    assert world.do("uffd_register", first, 1100 - first, mode, proc=1) == 0
    assert collapse(world, 0, 512) == expected
    check_all(world)


def test_a_page_that_somebody_has_refuses() -> None:
    """Everything is as before, save that the pages are mapped nowhere."""
    world = shared("small8", 1, 0, 0, 1)
    before = [load(world, page) for page in (0, 1)]
    assert world.do("gup_fast", 1, FOLL_PIN | FOLL_WRITE, 0) == 0
    assert collapse(world, 0, 8) == -EAGAIN
    assert [load(world, page) for page in (0, 1)] == before
    assert world.do("unpin", 0) == 0
    assert collapse(world, 0, 8) == 0
    check_all(world)


@pytest.mark.parametrize("nth", [1, 2])
def test_without_memory(nth: int) -> None:
    """No room for what the call keeps its state in, or for the huge page."""
    world = shared("small8", 1, 0, 0)
    before = load(world, 0)
    assert collapse(world, 0, 8, fail_nth=nth) == -ENOMEM
    assert load(world, 0) == before
    assert orders(mapping_of(world, 0)) == [(0, 0)]
    check_all(world)


def test_a_hole_that_is_filled_meanwhile() -> None:
    """Between the copy and the page cache: the collapse gives way (SCAN_PAGE_FILLED)."""
    world = shared("small8", 1, 0, 0)
    got = world.collide(
        [Op("madvise", 0, (0, 8, MADV_COLLAPSE)), Op("write", 0, (5, 0))],
        [Switch(0, "collapse.copied", 1), Switch(1, "end", TO_THE_END), Switch(0, "end", TO_THE_END)],
    )
    assert [outcome.ret for outcome in got] == [-EAGAIN, 0]
    assert load(world, 5) != {}
    check_all(world)
