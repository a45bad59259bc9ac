"""Keeps the kernel from acting on its own while it is compared, and puts everything back.

khugepaged joins pages into huge ones whenever it comes by; a comparison needs a kernel that does what it is asked and
nothing else. What is changed is written down first, in a file that outlives a kill: the next user puts it back. Several
users share one change; the last one to go puts it back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from emulator.workload import THP_ORDERS
from oracle.live import ksm
from oracle.live.view import Depth

JOURNAL: Final = Path("/run/vmafuzz-settings.json")
SIZE_FILES: Final = {  # order to the setting for folios of 2**order pages
    order: Path(f"/sys/kernel/mm/transparent_hugepage/hugepages-{4 << order}kB/enabled")
    for order in range(THP_ORDERS.bit_length())
    if THP_ORDERS >> order & 1
}
QUIET: Final[Mapping[str, str]] = {
    # milliseconds between two visits of khugepaged; the most that an unsigned int holds, seven weeks
    "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs": "4294967295",
    # a read fault brings the huge page of zeros: as kernels come, and as the machine does it
    "/sys/kernel/mm/transparent_hugepage/use_zero_page": "1",
    # 2**n pages are read from swap at once: only the one that is asked for
    "/proc/sys/vm/page-cluster": "0",
    # large folios come in sizes that workloads ask for
    **dict.fromkeys(map(str, SIZE_FILES.values()), "never"),
    # pages are merged when workloads ask for it
    **{str(ksm.FOLDER / name): value for name, value in ksm.QUIET.items()},
}


_HUGE: Final = 4 << 20  # bytes: holds an aligned huge page wherever it lies
_VISIT: Final = 0.5  # seconds: far more than one visit takes


@contextlib.contextmanager
def asleep() -> Iterator[None]:
    """khugepaged has had its visit and sleeps for as long as is set.

    With nobody to visit it does not sleep but waits for the first process that wants huge pages, and visits that one
    at once. So there is one, and it is us. Likewise with the same-page scanner, which we offer memory without pages.
    """
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, _HUGE, private) as memory, mmap.mmap(-1, mmap.PAGESIZE, private) as offered:
        with contextlib.suppress(OSError):  # a kernel that merges no pages
            offered.madvise(mmap.MADV_MERGEABLE)
        with contextlib.suppress(OSError):  # a kernel without huge pages has no khugepaged
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory[0] = 1  # memory that nobody has touched is not on its list
            time.sleep(_VISIT)
        yield


@contextlib.contextmanager
def quiet(settings: Mapping[str, str] = QUIET, journal: Path = JOURNAL) -> Iterator[list[str]]:
    """The settings hold inside. Gives what could not be set, a sentence each (no root, no such file)."""
    try:
        handle = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        yield [f"{path} cannot be set: {error.strerror}" for path in settings]
        return
    try:
        lacks = _enter(handle, settings)
        yield lacks
    finally:
        _leave(handle)
        os.close(handle)


@contextlib.contextmanager
def still(depth: Depth) -> Iterator[list[str]]:
    """The kernel does nothing of its own inside that would show at this depth. Gives what could not be set."""
    if depth < Depth.PAGES:
        yield []
        return
    with quiet() as lacks, asleep():
        yield lacks


def _enter(handle: int, settings: Mapping[str, str]) -> list[str]:
    """Change what is to be changed, unless somebody else has done so and is still here."""
    if not _alone(handle):
        fcntl.flock(handle, fcntl.LOCK_SH)
        return []
    _put_back(handle)  # of somebody who was killed
    before: dict[str, str] = {}
    lacks = []
    for path in settings:
        try:
            before[path] = chosen(Path(path))
        except OSError as error:
            lacks.append(f"{path} cannot be set: {error.strerror}")
    _write_down(handle, before)
    for path in before:
        try:
            Path(path).write_text(settings[path])
        except OSError as error:
            lacks.append(f"{path} cannot be set: {error.strerror}")
    fcntl.flock(handle, fcntl.LOCK_SH)
    return lacks


def _leave(handle: int) -> None:
    if _alone(handle):
        _put_back(handle)


def _alone(handle: int) -> bool:
    """Nobody else holds the journal; then nobody can from now on."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_down(handle: int, before: Mapping[str, str]) -> None:
    os.ftruncate(handle, 0)
    if before:
        os.pwrite(handle, json.dumps(before).encode(), 0)
    os.fsync(handle)


def _put_back(handle: int) -> None:
    """Give each setting the value that is written down, and forget it."""
    written = os.pread(handle, 1 << 16, 0)
    try:
        before = json.loads(written) if written else {}
    except ValueError:  # the write was cut short, so nothing had been changed yet
        before = {}
    for path, value in reversed(before.items()):
        with contextlib.suppress(OSError):
            Path(path).write_text(value)
    _write_down(handle, {})


def chosen(path: Path) -> str:
    """What is set; of several words that are listed, the one in brackets (``always inherit madvise [never]``)."""
    text = path.read_text().strip()
    return text.partition("[")[2].partition("]")[0] or text
