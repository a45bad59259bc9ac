"""Where a call may have let VMAs merge."""

from __future__ import annotations

import pytest

from emulator.designs.mainline import Mainline
from emulator.geometry import PAGE_SIZE
from emulator.uapi import ENOMEM
from fuzz.compare.calls import Range, touched
from tests.emulator.kernel_world import World

P = PAGE_SIZE
BRK = 100 * P

CALLS: list[tuple[str, tuple[int, ...], int, Range | None]] = [
    ("mmap", (0, 2 * P - 1, 3, 0x22), 40 * P, (40 * P, 42 * P)),
    ("mmap", (0, 2 * P, 3, 0x22), -ENOMEM, None),
    ("munmap", (40 * P, P), 0, None),
    ("mremap", (40 * P, 2 * P, 3 * P, 1, 0), 60 * P, (60 * P, 63 * P)),
    ("mremap", (40 * P, 2 * P, 3 * P, 1, 0), 40 * P, (43 * P, 43 * P)),
    ("mremap", (40 * P, 2 * P, P, 1, 0), 40 * P, None),
    ("mprotect", (40 * P, P + 1, 1), 0, (40 * P, 42 * P)),
    ("madvise", (40 * P, P, 14), 0, (40 * P, 41 * P)),
    ("madvise", (40 * P, P, 4), 0, None),
    ("brk", (BRK + P + 1,), BRK + P + 1, (BRK, BRK + 2 * P)),
    ("brk", (BRK - P,), BRK - P, None),
    ("mlockall", (1,), 0, (0, 1 << 47)),
    ("write", (40 * P, 0), 0, None),
]


@pytest.mark.parametrize(("name", "args", "result", "expected"), CALLS)
def test_touched(name: str, args: tuple[int, ...], result: int, expected: Range | None) -> None:
    """Calls that change no VMA, fail or only take away touch nothing; a growth in place touches at its new end."""
    mm = World("x86-64", Mainline).mm()
    found = touched(name, args, result, mm, BRK)
    if name == "mlockall":
        assert found == (0, mm.machine.geometry.task_size)
    else:
        assert found == expected
