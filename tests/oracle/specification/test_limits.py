"""Limits in the specification: a kernel that forgets one is noticed, and one that obeys is not."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.uapi import (
    EAGAIN,
    ENOMEM,
    EPERM,
    MADV_RANDOM,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_SHARED,
    PROT_READ,
    SIGSEGV,
)
from emulator.workload import RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_STACK, Op, Outcome
from oracle.specification.failure import left_in_part, settle
from tests.oracle.specification.bench import FIXED, MOVE, RW, Bench

FIXED_SHARED = FIXED & ~2 | MAP_SHARED


@pytest.fixture
def bench() -> Bench:
    """Pages 10 to 13 can be written, 20 to 23 read."""
    made = Bench()
    made.map(10, 4)
    made.map(20, 4, PROT_READ)
    return made


@pytest.mark.parametrize(
    ("resource", "limit", "op", "error"),
    [
        (RLIMIT_AS, 8, ("mmap", 30, 1, PROT_READ, FIXED, 0, 0), -ENOMEM),
        (RLIMIT_AS, 7, ("mmap", 10, 4, PROT_READ, FIXED, 0, 0), -ENOMEM),
        (RLIMIT_AS, 9, ("mremap", 20, 4, 6, 0, 0), -ENOMEM),
        (RLIMIT_DATA, 4, ("mmap", 30, 1, RW, FIXED, 0, 0), -ENOMEM),
        (RLIMIT_DATA, 4, ("mremap", 10, 4, 5, 0, 0), -ENOMEM),
        (RLIMIT_MEMLOCK, 0, ("mlock", 10, 1), -EPERM),
        (RLIMIT_MEMLOCK, 2, ("mlock", 10, 3), -ENOMEM),
        (RLIMIT_MEMLOCK, 2, ("mmap", 30, 3, RW, FIXED | MAP_LOCKED, 0, 0), -EAGAIN),
    ],
)
def test_a_limit_that_is_forgotten(
    bench: Bench, resource: int, limit: int, op: tuple[object, ...], error: int
) -> None:
    """The error must come; with one page more there is none."""
    kind, *args = op
    bench.do("setrlimit", resource, limit)
    success = args[0] if kind in ("mmap", "mremap") else 0
    assert bench.refuses(kind, *args, ret=success).rule == "result"  # type: ignore[arg-type]
    if kind != "mremap":
        bench.do(kind, *args, ret=error)  # type: ignore[arg-type]
    bench.do("setrlimit", resource, limit + (3 if resource == RLIMIT_MEMLOCK else 2))
    bench.do(kind, *args, ret=success)  # type: ignore[arg-type]


def test_what_counts(bench: Bench) -> None:
    """Neither what cannot be written, nor what is shared, nor a stack is data; and what is replaced makes room."""
    bench.do("setrlimit", RLIMIT_DATA, 4)
    bench.do("mmap", 30, 4, PROT_READ, FIXED, 0, 0, ret=30)
    bench.do("mmap", 40, 4, RW, FIXED_SHARED, 1, 0, ret=40)
    bench.do("mmap", 60, 4, RW, FIXED | MAP_GROWSDOWN, 0, 0, ret=60)
    bench.do("mmap", 10, 4, RW, FIXED, 0, 0, ret=10)


def test_stacks(bench: Bench) -> None:
    """Each VMA for itself."""
    bench.spec.limits = bench.spec.limits._replace(stack_guard_gap=2)
    bench.do("mmap", 90, 2, RW, FIXED | MAP_GROWSDOWN, 0, 0, ret=90)
    bench.do("setrlimit", RLIMIT_STACK, 4)
    bench.do("write", 87, 0, ret=SIGSEGV)
    bench.do("write", 88, 0)
    bench.do("setrlimit", RLIMIT_AS, 12)
    bench.do("setrlimit", RLIMIT_STACK, 40)
    assert bench.refuses("write", 87, 0).rule == "result"


def test_the_heap(bench: Bench) -> None:
    """Neither to a place beyond the limit of data, though that were less, nor beyond that of address space."""
    heap = bench.spec.limits.heap
    bench.do("brk", heap + 3, ret=heap + 3)
    bench.do("setrlimit", RLIMIT_DATA, 7)
    assert bench.refuses("brk", heap + 4, ret=heap + 4).rule == "result"
    bench.do("setrlimit", RLIMIT_DATA, 1)
    assert bench.refuses("brk", heap + 2, ret=heap + 2).rule == "result"
    bench.do("setrlimit", RLIMIT_DATA, 60)
    bench.do("setrlimit", RLIMIT_AS, 11)
    bench.do("brk", heap + 4, ret=heap + 3)


def test_children(bench: Bench) -> None:
    """They are limited as their parent was."""
    bench.do("setrlimit", RLIMIT_AS, 8)
    bench.do("fork", 1)
    bench.do("setrlimit", RLIMIT_AS, 80)
    bench.do("mmap", 30, 1, RW, FIXED, 0, 0, ret=30)
    bench.do("mmap", 30, 1, RW, FIXED, 0, 0, ret=-ENOMEM, proc=1)


def test_stopped_half_way(bench: Bench) -> None:
    """Which mappings mprotect had changed when the limit stopped it is looked up; without a limit nothing stops it."""
    op = Op("mprotect", 0, (10, 14, RW))
    assert not left_in_part(bench.spec, op, Outcome(-ENOMEM))
    bench.do("setrlimit", RLIMIT_DATA, 4)
    assert left_in_part(bench.spec, op, Outcome(-ENOMEM))


@pytest.mark.parametrize(
    ("op", "ret"),
    [
        (("mmap", 30, 1, RW, FIXED, 0, 0), -ENOMEM),
        (("munmap", 11, 1), -ENOMEM),
        (("mremap", 10, 4, 4, MOVE, 50), -ENOMEM),
        (("mremap", 70, 1, 3, MOVE, 50), -ENOMEM),  # before it is seen that nothing is mapped there
        (("mprotect", 11, 1, PROT_READ), -ENOMEM),
        (("madvise", 11, 1, MADV_RANDOM), -EAGAIN),
        (("mlock", 11, 1), -ENOMEM),
        (("mbind", 11, 1, 1), -ENOMEM),
        (("uffd_register", 11, 1, 1), -ENOMEM),
        (("brk", 101), 100),
    ],
)
def test_the_number_of_mappings(bench: Bench, op: tuple[Any, ...], ret: int) -> None:
    """Where it is limited a call may be refused, and each page is then as it was or as the call makes it."""
    kind, *args = op
    bench.spec.limits = bench.spec.limits._replace(heap=100)
    call = Op(kind, 0, tuple(args))
    assert not left_in_part(bench.spec, call, Outcome(ret))
    bench.do("max_map_count", 3)
    bench.do("fork", 1)
    for proc in (0, 1):
        assert left_in_part(bench.spec, call._replace(proc=proc), Outcome(ret))
    before = dict(bench.spec.procs[0])
    spec = bench.spec.copy()
    assert settle(spec, call, Outcome(ret), 1, lambda proc, number, page: before.get(number) == page) is None
    assert spec.procs[0] == before


def test_what_does_not_ask_for_mappings(bench: Bench) -> None:
    """A fork or an access is not refused for their number."""
    bench.do("max_map_count", 3)
    assert bench.refuses("fork", 1, ret=-ENOMEM).rule == "result"
    assert bench.refuses("write", 10, 0, ret=SIGSEGV).rule == "result"
    assert bench.refuses("max_map_count", 3, ret=-ENOMEM).rule == "result"
