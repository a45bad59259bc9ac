"""What a workload leaves behind in the running kernel when its processes have gone: nothing, or it leaks.

Only sums over the whole system are to be had, and others use the system too. So a workload is run many times in a
row, and between such rows as many runs of nothing show how much the sums wander by themselves. What grows once and
not again, as the objects that each CPU keeps in store, is not seen in the median of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import Final, NamedTuple

from emulator.errors import UsageError
from emulator.workload import Workload
from oracle.live.slabs import slab_counts
from oracle.live.system import LiveSystem

_ROUNDS: Final = 5  # pairs of rows: the median of five is right with two of them disturbed
COMMITTED: Final = "Committed_AS"

Look = Callable[[], dict[str, int]]


class Residue(NamedTuple):
    """What each run of the workload leaves behind, and how far that may be off: ``wander``, likewise for each run."""

    left: float
    wander: float


def residue(
    system: LiveSystem, workload: Workload, runs: int, look: Look | None = None
) -> dict[str, Residue]:
    """Run the workload ``runs`` times in all. By name: Committed_AS in kB, and caches of the allocator in objects."""
    look = look or sums
    nothing = Workload(workload.geometry, ())
    row = max(1, runs // _ROUNDS)
    grown: list[dict[str, float]] = []
    wandered: list[dict[str, float]] = []
    for _ in range(_ROUNDS):
        for kind, growths in ((nothing, wandered), (workload, grown)):
            before = look()
            for _ in range(row):
                system.run(kind)
            growths.append({name: (now - before[name]) / row for name, now in look().items()})
    return {name: _compare([g[name] for g in grown], [w[name] for w in wandered]) for name in grown[0]}


def _compare(grown: list[float], wandered: list[float]) -> Residue:
    return Residue(median(grown) - median(wandered), max(wandered) - min(wandered))


def sums() -> dict[str, int]:
    """Committed_AS, and where the kernel tells (root), how many VMAs, anon_vmas and AVCs there are."""
    found = {COMMITTED: committed_kb()}
    with suppress(UsageError):
        found.update((name, count.objects) for name, count in slab_counts().items())
    return found


def committed_kb() -> int:
    """Committed_AS of /proc/meminfo, kB: all memory that is promised to anybody."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Committed_AS:"))
