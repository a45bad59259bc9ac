"""Puts parsed lines together into a recording: joins the two halves of a call, finds out what forks shared."""

from __future__ import annotations

from typing import Final

from fuzz.record.events import NEVER, Call, Event, Exec, Exit, Fork, Header, Mapping, Recording

CLONE_VM: Final = 0x100
CLONE_FILES: Final = 0x400
CLONE_VFORK: Final = 0x4000
CLONE_THREAD: Final = 0x10000
BEFORE: Final = "returns of calls that were entered before the recording began"
FORKING: Final = frozenset(("clone", "clone3", "fork", "vfork"))


class Collector:
    """Gets events in order and numbers them."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.events: list[Event] = []
        self.position = 0  # of the next event
        self._open: dict[int, int] = {}  # tid to the index of the call that it is in
        self._pids: dict[int, int] = {}  # tid to pid, of threads that have had an event
        self._newborn: set[int] = set()  # tids that have not yet returned from the fork that made them
        self._fork_calls: list[tuple[int, int]] = []  # (index of a Fork, index of the call it is in or -1)

    def next(self) -> int:
        """The position of the event that is made now."""
        self.position += 1
        return self.position - 1

    def skip(self, kind: str, count: int = 1) -> None:
        """Count something in the source that is no event."""
        skipped = self.header.skipped
        skipped[kind] = skipped.get(kind, 0) + count

    def mapping(self, mapping: Mapping) -> None:
        """A mapping; when a thread's story begins with one, it began inside exec."""
        tid = mapping.tid
        if tid not in self._pids and tid not in self._newborn:
            self.enter(mapping.pid, tid, "execve", (), known=False)
        self.add(mapping._replace(at=self.next()))

    def add(self, event: Event) -> None:
        self._pids[event.tid] = event.pid
        if isinstance(event, Fork):
            self._newborn.add(event.child_tid)
            self._fork_calls.append((len(self.events), self._open.get(event.tid, -1)))
        elif isinstance(event, Exec) and event.old_tid != event.tid and event.old_tid in self._open:
            self._open[event.tid] = self._open.pop(event.old_tid)
        elif isinstance(event, Exit):
            self._open.pop(event.tid, None)
        self.events.append(event)

    def enter(self, pid: int, tid: int, name: str, args: tuple[int, ...], *, known: bool = True) -> None:
        """The thread enters a call."""
        self._pids[tid] = pid
        if tid in self._open:
            self.skip("calls whose return is missing")
        self._open[tid] = len(self.events)
        self.events.append(Call(self.next(), pid, tid, NEVER, name, args, None, known))

    def leave(self, pid: int, tid: int, name: str | None, result: int) -> None:
        """The thread returns from the call ``name``, or (None) from whatever call it is in."""
        first = tid not in self._pids
        self._pids[tid] = pid
        index = self._open.pop(tid, None)
        if index is None:
            if tid in self._newborn and (name is None or name in FORKING):
                self._newborn.discard(tid)  # the child's view of the fork that made it
            else:
                self.skip(BEFORE if first else "returns whose call is missing")
            return
        call = self.events[index]
        assert isinstance(call, Call)
        if name is not None and call.name != name:
            self.skip("calls whose return is missing")
            self.skip("returns whose call is missing")
            return
        self.events[index] = call._replace(done=self.next(), result=result)

    def finish(self) -> Recording:
        """The whole recording; fills in what only later lines tell about forks."""
        ends: dict[int, int] = {}  # tid to the position of its first exec or exit
        for event in self.events:
            if isinstance(event, Exec | Exit):
                ends.setdefault(event.tid, event.at)
        for index, call_index in self._fork_calls:
            fork = self.events[index]
            call = self.events[call_index] if call_index >= 0 else None
            assert isinstance(fork, Fork)
            self.events[index] = self._settle(fork, call if isinstance(call, Call) else None, ends)
        return Recording(self.header, self.events)

    def _settle(self, fork: Fork, call: Call | None, ends: dict[int, int]) -> Fork:
        child_pid = self._pids.get(fork.child_tid, fork.child_tid)
        flags = fork.flags
        if flags is None and call is not None:
            flags = _flags_of(call)
        if flags is None and child_pid == fork.pid:
            flags = CLONE_VM | CLONE_FILES | CLONE_THREAD
        if flags is None and call is not None and call.done != NEVER:
            # The arguments of clone3 lie in memory. A caller that came back only when the child had called exec
            # or ended had asked for that (CLONE_VFORK), which all users of clone3 do together with CLONE_VM.
            end = ends.get(fork.child_tid)
            flags = CLONE_VM | CLONE_VFORK if end is not None and end < call.done else 0
        if flags is not None and flags & CLONE_THREAD:
            child_pid = fork.pid
        return fork._replace(child_pid=child_pid, flags=flags)


def _flags_of(call: Call) -> int | None:
    """The clone flags that the arguments of a forking call show; None where they do not."""
    if call.name == "clone" and call.args:
        return call.args[0]
    return {"fork": 0, "vfork": CLONE_VM | CLONE_VFORK}.get(call.name)
