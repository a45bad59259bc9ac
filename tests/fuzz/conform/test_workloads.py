"""What a running kernel is asked to do: the same for the same seed, nothing that only an emulator can do."""

from __future__ import annotations

from fuzz.conform.workloads import GEOMETRY, ROUND_STEPS, round_of
from fuzz.workload.domains import all_ops, count_ops


def test_the_same_seed_gives_the_same_round() -> None:
    """A round is named by its seed."""
    assert list(round_of(7, 200)) == list(round_of(7, 200))
    assert list(round_of(7, 200)) != list(round_of(8, 200))


def test_enough_steps() -> None:
    """As many as were asked for, and not a whole workload more."""
    for seed in range(5):
        steps = [count_ops(workload) for workload in round_of(seed)]
        assert sum(steps) >= ROUND_STEPS > sum(steps[:-1])


def test_nothing_beside_and_nothing_fails() -> None:
    """A schedule or an allocation failure cannot be had from a running kernel."""
    for workload in round_of(3):
        assert workload.geometry == GEOMETRY
        assert all(len(step.ops) == 1 for step in workload.steps)
        assert all(op.fail_nth == 0 for op in all_ops(workload))


def test_operations_meet() -> None:
    """Tables are 512 entries wide; most operations shall meet what is there all the same."""
    met = asked = 0
    for workload in round_of(11):
        mapped: set[int] = set()
        for op in all_ops(workload):
            if op.proc == 0 and op.kind in ("write", "read", "mprotect", "mremap", "munmap"):
                asked += 1
                met += op.args[0] in mapped
            if op.kind == "mmap" and op.proc == 0:
                mapped.update(range(op.args[0], op.args[0] + op.args[1]))
            if op.kind == "mremap" and op.proc == 0:
                mapped.update(range(op.args[4], op.args[4] + op.args[2]))
    assert met / asked > 0.7
