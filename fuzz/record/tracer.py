"""Runs a command under ptrace and reads every task's ``/proc/PID/maps`` after exec and at its end.

At the stop before a task ends (PTRACE_EVENT_EXIT) its address space is still there, and it runs no more; so the
layout read then is the final one. Source: ptrace(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from emulator.errors import UsageError
from fuzz.record.events import Layout
from fuzz.record.layout import parse_maps

_CONT: Final = 7
_DETACH: Final = 17
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_LISTEN: Final = 0x4208

_GETEVENTMSG: Final = 0x4201

_EVENTS_OF_BIRTH: Final = (1, 2, 3)  # fork, vfork, clone
_EVENT_EXEC: Final = 4
_EVENT_EXIT: Final = 6
_EVENT_STOP: Final = 128
_OPTIONS: Final = 1 << 1 | 1 << 2 | 1 << 3 | 1 << _EVENT_EXEC | 1 << _EVENT_EXIT  # fork, vfork, clone, exec, exit
_STOPPING: Final = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_WALL: Final = 0x40000000  # wait for children of every kind
_POLL: Final = 0.01  # seconds
LINGER: Final = 2.0  # seconds

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _ptrace(request: int, tid: int, data: int = 0) -> bool:
    """One ptrace request; False when the task is gone. Raises OSError on any other failure."""
    result = _libc.ptrace(
        ctypes.c_long(request), ctypes.c_long(tid), ctypes.c_void_p(0), ctypes.c_void_p(data)
    )
    if result != -1:
        return True
    number = ctypes.get_errno()
    if number == 3:  # ESRCH: killed meanwhile
        return False
    raise OSError(number, os.strerror(number))


class Tracer:
    """Follows one command and all that it starts. Use from one thread; not for a process with other children."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)  # the first word is the path of a program
        self.root = 0  # pid of the command
        self.status: int | None = None  # of the command, as a shell shows it
        self.layouts: list[Layout] = []
        self._execs: dict[int, int] = {}  # tid to the number of its execs
        self._tasks: set[int] = set()
        self._gate = -1  # closing it lets the command start

    def start(self) -> None:
        """Make the command's process; it waits for ``release``. Raises UsageError where ptrace is forbidden."""
        read_end, self._gate = os.pipe()
        self.root = os.fork()
        if self.root == 0:
            self._become_command(read_end)
        os.close(read_end)
        try:
            _ptrace(_SEIZE, self.root, _OPTIONS)
        except OSError as error:
            os.kill(self.root, signal.SIGKILL)
            os.waitpid(self.root, 0)
            os.close(self._gate)
            raise UsageError(
                f"cannot trace a process of our own ({error.strerror}); is ptrace forbidden here "
                "(kernel.yama.ptrace_scope=3, or a container without SYS_PTRACE)?"
            ) from None
        self._tasks.add(self.root)

    def _become_command(self, gate: int) -> None:
        """In the new process: wait for the gate, then exec. Never returns."""
        try:
            os.close(self._gate)
            if os.read(gate, 1) == b"!":
                os.close(gate)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                os.execv(self.command[0], self.command)
        finally:
            os._exit(126)  # as a shell: found, cannot be executed

    def release(self) -> None:
        """Let the command start."""
        os.write(self._gate, b"!")
        os.close(self._gate)

    def cancel(self) -> None:
        """End a command that was not released."""
        os.close(self._gate)
        self.follow(lambda _pid, _status: None)

    def follow(self, stranger: Callable[[int, int], None], linger: float = LINGER) -> int:
        """Run until the command and all that it started have ended. Returns how many tasks still run.

        What has not ended ``linger`` seconds after the command itself (a daemon) is let go of and runs on.
        ``stranger`` gets (pid, wait status) of a child of ours that is no tracee.
        """
        deadline = None
        while self._tasks:
            if self.status is not None and deadline is None:
                deadline = time.monotonic() + linger
            try:
                tid, status = os.waitpid(-1, _WALL if deadline is None else _WALL | os.WNOHANG)
            except ChildProcessError:
                return 0
            if tid:
                self._reported(tid, status, stranger)
            elif deadline is not None and time.monotonic() < deadline:
                time.sleep(_POLL)
            if deadline is not None and time.monotonic() >= deadline:
                running = len(self._tasks)
                self.detach()
                return running
        return 0

    def _reported(self, tid: int, status: int, stranger: Callable[[int, int], None]) -> None:
        if os.WIFSTOPPED(status):
            self._tasks.add(tid)
            self._stopped(tid, status)
        elif tid in self._tasks:
            self._tasks.discard(tid)
            if tid == self.root:
                self.status = os.waitstatus_to_exitcode(status)
                if self.status < 0:
                    self.status = 128 - self.status
        else:
            stranger(tid, status)

    def detach(self) -> None:
        """Let go of the tasks that still run (they go on); each is stopped for a moment to that end."""
        for tid in sorted(self._tasks):
            _ptrace(_INTERRUPT, tid)
        while self._tasks:
            try:
                tid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(status):
                event = status >> 16
                _ptrace(_DETACH, tid, 0 if event else os.WSTOPSIG(status))
            self._tasks.discard(tid)

    def _stopped(self, tid: int, status: int) -> None:
        event = status >> 16
        number = os.WSTOPSIG(status)
        if event == _EVENT_STOP and number in _STOPPING:
            _ptrace(_LISTEN, tid)  # stopped by job control: stays stopped until SIGCONT
            return
        if event == _EVENT_EXEC:
            nth = self._execs.get(tid, 0)
            self._execs[tid] = nth + 1
            self._look(tid, "exec", nth)
        elif event == _EVENT_EXIT:
            self._look(tid, "exit", 0)
        elif event in _EVENTS_OF_BIRTH:
            child = ctypes.c_ulong()
            if _ptrace(_GETEVENTMSG, tid, ctypes.addressof(child)):
                self._tasks.add(child.value)  # it is traced already, though it has not reported yet
        _ptrace(_CONT, tid, 0 if event else number)

    def _look(self, tid: int, when: str, nth: int) -> None:
        """Keep the layout of a stopped task."""
        try:
            pid = _process_of(tid)
            with Path(f"/proc/{tid}/maps").open() as file:
                lines = parse_maps(file)
        except OSError:
            return  # killed at this moment: no layout to keep
        self.layouts.append(Layout(pid, tid, when, nth, lines))


def _process_of(tid: int) -> int:
    with Path(f"/proc/{tid}/status").open() as file:
        for line in file:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return tid
