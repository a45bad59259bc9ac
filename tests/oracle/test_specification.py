"""The specification by itself: which outcomes it allows, and what it says the pages are then."""

from __future__ import annotations

import pytest

from emulator.errors import InternalError
from emulator.uapi import (
    EAGAIN,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_MUST_RELOCATE_ANON,
    MREMAP_RELOCATE_ANON,
    OOM_KILLED,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    SIGBUS,
    SIGSEGV,
)
from emulator.workload import (
    FILE_PAGES,
    FOLL_LONGTERM,
    FOLL_PIN,
    FOLL_WRITE,
    Op,
    Outcome,
    file_token,
    pattern_token,
)
from oracle.contents import pack_data, unpack
from oracle.specification import Specification
from oracle.specification_failure import settle
from oracle.specification_mremap import refused_to_relocate
from oracle.specification_page import Limits, Page, Refusal

RW = PROT_READ | PROT_WRITE
FIXED = MAP_PRIVATE | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


class Bench:
    """A specification and a counter of tokens."""

    def __init__(self, *, mremap_flags: int = 0, old_mremap: bool = False) -> None:
        limits = Limits(200, 150, mremap_flags)
        if old_mremap:
            old = limits.profile._replace(mremap_checks_first=False, mremap_moves_several=False)
            limits = limits._replace(profile=old)
        self.spec = Specification(limits)
        self.token = 0

    def try_(self, kind: str, *args: int, ret: int = 0, proc: int = 0) -> Refusal | None:
        self.token += 1
        data = None
        if kind == "read" and ret == 0:
            page = self.spec.procs.get(proc, {}).get(args[0])
            data = () if page is None else unpack(self.spec.content(page))
        return self.spec.apply(Op(kind, proc, args), Outcome(ret, data), self.token)

    def do(self, kind: str, *args: int, ret: int = 0, proc: int = 0) -> int:
        """An op whose outcome must be allowed; the token that it wrote."""
        assert self.try_(kind, *args, ret=ret, proc=proc) is None
        return self.token

    def refuses(self, kind: str, *args: int, ret: int = 0, proc: int = 0) -> Refusal:
        """The outcome must not be allowed. Leaves the state alone."""
        saved, self.spec = self.spec, self.spec.copy()
        refusal = self.try_(kind, *args, ret=ret, proc=proc)
        self.spec = saved
        assert refusal is not None
        return refusal

    def map(self, first: int, pages: int, prot: int = RW, *, file: int = 0, flags: int = FIXED, off: int = 0) -> None:
        self.do("mmap", first, pages, prot, flags, file, off, ret=first)

    def content(self, number: int, proc: int = 0) -> tuple[tuple[int, int], ...]:
        return unpack(self.spec.content(self.spec.procs[proc][number]))

    def mapped(self, proc: int = 0) -> list[int]:
        return sorted(self.spec.procs[proc])


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- accesses


def test_write_read_and_signals(bench: Bench) -> None:
    """What was written is read; what is not allowed is a signal, and nothing else."""
    bench.map(10, 2)
    token = bench.do("write", 10, 3)
    bench.do("read", 10)
    assert bench.content(10) == ((3, token),)
    assert bench.content(11) == ()
    bench.do("write", 12, 0, ret=SIGSEGV)
    bench.do("read", 12, ret=SIGSEGV)
    bench.do("exec", 10, ret=SIGSEGV)
    assert bench.refuses("write", 10, 0, ret=SIGSEGV).rule == "result"
    assert bench.refuses("write", 12, 0, ret=0).rule == "result"
    assert bench.refuses("read", 10, ret=SIGBUS).rule == "result"


def test_fill_is_a_store_all_over_the_page(bench: Bench) -> None:
    """It gives what a write gives, also as a signal, and leaves the pattern and nothing else."""
    bench.map(10, 1)
    bench.map(11, 1, PROT_READ)
    bench.map(12, 1, file=1, off=FILE_PAGES)
    bench.do("write", 10, 3)
    bench.do("fill", 10, 1)
    assert bench.content(10) == ((0, pattern_token(1)),)
    bench.do("fill", 10, 0)
    assert bench.content(10) == ()
    bench.do("fill", 11, 1, ret=SIGSEGV)
    bench.do("fill", 12, 1, ret=SIGBUS)
    bench.do("fill", 13, 1, ret=SIGSEGV)
    assert bench.content(11) == ()
    assert bench.refuses("fill", 10, 1, ret=SIGSEGV).rule == "result"
    assert bench.refuses("fill", 11, 1).rule == "result"


