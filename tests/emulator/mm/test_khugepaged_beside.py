"""MADV_COLLAPSE while others use, move or unmap the same pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from emulator.designs.mainline import Mainline
from emulator.uapi import (
    EAGAIN,
    EINVAL,
    ENOMEM,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from emulator.workload import FOLL_PIN, Op, Switch
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World
from tests.emulator.mm.test_khugepaged import advise, collapse, mapped
from tests.emulator.mm.world import PIN_RW, is_huge
from tests.emulator.references import TO_THE_END, assert_coherent, check_all, every_cut

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


COLLAPSE = Op("madvise", 0, (0, 16, MADV_COLLAPSE))
HARMLESS = {
    "pin": Op("gup_fast", 0, (1, PIN_RW, 1)),
    "get": Op("gup_fast", 0, (1, 0, 1)),
    "pin of a shared page": Op("gup_fast", 1, (1, PIN_RW, 1)),
    "slow pin": Op("gup_slow", 0, (1, PIN_RW, 1)),
    "slow read pin": Op("gup_slow", 0, (9, FOLL_PIN, 1)),
    "read": Op("read", 0, (2,)),
    "reclaim": Op("reclaim", 0, (1,)),
    "reclaim of a huge page": Op("reclaim", 0, (9,)),
    "migrate": Op("migrate", 0, (1,)),
    "readahead": Op("swap_readahead", 0, (2,)),
    "pageout": Op("madvise", 0, (0, 12, MADV_PAGEOUT)),
    "collapse": COLLAPSE,
    "collapse in the child": Op("madvise", 1, (0, 16, MADV_COLLAPSE)),
    "fork": Op("fork", 0, (2,)),
    "mprotect": Op("mprotect", 0, (4, 8, PROT_READ)),
    "against huge pages": Op("madvise", 0, (8, 8, MADV_NOHUGEPAGE)),
    "exit of the child": Op("exit", 1, ()),
}
CHANGES = {
    "write": Op("write", 0, (1, 1)),
    "write in the child": Op("write", 1, (1, 1)),
    "munmap": Op("munmap", 0, (0, 8)),
    "munmap of a part": Op("munmap", 0, (6, 4)),
    "dontneed": Op("madvise", 0, (0, 8, MADV_DONTNEED)),
    "guard": Op("madvise", 0, (9, 2, MADV_GUARD_INSTALL)),
    "mremap": Op("mremap", 0, (0, 8, 8, MOVE, 32)),
    "mremap of a part": Op("mremap", 0, (4, 8, 8, MOVE, 33)),
}


def small_pages() -> World:
    """Written pages in two ranges, one of them swapped out; nobody else."""
    world = mapped(16, *range(5), 9)
    assert world.do("reclaim", 2) == 1
    return world


def shared_pages() -> World:
    """The same, with a child."""
    world = small_pages()
    world.fork()
    return world


def ptes_of_a_huge_page() -> World:
    """A huge page mapped by PTEs, and small pages."""
    world = World()
    world.mmap(0, 16)
    advise(world, 0, 8, MADV_HUGEPAGE)
    world.write(1)
    world.write(9)
    assert world.do("mprotect", 0, 1, PROT_READ) == 0
    assert world.do("mprotect", 0, 1, RW) == 0
    assert not is_huge(world, 0)
    assert world.layout() == [(0, 8), (8, 8)]
    world.fork()
    return world


RESULTS = (0, -EINVAL, -EAGAIN)


def beside_each(ops: dict[str, Op]) -> list[tuple[Callable[[], World], str]]:
    """Every world with every op that has its process there."""
    families = (shared_pages, ptes_of_a_huge_page)
    alone = [(small_pages, name) for name, op in ops.items() if op.proc == 0]
    return [*alone, *((make, name) for make in families for name in ops)]


@pytest.mark.parametrize(("make", "beside"), beside_each(HARMLESS))
def test_beside_what_changes_no_contents(make: Callable[[], World], beside: str) -> None:
    """Cut anywhere: the state is sound, no page of any process is lost, a pin stays what the process sees."""
    op = HARMLESS[beside]
    before = make()
    for world, outcomes, where in every_cut(make, (COLLAPSE, op)):
        assert outcomes[0].ret in RESULTS, where
        for proc in world.machine.procs:
            assert world.contents(proc) == before.contents(0 if proc == 2 else proc), where
        check_all(world)
        if world.machine.pins and world.machine.pins[1].flags & FOLL_PIN:
            assert_coherent_by(world, op, where)


def assert_coherent_by(world: World, op: Op, where: str) -> None:
    """What the process that pinned the page stores there is seen through the pin."""
    pin = world.machine.pins[1]
    token = world.write(op.args[0], 3, op.proc)
    assert pin.folio.content[pin.page].get(3) == token, where


@pytest.mark.parametrize(("make", "beside"), beside_each(CHANGES))
def test_beside_what_changes_contents(make: Callable[[], World], beside: str) -> None:
    """Cut anywhere: the state is sound, and contents are what the other op alone leaves."""
    op = CHANGES[beside]
    for world, outcomes, where in every_cut(make, (COLLAPSE, op)):
        assert outcomes[0].ret in (*RESULTS, -ENOMEM), where
        alone = make()
        alone.collide((Op("exec", 3, (0,)), op))  # op number 1 of its step, as beside the collapse
        for proc in world.machine.procs:
            assert world.contents(proc) == alone.contents(proc), where
        check_all(world)


def cut_at(point: str, beside: Op, make: Callable[[], World] = small_pages) -> tuple[World, list[int]]:
    """``beside`` runs whole when the collapse has just passed ``point``; both results."""
    world = make()
    schedule = (Switch(0, point, 1), Switch(1, "", TO_THE_END))
    outcomes = world.collide((COLLAPSE, beside), schedule)
    return world, [o.ret for o in outcomes]


@pytest.mark.parametrize(
    ("point", "beside", "results"),
    [
        # the lock is dropped: whatever was seen is looked at again
        ("collapse.unlocked", Op("munmap", 0, (4, 2)), [-EINVAL, 0]),
        ("collapse.unlocked", Op("munmap", 0, (0, 16)), [-EINVAL, 0]),
        ("collapse.unlocked", Op("mmap", 0, (0, 16, RW, PRIVATE_FIXED, 1, 0)), [-EINVAL, 0]),
        ("collapse.unlocked", Op("madvise", 0, (0, 8, MADV_DONTNEED)), [-EINVAL, 0]),
        ("collapse.unlocked", Op("madvise", 0, (0, 16, MADV_NOHUGEPAGE)), [-EINVAL, 0]),
        ("collapse.before_write_lock", Op("munmap", 0, (4, 2)), [-EINVAL, 0]),
        ("collapse.before_write_lock", Op("madvise", 0, (0, 8, MADV_DONTNEED)), [-EINVAL, 0]),
        ("collapse.before_write_lock", Op("reclaim", 0, (1,)), [-EINVAL, 1]),  # swapped out again: not present
        ("collapse.before_write_lock", Op("gup_fast", 0, (1, PIN_RW, 1)), [-EAGAIN, 0]),
        # between the ranges: what is left is looked at anew
        ("collapse.next_range", Op("munmap", 0, (8, 8)), [-EINVAL, 0]),
        ("collapse.next_range", Op("munmap", 0, (9, 1)), [-EINVAL, 0]),
        ("collapse.next_range", Op("munmap", 0, (0, 8)), [0, 0]),
        # nobody finds the pages: the fault waits, GUP-fast falls back, the rmap walk passes by
        ("collapse.pmd_cleared", Op("gup_fast", 0, (1, PIN_RW, 1)), [0, 0]),
        ("collapse.isolated", Op("gup_fast", 0, (1, PIN_RW, 1)), [0, 0]),
        ("collapse.isolated", Op("reclaim", 0, (1,)), [0, 0]),
        ("collapse.page_released", Op("migrate", 0, (0,)), [0, 0]),
    ],
)  # fmt: skip
def test_beside_at_a_point(point: str, beside: Op, results: list[int]) -> None:
    """What the collapse says, and what becomes of the other."""
    world, outcome = cut_at(point, beside)
    assert outcome == results
    check_all(world)


def test_the_end_is_gone_when_its_turn_comes() -> None:
    """The VMA has become shorter by a whole range: what it still has counts."""
    ops = (Op("madvise", 0, (0, 24, MADV_COLLAPSE)), Op("munmap", 0, (16, 8)))
    world = mapped(24, 1, 9, 17)
    outcomes = world.collide(ops, (Switch(0, "collapse.next_range", 1), Switch(1, "", TO_THE_END)))
    assert [o.ret for o in outcomes] == [0, 0]
    assert is_huge(world, 8)
    check_all(world)


def test_the_range_has_come_to_cross_a_border() -> None:
    """The VMA around it would still take a huge page elsewhere."""
    ops = (Op("madvise", 0, (8, 8, MADV_COLLAPSE)), Op("munmap", 0, (10, 1)))
    for point in ("collapse.unlocked", "collapse.before_write_lock"):
        world = mapped(24, 1, 9)
        outcomes = world.collide(ops, (Switch(0, point, 1), Switch(1, "", TO_THE_END)))
        assert [o.ret for o in outcomes] == [-EINVAL, 0]
        check_all(world)


def test_other_page_tables() -> None:
    """Unmapped, mapped and written again meanwhile: the tables that were looked at are gone."""
    world = mapped(8, 1)
    ops = (
        Op("madvise", 0, (0, 8, MADV_COLLAPSE)),
        Op("mmap", 0, (0, 8, RW, PRIVATE_FIXED, 0, 0)),
        Op("write", 0, (2, 0)),
    )
    schedule = [Switch(0, "collapse.before_write_lock", 1), *(Switch(i, "", TO_THE_END) for i in (1, 2))]
    assert [o.ret for o in world.collide(ops, schedule)] == [-EINVAL, 0, 0]
    check_all(world)


def test_a_page_locked_since_it_was_looked_at() -> None:
    """Reclaim has got hold of it."""
    world = mapped(8, 1)
    ops = (Op("madvise", 0, (0, 8, MADV_COLLAPSE)), Op("reclaim", 0, (1,)))
    schedule = (
        Switch(0, "collapse.before_write_lock", 1),
        Switch(1, "reclaim.folio_locked", 1),
        Switch(0, "", TO_THE_END),
    )
    assert [o.ret for o in world.collide(ops, schedule)] == [-EAGAIN, 1]
    check_all(world)


class OffTheLru(Mainline):
    """Somebody else is always faster to isolate a page."""

    name = "off-the-lru"
    replaces: ClassVar = {"vmscan.folio_isolate_lru": lambda folio: False}


def test_a_page_isolated_since_it_was_looked_at() -> None:
    """To be tried again; the other range is tried now."""
    world = World(design=OffTheLru)
    world.mmap(0, 16)
    world.write(1)
    world.do("read", 9)
    assert collapse(world, 0, 16) == -EAGAIN
    assert [is_huge(world, page) for page in (0, 8)] == [False, True]
    check_all(world)


@pytest.mark.parametrize(
    ("points", "result"),
    [
        (["gup_fast.pmd_read"], 0),
        (["gup_fast.pte_read"], 0),
        (["gup_fast.folio_grabbed"], -EAGAIN),  # seen in the scan already
        (["gup_fast.pte_read", "gup_fast.folio_grabbed"], 0),  # taken after the scan
        (["gup_fast.pte_read", "gup_fast.done"], -EAGAIN),  # taken, and looked at again, before the table went
    ],
)
def test_gup_fast_under_way(points: list[str], result: int) -> None:
    """The flush waits for it. It sees that the table is out of reach, lets go, and comes back for the huge page."""
    world = small_pages()
    ops = (Op("gup_fast", 0, (1, PIN_RW, 1)), COLLAPSE)
    schedule = [Switch(0, points[0], 1)]
    for point in points[1:]:
        schedule += [Switch(1, "collapse.before_write_lock", 1), Switch(0, point, 1)]
    outcomes = world.collide(ops, [*schedule, Switch(1, "", TO_THE_END), Switch(0, "", TO_THE_END)])
    assert [o.ret for o in outcomes] == [0, result]
    assert world.machine.pins[1].folio is world.folio(1)
    assert_coherent(world, 1, 1)
    check_all(world)


def test_a_swapped_page_that_somebody_has_locked() -> None:
    """It is waited for without mmap_lock, and the collapse is to be tried again."""
    world = mapped(8, 0, 1)
    assert world.do("reclaim", 1) == 1
    assert world.do("swap_readahead", 1) == 1
    world.fork()
    ops = (COLLAPSE, Op("read", 1, (1,)))
    schedule = (
        Switch(1, "fault.folio_locked", 1),
        Switch(0, "collapse.before_write_lock", 1),
        Switch(1, "", TO_THE_END),
    )
    outcomes = world.collide((ops[0]._replace(args=(0, 8, MADV_COLLAPSE)), ops[1]), schedule)
    assert [o.ret for o in outcomes] == [-EAGAIN, 0]
    check_all(world)


def test_a_migration_under_way_is_waited_for() -> None:
    """The entry is a migration entry when it is scanned; the page is there when it has to be."""
    world = mapped(8, 0, 1)
    before = world.contents()
    ops = (Op("madvise", 0, (0, 8, MADV_COLLAPSE)), Op("migrate", 0, (1,)))
    schedule = (Switch(1, "migrate.unmapped", 1), Switch(0, "", TO_THE_END))
    outcomes = world.collide(ops, schedule)
    assert [o.ret for o in outcomes] == [0, 1]
    assert is_huge(world, 0)
    assert world.contents() == before
    check_all(world)
