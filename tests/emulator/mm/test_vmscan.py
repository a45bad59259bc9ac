"""Reclaim: who must give a folio back, who keeps it, and that contents survive every race."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.hw.pte import DIRTY, PRESENT, is_swap
from emulator.mm_types import VM_LOCKED
from emulator.uapi import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE, Op, Switch
from tests.emulator.kernel_world import World
from tests.emulator.populated import forked, huge, written
from tests.emulator.references import TO_THE_END, check_all, every_cut, every_two_cuts

# ---- what becomes of one folio


@pytest.mark.parametrize("fork", [False, True])
def test_the_page_goes_to_swap_and_comes_back(fork: bool) -> None:
    """Entries of every process become swap entries, the folio is freed, a read finds the same contents."""
    world = written(fork=fork)
    folio, before = world.folio(1), world.content(1)
    assert world.do("reclaim", 1) == 1
    assert folio.freed
    for proc in range(1 + fork):
        assert is_swap(world.pte(1, proc))
    check_all(world)
    for proc in range(1 + fork):
        assert world.do("read", 1, proc=proc) == 0
        assert dict(world.last.data or ()) == before
    check_all(world)


def test_a_clean_page_is_not_written_again() -> None:
    """A page that was read back and not changed keeps its slot and what is written there."""
    world = written()
    assert world.do("reclaim", 1) == 1
    entry = world.pte(1)
    assert world.do("read", 1) == 0
    assert world.folio(1).swapcache
    assert not world.folio(1).dirty
    written_out = world.machine.swap.content[entry >> 12]
    assert world.do("reclaim", 1) == 1
    assert world.pte(1) == entry
    assert world.machine.swap.content[entry >> 12] is written_out
    check_all(world)


def test_a_changed_page_is_written_again() -> None:
    """What is stored after a swap-in must reach swap at the next reclaim."""
    world = written()
    for at in range(1, 4):
        assert world.do("reclaim", 1) == 1
        world.write(1, at)
    assert world.do("reclaim", 1) == 1
    assert sorted(world.content(1) or {}) == [0, 1, 2, 3]
    check_all(world)


@pytest.mark.parametrize("page", [5, 9])
def test_nothing_to_reclaim(page: int) -> None:
    """An unmapped place, and the zero page."""
    world = written()
    world.mmap(5, 1)
    assert world.do("read", 5) == 0
    assert world.do("reclaim", page) == 0
    check_all(world)


def test_pinned_pages_stay_mapped() -> None:
    """A pin keeps the folio out of swap altogether: it does not even get a slot."""
    world = written()
    folio = world.folio(1)
    assert world.do("gup_fast", 1, FOLL_PIN | FOLL_WRITE, 0) == 0
    assert world.do("reclaim", 1) == 0
    assert world.folio(1) is folio
    assert not folio.swapcache
    check_all(world)


def test_referenced_pages_are_unmapped_and_kept() -> None:
    """An ordinary reference does not keep it mapped, but the folio stays in the cache, and comes back as it is."""
    world = written()
    folio = world.folio(1)
    assert world.do("gup_fast", 1, FOLL_WRITE, 0) == 0
    assert world.do("reclaim", 1) == 0
    assert is_swap(world.pte(1))
    assert not folio.freed
    assert folio.dirty  # it was not written either: the reference may be used for writing
    assert not world.machine.swap.content
    check_all(world)
    assert world.do("pin_write", 0, 3) == 0
    assert world.do("unpin", 0) == 0
    assert folio.dirty
    assert world.do("read", 1) == 0
    assert world.folio(1) is folio
    assert sorted(world.content(1) or {}) == [0, 3]
    check_all(world)


def test_no_room_in_swap() -> None:
    """Without a slot the page stays as it was."""
    world = written()
    folio = world.folio(1)
    assert world.do("reclaim", 1, fail_nth=1) == 0
    assert world.last.injected
    assert world.folio(1) is folio
    assert folio.anon_exclusive == 1
    check_all(world)


def test_locked_memory_stays() -> None:
    """mlock()ed pages are not taken away."""
    world = written()
    world.vma(1).vm_flags |= VM_LOCKED
    folio = world.folio(1)
    assert world.do("reclaim", 1) == 0
    assert world.folio(1) is folio
    check_all(world)


def test_file_pages_are_unmapped_and_kept() -> None:
    """There is nowhere to write a file's page to: it is unmapped, and found again in the page cache."""
    world = World()
    world.mmap(0, 2, flags=MAP_SHARED | MAP_FIXED, file=1)
    world.write(0, 2)
    folio, before = world.folio(0), world.content(0)
    assert world.do("reclaim", 0) == 0
    assert world.pte(0) == 0
    assert folio.dirty
    check_all(world)
    assert world.do("read", 0) == 0
    assert world.folio(0) is folio
    assert world.content(0) == before
    check_all(world)