@pytest.mark.parametrize(
    ("data", "cause"),
    [((), "contents lost"), (((0, 99),), "other contents")],
)
def test_read_of_something_else(bench: Bench, data: tuple[tuple[int, int], ...], cause: str) -> None:
    """A read that does not give what was written names how it differs."""
    bench.map(10, 1)
    bench.do("write", 10, 0)
    refusal = bench.spec.apply(Op("read", 0, (10,)), Outcome(0, data), 0)
    assert refusal is not None
    assert (refusal.rule, refusal.cause) == ("read", cause)


def test_read_of_zeros_that_are_not(bench: Bench) -> None:
    """Somebody else's data in a fresh page."""
    bench.map(10, 1)
    refusal = bench.spec.apply(Op("read", 0, (10,)), Outcome(0, ((1, 5),)), 0)
    assert refusal is not None
    assert refusal.cause == "contents out of nowhere"


def test_protections(bench: Bench) -> None:
    """x86: what may be written or executed may be read; PROT_NONE may not be touched."""
    bench.map(10, 1, PROT_WRITE)
    bench.map(11, 1, PROT_EXEC)
    bench.map(12, 1, PROT_NONE)
    bench.do("read", 10)
    bench.do("read", 11)
    bench.do("exec", 11)
    bench.do("read", 12, ret=SIGSEGV)
    bench.do("write", 11, 0, ret=SIGSEGV)
    assert bench.refuses("exec", 11, ret=SIGSEGV)


def test_files(bench: Bench) -> None:
    """Shared writes show in every mapping; a private write is one's own; beyond the end is SIGBUS."""
    bench.map(10, 2, file=1, flags=MAP_SHARED | MAP_FIXED, off=14)
    bench.map(20, 4, file=1, off=14)
    assert bench.content(10) == bench.content(20) == ((0, file_token(0, 14)),)
    token = bench.do("write", 10, 0)
    assert bench.content(20) == ((0, token),)
    own = bench.do("write", 20, 1)
    assert bench.content(20) == ((0, token), (1, own))
    assert bench.content(10) == ((0, token),)
    again = bench.do("write", 11, 0)
    assert bench.content(21) == ((0, again),)
    for kind, args in (("read", (22,)), ("write", (22, 0))):
        bench.do(kind, *args, ret=SIGBUS)
        assert bench.refuses(kind, *args, ret=SIGSEGV)
    bench.map(30, 1, PROT_EXEC, file=2, off=16)
    bench.do("exec", 30, ret=SIGBUS)
    bench.do("madvise", 20, 1, MADV_DONTNEED)
    assert bench.content(20) == ((0, token),)


# ---- mmap, munmap, mprotect, madvise


def test_mmap_errors(bench: Bench) -> None:
    """Each error where it must come, and not where it must not."""
    bench.map(10, 4)
    bench.do("mmap", 10, 0, RW, FIXED, 0, 0, ret=-EINVAL)
    bench.do("mmap", 10, 1, RW, MAP_SHARED | MAP_FIXED, 0, 0, ret=-EINVAL)
    bench.do("mmap", 10, 1, RW, MAP_FIXED, 1, 0, ret=-EINVAL)
    bench.do("mmap", 12, 4, RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE, 0, 0, ret=-EEXIST)
    validate = MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE
    bench.do("mmap", 20, 4, RW, validate, 1, 0, ret=-EOPNOTSUPP)
    assert bench.refuses("mmap", 20, 4, RW, validate, 1, 0, ret=20)
    bench.do("mmap", 198, 4, RW, FIXED, 0, 0, ret=-ENOMEM)
    assert bench.refuses("mmap", 20, 4, RW, FIXED, 0, 0, ret=-ENOMEM)
    assert bench.refuses("mmap", 12, 4, RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE, 0, 0, ret=12)
    assert bench.refuses("mmap", 20, 4, RW, FIXED, 0, 0, ret=21)


