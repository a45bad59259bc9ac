"""The specification as a whole."""

from __future__ import annotations

import pytest

from emulator.errors import InternalError
from emulator.workload import (
    FOLL_PIN,
    FOLL_WRITE,
)
from tests.oracle.specification.bench import Bench


def test_what_it_does_not_know_is_our_mistake(bench: Bench) -> None:
    """An op or advice that was added to the machine and not here is an internal error, not a finding."""
    with pytest.raises(InternalError):
        bench.do("madvise", 10, 1, 7)
    with pytest.raises(InternalError):
        bench.do("unheard-of")


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