def test_isolated_by_somebody_else() -> None:
    """One reclaimer has a folio to itself; the second takes no reference that would spoil the first one's count."""
    world = written()
    world.folio(1).lru = False
    assert world.do("reclaim", 1) == 0
    assert world.folio(1).refcount == 1
    world.folio(1).lru = True
    check_all(world)


# ---- huge pages


def test_a_huge_page_goes_whole() -> None:
    """It gets consecutive slots, its PMD is split into swap entries, and all contents come back."""
    world = huge()
    before = world.contents()
    folio = world.folio(0)
    assert world.do("reclaim", 2) == 1
    assert folio.freed
    assert folio.order == 3
    assert all(is_swap(world.pte(page)) for page in range(8))
    assert world.contents() == before
    check_all(world)
    for page in range(8):
        assert world.do("read", page) == 0
    assert world.contents() == before
    check_all(world)


def test_no_room_for_a_huge_page_as_a_whole() -> None:
    """Then it is split, and its pages go one by one."""
    world = huge()
    before = world.contents()
    assert world.do("reclaim", 2, fail_nth=1) == 1
    assert world.last.injected
    assert all(is_swap(world.pte(page)) for page in range(8))
    assert world.contents() == before
    check_all(world)


def test_a_partly_mapped_huge_page_is_split() -> None:
    """What is unmapped of it is freed, not written."""
    world = huge()
    assert world.do("munmap", 0, 3) == 0
    folio, before = world.folio(5), world.contents()
    assert world.do("reclaim", 5) == 1
    assert world.machine.phys.frames[folio.pfn + 5].order == 0
    assert len(world.machine.swap.count) == 5
    assert world.contents() == before
    check_all(world)


@pytest.mark.parametrize("flags", [FOLL_PIN | FOLL_WRITE, FOLL_WRITE])
def test_a_huge_page_that_is_in_use(flags: int) -> None:
    """Neither a pin nor a reference lets a large folio go: it could not be split."""
    world = huge()
    folio = world.folio(0)
    assert world.do("gup_fast", 3, flags, 0) == 0
    assert world.do("reclaim", 0) == 0
    assert world.folio(0) is folio
    assert not folio.swapcache
    check_all(world)


# ---- beside something else

MOVE = Op("mremap", 0, (0, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, 20))
BESIDE = {
    "read": Op("read", 0, (1,)),
    "write": Op("write", 0, (1, 3)),
    "fork": Op("fork", 0, (2,)),
    "munmap": Op("munmap", 0, (0, 4)),
    "dontneed": Op("madvise", 0, (0, 4, MADV_DONTNEED)),
    "pageout": Op("madvise", 0, (0, 4, MADV_PAGEOUT)),
    "read-only": Op("mprotect", 0, (0, 4, PROT_READ)),
    "move": MOVE,
    "migrate": Op("migrate", 0, (1,)),
    "reclaim": Op("reclaim", 0, (1,)),
    "exit": Op("exit", 0, ()),
    "child-write": Op("write", 1, (1, 3)),
    "child-exit": Op("exit", 1, ()),
    "child-pin": Op("gup_fast", 1, (1, FOLL_PIN, 0)),
}