def test_mmap_chooses_any_free_place(bench: Bench) -> None:
    """Without FIXED every free range is right, and none that is in use or outside."""
    bench.map(10, 4)
    assert bench.refuses("mmap", 10, 2, RW, MAP_PRIVATE, 0, 0, ret=13).rule == "placement"
    assert bench.refuses("mmap", 10, 2, RW, MAP_PRIVATE, 0, 0, ret=199).rule == "placement"
    bench.do("mmap", 10, 2, RW, MAP_PRIVATE, 0, 0, ret=14)
    assert bench.mapped() == list(range(10, 16))


def test_mmap_out_of_space(bench: Bench) -> None:
    """-ENOMEM without a failure: when no gap is large enough, or too much is mapped."""
    assert bench.refuses("mmap", 0, 100, RW, MAP_PRIVATE, 0, 0, ret=-ENOMEM)
    bench.map(90, 4)
    bench.do("mmap", 0, 120, RW, MAP_PRIVATE, 0, 0, ret=-ENOMEM)
    bench.do("mmap", 0, 149, RW, FIXED, 0, 0, ret=-ENOMEM)
    assert bench.refuses("mmap", 0, 100, RW, MAP_PRIVATE, 0, 0, ret=-ENOMEM)


def test_munmap(bench: Bench) -> None:
    """Holes are fine, length 0 is not, and nothing else fails."""
    bench.map(10, 4)
    bench.do("munmap", 5, 7)
    assert bench.mapped() == [12, 13]
    bench.do("munmap", 12, 0, ret=-EINVAL)
    assert bench.refuses("munmap", 12, 1, ret=-ENOMEM)


def test_mprotect_stops_at_a_hole(bench: Bench) -> None:
    """What stands before the hole is changed all the same."""
    bench.map(10, 2)
    bench.map(13, 2)
    bench.do("mprotect", 10, 5, PROT_READ, ret=-ENOMEM)
    bench.do("write", 11, 0, ret=SIGSEGV)
    bench.do("write", 13, 0)
    bench.do("mprotect", 20, 1, PROT_READ, ret=-ENOMEM)
    bench.do("mprotect", 20, 0, PROT_READ)
    assert bench.refuses("mprotect", 13, 2, PROT_READ, ret=-ENOMEM)


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


def test_what_it_does_not_know_is_our_mistake(bench: Bench) -> None:
    """An op or advice that was added to the machine and not here is an internal error, not a finding."""
    with pytest.raises(InternalError):
        bench.do("madvise", 10, 1, MADV_REMOVE)
    with pytest.raises(InternalError):
        bench.do("unheard-of")


# ---- mremap


def test_mremap_parameters(bench: Bench) -> None:
    """-EINVAL before anything else (mm/mremap.c, check_mremap_params)."""
    bench.map(10, 4)
    for old, new, flags, target in (
        (4, 0, MREMAP_MAYMOVE, 0),
        (4, 4, 64, 0),
        (4, 4, MREMAP_FIXED, 50),
        (4, 4, MREMAP_DONTUNMAP, 50),
        (4, 3, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 50),
        (4, 4, MOVE, 12),
        (4, 4, MOVE, 198),
        (4, 4, MREMAP_MAYMOVE | MREMAP_RELOCATE_ANON, 0),
        (0, 4, MREMAP_MAYMOVE, 0),
    ):
        bench.do("mremap", 10, old, new, flags, target, ret=-EINVAL)
        assert bench.refuses("mremap", 10, old, new, flags, target, ret=target)


def test_relocation_flag_where_the_design_knows_it() -> None:
    """The flag changes nothing that a process sees, and needs MAYMOVE."""
    bench = Bench(mremap_flags=MREMAP_RELOCATE_ANON)
    bench.map(10, 2)
    bench.do("write", 10, 0)
    bench.do("mremap", 10, 2, 1, MREMAP_RELOCATE_ANON, 0, ret=-EINVAL)
    bench.do("mremap", 10, 2, 2, MOVE | MREMAP_RELOCATE_ANON, 50, ret=50)
    assert bench.mapped() == [50, 51]
    assert bench.content(50)


MUST = MOVE | MREMAP_MUST_RELOCATE_ANON


