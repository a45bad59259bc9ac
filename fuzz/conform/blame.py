"""Who is wrong: whose results break the specification, which knows neither the machine nor the kernel."""

from __future__ import annotations

from emulator.errors import InternalError
from emulator.machine import Machine
from emulator.workload import Step
from oracle.judge import limits_of
from oracle.live.view import StepView
from oracle.specification.failure import stopped_half_way
from oracle.specification.state import Specification


class Blame:
    """Follows a workload on the specification; asked when the two sides differ.

    From the first operation on that the specification does not know, or that a limit stopped half-way (what it left, a
    specification is told by a machine), it has no opinion.
    """

    def __init__(self, machine: Machine) -> None:
        self._spec: Specification | None = Specification(limits_of(machine))

    def follow(self, step: Step, view: StepView, token: int) -> None:
        """A step on which both agreed."""
        if self._spec is not None:
            try:
                refusal = self._spec.apply(step.ops[0], view.outcomes[0], token)
            except InternalError:
                self._spec = None
            else:
                if refusal is not None:
                    self._spec = None

    def of(self, step: Step, machine: StepView, live: StepView, token: int) -> str:
        """Who is wrong about this step, with the promise that is broken; empty where the specification allows both."""
        if self._spec is None:
            return ""
        sentences = []
        for who, view in (("the machine", machine), ("the kernel", live)):
            if stopped_half_way(self._spec, step.ops[0], view.outcomes[0].ret):
                continue
            try:
                refusal = self._spec.copy().apply(step.ops[0], view.outcomes[0], token)
            except InternalError:
                return ""
            if refusal is not None:
                sentences.append(f"{who}: {refusal.detail}")
        return "; ".join(sentences)
