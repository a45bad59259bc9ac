"""``vm.overcommit_memory`` of the running kernel: how much may be promised to all processes together, see ``alone``.

Where a workload changes it the limit is out of everybody's reach: what can be compared is what the mode does with one
call, as what is in use changes all the time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FOLDER: Final = Path("/proc/sys/vm")
MODE: Final = FOLDER / "overcommit_memory"
KBYTES: Final = FOLDER / "overcommit_kbytes"
RATIO: Final = FOLDER / "overcommit_ratio"  # percent of memory

OUT_OF_REACH: Final = 1 << 40  # kB


def refused() -> str:
    """Why the mode cannot be set; empty if it can."""
    return "" if os.access(MODE, os.W_OK) else "only root may set how the system overcommits"


def changed() -> tuple[Path, Path]:
    """The settings that ``store`` and ``limit`` change, of which the kernel turns one into the other.

    Who writes kilobytes makes the ratio 0, and the other way round, so the one that counts is to be put back alone.
    """
    return MODE, KBYTES if int(KBYTES.read_text()) else RATIO


def mode() -> int:
    """OVERCOMMIT_*, as it is set."""
    return int(MODE.read_text())


def store(policy: int) -> None:
    MODE.write_text(str(policy))


def limit(kbytes: int) -> None:
    """What may be promised beside what there is of swap, where the mode heeds a limit."""
    KBYTES.write_text(str(kbytes))