def test_must_flag_where_the_design_knows_it() -> None:
    """It needs MAYMOVE; success is as ever, but for memory of files, which must be refused."""
    bench = Bench(mremap_flags=MREMAP_MUST_RELOCATE_ANON)
    bench.map(10, 2)
    bench.map(20, 2, file=1)
    bench.do("mremap", 10, 2, 1, MREMAP_MUST_RELOCATE_ANON, 0, ret=-EINVAL)
    assert bench.refuses("mremap", 20, 2, 2, MUST, 50, ret=50).cause == "mremap gave success, allowed -EFAULT"
    assert bench.refuses("mremap", 20, 2, 3, MUST, 50, ret=50).cause == "mremap gave success, allowed -EFAULT"
    bench.do("mremap", 10, 2, 2, MUST, 50, ret=50)
    assert bench.mapped() == [20, 21, 50, 51]


def test_must_refuses_files_only_where_they_are_moved() -> None:
    """Grown or shrunk where it stands, nothing is relocated."""
    bench = Bench(mremap_flags=MREMAP_MUST_RELOCATE_ANON)
    bench.map(20, 2, file=1)
    bench.do("mremap", 20, 2, 3, MREMAP_MAYMOVE | MREMAP_MUST_RELOCATE_ANON, 0, ret=20)
    bench.do("mremap", 20, 3, 1, MREMAP_MAYMOVE | MREMAP_MUST_RELOCATE_ANON, 0, ret=20)
    assert bench.mapped() == [20]


REFUSALS = [  # addr, old_len, new_len, flags, new_addr, something else than -EFAULT is demanded
    ("moved", 10, 4, 4, MUST, 50, False),
    ("grown_and_moved", 10, 4, 6, MUST, 50, False),
    ("shrunk_and_moved", 10, 4, 2, MUST, 50, False),
    ("dontunmap", 10, 4, 4, MUST | MREMAP_DONTUNMAP, 50, False),
    ("anywhere", 10, 2, 5, MREMAP_MAYMOVE | MREMAP_MUST_RELOCATE_ANON, 0, False),
    ("without_the_flag", 10, 4, 4, MOVE, 50, True),
    ("shrunk_in_place", 10, 4, 2, MREMAP_MAYMOVE | MREMAP_MUST_RELOCATE_ANON, 0, True),
    ("grown_in_place", 13, 1, 3, MREMAP_MAYMOVE | MREMAP_MUST_RELOCATE_ANON, 0, True),
    ("of_length_0", 10, 0, 4, MUST, 50, True),
    ("overlapping", 10, 4, 4, MUST, 12, True),
]


@pytest.mark.parametrize(
    ("addr", "old", "new", "flags", "target", "wrong"), [pytest.param(*row[1:], id=row[0]) for row in REFUSALS]
)
def test_must_may_be_refused(addr: int, old: int, new: int, flags: int, target: int, wrong: bool) -> None:
    """-EFAULT where a move had begun; not where none was asked for, and not instead of other errors."""
    bench = Bench(mremap_flags=MREMAP_MUST_RELOCATE_ANON)
    bench.map(10, 4)
    op = Op("mremap", 0, (addr, old, new, flags, target))
    assert refused_to_relocate(bench.spec, op, -EFAULT) != wrong
    if wrong:
        assert bench.refuses("mremap", *op.args, ret=-EFAULT)


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


def test_mremap_shrinks_in_place(bench: Bench) -> None:
    """A plain shrink may cross other mappings and holes."""
    bench.map(10, 4)
    bench.map(15, 2, PROT_READ)
    bench.do("mremap", 10, 7, 2, 0, 0, ret=10)
    assert bench.mapped() == [10, 11]
    bench.do("mremap", 10, 2, 2, 0, 0, ret=10)
    assert bench.refuses("mremap", 10, 2, 1, 0, 0, ret=-EFAULT)


