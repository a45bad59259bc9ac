"""What the specification lets a call leave whose allocation failed, or that was refused half-way."""

from __future__ import annotations

from emulator.uapi import (
    EAGAIN,
    EFAULT,
    ENOMEM,
    ESRCH,
    MADV_DONTNEED,
    MREMAP_DONTUNMAP,
    MREMAP_MAYMOVE,
    MREMAP_MUST_RELOCATE_ANON,
    OOM_KILLED,
    PROT_READ,
    SIGSEGV,
)
from emulator.workload import (
    Op,
    Outcome,
)
from oracle.specification.failure import settle
from oracle.specification.page import Page, Refusal
from tests.oracle.specification.bench import FIXED, MOVE, MUST, RW, Bench


def refused(bench: Bench, op: Op, state: dict[int, Page | None]) -> Refusal | None:
    """As ``settled``, without an injected failure."""
    before = bench.spec.copy()

    def shows(proc: int, number: int, page: Page | None) -> bool:
        return page == state.get(number, before.procs[proc].get(number))

    return settle(bench.spec, op, Outcome(-EFAULT, None, False), 77, shows)


def test_what_a_refusal_may_leave() -> None:
    """The source is whole; the destination, and with FIXED the tail of a shrinking move, may be gone."""
    bench = Bench(mremap_flags=MREMAP_MUST_RELOCATE_ANON)
    bench.map(10, 4)
    bench.do("write", 10, 0)
    bench.map(50, 2)
    page = bench.spec.procs[0][10]
    op = Op("mremap", 0, (10, 4, 2, MUST, 50))
    assert refused(bench, op, {12: None, 13: None, 50: None, 51: None}) is None
    assert bench.mapped() == [10, 11]
    assert refused(bench, op, {}) is None
    assert refused(bench, op, {10: None}) is not None
    assert refused(bench, op, {10: None, 50: page}) is not None
    assert refused(bench, op, {10: Page(RW, None, 0)}) is not None


def test_what_a_refusal_of_several_may_leave() -> None:
    """VMAs before the one that was refused have moved, and none is left behind empty."""
    bench = Bench(mremap_flags=MREMAP_MUST_RELOCATE_ANON)
    bench.map(10, 4)
    bench.do("write", 10, 0)
    page = bench.spec.procs[0][10]
    op = Op("mremap", 0, (10, 4, 4, MUST, 50))
    assert refused(bench, op, {10: Page(RW, None, 0), 50: page}) is not None
    assert refused(bench, op, {10: None, 50: page}) is None
    assert bench.mapped() == [11, 12, 13, 50]


def settled(bench: Bench, op: Op, ret: int, state: dict[int, Page | None]) -> Refusal | None:
    """Settle ``op`` with the machine showing ``state`` (pages not named: as before)."""
    before = bench.spec.copy()

    def shows(proc: int, number: int, page: Page | None) -> bool:
        there = state[number] if number in state else before.procs[proc].get(number)
        return page == there

    return settle(bench.spec, op, Outcome(ret, None, True), 77, shows)


def test_failed_access_changes_nothing(bench: Bench) -> None:
    """The OOM killer in a fault; and a failure that was absorbed is an ordinary outcome."""
    bench.map(10, 1)
    assert settled(bench, Op("write", 0, (10, 0), 1), OOM_KILLED, {}) is None
    assert bench.content(10) == ()
    assert settled(bench, Op("write", 0, (10, 0), 1), 0, {}) is None
    assert bench.content(10) == ((0, 77),)
    assert settled(bench, Op("write", 0, (10, 0), 1), SIGSEGV, {}) is not None
    assert settled(bench, Op("exit", 0, (), 1), -ENOMEM, {}) is not None
    assert settled(bench, Op("write", 3, (10, 0), 1), -ESRCH, {}) is None


