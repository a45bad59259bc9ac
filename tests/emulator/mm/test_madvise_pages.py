"""madvise: what each advice about pages does to them, and what it leaves alone."""

from __future__ import annotations

import pytest

from emulator.geometry import PAGE_SIZE
from emulator.hw.pte import PRESENT, is_guard, is_swap
from emulator.hw.pte import RW as PTE_RW
from emulator.mm_types import (
    VM_MAYBE_GUARD,
)
from emulator.uapi import (
    EFAULT,
    EINVAL,
    ENOMEM,
    MADV_COLD,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_WILLNEED,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    SIGSEGV,
)
from emulator.workload import FOLL_PIN, Op
from tests.emulator.kernel_world import World, profile_with
from tests.emulator.populated import two_huge, written
from tests.emulator.references import check_all, every_cut

SHARED = MAP_SHARED | MAP_FIXED


# ---- DONTNEED, FREE, WILLNEED


def test_dontneed_keeps_the_vma_faulted() -> None:
    """The pages go, the anon_vma stays."""
    world = written(4)
    anon_vma = world.vma(0).anon_vma
    assert world.do("madvise", 0, 4, MADV_DONTNEED) == 0
    assert world.vma(0).anon_vma is anon_vma is not None
    assert world.contents() == {page: {} for page in range(4)}
    check_all(world)


def test_dontneed_in_a_huge_page() -> None:
    """Part of it: the PMD is split, the folio is partly mapped. All of it: freed."""
    world = two_huge()
    folio, other = world.folio(0), world.folio(8)
    assert world.do("madvise", 2, 3, MADV_DONTNEED) == 0
    assert folio.partially_mapped
    assert not folio.freed
    assert [world.content(page) == {} for page in range(8)] == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert world.do("madvise", 8, 8, MADV_DONTNEED) == 0
    assert other.freed
    check_all(world)


def test_free_drops_swapped_out_pages() -> None:
    """Pages in memory may stay as long as there is memory; those in swap are not worth reading back."""
    world = written(4)
    assert world.do("reclaim", 1) == 1
    before = world.content(0)
    assert world.do("madvise", 0, 4, MADV_FREE) == 0
    assert world.content(0) == before
    assert world.content(1) == {}
    assert not world.machine.swap.count
    check_all(world)


def test_willneed_reads_swap_into_the_cache() -> None:
    """Entries stay, the cache has the pages."""
    world = written(4)
    for page in (1, 2):
        assert world.do("reclaim", page) == 1
    assert world.do("madvise", 0, 4, MADV_WILLNEED) == 0
    assert is_swap(world.pte(1))
    assert is_swap(world.pte(2))
    assert len(world.machine.swap.cache) == 2
    check_all(world)


# ---- PAGEOUT and COLD


def test_pageout() -> None:
    """Every page of the range that nobody else maps goes to swap, the others stay."""
    world = written(4)
    before = world.contents()
    assert world.do("madvise", 1, 2, MADV_PAGEOUT) == 0
    assert [is_swap(world.pte(page)) for page in range(4)] == [False, True, True, False]
    assert world.contents() == before
    check_all(world)


def test_pageout_leaves_shared_pages() -> None:
    """Pages that a child maps too are not ours to page out; those it has left are."""
    world = written(4)
    world.fork(1)
    assert world.do("munmap", 2, 1, proc=1) == 0
    assert world.do("madvise", 0, 4, MADV_PAGEOUT) == 0
    assert [is_swap(world.pte(page)) for page in range(4)] == [False, False, True, False]
    check_all(world)


def test_pageout_of_a_whole_huge_page() -> None:
    """It goes as one; the other one stays huge."""
    world = two_huge()
    before = world.contents()
    other = world.folio(8)
    assert world.do("madvise", 0, 8, MADV_PAGEOUT) == 0
    assert all(is_swap(world.pte(page)) for page in range(8))
    assert world.folio(8) is other
    assert other.entire_mapcount == 1
    assert world.contents() == before
    check_all(world)


