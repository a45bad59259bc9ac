"""The typed events of a recording.

A recording is what a kernel told about some processes: their system calls with results, page faults, the mappings
that ``mmap`` and ``exec`` made, forks, execs, exits, signals. All events stand in one global order: ``at`` is the
position, counted from 0. A system call has two positions, where it was entered and where it returned, so what
happened inside it stands between the two. Addresses, lengths and file offsets are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

NEVER: Final = -1  # Call.done of a call that did not return (exit_group, or the recording ended before)


class Call(NamedTuple):
    """A system call of thread ``tid``, entered at ``at``, returned at ``done``.

    ``args`` are numbers as the kernel got them (unsigned 64 bits); what a text source does not show as a number
    is 0, and arguments past the call's own may be noise. ``known`` is False when the arguments are not known: the
    recording began inside the call (the exec that ``perf record -- COMMAND`` makes), or the text names a constant
    that has no number here.
    """

    at: int
    pid: int
    tid: int
    done: int
    name: str
    args: tuple[int, ...]
    result: int | None  # None: did not return
    known: bool = True

    def arg(self, index: int) -> int:
        """Argument number ``index``, 0 when the source had fewer."""
        return self.args[index] if index < len(self.args) else 0


class Mapping(NamedTuple):
    """The kernel says that a VMA exists now (perf's MMAP2): sent by mmap, mprotect, brk, stack growth and exec.

    It describes the whole VMA *after* merging, and comes while the mmap lock is held.
    """

    at: int
    pid: int
    tid: int
    start: int
    length: int
    offset: int  # vm_pgoff in bytes: for an anonymous VMA an address
    device: str  # "fe:00" of a file, "00:00" for none
    inode: int
    generation: int
    perms: str  # "rw-p" as in /proc/PID/maps
    name: str  # path, "//anon", "[stack]", "[vdso]", …

    @property
    def end(self) -> int:
        return self.start + self.length


class Fault(NamedTuple):
    """A page fault, before the kernel handles it: at a user or (``kernel``) a kernel instruction."""

    at: int
    pid: int
    tid: int
    address: int
    error_code: int  # x86: 1 present, 2 write, 4 user, 16 instruction fetch
    kernel: bool


class Fork(NamedTuple):
    """A new task, after its address space has been made. ``flags`` are clone flags, None when unknown."""

    at: int
    pid: int
    tid: int
    child_pid: int
    child_tid: int
    flags: int | None


class Exec(NamedTuple):
    """exec has succeeded: the address space is a new one (its mappings stand before this event)."""

    at: int
    pid: int
    tid: int
    old_tid: int  # another thread than the leader may call exec; it becomes the leader
    filename: str


class Exit(NamedTuple):
    """A task ends; ``group_dead`` says that it was the last of its process, None when unknown."""

    at: int
    pid: int
    tid: int
    group_dead: bool | None


class Signal(NamedTuple):
    """The kernel sends a signal to the task itself (a fault that could not be resolved) or delivers one."""

    at: int
    pid: int
    tid: int
    number: int
    code: int  # si_code
    delivered: bool  # False: generated


Event = Call | Mapping | Fault | Fork | Exec | Exit | Signal


class MapsLine(NamedTuple):
    """One line of ``/proc/PID/maps``."""

    start: int
    end: int
    perms: str
    offset: int  # bytes; 0 for every VMA without a file
    device: str
    inode: int
    name: str


class Layout(NamedTuple):
    """``/proc/PID/maps`` of task ``tid`` as it stood at a ptrace stop.

    ``when`` is ``"exec"`` (nth exec of the task, counted from 0) or ``"exit"`` (``nth`` is 0).
    """

    pid: int
    tid: int
    when: str
    nth: int
    lines: tuple[MapsLine, ...]


@dataclass(slots=True)
class Header:
    """Where a recording comes from, and how whole it is."""

    program: tuple[str, ...] = ()  # the command, or the name that the source knows
    source: str = "perf"  # "perf" or "strace"
    kernel: str = ""  # release, "" when unknown
    exit_status: int | None = None  # of the command, as a shell shows it; None when unknown
    running: int = 0  # tasks that had not ended when the recording did
    lost: int = 0  # events that the source says it lost
    skipped: dict[str, int] = field(default_factory=dict)  # lines of the source that are no event, by kind
    filesystems: dict[str, str] = field(default_factory=dict)  # "fe:00" to "ext4"
    settings: dict[str, str] = field(default_factory=dict)  # of the recorded kernel ("thp": "madvise")


@dataclass(slots=True)
class Recording:
    """Header, events in order of ``at``, and the layouts seen at ptrace stops (empty when nobody looked)."""

    header: Header
    events: list[Event]
    layouts: list[Layout] = field(default_factory=list)

    def timeline(self) -> Iterator[tuple[Event, bool]]:
        """(event, is the return of a call) in global order: a call that returned comes twice."""
        returns = sorted(
            (event for event in self.events if isinstance(event, Call) and event.done != NEVER),
            key=lambda call: call.done,
        )
        pending = iter(returns)
        upcoming = next(pending, None)
        for event in self.events:
            while upcoming is not None and upcoming.done < event.at:
                yield upcoming, True
                upcoming = next(pending, None)
            yield event, False
        while upcoming is not None:
            yield upcoming, True
            upcoming = next(pending, None)

    def processes(self) -> list[int]:
        """The pids that occur, in order of first appearance."""
        return list(dict.fromkeys(event.pid for event in self.events))
