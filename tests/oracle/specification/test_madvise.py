"""madvise in the specification: errors, flags, what fork makes of them, and contents that may be thrown away."""

from __future__ import annotations

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.mm_types import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_WIPEONFORK,
)
from emulator.uapi import (
    EAGAIN,
    EBUSY,
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)
from emulator.workload import (
    FILE_PAGES,
    FOLL_PIN,
    FOLL_WRITE,
    Op,
    Outcome,
    Step,
    Workload,
    pattern_token,
)
from oracle.judge import Judge, Verdict
from oracle.specification.failure import settle
from tests.emulator.kernel_world import kernel_image
from tests.oracle import planted
from tests.oracle.specification.bench import FIXED, RW, Bench

PIN = FOLL_PIN | FOLL_WRITE


@pytest.mark.parametrize(
    ("advice", "before", "after"),
    [
        (MADV_RANDOM, VM_SEQ_READ, VM_RAND_READ),
        (MADV_SEQUENTIAL, VM_RAND_READ, VM_SEQ_READ),
        (MADV_NORMAL, VM_SEQ_READ, 0),
        (MADV_NORMAL, VM_RAND_READ, 0),
        (MADV_DONTFORK, 0, VM_DONTCOPY),
        (MADV_DOFORK, VM_DONTCOPY, 0),
        (MADV_WIPEONFORK, 0, VM_WIPEONFORK),
        (MADV_KEEPONFORK, VM_WIPEONFORK, 0),
        (MADV_DONTDUMP, 0, VM_DONTDUMP),
        (MADV_DODUMP, VM_DONTDUMP, 0),
        (MADV_HUGEPAGE, VM_NOHUGEPAGE, VM_HUGEPAGE),
        (MADV_NOHUGEPAGE, VM_HUGEPAGE, VM_NOHUGEPAGE),
        (MADV_MERGEABLE, 0, VM_MERGEABLE),
        (MADV_UNMERGEABLE, VM_MERGEABLE, 0),
        (MADV_WILLNEED, 0, 0),
        (MADV_COLD, 0, 0),
    ],
)
def test_flags(advice: int, before: int, after: int) -> None:
    """Each advice sets its flag and clears what it contradicts; a hole is an error that stops nothing."""
    bench = Bench()
    bench.map(10, 1)
    bench.map(12, 1)
    pages = bench.spec.procs[0]
    for number in (10, 12):
        pages[number] = pages[number]._replace(flags=RW | before)
    bench.do("madvise", 10, 3, advice, ret=-ENOMEM)
    assert [pages[number].flags for number in (10, 12)] == [RW | after] * 2
    assert bench.refuses("madvise", 10, 3, advice).rule == "result"


def test_what_files_refuse() -> None:
    """WIPEONFORK and FREE are for private anonymous memory; what stands before the file is done."""
    for advice in (MADV_WIPEONFORK, MADV_FREE):
        bench = Bench()
        bench.map(10, 1)
        bench.do("write", 10, 0)
        bench.map(11, 1, file=1, flags=MAP_SHARED | MAP_FIXED)
        bench.do("madvise", 10, 2, advice, ret=-EINVAL)
        page = bench.spec.procs[0][10]
        assert page.flags & VM_WIPEONFORK or page.dropped == 0


def test_what_is_never_merged() -> None:
    """Shared and droppable memory stays out, without a word; private files do not."""
    bench = Bench()
    bench.map(10, 1, file=1, flags=MAP_SHARED | MAP_FIXED)
    bench.map(11, 1, file=1)
    bench.map(12, 1, flags=MAP_DROPPABLE | MAP_FIXED)
    bench.do("madvise", 10, 3, MADV_MERGEABLE)
    pages = bench.spec.procs[0]
    assert [bool(pages[number].flags & VM_MERGEABLE) for number in (10, 11, 12)] == [False, True, False]


def test_fork_honours_the_advice() -> None:
    """DONTFORK memory is not in the child, WIPEONFORK memory is empty there, and pins do not matter."""
    bench = Bench()
    bench.map(10, 4)
    for number in range(10, 14):
        bench.do("write", number, 0)
    bench.do("gup_slow", 12, PIN, 0)
    bench.do("madvise", 11, 1, MADV_DONTFORK)
    bench.do("madvise", 12, 2, MADV_WIPEONFORK)
    bench.do("fork", 1)
    assert bench.mapped(1) == [10, 12, 13]
    assert [bench.content(number, 1) == () for number in (10, 12, 13)] == [False, True, True]
    assert all(bench.content(number) for number in range(10, 14))
    assert bench.spec.procs[1][12].flags & VM_WIPEONFORK