def test_mremap_grows(bench: Bench) -> None:
    """In place where there is room, else by a move if that is allowed."""
    bench.map(10, 2)
    bench.do("mremap", 10, 2, 4, 0, 0, ret=10)
    assert bench.mapped() == [10, 11, 12, 13]
    bench.map(14, 1, PROT_READ)
    bench.do("write", 10, 0)
    bench.do("mremap", 10, 4, 6, 0, 0, ret=-ENOMEM)
    assert bench.refuses("mremap", 10, 4, 6, 0, 0, ret=10).rule == "placement"
    assert bench.refuses("mremap", 10, 4, 6, 0, 0, ret=50)
    assert bench.refuses("mremap", 10, 4, 6, MREMAP_MAYMOVE, 0, ret=-ENOMEM)
    bench.do("mremap", 10, 4, 6, MREMAP_MAYMOVE, 0, ret=50)
    assert bench.mapped() == [14, *range(50, 56)]
    assert bench.content(50)
    assert bench.refuses("mremap", 14, 1, 2, MREMAP_MAYMOVE, 0, ret=50).rule == "placement"


def test_mremap_of_a_file_mapping_grows_along_the_file(bench: Bench) -> None:
    """New pages continue the file where the old ones ended; old length 0 maps a second time."""
    bench.map(10, 2, file=1, flags=MAP_SHARED | MAP_FIXED, off=3)
    bench.do("write", 11, 0)
    bench.do("mremap", 10, 2, 3, 0, 0, ret=10)
    backing = bench.spec.procs[0][12].backing
    assert backing is not None
    assert backing.page == 5
    bench.do("mremap", 10, 0, 2, MREMAP_MAYMOVE, 0, ret=60)
    assert bench.content(61) == bench.content(11) != ()
    bench.do("mremap", 10, 0, 2, 0, 0, ret=-ENOMEM)


def test_mremap_needs_one_vma(bench: Bench) -> None:
    """Pages of different kind stand in different VMAs; of one kind, the kernel knows."""
    bench.map(10, 2)
    bench.map(12, 2, PROT_READ)
    bench.do("mremap", 10, 4, 6, MREMAP_MAYMOVE, 0, ret=-EFAULT)
    assert bench.refuses("mremap", 10, 4, 6, MREMAP_MAYMOVE, 0, ret=60)
    bench.do("mremap", 10, 2, 3, MREMAP_MAYMOVE, 0, ret=-EFAULT)
    bench.do("mremap", 20, 2, 3, MREMAP_MAYMOVE, 0, ret=-EFAULT)
    bench.map(30, 2, file=1, off=0)
    bench.map(32, 2, file=1, off=9)
    bench.do("mremap", 30, 4, 6, MREMAP_MAYMOVE, 0, ret=-EFAULT)
    assert bench.refuses("mremap", 10, 1, 2, MREMAP_MAYMOVE, 0, ret=-EFAULT)


def test_mremap_to_a_fixed_place(bench: Bench) -> None:
    """What stood there goes; a shrinking move drops its tail."""
    bench.map(10, 4)
    bench.map(50, 3, PROT_READ)
    bench.do("write", 10, 0)
    bench.do("mremap", 10, 4, 2, MOVE, 50, ret=50)
    assert bench.mapped() == [50, 51, 52]
    assert bench.content(50)
    assert bench.spec.procs[0][52].flags == PROT_READ
    assert bench.refuses("mremap", 50, 2, 3, MOVE, 60, ret=61)
    bench.do("mremap", 50, 2, 3, MOVE, 60, ret=60)
    assert bench.mapped() == [52, 60, 61, 62]


def test_mremap_of_several_vmas(bench: Bench) -> None:
    """Since 6.17 a pure move takes all VMAs along and leaves gaps of the destination alone."""
    bench.map(10, 1)
    bench.map(12, 1, PROT_READ)
    bench.map(51, 1, PROT_EXEC)
    bench.do("mremap", 10, 4, 4, MOVE, 50, ret=50)
    assert bench.mapped() == [50, 51, 52]
    assert [bench.spec.procs[0][n].flags for n in (50, 51, 52)] == [RW, PROT_EXEC, PROT_READ]
    bench.do("mremap", 10, 4, 4, MOVE, 50, ret=-EFAULT)
    assert bench.refuses("mremap", 50, 3, 3, MOVE, 70, ret=71)
    assert bench.refuses("mremap", 50, 3, 3, MOVE, 70, ret=-ENOMEM)


