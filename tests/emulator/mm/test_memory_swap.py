"""Faults on swap entries: what comes back, exclusive or shared, alone or as a large folio, and when not at all."""

from __future__ import annotations

import pytest

from emulator.errors import KernelBug
from emulator.hw.pte import PRESENT, SWP_EXCLUSIVE, is_swap
from emulator.hw.pte import RW as PTE_RW
from emulator.mm_types import VM_LOCKED, Folio
from emulator.uapi import OOM_KILLED, PROT_READ
from emulator.workload import Op
from tests.emulator.kernel_world import World, profile_with
from tests.emulator.mm.world import anon_vma_of, fault, faulted, huge, isolated, let_go, warnings
from tests.emulator.references import check_all, every_cut


def swapped_out(children: int = 0, profile: str = "6.18") -> World:
    """Page 0 written, ``children`` forked, and the page swapped out of all of them."""
    world = faulted(profile=profile)
    for child in range(1, children + 1):
        world.fork(child)
    assert world.do("reclaim", 0) == 1
    assert is_swap(world.pte(0))
    return world


def large_in_swap_cache(children: int = 0) -> World:
    """Pages 0 to 7 of all processes are swap entries of one large folio, which is still in the cache."""
    world = huge()
    for child in range(1, children + 1):
        world.fork(child)
    folio = isolated(world, 0)
    assert world.image.swap_state.add_to_swap(world.machine, folio)
    world.image.rmap_unmap.try_to_unmap(folio)
    let_go(world, folio)
    assert all(is_swap(world.pte(page)) for page in range(8))
    assert folio.refcount == 8
    return world


def cached(world: World) -> Folio:
    """The folio in the swap cache."""
    return next(iter(world.machine.swap.cache.values()))


@pytest.mark.parametrize(
    ("profile", "write", "cached"),
    [("6.18", False, True), ("6.18", True, False), ("7.0", False, True), ("7.0", True, True)],
)
def test_an_exclusive_page_comes_back_writable(profile: str, write: bool, cached: bool) -> None:
    """Nobody else has it: no second fault at the first write.

    Its swap space stays for when it is clean; before 7.0 a write gives it back (observed on 6.18.44).
    """
    world = swapped_out(profile=profile)
    before = world.content(0)
    if write:
        world.write(0, 3)
    else:
        assert world.do("read", 0) == 0
    assert world.pte(0) & PTE_RW
    folio = world.folio(0)
    assert folio.anon_exclusive == 1
    assert folio.mapping is anon_vma_of(world, 0)
    assert (before or {}).items() <= (world.content(0) or {}).items()
    assert folio.swapcache is cached
    check_all(world)


def test_a_read_only_vma_gets_a_read_only_page() -> None:
    """Exclusive, but not writable; mprotect can make it so later."""
    world = swapped_out()
    world.do("mprotect", 0, 4, PROT_READ)
    assert world.do("read", 0) == 0
    assert not world.pte(0) & PTE_RW
    assert world.folio(0).anon_exclusive == 1
    check_all(world)


def test_a_shared_page_comes_back_for_everybody() -> None:
    """One folio for parent and child again, read-only, hanging at the family's root."""
    world = swapped_out(1)
    assert not world.pte(0, 1) & SWP_EXCLUSIVE
    assert world.do("read", 0, proc=1) == 0
    assert world.do("read", 0) == 0
    folio = world.folio(0)
    assert world.folio(0, 1) is folio
    assert folio.mapping is anon_vma_of(world, 0)
    assert folio.anon_exclusive == 0
    assert not world.pte(0) & PTE_RW
    assert world.machine.swap.count == {folio.swap: 0}
    check_all(world)


def test_writing_a_shared_page_copies_it() -> None:
    """The other's swap entry goes on to hold the old contents."""
    world = swapped_out(1)
    before = world.content(0)
    world.write(0, 3, proc=1)
    assert is_swap(world.pte(0))
    assert world.content(0) == before
    assert world.folio(0, 1).mapping is anon_vma_of(world, 0, 1)
    check_all(world)


