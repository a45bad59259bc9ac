"""What many runs leave behind is told apart from what the rest of the system does meanwhile."""

from __future__ import annotations

import os
from typing import Any

import pytest

from emulator.errors import UsageError
from emulator.workload import Op, Step, Workload
from oracle.live import residue as module
from oracle.live.residue import COMMITTED, Residue, committed_kb, residue, sums
from oracle.live.slabs import CACHES, SLAB, SlabCount

LEAK = Workload("x86-64", (Step((Op("mmap", 0, (0, 1, 3, 0x12, 0, 0)),)),))


class FakeKernel:
    """Each run of a workload with steps leaks; others take ``noise``, by turns, once a row; ``store`` is taken once."""

    def __init__(self, leak: int, noise: tuple[int, ...] = (0,), store: int = 0) -> None:
        self.there = 1000
        self.leak = leak
        self.noise = noise
        self.store = store
        self.looks = 0

    def run(self, workload: Workload) -> None:
        if workload.steps:
            self.there += self.leak + self.store
            self.store = 0

    def look(self) -> dict[str, int]:
        self.looks += 1
        return {COMMITTED: self.there + self.noise[self.looks % len(self.noise)], "anon_vma": self.there // 4}


@pytest.mark.parametrize(
    ("leak", "noise", "store", "expected"),
    [
        (0, (0,), 0, Residue(0, 0)),
        (400, (0,), 0, Residue(400, 0)),
        (
            0,
            (0, 0, 5000),
            0,
            Residue(0, 1000),
        ),  # somebody comes and goes: it wanders, and the median is right
        (400, (0, 0, 5000), 0, Residue(400, 1000)),
        (0, (0,), 5000, Residue(0, 0)),  # what a CPU keeps in store is no leak
        (4, (0,), 5000, Residue(4, 0)),
    ],
)
def test_residue(leak: int, noise: tuple[int, ...], store: int, expected: Residue) -> None:
    """Rows of ten runs, and of as many of nothing between them."""
    kernel: Any = FakeKernel(leak, noise, store)
    got = residue(kernel, LEAK, 50, kernel.look)
    assert got[COMMITTED].left == pytest.approx(expected.left, abs=expected.wander)
    assert (got[COMMITTED].wander > 0) is (expected.wander > 0)
    assert got["anon_vma"] == Residue(leak / 4, 0)


@pytest.mark.skipif(os.geteuid() != 0 or not SLAB.exists(), reason="needs root")
def test_caches() -> None:
    """The running kernel tells of VMAs, anon_vmas and AVCs."""
    assert set(sums()) == {COMMITTED, *CACHES}


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed_AS everybody sees."""

    def hidden() -> dict[str, SlabCount]:
        raise UsageError("run as root")

    monkeypatch.setattr(module, "slab_counts", hidden)
    assert set(sums()) == {COMMITTED}


def test_committed() -> None:
    """The running system has promised memory to somebody, us at least."""
    assert committed_kb() > 1000
