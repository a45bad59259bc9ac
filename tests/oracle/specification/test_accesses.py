"""Loads, stores and fetches in the specification."""

from __future__ import annotations

import pytest

from emulator.uapi import (
    MADV_DONTNEED,
    MAP_FIXED,
    MAP_SHARED,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    SIGBUS,
    SIGSEGV,
)
from emulator.workload import (
    FILE_PAGES,
    Op,
    Outcome,
    file_token,
    pattern_token,
)
from tests.oracle.specification.bench import Bench


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
