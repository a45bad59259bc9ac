"""Shared anonymous memory in the specification."""

from __future__ import annotations

import pytest

from emulator.uapi import (
    EACCES,
    EFAULT,
    EINVAL,
    ENOMEM,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_POPULATE_READ,
    MADV_REMOVE,
    MAP_FIXED,
    MAP_SHARED,
    SIGBUS,
)
from emulator.workload import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE, MEMFD
from tests.oracle.specification.bench import MOVE, Bench

SHARED = MAP_SHARED | MAP_FIXED
LONGTERM = FOLL_PIN | FOLL_WRITE | FOLL_LONGTERM


def test_it_is_a_file_of_its_own(bench: Bench) -> None:
    """Zeros at first, seen by a child as by its parent, as long as the mapping, whatever it grows to."""
    bench.map(10, 2, flags=SHARED)
    bench.map(12, 2, flags=SHARED)
    token = bench.do("write", 10, 0)
    assert (bench.content(10), bench.content(11), bench.content(12)) == (((0, token),), (), ())
    bench.do("fork", 1)
    other = bench.do("write", 11, 1, proc=1)
    assert bench.content(11) == ((1, other),)
    bench.do("madvise", 10, 2, MADV_DONTNEED)
    assert bench.content(10) == ((0, token),)
    bench.do("mremap", 10, 0, 4, MOVE, 30, ret=30)
    assert bench.content(30) == ((0, token),)
    bench.do("read", 32, ret=SIGBUS)
    assert bench.refuses("read", 32).rule == "result"
    assert bench.refuses("mremap", 10, 4, 6, MOVE, 40, ret=40).rule == "result"  # two files


def test_it_may_be_pinned_for_long(bench: Bench) -> None:
    """No file system minds; the pin shares the page with all who map it."""
    bench.map(10, 1, flags=SHARED)
    bench.do("gup_slow", 10, LONGTERM, 0)
    token = bench.do("pin_write", 0, 2)
    assert bench.content(10) == ((2, token),)
    assert bench.refuses("gup_slow", 10, LONGTERM, 1, ret=-EFAULT).rule == "result"


@pytest.mark.parametrize("file", [0, 1, MEMFD + 1])
def test_a_hole_is_zeros_for_all_who_see_the_file(bench: Bench, file: int) -> None:
    """Private copies are no part of it, and a pin keeps the page that it has."""
    bench.map(10, 2, file=file, flags=SHARED)
    bench.do("write", 10, 0)
    bench.do("fork", 1)
    bench.do("gup_fast", 10, FOLL_PIN | FOLL_WRITE, 0)
    if file:
        bench.map(20, 2, file=file)
        bench.do("write", 21, 1)
    bench.do("madvise", 10, 2, MADV_REMOVE, proc=1)
    assert (bench.content(10), bench.content(11, 1)) == ((), ())
    if file:
        assert bench.content(20) == ()
        assert bench.content(21) != ()
    bench.do("pin_write", 0, 2)
    assert bench.content(10) == ()
    assert bench.spec.wild == [0]


def test_who_must_not_punch_holes(bench: Bench) -> None:
    bench.map(10, 1, file=MEMFD + 1)
    bench.do("madvise", 10, 1, MADV_REMOVE, ret=-EACCES)
    bench.map(10, 1)
    bench.do("madvise", 10, 1, MADV_REMOVE, ret=-EINVAL)
    bench.map(11, 1, file=MEMFD + 1, flags=SHARED)
    bench.do("madvise", 11, 2, MADV_REMOVE, ret=-ENOMEM)
    bench.do("mlock", 11, 1)
    bench.do("madvise", 11, 1, MADV_REMOVE, ret=-EINVAL)
    assert bench.refuses("madvise", 11, 1, MADV_REMOVE).rule == "result"
    bench.do("madvise", 11, 1, MADV_DONTNEED_LOCKED)


def test_behind_the_end_after_a_collapse(bench: Bench) -> None:
    """SIGBUS without fail before; after it there may be memory, which may be lost again."""
    bench.map(0, 32, file=MEMFD + 1, flags=SHARED)
    assert bench.refuses("read", 20).rule == "result"
    bench.do("read", 20, ret=SIGBUS)
    bench.do("madvise", 0, 32, MADV_COLLAPSE, ret=-EINVAL)
    bench.do("read", 20)
    bench.do("read", 20, ret=SIGBUS)
    token = bench.do("write", 20, 1)
    assert bench.content(20) == ((1, token),)
    bench.do("gup_slow", 21, FOLL_PIN, 0)
    bench.do("gup_slow", 21, FOLL_PIN, 1, ret=-EFAULT)
    for ret in (0, -EFAULT):
        bench.do("madvise", 18, 4, MADV_POPULATE_READ, ret=ret)
    for ret in (0, -ENOMEM):
        bench.do("mlock", 18, 4, ret=ret)
    page = bench.spec.procs[0][20]
    bench.spec.settle_overhang(page, 5)
    assert bench.content(20) == ((1, token),)
    bench.spec.settle_overhang(page, 0)
    assert bench.content(20) == ()
    assert bench.refuses("read", 3, ret=SIGBUS).rule == "result"


def test_a_collapse_of_other_memory_is_no_reason(bench: Bench) -> None:
    """Only a file of memory gets huge pages, and only one that was collapsed."""
    bench.map(0, 32, file=1, flags=SHARED)
    bench.map(40, 8, flags=SHARED)
    bench.do("madvise", 0, 48, MADV_COLLAPSE, ret=-EINVAL)
    assert bench.refuses("read", 20).rule == "result"
    bench.map(60, 32, file=MEMFD + 1, flags=SHARED)
    assert bench.refuses("read", 80).rule == "result"
