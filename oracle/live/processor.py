"""System calls and memory accesses of this very process, by the machine code of ``machine_code``.

Linux on x86-64 with glibc. Python never knows of the faults: the handler is machine code too.
"""

from __future__ import annotations

import ctypes
from typing import Final

from oracle.live import machine_code
from oracle.live.machine_code import CODE_SIZE, DATA_SIZE, FETCH_OFFSET, SUB_PAGE, WORDS

SYS_MMAP: Final = 9
SYS_MPROTECT: Final = 10
SYS_MUNMAP: Final = 11
SYS_RT_SIGACTION: Final = 13
SYS_IOCTL: Final = 16
SYS_MADVISE: Final = 28
SYS_CLONE: Final = 56
SYS_SIGALTSTACK: Final = 131
SYS_MUNLOCK: Final = 150
SYS_PRCTL: Final = 157
SYS_EXIT_GROUP: Final = 231
SYS_MOVE_PAGES: Final = 279

_SIGNALS: Final = (5, 7, 11)  # SIGTRAP SIGBUS SIGSEGV
_SIGCHLD: Final = 17
_CLONE_PARENT: Final = 0x8000
_ALTERNATE_STACK: Final = 1 << 16  # bytes; a signal frame with all vector registers is up to 11 KiB
_SA_FLAGS: Final = 4 | 0x0800_0000 | 0x0400_0000  # SIGINFO ONSTACK RESTORER
_FAILED: Final = (1 << 64) - 1  # MAP_FAILED


class Processor:
    """Own only one in a process: it installs signal handlers. A forked child inherits it, ready for use."""

    def __init__(self) -> None:
        code, entries = machine_code.assemble()
        base = self._map(CODE_SIZE + DATA_SIZE + _ALTERNATE_STACK)
        ctypes.memmove(base, code, len(code))
        # PYFUNCTYPE: called with Python's lock held, so that a clone returns in the child as in the parent.
        integer = ctypes.c_long
        self.system_call = ctypes.PYFUNCTYPE(integer, *[integer] * 7)(base + entries["system_call"])
        self._load = ctypes.PYFUNCTYPE(integer, integer)(base + entries["load"])
        self._store = ctypes.PYFUNCTYPE(integer, integer, integer)(base + entries["store"])
        self._fetch = ctypes.PYFUNCTYPE(integer, integer)(base + entries["fetch"])
        self._grow_stack = ctypes.PYFUNCTYPE(None, integer)(base + entries["grow_stack"])
        self._words = (ctypes.c_uint64 * 4).from_address(base + WORDS)
        self._check(SYS_MPROTECT, base, CODE_SIZE, 5)  # no longer writable
        self._check(SYS_MPROTECT, base + CODE_SIZE, DATA_SIZE + _ALTERNATE_STACK, 3)
        stack = (ctypes.c_uint64 * 3)(base + CODE_SIZE + DATA_SIZE, 0, _ALTERNATE_STACK)
        self._check(SYS_SIGALTSTACK, ctypes.addressof(stack), 0)
        action = (ctypes.c_uint64 * 4)(base + entries["handler"], _SA_FLAGS, base + entries["restorer"], 0)
        for signal in _SIGNALS:
            self._check(SYS_RT_SIGACTION, signal, ctypes.addressof(action), 0, 8)

    @staticmethod
    def _map(size: int) -> int:
        """Own memory, before there is machine code to ask for it."""
        mmap = ctypes.CDLL(None, use_errno=True).mmap
        mmap.restype = ctypes.c_size_t
        mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        address: int = mmap(0, size, 7, 0x22, -1, 0)  # readable, writable, executable
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        return address

    def call(self, number: int, *args: int) -> int:
        """A system call with up to six arguments: its result, an error as negative errno."""
        result: int = self.system_call(number, *args, *(0,) * (6 - len(args)))
        return result

    def _check(self, number: int, *args: int) -> None:
        result = self.call(number, *args)
        if result < 0:
            raise OSError(-result, f"system call {number}")

    def load(self, address: int) -> tuple[int, tuple[tuple[int, int], ...] | None]:
        """Read a page: (0, its tokens as sorted (place, token) pairs), or (SIGSEGV or SIGBUS, None)."""
        result: int = self._load(address)
        if result:
            return result, None
        return 0, tuple((place, word) for place, word in enumerate(self._words) if word)

    def store(self, address: int, place: int, token: int) -> int:
        """Write a token to one of the four places of a page: 0, SIGSEGV or SIGBUS."""
        result: int = self._store(address + place * SUB_PAGE, token)
        return result

    def fetch(self, address: int) -> int:
        """Run an instruction of a page: 0, SIGSEGV or SIGBUS."""
        result: int = self._fetch(address + FETCH_OFFSET)
        return result

    def grow_stack(self, pages: int) -> None:
        """Make the stack so many pages deep, that it need not grow any more."""
        self._grow_stack(pages)

    def fork(self, *, sibling: bool = False) -> int:
        """fork(2) without what libc does around it: 0 in the child, in the parent its pid or -errno.

        ``sibling``: the child becomes a child of our parent.
        """
        return self.call(SYS_CLONE, _SIGCHLD | (_CLONE_PARENT if sibling else 0))

    def exit(self, status: int) -> None:
        """End the process at once: nothing is flushed or freed before."""
        self.call(SYS_EXIT_GROUP, status)
