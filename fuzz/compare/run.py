"""Runs workloads and recordings under several designs, each in a process of its own.

A recording is loaded once, before the processes are forked, and what a design leaves behind goes with its process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from emulator.designs.base import Design
from emulator.errors import KernelBug
from emulator.machine import Machine
from emulator.mm_types import MmStruct
from emulator.tracepoints import TraceEvent, Tracer
from emulator.uapi import MREMAP_MAYMOVE, MREMAP_RELOCATE_ANON
from emulator.workload import Op, Step, Workload
from fuzz import designs
from fuzz.compare.figures import Figures
from fuzz.compare.meter import MeteredMachine
from fuzz.compare.processes import each
from fuzz.record.context import Observer
from fuzz.record.events import Call, Event, Exec, Exit, Fork, Recording
from fuzz.record.importer import import_file
from fuzz.record.replay import STOPPED, Replay
from fuzz.record.threads import Thread
from fuzz.target import DEFAULT_REFERENCE, Target
from oracle.judge import Judge
from oracle.kernel import oops_place

if TYPE_CHECKING:
    from emulator.image import KernelImage


class Input(NamedTuple):
    """What is compared: a workload, or the place of a recording."""

    path: Path
    workload: Workload | None


class Comparison(NamedTuple):
    """The figures of each design, in the order asked for."""

    profile: str
    inputs: tuple[str, ...]
    figures: dict[str, Figures]

    def for_json(self) -> dict[str, Any]:
        """``--json``."""
        return {
            "profile": self.profile,
            "inputs": list(self.inputs),
            "designs": {name: figures.for_json() for name, figures in self.figures.items()},
        }


def run(
    names: Sequence[str], inputs: Sequence[Input], profile: str, tell: Callable[[str], None]
) -> Comparison:
    """Run everything. ``tell`` hears what has been done. Raises ``UsageError`` for what is no design or recording."""
    classes = [Target(name, DEFAULT_REFERENCE, profile).check() for name in names]
    for design in classes:
        designs.load_image(design)  # what is wrong with it is said before anything runs
    figures = {name: Figures() for name in names}
    workloads = [(one.path, one.workload) for one in inputs if one.workload is not None]
    if workloads:
        flags = _all_flags(classes)

        def on_workloads(name: str) -> Figures:
            image, reference = Target(name, DEFAULT_REFERENCE, profile).images()
            return run_workloads(image, reference, workloads, profile, flags)

        for name, one in each(names, on_workloads):
            figures[name].add(one)
            tell(f"{name}: {len(workloads)} workloads")
    for place in (one.path for one in inputs if one.workload is None):
        for name, one in each(names, partial(_on_recording, import_file(place), profile, str(place))):
            figures[name].add(one)
            tell(f"{name}: {place}")
    return Comparison(profile, tuple(str(one.path) for one in inputs), figures)


def _on_recording(recording: Recording, profile: str, place: str, name: str) -> Figures:
    image, _ = Target(name, DEFAULT_REFERENCE, profile).images()
    return run_recording(image, recording, profile, place)


def _all_flags(classes: Sequence[type[Design]]) -> int:
    flags = 0
    for design in classes:
        flags |= design.mremap_flags
    return flags


# ---- workloads


def run_workloads(
    image: KernelImage,
    reference: KernelImage | None,
    workloads: Sequence[tuple[Path, Workload]],
    profile: str,
    flags: int = 0,
) -> Figures:
    """Figures of one design over all workloads: each runs once to be measured, and once before the judge.

    ``flags``: MREMAP_* bits of any design. A design does not get those that it does not know.
    """
    judge = Judge(image, reference, profile=profile)
    total = Figures()
    foreign = flags & ~image.design.mremap_flags
    tracer = Tracer(image, _hear)
    for path, workload in workloads:
        own = workload._replace(steps=tuple(_without(step, foreign) for step in workload.steps))
        machine = MeteredMachine(image, own.geometry, profile)
        stopped = ""
        try:
            for step in own.steps:
                machine.run_step(step)
        except KernelBug as bug:
            stopped = str(bug)
        except Exception as error:
            stopped = _oops(error, image)
        figures = machine.finish()
        if stopped:
            figures.stopped.append(f"{path}: step {figures.steps - 1}: {stopped}")
        try:
            for found in judge.run(own).findings:
                figures.find(found.oracle, found.signature)
        except Exception as error:
            figures.find("kernel", f"kernel/oops: {_oops(error, image)}")
        total.add(figures)
    tracer.close()
    return total


def _without(step: Step, foreign: int) -> Step:
    if not any(
        op.kind == "mremap" and op.args[3] & foreign and op.args[3] & MREMAP_MAYMOVE for op in step.ops
    ):
        return step
    return step._replace(ops=tuple(_stripped(op, foreign) for op in step.ops))


def _stripped(op: Op, foreign: int) -> Op:
    if op.kind != "mremap" or not op.args[3] & MREMAP_MAYMOVE:
        return op
    return op._replace(args=(*op.args[:3], op.args[3] & ~foreign, op.args[4]))


def _hear(machine: Machine, event: TraceEvent) -> None:
    if isinstance(machine, MeteredMachine):
        machine.hear(event)


def _oops(error: Exception, image: KernelImage) -> str:
    """What a design's code did that no kernel survives. An error of ours goes through."""
    place = oops_place(error)
    if not (image.design.replaces and place) and not designs.raised_in_design(error, type_of(image)):
        raise error
    return f"{designs.one_line(error)}{' in ' + place if place else ''}"


