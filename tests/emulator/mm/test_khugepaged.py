"""MADV_COLLAPSE: which ranges become huge pages, what refuses, what it says, and what others may do meanwhile.

The results in the tables were seen on Linux 6.18 with ranges of 512 pages for our 8.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.geometry import LEVEL_PMD
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import DIRTY, UFFD_WP, USER, is_swap
from emulator.hw.pte import RW as PTE_RW
from emulator.mm_types import (
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_IO,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_SEALED,
    UserfaultfdCtx,
)
from emulator.uapi import (
    EAGAIN,
    EBUSY,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    SIGSEGV,
    UFFD_FEATURE_SIGBUS,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE, Op, Switch
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World
from tests.emulator.mm.world import PIN_RW, anon_vma_of, is_huge, isolated, let_go
from tests.emulator.references import TO_THE_END, assert_coherent, check_all

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


def collapse(world: World, page: int, pages: int, proc: int = 0, fail_nth: int = 0) -> int:
    return world.do("madvise", page, pages, MADV_COLLAPSE, proc=proc, fail_nth=fail_nth)


def advise(world: World, page: int, pages: int, advice: int) -> None:
    assert world.do("madvise", page, pages, advice) == 0


def mapped(pages: int = 16, *written: int, geometry: str = "small8") -> World:
    """One VMA from page 0 on, with these pages written."""
    world = World(geometry)
    world.mmap(0, pages)
    for page in written:
        world.write(page)
    return world


# ---- what comes of it


@pytest.mark.parametrize("geometry", ["small8", "small4"])
def test_small_pages_become_a_huge_one(geometry: str) -> None:
    """One exclusive, dirty, writable huge page in the right place of the rmap; old pages are freed, holes are zeros."""
    world = mapped(16, 1, 3, geometry=geometry)
    nr = world.machine.geometry.hpage_pmd_nr
    world.do("read", 2)
    before = world.contents()
    old = world.folio(1), world.folio(3)
    assert collapse(world, 0, nr) == 0
    folio = world.folio(0)
    assert is_huge(world, 0)
    assert (folio.order, folio.refcount, folio.entire_mapcount) == (world.machine.geometry.hpage_pmd_order, 1, 1)
    assert folio.anon_exclusive == 1
    assert folio.mapping is anon_vma_of(world, 0)
    assert folio.index == world.address(0) >> 12
    assert world.pte(0) & (PTE_RW | DIRTY) == PTE_RW | DIRTY
    assert [page.freed for page in old] == [True, True]
    assert world.contents() == before
    check_all(world)


def test_the_folio_hangs_where_the_vma_is_now() -> None:
    """A VMA that was moved keeps its page offset: the index of the huge page comes from there."""
    world = mapped(8, 0)
    assert world.do("mremap", 0, 8, 8, MOVE, 24) == 24
    assert collapse(world, 24, 8) == 0
    assert world.folio(24).index == world.address(0) >> 12
    check_all(world)


def test_swapped_out_pages_come_back() -> None:
    """They are brought in, copied, and their swap space is free again."""
    world = mapped(8, 0, 1, 2)
    before = world.contents()
    assert [world.do("reclaim", page) for page in (0, 2)] == [1, 1]
    assert is_swap(world.pte(2))
    assert collapse(world, 0, 8) == 0
    assert world.contents() == before
    assert not world.machine.swap.count
    check_all(world)


def test_shared_pages_are_copied() -> None:
    """The other process keeps them, and may then collapse its own."""
    world = mapped(8, *range(8))
    world.fork()
    before = world.contents()
    old = world.folio(0)
    assert collapse(world, 0, 8, proc=1) == 0
    assert world.folio(0) is old
    assert old.mapcount() == 1
    assert world.folio(0, 1).mapping is anon_vma_of(world, 0, 1)
    world.write(5, proc=1)
    assert world.contents() == before
    assert collapse(world, 0, 8) == 0
    assert world.contents() == before
    check_all(world)


def test_a_huge_page_mapped_by_ptes() -> None:
    """It is copied like any other large folio: once, whole, and freed."""
    world = World()
    world.mmap(0, 16)
    advise(world, 0, 8, MADV_HUGEPAGE)
    world.write(3)
    old = world.folio(0)
    assert world.do("mprotect", 0, 2, PROT_READ) == 0
    assert world.do("mprotect", 0, 2, RW) == 0
    assert not is_huge(world, 0)
    before = world.contents()
    assert collapse(world, 0, 8) == 0
    assert is_huge(world, 0)
    assert old.freed
    assert world.contents() == before
    check_all(world)


def test_folios_off_their_alignment() -> None:
    """Huge pages that were moved by half their size: the new one takes a half of each, the rest stays mapped."""
    world = World()
    world.mmap(0, 16)
    advise(world, 0, 16, MADV_HUGEPAGE)
    for page in range(16):
        world.write(page)
    assert world.do("mremap", 0, 16, 16, MOVE, 36) == 36
    old = world.folio(36), world.folio(51)
    before = world.contents()
    assert collapse(world, 36, 16) == 0
    assert is_huge(world, 40)
    assert [folio.mapcount() for folio in old] == [4, 4]
    assert world.contents() == before
    check_all(world)


@pytest.mark.parametrize(("prot", "bits"), [(PROT_NONE, 0), (PROT_READ, USER), (RW, USER | PTE_RW)])
def test_permissions_are_those_of_the_vma(prot: int, bits: int) -> None:
    world = mapped(8, 3)
    assert world.do("mprotect", 0, 8, prot) == 0
    assert collapse(world, 0, 8) == 0
    assert is_huge(world, 0)
    assert world.pte(0) & (USER | PTE_RW) == bits
    check_all(world)


def test_swap_space_of_a_large_folio() -> None:
    """One that is mapped again and still in the swap cache: its slots are free when its pages are copied."""
    world = World()
    world.mmap(0, 8)
    advise(world, 0, 8, MADV_HUGEPAGE)
    world.write(3)
    schedule = (Switch(0, "reclaim.unmapped", 1), Switch(1, "", TO_THE_END))
    outcomes = world.collide((Op("reclaim", 0, (0,)), Op("read", 0, (3,))), schedule)
    assert [o.ret for o in outcomes] == [0, 0]
    assert world.folio(0).swapcache
    assert not is_huge(world, 0)
    assert collapse(world, 0, 8) == 0
    assert is_huge(world, 0)
    assert not world.machine.swap.count
    check_all(world)


# ---- which memory


def unfaulted(world: World) -> None:
    world.mmap(0, 16)
    world.do("read", 0)


def written(world: World) -> None:
    world.mmap(0, 16)
    world.write(3)


def both_written(world: World) -> None:
    written(world)
    world.write(9)


def second_written(world: World) -> None:
    world.mmap(0, 16)
    world.write(9)


def refused(world: World) -> None:
    written(world)
    advise(world, 0, 16, MADV_NOHUGEPAGE)


def too_small(world: World) -> None:
    world.mmap(0, 7)
    world.write(3)


def across(world: World) -> None:
    world.mmap(12, 8)
    world.write(13)


def dontneed_whole(world: World) -> None:
    both_written(world)
    advise(world, 0, 16, MADV_DONTNEED)


def dontneed_part(world: World) -> None:
    written(world)
    advise(world, 0, 7, MADV_DONTNEED)


def guarded(world: World) -> None:
    both_written(world)
    advise(world, 5, 1, MADV_GUARD_INSTALL)


def no_longer_guarded(world: World) -> None:
    guarded(world)
    advise(world, 5, 1, MADV_GUARD_REMOVE)


def hole_between(world: World) -> None:
    world.mmap(0, 8)
    world.mmap(16, 8)
    world.write(3)
    world.write(17)


def unfaulted_before_hole(world: World) -> None:
    world.mmap(0, 8)
    world.mmap(16, 8)
    world.write(17)


def of_a_file(world: World) -> None:
    world.mmap(0, 8, RW, PRIVATE_FIXED, 1)
    world.write(3)


def shared_file(world: World) -> None:
    world.mmap(0, 8, RW, MAP_SHARED | MAP_FIXED, 1)
    world.write(3)


@pytest.mark.parametrize(
    ("make", "page", "pages", "result", "huge"),
    [
        (unfaulted, 0, 8, -EINVAL, []),
        (written, 0, 8, 0, [0]),
        (written, 0, 7, 0, []),  # no whole range in it: all of none
        (written, 1, 7, 0, []),
        (written, 1, 6, -EINVAL, []),  # begins behind its end
        (written, 1, 15, -EINVAL, []),
        (written, 8, 8, -EINVAL, []),  # nothing was ever there
        (written, 0, 16, -EINVAL, [0]),
        (second_written, 0, 16, -EINVAL, []),  # the first failure ends it
        (both_written, 0, 16, 0, [0, 8]),
        (both_written, 3, 13, 0, [8]),
        (refused, 0, 8, -EINVAL, []),
        (too_small, 0, 7, -EINVAL, []),
        (across, 12, 8, -EINVAL, []),
        (dontneed_whole, 0, 8, -EINVAL, []),  # the table is gone with its pages
        (dontneed_part, 0, 8, 0, [0]),
        (guarded, 0, 16, -EINVAL, []),
        (guarded, 8, 8, 0, [8]),
        (no_longer_guarded, 0, 8, 0, [0]),
        (hole_between, 0, 24, -ENOMEM, [0, 16]),
        (unfaulted_before_hole, 0, 24, -EINVAL, []),
        (of_a_file, 0, 8, -EINVAL, []),
        (shared_file, 0, 8, -EINVAL, []),
    ],
)
def test_which_memory(
    make: Callable[[World], None], page: int, pages: int, result: int, huge: list[int]
) -> None:
    """Faulted anonymous memory in whole ranges, holes and all; else an error that says whether to try again."""
    world = World()
    make(world)
    before = world.contents()
    assert collapse(world, page, pages) == result
    assert [first for first in (0, 8, 16) if is_huge(world, first)] == huge
    assert world.contents() == before
    check_all(world)


def test_a_huge_page_already() -> None:
    """Counts as collapsed, and stays the same page."""
    world = mapped(8, 3)
    assert collapse(world, 0, 8) == 0
    folio = world.folio(0)
    assert collapse(world, 0, 8) == 0
    assert world.folio(0) is folio


def test_guards_stay() -> None:
    """A range that was refused for its guard still faults there."""
    world = World()
    guarded(world)
    assert collapse(world, 0, 8) == -EINVAL
    assert world.do("read", 5) == SIGSEGV


def test_sealed_memory() -> None:
    """A collapse throws nothing away: seals do not forbid it."""
    world = mapped(8, 3)
    world.vma(0).vm_flags |= VM_SEALED
    assert collapse(world, 0, 8) == 0
    assert world.do("munmap", 0, 8) == -EPERM


@pytest.mark.parametrize("flag", [VM_IO, VM_PFNMAP, VM_DONTEXPAND, VM_MIXEDMAP, VM_HUGETLB])
def test_special_memory(flag: int) -> None:
    """VM_SPECIAL and hugetlb VMAs are none of its business."""
    world = mapped(8, 3)
    world.vma(0).vm_flags |= flag
    assert collapse(world, 0, 8) == -EINVAL


# ---- who uses a page


@pytest.mark.parametrize("flags", [0, FOLL_WRITE, FOLL_PIN, PIN_RW])
@pytest.mark.parametrize("page", [0, 7])
def test_a_page_in_use_refuses(flags: int, page: int) -> None:
    """A pin or a reference: try again later. Afterwards everything is as it was, and the pin is still coherent."""
    world = mapped(16, *range(8))
    assert world.do("gup_fast", page, flags, 0) == 0
    before = {number: world.folio(number) for number in range(8)}
    assert collapse(world, 0, 8) == -EAGAIN
    assert {number: world.folio(number) for number in range(8)} == before
    assert world.machine.pins[0].folio is world.folio(page)
    check_all(world)
    assert_coherent(world, page)
    assert world.do("unpin", 0) == 0
    assert collapse(world, 0, 8) == 0
    check_all(world)


def test_a_reference_to_the_zero_page_does_not_count() -> None:
    """It is nobody's."""
    world = mapped(8, 1)
    assert world.do("read", 3) == 0
    assert world.do("gup_fast", 3, FOLL_PIN, 0) == 0
    assert collapse(world, 0, 8) == 0
    check_all(world)


