"""GUP-fast and GUP-slow beside whatever takes pages away: a pin and its process never drift apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.mm_types import MmStruct
from emulator.uapi import (
    EFAULT,
    ESRCH,
    MADV_DONTNEED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from emulator.workload import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE, Op, Switch
from tests.emulator.kernel_world import World
from tests.emulator.populated import huge, written
from tests.emulator.references import TO_THE_END, assert_coherent, check_all, every_cut, every_two_cuts

PIN_RW = FOLL_PIN | FOLL_WRITE

MOVE = Op("mremap", 0, (0, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, 20))
MOVE_TABLE = Op("mremap", 0, (0, 8, 8, MREMAP_MAYMOVE | MREMAP_FIXED, 24))


def test_a_flush_waits_for_the_fast_path() -> None:
    """Interrupts are off during the walk: who unmaps cannot free the page before it is over."""
    world = written()
    ops = (Op("gup_fast", 0, (1, 0, 0)), Op("munmap", 0, (0, 4)))
    world.collide(ops, (Switch(0, "gup_fast.pte_read", 1), Switch(1, "", TO_THE_END)))
    trace = world.machine.sched.trace
    assert trace.index((1, "zap.before_flush")) < trace.index((0, "gup_fast.walked"))
    assert trace.index((0, "gup_fast.walked")) < trace.index((1, "zap.flushed"))


BESIDE = {
    "fork": Op("fork", 0, (1,)),
    "reclaim": Op("reclaim", 0, (1,)),
    "migrate": Op("migrate", 0, (1,)),
    "read-only": Op("mprotect", 0, (0, 4, PROT_READ)),
    "dontneed": Op("madvise", 0, (0, 4, MADV_DONTNEED)),
    "munmap": Op("munmap", 0, (0, 4)),
    "move": MOVE,
    "move-table": MOVE_TABLE,
    "exit": Op("exit", 0, ()),
}


def without_ipis(world: World) -> World:
    """A machine whose TLB flushes are broadcast by the hardware, and so do not wait for GUP-fast to end."""
    machine = world.machine

    def flush_tlb_range(mm: MmStruct, start: int, end: int) -> None:
        for tlb in machine.tlbs:
            tlb.flush_range(mm.asid, start, end)

    machine.flush_tlb_range = flush_tlb_range  # type: ignore[method-assign]
    return world


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("flags", [FOLL_PIN, PIN_RW, FOLL_WRITE, FOLL_PIN | FOLL_LONGTERM])
@pytest.mark.parametrize("pages", [4, 8])
@pytest.mark.parametrize("ipis", [True, False])
def test_pin_beside(beside: str, flags: int, pages: int, ipis: bool) -> None:
    """Wherever the two meet: references add up, the pin's page lives, and where the process still has a page
    that was there before, a pin of it is coherent.
    """

    def make() -> World:
        return written(pages) if ipis else without_ipis(written(pages))

    other = BESIDE[beside]
    for world, outcomes, where in every_cut(make, (Op("gup_fast", 0, (1, flags, 0)), other)):
        check_all(world)
        pin = world.machine.pins.get(0)
        assert (outcomes[0].ret == 0) == (pin is not None), where
        if pin is None:
            assert outcomes[0].ret in ((-ESRCH, -EFAULT) if beside == "exit" else (-EFAULT,)), where
            continue
        assert not pin.folio.freed, where
        if beside == "exit":
            continue
        moved = {"move": 20, "move-table": 24}.get(beside, 0)
        if flags & FOLL_PIN and beside not in ("munmap", "dontneed", "read-only"):
            page = 1 if world.content(1) is not None else moved + 1
            assert_coherent(world, page)
        check_all(world)
        assert world.do("unpin", 0) == 0
        check_all(world)


@pytest.mark.parametrize("beside", ["fork", "reclaim", "migrate", "dontneed"])
@pytest.mark.parametrize("flags", [FOLL_PIN, PIN_RW])
@pytest.mark.parametrize("ipis", [True, False])
def test_huge_pin_beside(beside: str, flags: int, ipis: bool) -> None:
    """As above in a huge page, which the others split, unmap or copy."""

    def make() -> World:
        return huge() if ipis else without_ipis(huge())

    for world, outcomes, where in every_cut(make, (Op("gup_fast", 0, (1, flags, 0)), BESIDE[beside])):
        check_all(world)
        assert outcomes[0].ret == 0, where
        pin = world.machine.pins[0]
        assert not pin.folio.freed, where
        if beside != "dontneed":
            assert_coherent(world, 1)
        check_all(world)


@pytest.mark.parametrize("beside", ["fork", "reclaim", "migrate", "munmap", "move", "move-table"])
@pytest.mark.parametrize("make", [written, huge])
@pytest.mark.parametrize("ipis", [True, False])
def test_pin_beside_with_two_cuts(beside: str, make: Callable[[], World], ipis: bool) -> None:
    """As above where the walk begins before the other and ends in the middle of it."""

    def make_one() -> World:
        return make() if ipis else without_ipis(make())

    for world, outcomes, where in every_two_cuts(
        make_one, (Op("gup_fast", 0, (1, PIN_RW, 0)), BESIDE[beside])
    ):
        check_all(world)
        if outcomes[0].ret:
            assert beside in ("munmap", "move", "move-table"), where
            continue
        assert not world.machine.pins[0].folio.freed, where
        if beside != "munmap":
            moved = {"move": 20, "move-table": 24}.get(beside, 0)
            assert_coherent(world, 1 if world.content(1) is not None else moved + 1)
        check_all(world)


@pytest.mark.parametrize("beside", ["fork", "reclaim", "migrate"])
def test_slow_pin_beside(beside: str) -> None:
    """The slow path waits for a fork (mmap_lock) and for a migration (its entries), and then gets the page."""
    for world, outcomes, where in every_cut(written, (Op("gup_slow", 0, (1, PIN_RW, 0)), BESIDE[beside])):
        check_all(world)
        assert outcomes[0].ret == 0, where
        assert_coherent(world, 1)


def test_the_fast_path_notices_a_moved_table() -> None:
    """The table that it reads was moved to another address meanwhile: its entries say nothing about this one."""
    world = without_ipis(written(8))
    ops = (Op("gup_fast", 0, (1, PIN_RW, 0)), MOVE_TABLE)
    outcomes = world.collide(ops, (Switch(0, "gup_fast.pmd_read", 1), Switch(1, "", TO_THE_END)))
    assert [o.ret for o in outcomes] == [-EFAULT, 24]
    assert (0, "gup_fast.folio_grabbed") in world.machine.sched.trace
    check_all(world)


def test_slow_pin_waits_for_migration() -> None:
    """Cut where the page is a migration entry: the pin is on the new folio."""
    world = written()
    old = world.folio(1)
    ops = (Op("gup_fast", 0, (1, PIN_RW, 0)), Op("migrate", 0, (1,)))
    outcomes = world.collide(ops, (Switch(1, "migrate.unmapped", 1), Switch(0, "", TO_THE_END)))
    assert [o.ret for o in outcomes] == [0, 1]
    assert world.machine.pins[0].folio is world.folio(1)
    assert world.folio(1) is not old
    assert old.freed
    check_all(world)


def test_fast_pin_gives_up_when_fork_write_protects() -> None:
    """write_protect_seq: a pin that was taken while a fork copies page tables is put back and taken again."""
    world = written()
    ops = (Op("gup_fast", 0, (1, FOLL_PIN, 0)), Op("fork", 0, (1,)))
    outcomes = world.collide(ops, (Switch(0, "gup_fast.folio_grabbed", 1), Switch(1, "", TO_THE_END)))
    assert [o.ret for o in outcomes] == [0, 0]
    assert (0, "gup_slow.locked") in world.machine.sched.trace
    assert_coherent(world, 1)
    check_all(world)
