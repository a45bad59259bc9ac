"""Of which sizes the running kernel gives large folios: a setting of the whole system, so whoever sets it is alone.

Workloads that set it run with a lock of their own held; those that do not, side by side with the same lock shared.
What was set before is put back at the end (after a kill by ``settings``, which has it written down).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from emulator.workload import Workload
from oracle.live.settings import SIZE_FILES, chosen

_LOCK: Final = Path("/run/vmafuzz-thp-sizes")


def refused() -> str:
    """Why the sizes cannot be set; empty if they can."""
    for file in SIZE_FILES.values():
        if not file.exists():
            return "the running kernel has no such setting (Linux 6.8)"
        if not os.access(file, os.W_OK):
            return "only root may set them"
    return ""


def store(orders: int) -> None:
    """``madvise`` for the sizes of these orders (bit n: 2**n pages), ``never`` for the others."""
    for order, file in SIZE_FILES.items():
        handle = os.open(file, os.O_WRONLY)
        try:
            os.write(handle, b"madvise" if orders >> order & 1 else b"never")
        finally:
            os.close(handle)


@contextlib.contextmanager
def undisturbed(workload: Workload) -> Iterator[None]:
    """Nobody changes the sizes inside but the workload; what it has set is put back."""
    changes = any(op.kind == "thp_sizes" for step in workload.steps for op in step.ops)
    try:
        handle = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # no root: nobody of us can change them
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if changes else fcntl.LOCK_SH)
        before = {file: chosen(file) for file in SIZE_FILES.values()} if changes else {}
        try:
            yield
        finally:
            for file, word in before.items():
                file.write_text(word)
    finally:
        os.close(handle)
