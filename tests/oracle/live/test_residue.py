"""What many runs leave behind is told apart from what the rest of the system does meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.workload import Op, Step, Workload
from oracle.live import residue as module
from oracle.live.residue import Residue, committed_kb, residue

LEAK = Workload("x86-64", (Step((Op("mmap", 0, (0, 1, 3, 0x12, 0, 0)),)),))


class FakeKernel:
    """Each run of a workload with steps leaks; others take ``noise`` kB, by turns, once a row."""

    def __init__(self, leak: int, noise: tuple[int, ...] = (0,)) -> None:
        self.committed = 1000
        self.leak = leak
        self.noise = noise
        self.looks = 0

    def run(self, workload: Workload) -> None:
        self.committed += self.leak * bool(workload.steps)

    def look(self) -> int:
        self.looks += 1
        return self.committed + self.noise[self.looks % len(self.noise)]


@pytest.mark.parametrize(
    ("leak", "noise", "expected"),
    [
        (0, (0,), Residue(0, 0)),
        (400, (0,), Residue(400, 0)),
        (0, (0, 0, 5000), Residue(0, 1000)),  # somebody comes and goes: it wanders, and the median is right
        (400, (0, 0, 5000), Residue(400, 1000)),
    ],
)
def test_residue(
    leak: int, noise: tuple[int, ...], expected: Residue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of ten runs, and of as many of nothing between them."""
    kernel: Any = FakeKernel(leak, noise)
    monkeypatch.setattr(module, "committed_kb", kernel.look)
    got = residue(kernel, LEAK, 50)
    assert got.committed == pytest.approx(expected.committed, abs=expected.wander)
    assert (got.wander > 0) is (expected.wander > 0)


def test_committed() -> None:
    """The running system has promised memory to somebody, us at least."""
    assert committed_kb() > 1000