def test_old_mremap_of_several_vmas() -> None:
    """Before 6.17 every move is of one VMA, and the destination has gone when that is found out."""
    bench = Bench(old_mremap=True)
    bench.map(10, 1)
    bench.map(12, 1, PROT_READ)
    bench.map(50, 4)
    assert bench.refuses("mremap", 10, 3, 3, MOVE, 51, ret=51)
    bench.do("mremap", 10, 3, 3, MOVE, 51, ret=-EFAULT)
    assert bench.mapped() == [10, 12, 50]
    bench.map(60, 2)
    assert bench.refuses("mremap", 60, 1, 1, MOVE, 70, ret=-EFAULT)
    bench.do("mremap", 60, 2, 2, MOVE, 70, ret=-EFAULT)  # two VMAs of one kind, perhaps
    bench.do("mremap", 60, 2, 2, MOVE, 70, ret=70)


def test_old_mremap_shrinks_and_moves() -> None:
    """The tail has gone too when the rest cannot be moved."""
    bench = Bench(old_mremap=True)
    bench.map(10, 1)
    bench.map(11, 2, PROT_READ)
    bench.do("mremap", 10, 3, 2, MOVE, 50, ret=-EFAULT)
    assert bench.mapped() == [10, 11]


@pytest.mark.parametrize(("old", "errno"), [(False, EINVAL), (True, EFAULT)])
def test_which_error_of_mremap_comes_first(old: bool, errno: int) -> None:
    """A place where the range cannot go, for a source that is not there: before 6.17 the latter counts."""
    bench = Bench(old_mremap=old)
    bench.do("mremap", 10, 2, 2, MOVE, 11, ret=-errno)
    assert bench.refuses("mremap", 10, 2, 2, MOVE, 11, ret=-(EINVAL + EFAULT - errno))
    bench.do("mremap", 10, 2, 2, MREMAP_FIXED, 50, ret=-EINVAL)
    bench.map(10, 2)
    bench.do("mremap", 10, 2, 2, MOVE, 11, ret=-EINVAL)


def test_mremap_dontunmap(bench: Bench) -> None:
    """The contents move, the source stays: empty, or showing its file."""
    bench.map(10, 2)
    bench.map(20, 1, file=1, flags=MAP_SHARED | MAP_FIXED)
    bench.do("write", 10, 0)
    bench.do("write", 20, 0)
    bench.do("mremap", 10, 2, 2, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, ret=60)
    assert bench.content(10) == ()
    assert bench.content(60)
    bench.do("mremap", 20, 1, 1, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, ret=70)
    assert bench.content(20) == bench.content(70) != ()
    bench.map(80, 75)
    bench.do("mremap", 80, 75, 75, MOVE | MREMAP_DONTUNMAP, 100, ret=-EINVAL)
    bench.do("mremap", 80, 75, 75, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, ret=-ENOMEM)


# ---- processes and pins


def test_fork_copies(bench: Bench) -> None:
    """Writes after the fork are one's own; labels in use are refused; the dead are not found."""
    bench.map(10, 1)
    before = bench.do("write", 10, 0)
    bench.do("fork", 1)
    after = bench.do("write", 10, 0)
    assert bench.content(10) == ((0, after),)
    assert bench.content(10, 1) == ((0, before),)
    bench.do("fork", 1, ret=-EBUSY)
    bench.do("fork", 0, ret=-EBUSY)
    assert bench.refuses("fork", 2, ret=-ENOMEM)
    bench.do("exit", proc=1)
    bench.do("read", 10, proc=1, ret=-ESRCH)
    assert bench.refuses("exit", ret=-EINVAL)
    assert bench.refuses("read", 10, proc=1, ret=0)


def test_pin_stays_with_the_parent(bench: Bench) -> None:
    """A page pinned for writing is shared with the device, not with the child."""
    bench.map(10, 1)
    bench.do("gup_fast", 10, FOLL_PIN | FOLL_WRITE, 4)
    bench.do("fork", 1)
    token = bench.do("pin_write", 4, 2)
    assert bench.content(10) == ((2, token),)
    assert bench.content(10, 1) == ()
    own = bench.do("write", 10, 0)
    assert unpack(bench.spec.cells[bench.spec.pins[4].cell]) == ((0, own), (2, token))
    bench.do("mremap", 10, 1, 1, MOVE, 50, ret=50)
    later = bench.do("pin_write", 4, 3)
    assert (3, later) in bench.content(50)
    bench.do("madvise", 50, 1, MADV_DONTNEED)
    bench.do("pin_write", 4, 1)
    assert bench.content(50) == ()
    bench.do("unpin", 4)
    bench.do("unpin", 4, ret=-EINVAL)
    bench.do("pin_write", 4, 0, ret=-EINVAL)
    assert bench.refuses("unpin", 4)