def test_the_last_to_write_takes_the_folio() -> None:
    """All others are gone: the write drops the swap cache's copy and uses the folio itself."""
    world = swapped_out(1)
    world.do("exit", proc=1)
    world.write(0, 3)
    assert world.folio(0).anon_exclusive == 1
    assert not world.folio(0).swapcache
    assert world.machine.swap.count == {}
    check_all(world)


def test_locked_memory_gives_its_swap_space_back() -> None:
    """It will not be swapped out again."""
    world = swapped_out()
    world.vma(0).vm_flags |= VM_LOCKED
    assert world.do("read", 0) == 0
    assert not world.folio(0).swapcache
    assert world.machine.swap.count == {}


def test_no_memory_to_swap_in() -> None:
    """Killed; the contents stay on the device."""
    world = swapped_out()
    before = world.content(0)
    assert world.do("read", 0, fail_nth=1) == OOM_KILLED
    assert world.content(0) == before
    check_all(world)
    assert world.do("read", 0) == 0
    assert world.content(0) == before


def test_no_memory_for_the_copy() -> None:
    """The folio is mapped read-only by then; the next write tries again."""
    world = swapped_out(1)
    world.do("swap_readahead", 0)
    assert world.do("write", 0, 3, fail_nth=1) == OOM_KILLED
    assert world.last.injected
    assert world.pte(0) & (PRESENT | PTE_RW) == PRESENT
    check_all(world)


def test_the_slot_was_freed_meanwhile() -> None:
    """The entry was unmapped between the fault's look and the read: not out of memory, just try again."""
    for world, outcomes, where in every_cut(swapped_out, (Op("read", 0, (0,)), Op("madvise", 0, (0, 4, 4)))):
        assert outcomes[0].ret == 0, where
        check_all(world)


def test_a_swap_entry_that_lies() -> None:
    """Exclusive with two users is complained of; a swap entry for a page that is mapped exclusively ends all."""
    world = swapped_out()
    world.machine.swap.get(1)
    assert fault(world, 0) == 0
    assert warnings(world) == ["swap-exclusive-shared"]
    folio = world.folio(0)
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(0), 0)
    entry = world.image.rmap_unmap.mk_softleaf(1, folio.swap)
    table.set(0, entry)
    with pytest.raises(KernelBug, match="swap-entry-exclusive-page"):
        fault(world, 0)


# ---- large folios


@pytest.mark.parametrize("children", [0, 1])
def test_a_large_folio_comes_back_whole(children: int) -> None:
    """All entries of the table want it: all are mapped by one fault."""
    world = large_in_swap_cache(children)
    folio = cached(world)
    before = world.contents()
    assert world.do("read", 6) == 0
    assert folio.mapcounts == [1] * 8
    assert folio.anon_exclusive == (0 if children else 0xFF)
    assert bool(world.pte(6) & PTE_RW) is not bool(children)
    assert world.contents() == before
    assert sum(world.machine.swap.count.values()) == 8 * children
    check_all(world)


def test_a_large_folio_comes_back_in_part() -> None:
    """One entry is gone: the pages are mapped one at a time."""
    world = large_in_swap_cache()
    folio = cached(world)
    world.do("munmap", 2, 1)
    assert world.do("read", 6) == 0
    assert folio.mapcounts == [0] * 6 + [1, 0]
    assert world.do("read", 0) == 0
    assert folio.mapcounts == [1] + [0] * 5 + [1, 0]
    check_all(world)


def test_a_large_folio_across_two_tables() -> None:
    """Its entries lie in two tables: one page at a time."""
    world = large_in_swap_cache()
    assert world.do("mremap", 0, 8, 8, 3, 20) == 20
    folio = cached(world)
    assert world.do("read", 21) == 0
    assert world.do("read", 26) == 0
    assert sum(folio.mapcounts) == 2
    check_all(world)


