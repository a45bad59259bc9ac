"""Guard regions in the specification: where they trap, what carries them along, and who may see them half installed."""

from __future__ import annotations

import pytest

from emulator.designs.mainline import Mainline
from emulator.designs.unfaulted_flag_2025 import UnfaultedFlag2025
from emulator.mm_types import VM_LOCKED, VM_SEALED
from emulator.profile import PROFILES
from emulator.uapi import (
    EAGAIN,
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_WIPEONFORK,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    SIGBUS,
    SIGSEGV,
)
from emulator.workload import FILE_PAGES, FOLL_PIN, FOLL_WRITE, Op, Outcome, Step, Switch
from oracle.judge import Judge
from oracle.specification.failure import groups_after_failure
from oracle.specification.page import GUARDED
from tests.oracle.specification.bench import Bench
from tests.oracle.test_judge import image, judge, mmap, op, signatures, workload

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


def guard(bench: Bench, first: int, pages: int = 1, ret: int = 0) -> None:
    bench.do("madvise", first, pages, MADV_GUARD_INSTALL, ret=ret)


def traps(bench: Bench, proc: int = 0) -> list[int]:
    """The pages that have a guard."""
    return [number for number, page in sorted(bench.spec.procs[proc].items()) if page.flags & GUARDED]


@pytest.fixture
def bench() -> Bench:
    """Pages 10-13, of which 11 has a guard; 12 was written."""
    made = Bench()
    made.map(10, 4, 7)
    made.do("write", 12, 0)
    guard(made, 11)
    return made


def test_every_access_traps(bench: Bench) -> None:
    """Load, store, fetch, get_user_pages, populating; removal gives zeros."""
    for kind, *args in (("read", 11), ("write", 11, 0), ("exec", 11)):
        bench.do(str(kind), *map(int, args), ret=SIGSEGV)
        assert bench.refuses(str(kind), *map(int, args)).rule == "result"
    for kind in ("gup_fast", "gup_slow"):
        bench.do(kind, 11, FOLL_PIN | FOLL_WRITE, 1, ret=-EFAULT)
        assert bench.refuses(kind, 11, FOLL_PIN, 1)
    for advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        bench.do("madvise", 10, 4, advice, ret=-EFAULT)
        bench.do("madvise", 12, 2, advice)
    bench.do("mlock", 10, 4, ret=-ENOMEM)
    bench.do("madvise", 10, 4, MADV_GUARD_REMOVE)
    assert traps(bench) == []
    assert bench.content(11) == ()
    assert bench.content(12) != ()
    bench.do("mlock", 10, 4)


def test_beyond_the_file() -> None:
    """A guard is met before the end of the file is."""
    bench = Bench()
    bench.map(10, 1, file=1, off=FILE_PAGES)
    bench.do("read", 10, ret=SIGBUS)
    guard(bench, 10)
    bench.do("read", 10, ret=SIGSEGV)


def test_contents_go() -> None:
    """A process's own contents; a shared file keeps its own. DONTNEED and FREE leave guards alone."""
    bench = Bench()
    bench.map(10, 1)
    bench.map(11, 1, file=1)
    bench.map(12, 1, file=1, off=3, flags=MAP_SHARED | MAP_FIXED)
    for number in (10, 11, 12):
        bench.do("write", number, 0)
    kept = bench.content(12)
    of_file = bench.spec.file_content(0, 0)
    guard(bench, 10, 3)
    bench.do("madvise", 10, 3, MADV_DONTNEED)
    bench.do("madvise", 10, 1, MADV_FREE)
    assert traps(bench) == [10, 11, 12]
    bench.do("madvise", 10, 3, MADV_GUARD_REMOVE)
    assert bench.content(10) == ()
    assert bench.spec.content(bench.spec.procs[0][11]) == of_file
    assert bench.content(12) == kept


def test_what_refuses(bench: Bench) -> None:
    """Locked memory, where it begins, and what a seal protects; a hole ends nothing. Removing is always allowed."""
    pages = bench.spec.procs[0]
    pages[12] = pages[12]._replace(flags=pages[12].flags | VM_LOCKED)
    guard(bench, 9, 5, ret=-EINVAL)
    assert traps(bench) == [10, 11]
    guard(bench, 8, 3, ret=-ENOMEM)
    pages[13] = pages[13]._replace(flags=PROT_READ | VM_SEALED)
    guard(bench, 13, ret=-EPERM)
    bench.do("madvise", 10, 4, MADV_GUARD_REMOVE)
    assert traps(bench) == []


def test_a_kernel_that_has_none() -> None:
    """EINVAL, before anything else is looked at."""
    bench = Bench()
    bench.spec.limits = bench.spec.limits._replace(profile=PROFILES["5.17"])
    for advice in (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE):
        bench.do("madvise", 10, 1, advice, ret=-EINVAL)
        assert bench.refuses("madvise", 10, 1, advice, ret=-ENOMEM)


