"""Stacks and the heap in the specification: when they grow, when they must not, and when either is allowed."""

from __future__ import annotations

import pytest

from emulator.designs.mainline_fixed import MainlineFixed
from emulator.mm_types import VM_DROPPABLE, VM_GROWSDOWN, VM_LOCKED
from emulator.uapi import (
    EAGAIN,
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MCL_FUTURE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    OOM_KILLED,
    PROT_READ,
    SIGSEGV,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE, Op, Outcome, Step, Workload
from oracle.judge import Judge
from oracle.specification.failure import settle
from oracle.specification.page import Page
from tests.emulator.kernel_world import kernel_image
from tests.oracle import planted
from tests.oracle.specification.bench import FIXED, RW, Bench

STACK = FIXED | MAP_GROWSDOWN
HEAP = 100


class Stacks(Bench):
    """A stack at page 50; the gap is 4 pages, the heap begins at page 100."""

    def __init__(self, prot: int = RW, **profile: object) -> None:
        super().__init__()
        limits = self.spec.limits
        changed = limits.profile._replace(**profile)  # type: ignore[arg-type]
        self.spec.limits = limits._replace(profile=changed, stack_guard_gap=4, heap=HEAP)
        self.map(50, 2, prot, flags=STACK)


def test_an_access_below_grows_the_stack() -> None:
    """All pages down to the one that was accessed, of the stack's kind; and nothing else is allowed."""
    bench = Stacks()
    assert bench.refuses("write", 47, 0, ret=SIGSEGV).rule == "result"
    bench.do("write", 47, 0)
    assert bench.mapped() == [47, 48, 49, 50, 51]
    assert bench.spec.procs[0][48] == Page(RW | VM_GROWSDOWN, None, 0)
    bench.do("write", 52, 0, ret=SIGSEGV)


@pytest.mark.parametrize("kind", ["read", "write", "exec"])
def test_a_forbidden_access_grows_it_all_the_same(kind: str) -> None:
    """The mapping is there before its permissions are looked at."""
    bench = Stacks(0)
    bench.do(kind, 48, *([0] if kind == "write" else []), ret=SIGSEGV)
    assert bench.mapped() == [48, 49, 50, 51]


@pytest.mark.parametrize(
    ("flags", "prot", "page", "grows"),
    [(FIXED, RW, 44, False), (FIXED, RW, 45, True), (FIXED, 0, 41, True), (STACK, RW, 41, True)],
)
def test_the_gap(flags: int, prot: int, page: int, grows: bool) -> None:
    """Memory below that can be accessed, and is no stack, keeps it four pages away."""
    bench = Stacks()
    bench.map(40, 1, prot, flags=flags)
    bench.do("write", page, 0, ret=0 if grows else SIGSEGV)
    assert (page in bench.mapped()) == grows
    if not grows:
        assert bench.refuses("write", page, 0).rule == "result"


def test_limits() -> None:
    """RLIMIT_STACK counts the whole VMA, whose least and most size is known; RLIMIT_MEMLOCK is exact."""
    bench = Stacks(rlimit_stack=5 << 12)
    bench.do("write", 45, 0, ret=SIGSEGV)
    saved = bench.spec.copy()
    bench.do("write", 46, 0)  # two VMAs of one page each
    bench.spec = saved
    bench.do("write", 46, 0, ret=SIGSEGV)  # or one of two pages
    bench.do("write", 47, 0)
    locked = Stacks(cap_ipc_lock=False, rlimit_memlock=3 << 12)
    locked.do("mlock", 50, 2)
    locked.do("write", 48, 0, ret=SIGSEGV)
    locked.do("write", 49, 0)
    assert locked.spec.procs[0][49].flags & VM_LOCKED


def test_a_stack_that_was_moved_may_run_out_of_page_offsets() -> None:
    """Then it does not grow; what a forbidden access leaves has to show."""
    bench = Stacks()
    bench.do("mremap", 50, 2, 2, MREMAP_MAYMOVE | MREMAP_FIXED, 80, ret=80)
    saved = bench.spec.copy()
    bench.do("write", 70, 0, ret=SIGSEGV)
    assert 70 not in bench.mapped()
    bench.spec = saved
    bench.do("write", 70, 0)
    assert 70 in bench.mapped()
    bench.do("mprotect", 70, 1, PROT_READ)
    bench.do("write", 68, 0, ret=SIGSEGV)
    assert (0, 68) in bench.spec.unsettled


def test_get_user_pages_grows_nothing_any_more() -> None:
    """It did until 6.5."""
    pin = FOLL_PIN | FOLL_WRITE
    Stacks().do("gup_slow", 48, pin, 0, ret=-EFAULT)
    old = Stacks(gup_grows_stack=True)
    assert old.refuses("gup_slow", 48, pin, 0, ret=-EFAULT).rule == "result"
    old.do("gup_slow", 48, pin, 0)
    assert 49 in old.mapped()


@pytest.mark.parametrize("ret", [SIGSEGV, OOM_KILLED])
@pytest.mark.parametrize("grown", [False, True])
def test_after_a_failure(ret: int, grown: bool) -> None:
    """It has grown whole or not at all; the machine shows which."""
    bench = Stacks()
    stack = Page(RW | VM_GROWSDOWN, None, 0)
    op = Op("write", 0, (47, 0))
    shows = lambda _, number, page: page == (stack if grown else None)  # noqa: E731
    assert settle(bench.spec, op, Outcome(ret, None, True), 1, shows) is None
    assert (47 in bench.mapped()) == grown


# ---- the heap


def test_the_heap() -> None:
    """It grows and shrinks from its beginning; the result is where it ends."""
    bench = Stacks()
    bench.do("brk", HEAP - 1, ret=HEAP)
    bench.do("brk", HEAP + 3, ret=HEAP + 3)
    assert bench.mapped()[2:] == [HEAP, HEAP + 1, HEAP + 2]
    bench.do("brk", HEAP + 1, ret=HEAP + 1)
    assert bench.mapped()[2:] == [HEAP]
    assert bench.refuses("brk", HEAP, ret=HEAP + 1).rule == "result"
    bench.do("fork", 1)
    bench.do("brk", HEAP + 2, ret=HEAP + 2, proc=1)
    bench.do("brk", HEAP, ret=HEAP)
    assert HEAP in bench.mapped(1)


def test_what_is_in_the_way_of_the_heap() -> None:
    """The page behind its new end must be free too, and the gap below a stack."""
    bench = Stacks()
    bench.map(HEAP + 6, 1)
    bench.do("brk", HEAP + 6, ret=HEAP)
    bench.do("brk", HEAP + 5, ret=HEAP + 5)
    bench.map(HEAP + 12, 1, flags=STACK)
    bench.do("munmap", HEAP + 6, 1)
    bench.do("brk", HEAP + 8, ret=HEAP + 5)
    bench.do("brk", HEAP + 7, ret=HEAP + 7)
    bench.do("munmap", HEAP, 7)
    bench.do("brk", HEAP + 1, ret=HEAP + 7)  # nothing there to cut
    old = Stacks(heap_must_be_there=False)
    old.do("brk", HEAP + 2, ret=HEAP + 2)
    old.do("munmap", HEAP, 2)
    old.do("brk", HEAP + 1, ret=HEAP + 1)


def test_a_heap_that_cannot_grow_for_want_of_memory() -> None:
    """The call says no by its result, and has done nothing."""
    bench = Stacks()
    before = dict(bench.spec.procs[0])
    op = Op("brk", 0, (HEAP + 2,))
    assert settle(bench.spec, op, Outcome(HEAP, None, True), 1, lambda *_: False) is None
    assert bench.spec.procs[0] == before
    bench.do("brk", HEAP + 2, ret=HEAP + 2)


def test_a_locked_heap() -> None:
    """What mlockall(MCL_FUTURE) asks for holds for the heap; its limit too."""
    bench = Stacks(cap_ipc_lock=False, rlimit_memlock=2 << 12)
    bench.do("mlockall", MCL_FUTURE)
    bench.do("brk", HEAP + 3, ret=HEAP)
    bench.do("brk", HEAP + 2, ret=HEAP + 2)
    assert bench.spec.procs[0][HEAP].flags == RW | VM_LOCKED


# ---- flags of mmap


@pytest.mark.parametrize(
    ("flags", "file", "error"),
    [
        (STACK, 1, EINVAL),
        (MAP_DROPPABLE | MAP_FIXED, 1, EINVAL),
        (MAP_DROPPABLE | MAP_FIXED | MAP_LOCKED, 0, EINVAL),
        (MAP_DROPPABLE | STACK, 0, EINVAL),
        (FIXED | MAP_LOCKED, 0, EAGAIN),
    ],
)
def test_refused_mappings(flags: int, file: int, error: int) -> None:
    bench = Stacks(cap_ipc_lock=False, rlimit_memlock=1 << 12)
    bench.do("mmap", 10, 2, RW, flags, file, 0, ret=-error)
    nothing = Stacks(cap_ipc_lock=False, rlimit_memlock=0)
    if flags & MAP_LOCKED:
        nothing.do("mmap", 10, 2, RW, flags, file, 0, ret=-EPERM)


def test_space_below_a_stack_is_no_space() -> None:
    """Where the kernel chooses, it may find nothing though there is a hole of that size."""
    bench = Stacks()
    bench.map(0, 44)
    bench.map(52, 98)
    bench.spec.limits = bench.spec.limits._replace(top=150, total=1000)
    bench.do("mmap", 0, 4, RW, 2, 0, 0, ret=-ENOMEM)
    assert bench.refuses("mmap", 0, 2, RW, 2, 0, 0, ret=-ENOMEM).rule == "result"


def test_droppable_contents() -> None:
    """They may go at any time, even after a write, but never come back."""
    bench = Stacks()
    bench.map(10, 1, flags=MAP_DROPPABLE | MAP_FIXED)
    token = bench.do("write", 10, 0)
    pages = bench.spec.procs[0]
    assert pages[10].flags & VM_DROPPABLE
    bench.spec.settle_dropped(pages, 10, pages[10], token)
    assert bench.content(10) == ((0, token),)
    bench.spec.settle_dropped(pages, 10, pages[10], 0)
    assert bench.content(10) == ()
    assert bench.spec.apply(Op("read", 0, (10,)), Outcome(0, ((0, token),)), 0) is not None


# ---- on the machine


@pytest.mark.parametrize(
    ("design", "rule"), [(planted.BreaksTheGap, "result"), (planted.HeapLies, "unmapped")]
)
def test_planted(design: type, rule: str) -> None:
    """A stack that grows up to its neighbour, a heap that says it has grown."""
    ops = (
        Op("mmap", 0, (0, 1, RW, FIXED, 0, 0)),
        Op("mmap", 0, (8, 1, RW, STACK, 0, 0)),
        Op("write", 0, (1, 0)),
        Op("brk", 0, (50,)),
    )
    workload = Workload("small4", tuple(Step((op,)) for op in ops))
    assert Judge(kernel_image(MainlineFixed)).run(workload).findings == ()
    found = Judge(kernel_image(design)).run(workload).findings
    assert [f.rule for f in found] == [rule]
