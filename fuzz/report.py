"""A judged workload as text for people: its steps with their results, and what was promised and broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.uapi import result_name
from fuzz.workload.text import show_op, show_schedule

if TYPE_CHECKING:
    from emulator.workload import Op, Outcome, Workload
    from oracle.judge import Verdict

_RESULT_COLUMN: Final = 78


def explain(workload: Workload, verdict: Verdict) -> str:
    """Every step with its results, ``>>>`` at the steps of the findings, then the findings, first one first."""
    broken = {found.step for found in verdict.findings}
    lines = [f"      world {workload.geometry}"]
    for number, step in enumerate(workload.steps):
        mark = ">>>" if number in broken else "   "
        results = verdict.outcomes[number] if number < len(verdict.outcomes) else ()
        lead = f"{mark}{number:3}"
        if len(step.ops) == 1:
            lines.append(_line(f"{lead}  ", step.ops[0], results, 0))
            continue
        lines.append(f"{lead}  together")
        lines += [_line(f"{mark}       ", op, results, index) for index, op in enumerate(step.ops)]
        lines += [f"{mark}       {line}" for line in show_schedule(step.schedule)]
        lines.append(f"{mark}     end")
    for found in verdict.findings:
        where = f"step {found.step}" if found.op is None else f"step {found.step}, op {found.op}"
        lines += ["", f"{found.signature} ({where})", f"  {found.detail}"]
    lines += [f"note: {note}" for note in verdict.notes]
    return "\n".join(lines)


def _line(lead: str, op: Op, results: tuple[Outcome, ...], index: int) -> str:
    text = lead + show_op(op)
    if index >= len(results):
        return text
    outcome = results[index]
    shown = result_name(outcome.ret)
    if outcome.data is not None:
        shown = "zeros" if not outcome.data else " ".join(f"{at}:{token}" for at, token in outcome.data)
    if outcome.injected:
        shown += " (failure injected)"
    return f"{text.ljust(_RESULT_COLUMN)} = {shown}"
