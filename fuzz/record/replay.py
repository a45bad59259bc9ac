"""Replays a recording in the machine and compares every result, mapping and final layout.

Which events count: all memory system calls (``syscalls.ADDRESS_SPACE`` and the memory options of prctl), page faults,
forks, execs and exits. Each is *modelled* (the machine does it and its result is compared) or counted as not modelled
under its kind. A failed exec leaves memory alone and a call that a signal interrupted did nothing: they count among the
events that have nothing to do with memory, as do all other calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from emulator.errors import KernelBug
from emulator.image import KernelImage
from emulator.machine import Machine
from emulator.profile import PROFILES, Profile
from emulator.sched.scheduler import Task
from fuzz.record.call_order import EXECS, CallOrder, is_memory_call
from fuzz.record.collector import FORKING
from fuzz.record.context import Context, Observer
from fuzz.record.events import Call, Event, Exec, Exit, Fault, Fork, Mapping, Recording, Signal
from fuzz.record.page_faults import PageFaults
from fuzz.record.processes import Processes
from fuzz.record.report import ReplayReport

_MACHINE: Final = "the machine's kernel"
STOPPED: Final = "events after the machine's kernel stopped"
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


class Replay:
    """One run. ``context.machine`` may be looked at afterwards."""

    def __init__(
        self,
        recording: Recording,
        image: KernelImage,
        profile: str = "6.18",
        observer: Observer | None = None,
        *,
        machine_type: type[Machine] = Machine,
        mremap_flags: int = 0,
    ) -> None:
        """``mremap_flags``: what every mremap which may move asks for besides, where a design adds flags."""
        self.recording = recording
        self.context = Context(recording, image, profile_of(recording, profile), observer, machine_type)
        self.report = self.context.report
        self.order = CallOrder(self.context, mremap_flags)
        self.faults = PageFaults(self.context, self.order)
        self.processes = Processes(self.context, self.faults)
        self.handlers: dict[type[Event], Callable[[Any], None]] = {
            Call: self._enter,
            Mapping: self._mapping,
            Fault: self._fault,
            Fork: self.processes.fork,
            Exec: self.processes.exec,
            Exit: self.processes.exit,
            Signal: self._signal,
        }

    def run(self) -> ReplayReport:
        """Replay to the end. A KernelBug ends it early, as a difference."""
        machine = self.context.machine
        after = self.context.observer.after
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
                    machine.call_ended()
                except KernelBug as bug:
                    self.context.differ(event, _MACHINE, "went on", str(bug), kind="kernel")
                    self._count_rest(event.at)
                    break
                after(event)
                for rule, detail, _ in machine.sched.warnings:
                    ours = f"{rule}: {detail}"
                    self.context.differ(event, _MACHINE, "did not complain", ours, kind="kernel")
            else:
                self._check_end()
        finally:
            self.context.listener.close()
        return self.report

    def _check_end(self) -> None:
        """With the last process everything must have been given back, but for the page cache."""
        machine = self.context.machine
        if self.processes.threads or not self.recording.events:
            return
        phys = machine.phys
        leaked = [folio for folio in phys.live.values() if not phys.is_zero(folio) and folio.mapcount()]
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
                self.context.differ(last, f"{what} after the last process", "none", str(count), kind="leak")

    def _count_rest(self, at: int) -> None:
        for event in self.recording.events:
            if event.at > at and _concerns_memory(event):
                self.report.unmodelled[STOPPED] += 1

    def _enter(self, call: Call) -> None:
        self.order.enter(self.processes.thread(call), call)

    def _return(self, call: Call) -> None:
        thread = self.processes.thread(call)
        thread.call = None
        if is_memory_call(call):
            self.order.leave(thread, call)
        elif call.name in EXECS:
            thread.exec_events = None  # left over if it failed after the point of no return
            if call.result:
                self.report.apart[f"{call.name} that failed"] += 1
        elif call.name in FORKING:
            if call.result is not None and call.result < 0:
                self.report.unmodelled[f"{call.name} that failed"] += 1
        else:
            self.report.apart[call.name] += 1
            thread.fds.follow(call)

    def _mapping(self, mapping: Mapping) -> None:
        thread = self.processes.thread(mapping)
        if thread.call is not None and thread.call.name in EXECS:
            if thread.exec_events is None:
                thread.exec_events = []
            thread.exec_events.append(mapping)
        else:
            self.order.mapping(thread, mapping)

    def _fault(self, fault: Fault) -> None:
        thread = self.processes.thread(fault)
        if thread.exec_events is not None:
            thread.exec_events.append(fault)
        else:
            self.faults.run(thread, fault)

    def _signal(self, signal: Signal) -> None:
        self.report.apart["signal delivered" if signal.delivered else "signal generated"] += 1


def _concerns_memory(event: Event) -> bool:
    if isinstance(event, Call):
        return is_memory_call(event)
    return not isinstance(event, Mapping | Signal)
