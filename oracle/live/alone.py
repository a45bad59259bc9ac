"""Workloads that the rest of the machine feels run alone, one at a time; the others side by side.

Which sizes of folios the kernel gives and how it overcommits are settings of the whole system, and the same-page
scanner goes through the memory of all processes. Who does any of it holds a lock of his own, everybody else the same
lock shared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from emulator.workload import Workload
from oracle.live import ksm, overcommit
from oracle.live.settings import SIZE_FILES, chosen

LOCK: Final = Path("/run/vmafuzz-alone")
"""Holds what is to be put back, as JSON from file to word, while somebody acts on the whole system."""

_ALONE: Final = frozenset(("thp_sizes", "ksm_scan", "overcommit_memory"))


@contextlib.contextmanager
def undisturbed(workload: Workload, lock: Path = LOCK) -> Iterator[None]:
    """Nobody acts on the whole system inside but the workload. What it sets is put back, after a kill by the next."""
    kinds = {op.kind for step in workload.steps for op in step.ops}
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # no root: nobody of us can
        yield
        return
    try:
        alone = bool(kinds & _ALONE)
        fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if os.fstat(handle).st_size:  # somebody was killed
            fcntl.flock(handle, fcntl.LOCK_EX)
            _put_back(handle)
            fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if alone:
            _write_down(handle, {str(file): chosen(file) for file in _changed(kinds)})
        try:
            if "ksm_scan" in kinds:
                ksm.scan(0)  # what an earlier workload has left half scanned
            if "overcommit_memory" in kinds:
                overcommit.limit(overcommit.OUT_OF_REACH)
            yield
        finally:
            if alone:
                _put_back(handle)
    finally:
        os.close(handle)


def _changed(kinds: set[str]) -> Iterator[Path]:
    if "thp_sizes" in kinds:
        yield from SIZE_FILES.values()
    if "ksm_scan" in kinds:
        yield ksm.FOLDER / "run"
    if "overcommit_memory" in kinds:
        yield from overcommit.changed()


def _write_down(handle: int, before: dict[str, str]) -> None:
    os.pwrite(handle, json.dumps(before).encode(), 0)


def _put_back(handle: int) -> None:
    """Give each file its word again. What is written down was cut short if nothing had been changed yet."""
    written = os.pread(handle, 1 << 16, 0)
    with contextlib.suppress(ValueError):
        for file, word in json.loads(written or b"{}").items():
            Path(file).write_text(word)
    os.ftruncate(handle, 0)
