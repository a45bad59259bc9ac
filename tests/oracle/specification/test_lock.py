"""mlock and its kin in the specification: which results it allows, and which pages are locked then."""

from __future__ import annotations

import pytest

from emulator.designs.mainline_fixed import MainlineFixed
from emulator.image import KernelImage
from emulator.mm_types import VM_LOCKED, VM_LOCKED_MASK, VM_LOCKONFAULT
from emulator.uapi import (
    EAGAIN,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from emulator.workload import FILE_PAGES, Op, Outcome, Step, Workload
from oracle.judge import Judge, Verdict
from oracle.specification.failure import settle
from oracle.specification.page import MAYBE_UNLOCKED, Page
from tests.oracle.specification.bench import FIXED, RW, Bench

ONFAULT = VM_LOCKED | VM_LOCKONFAULT
KEEP = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP


class Locks(Bench):
    def locked(self, *numbers: int, proc: int = 0) -> list[int]:
        return [self.spec.procs[proc][number].flags & VM_LOCKED_MASK for number in numbers]

    def may_lock(self, pages: int) -> None:
        """RLIMIT_MEMLOCK, for a process without CAP_IPC_LOCK."""
        limits = self.spec.limits
        profile = limits.profile._replace(cap_ipc_lock=False, rlimit_memlock=pages << 12)
        self.spec.limits = limits._replace(profile=profile)

    def open(self) -> list[int]:
        """Pages of which it is not known yet whether they are locked."""
        return [number for number, page in self.spec.procs[0].items() if page.flags & MAYBE_UNLOCKED]


def test_locking_and_unlocking() -> None:
    """A flag of the pages in the range, up to the first hole."""
    bench = Locks()
    bench.map(10, 3)
    bench.map(20, 1)
    bench.do("mlock", 10, 2)
    bench.do("mlock2", 12, 1, MLOCK_ONFAULT)
    assert bench.locked(10, 11, 12) == [VM_LOCKED, VM_LOCKED, ONFAULT]
    bench.do("munlock", 11, 10, ret=-ENOMEM)
    assert bench.locked(10, 11, 12, 20) == [VM_LOCKED, 0, 0, 0]
    bench.do("mlock", 30, 0)
    for kind in ("mlock", "munlock"):
        assert bench.refuses(kind, 10, 1, ret=-ENOMEM).rule == "result"
        assert bench.refuses(kind, 10, 11).rule == "result"
    bench.do("mlock2", 10, 1, 2, ret=-EINVAL)


@pytest.mark.parametrize("file", [False, True])
def test_what_cannot_be_faulted_in(file: bool) -> None:
    """An error, but only where pages are to be there at once; the flag stays."""
    bench = Locks()
    if file:
        bench.map(10, 2, RW, file=1, off=FILE_PAGES - 1)
    else:
        bench.map(10, 1)
        bench.map(11, 1, 0)
    bench.do("mlock2", 10, 2, MLOCK_ONFAULT)
    assert bench.refuses("mlock", 10, 2).rule == "result"
    bench.do("mlock", 10, 2, ret=-ENOMEM)
    assert bench.locked(10, 11) == [VM_LOCKED, VM_LOCKED]


def test_locked_memory_is_not_thrown_away() -> None:
    """DONTNEED and PAGEOUT stop at a locked mapping; what stands before it is done, a hole is forgotten."""
    bench = Locks()
    bench.map(10, 2)
    bench.map(13, 2)
    for number in (10, 13, 14):
        bench.do("write", number, 0)
    bench.do("mlock", 13, 1)
    for advice in (MADV_DONTNEED, MADV_PAGEOUT):
        assert bench.refuses("madvise", 10, 5, advice, ret=-ENOMEM).rule == "result"
        bench.do("madvise", 10, 5, advice, ret=-EINVAL)
    assert [bench.content(number) == () for number in (10, 13, 14)] == [True, False, False]


def test_all_of_it() -> None:
    """mlockall now and for later; a child has neither the locks nor the wish."""
    bench = Locks()
    bench.map(10, 1)
    for flags in (0, MCL_ONFAULT):
        bench.do("mlockall", flags, ret=-EINVAL)
    bench.do("mlockall", MCL_FUTURE)
    bench.map(11, 1)
    assert bench.locked(10, 11) == [0, VM_LOCKED]
    bench.do("mlockall", MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    bench.map(12, 1)
    assert bench.locked(10, 11, 12) == [ONFAULT] * 3
    bench.do("fork", 1)
    bench.do("mmap", 13, 1, RW, FIXED, 0, 0, ret=13, proc=1)
    assert bench.locked(10, 13, proc=1) == [0, 0]
    bench.do("mlockall", MCL_CURRENT)
    bench.map(14, 1)
    assert bench.locked(12, 14) == [VM_LOCKED, 0]
    bench.do("munlockall")
    assert bench.locked(10, 11, 12, 14) == [0] * 4
    assert bench.refuses("munlockall", ret=-ENOMEM).rule == "result"


def test_limits() -> None:
    """RLIMIT_MEMLOCK binds a process without CAP_IPC_LOCK: which error, and that nothing is done then."""
    bench = Locks()
    bench.may_lock(4)
    bench.map(10, 10)
    bench.do("mlock", 10, 5, ret=-ENOMEM)
    bench.do("mlockall", MCL_CURRENT, ret=-ENOMEM)
    assert bench.locked(10, 19) == [0, 0]
    bench.do("mlock", 10, 4)
    bench.do("mlock2", 10, 4, MLOCK_ONFAULT)
    assert bench.refuses("mlock", 10, 5).rule == "result"
    bench.do("mremap", 10, 4, 3, MREMAP_MAYMOVE | MREMAP_FIXED, 50, ret=-EAGAIN)
    bench.do("mlockall", MCL_FUTURE)
    bench.do("mmap", 60, 1, RW, FIXED, 0, 0, ret=-EAGAIN)
    bench.do("munlock", 10, 4)
    bench.map(60, 1)
    bench.may_lock(0)
    for kind, args in (("mlock", (10, 1)), ("mlock2", (10, 1, 1)), ("mlockall", (1,))):
        bench.do(kind, *args, ret=-EPERM)
    bench.do("munlock", 10, 1)


def test_a_move_that_keeps_the_old_place() -> None:
    """DONTUNMAP unlocks the VMA that stays. How far that reaches only shows; other mappings it leaves alone."""
    bench = Locks()
    bench.map(10, 4)
    bench.map(14, 1, PROT_READ)
    bench.do("mlock", 10, 5)
    bench.do("mremap", 11, 1, 1, KEEP, 50, ret=50)
    assert bench.locked(11, 14, 50) == [0, VM_LOCKED, VM_LOCKED]
    assert bench.open() == [10, 12, 13]
    assert sorted(bench.spec.unsettled) == [(0, 10), (0, 12), (0, 13)]


@pytest.mark.parametrize(("target", "found"), [(14, [10, 11, 13, 14, 15]), (15, [10, 11, 13]), (9, [9, 10, 11, 13])])
def test_a_move_beside_its_old_place(target: int, found: list[int]) -> None:
    """The new place may be one VMA with the old one, and then is unlocked with it."""
    bench = Locks()
    bench.map(10, 4)
    bench.map(15, 1)
    bench.do("mlock", 10, 4)
    bench.do("mlock", 15, 1)
    bench.do("mremap", 12, 1, 1, KEEP, target, ret=target)
    assert sorted(bench.open()) == found


def test_after_a_failure() -> None:
    """Each mapping is done or not; mlockall does not say which."""
    bench = Locks()
    bench.map(10, 1)
    bench.map(11, 1, PROT_READ)
    before = bench.spec.copy()
    shown = {10: Page(RW | VM_LOCKED, None, 0), 11: Page(PROT_READ, None, 0)}
    for op, ret in ((Op("mlock", 0, (10, 2)), -ENOMEM), (Op("mlockall", 0, (3,)), 0)):
        bench.spec = before.copy()
        pages = bench.spec.procs[0]
        assert settle(bench.spec, op, Outcome(ret, None, True), 1, lambda _, n, page: page == shown[n]) is None
        assert pages == shown
        assert (bench.spec.settings != {}) == (op.kind == "mlockall")


# ---- on the machine


def judge(*ops: Op) -> Verdict:
    workload = Workload("small4", tuple(Step((op,)) for op in ops))
    return Judge(KernelImage(MainlineFixed), KernelImage(MainlineFixed), thorough=True).run(workload)


def test_the_machine_shows_how_far_an_unlocking_went() -> None:
    """One VMA or two: both are allowed, and what they became holds from then on."""
    for cut in (0, 1):
        verdict = judge(
            Op("mmap", 0, (0, 4, RW, FIXED, 0, 0)),
            Op("mlock", 0, (0, 4)),
            Op("mprotect", 0, (2, 2, PROT_READ)) if cut else Op("read", 0, (0,)),
            Op("mremap", 0, (1, 1, 1, KEEP, 20)),
            Op("madvise", 0, (0, 1, MADV_DONTNEED)),
            Op("madvise", 0, (3, 1, MADV_DONTNEED)),
        )
        assert verdict.findings == ()
        assert [outcome.ret for (outcome,) in verdict.outcomes[-2:]] == [0, -EINVAL if cut else 0]


def test_population_that_fails_leaves_the_reference_out() -> None:
    """Which pages are there after a failure without a word cannot be known, so sharing is not compared."""
    verdict = judge(
        Op("mmap", 0, (0, 1, RW, FIXED, 0, 0)),
        Op("write", 0, (0, 0)),
        Op("fork", 0, (1,)),
        Op("mlockall", 0, (MCL_CURRENT,), 1),
    )
    assert verdict.findings == ()
    assert "half done" in verdict.notes[0]
