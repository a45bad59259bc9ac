"""userfaultfd in the specification: what calls and accesses may give, as far as what they gave before tells.

Scripts as in ``tests/emulator/mm/uffd_world.py``; a call after ``not`` must be refused. Pages 0 to 7 and 20 to 27 are
mapped and never touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from emulator import uapi
from emulator.mm_types import VM_UFFD_FLAGS, VM_UFFD_MISSING
from emulator.profile import PROFILES
from emulator.workload import OPS, Domain, Op, Outcome
from oracle.specification.failure import settle
from oracle.specification.page import Page
from oracle.specification.uffd_fill import read_before
from oracle.specification.uffd_follow import leave_open
from tests.emulator.mm.uffd_world import result_of, value
from tests.oracle.specification.bench import RW, Bench


class Script(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.spec.limits = self.spec.limits._replace(heap=140)
        self.map(0, 8)
        self.map(20, 8)

    def play(self, script: str, proc: int = 0) -> Script:
        for call in filter(None, map(str.strip, script.split(";"))):
            text, _, result = call.removeprefix("not ").partition(" = ")
            kind, *words = text.split()
            args = arguments(kind, words)
            if call.startswith("not "):
                self.refuses(kind, *args, ret=result_of(result or "0"), proc=proc)
            else:
                refusal = self.try_(kind, *args, ret=result_of(result or "0"), proc=proc)
                assert refusal is None, f"{call!r}: {refusal.detail}"
        return self

    def registered(self, proc: int = 0) -> list[int]:
        return [number for number, page in self.spec.procs[proc].items() if page.flags & VM_UFFD_FLAGS]


def arguments(kind: str, words: Sequence[str]) -> list[int]:
    domains = [domain for _, domain in OPS[kind].args]
    return [number_of(domain, word) for domain, word in zip(domains, words, strict=True)]


def number_of(domain: Domain, word: str) -> int:
    return int(word) if word.isdigit() else value(domain, word)


# ---- the context, and registering


@pytest.mark.parametrize(
    "script",
    [
        "userfaultfd none; not userfaultfd none; userfaultfd none = EBUSY",
        "not userfaultfd none = EBUSY",
        "uffd_register 0 1 missing; not userfaultfd none; uffd_close; userfaultfd none",
        "not uffd_close; uffd_close = EBADF; userfaultfd none; not uffd_close = EBADF",
        "not uffd_register 0 0 missing; uffd_register 0 0 missing = EINVAL",
        "not uffd_register 0 4 none; uffd_register 0 4 none = EINVAL",
        "not uffd_register 0 4 minor; uffd_register 0 4 missing|minor = EINVAL",
        "not uffd_register 8 4 missing; uffd_register 8 4 missing = EINVAL; uffd_register 8 13 missing",
        "not uffd_register 0 300 missing; uffd_register 0 300 missing = EINVAL",
        "not uffd_register 0 4 missing = EINVAL; not uffd_unregister 0 4 = EINVAL; uffd_unregister 0 4",
        "not uffd_unregister 8 4; uffd_unregister 8 4 = EINVAL; uffd_unregister 0 0 = EINVAL",
    ],
)
def test_context(script: str) -> None:
    """What opens, closes and registers."""
    Script().play(script)


def test_files_cannot_be_registered() -> None:
    """Only anonymous memory can be, as no file of ours is of shmem."""
    bench = Script()
    bench.map(30, 2, RW, file=1)
    bench.play(
        "not uffd_register 30 2 missing; uffd_register 30 2 missing = EINVAL; uffd_register 20 12 wp = EINVAL; "
        "uffd_unregister 20 12 = EINVAL; not uffd_unregister 20 12"
    )


def test_droppable_memory_cannot_be_registered() -> None:
    """Nor unregistered."""
    bench = Script().play("mmap 40 2 rw droppable|fixed anon 0 = 40")
    bench.play("not uffd_register 40 2 missing; uffd_register 40 2 missing = EINVAL; uffd_register 20 22 wp = EINVAL")
    bench.play("not uffd_unregister 20 22; uffd_unregister 20 22 = EINVAL")


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 60 2 missing; not read 58; read 58 = SIGBUS; not read 59; uffd_unregister 58 4; read 59",
        "uffd_register 60 2 missing; not write 59 0; write 59 0 = SIGBUS; not write 59 0 = SIGSEGV",
        "uffd_register 60 2 missing; not read 59 = SIGSEGV; gup_slow 59 none 0 = EFAULT",
        "uffd_register 60 2 wp; read 59; uffd_register 59 1 missing; not read 59 = SIGBUS",
        "uffd_register 0 4 missing; uffd_copy 0 58 2 none = 2; read 59",
        "uffd_register 0 4 missing; uffd_register 60 2 missing; not uffd_copy 0 58 2 none = 2; "
        "uffd_copy 0 58 2 none = EFAULT; read 59 = SIGBUS",
        "uffd_register 60 2 missing; not uffd_copy 59 20 1 none = 1; uffd_copy 59 20 1 none = ENOENT",
    ],
)
def test_stacks(script: str) -> None:
    """What a stack grows by is registered as the stack is."""
    bench = Script()
    bench.spec.limits = bench.spec.limits._replace(stack_guard_gap=4)
    bench.play(f"mmap 60 2 rw private|fixed|growsdown anon 0 = 60; {script}")


@pytest.mark.parametrize(
    ("script", "registered"),
    [
        ("uffd_register 1 2 missing", [1, 2]),
        ("uffd_register 6 20 wp", [6, 7, 20, 21, 22, 23, 24, 25]),
        ("uffd_register 0 4 missing; uffd_unregister 1 2", [0, 3]),
        ("uffd_register 0 4 missing; uffd_close", []),
        ("uffd_register 0 4 missing; madvise 0 2 dontneed", [0, 1, 2, 3]),
        ("uffd_register 0 4 missing; mremap 0 2 2 maymove|fixed 40 = 40", [2, 3]),
        ("userfaultfd event_remap; uffd_register 0 4 missing; mremap 0 2 2 maymove|fixed 40 = 40", [2, 3, 40, 41]),
        ("uffd_register 0 8 missing; mremap 0 8 12 none 0 = 0", list(range(12))),
        ("uffd_register 0 8 missing; mremap 0 8 12 maymove 0 = 60", []),
        ("userfaultfd event_remap; uffd_register 0 8 wp; mremap 0 8 9 maymove 0 = 60", list(range(60, 69))),
    ],
)
def test_registered(script: str, registered: list[int]) -> None:
    """A flag of pages, which a move takes away unless EVENT_REMAP was asked for."""
    assert Script().play(script).registered() == registered


def test_one_mode_after_the_other() -> None:
    """The last one counts; a page that has what is asked for, and more, keeps it."""
    bench = Script().play("uffd_register 0 1 wp; uffd_register 0 2 missing; uffd_register 4 1 missing|wp")
    bench.play("uffd_register 4 1 missing")
    flags = [bench.spec.procs[0][number].flags & VM_UFFD_FLAGS for number in (0, 1, 4)]
    assert flags[:2] == [VM_UFFD_MISSING] * 2
    assert flags[2] != VM_UFFD_MISSING


# ---- accesses


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 0 2 missing; not read 0; not write 0 0; read 0 = SIGBUS; write 0 0 = SIGBUS; "
        "not read 2 = SIGBUS",
        "uffd_register 0 2 missing; not gup_slow 0 none 0; gup_slow 0 none 0 = EFAULT; gup_fast 0 pin 0 = EFAULT",
        "write 0 0; uffd_register 0 1 missing; not read 0 = SIGBUS; read 0; write 0 0",
        "read 0; uffd_register 0 1 missing; not read 0 = SIGBUS; read 0",
        "gup_slow 0 none 0; uffd_register 0 1 missing; not read 0 = SIGBUS",
        "write 0 0; uffd_register 0 1 missing; madvise 0 1 dontneed; not read 0; read 0 = SIGBUS",
        "write 0 0; uffd_register 0 1 missing; madvise 0 1 pageout; not read 0 = SIGBUS; read 0",
        "uffd_register 0 1 missing; mmap 0 1 rw private|fixed anon 0 = 0; not read 0 = SIGBUS",
        "uffd_register 0 1 missing; mprotect 0 1 none; not read 0 = SIGBUS; read 0 = SIGSEGV",
        "uffd_register 0 1 missing; uffd_unregister 0 1; not read 0 = SIGBUS; read 0",
        # a huge page may have brought it; what comes of one access tells
        "madvise 0 8 hugepage; write 0 0; uffd_register 0 8 missing; read 1; not read 1 = SIGBUS",
        "madvise 0 8 hugepage; write 0 0; uffd_register 0 8 missing; read 1 = SIGBUS; not read 1",
        "write 0 0; uffd_register 0 8 missing; not read 1",
        # a lock brings pages, and so does MAP_POPULATE; what the heap gave back is gone
        "mmap 0 2 rw private|fixed|populate anon 0 = 0; uffd_register 0 8 missing; read 0; read 1 = SIGBUS; not read 2",
        "brk 150 = 150; read 149; brk 149 = 149; brk 150 = 150; uffd_register 148 2 missing; not read 149",
        "brk 150 = 150; read 149; uffd_register 148 2 missing; not read 149 = SIGBUS",
        "mlock 0 2; uffd_register 0 2 missing; read 0; read 1 = SIGBUS; not read 0 = SIGBUS",
    ],
)
def test_missing(script: str) -> None:
    """An access to what is not there fails, and only that."""
    Script().play(script)


@pytest.mark.parametrize(
    "script",
    [
        "not uffd_wp 0 1 wp; uffd_wp 0 1 wp = ENOENT",
        "uffd_register 0 2 wp; not uffd_wp 0 4 wp; uffd_wp 0 4 wp = ENOENT; not uffd_wp 0 2 wp = ENOENT; "
        "uffd_wp 0 2 wp",
        "uffd_register 0 2 missing; uffd_wp 0 1 wp = ENOENT; not uffd_wp 0 1 wp",
        "uffd_register 0 2 wp; not uffd_wp 0 0 wp; uffd_wp 0 0 wp = EINVAL; uffd_wp 0 2 wp|dontwake = EINVAL",
        "write 0 0; uffd_register 0 2 wp; uffd_wp 0 2 wp; not write 0 1; write 0 1 = SIGBUS; read 0",
        "write 0 0; uffd_register 0 2 wp; uffd_wp 0 2 wp; not gup_slow 0 write 0; gup_slow 0 write 0 = EFAULT",
        "write 0 0; uffd_register 0 2 wp; uffd_wp 0 2 wp; uffd_wp 0 1 none; not write 0 1 = SIGBUS; write 0 1",
        "write 0 0; uffd_register 0 2 wp; uffd_wp 0 2 wp; uffd_unregister 0 2; not write 0 1 = SIGBUS; write 0 1",
        "write 0 0; uffd_register 0 2 wp; uffd_wp 0 2 wp; uffd_close; not write 0 1 = SIGBUS; write 0 1",
        "uffd_register 0 2 wp; uffd_wp 0 2 wp; not write 0 1 = SIGBUS; write 0 1",
        "userfaultfd wp_unpopulated; uffd_register 0 2 wp; uffd_wp 0 2 wp; not write 0 1; write 0 1 = SIGBUS",
        "write 0 0; uffd_register 0 2 wp; uffd_wp 0 2 wp; madvise 0 1 dontneed; not write 0 1 = SIGBUS; write 0 1",
        "write 0 0; uffd_register 0 2 wp; uffd_wp 0 2 wp; madvise 0 1 pageout; not write 0 1; write 0 1 = SIGBUS",
        # still protected when it is registered for that again, or not
        "write 0 0; uffd_register 0 1 wp; uffd_wp 0 1 wp; uffd_register 0 1 missing; "
        "not write 0 1 = SIGBUS; write 0 1",
        "write 0 0; uffd_register 0 1 wp; uffd_wp 0 1 wp; uffd_register 0 1 missing; uffd_register 0 1 wp; write 0 1",
        "write 0 0; uffd_register 0 1 wp; uffd_wp 0 1 wp; uffd_register 0 1 missing; uffd_register 0 1 wp; "
        "write 0 1 = SIGBUS; not write 0 1",
        # moved: with EVENT_REMAP it goes along
        "write 0 0; uffd_register 0 1 wp; uffd_wp 0 1 wp; mremap 0 1 1 maymove|fixed 40 = 40; "
        "not write 40 1 = SIGBUS",
        "userfaultfd event_remap; write 0 0; uffd_register 0 1 wp; uffd_wp 0 1 wp; "
        "mremap 0 1 1 maymove|fixed 40 = 40; not write 40 1; write 40 1 = SIGBUS",
    ],
)
def test_protected(script: str) -> None:
    """A write to what is protected fails, and only that."""
    Script().play(script)


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 0 8 missing; uffd_poison 0 2 = 2; not read 0; read 0 = SIGBUS; "
        "uffd_unregister 0 8; not read 0",
        "uffd_register 0 8 missing; uffd_poison 0 1 = 1; gup_slow 0 none 0 = EFAULT; not gup_slow 0 none 0",
        "uffd_register 0 8 missing; uffd_poison 0 1 = 1; not uffd_poison 0 1 = 1; uffd_poison 0 1 = EEXIST",
        "uffd_register 0 8 missing; uffd_poison 0 1 = 1; uffd_zeropage 0 1 = EEXIST; "
        "uffd_copy 0 20 1 none = 1; read 0",
        "uffd_register 0 8 missing; uffd_poison 0 1 = 1; madvise 0 1 dontneed; uffd_unregister 0 1; "
        "not read 0 = SIGBUS",
    ],
)
def test_poisoned(script: str) -> None:
    """Every access fails, until something else takes its place."""
    Script().play(script)


# ---- calls that go on page by page


@pytest.mark.parametrize(
    "script",
    [
        "not uffd_copy 0 20 1 none = 1; uffd_copy 0 20 1 none = ENOENT; uffd_copy 50 20 1 none = ENOENT",
        "uffd_register 0 4 missing; not uffd_copy 0 20 5 none = 5; uffd_copy 0 20 5 none = ENOENT",
        "uffd_register 0 4 missing; not uffd_copy 0 20 1 none = ENOENT; uffd_copy 0 20 0 none = EINVAL",
        "uffd_register 0 4 missing; uffd_copy 0 20 4 none = 4; read 3; not read 3 = SIGBUS",
        "uffd_register 0 4 missing; not uffd_copy 0 20 4 none = 3",
        "uffd_register 0 4 missing; uffd_copy 1 20 1 none = 1; not uffd_copy 0 20 4 none = 4; "
        "uffd_copy 0 20 4 none = 1",
        "uffd_register 0 4 missing; uffd_copy 1 20 1 none = 1; not uffd_copy 1 20 1 none = 1; "
        "uffd_copy 1 20 1 none = EEXIST",
        "uffd_register 0 4 missing; not uffd_copy 0 50 1 none = 1; uffd_copy 0 50 1 none = EFAULT",
        "uffd_register 0 4 missing; not uffd_copy 0 27 2 none = 2; uffd_copy 0 27 2 none = 1",
        "uffd_register 0 4 missing; not uffd_copy 0 1 1 none = 1; uffd_copy 0 1 1 none = EFAULT",
        "uffd_register 0 4 missing; uffd_copy 0 0 1 none = EFAULT; read 0 = SIGBUS; not read 0 ",
        "uffd_register 0 4 wp; not uffd_copy 0 0 1 none = 1; uffd_copy 0 0 1 none = EEXIST",
        "uffd_register 0 4 missing; not uffd_copy 0 20 1 wp = 1; uffd_copy 0 20 1 wp = EINVAL",
        "uffd_register 0 4 missing|wp; uffd_copy 0 20 1 wp = 1; not write 0 0; write 0 0 = SIGBUS; read 0",
        "uffd_register 0 4 missing|wp; uffd_copy 0 20 1 none = 1; not write 0 0 = SIGBUS; write 0 0",
        "uffd_register 0 4 missing; uffd_zeropage 0 4 = 4; read 0; not uffd_zeropage 0 1 = 1; "
        "uffd_zeropage 0 1 = EEXIST",
        "uffd_register 0 4 missing; not uffd_zeropage 0 4 = 2; not uffd_zeropage 0 4 = EEXIST",
        "userfaultfd wp_unpopulated; uffd_register 0 4 wp; uffd_wp 0 4 wp; "
        "not uffd_zeropage 0 1 = 1; uffd_zeropage 0 1 = EEXIST; uffd_copy 0 20 1 none = 1; write 0 0",
    ],
)
def test_filled(script: str) -> None:
    """How far UFFDIO_COPY and ZEROPAGE come, and what is there then."""
    Script().play(script)


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 0 8 missing; write 20 0; uffd_move 0 20 1 none = 1; read 0; not uffd_move 0 20 1 none = 1",
        "uffd_register 0 8 missing; write 20 0; not uffd_move 0 20 2 none = 2; uffd_move 0 20 2 none = 1",
        "uffd_register 0 8 missing; write 21 0; not uffd_move 0 20 2 none = 2; uffd_move 0 20 2 none = ENOENT",
        "uffd_register 0 8 missing; write 21 0; not uffd_move 0 20 2 holes = 1; "
        "uffd_move 0 20 2 holes = 2; read 0 = SIGBUS",
        "uffd_register 0 8 missing; write 20 0; uffd_copy 0 20 1 none = 1; not uffd_move 0 20 1 none = 1; "
        "uffd_move 0 20 1 none = EEXIST",
        "write 20 0; not uffd_move 0 20 1 none = 1; uffd_move 0 20 1 none = EINVAL",
        "uffd_register 0 8 missing; write 20 0; not uffd_move 50 20 1 none = 1; uffd_move 50 20 1 none = ENOENT; "
        "uffd_move 0 50 1 none = ENOENT; uffd_move 0 20 0 none = EINVAL",
        "uffd_register 0 8 missing; write 20 0; mprotect 20 8 r; not uffd_move 0 20 1 none = 1; "
        "uffd_move 0 20 1 none = EINVAL",
        "mprotect 0 8 r; mprotect 20 8 r; uffd_register 0 8 missing; uffd_move 0 20 1 holes = EINVAL; "
        "not uffd_move 0 20 1 holes = 1",
        "uffd_register 0 8 missing; write 20 0; mlock 24 1; not uffd_move 0 20 5 none = 1; "
        "uffd_move 0 20 5 none = EINVAL",
        "uffd_register 0 8 missing; write 20 0; not uffd_move 0 20 1 none = EBUSY; fork 1; "
        "uffd_move 0 20 1 none = EBUSY",
        "uffd_register 0 8 missing; gup_slow 20 pin|write 0; not uffd_move 0 20 1 none = ENOENT; "
        "uffd_move 0 20 1 none = EBUSY",
        "uffd_register 0 8 missing; uffd_register 20 8 missing; uffd_poison 20 1 = 1; not uffd_move 0 20 1 holes = 1; "
        "uffd_move 0 20 1 holes = EFAULT",
        # protection stays behind, but for what is swapped out
        "write 20 0; uffd_register 20 8 wp; uffd_wp 20 1 wp; uffd_register 0 8 missing|wp; "
        "uffd_move 0 20 1 none = 1; write 0 0",
        "write 20 0; uffd_register 20 8 wp; uffd_wp 20 1 wp; uffd_register 0 8 missing|wp; uffd_move 0 20 1 none = 1; "
        "write 0 0 = SIGBUS",
        "write 20 0; uffd_register 0 8 missing|wp; uffd_move 0 20 1 none = 1; not write 0 0 = SIGBUS",
    ],
)
def test_moved(script: str) -> None:
    """How far UFFDIO_MOVE comes, and where things are then."""
    Script().play(script)


def test_contents_follow() -> None:
    """A copy has what the source has, a moved page leaves zeros."""
    bench = Script().play("write 20 0")
    written = bench.token
    bench.play("uffd_register 0 8 missing; uffd_copy 0 20 1 none = 1; uffd_move 1 20 1 none = 1")
    assert [bench.content(number) for number in (0, 1, 20)] == [((0, written),), ((0, written),), ()]


# ---- other operations


def test_a_child() -> None:
    """It is registered with EVENT_FORK only, and has what its parent has; a page of zeros perhaps not."""
    bench = Script().play("write 0 0; read 1; uffd_register 0 8 missing|wp; uffd_wp 0 2 wp; fork 1")
    assert bench.registered(1) == []
    bench.play("not write 0 0 = SIGBUS; write 0 0; uffd_close = EBADF", 1)
    bench = Script().play(
        "userfaultfd event_fork; write 0 0; read 1; uffd_register 0 8 missing|wp; uffd_wp 0 2 wp; fork 1"
    )
    assert bench.registered(1) == list(range(8))
    bench.play("not write 0 0; write 0 0 = SIGBUS; not read 0 = SIGBUS; read 2 = SIGBUS; read 1 = SIGBUS", 1)
    bench.play("not read 1 = SIGBUS; read 1")
    bench.play("uffd_close", 1)


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 0 4 missing; not mlock 0 1; mlock 0 1 = ENOMEM",
        "uffd_register 0 4 missing; not mlock2 0 1 onfault = ENOMEM; mlock2 0 1 onfault",
        "write 0 0; uffd_register 0 4 missing; not mlock 0 1 = ENOMEM; mlock 0 1",
        "write 0 0; uffd_register 0 4 wp; uffd_wp 0 1 wp; not mlock 0 1; mlock 0 1 = ENOMEM",
        "write 0 0; uffd_register 0 4 wp; uffd_wp 0 1 wp; mprotect 0 8 r; not mlock 0 1 = ENOMEM; mlock 0 1",
    ],
)
def test_locks(script: str) -> None:
    """mlock faults pages in, for writing where it may."""
    Script().play(script)


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 0 4 missing; not madvise 0 2 populate_read; madvise 0 2 populate_read = EFAULT",
        "uffd_register 1 1 missing; not madvise 0 4 populate_write; madvise 0 4 populate_write = EFAULT; "
        "uffd_register 0 1 missing; not read 1",
        "write 0 0; uffd_register 0 4 missing; not madvise 0 1 populate_read = EFAULT; madvise 0 1 populate_write",
        "write 0 0; uffd_register 0 4 wp; uffd_wp 0 1 wp; not madvise 0 1 populate_write; madvise 0 1 populate_read; "
        "madvise 0 1 populate_write = EFAULT",
        "uffd_register 0 4 missing; uffd_poison 0 1 = 1; not madvise 0 1 populate_read = EFAULT; "
        "madvise 0 1 populate_read = EHWPOISON",
        "uffd_register 6 2 missing; mprotect 0 2 none; madvise 0 8 populate_read = EINVAL; "
        "not madvise 0 8 populate_read = EFAULT",
        "madvise 0 4 populate_read; uffd_register 0 8 missing; not read 3 = SIGBUS; not read 4",
        "uffd_register 0 8 wp; madvise 6 2 populate_read; not madvise 6 2 populate_read = EFAULT; "
        "madvise 6 4 populate_read = ENOMEM",
    ],
)
def test_populating(script: str) -> None:
    """Up to the first page that is missing, or protected where it is for writing."""
    Script().play(script)


@pytest.mark.parametrize(
    "script",
    [
        "uffd_register 0 8 missing; madvise 0 2 guard_install; not read 0 = SIGBUS; read 0 = SIGSEGV",
        "uffd_register 0 8 missing; madvise 0 1 guard_install; madvise 0 1 guard_remove; not read 0; read 0 = SIGBUS",
        "write 0 0; uffd_register 0 8 missing; madvise 0 1 guard_install; madvise 0 1 guard_remove; not read 0",
        "uffd_register 0 8 missing; uffd_poison 0 1 = 1; madvise 0 1 guard_install; madvise 0 1 guard_remove; "
        "uffd_unregister 0 8; not read 0 = SIGBUS",
        "userfaultfd wp_unpopulated; uffd_register 0 8 wp; madvise 0 1 guard_install; uffd_wp 0 2 wp; "
        "madvise 0 1 guard_remove; not write 0 0 = SIGBUS; write 1 0 = SIGBUS",
        "uffd_register 0 8 missing; madvise 0 3 guard_install; not uffd_zeropage 0 1 = 1; uffd_zeropage 0 1 = EEXIST; "
        "not uffd_poison 0 1 = 1; uffd_poison 0 1 = EEXIST; not uffd_copy 0 20 1 none = EEXIST; "
        "uffd_copy 0 20 1 none = 1; read 0; not read 0 = SIGSEGV",
        "uffd_register 0 8 missing; write 20 0; madvise 0 1 guard_install; not uffd_move 0 20 1 none = 1; "
        "uffd_move 0 20 1 none = EEXIST",
        "uffd_register 0 8 missing; madvise 20 1 guard_install; not uffd_move 0 20 1 holes = 1; "
        "uffd_move 0 20 1 holes = EFAULT; not uffd_copy 0 20 1 none = 1; uffd_copy 0 20 1 none = EFAULT",
        "uffd_register 0 8 missing; madvise 0 1 guard_install; not madvise 0 1 populate_read; "
        "madvise 0 1 populate_read = EFAULT; gup_slow 0 none 0 = EFAULT; mlock 0 1 = ENOMEM",
    ],
)
def test_guards(script: str) -> None:
    """Guards are neither missing nor pages; UFFDIO_COPY takes their place (not in 7.0)."""
    Script().play(script)


def test_guards_that_are_kept() -> None:
    """By 7.0."""
    bench = Script()
    bench.spec.limits = bench.spec.limits._replace(profile=PROFILES["7.0"])
    bench.play("uffd_register 0 8 missing; madvise 0 1 guard_install; not uffd_copy 0 20 1 none = 1")
    bench.play("uffd_copy 0 20 1 none = EEXIST; read 0 = SIGSEGV")


def test_a_seal_behind_what_is_registered() -> None:
    """A move of several mappings ends at the first of the two that it meets."""
    move = "mremap 0 8 8 maymove|fixed 40"
    Script().play(f"uffd_register 2 2 missing; mseal 4 2; not {move} = EPERM; {move} = EFAULT; read 40")
    Script().play(f"uffd_register 4 2 missing; mseal 0 2; not {move} = EFAULT; {move} = EPERM")
    Script().play(f"uffd_register 0 2 missing; mseal 0 2; not {move} = EPERM; {move} = EFAULT")
    Script().play(f"uffd_register 0 8 missing; mseal 0 8; not {move}; {move} = EFAULT; {move} = EPERM")
    Script().play("uffd_register 0 8 missing; mseal 0 1; not mremap 0 1 1 maymove|fixed 40 = EFAULT")


def test_a_fork_that_failed_has_shared_pages() -> None:
    """UFFDIO_MOVE may meet that afterwards."""
    bench = Script().play("write 20 0; uffd_register 0 8 missing; not uffd_move 0 20 1 none = EBUSY")
    failed = Outcome(-uapi.ENOMEM, injected=True)
    assert settle(bench.spec, Op("fork", 0, (1,), 5), failed, 1, lambda *page: True) is None
    bench.play("uffd_move 0 20 1 none = EBUSY; uffd_move 0 20 1 none = 1")


@pytest.mark.parametrize(
    "script",
    [
        "write 0 0; uffd_register 0 1 missing; madvise 0 1 free; read 0 = SIGBUS",
        "write 0 0; uffd_register 0 1 missing; madvise 0 1 free; read 0",
        "read 0; uffd_register 0 1 missing; madvise 0 1 free; read 0 = SIGBUS",
        "write 0 0; uffd_register 0 1 wp; uffd_wp 0 1 wp; madvise 0 1 free; write 0 0 = SIGBUS",
        "write 0 0; uffd_register 0 1 wp; uffd_wp 0 1 wp; madvise 0 1 free; write 0 0",
        "uffd_register 0 1 missing; uffd_poison 0 1 = 1; madvise 0 1 free; uffd_unregister 0 1; not read 0 = SIGBUS",
        "uffd_register 0 1 missing; madvise 0 1 free; not read 0",
        "write 20 0; madvise 20 1 free; uffd_register 0 1 missing; uffd_move 0 20 1 holes = 1; read 0 = SIGBUS",
        "write 20 0; madvise 20 1 free; uffd_register 0 1 missing; uffd_move 0 20 1 none = ENOENT",
        "write 20 0; madvise 20 1 free; uffd_register 0 1 missing; uffd_move 0 20 1 none = 1; read 0",
    ],
)
def test_what_may_be_thrown_away(script: str) -> None:
    """After MADV_FREE what was there may be missing."""
    Script().play(script)


def test_a_copy_of_what_may_have_been_thrown_away() -> None:
    """It holds the one or the other, for good."""
    bench = Script().play("write 20 0; madvise 20 1 free; uffd_register 0 1 missing; uffd_copy 0 20 1 none = 1")
    page = bench.spec.procs[0][0]
    assert (page.content, page.dropped) == (bench.spec.procs[0][20].content, ~0)
    assert (0, 0) in bench.spec.unsettled


def test_a_child_that_begins_with_nothing() -> None:
    """MADV_WIPEONFORK."""
    bench = Script().play("userfaultfd event_fork; read 0; uffd_register 0 1 missing; madvise 0 1 wipeonfork; fork 1")
    bench.play("not read 0; read 0 = SIGBUS", 1)


def test_a_failure_leaves_it_open() -> None:
    """A registration that failed for want of memory may have begun; whether pages moved nobody knows."""
    for done in (False, True):
        bench = Script().play("userfaultfd none; write 1 0")
        op = Op("uffd_register", 0, (0, 4, 1), 1)
        failed = Outcome(-uapi.ENOMEM, injected=True)
        shows = registered_page if done else unregistered_page
        assert settle(bench.spec, op, failed, 1, shows) is None
        assert bench.registered() == ([0, 1, 2, 3] if done else [])
    bench = Script().play("userfaultfd event_remap; write 0 0; uffd_register 0 1 wp; uffd_wp 0 1 wp")
    op = Op("mremap", 0, (0, 1, 1, 3, 40), 9)
    assert settle(bench.spec, op, Outcome(40, injected=True), 1, lambda label, number, page: True) is None
    bench.play("write 40 0 = SIGBUS; not write 40 0")


@pytest.mark.parametrize("left", [True, False])
def test_a_move_that_ended_at_what_is_registered(left: bool) -> None:
    """What stood before it has moved; with memory lacking the source may stay, empty."""
    bench = Script().play("write 0 0; uffd_register 1 2 missing")
    content = bench.content(0)
    op = Op("mremap", 0, (0, 4, 4, 3, 40), 7)
    failed = Outcome(-uapi.EFAULT, injected=True)
    shown = {0: left, 40: True, 41: False}
    assert settle(bench.spec, op, failed, 1, lambda _, n, page: shown.get(n, True) == (page is not None)) is None
    assert (0 in bench.mapped()) == left
    assert bench.content(40) == content
    assert not left or bench.content(0) == ()


def test_mlockall_beside_others() -> None:
    """It brings pages everywhere."""
    bench = Script().play("uffd_register 0 8 missing")
    leave_open(bench.spec, Op("mlockall", 0, (1,)))
    bench.play("read 1; read 2 = SIGBUS")


def registered_page(label: int, number: int, page: Page | None) -> bool:
    return page is not None and page.flags & VM_UFFD_FLAGS != 0


def unregistered_page(label: int, number: int, page: Page | None) -> bool:
    return page is not None and not page.flags & VM_UFFD_FLAGS


@pytest.mark.parametrize("ret", [40, -uapi.ENOMEM])
def test_poison_in_a_move_that_failed_somewhere(ret: int) -> None:
    """It is in one of the two places, if it is not where nobody has looked yet."""
    for after in ("read {0} = SIGBUS; not uffd_poison {0} 1 = 2", "read {0}; not read {0} = SIGBUS"):
        bench = Script().play("uffd_register 0 1 missing; uffd_poison 0 1 = 1; uffd_unregister 0 1")
        moved = Outcome(ret, injected=True)
        assert settle(bench.spec, Op("mremap", 0, (0, 1, 1, 3, 40), 9), moved, 1, lambda *page: True) is None
        bench.play(after.format(40 if ret > 0 else 0))


def test_what_ran_beside_others_is_open() -> None:
    """After a collision an access may find a page or not."""
    for result in ("0", "SIGBUS"):
        bench = Script().play("uffd_register 0 8 missing")
        leave_open(bench.spec, Op("uffd_copy", 0, (0, 20, 2, 0)))
        bench.play(f"read 1 = {result}; not read 2")
        if result != "0":
            bench.play("read 1 = SIGBUS")


def test_a_copy_that_was_read_before_others_came() -> None:
    """What UFFDIO_COPY fills in is what the source was at some moment of the collision."""
    bench = Script().play("uffd_register 0 8 missing; write 20 0")
    states = [bench.spec.copy()]
    bench.play("write 20 0")
    states.append(bench.spec)
    op = Op("uffd_copy", 0, (0, 20, 1, 0))
    contents = [after.content(after.procs[0][0]) for after in read_before(states, op)]
    assert contents == [state.content(state.procs[0][20]) for state in states]
    assert len(set(contents)) == 2
    bench.play("uffd_copy 0 20 1 none = 1")
    assert list(read_before((*states, bench.spec), op)) == []  # something is there
    assert list(read_before(states, op._replace(args=(28, 20, 1, 0)))) == []
    assert list(read_before(states, op._replace(args=(24, 20, 1, 0)))) == []  # not registered
