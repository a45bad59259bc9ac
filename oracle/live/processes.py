"""The processes of a live workload, seen from the server that is the parent of all, and what they run.

Each executes the ops that it gets through a pipe and answers through another. They die with the server.
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import signal
from typing import Any, Final, NoReturn

from emulator.workload import PROCS_MAX
from oracle.live.calls import CALLS, Context
from oracle.live.processor import SYS_PRCTL, Processor

_PR_SET_PDEATHSIG: Final = 1
_KILL_SECONDS: Final = 5.0  # that a killed process gets to end
NO_ANSWER: Final = "does not answer"  # how a step that never ends is told of
_MESSAGE_MAX: Final = 4096  # bytes (PIPE_BUF): written and read in one piece


class Ended(Exception):
    """A process is no more, or does not answer. Says what became of it."""


class Channels:
    """Two pipes for each label, made before the first process, as every process needs those of its children."""

    def __init__(self) -> None:
        self.orders = [os.pipe() for _ in range(PROCS_MAX)]
        self.answers = [os.pipe() for _ in range(PROCS_MAX)]

    def close(self) -> None:
        for read_end, write_end in self.orders + self.answers:
            os.close(read_end)
            os.close(write_end)


class Process:
    """One living process of a workload. ``pid`` is its own."""

    def __init__(self, label: int, pid: int, channels: Channels) -> None:
        self.label = label
        self.pid = pid
        self._order = channels.orders[label][1]
        self._answer = channels.answers[label][0]
        self._pidfd = os.pidfd_open(pid)
        self._poll = select.poll()
        self._poll.register(self._answer, select.POLLIN)
        self._poll.register(self._pidfd, select.POLLIN)

    def send(self, kind: str, args: tuple[int, ...], token: int) -> None:
        os.write(self._order, marshal.dumps((kind, args, token)))

    def receive(self, seconds: float) -> Any:
        """The answer to the last order. Raises ``Ended``."""
        ready = self._poll.poll(max(0.0, seconds) * 1000)
        if not ready:
            raise Ended(NO_ANSWER)
        if all(handle != self._answer for handle, _ in ready):
            raise Ended(self.reap(0.0))
        return marshal.loads(os.read(self._answer, _MESSAGE_MAX))

    def reap(self, seconds: float) -> str:
        """Wait for the end; how it died, empty for exit status 0."""
        waiting = select.poll()
        waiting.register(self._pidfd, select.POLLIN)
        if not waiting.poll(max(0.0, seconds) * 1000):
            return f"process {self.label} (pid {self.pid}) does not end"
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            return f"died by {signal.Signals(-code).name}"
        return f"exited with status {code}" if code else ""

    def kill(self) -> str:
        """Kill it unless it is gone; empty, or that it does not end even so."""
        if not self.pid:
            return ""
        os.kill(self.pid, signal.SIGKILL)
        how = self.reap(_KILL_SECONDS)
        return how if self.pid else ""

    def close(self) -> None:
        os.close(self._pidfd)


def execute(context: Context, channels: Channels, server: int) -> NoReturn:
    """What process 0 does, and every process that it forks: orders, until one says exit."""
    gc.disable()
    label = 0
    _die_with(context.processor, server)
    while True:
        order = os.read(channels.orders[label][0], _MESSAGE_MAX)
        try:
            kind, args, token = marshal.loads(order)
            if kind == "fork":
                answer: Any = (context.processor.fork(sibling=True), None)
                if answer[0] == 0:
                    label = args[0]
                    context.userfault.forked()
                    _die_with(context.processor, server)
                    answer = (0, None)  # the child's: it has let its copy of the userfaultfd go
            elif kind == "exit":
                context.processor.exit(0)
            else:
                answer = CALLS[kind](context, args, token)
        except BaseException as error:
            answer = f"process {label}: {type(error).__name__}: {error}"[: _MESSAGE_MAX // 8]
        os.write(channels.answers[label][1], marshal.dumps(answer))


def _die_with(processor: Processor, server: int) -> None:
    processor.call(SYS_PRCTL, _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        processor.exit(0)
