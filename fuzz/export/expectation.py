"""What a workload gives on Linux, step by step: results, contents of what is read, layouts.

The machine says it, with mainline's code and the page tables of a real x86-64, whatever world the workload is of:
who runs the program has no other. The arena keeps the size that it has in the workload's world.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.designs.mainline import Mainline
from emulator.errors import KernelBug, UsageError
from emulator.geometry import GEOMETRIES, PAGE_SHIFT, Geometry
from emulator.machine import Machine
from emulator.uapi import ESRCH
from emulator.workload import STEPS_MAX, Op
from fuzz.designs import load_image
from oracle.leaves import leaves_between
from oracle.live.machine_view import view
from oracle.live.view import Depth, VmaView

if TYPE_CHECKING:
    from emulator.mm_types import MmStruct
    from emulator.workload import Outcome, Workload
    from oracle.live.view import ProcessView

REAL: Final = GEOMETRIES["x86-64"]
FILE_TOKENS: Final = 1 << 36  # what files hold from the start is not below, what is written is

Layout = tuple[VmaView, ...]
Contents = tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
"""(arena page, its (offset, token) pairs) of pages, in order."""


class Expectation(NamedTuple):
    """One step of a workload, an op each, and what is seen after it."""

    op: Op
    outcome: Outcome
    layouts: dict[int, Layout]  # of every living process, by label; no VM flags


class Expected(NamedTuple):
    """A whole run. ``contents``, by process: what the living hold at the end in pages that somebody has written."""

    steps: tuple[Expectation, ...]
    contents: dict[int, Contents]


def looked_at(workload: Workload) -> int:
    """Pages from the arena's start that an op can reach: it begins within the arena and is no longer than that."""
    return 2 * GEOMETRIES[workload.geometry].arena_pages


def expect(workload: Workload, profile: str) -> Expected:
    """Run a workload without collisions. Raises ``UsageError`` where the kernel itself breaks or leaves the arena."""
    geometry = Geometry("x86-64", REAL.bits, REAL.arena_start, GEOMETRIES[workload.geometry].arena_pages)
    machine = Machine(load_image(Mainline), geometry, profile)
    steps = []
    for number, step in enumerate(workload.steps):
        try:
            (outcome,) = machine.run_step(step)
        except KernelBug as bug:
            raise UsageError(f"step {number}: mainline itself breaks here: {bug}") from None
        layouts = {label: _layout(process) for label, process in view(machine, Depth.MAPS).items()}
        for areas in layouts.values():
            if areas and (areas[0].start < 0 or areas[-1].end > looked_at(workload)):
                raise UsageError(f"step {number}: {step.ops[0].kind} maps memory outside of the arena")
        steps.append(Expectation(step.ops[0], outcome, layouts))
    return Expected(tuple(steps), {label: _written(machine, label) for label in sorted(machine.procs)})


def is_idle(step: Expectation) -> bool:
    """No process can run the op: there is none of that label, or the label for a new one is in use."""
    op = step.op
    return step.outcome.ret == -ESRCH or (op.kind == "fork" and bool(step.outcome.ret))


def _layout(process: ProcessView) -> Layout:
    """What /proc/PID/maps shows, and no more."""
    return tuple(area._replace(flags=frozenset()) for area in process.vmas)


def _written(machine: Machine, label: int) -> Contents:
    """What a process reads where there is something that an op has written."""
    mm = machine.procs[label]
    found = []
    for page in sorted(_populated(mm)):
        data = machine.run_alone(Op("read", label, (page,)), STEPS_MAX, 0).data
        if data and any(token < FILE_TOKENS for _, token in data):
            found.append((page, data))
    return tuple(found)


def _populated(mm: MmStruct) -> set[int]:
    """Arena pages that a page table leads to somewhere, and all pages of file mappings that the file has."""
    geometry = mm.machine.geometry
    pages: set[int] = set()
    for area in mm.mm_mt:
        start = area.vm_start - geometry.arena_start >> PAGE_SHIFT
        if area.vm_file is not None:
            size = area.vm_file.f_mapping.size >> PAGE_SHIFT
            length = min(area.vm_end - area.vm_start >> PAGE_SHIFT, max(0, size - area.vm_pgoff))
            pages.update(range(start, start + length))
        for table, _, address, _ in leaves_between(mm, geometry, area.vm_start, area.vm_end):
            first = address - geometry.arena_start >> PAGE_SHIFT
            pages.update(range(first, first + (1 << geometry.shifts[table.level] - PAGE_SHIFT)))
    return pages
