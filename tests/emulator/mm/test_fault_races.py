"""Two processes' or threads' first faults in one place."""

from __future__ import annotations

import pytest

from emulator.uapi import MADV_HUGEPAGE, OOM_KILLED
from emulator.workload import Op
from tests.emulator.kernel_world import World
from tests.emulator.references import check_all, every_cut, every_two_cuts


def wants_huge_pages() -> World:
    """Two ranges that may be huge pages; the first is one, so the tables above exist."""
    world = World()
    world.mmap(0, 16)
    assert world.do("madvise", 0, 16, MADV_HUGEPAGE) == 0
    world.write(0)
    return world


@pytest.mark.parametrize("fail_nth", range(4))
def test_a_huge_and_a_small_page_for_one_range(fail_nth: int) -> None:
    """One thread finds no huge page and makes a PTE table while the other is about to map its huge page.

    One of the two wins, and the other uses what is there.
    """
    ops = (Op("write", 0, (9, 0)), Op("write", 0, (8, 1), fail_nth))
    for sweep in (every_cut, every_two_cuts):
        for world, outcomes, where in sweep(wants_huge_pages, ops):
            check_all(world)
            assert outcomes[0].ret == 0, where
            assert len(world.content(9) or {}) == 1, where
            assert outcomes[1].ret in (0, OOM_KILLED), where
            assert len(world.content(8) or {}) == (outcomes[1].ret == 0), where
