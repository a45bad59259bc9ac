"""A small language for tests of guard regions: anonymous memory, or a file on a disk or in memory.

One statement a line or between semicolons; pages are those of the region that it begins with::

    map 10             map 10 pages at page 0            guard 0:4, unguard 0:4    install, remove
    both guard 0:4 8:2 the same of two ranges at once (process_madvise)
    register 0:10      with userfaultfd, which hears of missing pages: they fault with SIGBUS, as nobody fills them
    touch 3            reading and writing work          trap 3                    both fault
    keep 3             the page holds what was written   empty 3                   it holds zeros (of a file: its own)
    missing 3          userfaultfd hears of it
    zeros 3            the page holds zeros, whosever it is
    W 0:10             write to every page               child, parent             who acts from here on
    vmas 4             the region has so many VMAs       CALL args = result        any other call, errors by name
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Final

from emulator import uapi
from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.mm_types import VM_MAYBE_GUARD
from emulator.uapi import (
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    SIGSEGV,
)
from emulator.workload import MEMFD, file_token
from tests.emulator.kernel_world import RW, World

FILES: Final = {"file": 1, "shmem": MEMFD + 1}
FIXED: Final = MREMAP_MAYMOVE | MREMAP_FIXED
ANON, FILE, SHMEM = "anon", "file", "shmem"


class GuardScript:
    """Runs scripts in one world."""

    def __init__(self, kind: str, design: type[Design] = Mainline, geometry: str = "x86-64") -> None:
        self.world = World(geometry, design)
        self.kind = kind
        self.proc = 0
        self.written: dict[int, dict[int, int]] = {}

    def run(self, script: str) -> None:
        for statement in re.split(r"[;\n]", script):
            call, _, result = statement.partition("=")
            name, *words = call.split() or [""]
            if name:
                self.call(name, words, -getattr(errno, result.strip()) if result else 0)

    def call(self, name: str, words: list[str], result: int) -> None:
        first, pages = self.range(words[0]) if words and words[0][0].isdigit() else (0, 0)
        match name:
            case "map" | "fill" | "private" | "readonly":
                start, count = (0, first) if name != "fill" else (first, 1)
                self.map(start, count, name)
            case "child" | "parent":
                self.proc = int(name == "child")
            case "fork":
                assert self.do("fork", 1) == 0
            case "vmas":
                assert len(self.world.layout(self.proc)) == first
            case "flag" | "flag5":
                flagged = bool(self.world.vma(5 * (name == "flag5"), self.proc).vm_flags & VM_MAYBE_GUARD)
                assert flagged is (words[0] == "yes")
            case "move":
                assert self.do("mremap", first, pages, pages, FIXED, int(words[1])) == int(words[1])
            case "grow":
                target = [int(word) for word in words[2:]]
                args = (first, pages, int(words[1]), FIXED if target else 0, *(target or [0]))
                assert self.do("mremap", *args) == (target[0] if target else first)
            case "guard_every_second":
                for page in range(0, first, 2):
                    assert self.do("madvise", page, 1, MADV_GUARD_INSTALL) == 0
            case "guard" | "unguard":
                advice = MADV_GUARD_INSTALL if name == "guard" else MADV_GUARD_REMOVE
                assert self.do("madvise", first, pages, advice) == result
            case "register":
                assert self.do("uffd_register", first, pages, uapi.UFFDIO_REGISTER_MODE_MISSING) == 0
            case "both":
                advice = MADV_GUARD_INSTALL if words[0] == "guard" else MADV_GUARD_REMOVE
                ranges = (*self.range(words[1]), *self.range(words[2]))
                assert self.do("process_madvise", self.proc, *ranges, advice) == ranges[1] + ranges[3]
            case "advise":
                assert self.do("madvise", first, pages, getattr(uapi, f"MADV_{words[1].upper()}")) == result
            case "protect":
                assert self.do("mprotect", first, pages, RW if words[1] == "rw" else uapi.PROT_READ) == result
            case "munmap" | "mlock" | "munlock":
                assert self.do(name, first, pages) == result
            case _:
                for page in range(first, first + pages):
                    PAGE_CHECKS[name](self, page)

    def do(self, kind: str, *args: int) -> int:
        return self.world.do(kind, *args, proc=self.proc)

    def range(self, words: str) -> tuple[int, int]:
        first, _, count = words.partition(":")
        return int(first), int(count or 1)

    def map(self, start: int, count: int, name: str) -> None:
        shared = self.kind != ANON and name != "private"
        flags = MAP_FIXED | (MAP_SHARED if shared else MAP_PRIVATE)
        prot = uapi.PROT_READ if name == "readonly" else RW
        file, offset = (FILES[self.kind], start) if self.kind in FILES else (0, 0)
        assert self.do("mmap", start, count, prot, flags, file, offset) == start

    # ---- of one page

    def touch(self, page: int) -> None:
        beyond = self.kind != ANON and page % 20 >= 16  # the file has 16 pages; regions begin at multiples of 20
        want = uapi.SIGBUS if beyond else 0
        assert self.do("read", page) == want, page
        assert self.do("write", page, 1) == want, page

    def missing(self, page: int) -> None:
        assert self.do("read", page) == uapi.SIGBUS, page

    def trap(self, page: int) -> None:
        assert self.do("read", page) == SIGSEGV, page
        assert self.do("write", page, 1) == SIGSEGV, page

    def store(self, page: int) -> None:
        assert self.do("write", page, 2) == 0
        self.written[page] = dict(self.load(page))

    def keep(self, page: int) -> None:
        assert dict(self.load(page)) == self.written[page]

    def empty(self, page: int) -> None:
        """Anonymous memory reads as zeros; a shared file still has what was written to it."""
        untouched = {0: file_token(0, page)} if self.kind == FILE else {}
        assert dict(self.load(page)) == (self.written.get(page, untouched) if self.kind != ANON else {})

    def zeros(self, page: int) -> None:
        assert self.load(page) == ()

    def load(self, page: int) -> tuple[tuple[int, int], ...]:
        assert self.do("read", page) == 0, page
        assert self.world.last.data is not None
        return self.world.last.data


def _read(script: GuardScript, page: int) -> None:
    script.load(page)


def _trap_read(script: GuardScript, page: int) -> None:
    assert script.do("read", page) == SIGSEGV, page


PAGE_CHECKS: Final[dict[str, Callable[[GuardScript, int], None]]] = {
    "touch": GuardScript.touch,
    "missing": GuardScript.missing,
    "trap": GuardScript.trap,
    "trap_read": _trap_read,
    "read": _read,
    "W": GuardScript.store,
    "keep": GuardScript.keep,
    "empty": GuardScript.empty,
    "zeros": GuardScript.zeros,
}
