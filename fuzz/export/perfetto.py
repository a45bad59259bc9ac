"""``vmafuzz export --format perfetto``: a run as a trace that ui.perfetto.dev opens (JSON trace event format).

Tasks are tracks, operations slices, tracepoints and preemption points instants, VMAs of each process a counter. There
is no clock: a step of a workload takes a millisecond, and what happens in it is spread evenly over it; an event of a
recording takes a microsecond.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from emulator.errors import KernelBug
from emulator.machine import Machine
from emulator.sched.scheduler import Scheduler, Task
from emulator.tracepoints import TraceEvent, Tracer
from emulator.uapi import result_name
from emulator.workload import Op, Outcome, Workload
from fuzz.record.call_order import is_memory_call
from fuzz.record.context import Observer
from fuzz.record.events import NEVER, Call, Event, Exec, Exit, Fault, Fork, Recording
from fuzz.record.replay import Replay
from fuzz.workload.text import show_op

if TYPE_CHECKING:
    from emulator.image import KernelImage
    from oracle.finding import Finding

STEP: Final = 1000  # microseconds of a workload's step

Json = dict[str, Any]


class Trace:
    """Trace events as they come, with the names of the tracks that they stand on."""

    def __init__(self) -> None:
        self.events: list[Json] = []
        self._tracks: dict[tuple[int, int], str] = {}

    def track(self, pid: int, tid: int, name: str) -> None:
        """Make a track, unless it is there."""
        if (pid, tid) not in self._tracks:
            self._tracks[pid, tid] = name

    def slice(self, name: str, pid: int, tid: int, start: float, end: float, args: Json) -> None:
        length = round(max(end - start, 0), 3)
        self._add("X", name, pid, tid, start, dur=length, args=args)

    def instant(self, name: str, pid: int, tid: int, at: float, args: Json) -> None:
        self._add("i", name, pid, tid, at, s="t", args=args)

    def counter(self, name: str, pid: int, at: float, value: int) -> None:
        self._add("C", name, pid, 0, at, args={name: value})

    def _add(self, kind: str, name: str, pid: int, tid: int, at: float, **more: Any) -> None:
        self.events.append({"ph": kind, "name": name, "pid": pid, "tid": tid, "ts": round(at, 3), **more})

    def text(self, **about: str) -> str:
        """The whole file."""
        names: list[Json] = []
        for pid in dict.fromkeys(pid for pid, _ in self._tracks):
            names.append(
                {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": f"process {pid}"}}
            )
        for (pid, tid), name in self._tracks.items():
            names.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}})
        body = {"displayTimeUnit": "ms", "otherData": about, "traceEvents": names + self.events}
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n"


# ---- workloads


class _Scheduler(Scheduler):
    """Tells of each preemption point that a task passes in a collision."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: Callable[[str], None] = lambda name: None

    def _point(self, name: str) -> None:
        self.passed(name)
        super()._point(name)


class _Machine(Machine):
    scheduler: ClassVar[type[Scheduler]] = _Scheduler
    sched: _Scheduler


class _Steps:
    """What happens in a step, in order: (task, what, name, arguments)."""

    def __init__(self, image: KernelImage, machine: _Machine) -> None:
        self.machine = machine
        self.happened: list[tuple[int, str, str, Json]] = []
        machine.sched.passed = self._passed
        self._tracer = Tracer(image, self._hear)
        self._detach = image.attach("entry.run_op", self._run_op)

    def close(self) -> None:
        self._detach()
        self._tracer.close()

    def _note(self, what: str, name: str, args: Json) -> None:
        self.happened.append((self.machine.sched.current.index, what, name, args))

    def _passed(self, name: str) -> None:
        self._note("instant", name, {})

    def _hear(self, machine: Machine, event: TraceEvent) -> None:
        if machine is self.machine:
            self._note("instant", event.name, event.args())

    def _run_op(self, original: Callable[..., Any], machine: Machine, op: Op, task: Task) -> Any:
        self._note("begin", op.kind, {})
        result = original(machine, op, task)
        self._note("end", op.kind, {})
        return result


