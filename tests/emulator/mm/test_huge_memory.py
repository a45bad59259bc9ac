"""Huge pages: when a fault maps one, sharing and copying, and what splits the entry that maps it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.errors import KernelBug
from emulator.geometry import LEVEL_PMD
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import DIRTY, PRESENT
from emulator.hw.pte import RW as PTE_RW
from emulator.profile import PROFILES
from emulator.uapi import (
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    OOM_KILLED,
    PROT_NONE,
    PROT_READ,
)
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World
from tests.emulator.mm.world import PIN_RW, anon_vma_of, fault, faulted, huge, is_huge
from tests.emulator.references import check_all

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


def wanting(pages: int, first: int = 0, geometry: str = "small8") -> World:
    """Untouched memory under MADV_HUGEPAGE."""
    world = World(geometry)
    world.mmap(first, pages)
    assert world.do("madvise", first, pages, MADV_HUGEPAGE) == 0
    return world


# ---- faults


@pytest.mark.parametrize("geometry", ["small8", "small4"])
def test_a_fault_maps_a_huge_page(geometry: str) -> None:
    """Whole, exclusive, writable."""
    nr = 8 if geometry == "small8" else 4
    world = wanting(2 * nr, geometry=geometry)
    assert world.do("write", nr + 1, 0) == 0
    folio = world.folio(nr)
    assert is_huge(world, nr)
    assert world.pte(nr) & (PTE_RW | DIRTY) == PTE_RW | DIRTY
    assert (folio.refcount, folio.entire_mapcount, folio.mapcounts) == (1, 1, [0] * nr)
    assert folio.anon_exclusive == 1
    assert folio.index == world.address(nr) >> 12
    assert folio.mapping is anon_vma_of(world, nr)
    assert world.pte(0) == 0
    check_all(world)


@pytest.mark.parametrize(("first", "pages"), [(1, 8), (0, 7), (4, 8)])
def test_a_huge_page_must_fit(first: int, pages: int) -> None:
    """The aligned range must lie in the VMA; else small pages."""
    world = wanting(pages, first)
    world.write(4)
    assert world.folio(4).order == 0
    check_all(world)


def test_memory_that_wants_no_huge_pages() -> None:
    """Without advice, against it, and of files: small pages."""
    world = World()
    world.mmap(0, 8)
    world.mmap(8, 8)
    world.mmap(16, 8, RW, PRIVATE_FIXED, 1)
    world.do("madvise", 8, 8, MADV_NOHUGEPAGE)
    world.do("madvise", 16, 8, MADV_HUGEPAGE)
    for page in (0, 8, 16):
        world.write(page)
        assert world.folio(page).order == 0


def test_always() -> None:
    """A kernel that is set to use them always asks only for the absence of NOHUGEPAGE."""
    world = World(profile=PROFILES["6.18"]._replace(thp_always=True))
    world.mmap(0, 8)
    world.mmap(8, 8)
    world.do("madvise", 8, 8, MADV_NOHUGEPAGE)
    world.write(0)
    world.write(8)
    assert is_huge(world, 0)
    assert not is_huge(world, 8)


@pytest.mark.parametrize("nth", range(1, 9))
def test_no_memory_for_a_huge_page(nth: int) -> None:
    """Without the huge page there are small ones; without the table to be deposited the process is killed."""
    world = wanting(8)
    ret = world.do("write", 0, 0, fail_nth=nth)
    failed = world.machine.sched.current.failed
    if failed == "folio_alloc_huge":
        assert ret == 0
        assert world.folio(0).order == 0
    else:
        assert ret == (OOM_KILLED if failed else 0)
    check_all(world)


def test_small_pages_first() -> None:
    """Where a table of PTEs stands already, faults use it."""
    world = World()
    world.mmap(0, 8)
    world.write(0)
    world.do("madvise", 0, 8, MADV_HUGEPAGE)
    world.write(1)
    assert world.folio(1).order == 0


# ---- write faults


def test_a_shared_huge_page_is_split_and_copied() -> None:
    """The writer's PMD is split, one small page copied; the other process keeps its huge mapping."""
    world = huge()
    world.fork()
    folio = world.folio(0)
    world.write(5, 1)
    assert world.folio(5).order == 0
    assert world.folio(0) is folio
    assert is_huge(world, 0, 1)
    assert folio.mapcounts == [1] * 5 + [0, 1, 1]
    assert folio.entire_mapcount == 1
    check_all(world)


