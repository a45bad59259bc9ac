"""Runs one workload in the machine and on the running kernel and compares after each step."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple

from emulator.designs.mainline import Mainline
from emulator.errors import KernelBug
from emulator.geometry import PAGE_SHIFT
from emulator.image import KernelImage, Transform
from emulator.machine import Machine
from emulator.profile import PROFILES
from emulator.workload import MEMFD, Op, Step, Workload, token
from fuzz.conform.blame import Blame
from oracle.finding import Finding, finding
from oracle.live import machine_view
from oracle.live.compare import compare
from oracle.live.expressible import expressible
from oracle.live.processes import NO_ANSWER
from oracle.live.system import LiveRun, LiveSystem
from oracle.live.view import Depth, StepView


class Comparison(NamedTuple):
    """What came of one workload. ``steps``: that were compared and equal.

    ``finding``: the first difference. ``machine`` and ``live``: what both showed after that step. ``wrong``: who
    is, in a sentence, as far as the specification can tell.
    """

    steps: int
    finding: Finding | None = None
    machine: tuple[StepView, ...] = ()
    live: tuple[StepView, ...] = ()
    wrong: str = ""


def never_returns(machine: Machine, step: Step) -> bool:
    """Does the step run for ever in the machine too? It is the last then."""
    try:
        machine.run_step(step)
    except KernelBug as bug:
        return bug.rule == "never-returns"
    return False


class Session:
    """A running kernel and a machine that claims to be like it. Use as a context manager.

    ``transform`` rewrites the machine's kernel code, to see whether that is noticed.
    """

    def __init__(self, profile: str, depth: Depth, transform: Transform | None = None) -> None:
        self.profile = profile
        self.depth = depth
        self.image = KernelImage(Mainline, transform)
        self.live = LiveSystem(depth)
        self._kernel = PROFILES[profile]._replace(
            swap_synchronous=self.live.swap, overcommit_memory=self.live.overcommit_memory
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.close()

    def compare(self, workload: Workload) -> Comparison:
        """Run the workload on both, from empty, and stop at the first difference."""
        run = self.live.run(workload)
        machine = Machine(self.image, workload.geometry, self._kernel)
        blame = Blame(machine)
        seen: list[StepView] = []
        for index, (step, theirs) in enumerate(zip(workload.steps, run.steps, strict=False)):
            try:
                outcomes = machine.run_step(step)
            except KernelBug as bug:
                return self._differ(finding("live", "machine-bug", str(bug), index), seen, run, "the machine")
            mine = StepView(tuple(outcomes), machine_view.view(machine, self.depth))
            seen.append(mine)
            found = compare(step, index, mine, theirs)
            if found is not None:
                return self._differ(found, seen, run, blame.of(step, mine, theirs, token(index, 0)))
            blame.follow(step, mine, token(index, 0))
        if run.fate:
            if run.fate.endswith(NO_ANSWER) and never_returns(machine, workload.steps[len(seen)]):
                return Comparison(len(seen))
            found = finding("live", "fate", f"on the kernel: {run.fate}", len(seen), cause=run.fate.split(":")[0])
            return self._differ(found, seen, run, "")
        return Comparison(len(workload.steps))

    def shows(self, workload: Workload, signature: str) -> bool:
        """Whether the workload, if a kernel can run it, ends in this difference."""
        if expressible(workload, self.depth):
            return False
        found = self.compare(workload).finding
        return found is not None and found.signature == signature

    def leaves_behind(self, workload: Workload) -> int:
        """kB of committed memory that are nobody's in the machine when all processes of the workload have ended."""
        machine = Machine(self.image, workload.geometry, self._kernel)
        for step in workload.steps:
            machine.run_step(step)
        for label in sorted(machine.procs):
            machine.run_step(Step((Op("exit", label, ()),)))
        kept = machine.shared_memory[MEMFD]  # the next workload empties it first
        return machine.committed - len(kept.pages) - len(kept.swapped) << PAGE_SHIFT >> 10

    def _differ(self, found: Finding, seen: list[StepView], run: LiveRun, wrong: str) -> Comparison:
        return Comparison(found.step, found, tuple(seen), run.steps[: found.step + 1], wrong)
