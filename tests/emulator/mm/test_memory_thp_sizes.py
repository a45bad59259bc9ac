"""Large folios smaller than huge pages: when a first write brings one, and of which size (alloc_anon_folio)."""

from __future__ import annotations

import pytest

from emulator.hw.pte import DIRTY, SPECIAL, pte_pfn
from emulator.hw.pte import RW as PTE_RW
from emulator.uapi import (
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
)
from emulator.workload import THP_ORDERS, Op, Switch
from tests.emulator.kernel_world import World
from tests.emulator.references import check_all

ALL = THP_ORDERS
X86 = "x86-64"


def wanting(first: int, pages: int, sizes: int = ALL, geometry: str = X86) -> World:
    """Untouched memory under MADV_HUGEPAGE, with large folios of these sizes (pages, ored)."""
    world = World(geometry)
    assert world.do("thp_sizes", sizes) == 0
    world.mmap(first, pages)
    assert world.do("madvise", first, pages, MADV_HUGEPAGE) == 0
    return world


@pytest.mark.live
@pytest.mark.parametrize(
    ("first", "pages", "sizes", "write", "start", "nr"),
    [
        (0, 256, ALL, 77, 0, 256),  # the largest that lies in the VMA
        (0, 255, ALL, 77, 0, 128),
        (0, 255, ALL, 200, 192, 32),  # aligned to its size
        (1, 255, ALL, 1, 1, 1),  # order 1 is none of anonymous memory's
        (1, 255, ALL, 5, 4, 4),
        (1, 15, ALL, 8, 8, 8),
        (0, 256, 4 | 16, 77, 64, 16),  # only the sizes that are asked for
        (0, 256, 0, 77, 77, 1),
        (0, 3, ALL, 1, 1, 1),  # too small for any
    ],
)
def test_the_largest_that_fits(first: int, pages: int, sizes: int, write: int, start: int, nr: int) -> None:
    """All of it is mapped by PTEs at once: writable, dirty, exclusive; one reference and one mapping a page."""
    world = wanting(first, pages, sizes)
    world.write(write)
    folio = world.folio(write)
    assert folio.nr_pages == nr
    for page in range(start, start + nr):
        entry = world.pte(page)
        assert pte_pfn(entry) == folio.pfn + page - start
        assert entry & (PTE_RW | DIRTY) == PTE_RW | DIRTY
    assert (folio.refcount, folio.mapcount()) == (nr, nr)
    assert folio.anon_exclusive == (1 << nr) - 1
    assert folio.index == world.address(start) >> 12
    for outside in (start - 1, start + nr):
        if first <= outside < first + pages:
            assert world.pte(outside) == 0
    check_all(world)


@pytest.mark.live
@pytest.mark.parametrize(("before", "nr"), [("read", 16), ("write", 16)])
def test_it_has_room_between_what_is_mapped(before: str, nr: int) -> None:
    """A page of zeros, or any other, in the range: the next smaller size that does not meet it."""
    world = wanting(0, 64, 16 | 64)
    world.do("thp_sizes", 0)
    world.do(before, *((20, 0) if before == "write" else (20,)))
    world.do("thp_sizes", 16 | 64)
    world.write(40)
    assert world.folio(40).nr_pages == nr
    world.write(17)
    assert world.folio(17).nr_pages == 1
    check_all(world)


@pytest.mark.live
@pytest.mark.parametrize("advice", [None, MADV_NOHUGEPAGE])
def test_memory_that_wants_none(advice: int | None) -> None:
    """``madvise`` is what the sizes are set to: without advice, or against it, small pages."""
    world = World(X86)
    world.do("thp_sizes", ALL)
    world.mmap(0, 64)
    if advice is not None:
        world.do("madvise", 0, 64, advice)
    world.write(5)
    assert world.folio(5).nr_pages == 1


@pytest.mark.live
def test_a_read_brings_the_page_of_zeros() -> None:
    """One, whatever the sizes; the write that comes then copies it into a small page."""
    world = wanting(0, 64)
    world.do("read", 9)
    assert world.pte(9) & SPECIAL
    assert world.pte(8) == world.pte(10) == 0
    world.write(9)
    assert world.folio(9).nr_pages == 1


@pytest.mark.live
def test_each_page_of_a_userfaultfd_has_a_fault_of_its_own() -> None:
    """Memory that is registered, in whatever mode, gets small pages."""
    world = wanting(0, 64)
    assert world.do("uffd_register", 0, 64, 2) == 0
    world.write(9)
    assert world.folio(9).nr_pages == 1
    assert world.pte(8) == 0


@pytest.mark.parametrize(("sizes", "nr"), [(64 | 128 | 256, 128), (256, 1)])
def test_what_cannot_be_had_is_tried_smaller(sizes: int, nr: int) -> None:
    """An allocation fails: the next size, not an error."""
    world = wanting(0, 256, sizes)
    world.write(0)
    world.do("madvise", 0, 256, MADV_DONTNEED)
    assert world.do("write", 9, 0, fail_nth=1) == 0
    assert world.folio(9).nr_pages == nr
    check_all(world)


def test_somebody_else_is_faster() -> None:
    """The range is looked at again under the lock: a page that came meanwhile stays, and the access is done anew."""
    world = wanting(0, 4, 4, "small8")
    outcomes = world.collide(
        (Op("write", 0, (1, 0)), Op("write", 0, (2, 0))),
        (Switch(0, "fault.folio_allocated", 1), Switch(1, "", 99)),
    )
    assert [outcome.ret for outcome in outcomes] == [0, 0]
    assert world.folio(1) is world.folio(2)
    assert world.folio(1).nr_pages == 4
    assert world.content(1)
    assert world.content(2)
    check_all(world)


@pytest.mark.live
def test_a_part_that_is_moved_away_stays_one_folio() -> None:
    """Moved, unmapped, written to by a child: the pages go on their own, the folio is the same."""
    world = wanting(0, 64, 16)
    world.write(3)
    folio = world.folio(3)
    assert world.do("mremap", 4, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, 100) == 100
    assert world.do("munmap", 12, 2) == 0
    assert world.folio(100) is folio
    assert folio.mapcount() == 14
    world.fork()
    assert folio.mapcount() == 28
    world.write(0, proc=1)
    assert world.folio(0, 1) is not folio
    assert folio.mapcount() == 27
    check_all(world)


def test_swapped_out_whole_and_back() -> None:
    """A large folio that is all mapped goes to contiguous slots; from the swap cache it comes back as one."""
    world = wanting(0, 4, 4, "small8")
    world.write(2)
    assert world.do("madvise", 0, 4, MADV_PAGEOUT) == 0
    slots = [world.pte(page) for page in range(4)]
    assert len(set(slots)) == 4
    assert world.content(2)
    world.do("read", 2)
    assert world.last.data
    check_all(world)