def test_a_huge_page_is_reused_when_the_other_is_gone() -> None:
    """In place and whole; it belongs to the child alone from then on."""
    world = huge()
    world.fork()
    folio = world.folio(0)
    world.do("exit")
    world.write(5, 1, proc=1)
    assert is_huge(world, 5, 1)
    assert world.folio(5, 1) is folio
    assert folio.mapping is anon_vma_of(world, 0, 1)
    assert folio.anon_exclusive == 1
    check_all(world)


def test_an_exclusive_huge_page_becomes_writable_again() -> None:
    """mprotect there and back: no copy, whatever the references."""
    world = huge()
    assert world.do("gup_slow", 2, PIN_RW, 0) == 0
    folio = world.folio(0)
    pmd = world.image.pgtable_generic.find_table(world.mm(), world.address(0), LEVEL_PMD)
    slot = world.image.pgtable_generic.slot_of(world.mm(), world.address(0), LEVEL_PMD)
    pmd.set(slot, world.pte(0) & ~PTE_RW)
    world.machine.tlbs[0].flush_mm(world.mm().asid)
    world.write(1, 1)
    assert world.folio(1) is folio
    assert is_huge(world, 1)
    check_all(world)


@pytest.mark.parametrize("alone", [True, False])
def test_unshare_of_a_huge_page(alone: bool) -> None:
    """Ours alone: marked exclusive and left read-only; shared: split, and one page copied."""
    world = huge()
    world.fork()
    if alone:
        world.do("exit", proc=1)
    assert fault(world, 2, world.image.memory.FAULT_FLAG_UNSHARE) == 0
    assert is_huge(world, 2) is alone
    assert not world.pte(2) & PTE_RW
    folio = world.folio(2)
    assert folio.anon_exclusive & 1
    check_all(world)


def test_reuse_gives_swap_space_back() -> None:
    """A huge page in the swap cache has the cache's references; they do not count as users."""
    world = huge()
    world.fork()
    world.do("exit", proc=1)
    folio = world.folio(0)
    folio.lock.lock()
    assert world.image.swap_state.add_to_swap(world.machine, folio)
    folio.lock.unlock()
    world.write(0, 1)
    assert world.folio(0) is folio
    assert is_huge(world, 0)
    assert world.machine.swap.count == {}
    check_all(world)


# ---- what splits the entry


def split_by_munmap(world: World) -> None:
    assert world.do("munmap", 6, 2) == 0


def split_by_mprotect(world: World) -> None:
    assert world.do("mprotect", 2, 2, PROT_READ) == 0


def split_by_dontneed(world: World) -> None:
    assert world.do("madvise", 2, 1, MADV_DONTNEED) == 0


def split_by_advice(world: World) -> None:
    assert world.do("madvise", 4, 4, MADV_NOHUGEPAGE) == 0


def split_by_mremap(world: World) -> None:
    assert world.do("mremap", 2, 2, 2, MOVE, 20) == 20


def split_by_mmap(world: World) -> None:
    world.mmap(4, 2)


@pytest.mark.parametrize(
    "split",
    [split_by_munmap, split_by_mprotect, split_by_dontneed, split_by_advice, split_by_mremap, split_by_mmap],
)
def test_a_change_of_part_splits_the_entry(split: Callable[[World], None]) -> None:
    """The folio stays large, mapped by PTEs that say what the PMD said; contents are kept."""
    world = huge()
    for page in range(8):
        world.write(page, 1)
    folio = world.folio(0)
    before = dict(world.contents())
    split(world)
    assert not is_huge(world, 0)
    assert not folio.freed
    assert folio.entire_mapcount == 0
    assert folio.anon_exclusive == 0xFF
    for page, content in world.contents().items():
        if page < 8 and world.pte(page) & PRESENT and world.folio(page) is folio:
            assert content == before[page]
            assert bool(world.pte(page) & PTE_RW) is (split is not split_by_mprotect or page not in (2, 3))
    check_all(world)


def test_the_last_page_frees_the_folio() -> None:
    """A partly unmapped folio is freed as a whole, at the end."""
    world = huge()
    folio = world.folio(0)
    world.do("munmap", 0, 5)
    assert folio.partially_mapped
    assert folio.mapcounts == [0] * 5 + [1] * 3
    world.do("munmap", 5, 3)
    assert folio.freed
    check_all(world)