def test_failed_mmap_may_have_unmapped(bench: Bench) -> None:
    """FIXED over a mapping: there, or gone; not something else."""
    bench.map(10, 2)
    op = Op("mmap", 0, (10, 2, RW, FIXED, 0, 0), 1)
    assert settled(bench, op, -ENOMEM, {}) is None
    assert bench.mapped() == [10, 11]
    refusal = settled(bench, op, -ENOMEM, {11: Page(PROT_READ, None, 0)})
    assert refusal is not None
    assert refusal.rule == "after-failure"
    assert settled(bench, op, -ENOMEM, {10: None, 11: None}) is None
    assert bench.mapped() == []


def test_failed_mprotect_and_madvise_may_be_half_done(bench: Bench) -> None:
    """A prefix of the range may be changed."""
    bench.map(10, 2)
    bench.do("write", 10, 0)
    op = Op("mprotect", 0, (10, 2, PROT_READ), 1)
    assert settled(bench, op, -ENOMEM, {10: Page(PROT_READ, None, bench.spec.procs[0][10].content)}) is None
    assert [bench.spec.procs[0][n].flags for n in (10, 11)] == [PROT_READ, RW]
    op = Op("madvise", 0, (10, 2, MADV_DONTNEED), 1)
    assert settled(bench, op, -EAGAIN, {10: Page(PROT_READ, None, 0)}) is None
    assert bench.content(10) == ()


def test_failed_move(bench: Bench) -> None:
    """Back where it was; the destination of FIXED may be gone; contents must not be."""
    bench.map(10, 2)
    bench.map(50, 2, PROT_READ)
    bench.do("write", 10, 0)
    op = Op("mremap", 0, (10, 2, 3, MOVE, 50), 1)
    assert settled(bench, op, -ENOMEM, {50: None, 51: None}) is None
    assert bench.mapped() == [10, 11]
    assert bench.content(10)
    assert settled(bench, op, -ENOMEM, {10: None}) is not None


def test_failed_move_of_several(bench: Bench) -> None:
    """A prefix may have moved."""
    bench.map(10, 1)
    bench.map(12, 1, PROT_READ)
    bench.do("write", 10, 0)
    page = bench.spec.procs[0][10]
    op = Op("mremap", 0, (10, 3, 3, MOVE, 50), 1)
    assert settled(bench, op, -ENOMEM, {10: None, 50: page}) is None
    assert bench.mapped() == [12, 50]


def test_move_whose_source_could_not_be_cut(bench: Bench) -> None:
    """The call succeeds, and the source stays mapped, empty; a chosen place must still be a free one."""
    bench.map(10, 3)
    bench.map(20, 1)
    bench.do("write", 11, 0)
    page = bench.spec.procs[0][11]
    op = Op("mremap", 0, (11, 1, 2, MREMAP_MAYMOVE, 0), 1)
    assert settled(bench, op, 20, {}) is not None
    assert settled(bench, op, 30, {30: page, 31: Page(RW, None, 0), 11: Page(RW, None, 0)}) is None
    assert bench.mapped() == [10, 11, 12, 20, 30, 31]
    assert bench.content(11) == ()
    assert bench.content(30)


def test_shrinking_move_after_a_failure(bench: Bench) -> None:
    """The tail is gone when the call succeeded, and may be gone when it did not."""
    bench.map(10, 3)
    pages = bench.spec.procs[0]
    op = Op("mremap", 0, (10, 3, 1, MOVE, 50), 1)
    assert settled(bench, op, -ENOMEM, {12: None}) is None
    assert bench.mapped() == [10, 11]
    assert settled(bench, op, 50, {10: None, 11: None, 50: pages[10]}) is None
    assert bench.mapped() == [50]
    in_place = Op("mremap", 0, (50, 1, 2, 0, 0), 1)
    assert settled(bench, in_place, 50, {}) is None
    assert bench.mapped() == [50, 51]
    dontunmap = Op("mremap", 0, (50, 1, 1, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0), 1)
    assert settled(bench, dontunmap, -ENOMEM, {}) is None
    assert settled(bench, dontunmap, 60, {60: pages[50]}) is None
    assert bench.mapped() == [50, 51, 60]
