"""The swap cache: what comes in, who keeps it, and when slots are free again."""

from __future__ import annotations

import pytest

from emulator.errors import KernelBug
from emulator.hw.pte import PRESENT, SWP_EXCLUSIVE, is_swap, softleaf_value
from emulator.uapi import MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE, OOM_KILLED
from emulator.workload import Op
from tests.emulator.kernel_world import World
from tests.emulator.populated import written
from tests.emulator.references import check_all, every_cut


def swapped_out(pages: int = 4, *, fork: bool = False) -> World:
    """Pages 0 and up written, and page 1 swapped out (after a fork: from parent and child)."""
    world = written(pages, fork=fork)
    assert world.do("reclaim", 1) == 1
    assert is_swap(world.pte(1))
    return world


def slot(world: World, page: int = 1, proc: int = 0) -> int:
    entry = world.pte(page, proc)
    assert is_swap(entry)
    return softleaf_value(entry)


def test_readahead_brings_the_page_into_the_cache_only() -> None:
    """The entry stays a swap entry; the cache has the page, with its contents; a second time there is nothing to do."""
    world = swapped_out()
    before = world.content(1)
    assert world.do("swap_readahead", 1) == 1
    assert is_swap(world.pte(1))
    folio = world.machine.swap.cache[slot(world)]
    assert folio.content[0] == before
    assert folio.refcount == 1
    assert not folio.mapped()
    check_all(world)
    assert world.do("swap_readahead", 1) == 0
    check_all(world)


@pytest.mark.parametrize("page", [0, 2, 9])
def test_readahead_where_nothing_is_swapped_out(page: int) -> None:
    """Present pages, holes and unmapped places are left alone."""
    world = swapped_out()
    assert world.do("swap_readahead", page) == 0
    check_all(world)


def test_a_fault_takes_the_cached_folio() -> None:
    """What readahead brought is what a read maps; a write then has the slot to itself and frees it."""
    world = swapped_out()
    first = slot(world)
    assert world.do("swap_readahead", 1) == 1
    folio = world.machine.swap.cache[first]
    assert world.do("read", 1) == 0
    assert world.folio(1) is folio
    check_all(world)
    world.write(1, 2)
    assert world.folio(1) is folio
    check_all(world)


def test_exclusive_comes_back_exclusive() -> None:
    """A page that was ours alone is ours alone again: no copy at the write."""
    world = swapped_out()
    assert world.pte(1) & SWP_EXCLUSIVE
    assert world.do("read", 1) == 0
    folio = world.folio(1)
    assert folio.anon_exclusive == 1
    world.write(1, 1)
    assert world.folio(1) is folio
    check_all(world)


def test_shared_comes_back_shared() -> None:
    """After a fork the slot is used by two entries; a write in the parent must not show in the child."""
    world = swapped_out(fork=True)
    assert slot(world) == slot(world, proc=1)
    assert world.machine.swap.count[slot(world)] == 2
    assert not world.pte(1) & SWP_EXCLUSIVE
    before = world.content(1)
    world.write(1, 1)
    assert world.content(1, proc=1) == before
    assert world.do("read", 1, proc=1) == 0
    assert dict(world.last.data or ()) == before
    check_all(world)


def test_fork_of_a_swapped_out_page() -> None:
    """Fork counts the slot again and takes the exclusive mark from both entries."""
    world = swapped_out()
    world.fork(1)
    assert world.machine.swap.count[slot(world)] == 2
    assert not (world.pte(1) | world.pte(1, proc=1)) & SWP_EXCLUSIVE
    check_all(world)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("op", [("munmap", 0, 4), ("madvise", 0, 4, MADV_DONTNEED), ("exit",)])
def test_the_last_entry_frees_the_slot(op: tuple, cached: bool) -> None:  # type: ignore[type-arg]
    """With the entry go the slot, what was written to it, and a folio that was cached for it."""
    world = swapped_out()
    if cached:
        assert world.do("swap_readahead", 1) == 1
    assert world.do(*op) == 0
    assert not world.machine.swap.count
    assert not world.machine.swap.content
    assert not world.machine.swap.cache
    check_all(world)