@pytest.mark.parametrize(("advice", "gone"), [(MADV_PAGEOUT, True), (MADV_COLD, False)])
def test_advice_on_part_of_a_huge_page(advice: int, gone: bool) -> None:
    """The folio is split, and only the pages in the range go, none for COLD."""
    world = two_huge()
    before = world.contents()
    assert world.do("madvise", 2, 3, advice) == 0
    assert [is_swap(world.pte(page)) for page in range(8)] == [
        gone and page in (2, 3, 4) for page in range(8)
    ]
    assert all(world.folio(page).order == 0 for page in (0, 1, 5, 6, 7))
    assert world.contents() == before
    check_all(world)


def test_advice_on_part_of_a_huge_page_mapped_by_ptes() -> None:
    """The same where a munmap has split the PMD before; what is fully in the range goes whole."""
    world = two_huge()
    assert world.do("munmap", 0, 1) == 0  # the first is mapped by PTEs from now on
    assert world.do("mprotect", 12, 1, PROT_READ) == 0  # and the second
    before = world.contents()
    second = world.folio(8)
    assert world.do("madvise", 4, 2, MADV_PAGEOUT) == 0
    assert [is_swap(world.pte(page)) for page in range(1, 8)] == [page in (4, 5) for page in range(1, 8)]
    assert world.folio(1).order == 0
    assert second.order == 3
    assert world.contents() == before
    check_all(world)


def test_pageout_of_a_huge_page_in_several_vmas() -> None:
    """In no VMA is it mapped as a whole, so it is split as soon as one of them is advised."""
    world = two_huge()
    assert world.do("mprotect", 4, 1, PROT_READ) == 0
    before = world.contents()
    assert world.do("madvise", 0, 8, MADV_PAGEOUT) == 0
    assert all(is_swap(world.pte(page)) for page in range(8))
    assert world.contents() == before
    check_all(world)


def test_pageout_of_neighbouring_huge_pages_in_one_table() -> None:
    """Two huge pages with consecutive frames, half of each in one table: each half is only its own folio's."""
    world = two_huge()
    first, second = world.folio(0), world.folio(8)
    assert second.pfn == first.pfn + 8
    assert world.do("mremap", 0, 16, 16, MREMAP_MAYMOVE | MREMAP_FIXED, 36) == 36
    before = world.contents()
    assert world.do("madvise", 40, 8, MADV_PAGEOUT) == 0
    assert [is_swap(world.pte(page)) for page in range(36, 52)] == [40 <= page < 48 for page in range(36, 52)]
    assert world.contents() == before
    check_all(world)


def test_part_of_a_shared_huge_page_mapped_by_ptes() -> None:
    """Not split either."""
    world = two_huge()
    folio = world.folio(0)
    assert world.do("mprotect", 7, 1, PROT_READ) == 0
    world.fork(1)
    assert world.do("madvise", 1, 2, MADV_PAGEOUT) == 0
    assert world.folio(1) is folio
    assert not folio.freed
    check_all(world)


def test_a_huge_page_that_cannot_be_split_is_passed_over() -> None:
    """A pin: the pages after it are still advised."""
    world = two_huge()
    folio = world.folio(0)
    assert world.do("gup_fast", 1, FOLL_PIN, 0) == 0
    before = world.contents()
    assert world.do("madvise", 2, 14, MADV_PAGEOUT) == 0
    assert world.folio(2) is folio
    assert all(is_swap(world.pte(page)) for page in range(8, 16))
    assert world.contents() == before
    check_all(world)
    assert world.do("madvise", 0, 8, MADV_PAGEOUT) == 0
    assert world.folio(2) is folio
    check_all(world)


def test_a_shared_huge_page_is_left_alone() -> None:
    """Neither paged out nor split."""
    world = two_huge()
    folio = world.folio(0)
    world.fork(1)
    for pages in (8, 3):
        assert world.do("madvise", 0, pages, MADV_PAGEOUT) == 0
        assert world.folio(0) is folio
    assert folio.entire_mapcount == 2
    check_all(world)


def test_pageout_of_files_that_cannot_be_written() -> None:
    """Of a file that the caller may only read, private copies are paged out, the file's own pages not."""
    world = World()
    world.machine.files[0].writable = False
    world.mmap(0, 2, PROT_READ, SHARED, file=1)
    world.mmap(4, 2, file=1)
    for page in (0, 4):
        assert world.do("read", page) == 0
    world.write(5)
    assert world.do("madvise", 0, 2, MADV_PAGEOUT) == 0
    assert world.do("madvise", 4, 2, MADV_PAGEOUT) == 0
    assert world.pte(0) & PRESENT
    assert world.pte(4) & PRESENT
    assert is_swap(world.pte(5))
    check_all(world)


