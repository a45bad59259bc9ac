"""fork in the specification."""

from __future__ import annotations

from emulator.uapi import (
    EBUSY,
    EINVAL,
    ENOMEM,
    ESRCH,
)
from tests.oracle.specification.bench import Bench


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
