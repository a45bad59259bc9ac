"""Run by test_overcommit: makes calls of a JSON list in turn, and prints their results (a place or 0, or -errno).

A call is its name and arguments: places and sizes in bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

NUMBERS = {"mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25}
MAP_ANONYMOUS = 0x20


def do(kind: str, *args: int) -> int:
    if kind == "fork":
        try:
            pid = os.fork()
        except OSError as error:
            return -(error.errno or 0)
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        return 0
    words = [*args, -1, 0] if kind == "mmap" else [*args]
    if kind == "mmap":
        words[3] |= MAP_ANONYMOUS
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(*map(ctypes.c_long, [NUMBERS[kind], *words]))
    return result if result >= 0 else -ctypes.get_errno()


if __name__ == "__main__":
    print(json.dumps([do(*call) for call in json.loads(sys.argv[1])]))
