"""Memory accesses: signals, what a first access maps, the TLB, frames that are gone."""

from __future__ import annotations

import pytest

from emulator.errors import KernelBug
from emulator.hw.pgtable import PageTable, walk_slot
from emulator.hw.pte import ACCESSED, DIRTY, PRESENT, SPECIAL, mk_pte
from emulator.hw.pte import RW as PTE_RW
from emulator.uapi import (
    MADV_HUGEPAGE,
    MAP_FIXED,
    MAP_SHARED,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    SIGBUS,
    SIGSEGV,
)
from emulator.workload import FILE_PAGES
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World

# protection, then what reading, writing and executing give; x86 reads whatever may be accessed in any way
ACCESS = [
    (PROT_NONE, SIGSEGV, SIGSEGV, SIGSEGV),
    (PROT_READ, 0, SIGSEGV, SIGSEGV),
    (PROT_WRITE, 0, 0, SIGSEGV),
    (PROT_EXEC, 0, SIGSEGV, 0),
    (RW, 0, 0, SIGSEGV),
    (RW | PROT_EXEC, 0, 0, 0),
]


@pytest.mark.parametrize(("prot", "read", "write", "execute"), ACCESS)
@pytest.mark.parametrize("populated", [False, True], ids=["empty", "populated"])
def test_permissions(prot: int, read: int, write: int, execute: int, populated: bool) -> None:
    """Each kind of access against each protection, with and without a page there."""
    world = World()
    world.mmap(0, 1, RW if populated else prot)
    if populated:
        world.write(0)
        assert world.do("mprotect", 0, 1, prot) == 0
    assert world.do("read", 0) == read
    assert world.do("write", 0, 0) == write
    assert world.do("exec", 0) == execute


def test_nothing_there() -> None:
    """SIGSEGV beside and between mappings."""
    world = World()
    world.mmap(1, 1)
    world.mmap(3, 1)
    assert [world.do("read", page) for page in range(5)] == [SIGSEGV, 0, SIGSEGV, 0, SIGSEGV]


def test_beyond_the_end_of_a_file() -> None:
    """SIGBUS, for reading and writing, shared and private."""
    world = World()
    for page, flags in ((0, MAP_SHARED | MAP_FIXED), (2, PRIVATE_FIXED)):
        assert world.do("mmap", page, 2, RW, flags, 1, FILE_PAGES - 1) == page
        assert world.do("read", page) == 0
        assert world.do("read", page + 1) == SIGBUS
        assert world.do("write", page + 1, 0) == SIGBUS


def test_first_read_maps_the_zero_page() -> None:
    """Reading untouched memory does not make the VMA faulted."""
    world = World()
    world.mmap(0, 1)
    assert world.do("read", 0) == 0
    assert world.last.data == ()
    assert world.folio(0) is world.machine.phys.zero_folio
    assert world.pte(0) & SPECIAL
    assert not world.pte(0) & PTE_RW
    assert world.vma(0).anon_vma is None


def test_first_write_after_a_read() -> None:
    """The zero page is replaced, and never written."""
    world = World()
    world.mmap(0, 1)
    world.do("read", 0)
    token = world.write(0)
    assert world.content(0) == {0: token}
    assert world.machine.phys.zero_folio.content == [{}]
    assert world.folio(0).anon_exclusive
    assert world.vma(0).anon_vma is not None
    world.check()


def test_writes_gather_in_a_page() -> None:
    """The four places of a page keep what was stored last in each."""
    world = World()
    world.mmap(0, 1)
    world.write(0, 0)
    tokens = {at: world.write(0, at) for at in (0, 3)}
    assert world.content(0) == tokens
    assert world.do("read", 0) == 0
    assert world.last.data == tuple(sorted(tokens.items()))


def test_read_of_huge_page_area_faults_the_vma() -> None:
    """A read fault where a huge page may be makes the VMA faulted at once (do_huge_pmd_anonymous_page)."""
    world = World()
    world.mmap(0, 16)
    assert world.do("madvise", 0, 16, MADV_HUGEPAGE) == 0
    assert world.do("read", 9) == 0
    assert world.vma(0).anon_vma is not None


def test_accessed_and_dirty() -> None:
    """The hardware marks entries: accessed at a load, dirty at a store."""
    world = World()
    world.mmap(0, 1)
    world.write(0)
    table, slot, entry = leaf(world)
    table.set(slot, entry & ~(ACCESSED | DIRTY))
    world.machine.tlbs[0].flush_mm(world.mm().asid)
    world.do("read", 0)
    assert world.pte(0) & (ACCESSED | DIRTY) == ACCESSED
    world.write(0)
    assert world.pte(0) & (ACCESSED | DIRTY) == ACCESSED | DIRTY


def leaf(world: World) -> tuple[PageTable, int, int]:
    """The (table, slot, entry) of page 0."""
    return walk_slot(world.mm(), world.machine.geometry, world.address(0))


def test_stale_translation_is_used() -> None:
    """The TLB answers before the page tables: without a flush a changed entry goes unnoticed."""
    world = World()
    world.mmap(0, 1)
    token = world.write(0)
    table, slot, entry = leaf(world)
    table.set(slot, 0)
    assert world.do("read", 0) == 0
    assert world.last.data == ((0, token),)
    table.set(slot, entry)


def test_each_cpu_has_its_own_tlb() -> None:
    """A process on another CPU walks the tables itself."""
    world = World()
    world.mmap(0, 1)
    world.write(0)
    world.fork()
    cached = [set(tlb.entries) for tlb in world.machine.tlbs]
    world.do("read", 0, proc=1)
    assert len(world.machine.tlbs[1].entries) == len(cached[1]) + 1
    assert set(world.machine.tlbs[0].entries) == cached[0]


def test_freed_frame() -> None:
    """A translation to a frame that has been freed is a use after free."""
    world = World()
    world.mmap(0, 1)
    world.write(0)
    world.folio(0).freed = True
    with pytest.raises(KernelBug, match="use-after-free"):
        world.do("read", 0)


def test_fault_without_progress() -> None:
    """A fault that is handled and comes back for ever is a livelock."""
    world = World()
    world.mmap(0, 1)
    world.write(0)
    table, slot, entry = leaf(world)
    table.set(slot, mk_pte(entry >> 12, PRESENT))  # present for the kernel, without USER: the hardware faults
    world.machine.tlbs[0].flush_mm(world.mm().asid)
    with pytest.raises(KernelBug, match="livelock"):
        world.do("read", 0)


def test_a_fetch_brings_the_page_in_before_it_is_refused() -> None:
    """x86 tells the kernel that the page is missing, not that it may not be executed; the next fetch is refused."""
    world = World()
    world.mmap(0, 1, PROT_READ)
    assert world.do("exec", 0) == SIGSEGV
    assert world.pte(0) & PRESENT
    world.mmap(1, 1, PROT_NONE)
    assert world.do("exec", 1) == SIGSEGV
    assert not world.pte(1)
