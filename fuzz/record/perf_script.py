"""Reads the text that ``perf script`` prints (source: tools/perf/Documentation/perf-script.txt).

Recorded with ``perf record -d -e EVENTS -- PROGRAM`` and printed with ``perf script OPTIONS``, where ``-d`` makes the
kernel report every mapping. Of the events only the first seven are needed; without ``task:task_newtask``
what a ``clone3`` shared is deduced, without ``signal:*`` a replay cannot tell a fault that failed from one that
did not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from emulator.errors import UsageError
from fuzz.record.collector import Collector
from fuzz.record.events import Exec, Exit, Fault, Fork, Header, Mapping, Recording, Signal
from fuzz.record.syscalls import call_name

EVENTS: Final = (
    "raw_syscalls:sys_enter",
    "raw_syscalls:sys_exit",
    "exceptions:page_fault_user",
    "exceptions:page_fault_kernel",
    "sched:sched_process_fork",
    "sched:sched_process_exec",
    "sched:sched_process_exit",
    "task:task_newtask",
    "signal:signal_generate",
    "signal:signal_deliver",
)
"""What to record, for ``perf record -e``."""

OPTIONS: Final = "--show-mmap-events --show-lost-events --ns -F comm,pid,tid,cpu,time,event,trace"
"""How to print it, for ``perf script``."""

_LINE: Final = re.compile(
    r"\s*(?P<comm>.*?)\s+(?P<pid>-?\d+)/(?P<tid>-?\d+)\s+\[-?\d+\]\s+\d+\.\d+:\s+(?P<event>\w+(?::\w+)?):?\s+(?P<rest>.*)"
)
_ENTER: Final = re.compile(r"NR (-?\d+) \((.*)\)")
_EXIT: Final = re.compile(r"NR (-?\d+) = (-?\d+)")
_FAULT: Final = re.compile(r"address=0x([0-9a-f]+) ip=.* error_code=0x([0-9a-f]+)")
_MMAP2: Final = re.compile(
    r"-?\d+/-?\d+: \[0x([0-9a-f]+)\(0x([0-9a-f]+)\) @ (?:0x)?([0-9a-f]+) "
    r"(?:([0-9a-f]+:[0-9a-f]+) (\d+) (\d+)|<[0-9a-f]*>)\]: ([r-][w-][x-][sp]) (.*)"
)
_FORK: Final = re.compile(r"comm=.* child_comm=.* child_pid=(\d+)")
_NEWTASK: Final = re.compile(r"pid=(\d+) comm=.* clone_flags=([0-9a-f]+) .*")
_EXEC: Final = re.compile(r"filename=(.*) pid=(\d+) old_pid=(\d+)")
_DEATH: Final = re.compile(r"comm=.* prio=-?\d+(?: group_dead=(true|false))?")
_SIGNAL: Final = re.compile(r"sig=(\d+) errno=-?\d+ code=(-?\d+) (.*)")
_SIGNAL_TARGET: Final = re.compile(r"comm=.* pid=(\d+) grp=.*")
_LOST: Final = re.compile(r"lost[: ]+(\d+)")

_U64: Final = (1 << 64) - 1


class _Parser:
    """The state of one pass over the text."""

    def __init__(self, header: Header) -> None:
        self.collector = Collector(header)
        self.clone_flags: dict[int, int] = {}  # tid of a new task to its flags, until the fork event comes
        self.handlers: Final[dict[str, Callable[[int, int, str], bool]]] = {
            "raw_syscalls:sys_enter": self._enter,
            "raw_syscalls:sys_exit": self._exit,
            "exceptions:page_fault_user": self._fault_user,
            "exceptions:page_fault_kernel": self._fault_kernel,
            "PERF_RECORD_MMAP2": self._mmap2,
            "task:task_newtask": self._newtask,
            "sched:sched_process_fork": self._fork,
            "sched:sched_process_exec": self._exec,
            "sched:sched_process_exit": self._death,
            "signal:signal_generate": self._signal_generate,
            "signal:signal_deliver": self._signal_deliver,
            "PERF_RECORD_MMAP": self._kernel_text,
            "PERF_RECORD_LOST": self._lost,
            "PERF_RECORD_LOST_SAMPLES": self._lost,
        }

    def _enter(self, pid: int, tid: int, rest: str) -> bool:
        match = _ENTER.fullmatch(rest)
        if match is None:
            return False
        try:
            args = tuple(int(text, 16) & _U64 for text in match[2].split(", "))
        except ValueError:
            return False
        self.collector.enter(pid, tid, call_name(int(match[1])), args)
        return True

    def _exit(self, pid: int, tid: int, rest: str) -> bool:
        match = _EXIT.fullmatch(rest)
        if match is None:
            return False
        number = int(match[1])  # -1: rt_sigreturn has restored other registers, this number included
        self.collector.leave(pid, tid, call_name(number) if number >= 0 else None, int(match[2]))
        return True

    def _fault(self, pid: int, tid: int, rest: str, *, kernel: bool) -> bool:
        match = _FAULT.fullmatch(rest)
        if match is not None:
            at = self.collector.next()
            self.collector.add(Fault(at, pid, tid, int(match[1], 16), int(match[2], 16), kernel))
        return match is not None

    def _fault_user(self, pid: int, tid: int, rest: str) -> bool:
        return self._fault(pid, tid, rest, kernel=False)

    def _fault_kernel(self, pid: int, tid: int, rest: str) -> bool:
        return self._fault(pid, tid, rest, kernel=True)

    def _mmap2(self, pid: int, tid: int, rest: str) -> bool:
        match = _MMAP2.fullmatch(rest)
        if match is None:
            return False
        start, length, offset, device, inode, generation, perms, name = match.groups()
        self.collector.mapping(
            Mapping(
                at=0,
                pid=pid,
                tid=tid,
                start=int(start, 16),
                length=int(length, 16),
                offset=int(offset, 16),
                device=device or "",
                inode=int(inode or 0),
                generation=int(generation or 0),
                perms=perms,
                name=name,
            )
        )
        return True

    def _newtask(self, pid: int, tid: int, rest: str) -> bool:
        match = _NEWTASK.fullmatch(rest)
        if match is not None:
            self.clone_flags[int(match[1])] = int(match[2], 16)
        return match is not None

    def _fork(self, pid: int, tid: int, rest: str) -> bool:
        match = _FORK.fullmatch(rest)
        if match is not None:
            child = int(match[1])
            flags = self.clone_flags.pop(child, None)
            self.collector.add(Fork(self.collector.next(), pid, tid, child, child, flags))
        return match is not None

    def _exec(self, pid: int, tid: int, rest: str) -> bool:
        match = _EXEC.fullmatch(rest)
        if match is not None:
            at = self.collector.next()
            self.collector.add(Exec(at, pid, int(match[2]), int(match[3]), match[1]))
            if not self.collector.header.program:
                self.collector.header.program = (match[1],)
        return match is not None

    def _death(self, pid: int, tid: int, rest: str) -> bool:
        match = _DEATH.fullmatch(rest)
        if match is not None:
            dead = None if match[1] is None else match[1] == "true"
            self.collector.add(Exit(self.collector.next(), pid, tid, dead))
        return match is not None

    def _signal_generate(self, pid: int, tid: int, rest: str) -> bool:
        match = _SIGNAL.fullmatch(rest)
        target = match and _SIGNAL_TARGET.fullmatch(match[3])
        if not match or not target:
            return False
        if int(target[1]) == tid:  # signals to others are no concern of an address space
            self.collector.add(Signal(self.collector.next(), pid, tid, int(match[1]), int(match[2]), False))
        return True

    def _signal_deliver(self, pid: int, tid: int, rest: str) -> bool:
        match = _SIGNAL.fullmatch(rest)
        if match is not None:
            self.collector.add(Signal(self.collector.next(), pid, tid, int(match[1]), int(match[2]), True))
        return match is not None

    def _kernel_text(self, pid: int, tid: int, rest: str) -> bool:
        """Where the kernel itself lies, which perf always notes (processes are told of by MMAP2); no event."""
        if pid >= 0 and not rest.startswith("-1/"):
            self.collector.skip("PERF_RECORD_MMAP")
        return True

    def _lost(self, pid: int, tid: int, rest: str) -> bool:
        match = _LOST.search(rest)
        if match is not None:
            self.collector.header.lost += int(match[1])
        return match is not None


def parse(lines: Iterable[str], header: Header | None = None) -> Recording:
    """The recording that the text describes. Raises UsageError, naming the line, where an event is damaged."""
    parser = _Parser(header or Header(source="perf"))
    skip = parser.collector.skip
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line.rstrip("\n"))
        if match is None:
            if line.strip() and not line.startswith("#"):
                skip("lines of another form")
            continue
        event = match["event"]
        handler = parser.handlers.get(event)
        if handler is None:
            skip(event)
        elif not handler(int(match["pid"]), int(match["tid"]), match["rest"]):
            raise UsageError(f"line {number}: {event} in an unknown form: {match['rest'][:80]!r}")
    return parser.collector.finish()