def test_pin_of_a_file_page(bench: Bench) -> None:
    """Through a pin on a shared mapping one writes the file; not with a long-term pin."""
    bench.map(10, 1, file=1, flags=MAP_SHARED | MAP_FIXED)
    bench.do("gup_slow", 10, FOLL_WRITE, 1)
    token = bench.do("pin_write", 1, 0)
    assert bench.content(10) == ((0, token),)
    bench.do("gup_slow", 10, FOLL_PIN | FOLL_WRITE | FOLL_LONGTERM, 2, ret=-EFAULT)
    bench.map(20, 1, file=1)
    bench.do("gup_slow", 20, FOLL_PIN | FOLL_LONGTERM, 2)
    bench.do("write", 10, 1)
    assert bench.content(20) == ((0, token),)


def test_pin_for_reading(bench: Bench) -> None:
    """Coherent where the page has contents of its own; else it may be the zero page, and promises nothing."""
    bench.map(10, 2)
    bench.do("write", 10, 0)
    bench.do("gup_fast", 10, FOLL_PIN, 1)
    bench.do("gup_fast", 10, FOLL_PIN, 2)
    bench.do("gup_fast", 11, FOLL_PIN, 3)
    assert bench.spec.pins[1].cell == bench.spec.pins[2].cell > 0
    assert bench.spec.pins[3].cell == 0
    bench.do("pin_write", 1, 0, ret=-EINVAL)


def test_gup_errors(bench: Bench) -> None:
    """Each refusal of get_user_pages."""
    bench.map(10, 1, PROT_READ)
    bench.map(11, 1, PROT_WRITE)
    bench.map(12, 1, PROT_NONE)
    bench.map(13, 1, file=1, off=16)
    bench.do("gup_slow", 10, FOLL_WRITE, 0, ret=-EFAULT)
    bench.do("gup_slow", 11, 0, 0, ret=-EFAULT)
    assert bench.refuses("gup_slow", 11, 0, 0, ret=0)
    bench.do("gup_fast", 11, 0, 0, ret=-EFAULT)
    bench.do("gup_fast", 11, 0, 0, ret=0)
    bench.do("gup_slow", 10, 0, 0, ret=-EBUSY)
    for page in (12, 13, 14):
        bench.do("gup_slow", page, 0, 1, ret=-EFAULT)
    bench.do("gup_slow", 10, FOLL_LONGTERM, 1, ret=-EINVAL)


def test_reference_without_promise_is_wild(bench: Bench) -> None:
    """What is written through FOLL_GET may show anywhere the folio is mapped."""
    bench.map(10, 1)
    bench.do("gup_fast", 10, FOLL_WRITE, 1)
    bench.do("pin_write", 1, 0)
    assert bench.spec.wild == [1]


def test_kernel_activity_shows_nowhere(bench: Bench) -> None:
    """Reclaim and its like may do something or not."""
    bench.map(10, 1)
    bench.do("write", 10, 0)
    for kind in ("reclaim", "swap_readahead", "migrate"):
        bench.do(kind, 10, ret=0)
        bench.do(kind, 10, ret=1)
    assert bench.content(10)


def test_copies_do_not_influence_each_other(bench: Bench) -> None:
    """The collision oracle tries every order on a copy."""
    bench.map(10, 1)
    bench.do("gup_fast", 10, FOLL_PIN | FOLL_WRITE, 1)
    copy = bench.spec.copy()
    bench.do("write", 10, 0)
    bench.do("unpin", 1)
    bench.do("munmap", 10, 1)
    assert copy.content(copy.procs[0][10]) == 0
    assert list(copy.pins) == [1]


def test_packing() -> None:
    """Contents survive packing, sorted."""
    data = ((0, 3), (3, 1 << 30))
    assert unpack(pack_data(data)) == data
    assert unpack(0) == ()


# ---- after an injected failure


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
