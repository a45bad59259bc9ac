"""Replays a recording in the machine and compares every result, mapping and final layout.

Which events count: all memory system calls (``syscalls.ADDRESS_SPACE`` and the memory options of prctl), page faults,
forks, execs and exits. Each is *modelled* (the machine does it and its result is compared) or counted as not modelled
under its kind. A failed exec leaves memory alone and a call that a signal interrupted did nothing: they count among the
events that have nothing to do with memory, as do all other calls.

When a call takes effect: mmap, mprotect and brk when perf tells of their mapping (that is under the mmap lock), a
fork at the fork event, all others at their return. A call of another thread that is still under way is run earlier
where only that explains what this thread got.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from emulator.errors import KernelBug
from emulator.hw.pte import RW
from emulator.image import KernelImage
from emulator.machine import Machine
from emulator.profile import PROFILES, Profile
from emulator.sched.scheduler import Task
from emulator.uapi import result_name
from fuzz.record.collector import CLONE_FILES, CLONE_VFORK, CLONE_VM, FORKING
from fuzz.record.events import Call, Event, Exec, Exit, Fault, Fork, Layout, Mapping, Recording, Signal
from fuzz.record.files import FdTable, Inodes
from fuzz.record.layout import first_difference, format_line, machine_layout
from fuzz.record.memory_calls import PRCTL_OF_MEMORY, MemoryCalls
from fuzz.record.new_image import STACK, CannotBuild, NewImage
from fuzz.record.page_faults import SIGBUS_NUMBER, PageFaults
from fuzz.record.report import Difference, ReplayReport
from fuzz.record.syscalls import ADDRESS_SPACE
from fuzz.record.threads import Listener, Space, Thread, Told, told

_EXECS: Final = ("execve", "execveat")
_ENDS: Final = ("exit", "exit_group")
_INTERRUPTED: Final = (-4, -512, -513, -514, -516)  # EINTR and the kernel's internal restart codes
_EFAULT: Final = -14
_SETTINGS: Final = ("max_map_count", "mmap_min_addr")


def replay_recording(recording: Recording, image: KernelImage, profile: str = "6.18") -> ReplayReport:
    """Replay all of ``recording`` on a fresh machine of x86-64 geometry with that kernel image."""
    return Replay(recording, image, profile).run()


def profile_of(recording: Recording, name: str) -> Profile:
    """The profile with the settings that the recorded kernel had."""
    settings = recording.header.settings
    profile = PROFILES[name]
    known = {key: int(settings[key]) for key in _SETTINGS if settings.get(key, "").isdecimal()}
    return profile._replace(
        max_map_count=known.get("max_map_count", profile.max_map_count),
        mmap_min_addr=known.get("mmap_min_addr", profile.mmap_min_addr),
        thp_always=settings.get("thp_enabled") == "always",
    )


class Observer:
    """Told of everything that a replay is about to do in the machine. Does nothing by itself."""

    def call(self, thread: Thread, call: Call) -> None:
        """A memory call."""

    def fault(self, thread: Thread, fault: Fault) -> None:
        """A page fault."""

    def fork(self, parent: Thread, child: Thread) -> None:
        """A fork that copied the address space; done already."""

    def leave(self, thread: Thread) -> None:
        """The end of a thread, or an exec: it leaves its address space."""


class Replay:
    """One run. ``machine`` may be looked at afterwards."""

    def __init__(
        self,
        recording: Recording,
        image: KernelImage,
        profile: str = "6.18",
        observer: Observer | None = None,
    ) -> None:
        self.recording = recording
        self.image: Any = image
        self.machine = Machine(image, "x86-64", profile_of(recording, profile))
        self.machine.procs.clear()
        self.report = ReplayReport(recording.header)
        self.observer = observer or Observer()
        self.inodes = Inodes(self.machine, recording.header.filesystems)
        self.calls = MemoryCalls(image, self.inodes)
        self.listener = Listener(image)
        self.threads: dict[int, Thread] = {}
        self.layouts = {(layout.tid, layout.when, layout.nth): layout for layout in recording.layouts}
        self.execs: dict[int, int] = {}  # tid to the number of its execs
        self.faults = PageFaults(recording, image, self.report)
        self.handlers: dict[type[Event], Callable[[Any], None]] = {
            Call: self._enter,
            Mapping: self._mapping,
            Fault: self._fault,
            Fork: self._fork,
            Exec: self._exec,
            Exit: self._exit,
            Signal: self._signal,
        }

    def run(self) -> ReplayReport:
        """Replay to the end. A KernelBug ends it early, as a difference."""
        machine = self.machine
        machine.sched.current = Task(0, 0)
        event: Event
        try:
            for event, returned in self.recording.timeline():
                machine.store_log.clear()
                machine.sched.warnings.clear()
                try:
                    if returned:
                        assert isinstance(event, Call)
                        self._return(event)
                    else:
                        self.handlers[type(event)](event)
                except KernelBug as bug:
                    self._differ(event, "the machine's kernel", "went on", str(bug))
                    self._count_rest(event.at)
                    break
                for rule, detail, _ in machine.sched.warnings:
                    self._differ(event, "the machine's kernel", "did not complain", f"{rule}: {detail}")
            else:
                self._check_end()
        finally:
            self.listener.close()
        return self.report

    def _check_end(self) -> None:
        """With the last process everything must have been given back, but for the page cache."""
        machine = self.machine
        if self.threads or not self.recording.events:
            return
        zero = machine.phys.zero_folio
        leaked = [folio for folio in machine.phys.live.values() if folio is not zero and folio.mapcount()]
        if machine.committed:  # Linux loses some too: a shrinking mremap to a new address, a failed MAP_FIXED
            self.report.notes["pages that are still charged after the last process"] = machine.committed
        left = {
            "anon_vmas": len(machine.anon_vmas_live),
            "mapped folios": len(leaked),
            "anonymous folios": sum(folio.anon for folio in machine.phys.live.values()),
        }
        for what, count in left.items():
            if count:
                last = self.recording.events[-1]
                self._differ(last, f"{what} after the last process", "none", str(count))

    def _count_rest(self, at: int) -> None:
        for event in self.recording.events:
            if event.at > at and self._concerns_memory(event):
                self.report.unmodelled["events after the machine's kernel stopped"] += 1

    @staticmethod
    def _concerns_memory(event: Event) -> bool:
        if isinstance(event, Call):
            return event.name in ADDRESS_SPACE or (event.name == "prctl" and event.arg(0) in PRCTL_OF_MEMORY)
        return not isinstance(event, Mapping | Signal)

    def _differ(self, event: Event, what: str, recorded: str, machine: str) -> None:
        self.report.differences.append(Difference(event.at, event.pid, event.tid, what, recorded, machine))

    def _thread(self, event: Event) -> Thread:
        """The thread; one whose beginning was not recorded has an unknown address space."""
        thread = self.threads.get(event.tid)
        if thread is None:
            siblings = (other for other in self.threads.values() if other.pid == event.pid)
            sibling = next(siblings, None)
            space, fds = (sibling.space, sibling.fds) if sibling else (None, FdTable())
            thread = self.threads[event.tid] = Thread(event.pid, event.tid, space, fds)
        return thread

    # ---- system calls

    def _enter(self, call: Call) -> None:
        thread = self._thread(call)
        thread.call = call
        thread.ran = False
        thread.told.clear()
        if self._is_memory_call(call) and thread.space is not None:
            thread.space.in_flight[call.tid] = thread

    @staticmethod
    def _is_memory_call(call: Call) -> bool:
        """One that this thread runs in the machine; forks, execs and exits have events of their own."""
        name = call.name
        if name == "prctl":
            return call.arg(0) in PRCTL_OF_MEMORY
        return name in ADDRESS_SPACE and name not in FORKING and name not in _EXECS and name not in _ENDS

    def _return(self, call: Call) -> None:
        thread = self._thread(call)
        thread.call = None
        if self._is_memory_call(call):
            self._run_call(thread, call, None)
            self._compare_result(thread, call)
        elif call.name in _EXECS and thread.exec_events is not None:
            thread.exec_events = None  # failed after the point of no return; the process is about to be killed
        elif call.name in FORKING and call.result is not None and call.result < 0:
            self.report.unmodelled[f"{call.name} that failed"] += 1
        elif call.name not in FORKING and call.name not in _EXECS:
            self.report.apart[call.name] += 1
            thread.fds.follow(call)
        elif call.name in _EXECS and call.result:
            self.report.apart[f"{call.name} that failed"] += 1

    def _run_call(self, thread: Thread, call: Call, mapping: Mapping | None) -> None:
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
            self.observer.call(thread, call)
        self.listener.take()
        thread.result = self.calls.run(thread, call, mapping)
        thread.told = self.listener.take()

    def _agree_on_address(self, thread: Thread, call: Call, mapping: Mapping | None) -> None:
        """The kernel chose this address: if the machine would not, calls under way may explain it."""
        if thread.space is None or not thread.space.in_flight or not call.known:
            return
        chosen = self.calls.predicted_address(thread, call, mapping)
        if chosen is not None:
            self._hurry(
                thread, lambda: self.calls.predicted_address(thread, call, mapping) == call.result
            )

    def _hurry(self, thread: Thread, explained: Callable[[], bool]) -> None:
        """Run calls of other threads, in the order in which they were entered, until ``explained``."""
        space = thread.space
        assert space is not None
        for other in list(space.in_flight.values()):
            if explained():
                return
            if other is not thread and other.call is not None and other.call.result is not None:
                self._run_call(other, other.call, None)
                self.report.notes["calls that took effect before they returned"] += 1

    def _compare_result(self, thread: Thread, call: Call) -> None:
        result = thread.result
        report = self.report
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
            self._differ(call, _describe(call), result_name(call.result), result_name(result))
        elif thread.told and self.recording.header.source == "perf":
            self._differ(call, _describe(call), "told of no such mapping", str(thread.told[0]))

    # ---- mappings

    def _mapping(self, mapping: Mapping) -> None:
        thread = self._thread(mapping)
        call = thread.call
        if call is not None and call.name in _EXECS:
            if thread.exec_events is None:
                thread.exec_events = []
            thread.exec_events.append(mapping)
            return
        if call is not None and self._is_memory_call(call):
            self._run_call(thread, call, mapping)
            if isinstance(thread.result, str):
                return  # not modelled, and counted so at its return
        if thread.space is None or not thread.space.whole:
            return
        if not thread.told:
            self._differ(mapping, "a mapping", _show(mapping), "told of none")
            return
        self._compare_mapping(mapping, thread.told.pop(0))

    def _compare_mapping(self, mapping: Mapping, ours: Told) -> None:
        self.report.mappings_compared += 1
        theirs = (mapping.start, mapping.end, mapping.perms, mapping.offset)
        inode = self.inodes.keys.get(ours.file.f_mapping.label) if ours.file is not None else None
        same_file = inode == (mapping.device, mapping.inode, mapping.generation) if inode else not mapping.inode
        if ours[:4] != theirs or not same_file:
            self._differ(mapping, "a mapping", _show(mapping), f"{ours}{'' if same_file else ' of another file'}")

    # ---- page faults

    def _fault(self, fault: Fault) -> None:
        thread = self._thread(fault)
        if thread.exec_events is not None:
            thread.exec_events.append(fault)
            return
        if fault.address >= self.machine.geometry.task_size:
            self.report.apart["faults on kernel addresses"] += 1
            return
        if thread.space is None:
            self.report.unmodelled["faults in an address space of which nothing is known"] += 1
            return
        self._access(thread, fault)

    def _access(self, thread: Thread, fault: Fault) -> None:
        space = thread.space
        assert space is not None
        if space.in_flight:
            self._hurry(thread, lambda: self.faults.allowed(space.mm, fault))
        self.observer.fault(thread, fault)
        self.listener.take()
        result = self.faults.handle(space.mm, fault)
        thread.told = self.listener.take()
        self._judge_access(thread, fault, result)

    def _judge_access(self, thread: Thread, fault: Fault, result: int) -> None:
        report = self.report
        signal = self.faults.signals.get(fault.at, 0)
        fatal = bool(signal)
        call = thread.call
        if result and fault.kernel and not fatal and call is not None:
            fatal = call.result == _EFAULT  # the kernel does not signal: the call fails
        assert thread.space is not None
        if signal == SIGBUS_NUMBER and not result and self.faults.learn_size(thread.space.mm, fault.address):
            report.unmodelled["page faults past the end of a file of unknown size"] += 1
            return
        report.modelled["page fault by the kernel" if fault.kernel else "page fault"] += 1
        if result and not fatal and not self.faults.tells_signals and not fault.kernel:
            report.notes["faults that fail in the machine; the source tells of no signals"] += 1
            return
        report.results_compared += 1
        if bool(result) != fatal:
            kind = "write to" if self.faults.access_of(fault).permission & RW else "access to"
            what = f"{kind} {fault.address:x}{' by the kernel' if fault.kernel else ''}"
            ours = result_name(result) if result else "succeeds"
            self._differ(fault, what, "a signal" if fatal else "succeeds", ours)

    def _signal(self, signal: Signal) -> None:
        self.report.apart["signal delivered" if signal.delivered else "signal generated"] += 1

    # ---- tasks

    def _fork(self, fork: Fork) -> None:
        parent = self._thread(fork)
        flags = fork.flags or 0
        space = parent.space
        if space is not None and flags & CLONE_VM:
            space.mm.mm_users += 1
        elif space is not None:
            child_mm = self.machine.new_mm(fork.child_pid)
            if self.image.fork.dup_mmap(child_mm, space.mm):
                self._differ(fork, "fork", "succeeds", "fails")
                space = None
            else:
                self.machine.procs[fork.child_pid] = child_mm
                placed = space.placed
                space = Space(child_mm, whole=space.whole)
                space.placed = placed
        fds = parent.fds if flags & CLONE_FILES else parent.fds.copy()
        child = self.threads[fork.child_tid] = Thread(fork.child_pid, fork.child_tid, space, fds)
        if space is not None and space is not parent.space:
            self.observer.fork(parent, child)
        if fork.flags is None:
            self.report.unmodelled["forks of which it is not known what they share"] += 1
        elif parent.space is None:
            self.report.unmodelled["forks of an address space of which nothing is known"] += 1
        else:
            kind = "vfork" if flags & CLONE_VFORK else "clone of a thread" if flags & CLONE_VM else "fork"
            self.report.modelled[kind] += 1

    def _exec(self, event: Exec) -> None:
        thread = self._thread(event)
        nth = self.execs.get(event.tid, 0)
        self.execs[event.tid] = nth + 1
        if event.old_tid != event.tid and event.old_tid in self.threads:
            old = self.threads.pop(event.old_tid)
            self._leave_space(thread)
            thread.space, thread.fds, thread.exec_events = old.space, old.fds, old.exec_events
            thread.call = old.call
        steps = thread.exec_events
        thread.exec_events = None
        mm = self.machine.new_mm(event.pid)
        mm.merge_any = thread.space.mm.merge_any if thread.space is not None else False
        shown = self.layouts.get((event.tid, "exec", nth))
        self._leave_space(thread)
        thread.fds = thread.fds.copy()
        try:
            self._build(event, NewImage(self.image, mm, self.inodes, shown), steps, thread)
            thread.space = Space(mm, whole=True)
            self.report.modelled["exec"] += 1
        except CannotBuild as problem:
            # Only what the process maps by itself is known then.
            thread.space = Space(mm, whole=False)
            self.report.unmodelled[f"exec: {problem}"] += 1
        self.machine.procs[event.pid] = mm
        if shown is not None and thread.space.whole:
            self._compare_layout(event, thread.space, shown, "layout after exec")

    def _build(self, event: Exec, new: NewImage, steps: list[Event] | None, thread: Thread) -> None:
        if steps is None:
            raise CannotBuild("the source does not show what exec maps")
        new.begin([step for step in steps if isinstance(step, Mapping)])
        thread.space = Space(new.mm, whole=True)
        for step in steps:
            if isinstance(step, Mapping):
                new.unmap_tail(step)
                self.listener.take()
                new.map(step)
                news = self.listener.take()
                if step.name == STACK or not news:  # special mappings are not told of by a function we listen to
                    area = new.mm.mm_mt.lookup(step.start)
                    news = [told(area)] if area is not None else []
                if news:
                    self._compare_mapping(step, news[-1])
                else:
                    self._differ(step, "a mapping of exec", _show(step), "none")
            elif isinstance(step, Fault):
                new.unmap_tail(None)
                self._access(thread, step)
        new.unmap_tail(None)
        if new.wrong_place is not None:
            recorded, ours = new.wrong_place
            self._differ(event, "place of the vdso", hex(recorded), result_name(ours))

    def _exit(self, event: Exit) -> None:
        thread = self._thread(event)
        space = thread.space
        self.threads.pop(event.tid, None)
        if space is None:
            self.report.unmodelled["ends of processes of which nothing is known"] += 1
            return
        shown = self.layouts.get((event.tid, "exit", 0))
        if shown is not None and space.whole and (space.mm.mm_users == 1 or self._others_wait(thread)):
            self._compare_layout(event, space, shown, "layout at the end")
        self.report.modelled["exit" if space.mm.mm_users == 1 else "exit of a thread"] += 1
        self._leave_space(thread)

    def _others_wait(self, thread: Thread) -> bool:
        """All other users of the address space wait in vfork (or exec has left them behind)."""
        return all(
            other.call is not None and other.call.name in FORKING
            for other in self.threads.values()
            if other.space is thread.space
        )

    def _leave_space(self, thread: Thread) -> None:
        """The thread uses its address space no longer; with the last user it ends."""
        space = thread.space
        if space is None:
            return
        self.observer.leave(thread)
        thread.space = None
        space.in_flight.pop(thread.tid, None)
        mm = space.mm
        if mm.mm_users > 1:
            mm.mm_users -= 1
            return
        self.image.fork.sys_exit(mm)

    def _compare_layout(self, event: Event, space: Space, shown: Layout, what: str) -> None:
        self.report.layouts_compared += 1
        difference = first_difference(shown.lines, machine_layout(space.mm, self.inodes.keys))
        if difference is not None:
            theirs, ours = difference
            self._differ(
                event,
                what,
                format_line(theirs) if theirs else "ends before",
                format_line(ours) if ours else "ends before",
            )


def _show(mapping: Mapping) -> str:
    return f"{mapping.start:x}-{mapping.end:x} {mapping.perms} offset {mapping.offset:x} {mapping.name}"


def _describe(call: Call) -> str:
    counts = {"munmap": 2, "brk": 1, "mprotect": 3, "madvise": 3, "mremap": 5}
    args = ", ".join(f"{arg:x}" for arg in call.args[: counts.get(call.name, 6)])
    return f"{call.name}({args})"
