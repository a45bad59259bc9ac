"""When a recorded memory call takes effect in the machine, and comparing what it gave.

mmap, mprotect and brk take effect when perf tells of their mapping (that is under the mmap lock), all others at their
return. A call of another thread that is still under way is run earlier where only that explains what this thread got.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from emulator.uapi import result_name
from fuzz.record.collector import FORKING
from fuzz.record.context import Context, show
from fuzz.record.events import Call, Mapping
from fuzz.record.memory_calls import PRCTL_OF_MEMORY, MemoryCalls
from fuzz.record.syscalls import ADDRESS_SPACE
from fuzz.record.threads import Thread

EXECS: Final = ("execve", "execveat")
_ENDS: Final = ("exit", "exit_group")
_INTERRUPTED: Final = (-4, -512, -513, -514, -516)  # EINTR and the kernel's internal restart codes
_ARGUMENTS: Final = {"munmap": 2, "brk": 1, "mprotect": 3, "madvise": 3, "mremap": 5}  # shown; 6 else


def is_memory_call(call: Call) -> bool:
    """One that a thread runs in the machine; forks, execs and exits have events of their own."""
    name = call.name
    if name == "prctl":
        return call.arg(0) in PRCTL_OF_MEMORY
    return name in ADDRESS_SPACE and name not in FORKING and name not in EXECS and name not in _ENDS


class CallOrder:
    """Runs the memory calls of a recording."""

    def __init__(self, context: Context, mremap_flags: int = 0) -> None:
        self.context = context
        self.calls = MemoryCalls(context.image, context.inodes, mremap_flags)

    def enter(self, thread: Thread, call: Call) -> None:
        """The thread is in that call from now on."""
        thread.call = call
        thread.ran = False
        thread.told.clear()
        if is_memory_call(call) and thread.space is not None:
            thread.space.in_flight[call.tid] = thread

    def leave(self, thread: Thread, call: Call) -> None:
        """The call returns: if it has not taken effect yet, it does now."""
        self._run(thread, call, None)
        self._compare(thread, call)

    def mapping(self, thread: Thread, mapping: Mapping) -> None:
        """perf tells of a mapping, in a call or because the stack grew."""
        call = thread.call
        if call is not None and is_memory_call(call):
            self._run(thread, call, mapping)
            if isinstance(thread.result, str):
                return  # not modelled, and counted so at its return
        if thread.space is None or not thread.space.whole:
            return
        if thread.told:
            self.context.compare_mapping(mapping, thread.told.pop(0))
        else:
            self.context.differ(mapping, "a mapping", show(mapping), "told of none", kind="layout")

    def hurry(self, thread: Thread, explained: Callable[[], bool]) -> None:
        """Run calls of other threads, in the order in which they were entered, until ``explained``."""
        space = thread.space
        if space is None:
            return
        for other in list(space.in_flight.values()):
            if explained():
                return
            if other is not thread and other.call is not None and other.call.result is not None:
                self._run(other, other.call, None)
                self.context.report.notes["calls that took effect before they returned"] += 1

    def _run(self, thread: Thread, call: Call, mapping: Mapping | None) -> None:
        """Let the machine run the call, once."""
        if thread.ran:
            return
        thread.ran = True
        if thread.space is not None:
            thread.space.in_flight.pop(thread.tid, None)
        if call.result in _INTERRUPTED:
            thread.result = f"{call.name} interrupted by a signal"
            return
        self._agree_on_address(thread, call, mapping)
        if thread.space is not None:
            self.context.observer.call(thread, call)
        self.context.listener.take()
        thread.result = self.calls.run(thread, call, mapping)
        thread.told = self.context.listener.take()

    def _agree_on_address(self, thread: Thread, call: Call, mapping: Mapping | None) -> None:
        """The kernel chose this address: if the machine would not, calls under way may explain it."""
        if thread.space is None or not thread.space.in_flight or not call.known:
            return
        if self.calls.predicted_address(thread, call, mapping) is not None:
            self.hurry(thread, lambda: self.calls.predicted_address(thread, call, mapping) == call.result)

    def _compare(self, thread: Thread, call: Call) -> None:
        result = thread.result
        report = self.context.report
        if isinstance(result, str):
            report.unmodelled[result] += 1
            return
        assert result is not None
        assert call.result is not None
        if result != call.result and thread.space is not None and not thread.space.whole:
            report.unmodelled[f"{call.name} of what exec mapped, which the source does not show"] += 1
            return
        report.modelled[call.name] += 1
        report.results_compared += 1
        if result != call.result:
            self.context.differ(call, _describe(call), result_name(call.result), result_name(result))
        elif thread.told and self.context.recording.header.source == "perf":
            ours = str(thread.told[0])
            self.context.differ(call, _describe(call), "told of no such mapping", ours, kind="layout")


def _describe(call: Call) -> str:
    args = ", ".join(f"{arg:x}" for arg in call.args[: _ARGUMENTS.get(call.name, 6)])
    return f"{call.name}({args})"
