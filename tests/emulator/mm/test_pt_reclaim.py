"""Page tables that MADV_DONTNEED has emptied are freed (mm/pt_reclaim.c)."""

from __future__ import annotations

import pytest

from emulator.geometry import LEVEL_PMD
from emulator.uapi import MADV_DONTNEED, MADV_GUARD_INSTALL, MADV_HUGEPAGE, SIGSEGV
from emulator.workload import Op, Switch
from tests.emulator.mm.test_khugepaged import advise, mapped
from tests.emulator.references import TO_THE_END, check_all, every_cut


@pytest.mark.parametrize(
    ("start", "pages", "gone"), [(0, 8, True), (0, 16, True), (1, 7, False), (0, 7, False), (1, 15, False)]
)
def test_dontneed_frees_tables(start: int, pages: int, gone: bool) -> None:
    """A table that MADV_DONTNEED has emptied as a whole is freed; with a guard in it, it stays."""
    world = mapped(16, 1, 9)
    for guard in (False, True):
        world.write(1)
        if guard:
            advise(world, 3, 1, MADV_GUARD_INSTALL)
        advise(world, start, pages, MADV_DONTNEED)
        pmd = world.image.pgtable_generic.find_table(world.mm(), world.address(0), LEVEL_PMD)
        assert bool(pmd.get(0)) == (not gone or guard)
        check_all(world)


def test_dontneed_and_a_fault_that_needs_the_table() -> None:
    """The table is freed under a fault that has looked at it: the fault makes another one. No page is lost."""
    ops = (Op("madvise", 0, (0, 8, MADV_DONTNEED)), Op("write", 0, (1, 1)))
    for world, outcomes, where in every_cut(lambda: mapped(8, 3), ops):
        assert [o.ret for o in outcomes] == [0, 0], where
        check_all(world)
    ops = (Op("madvise", 0, (0, 8, MADV_DONTNEED)), Op("madvise", 0, (2, 3, MADV_GUARD_INSTALL)))
    for world, outcomes, where in every_cut(lambda: mapped(8, 3), ops):
        assert [o.ret for o in outcomes] == [0, 0], where
        assert world.do("read", 3) == SIGSEGV, where
        check_all(world)


def test_an_empty_table_that_cannot_be_freed_at_once() -> None:
    """Somebody holds the lock of the table above: it is freed afterwards, unless it has been filled by then."""
    world = mapped(16, 3)
    ops = (Op("madvise", 0, (0, 8, MADV_DONTNEED)), Op("write", 0, (9, 0)), Op("write", 0, (4, 0)))
    advise(world, 8, 8, MADV_HUGEPAGE)
    schedule = (
        Switch(1, "fault.pmd_locked", 1),
        Switch(0, "zap.table_empty", 1),
        Switch(2, "", TO_THE_END),
        Switch(1, "", TO_THE_END),
    )
    outcomes = world.collide(ops, schedule)
    assert "zap.table_empty" in [point for _, point in world.machine.sched.trace]
    assert [o.ret for o in outcomes] == [0, 0, 0]
    assert world.content(4) != {}
    check_all(world)