def test_free_swap_needs_the_last_entry() -> None:
    """Swap space of a cached folio is given back only when no entry needs it, and makes the folio dirty then."""
    world = swapped_out(fork=True)
    assert world.do("read", 1) == 0
    image, machine = world.image, world.machine
    folio = world.folio(1)
    folio.lock.lock()
    assert not image.swap_state.folio_free_swap(machine, folio)
    folio.lock.unlock()
    assert world.do("read", 1, proc=1) == 0
    folio.dirty = False
    folio.lock.lock()
    assert image.swap_state.folio_free_swap(machine, folio)
    folio.lock.unlock()
    assert folio.dirty
    assert not machine.swap.count
    check_all(world)


def test_a_mapped_folio_stays_in_the_cache() -> None:
    """The last swap entry goes while another process has the page mapped: the folio and its slot stay for now."""
    world = swapped_out(fork=True)
    assert world.do("read", 1, proc=1) == 0
    folio = world.folio(1, proc=1)
    assert world.do("munmap", 1, 1) == 0
    assert folio.swapcache
    assert world.machine.swap.count == {folio.swap: 0}
    check_all(world)
    assert world.do("munmap", 1, 1, proc=1) == 0
    assert not world.machine.swap.count
    assert folio.freed
    check_all(world)


def test_swap_in_out_of_memory() -> None:
    """Every allocation of a swap-in can fail: the process is killed or the readahead gives up, nothing is lost."""
    for kind, failed in (("read", OOM_KILLED), ("swap_readahead", 0)):
        world = swapped_out()
        before = world.content(1)
        assert world.do(kind, 1, fail_nth=1) == failed
        assert world.last.injected
        assert world.content(1) == before
        check_all(world)


def test_a_slot_freed_too_often_is_reported() -> None:
    """The count of a slot never goes below zero in silence."""
    world = swapped_out()
    number = slot(world)
    world.image.swap_state.swap_put_entries_direct(world.machine, number)
    with pytest.raises(KernelBug, match="swap-count-underflow"):
        world.image.swap_state.swap_put_entries_direct(world.machine, number)


BESIDE = {
    "read": Op("read", 0, (1,)),
    "write": Op("write", 0, (1, 3)),
    "munmap": Op("munmap", 0, (0, 4)),
    "dontneed": Op("madvise", 0, (1, 1, MADV_DONTNEED)),
    "fork": Op("fork", 0, (1,)),
    "move": Op("mremap", 0, (0, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, 20)),
    "again": Op("swap_readahead", 0, (1,)),
}


@pytest.mark.parametrize("beside", BESIDE)
def test_readahead_beside(beside: str) -> None:
    """Wherever the two meet, the page is in the cache once at most, nothing leaks, and contents are right."""
    for world, outcomes, where in every_cut(swapped_out, (Op("swap_readahead", 0, (1,)), BESIDE[beside])):
        check_all(world)
        assert outcomes[1].ret in (0, 1, 20), where
        place = 21 if beside == "move" else 1
        content = world.content(place)
        if beside == "munmap":
            assert content is None, where
        elif beside == "dontneed":
            assert content == {}, where
        else:
            assert content is not None, where
            assert len(content) == (2 if beside == "write" else 1), where
        assert world.do("exit") == 0
        if beside == "fork":
            assert world.do("exit", proc=1) == 0
        check_all(world)


@pytest.mark.parametrize("beside", ["read", "write", "dontneed"])
def test_faults_beside(beside: str) -> None:
    """Two faults, or a fault and a zap, on one swapped-out page."""
    for world, outcomes, where in every_cut(swapped_out, (Op("write", 0, (1, 2)), BESIDE[beside])):
        check_all(world)
        assert [o.ret for o in outcomes] == [0, 0], where
        if beside != "dontneed":
            assert world.pte(1) & PRESENT, where
            assert len(world.content(1) or {}) == (3 if beside == "write" else 2), where