# ---- POPULATE


def test_populate() -> None:
    """READ maps what a read would, WRITE what a write would, all of the range."""
    world = World()
    world.mmap(0, 4)
    assert world.do("madvise", 0, 4, MADV_POPULATE_READ) == 0
    assert all(world.folio(page) is world.machine.phys.zero_folio for page in range(4))
    assert world.do("madvise", 1, 2, MADV_POPULATE_WRITE) == 0
    assert [bool(world.pte(page) & PTE_RW) for page in range(4)] == [False, True, True, False]
    check_all(world)


def test_populate_errors() -> None:
    """A hole is -ENOMEM, wrong permissions -EINVAL, beyond a file or a guard -EFAULT; what comes before is done."""
    world = World()
    world.mmap(0, 2)
    world.mmap(2, 1, PROT_READ)
    world.mmap(5, 1, PROT_NONE)
    assert world.do("madvise", 0, 3, MADV_POPULATE_WRITE) == -EINVAL
    assert world.pte(1) & PTE_RW
    assert world.do("madvise", 0, 5, MADV_POPULATE_READ) == -ENOMEM
    assert world.pte(2) & PRESENT
    assert world.do("madvise", 5, 1, MADV_POPULATE_READ) == -EINVAL
    assert world.do("madvise", 0, 1, MADV_GUARD_INSTALL) == 0
    assert world.do("madvise", 0, 2, MADV_POPULATE_READ) == -EFAULT
    world.machine.files[0].f_mapping.size = PAGE_SIZE
    world.mmap(8, 2, flags=SHARED, file=1)
    assert world.do("madvise", 8, 2, MADV_POPULATE_READ) == -EFAULT
    assert world.pte(8) & PRESENT
    world.mmap(12, 1)
    assert world.do("madvise", 12, 1, MADV_POPULATE_WRITE, fail_nth=1) == -ENOMEM
    check_all(world)


# ---- guard regions


def test_guards() -> None:
    """Accesses fault until the guard is removed; what was there is gone, what is beside it stays."""
    world = written(4)
    before = world.content(3)
    assert world.do("madvise", 1, 2, MADV_GUARD_INSTALL) == 0
    for page in (1, 2):
        assert is_guard(world.pte(page))
        assert world.do("read", page) == SIGSEGV
        assert world.do("write", page, 0) == SIGSEGV
        assert world.do("gup_slow", page, FOLL_PIN, 0) == -EFAULT
    check_all(world)
    assert world.do("madvise", 0, 4, MADV_GUARD_REMOVE) == 0
    assert [world.content(page) for page in (1, 2, 3)] == [{}, {}, before]
    world.write(1)
    check_all(world)


def test_guards_make_the_vma_faulted() -> None:
    """Installing prepares an anon_vma even where no page ever was; the VMA is not split."""
    world = World()
    world.mmap(0, 4)
    assert world.do("madvise", 1, 1, MADV_GUARD_INSTALL) == 0
    assert world.vma(0).anon_vma is not None
    assert world.layout() == [(0, 4)]
    check_all(world)


def test_guards_of_kernels_without_the_flag() -> None:
    """They make every VMA faulted, file mappings too: nothing else would have fork copy the markers."""
    world = World(profile=profile_with(vm_ignore_merge=0))
    world.mmap(0, 4, file=1)
    assert world.do("madvise", 1, 1, MADV_GUARD_INSTALL) == 0
    assert world.vma(0).anon_vma is not None
    assert not world.vma(0).vm_flags & VM_MAYBE_GUARD
    check_all(world)


def test_guard_flag_of_newer_kernels() -> None:
    """Late 6.18 kernels and all since 6.19: the whole VMA gets a flag that stops no merge and is never taken back."""
    world = World(profile=profile_with(vm_ignore_merge=VM_MAYBE_GUARD))
    world.mmap(0, 4)
    assert world.do("madvise", 1, 1, MADV_GUARD_INSTALL) == 0
    assert world.vma(0).vm_flags & VM_MAYBE_GUARD
    assert world.do("madvise", 0, 4, MADV_GUARD_REMOVE) == 0
    assert world.vma(0).vm_flags & VM_MAYBE_GUARD
    assert world.do("madvise", 0, 2, MADV_RANDOM) == 0
    assert world.vma(0).vm_flags & VM_MAYBE_GUARD
    assert world.do("madvise", 0, 2, MADV_NORMAL) == 0
    assert world.layout() == [(0, 4)]


