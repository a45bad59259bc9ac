"""What a workload leaves behind in the running kernel when its processes have gone: nothing, or it leaks.

Only the sum over the whole system is to be had, and others use the system too. So a workload is run many times in a
row, and between such rows as many runs of nothing show how much the sum wanders by itself.
"""

from __future__ import annotations

from statistics import median
from typing import Final, NamedTuple

from emulator.workload import Workload
from oracle.live.system import LiveSystem

_ROUNDS: Final = 5  # pairs of rows: the median of five is right with two of them disturbed


class Residue(NamedTuple):
    """kB of Committed_AS that each run of the workload leaves behind; ``wander``: how far that may be off, kB a run."""

    committed: float
    wander: float


def residue(system: LiveSystem, workload: Workload, runs: int) -> Residue:
    """Run the workload ``runs`` times in all."""
    nothing = Workload(workload.geometry, ())
    row = max(1, runs // _ROUNDS)
    grown: list[float] = []
    wandered: list[float] = []
    for _ in range(_ROUNDS):
        for kind, growths in ((nothing, wandered), (workload, grown)):
            before = committed_kb()
            for _ in range(row):
                system.run(kind)
            growths.append((committed_kb() - before) / row)
    return Residue(median(grown) - median(wandered), max(wandered) - min(wandered))


def committed_kb() -> int:
    """Committed_AS of /proc/meminfo, kB: all memory that is promised to anybody."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Committed_AS:"))