def test_other_ranges_are_tried_after_a_page_in_use() -> None:
    """Trying again may help, so the rest is done now; not after an error that stays."""
    world = mapped(24, 1, 9, 17)
    assert world.do("gup_fast", 1, PIN_RW, 0) == 0
    assert collapse(world, 0, 24) == -EAGAIN
    assert [is_huge(world, page) for page in (0, 8, 16)] == [False, True, True]
    check_all(world)


def test_a_locked_page_refuses() -> None:
    world = mapped(8, 1)
    folio = isolated(world, 1)
    world.image.swap.folio_put(world.machine, folio)  # the lock alone
    assert collapse(world, 0, 8) == -EAGAIN
    world.image.swap.folio_get(folio)
    let_go(world, folio)
    assert collapse(world, 0, 8) == 0


def test_an_isolated_page_refuses() -> None:
    """Reclaim or migration has it."""
    world = mapped(8, 1)
    world.folio(1).lru = False
    assert collapse(world, 0, 8) == -EAGAIN
    world.folio(1).lru = True
    assert collapse(world, 0, 8) == 0


@pytest.mark.parametrize("written_page", [0, 1])
def test_userfaultfd_wants_to_hear_of_holes(written_page: int) -> None:
    """A registered VMA is collapsed only where no page is missing; no page may be write-protected through it."""
    world = mapped(8, written_page)
    world.vma(0).uffd_ctx = UserfaultfdCtx(world.vma(0).vm_mm, UFFD_FEATURE_SIGBUS)
    assert collapse(world, 0, 8) == -EBUSY
    for page in range(8):
        world.write(page)
    table = table_of(world, 0)
    table.set(4, world.pte(4) | UFFD_WP)
    assert collapse(world, 0, 8) == -EINVAL
    table.set(4, world.pte(4) & ~UFFD_WP)
    assert collapse(world, 0, 8) == 0


