"""Processes that do on the running kernel what they are told, one op at a time, and stand still in between.

A puppet is a Python process of its own that obeys ``Op`` values as a machine does; a fork of it obeys under its label.
Pages count from ``ARENA_START``, far from everything that the interpreter maps.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from emulator.geometry import GEOMETRIES, PAGE_SHIFT, PAGE_SIZE
from emulator.uapi import MAP_ANONYMOUS
from emulator.workload import FILE_PAGES, FILES_MAX, PROCS_MAX, Op

ARENA_START = GEOMETRIES["x86-64"].arena_start
_ROOT = Path(__file__).parents[3]


class Puppets:
    """Process 0 and its descendants; all end with the context."""

    def __init__(self) -> None:
        orders = [os.pipe() for _ in range(PROCS_MAX)]
        answers, mouth = os.pipe()
        given = [ear for ear, _ in orders] + [mouth]
        self._first = subprocess.Popen(
            [sys.executable, "-c", f"from tests.oracle.live import puppets; puppets.obey({given})"],
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            pass_fds=given,
        )
        for descriptor in given:
            os.close(descriptor)
        self._orders = [os.fdopen(order, "w") for _, order in orders]
        self._answers = os.fdopen(answers)
        self.pids = {0: self._first.pid}  # of the living, by label

    def __enter__(self) -> Puppets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for order in self._orders:
            order.close()
        self._answers.read()  # ends when the last of them has ended
        self._answers.close()
        self._first.wait()

    def do(self, op: Op) -> int:
        """The result: addresses as arena pages, an errno as a negative number."""
        if op.kind == "exit":
            self._end(op.proc)
            return 0
        print(json.dumps([op.kind, op.args]), file=self._orders[op.proc], flush=True)
        result = int(self._answers.readline())
        if op.kind == "fork":
            self.pids[op.args[0]] = result
            return 0
        return result

    def _end(self, label: int) -> None:
        """End a process, and wait until its memory is gone."""
        watch = os.pidfd_open(self.pids.pop(label))
        signal.pidfd_send_signal(watch, signal.SIGKILL)
        select.select([watch], [], [])
        os.close(watch)


# ---- what runs in the puppet

_LIBC = ctypes.CDLL(None, use_errno=True)


def obey(descriptors: list[int]) -> None:
    """Obey until there are no more orders."""
    *ears, mouth = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    files = [os.memfd_create(f"file{number}") for number in range(FILES_MAX)]
    for file in files:
        os.ftruncate(file, FILE_PAGES * PAGE_SIZE)
    label = 0
    while order := _hear(ears[label]):
        kind, args = json.loads(order)
        if kind == "fork":
            result = os.fork()
            if result == 0:
                label = args[0]
                continue
        else:
            result = _perform(kind, args, files)
        os.write(mouth, f"{result}\n".encode())
    os._exit(0)


def _hear(ear: int) -> bytes:
    """One line, byte by byte, as nothing may be read ahead of a fork."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(ear, 1)):
        line += byte
    return line


def _perform(kind: str, args: list[int], files: list[int]) -> int:
    start = _address(args[0])
    if kind == "write":
        ctypes.memset(start, 1, 1)
        return 0
    if kind == "read":
        ctypes.string_at(start, 1)
        return 0
    size = args[1] << PAGE_SHIFT
    match kind:
        case "mmap":
            _, _, prot, flags, file, offset = args
            if file:
                return _call("mmap", start, size, prot, flags, files[file - 1], offset << PAGE_SHIFT)
            return _call("mmap", start, size, prot, flags | MAP_ANONYMOUS, -1, 0)
        case "munmap":
            return _call("munmap", start, size)
        case "mremap":
            return _call("mremap", start, size, args[2] << PAGE_SHIFT, args[3], _address(args[4]))
        case "mprotect":
            return _call("mprotect", start, size, args[2])
        case "madvise":
            return _call("madvise", start, size, args[2])
    raise NotImplementedError(kind)


def _address(page: int) -> int:
    return ARENA_START + (page << PAGE_SHIFT)


def _call(name: str, *args: int) -> int:
    function = getattr(_LIBC, name)
    function.restype = ctypes.c_long
    result: int = function(*map(ctypes.c_long, args))
    if result == -1:
        return -ctypes.get_errno()
    return (result - ARENA_START) >> PAGE_SHIFT if result else 0
