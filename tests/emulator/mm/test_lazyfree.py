"""MADV_FREE: pages that reclaim throws away instead of writing them out, unless they were written to or are in use."""

from __future__ import annotations

import pytest

from emulator.hw.pte import ACCESSED, DIRTY, PRESENT
from emulator.uapi import MADV_COLD, MADV_FREE, MADV_HUGEPAGE, MADV_PAGEOUT
from emulator.workload import FOLL_PIN, FOLL_WRITE, Op
from tests.emulator.kernel_world import World
from tests.emulator.mm.world import is_huge
from tests.emulator.populated import two_huge, written
from tests.emulator.references import check_all, every_cut


def freed(pages: int = 4) -> World:
    world = written(pages)
    assert world.do("madvise", 0, pages, MADV_FREE) == 0
    return world


def test_clean_and_no_longer_backed_by_swap() -> None:
    """Entries are clean and old, and no TLB says otherwise: a write must be seen in the page table again."""
    world = freed()
    assert [world.pte(page) & (ACCESSED | DIRTY) for page in range(4)] == [0] * 4
    assert not any(world.folio(page).swapbacked for page in range(4))
    world.write(1, 3)
    assert world.pte(1) & DIRTY
    check_all(world)


@pytest.mark.parametrize("how", ["reclaim", "pageout"])
def test_reclaim_throws_it_away(how: str) -> None:
    """No swap is used, the page reads as zeros, the VMA stays faulted."""
    world = freed()
    if how == "reclaim":
        assert world.do("reclaim", 1) == 1
    else:
        assert world.do("madvise", 1, 1, MADV_PAGEOUT) == 0
    assert world.pte(1) == 0
    assert not world.machine.swap.count
    assert world.do("read", 1) == 0
    assert world.last.data == ()
    assert world.content(0) != {}
    check_all(world)


def test_written_again_it_is_kept() -> None:
    """The first reclaim finds it dirty and makes it worth keeping; the next one writes it out."""
    world = freed()
    world.write(1, 3)
    before = world.content(1)
    assert world.do("reclaim", 1) == 0
    assert world.folio(1).swapbacked
    assert world.do("reclaim", 1) == 1
    assert world.machine.swap.count
    assert world.content(1) == before
    check_all(world)


def test_a_reference_keeps_it() -> None:
    """Who has the page may write through it; when it is given back dirty, it is not thrown away."""
    world = freed()
    assert world.do("gup_fast", 1, FOLL_PIN | FOLL_WRITE, 0) == 0
    assert world.do("gup_fast", 2, 0, 1) == 0
    assert [world.do("reclaim", page) for page in (1, 2)] == [0, 0]
    assert world.do("pin_write", 0, 2) == 0
    assert [world.do("unpin", label) for label in (0, 1)] == [0, 0]
    before = world.content(1)
    assert [world.do("reclaim", page) for page in (1, 2)] == [0, 1]
    assert (world.content(1), world.content(2)) == (before, {})
    check_all(world)


def test_what_a_child_has_is_not_thrown_away_for_it() -> None:
    """The child's entry is dirty still: it keeps the page, whatever its parent said."""
    world = written(2)
    world.fork()
    before = world.content(0)
    assert world.do("madvise", 0, 2, MADV_FREE) == 0
    world.do("reclaim", 0)
    assert world.content(0, proc=1) == before
    check_all(world)


def test_a_page_in_the_swap_cache_leaves_it() -> None:
    """It is the only copy then, and may be thrown away."""
    world = written(1)
    world.do("gup_fast", 0, 0, 0)
    assert world.do("reclaim", 0) == 0  # unmapped, written, but in use
    assert world.do("read", 0) == 0
    assert world.do("unpin", 0) == 0
    assert world.do("madvise", 0, 1, MADV_FREE) == 0
    folio = world.folio(0)
    assert not folio.swapcache
    assert not folio.swapbacked
    assert world.do("reclaim", 0) == 1
    assert world.content(0) == {}
    check_all(world)


def test_a_huge_page_goes_whole() -> None:
    """It stays huge, and is thrown away with one entry."""
    world = two_huge()
    assert world.do("madvise", 0, 8, MADV_FREE) == 0
    assert is_huge(world, 0)
    assert world.do("reclaim", 0) == 1
    assert world.pte(0) == 0
    assert world.content(8) != {} or world.content(9) != {}
    check_all(world)


def test_a_huge_page_that_was_written_stays_huge() -> None:
    """The dirty PMD makes it worth keeping; only the next reclaim splits it to write it out."""
    world = two_huge()
    assert world.do("madvise", 0, 8, MADV_FREE) == 0
    world.write(3, 2)
    assert world.do("reclaim", 0) == 0
    assert is_huge(world, 0)
    assert world.folio(0).swapbacked
    check_all(world)


@pytest.mark.parametrize("advice", [MADV_FREE, MADV_COLD])
def test_part_of_a_huge_page(advice: int) -> None:
    """It is split, and only the pages in the range are given up."""
    world = two_huge()
    assert world.do("madvise", 2, 3, advice) == 0
    assert [world.folio(page).order for page in range(8) if world.pte(page) & PRESENT] == [0] * 8
    given_up = [page for page in range(8) if not world.folio(page).swapbacked]
    assert given_up == ([2, 3, 4] if advice == MADV_FREE else [])
    check_all(world)


def test_a_migrated_page_is_still_given_up() -> None:
    """The new folio inherits it."""
    world = freed(1)
    assert world.do("migrate", 0) == 1
    assert not world.folio(0).swapbacked
    assert world.do("reclaim", 0) == 1
    assert world.content(0) == {}


def test_a_page_that_was_never_written() -> None:
    """The zero page, and nothing at all, are left alone."""
    world = World()
    world.mmap(0, 2)
    assert world.do("read", 0) == 0
    assert world.do("madvise", 0, 2, MADV_FREE) == 0
    assert world.do("reclaim", 0) == 0
    assert world.content(0) == {}


@pytest.mark.parametrize("huge", [False, True])
@pytest.mark.parametrize(
    "beside",
    [
        Op("write", 0, (1, 3)),
        Op("gup_fast", 0, (1, FOLL_PIN | FOLL_WRITE, 0)),
        Op("fork", 0, (1,)),
        Op("migrate", 0, (1,)),
    ],
)
def test_reclaim_beside(beside: Op, huge: bool) -> None:
    """Thrown away or kept, but never half: what is written meanwhile stays, a pinned page stays the pinned one."""

    def make() -> World:
        world = World()
        world.mmap(0, 8)
        if huge:
            world.do("madvise", 0, 8, MADV_HUGEPAGE)
        world.write(1)
        world.do("madvise", 0, 8, MADV_FREE)
        return world

    old = make().content(1)
    assert old is not None
    for world, outcomes, where in every_cut(make, (Op("reclaim", 0, (1,)), beside)):
        assert outcomes[1].ret in (0, 1), where
        now = world.content(1)
        assert now is not None
        if beside.kind == "write":
            assert now.pop(3), where
        assert now in (old, {}), where
        if beside.kind == "gup_fast":
            pin = world.machine.pins[0]
            assert world.folio(1) is pin.folio, where
        check_all(world)