def test_partly_mapped_by_one_process_only() -> None:
    """While another process maps all of it by a PMD, nothing of it can be freed."""
    world = huge()
    world.fork()
    folio = world.folio(0)
    world.do("munmap", 0, 2)
    assert not folio.partially_mapped
    world.do("munmap", 0, 8, proc=1)
    assert folio.partially_mapped
    check_all(world)


@pytest.mark.parametrize(("prot", "writable"), [(PROT_READ, False), (PROT_NONE, False)])
def test_mprotect_of_a_whole_huge_page(prot: int, writable: bool) -> None:
    """The entry changes in one store; back again it is writable at once, being exclusive."""
    world = huge(16)
    assert world.do("mprotect", 0, 8, prot) == 0
    assert is_huge(world, 0)
    assert bool(world.pte(0) & PTE_RW) is writable
    assert world.do("mprotect", 0, 8, RW) == 0
    assert world.pte(0) & PTE_RW
    world.fork()
    assert world.do("mprotect", 0, 8, prot) == 0
    assert world.do("mprotect", 0, 8, RW) == 0
    assert not world.pte(0) & PTE_RW  # shared: a write must fault
    check_all(world)


def test_mremap_moves_the_entry() -> None:
    """From one aligned place to another; misaligned it is split."""
    world = huge(8)
    folio = world.folio(0)
    before = world.content(3)
    assert world.do("mremap", 0, 8, 8, MOVE, 24) == 24
    assert is_huge(world, 24)
    assert world.folio(27) is folio
    assert world.content(27) == before
    assert world.do("mremap", 24, 8, 8, MOVE, 41) == 41
    assert not is_huge(world, 41)
    assert world.content(44) == before
    assert folio.mapcounts == [1] * 8
    check_all(world)


def test_moving_onto_a_huge_page() -> None:
    """The destination was unmapped before: a huge page there ends the machine, a table is in the way."""
    world = huge(16)
    world.write(9)
    mm, m = world.image.huge_memory, world.mm()
    pmd = world.image.pgtable_generic.find_table(m, world.address(0), LEVEL_PMD)
    slots = [world.image.pgtable_generic.slot_of(m, world.address(page), LEVEL_PMD) for page in (0, 8)]
    args = (world.vma(0), world.address(0), world.address(8), pmd, slots[0], pmd, slots[1])
    with pytest.raises(KernelBug, match="move-onto-huge-page"):
        mm.move_huge_pmd(*args)
    mm.split_huge_pmd_address(world.vma(8), world.address(8))
    assert mm.move_huge_pmd(*args) is False
    pmd.set(slots[1], 0)
    mm.split_huge_pmd_address(world.vma(0), world.address(0))
    assert mm.move_huge_pmd(*args) is False


def test_a_huge_page_outside_of_its_vma() -> None:
    """A boundary came to lie inside of it without a split: the kernel's BUG_ON."""
    world = huge(16)
    world.vma(0).vm_end -= 0xC000
    with pytest.raises(KernelBug, match="huge-page-outside-vma"):
        world.image.huge_memory.split_huge_pmd_address(world.vma(0), world.address(0))


def test_operations_on_what_is_no_huge_page() -> None:
    """Whoever comes too late is told so, or finds nothing to do."""
    world = faulted(8)
    thp, vma = world.image.huge_memory, world.vma(0)
    pmd = world.image.pgtable_generic.find_table(world.mm(), world.address(0), LEVEL_PMD)
    slot = world.image.pgtable_generic.slot_of(world.mm(), world.address(0), LEVEL_PMD)
    table = pmd.get(slot)
    assert isinstance(table, PageTable)
    assert thp.change_huge_pmd(vma, pmd, slot, world.address(0), 0, 0) is False
    assert (
        thp.zap_huge_pmd(world.image.mmu_gather.MmuGather(world.mm()), vma, pmd, slot, world.address(0))
        is False
    )
    thp.split_huge_pmd(vma, pmd, slot, world.address(0))
    thp.split_huge_pmd_address(vma, world.address(100))
    assert pmd.get(slot) is table
    assert pmd.ptl.owner is None
