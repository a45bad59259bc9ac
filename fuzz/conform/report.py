"""A divergence as text for people."""

from __future__ import annotations

from emulator.uapi import result_name
from emulator.workload import Outcome, Workload
from fuzz.conform.session import Comparison
from fuzz.workload.text import show_op
from oracle.live.compare import show

_COLUMN = 78


def explain(workload: Workload, comparison: Comparison) -> str:
    """Each step with its result in the machine, ``>>>`` where the kernel differs; then both layouts there."""
    found = comparison.finding
    assert found is not None
    lines = [f"      world {workload.geometry}"]
    for number, step in enumerate(workload.steps[: found.step + 1]):
        mark = ">>>" if number == found.step else "   "
        text = f"{mark}{number:3}  {show_op(step.ops[0])}".ljust(_COLUMN)
        mine = _result(comparison.machine[number].outcomes[0]) if number < len(comparison.machine) else "nothing"
        theirs = _result(comparison.live[number].outcomes[0]) if number < len(comparison.live) else "nothing"
        lines.append(f"{text} = {mine}" + ("" if mine == theirs else f", on the kernel {theirs}"))
    lines += ["", f"{found.signature} (step {found.step})", f"  {found.detail}"]
    if found.step < min(len(comparison.machine), len(comparison.live)):
        lines += _layouts(comparison, found.step)
    lines.append(f"  wrong by the specification: {comparison.wrong or 'neither, it allows both'}")
    return "\n".join(lines)


def _layouts(comparison: Comparison, step: int) -> list[str]:
    lines = []
    for who, views in (("the machine", comparison.machine), ("the kernel", comparison.live)):
        for label, process in sorted(views[step].processes.items()):
            layout = " ".join(show(vma) for vma in process.vmas) or "nothing mapped"
            lines.append(f"  {who}, process {label}: {layout}")
    return lines


def _result(outcome: Outcome) -> str:
    if outcome.data is None:
        return result_name(outcome.ret)
    return "zeros" if not outcome.data else " ".join(f"{at}:{token}" for at, token in outcome.data)
