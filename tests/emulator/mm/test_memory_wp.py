"""Write faults on pages that are mapped read-only: reused or copied, and whose rmap they belong to afterwards."""

from __future__ import annotations

import pytest

from emulator.hw.pte import RW as PTE_RW
from emulator.uapi import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_READ
from tests.emulator.kernel_world import RW, World
from tests.emulator.mm.world import anon_vma_of, fault, faulted, huge, isolated
from tests.emulator.references import check_all

pytestmark = pytest.mark.live

SHARED_FIXED = MAP_SHARED | MAP_FIXED


def large(world: World) -> None:
    """Map the huge page at page 0 by PTEs."""
    world.image.huge_memory.split_huge_pmd_address(world.vma(0), world.address(0))


def test_reuse_moves_the_page_to_the_child() -> None:
    """The last user of a once shared page writes in place, and from then on the family is not searched for it."""
    world = faulted()
    world.fork()
    folio = world.folio(0)
    root = folio.mapping
    world.do("exit")
    world.write(0, 1, proc=1)
    assert world.folio(0, 1) is folio
    assert folio.anon_exclusive == 1
    assert folio.mapping is anon_vma_of(world, 0, 1)
    assert folio.mapping is not root
    check_all(world)


def test_another_reference_forbids_reuse() -> None:
    """Somebody reads the page through a reference: what is written now must not appear there."""
    world = faulted()
    world.fork()
    assert world.do("gup_slow", 0, 0, 0) == 0
    world.do("exit", proc=1)
    folio = world.folio(0)
    before = dict(folio.content[0])
    world.write(0, 1)
    assert world.folio(0) is not folio
    assert folio.content == [before]
    check_all(world)


def test_an_exclusive_page_is_reused_whatever_its_references() -> None:
    """The mark counts, not the count: a pinned page must stay the one that its process sees."""
    world = faulted()
    assert world.do("gup_slow", 0, 2, 0) == 0
    folio = world.folio(0)
    world.do("mprotect", 0, 4, PROT_READ)
    world.do("mprotect", 0, 4, RW)
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(0), 0)
    table.set(0, world.pte(0) & ~PTE_RW)
    world.machine.tlbs[0].flush_mm(world.mm().asid)
    world.write(0, 1)
    assert world.folio(0) is folio
    check_all(world)


def test_swap_space_is_given_back_for_reuse() -> None:
    """The swap cache's reference is no user: the copy on the device is dropped instead of the page copied."""
    world = faulted()
    world.fork()
    assert world.do("reclaim", 0) == 1
    assert world.do("read", 0) == 0
    world.do("exit", proc=1)
    folio = world.folio(0)
    assert folio.swapcache
    assert not world.pte(0) & PTE_RW
    world.write(0, 1)
    assert world.folio(0) is folio
    assert not folio.swapcache
    assert world.machine.swap.count == {}
    check_all(world)


def test_a_locked_folio_is_not_reused() -> None:
    """Whoever has the lock may be taking it elsewhere; the fault does not wait for it."""
    world = faulted()
    world.fork()
    world.do("exit", proc=1)
    folio = world.folio(0)
    can_reuse = world.image.memory_wp.wp_can_reuse_anon_folio
    folio.lock.lock()
    assert not can_reuse(folio, world.vma(0))
    folio.lock.unlock()
    assert can_reuse(folio, world.vma(0))


def test_swap_space_of_a_locked_large_folio_is_left_alone() -> None:
    """Neither is the swap cache of a large folio touched without its lock."""
    world = huge()
    large(world)
    folio = isolated(world, 0)
    assert world.image.swap_state.add_to_swap(world.machine, folio)
    world.image.swap.folio_put(world.machine, folio)
    can_reuse = world.image.memory_wp.wp_can_reuse_anon_folio
    assert not can_reuse(folio, world.vma(0))
    assert folio.swapcache
    folio.lock.unlock()
    assert can_reuse(folio, world.vma(0))
    assert not folio.swapcache
    check_all(world)


def test_a_large_folio_is_reused_when_one_process_has_all_of_it() -> None:
    """All references are this process's mappings: reused, but its rmap is not moved."""
    world = huge()
    large(world)
    world.fork()
    folio = world.folio(0)
    mapping = folio.mapping
    world.do("exit")
    assert folio.anon_exclusive == 0
    world.write(5, 1, proc=1)
    assert world.folio(5, 1) is folio
    assert folio.anon_exclusive == 1 << 5
    assert folio.mapping is mapping
    check_all(world)


def test_a_large_folio_in_two_processes_is_copied() -> None:
    """One small page of it, for the writer."""
    world = huge()
    large(world)
    world.fork()
    folio = world.folio(0)
    world.write(5, 1)
    assert world.folio(5).order == 0
    assert world.folio(5, 1) is folio
    assert folio.partially_mapped is False  # every page is still mapped by somebody
    check_all(world)


def test_the_last_page_of_a_large_folio_is_copied() -> None:
    """So that the rest of its memory can be freed."""
    world = huge()
    large(world)
    world.fork()
    world.do("exit", proc=1)
    folio = world.folio(0)
    world.do("munmap", 1, 7)
    assert folio.partially_mapped
    world.write(0, 1)
    assert folio.freed
    check_all(world)


def test_an_extra_reference_forbids_reuse_of_a_large_folio() -> None:
    """As for a small one."""
    world = huge()
    large(world)
    world.fork()
    assert world.do("gup_slow", 3, 0, 0) == 0
    world.do("exit", proc=1)
    folio = world.folio(0)
    world.write(5, 1)
    assert world.folio(5) is not folio
    check_all(world)


def test_write_permission_comes_back_on_shared_pages() -> None:
    """A shared page is never copied; a fault on one that is read-only makes it writable and dirty."""
    world = World()
    world.mmap(0, 1, RW, SHARED_FIXED, 1)
    world.write(0)
    folio = world.folio(0)
    folio.dirty = False
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(0), 0)
    table.set(0, world.pte(0) & ~PTE_RW)
    assert fault(world, 0, 1) == 0
    assert world.folio(0) is folio
    assert folio.dirty
    assert world.pte(0) & PTE_RW


@pytest.mark.parametrize("exclusive", [True, False])
def test_unshare(exclusive: bool) -> None:
    """Breaks sharing and stays read-only; a page that is exclusive already is left alone."""
    world = faulted()
    if exclusive:
        world.do("mprotect", 0, 4, PROT_READ)
    else:
        world.fork()
    folio = world.folio(0)
    assert fault(world, 0, world.image.memory.FAULT_FLAG_UNSHARE) == 0
    assert (world.folio(0) is folio) is exclusive
    assert world.folio(0).anon_exclusive == 1
    assert not world.pte(0) & PTE_RW
    check_all(world)


def test_unshare_of_a_file_page() -> None:
    """A private mapping gets its own copy of the file's page; a shared one has nothing to break."""
    world = World()
    world.mmap(0, 1, RW, MAP_PRIVATE | MAP_FIXED, 1)
    world.mmap(4, 1, RW, SHARED_FIXED, 1)
    for page in (0, 4):
        assert world.do("read", page) == 0
        assert fault(world, page, world.image.memory.FAULT_FLAG_UNSHARE) == 0
    assert world.folio(0).anon
    assert not world.folio(4).anon
    check_all(world)