def test_guard_flag_of_a_merge_partner() -> None:
    """A VMA without guards that merges with one that has the flag gets it too."""
    world = World(profile=profile_with(vm_ignore_merge=VM_MAYBE_GUARD))
    world.mmap(0, 4)
    assert world.do("madvise", 0, 2, MADV_RANDOM) == 0
    assert world.do("madvise", 1, 1, MADV_GUARD_INSTALL) == 0
    assert not world.vma(2).vm_flags & VM_MAYBE_GUARD
    assert world.do("madvise", 2, 2, MADV_RANDOM) == 0
    assert world.layout() == [(0, 4)]
    assert world.vma(2).vm_flags & VM_MAYBE_GUARD


def test_guards_in_a_huge_page() -> None:
    """The huge page is zapped where the guard comes, the rest keeps its contents."""
    world = two_huge()
    before = world.contents()
    assert world.do("madvise", 2, 9, MADV_GUARD_INSTALL) == 0
    for page in range(16):
        guarded = 2 <= page < 11
        assert is_guard(world.pte(page)) == guarded
        assert world.content(page) == ({} if guarded else before[page])
    check_all(world)


def test_guards_survive() -> None:
    """DONTNEED, FREE, PAGEOUT and fork leave guards; so does a second installation."""
    world = written(4)
    assert world.do("madvise", 1, 1, MADV_GUARD_INSTALL) == 0
    for advice in (MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT, MADV_GUARD_INSTALL):
        assert world.do("madvise", 0, 4, advice) == 0
        assert is_guard(world.pte(1))
    world.fork(1)
    assert world.do("read", 1, proc=1) == SIGSEGV
    assert world.do("madvise", 1, 1, MADV_GUARD_REMOVE, proc=1) == 0
    assert world.do("read", 1, proc=1) == 0
    assert world.do("read", 1) == SIGSEGV
    check_all(world)


def test_guards_out_of_memory() -> None:
    """Page tables and the anon_vma can fail: -ENOMEM, and everything is sound."""
    nth = 1
    while True:
        world = World()
        world.mmap(0, 12)
        ret = world.do("madvise", 0, 12, MADV_GUARD_INSTALL, fail_nth=nth)
        check_all(world)
        if not world.last.injected:
            break
        assert ret == -ENOMEM
        nth += 1
    assert ret == 0
    assert nth > 3


# ---- beside something else

BESIDE = {
    "read": Op("read", 0, (1,)),
    "write": Op("write", 0, (1, 3)),
    "fork": Op("fork", 0, (1,)),
    "dontneed": Op("madvise", 0, (0, 4, MADV_DONTNEED)),
    "pageout": Op("madvise", 0, (0, 4, MADV_PAGEOUT)),
    "migrate": Op("migrate", 0, (1,)),
    "reclaim": Op("reclaim", 0, (1,)),
    "readahead": Op("swap_readahead", 0, (1,)),
    "pin": Op("gup_fast", 0, (1, FOLL_PIN, 0)),
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("make", [written, two_huge])
@pytest.mark.parametrize(
    "advice", [MADV_PAGEOUT, MADV_DONTNEED, MADV_GUARD_INSTALL, MADV_POPULATE_WRITE, MADV_FREE]
)
def test_madvise_beside(beside: str, make, advice: int) -> None:  # type: ignore[no-untyped-def]
    """Wherever the two meet: counts add up, pages outside the range keep their contents, inside none is mixed up."""
    before = make().contents()
    for world, outcomes, where in every_cut(make, (Op("madvise", 0, (0, 3, advice)), BESIDE[beside])):
        check_all(world)
        assert outcomes[0].ret == 0, where
        for page, content in world.contents().items():
            old = {k: v for k, v in content.items() if (k, page) != (3, 1)}
            assert old in ({}, before[page]), where
            if page >= 4 or (advice == MADV_PAGEOUT and beside not in ("write", "dontneed")):
                assert content == before[page], where
            if advice == MADV_GUARD_INSTALL and page < 3:
                assert is_guard(world.pte(page)), where