def type_of(image: KernelImage) -> type[Design]:
    """The design's class."""
    design = image.design
    return design if isinstance(design, type) else type(design)


# ---- recordings


class _Watcher(Observer):
    """Measures after each event of a replay."""

    def __init__(self) -> None:
        self.machine: MeteredMachine | None = None
        self.calls: list[tuple[Thread, Call, MmStruct, int]] = []  # of this event, with the heap's end before

    def call(self, thread: Thread, call: Call) -> None:
        if thread.space is not None:
            self.calls.append((thread, call, thread.space.mm, thread.space.mm.brk))

    def leave(self, thread: Thread) -> None:
        if self.machine is not None and thread.space is not None and thread.space.mm.mm_users == 1:
            self.machine.leave(thread.space.mm)

    def after(self, event: Event) -> None:
        machine = self.machine
        assert machine is not None
        if machine.store_log or self.calls or isinstance(event, Fork | Exec | Exit):
            machine.account()
        for thread, call, mm, brk in self.calls:
            result = thread.result
            if isinstance(result, int):
                machine.look(call.name, call.args, result, mm, brk)
        self.calls.clear()


def run_recording(image: KernelImage, recording: Recording, profile: str, place: str) -> Figures:
    """Figures of one design on a recording.

    Programs know nothing of what a design adds to mremap: so each of their moves asks for it, where it is offered.
    """
    watcher = _Watcher()
    asked = image.design.mremap_flags & MREMAP_RELOCATE_ANON
    replay = Replay(recording, image, profile, watcher, machine_type=MeteredMachine, mremap_flags=asked)
    machine = replay.context.machine
    assert isinstance(machine, MeteredMachine)
    watcher.machine = machine
    tracer = Tracer(image, _hear)
    stopped = ""
    try:
        report = replay.run()
    except Exception as error:
        report, stopped = replay.report, _oops(error, image)
        machine.figures.find("kernel", f"kernel/oops: {stopped}")
    finally:
        tracer.close()
    figures = machine.finish()
    figures.steps = report.modelled.total()
    for difference in report.differences:
        if difference.kind == "result":
            figures.results += 1
        elif difference.kind == "layout":
            figures.layouts += 1
        elif difference.kind == "leak":
            figures.find("lifetime", f"lifetime/leak:{difference.what}")
        else:
            figures.find("kernel", f"kernel/{difference.machine.partition(':')[0]}")
            stopped = stopped or (difference.machine if report.unmodelled[STOPPED] else "")
    if stopped:
        figures.stopped.append(f"{place}: after {figures.steps:,} of {report.total:,} events: {stopped}")
    return figures
