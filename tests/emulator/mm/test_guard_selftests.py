"""The kernel's guard-region tests (selftests/mm/guard-regions.c) as a table: anonymous memory, and a shared file.

A row is a script; one statement a line or between semicolons, pages of the region that it begins with:

    map 10             map 10 pages at page 0            guard 0:4, unguard 0:4    install, remove
    touch 3            reading and writing work          trap 3                    both fault
    keep 3             the page holds what was written   empty 3                   it holds zeros (of a file: its own)
    W 0:10             write to every page               child, parent             who acts from here on
    vmas 4             the region has so many VMAs       CALL args = result        any other call, errors by name

What the machine is asked for, a running Linux is asked for too.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Final

import pytest

from emulator import uapi
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
from emulator.workload import file_token
from tests.emulator.kernel_world import RW, World

pytestmark = pytest.mark.live

FIXED: Final = MREMAP_MAYMOVE | MREMAP_FIXED
ANON, FILE = "anon", "file"

ROWS: Final = [
    (
        "basic",
        """map 10; guard 0; guard 9; guard 5; trap 0; trap 9; trap 5; touch 1; guard 0:10; trap 3
           unguard 0:10; touch 0:10""",
    ),
    (
        "multi_vma",
        """map 10; munmap 2; munmap 5; munmap 8; protect 4 ro; guard 0:10 = ENOMEM; trap 0; trap 3
           trap 9; unguard 0:10 = ENOMEM; read 3""",
    ),
    ("munmap", "map 10; guard 0; guard 9; munmap 0; munmap 9; map 10; touch 0:10"),
    (
        "mprotect",
        """map 10; guard 5:2; protect 0:10 ro; trap 5; trap 6; protect 0:10 rw; trap 5; touch 4
           unguard 0:10; touch 0:10""",
    ),
    (
        "split_merge",
        """map 10; guard 0:10; munmap 2; munmap 5; munmap 8; fill 2; fill 5; fill 8
           trap 0; touch 2; trap 3; touch 5; trap 7; touch 8; guard 0:10; trap 0:10; vmas 1
           protect 0:3 ro; protect 7:3 ro; protect 0:3 rw; protect 7:3 rw; trap 0:10; vmas 1
           unguard 0:10; touch 0:10""",
    ),
    (
        "dontneed",
        """map 10; W 0:10; guard 0; guard 2; guard 4; advise 0:10 dontneed; trap 0; trap 2; trap 4
           empty 1; empty 3; empty 9""",
    ),
    (
        "mlock",
        """map 10; W 0:10; mlock 0:10; guard 0:10 = EINVAL; keep 0; munlock 0:5; guard 0:5; mlock 5:5
           trap 0:5; keep 5; unguard 0:10; empty 0; keep 9""",
    ),
    ("mremap_move", "map 5; guard 0; guard 4; move 0:5 20; trap 20; trap 24; touch 21:3"),
    (
        "mremap_expand",
        """map 5; guard 0; guard 4; grow 0:5 10; trap 0; trap 4; touch 5:5; grow 0:10 20 40; trap 40
           trap 44; touch 45:15""",
    ),
    ("mremap_shrink", "map 5; guard 0; guard 4; grow 0:5 3; trap 0; touch 1:2; grow 0:3 5; trap 0; touch 3:2"),
    ("fork", "map 10; guard 0:5; fork; child; trap 0:5; touch 5:5; unguard 0:10; touch 0:10; parent; trap 0:5"),
    (
        "fork_cow",
        """map 10; W 0:10; guard 0:5; fork; child; trap 0:5; keep 5; unguard 0:10; empty 0:5; parent
           trap 0:5; keep 5:5""",
    ),
    (
        "cold_pageout",
        """map 10; W 0:10; guard 0:5; advise 0:10 cold; trap 0:5; advise 0:10 pageout; trap 0:5; keep 5:5""",
    ),
    (
        "madvise_sequential",
        """map 10; guard 0:10; advise 0:10 sequential; trap 0:10; advise 0:10 normal; trap 0:10
           unguard 0:10; touch 0:10""",
    ),
    (
        "smaps",
        """map 10; flag no; guard 0:10; flag yes; unguard 0:10; flag yes; munmap 4; flag yes; flag5 yes
           fill 4; vmas 1; flag yes""",
    ),
    (
        "populate",
        """map 10; guard 0:10; advise 0:10 populate_read = EFAULT; advise 0:10 populate_write = EFAULT
           trap 0:10""",
    ),
    (
        "fault_around",
        """map 10; guard 0; guard 2; guard 4; guard 6; guard 8; touch 1; touch 3; trap 0; trap 2; touch 9
           trap 8""",
    ),
]  # fmt: skip
OF_ANONYMOUS: Final = [
    ("fork_wipeonfork", "map 10; guard 0:5; advise 0:10 wipeonfork; fork; child; touch 0:10; parent; trap 0:5"),
    ("lazyfree", "map 10; W 0:10; guard 0:10; advise 0:10 free; trap 0:10"),
    ("anon_zeropage", "map 10; guard 0; guard 2; read 1; read 3; trap 0; trap 2"),
    ("collapse", "map 512; guard_every_second 512; advise 0:512 collapse = EINVAL; trap 0; touch 1; trap 510"),
]
OF_FILES: Final = [
    ("map_private", "private 10; guard 0; guard 2; W 5; trap 0; trap 2; keep 5; unguard 0:10; touch 0:10"),
    (
        "readonly_file",
        """readonly 10; guard 0; guard 5; trap_read 0; trap_read 5; read 1; unguard 0:10; read 0; read 5""",
    ),
]


class GuardScript:
    """Runs the statements of one row."""

    def __init__(self, kind: str) -> None:
        self.world = World("x86-64")
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
        shared = self.kind == FILE and name != "private"
        flags = MAP_FIXED | (MAP_SHARED if shared else MAP_PRIVATE)
        prot = uapi.PROT_READ if name == "readonly" else RW
        file, offset = (1, start) if self.kind == FILE else (0, 0)
        assert self.do("mmap", start, count, prot, flags, file, offset) == start

    # ---- of one page

    def touch(self, page: int) -> None:
        beyond = self.kind == FILE and page % 20 >= 16  # the file has 16 pages; regions begin at multiples of 20
        want = uapi.SIGBUS if beyond else 0
        assert self.do("read", page) == want, page
        assert self.do("write", page, 1) == want, page

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
        got = dict(self.load(page))
        assert got == (self.written.get(page, {0: file_token(0, page)}) if self.kind == FILE else {})

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
    "trap": GuardScript.trap,
    "trap_read": _trap_read,
    "read": _read,
    "W": GuardScript.store,
    "keep": GuardScript.keep,
    "empty": GuardScript.empty,
}


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        pytest.param(kind, script, id=f"{kind}-{name}")
        for kind, rows in ((ANON, ROWS + OF_ANONYMOUS), (FILE, ROWS + OF_FILES))
        for name, script in rows
    ],
)
def test_guard_regions(kind: str, script: str) -> None:
    """Guards fault, and stay where they are put until they are removed."""
    GuardScript(kind).run(script)
