"""Run by test_machine_code: accesses to pages of every kind, the results printed as JSON."""

from __future__ import annotations

import json
import os
import signal

from oracle.live.processor import SYS_MMAP, SYS_MPROTECT, Processor
from oracle.live.surroundings import ARENA_START

PAGE = 4096
NOTHING, READ, WRITE, EXEC = 0, 1, 2, 4


def main() -> None:
    processor = Processor()
    file = os.memfd_create("accesses")
    os.ftruncate(file, PAGE)
    os.pwrite(file, (0x1234_5678_9ABC).to_bytes(8, "little"), 0)
    pages: dict[str, int] = {}

    def page(name: str, prot: int, handle: int = -1, offset: int = 0) -> None:
        pages[name] = address = ARENA_START + 4 * PAGE * len(pages)
        flags = 0x12 if handle >= 0 else 0x32  # PRIVATE FIXED (ANONYMOUS)
        assert processor.call(SYS_MMAP, address, PAGE, prot, flags, handle, offset) == address

    page("nothing", NOTHING)
    page("r", READ)
    page("rw", READ | WRITE)
    page("rx", READ | EXEC)
    page("file", READ | WRITE | EXEC, file)
    page("beyond", READ | WRITE | EXEC, file, PAGE)
    page("written", READ | WRITE)
    assert [processor.store(pages["written"], place, 100 + place) for place in (3, 0)] == [0, 0]
    assert processor.call(SYS_MPROTECT, pages["written"], PAGE, READ | EXEC) == 0
    pages["hole"] = ARENA_START + PAGE
    found = {
        name: {"load": processor.load(at), "store": processor.store(at, 2, 7), "fetch": processor.fetch(at)}
        for name, at in pages.items()
    }
    child = processor.fork()
    if child == 0:  # a fault outside accesses is not swallowed
        import ctypes

        ctypes.string_at(pages["hole"])
        processor.exit(0)
    _, status = os.waitpid(child, 0)
    calls = {
        "getpid": processor.call(39) == os.getpid(),
        "bad": processor.call(SYS_MMAP, 1, 0, 0, 0x32, -1, 0),
    }
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV
    print(json.dumps({"accesses": found, "calls": calls, "own fault dies": died}))


main()
