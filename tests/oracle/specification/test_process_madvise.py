"""process_madvise in the specification."""

from __future__ import annotations

from emulator.uapi import EINVAL, ENOMEM, ESRCH, MADV_DONTNEED, MADV_PAGEOUT
from emulator.workload import Op, Outcome
from oracle.specification.failure import alternatives, settle
from tests.oracle.specification.bench import Bench


def written() -> Bench:
    bench = Bench()
    bench.map(10, 2)
    bench.map(20, 2)
    for page in (10, 11, 20, 21):
        bench.do("write", page, 0)
    return bench


def test_the_result_says_which_ranges_were_done() -> None:
    bench = written()
    bench.do("process_madvise", 0, 10, 2, 30, 1, MADV_DONTNEED, ret=2)
    assert (bench.content(10), bench.content(11)) == ((), ())
    assert bench.content(20) != ()
    assert bench.refuses("process_madvise", 0, 10, 2, 20, 1, MADV_DONTNEED, ret=2).rule == "result"
    assert bench.refuses("process_madvise", 0, 10, 2, 20, 1, MADV_DONTNEED, ret=1).rule == "result"
    assert bench.refuses("process_madvise", 0, 10, 2, 30, 1, MADV_DONTNEED, ret=3).rule == "result"
    bench.do("process_madvise", 0, 30, 1, 20, 1, MADV_DONTNEED, ret=-ENOMEM)
    bench.do("process_madvise", 0, 30, 0, 20, 0, MADV_DONTNEED)
    assert bench.content(20) != ()


def test_others_are_advised_with_hints_only() -> None:
    bench = written()
    bench.do("fork", 1)
    bench.do("process_madvise", 0, 10, 2, 20, 2, MADV_DONTNEED, ret=-EINVAL, proc=1)
    bench.do("process_madvise", 0, 10, 2, 20, 2, MADV_PAGEOUT, ret=4, proc=1)
    bench.do("process_madvise", 2, 10, 2, 20, 2, MADV_PAGEOUT, ret=-ESRCH, proc=1)
    assert bench.refuses("process_madvise", 0, 10, 2, 20, 2, MADV_DONTNEED, ret=4, proc=1).rule == "result"


def test_after_a_failure_the_first_ranges_are_done() -> None:
    """What the call that failed has left is left to madvise."""
    bench = written()
    op = Op("process_madvise", 0, (0, 10, 2, 20, 2, MADV_DONTNEED))
    failed = Outcome(2, None, True)
    assert settle(bench.spec.copy(), op, failed, 1, lambda label, number, page: True) is None
    states = list(alternatives(bench.spec, op, failed, 1))
    assert states
    assert all(not state.content(state.procs[0][10]) for state in states)