def export_workload(
    image: KernelImage, workload: Workload, profile: str, findings: tuple[Finding, ...] = ()
) -> str:
    """The trace of one workload under a design; ``findings`` of its judge become instants at their steps."""
    trace = Trace()
    machine = _Machine(image, workload.geometry, profile)
    steps = _Steps(image, machine)
    try:
        for number, step in enumerate(workload.steps):
            steps.happened.clear()
            bug = None
            outcomes: list[Outcome] = []
            try:
                outcomes = machine.run_step(step)
            except KernelBug as raised:
                bug = raised
            _show_step(trace, number, step.ops, outcomes, steps.happened)
            for found in findings:
                if found.step == number:
                    proc = step.ops[found.op or 0].proc
                    where = (proc, found.op or 0, number * STEP + STEP - 1)
                    trace.instant(f"finding: {found.signature}", *where, {"detail": found.detail})
            if bug is not None:
                trace.instant(
                    f"BUG: {bug.rule}", step.ops[0].proc, 0, number * STEP + STEP - 1, {"detail": bug.detail}
                )
                break
            for label, mm in machine.procs.items():
                trace.counter("VMAs", label, number * STEP + STEP - 1, len(mm.mm_mt))
    finally:
        steps.close()
    return trace.text(design=image.design.name, profile=profile, world=workload.geometry)


def _show_step(
    trace: Trace,
    number: int,
    ops: tuple[Op, ...],
    outcomes: list[Outcome],
    happened: list[tuple[int, str, str, Json]],
) -> None:
    """Spread what happened over the step: slices from the beginning of an op to its end, the rest between."""
    tick = STEP / (len(happened) + 1)
    begun: dict[int, float] = {}
    for position, (task, what, name, args) in enumerate(happened):
        at = number * STEP + tick * position
        op = ops[task]
        if what == "begin":
            begun[task] = at
            trace.track(op.proc, task, f"task {task}")
        elif what == "instant":
            trace.instant(name, op.proc, task, at, args)
        else:
            _show_op(trace, number, op, task, outcomes, begun.pop(task), at)
    for task, start in begun.items():  # the kernel did not survive them
        _show_op(trace, number, ops[task], task, [], start, number * STEP + STEP - 1)


def _show_op(
    trace: Trace, number: int, op: Op, task: int, outcomes: list[Outcome], start: float, end: float
) -> None:
    args: Json = {"step": number, "op": show_op(op).strip()}
    if outcomes:
        args["result"] = result_name(outcomes[task].ret)
    trace.slice(op.kind, op.proc, task, start, end, args)


# ---- recordings


class _Events(Observer):
    """Turns each event of a replay into trace events, with what the tracepoints told in it."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.machine: Machine | None = None
        self._entered: dict[int, Call] = {}
        self._told: list[TraceEvent] = []
        self._vmas: dict[int, int] = {}

    def hear(self, machine: Machine, event: TraceEvent) -> None:
        if machine is self.machine:
            self._told.append(event)

    def after(self, event: Event) -> None:
        at, trace = event.at, self.trace
        pid, tid = event.pid, event.tid
        if isinstance(event, Call):
            if self._entered.get(tid) is event:
                at = event.done
                del self._entered[tid]
                if is_memory_call(event):
                    args = {
                        "args": [hex(arg) for arg in event.args],
                        "result": result_name(event.result or 0),
                    }
                    self._slice(event, event.name, event.at, event.done, args)
            elif event.done != NEVER:
                self._entered[tid] = event
        elif isinstance(event, Fault):
            kernel = "page fault by the kernel" if event.kernel else "page fault"
            self._slice(
                event, kernel, at, at + 1, {"address": hex(event.address), "error_code": event.error_code}
            )
        elif isinstance(event, Fork | Exec | Exit):
            trace.track(pid, tid, f"task {tid}")
            trace.instant(type(event).__name__.lower(), pid, tid, at, {})
        for told in self._told:
            trace.track(pid, tid, f"task {tid}")
            trace.instant(told.name, pid, tid, at, told.args())
        if self._told or not isinstance(event, Fault | Call):
            self._count(at)
        self._told.clear()

    def _slice(self, event: Event, name: str, start: int, end: int, args: Json) -> None:
        self.trace.track(event.pid, event.tid, f"task {event.tid}")
        self.trace.slice(name, event.pid, event.tid, start, end, args)

    def _count(self, at: int) -> None:
        assert self.machine is not None
        for label, mm in self.machine.procs.items():
            if self._vmas.get(label) != len(mm.mm_mt):
                self._vmas[label] = len(mm.mm_mt)
                self.trace.counter("VMAs", label, at, len(mm.mm_mt))


def export_recording(image: KernelImage, recording: Recording, profile: str) -> str:
    """The trace of a recording as the machine runs it: calls that concern memory, faults, forks, execs and exits."""
    trace = Trace()
    events = _Events(trace)
    replay = Replay(recording, image, profile, events)
    events.machine = replay.context.machine
    tracer = Tracer(image, events.hear)
    try:
        replay.run()
    finally:
        tracer.close()
    program = " ".join(recording.header.program)
    return trace.text(design=image.design.name, profile=profile, program=program)