def test_a_large_folio_longer_than_the_vma() -> None:
    """The VMA ends inside: the neighbour's entries are not this fault's business."""
    world = large_in_swap_cache()
    world.do("mprotect", 4, 4, PROT_READ)
    folio = cached(world)
    assert world.do("read", 1) == 0
    assert folio.mapcounts == [0, 1] + [0] * 6
    check_all(world)


RACES = {
    "read_read": (Op("read", 0, (0,)), Op("read", 0, (0,))),
    "read_write": (Op("read", 0, (0,)), Op("write", 0, (0, 1))),
    "write_reclaim": (Op("write", 0, (0, 1)), Op("reclaim", 0, (0,))),
    "write_fork": (Op("write", 0, (0, 1)), Op("fork", 0, (2,))),
    "write_migrate": (Op("write", 0, (0, 1)), Op("migrate", 0, (0,))),
    "child_too": (Op("write", 0, (0, 1)), Op("write", 1, (0, 2))),
    "child_exits": (Op("write", 0, (0, 1)), Op("exit", 1, ())),
    "munmap": (Op("write", 0, (0, 1)), Op("munmap", 0, (0, 2))),
}


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize(
    "make", [lambda: swapped_out(1), lambda: large_in_swap_cache(1)], ids=["small", "large"]
)
def test_swap_in_beside(make: object, race: str) -> None:
    """A swap-in interrupted anywhere: contents kept, nothing leaked."""
    assert callable(make)
    for world, _, where in every_cut(make, RACES[race]):
        for proc in world.machine.procs:
            held = world.contents(proc)
            tokens = {at for content in held.values() for at in content}
            assert race == "munmap" or 0 in tokens, where
        check_all(world)


PROMPT = profile_with(swap_synchronous=True)


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_a_device_that_is_memory_is_read_past_the_cache(write: bool) -> None:
    """The page that comes back is in no cache, exclusive as before, and its slot is free at once (observed, zram)."""
    world = World(profile=PROMPT)
    world.mmap(0, 4)
    world.write(0)
    assert world.do("reclaim", 0) == 1
    before = world.content(0)
    assert world.do("write", 0, 1) == 0 if write else world.do("read", 0) == 0
    folio = world.folio(0)
    assert not folio.swapcache
    assert folio.anon_exclusive == 1
    assert world.machine.swap.count == {}
    assert (before or {}).items() <= (world.content(0) or {}).items()
    check_all(world)


def test_what_two_processes_have_goes_through_the_cache() -> None:
    """Both must get the same page; the last one, alone by then, is read past the cache and exclusive."""
    world = World(profile=PROMPT)
    world.mmap(0, 4)
    world.write(0)
    world.fork(1)
    assert world.do("reclaim", 0) == 1
    assert world.do("read", 0) == 0
    assert world.folio(0).swapcache
    assert world.do("reclaim", 0) == 1
    assert world.do("exit", proc=1) == 0
    assert world.do("read", 0) == 0
    assert not world.folio(0).swapcache
    assert world.folio(0).anon_exclusive == 1
    check_all(world)


def test_what_is_read_past_the_cache_belongs_to_who_reads_it() -> None:
    """A child's page is fresh, and so exclusive, though its entry was its parent's too: its mapping is not the root."""
    world = World(profile=PROMPT)
    world.mmap(0, 4)
    world.write(0)
    assert world.do("reclaim", 0) == 1
    world.fork(1)
    assert world.do("munmap", 0, 4) == 0
    assert world.do("read", 0, proc=1) == 0
    folio = world.folio(0, 1)
    assert folio.anon_exclusive == 1
    assert folio.mapping is world.vma(0, 1).anon_vma
    check_all(world)


def test_no_memory_for_a_page_read_past_the_cache() -> None:
    """The access fails, and the next one finds all as it was."""
    world = World(profile=PROMPT)
    world.mmap(0, 4)
    world.write(0)
    assert world.do("reclaim", 0) == 1
    assert world.do("read", 0, fail_nth=1) == OOM_KILLED
    assert is_swap(world.pte(0))
    assert world.do("read", 0) == 0
    check_all(world)