def check_contents(world: World, before: dict[int, dict[int, int]], beside: str, where: str) -> None:
    """Pages 0-3 of the first process hold what they should."""
    if beside in ("munmap", "exit"):
        assert 0 not in world.machine.procs or not world.layout(), where
        return
    moved = 20 if beside == "move" else 0
    for page in range(4):
        content = world.content(page + moved)
        assert content is not None, where
        if beside == "dontneed":
            assert content == {}, where
        elif beside == "write" and page == 1:
            assert {0: content[0]} == before[1], where
            assert len(content) == 2, where
        else:
            assert content == before[page], where


@pytest.mark.parametrize(
    ("beside", "make"),
    [
        (beside, make)
        for beside, op in BESIDE.items()
        for make in (written, forked)
        if make is forked or not op.proc
    ],
)
def test_reclaim_beside(beside: str, make: Callable[[], World]) -> None:
    """Wherever the two meet: references, slots and mapcounts add up, and no page is lost or mixed up."""
    before = make().contents()
    for world, _, where in every_cut(make, (Op("reclaim", 0, (1,)), BESIDE[beside])):
        check_all(world)
        check_contents(world, before, beside, where)
        if 1 in world.machine.procs:
            child = world.content(1, proc=1)
            assert child is not None, where
            assert child[0] == before[1][0], where
            assert len(child) == (2 if beside == "child-write" else 1), where


@pytest.mark.parametrize(
    "beside", ["write", "fork", "munmap", "move", "migrate", "child-write", "child-exit"]
)
def test_reclaim_beside_with_two_cuts(beside: str) -> None:
    """As above where both are interrupted, in a forked world."""
    before = forked().contents()
    for world, _, where in every_two_cuts(forked, (Op("reclaim", 0, (1,)), BESIDE[beside]), step=2):
        check_all(world)
        check_contents(world, before, beside, where)


@pytest.mark.parametrize("beside", ["write", "read", "fork", "munmap", "migrate", "dontneed"])
def test_huge_reclaim_beside(beside: str) -> None:
    """As above with a huge page: it may be met unmapped, split, or half gone."""
    before = huge().contents()
    for world, _, where in every_cut(huge, (Op("reclaim", 0, (1,)), BESIDE[beside])):
        check_all(world)
        for page in range(8):
            if (beside in ("munmap", "dontneed") and page < 4) or (beside == "write" and page == 1):
                continue
            assert world.content(page) == before[page], where


def test_a_page_that_looks_clean_is_written() -> None:
    """A page copied by a read pin has a clean entry, and is nowhere but in memory."""
    world = forked()
    before = world.content(1)
    assert world.do("gup_fast", 1, FOLL_PIN, 0) == 0
    assert world.do("unpin", 0) == 0
    assert not world.pte(1) & DIRTY
    world.folio(1).dirty = False
    assert world.do("reclaim", 1) == 1
    assert world.content(1) == before
    check_all(world)


def test_what_is_written_out_is_a_copy() -> None:
    """A store to the page after it was written out does not reach the device by itself."""
    world = written()
    ops = (Op("reclaim", 0, (1,)), Op("read", 0, (1,)))
    world.collide(ops, (Switch(0, "reclaim.before_free", 1), Switch(1, "", TO_THE_END)))
    folio = world.folio(1)
    assert folio.swapcache
    world.write(1, 2)
    assert sorted(world.machine.swap.content[folio.swap]) == [0]
    assert world.do("reclaim", 1) == 1
    assert sorted(world.content(1) or {}) == [0, 2]
    check_all(world)


def test_a_write_before_the_end_keeps_the_folio() -> None:
    """The folio is written out, then found in the swap cache and stored to: it must not be freed."""
    world = written()
    folio = world.folio(1)
    ops = (Op("reclaim", 0, (1,)), Op("write", 0, (1, 2)))
    outcomes = world.collide(ops, (Switch(0, "reclaim.before_free", 1), Switch(1, "", TO_THE_END)))
    assert [o.ret for o in outcomes] == [0, 0]
    assert world.pte(1) & PRESENT
    assert world.folio(1) is folio
    assert sorted(world.content(1) or {}) == [0, 2]
    check_all(world)
    assert world.do("reclaim", 1) == 1
    assert sorted(world.content(1) or {}) == [0, 2]
    check_all(world)
