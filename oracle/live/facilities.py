"""What the live oracle needs of a machine, and what it cannot compare where that is missing."""

from __future__ import annotations

import os
import platform
import struct
import sys

from oracle.live import rmap_probe
from oracle.live.expressible import has_prompt_swap
from oracle.live.view import Depth

_FRAME = (1 << 55) - 1  # of an entry of /proc/PID/pagemap
_PRIVILEGED = ("/proc/kpagecount", "/proc/kpageflags")


def kernel_release() -> str:
    """As uname -r says it."""
    return platform.release()


def missing(depth: Depth) -> list[str]:
    """What a comparison of this depth lacks here, a sentence each with what to do; empty: nothing."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        return ["the live oracle needs Linux on x86-64"]
    lacks = []
    if depth >= Depth.PAGES:
        lacks += _missing_for_pages()
    if depth >= Depth.RMAP:
        lacks += rmap_probe.missing()
    return lacks


def _missing_for_pages() -> list[str]:
    lacks = [
        f"{path} cannot be read, so mapcounts and kinds of pages are unknown: run as root"
        for path in _PRIVILEGED
        if not os.access(path, os.R_OK)
    ]
    if not has_prompt_swap():
        lacks.append(
            "swap is not on zram, so when a page is swapped out is chance: "
            "echo 256M >/sys/block/zram0/disksize; mkswap /dev/zram0; swapon /dev/zram0"
        )
    if not _shows_frames():
        lacks.append("/proc/PID/pagemap shows no frame numbers, so sharing is unknown: run as root")
    return lacks


def _shows_frames() -> bool:
    """Whether our own pages have frame numbers; to the unprivileged they are zeros."""
    here = bytearray(b"x")
    page = id(here) // os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/self/pagemap", "rb") as file:
            file.seek(page * 8)
            (entry,) = struct.unpack("=Q", file.read(8))
    except (OSError, struct.error):
        return False
    return bool(entry & _FRAME)