@pytest.mark.parametrize(
    ("prot", "advice", "error"),
    [
        (PROT_READ, MADV_POPULATE_READ, 0),
        (PROT_READ, MADV_POPULATE_WRITE, -EINVAL),
        (PROT_WRITE, MADV_POPULATE_READ, -EINVAL),
        (PROT_EXEC, MADV_POPULATE_READ, -EINVAL),
        (RW, MADV_POPULATE_WRITE, 0),
        (0, MADV_POPULATE_READ, -EINVAL),
    ],
)
def test_populate(prot: int, advice: int, error: int) -> None:
    """The first page that cannot be had ends it: EINVAL for permissions, ENOMEM for a hole, EFAULT behind a file."""
    bench = Bench()
    bench.map(10, 1, prot)
    bench.do("madvise", 10, 1, advice, ret=error)
    bench.do("madvise", 10, 2, advice, ret=error or -ENOMEM)
    bench.do("madvise", 9, 2, advice, ret=-ENOMEM)
    if not error:
        bench.map(11, 1, prot, file=1, off=FILE_PAGES)
        bench.do("madvise", 10, 3, advice, ret=-EFAULT)


def test_populating_copies_private_file_pages() -> None:
    """POPULATE_WRITE makes them the process's own: what others write into the file is not seen any more."""
    bench = Bench()
    bench.map(10, 2, file=1)
    bench.map(20, 2, file=1, flags=MAP_SHARED | MAP_FIXED)
    bench.do("madvise", 10, 1, MADV_POPULATE_WRITE)
    token = bench.do("write", 20, 1)
    bench.do("write", 21, 1)
    assert (1, token) not in bench.content(10)
    assert bench.content(11) == bench.content(21)


# ---- contents that may go