def in_use(world: World) -> None:
    assert world.do("gup_fast", 1, PIN_RW, 0) == 0


def off_the_lru(world: World) -> None:
    world.folio(1).lru = False


def locked(world: World) -> None:
    world.folio(1).lock.lock()


def with_userfaultfd(world: World) -> None:
    world.vma(0).uffd_ctx = UserfaultfdCtx(world.vma(0).vm_mm, UFFD_FEATURE_SIGBUS)


def write_protected(world: World) -> None:
    with_userfaultfd(world)
    for page in range(8):
        world.write(page)
    table_of(world, 0).set(1, world.pte(1) | UFFD_WP)


@pytest.mark.parametrize(
    ("obstacle", "result"),
    [
        (in_use, -EAGAIN),
        (off_the_lru, -EAGAIN),
        (locked, -EAGAIN),
        (with_userfaultfd, -EBUSY),
        (write_protected, -EINVAL),
    ],
)
def test_refused_before_a_huge_page_is_allocated(obstacle: Callable[[World], None], result: int) -> None:
    """What can be seen beforehand costs nothing: the allocation that would fail is not tried."""
    world = mapped(8, 1)
    obstacle(world)
    assert collapse(world, 0, 8, fail_nth=2) == result
    assert not world.last.injected


def table_of(world: World, page: int) -> PageTable:
    """The table of PTEs that translates the page."""
    pmd: PageTable = world.image.pgtable_generic.find_table(world.mm(), world.address(page), LEVEL_PMD)
    table = pmd.get(world.image.pgtable_generic.slot_of(world.mm(), world.address(page), LEVEL_PMD))
    assert isinstance(table, PageTable)
    return table


# ---- out of memory


@pytest.mark.parametrize("nth", range(1, 8))
def test_out_of_memory(nth: int) -> None:
    """-ENOMEM for the huge page; -EINVAL when a swapped-out page cannot be read. Nothing is lost."""
    world = mapped(16, *range(12))
    before = world.contents()
    for page in (2, 9):
        assert world.do("reclaim", page) == 1
    result = collapse(world, 0, 16, fail_nth=nth)
    failed = world.machine.sched.current.failed
    wanted = {"folio_alloc_huge": -ENOMEM, "collapse_control": -ENOMEM, "swapin_folio": -EINVAL, "": 0}
    assert result == wanted[failed], failed
    assert world.contents() == before
    check_all(world)
    assert collapse(world, 0, 16) == 0
    assert world.contents() == before
