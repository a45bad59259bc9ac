"""The running kernel's same-page scanner, made to look at so many pages when it is asked, and at none else.

The daemon takes ``pages_to_scan`` pages and then sleeps; whoever writes another ``sleep_millisecs`` wakes it. It sleeps
for weeks here, ``run`` is 0 between two scans, and a write of that waits for the batch to end (ksm_thread_mutex): so
each scan is one batch. A batch ends early at the end of the scan, which ``full_scans`` counts.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

FOLDER: Final = Path("/sys/kernel/mm/ksm")
WHOLE_SCAN: Final = (1 << 32) - 1  # pages, milliseconds: the most that an unsigned int holds
QUIET: Final = {
    "run": "0",
    "pages_to_scan": str(WHOLE_SCAN),
    "sleep_millisecs": str(WHOLE_SCAN),
    # as kernels come, and as the machine does it
    "use_zero_pages": "0",
    "smart_scan": "1",
    "advisor_mode": "none",
}
_PATIENCE: Final = 5.0  # seconds for one batch; the memory of a workload takes milliseconds
_TRY: Final = 0.05  # seconds; a scan that takes longer is waited for by the write of ``run``
_NAP: Final = 0.0002  # seconds


def refused() -> str:
    """Why the scanner cannot be told when to scan; empty if it can."""
    if not FOLDER.exists():
        return "the running kernel merges no pages (CONFIG_KSM)"
    if not (FOLDER / "smart_scan").exists():
        return "the running kernel's scanner looks at every page each time (before Linux 6.7)"
    return "" if os.access(FOLDER / "run", os.W_OK) else "only root may tell the scanner to scan"


def scan(pages: int) -> None:
    """Let the daemon look at ``pages`` pages, 0: go on to the end of its scan. Raises ``OSError`` if it does not.

    Some process must have offered memory, else there is no scan to end. A daemon that goes to sleep just when ``run``
    is written looks at that twice, and may see 0 first, then 1: it has not scanned then, and sleeps. So it is asked
    again; nobody can scan between two tries, as ``run`` is 0.
    """
    whole, looked_at = _read("full_scans"), _read("pages_scanned")

    def done() -> bool:
        return _read("full_scans") != whole or pages <= _read("pages_scanned") - looked_at > 0

    _write("pages_to_scan", pages or WHOLE_SCAN)
    end = time.monotonic() + _PATIENCE
    while not done():
        if time.monotonic() > end:
            raise TimeoutError("the same-page scanner did not scan")
        _write("sleep_millisecs", WHOLE_SCAN - (_read("sleep_millisecs") == WHOLE_SCAN))
        _write("run", 1)
        again = time.monotonic() + _TRY
        while not done() and time.monotonic() < again:
            time.sleep(_NAP)
        _write("run", 0)


def _read(name: str) -> int:
    return int((FOLDER / name).read_text())


def _write(name: str, value: int) -> None:
    (FOLDER / name).write_text(str(value))
