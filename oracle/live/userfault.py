"""The userfaultfd of a process of a live workload: the file, and what its ioctls are asked and answer.

It is opened with UFFD_FEATURE_SIGBUS, so that nobody waits for a fault, and UFFD_USER_MODE_ONLY, which needs no
privilege. A process has one at most; a child begins without.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from emulator.geometry import GEOMETRIES, PAGE_SHIFT
from emulator.uapi import (
    EBADF,
    EBUSY,
    EPERM,
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
    UFFD_FEATURE_SIGBUS,
)
from oracle.live.processor import SYS_IOCTL, Processor

SYS_CLOSE: Final = 3
SYS_USERFAULTFD: Final = 323

_O_NONBLOCK: Final = 0o4000
_O_CLOEXEC: Final = 0o2000000
_USER_MODE_ONLY: Final = 1
_API: Final = 0xAA

# ioctl numbers (include/uapi/linux/userfaultfd.h) and, for those that tell how far they came, the word where
_UFFDIO_API: Final = 0xC018_AA3F
_UFFDIO_REGISTER: Final = 0xC020_AA00
_UFFDIO_UNREGISTER: Final = 0x8010_AA01
_UFFDIO_COPY: Final = 0xC028_AA03, 4
_UFFDIO_ZEROPAGE: Final = 0xC020_AA04, 3
_UFFDIO_MOVE: Final = 0xC028_AA05, 4
_UFFDIO_WRITEPROTECT: Final = 0xC018_AA06
_UFFDIO_CONTINUE: Final = 0xC020_AA07, 3
_UFFDIO_POISON: Final = 0xC020_AA08, 3

NEEDS_A_READER: Final = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP
"""Features that make fork or mremap wait until somebody has read what happened."""



def refused() -> str:
    """Why userfaultfd(2) does not work here, with what to do; empty where it does."""
    handle = ctypes.CDLL(None, use_errno=True).syscall(SYS_USERFAULTFD, _O_CLOEXEC | _USER_MODE_ONLY)
    if handle >= 0:
        os.close(handle)
        return ""
    error = ctypes.get_errno()
    if error == EPERM:
        return "forbidden, workloads with it cannot run: allow this container to call userfaultfd"
    return f"{os.strerror(error)}, workloads with it cannot run: boot a kernel with CONFIG_USERFAULTFD"



class Userfault:
    """Own only one in a process."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._handle = -1
        self._words = (ctypes.c_int64 * 5)()

    def forked(self) -> None:
        """We are a child: the parent's file is none of ours."""
        self._close()

    def open(self, features: int) -> int:
        """0, -EBUSY where there is one, or what the kernel says."""
        if self._handle >= 0:
            return -EBUSY
        handle = self._processor.call(SYS_USERFAULTFD, _O_NONBLOCK | _O_CLOEXEC | _USER_MODE_ONLY)
        if handle < 0:
            return handle
        self._handle = handle
        result = self._ioctl(_UFFDIO_API, _API, features | UFFD_FEATURE_SIGBUS)
        if result:
            self._close()
        return result

    def close(self) -> int:
        """0, or -EBADF where there is none."""
        return self._close() if self._handle >= 0 else -EBADF

    def _close(self) -> int:
        handle, self._handle = self._handle, -1
        return self._processor.call(SYS_CLOSE, handle) if handle >= 0 else 0

    def _ioctl(self, request: int, *words: int) -> int:
        """0 or -errno; opens the file if there is none."""
        if self._handle < 0:
            error = self.open(0)
            if error:
                return error
        self._words[:] = [*words, *(0,) * (len(self._words) - len(words))]
        return self._processor.call(SYS_IOCTL, self._handle, request, ctypes.addressof(self._words))

    def _pages(self, request: tuple[int, int], *words: int) -> int:
        """The pages that were done, though it be not all; -errno where none was."""
        number, told = request
        error = self._ioctl(number, *words)
        done = self._words[told]
        return done >> PAGE_SHIFT if done > 0 else error

    # ---- the calls, in arena pages

    def register(self, page: int, length: int, mode: int) -> int:
        return self._ioctl(_UFFDIO_REGISTER, *_range(page, length), mode)

    def unregister(self, page: int, length: int) -> int:
        return self._ioctl(_UFFDIO_UNREGISTER, *_range(page, length))

    def copy(self, dst: int, src: int, length: int, mode: int) -> int:
        return self._pages(_UFFDIO_COPY, _address(dst), *_range(src, length), mode)

    def zeropage(self, page: int, length: int) -> int:
        return self._pages(_UFFDIO_ZEROPAGE, *_range(page, length), 0)

    def poison(self, page: int, length: int) -> int:
        return self._pages(_UFFDIO_POISON, *_range(page, length), 0)

    def continue_(self, page: int, length: int, mode: int) -> int:
        return self._pages(_UFFDIO_CONTINUE, *_range(page, length), mode)

    def write_protect(self, page: int, length: int, mode: int) -> int:
        return self._ioctl(_UFFDIO_WRITEPROTECT, *_range(page, length), mode)

    def move(self, dst: int, src: int, length: int, mode: int) -> int:
        return self._pages(_UFFDIO_MOVE, _address(dst), *_range(src, length), mode)


def _address(page: int) -> int:
    return GEOMETRIES["x86-64"].arena_start + (page << PAGE_SHIFT)


def _range(page: int, length: int) -> tuple[int, int]:
    return _address(page), length << PAGE_SHIFT