def test_who_carries_it_along(bench: Bench) -> None:
    """A move, a change of permissions and fork do; the old place of DONTUNMAP, growth and WIPEONFORK do not."""
    bench.do("mprotect", 10, 4, PROT_READ)
    bench.do("mremap", 10, 4, 4, MOVE | MREMAP_DONTUNMAP, 20, ret=20)
    assert traps(bench) == [21]
    bench.do("mremap", 21, 1, 3, MOVE, 30, ret=30)
    assert traps(bench) == [30]
    bench.do("fork", 1)
    assert traps(bench, 1) == [30]
    bench.do("madvise", 30, 3, MADV_WIPEONFORK)
    bench.do("fork", 2)
    assert traps(bench, 2) == []
    bench.do("munmap", 30, 1)
    bench.map(30, 1)
    assert traps(bench) == []


def test_growth_of_a_stack() -> None:
    """What a stack grows by has no guard, wherever the stack begins with one."""
    bench = Bench()
    bench.map(50, 2, flags=MAP_PRIVATE | MAP_FIXED | MAP_GROWSDOWN)
    guard(bench, 50)
    bench.do("write", 48, 0)
    assert bench.mapped() == [48, 49, 50, 51]
    assert traps(bench) == [50]


def test_in_part(bench: Bench) -> None:
    """When memory for page tables is lacking a page may have been emptied already, or have its guard."""
    groups = groups_after_failure(
        bench.spec, Op("madvise", 0, (12, 1, MADV_GUARD_INSTALL)), Outcome(-ENOMEM, None, True)
    )
    shown = [(bool(page.content), bool(page.flags & GUARDED)) for left in groups[0] for page in left.values() if page]
    assert shown == [(True, False), (False, True), (False, False)]
    groups = groups_after_failure(bench.spec, Op("madvise", 0, (12, 1, MADV_DONTNEED)), Outcome(-EAGAIN, None, True))
    assert len(groups[0]) == 2


# ---- on the machine

GUARD = op("madvise", 10, 2, MADV_GUARD_INSTALL)


def test_failures() -> None:
    """Two mappings, the table in the middle missing: pages behind it are emptied and get no guard. All are allowed."""
    left = set()
    for nth in range(1, 8):
        work = workload(
            mmap(8, 26),
            mmap(34, 2),
            op("write", 9, 0),
            op("write", 26, 0),
            op("mprotect", 34, 2, 1),
            op("madvise", 8, 28, MADV_GUARD_INSTALL, fail_nth=nth),
            *[op("read", number) for number in (8, 9, 26, 34)],
            op("fork", 1),
        )
        verdict = judge(Mainline, work)
        assert signatures(verdict) == []
        outcome = verdict.outcomes[8][0]
        left.add("trap" if outcome.ret == SIGSEGV else "contents" if outcome.data else "empty")
    assert left == {"empty", "trap"}


def test_failed_moves() -> None:
    """Where the source cannot be cut it stays, without the guards that have moved."""
    stayed = False
    for nth in range(1, 16):
        work = workload(
            mmap(10, 6),
            op("write", 11, 0),
            op("madvise", 12, 1, MADV_GUARD_INSTALL),
            op("mremap", 11, 3, 3, MOVE, 40, fail_nth=nth),
            op("read", 12),
            op("read", 42),
        )
        verdict = judge(Mainline, work)
        assert [found for found in signatures(verdict) if not found.startswith("accounting/")] == []
        stayed |= verdict.outcomes[3][0].ret == 40 and verdict.outcomes[4][0].ret == 0
    assert stayed


def test_an_old_kernel() -> None:
    """5.17 knows no guard regions, and the judge knows that."""
    work = workload(mmap(10, 1), op("madvise", 10, 1, MADV_GUARD_INSTALL))
    verdict = Judge(image(Mainline), profile="5.17").run(work)
    assert signatures(verdict) == []
    assert verdict.outcomes[1][0].ret == -EINVAL


def test_lost_guard_is_found() -> None:
    """The flag of a VMA that a move merges away: the child can touch what its parent cannot."""
    guarded = (mmap(10, 2), mmap(50, 2), op("madvise", 50, 1, MADV_GUARD_INSTALL))
    work = workload(*guarded, op("mremap", 50, 2, 2, MOVE, 12), op("fork", 1))
    assert signatures(judge(Mainline, work)) == []
    assert signatures(judge(UnfaultedFlag2025, work)) == ["specification/guard:lost, fork"]


def test_half_installed() -> None:
    """Who looks at the wrong moment finds the page empty and no guard yet: no finding, in whatever order they run."""
    seen = set()
    judging = Judge(image(Mainline), image(Mainline), thorough=True)
    for nth in range(1, 12):
        schedule = (Switch(0, "", nth), Switch(1, "", 99), Switch(0, "", 99))
        step = Step((GUARD, op("read", 11)), schedule)
        verdict = judging.run(workload(mmap(10, 2), op("write", 11, 0), step, op("read", 11)))
        assert signatures(verdict) == []
        outcome = verdict.outcomes[2][1]
        seen.add("trap" if outcome.ret == SIGSEGV else "contents" if outcome.data else "empty")
    assert seen == {"contents", "empty", "trap"}