class Freed(Bench):
    """Page 10 holds what ``old`` is, and may be thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.map(10, 2)
        self.old = self.do("write", 10, 0)
        self.do("madvise", 10, 2, MADV_FREE)

    def reads(self, *data: tuple[int, int], proc: int = 0) -> bool:
        """Is this an allowed read of page 10?"""
        return self.spec.apply(Op("read", proc, (10,)), Outcome(0, data), 0) is None

    def show(self, packed: int, proc: int = 0) -> None:
        """The machine shows these contents at page 10."""
        pages = self.spec.procs[proc]
        self.spec.settle_dropped(pages, 10, pages[10], packed)


def test_kept_or_gone() -> None:
    """Either is allowed, again and again, until it is gone: then it stays so."""
    bench = Freed()
    assert bench.reads((0, bench.old))
    assert bench.reads((0, bench.old))
    assert not bench.reads((0, 77))
    assert bench.reads()
    assert bench.reads()
    assert not bench.reads((0, bench.old))


def test_a_write_ends_it() -> None:
    """What is written stays, on the old contents or on zeros; which of them the machine shows, once."""
    for kept in (True, False):
        bench = Freed()
        new = bench.do("write", 10, 1)
        assert bench.spec.unsettled == [(0, 10)]
        shown = ((0, bench.old), (1, new)) if kept else ((1, new),)
        assert bench.reads(*shown)
        assert bench.reads(*shown)
        assert not bench.reads()
        assert not bench.reads(*(((1, new),) if kept else ((0, bench.old), (1, new))))


def test_filling_it_ends_it() -> None:
    """Nothing is left of what may have been thrown away: the machine has nothing to show."""
    bench = Freed()
    bench.do("fill", 10, 2)
    assert not bench.spec.unsettled
    filled = ((0, pattern_token(2)),)
    assert bench.content(10) == filled
    assert bench.reads(*filled)
    assert not bench.reads()
    assert not bench.reads((0, bench.old))


def test_filling_droppable_memory() -> None:
    """It may be thrown away again at once."""
    bench = Bench()
    bench.map(10, 1, flags=MAP_DROPPABLE | MAP_FIXED)
    for data in (((0, pattern_token(1)),), ()):
        bench.do("fill", 10, 1)
        assert bench.spec.apply(Op("read", 0, (10,)), Outcome(0, data), 0) is None
    assert bench.content(10) == ()


def test_a_pin_for_writing_ends_it() -> None:
    """The page is dirty from then on; the pin has the contents that are there."""
    bench = Freed()
    bench.do("gup_fast", 10, PIN, 0)
    bench.show(0)
    assert bench.reads()
    token = bench.do("pin_write", 0, 2)
    assert bench.reads((2, token))
    assert not bench.reads()


def test_others_keep_theirs() -> None:
    """A child's page may go by itself, whatever became of its parent's; DONTNEED ends all doubt."""
    bench = Freed()
    bench.do("fork", 1)
    assert bench.reads(proc=1)
    assert bench.reads((0, bench.old))
    bench.do("madvise", 10, 1, 4)
    assert bench.reads()
    assert not bench.reads((0, bench.old))


def test_it_moves_along() -> None:
    """A move and a change of permissions carry the doubt with the page."""
    bench = Freed()
    bench.do("mprotect", 10, 1, PROT_READ)
    bench.do("mremap", 10, 1, 1, 3, 50, ret=50)
    assert bench.spec.procs[0][50].dropped == 0
    assert bench.spec.apply(Op("read", 0, (50,)), Outcome(0, ()), 0) is None


def test_after_a_failure_it_may_go() -> None:
    """Whether MADV_FREE got to the page does not show."""
    bench = Freed()
    bench.do("write", 11, 0)
    op = Op("madvise", 0, (11, 1, MADV_FREE))
    assert settle(bench.spec, op, Outcome(-EAGAIN, None, True), 1, lambda *_: True) is None
    assert bench.spec.procs[0][11].dropped == 0


# ---- on the machine


def judge(design: type[Design], *ops: Op) -> Verdict:
    workload = Workload("small4", tuple(Step((op,)) for op in ops))
    return Judge(kernel_image(design), kernel_image(Mainline), thorough=True).run(workload)


FREED = (Op("mmap", 0, (0, 1, RW, FIXED, 0, 0)), Op("write", 0, (0, 0)), Op("madvise", 0, (0, 1, MADV_FREE)))


def test_the_machine_throws_it_away() -> None:
    """No finding, and the reference is left out: it could have decided otherwise."""
    verdict = judge(Mainline, *FREED, Op("reclaim", 0, (0,)), Op("read", 0, (0,)))
    assert verdict.findings == ()
    assert verdict.outcomes[-1][0].data == ()
    assert "thrown away" in verdict.notes[0]


def test_what_was_written_again_must_stay() -> None:
    """A kernel that forgets to look at the dirty flag is found out."""
    ops = (*FREED, Op("write", 0, (0, 1)), Op("reclaim", 0, (0,)), Op("reclaim", 0, (0,)))
    assert judge(Mainline, *ops).findings == ()
    found = judge(planted.DropsDirtyPages, *ops).findings
    assert [f.signature for f in found] == ["specification/contents:contents lost, reclaim"]


@pytest.mark.parametrize("advice", [MADV_DONTFORK, MADV_WIPEONFORK])
def test_a_fork_that_does_not_listen(advice: int) -> None:
    """The child has what it should not have."""
    ops = (FREED[0], FREED[1], Op("madvise", 0, (0, 1, advice)), Op("fork", 0, (1,)))
    assert judge(Mainline, *ops).findings == ()
    found = judge(planted.ForkIgnoresAdvice, *ops).findings
    rule = "mapped" if advice == MADV_DONTFORK else "contents:contents out of nowhere"
    assert [f.signature for f in found] == [f"specification/{rule}{':' if advice == MADV_DONTFORK else ', '}fork"]


def test_madvise(bench: Bench) -> None:
    """DONTNEED drops contents past holes too; the rest shows nowhere."""
    bench.map(10, 1)
    bench.map(12, 1)
    for page in (10, 12):
        bench.do("write", page, 0)
    bench.do("madvise", 10, 3, MADV_PAGEOUT, ret=-ENOMEM)
    bench.do("madvise", 10, 1, MADV_HUGEPAGE)
    assert bench.content(10)
    bench.do("madvise", 10, 3, MADV_DONTNEED, ret=-ENOMEM)
    assert bench.content(10) == bench.content(12) == ()
    assert bench.refuses("madvise", 10, 1, MADV_DONTNEED, ret=-ENOMEM)


@pytest.mark.parametrize(
    ("pages", "allowed"),
    [
        (1, (0, -EINVAL, -EAGAIN, -EBUSY)),
        (2, (-ENOMEM, -EINVAL, -EAGAIN, -EBUSY)),  # a hole: not success
    ],
)
def test_collapse(bench: Bench, pages: int, allowed: tuple[int, ...]) -> None:
    """It may fail for what nobody sees, and changes no contents."""
    bench.map(10, 1)
    bench.do("write", 10, 0)
    before = bench.content(10)
    for ret in allowed:
        bench.do("madvise", 10, pages, MADV_COLLAPSE, ret=ret)
    assert bench.content(10) == before
    for ret in {0, -ENOMEM, -EPERM}.difference(allowed):
        assert bench.refuses("madvise", 10, pages, MADV_COLLAPSE, ret=ret)
