"""One process for each name: results, errors and deaths all come back."""

from __future__ import annotations

import os
import signal
import time

import pytest

from emulator.errors import InternalError, UsageError
from fuzz.compare.processes import each


def test_results() -> None:
    """Each in a process that is not ours, whatever their number; they come as they are done."""
    names = [str(number) for number in range(7)]
    results = dict(each(names, lambda name: (int(name) * 2, os.getpid())))
    assert {name: double for name, (double, _) in results.items()} == {name: int(name) * 2 for name in names}
    assert len({pid for _, pid in results.values()} | {os.getpid()}) == 8


def test_error_of_a_child() -> None:
    """It is raised here, and says where it came from."""

    def work(name: str) -> int:
        if name == "b":
            raise UsageError("not like this")
        return 1

    with pytest.raises(UsageError, match="not like this") as raised:
        list(each(["a", "b"], work))
    assert "in work" in raised.value.__notes__[0]


def test_death_of_a_child() -> None:
    """Out of memory, say: an error of ours, no waiting, and the others end with it."""

    def work(name: str) -> int:
        if name == "a":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
        return 1

    began = time.monotonic()
    with pytest.raises(InternalError, match="process of a ended with status -9"):
        list(each(["a", "b", "c"], work))
    assert time.monotonic() - began < 30
