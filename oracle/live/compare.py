"""The first difference between what the machine and the running kernel show after a step.

A difference is a finding of the oracle "live": the machine, or the kernel, is wrong. What it says of the two is
symmetrical, as nobody knows yet which one it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from emulator.uapi import result_name
from emulator.workload import Op, Outcome, Step
from oracle.finding import Finding, finding
from oracle.live.view import ProcessView, StepView, VmaView

Difference = tuple[str, str, str]
"""(rule, cause for the signature, sentence for people)."""

NO_RESULT: Final = ("ksm_scan",)  # a kernel does not tell how many pages it merged
_FIELDS: Final = ("pages", "anon_vmas", "folios")
_RULES: Final = {"pages": "page", "anon_vmas": "anon-vma", "folios": "folio"}


def compare(step: Step, index: int, machine: StepView, live: StepView) -> Finding | None:
    """The first difference after step number ``index``; None if all that is in both views is equal."""
    who = "+".join(sorted(op.kind for op in step.ops))
    for rule, cause, detail in differences(step.ops, machine, live):
        words = ", ".join(word for word in (who, cause) if word)
        return finding("live", rule, detail, index, cause=words)
    return None


def differences(ops: Sequence[Op], machine: StepView, live: StepView) -> Iterator[Difference]:
    """Results first, then processes in order of label, layouts before what is in them."""
    for op, got, expected in zip(ops, machine.outcomes, live.outcomes, strict=True):
        yield from _outcomes(op, got, expected)
    if machine.processes.keys() != live.processes.keys():
        shown = f"{sorted(machine.processes)} live in the machine, {sorted(live.processes)} on the kernel"
        yield "processes", "", f"processes {shown}"
        return
    for label in sorted(machine.processes):
        mine, theirs = machine.processes[label], live.processes[label]
        if mine != theirs:
            yield from _processes(label, mine, theirs)


def _outcomes(op: Op, mine: Outcome, theirs: Outcome) -> Iterator[Difference]:
    if op.kind in NO_RESULT:
        return
    who = f"{op.kind} of process {op.proc}"
    if mine.ret != theirs.ret:
        machine, kernel = result_name(mine.ret), result_name(theirs.ret)
        failed = min(mine.ret, theirs.ret) < 0
        cause = f"{_class(mine.ret)} against {_class(theirs.ret)}" if failed else "another place"
        yield "result", cause, f"{who} gave {machine} in the machine, {kernel} on the kernel"
    elif mine.data != theirs.data:
        yield "contents", "", f"{who} read {mine.data} in the machine, {theirs.data} on the kernel"


def _class(result: int) -> str:
    return result_name(result) if result < 0 else "success"


def _processes(label: int, mine: ProcessView, theirs: ProcessView) -> Iterator[Difference]:
    if mine.vmas != theirs.vmas:
        yield _layouts(label, mine.vmas, theirs.vmas)
    for name, machine, kernel in zip(mine.counters._fields, mine.counters, theirs.counters, strict=True):
        if machine != kernel:
            detail = f"process {label} has {name} {machine} pages in the machine, {kernel} on the kernel"
            yield "counter", name, detail
    for field in _FIELDS:
        yield from _rows(label, field, getattr(mine, field), getattr(theirs, field))


def _layouts(label: int, mine: Sequence[VmaView], theirs: Sequence[VmaView]) -> Difference:
    where = next((n for n, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), None)
    if len(mine) != len(theirs):
        where = min(len(mine), len(theirs)) if where is None else where
        cause = "fewer VMAs in the machine" if len(mine) < len(theirs) else "more VMAs in the machine"
    else:
        assert where is not None
        cause = _first_field(mine[where], theirs[where])
    machine, kernel = _layout(mine[where:]), _layout(theirs[where:])
    detail = f"process {label}, from VMA {where} on: in the machine {machine}, on the kernel {kernel}"
    return "layout", cause, detail


def _first_field(mine: VmaView, theirs: VmaView) -> str:
    """Which field differs; of flags, which ones."""
    name, a, b = next(
        (name, a, b) for name, a, b in zip(mine._fields, mine, theirs, strict=True) if a != b
    )
    if isinstance(a, frozenset) and isinstance(b, frozenset):
        return f"flags {' '.join(sorted(a ^ b))}"
    return name


def _layout(vmas: Sequence[VmaView]) -> str:
    return " ".join(show(vma) for vma in vmas[:4]) + (" …" if len(vmas) > 4 else "") if vmas else "nothing"


def show(vma: VmaView) -> str:
    """``[3-8 rw-p]``, with page offset for files, and the other flags."""
    prot = "".join(letter if vma.prot & bit else "-" for bit, letter in ((1, "r"), (2, "w"), (4, "x")))
    file = f" file{vma.file - 1}+{vma.pgoff}" if vma.file else ""
    flags = "".join(f" {flag}" for flag in sorted(vma.flags))
    return f"[{vma.start}-{vma.end} {prot}{'s' if vma.shared else 'p'}{file}{flags}]"


def _rows(label: int, field: str, mine: Sequence[Any], theirs: Sequence[Any]) -> Iterator[Difference]:
    """Rows of a deeper view, by the page or VMA start that they begin with."""
    if mine == theirs:
        return
    machine, kernel = {row[0]: row for row in mine}, {row[0]: row for row in theirs}
    for place in sorted(machine.keys() | kernel.keys()):
        a, b = machine.get(place), kernel.get(place)
        if a == b:
            continue
        if a is None or b is None:
            cause = "only on the kernel" if a is None else "only in the machine"
        else:
            cause = next(name for name, x, y in zip(a._fields, a, b, strict=True) if x != y)
        detail = f"process {label}, page {place}: in the machine {_row(a)}, on the kernel {_row(b)}"
        yield _RULES[field], cause, detail
        return


def _row(row: Any) -> str:
    if row is None:
        return "nothing"
    shown = (
        f"{name}={'|'.join(sorted(value)) if isinstance(value, frozenset) else value}"
        for name, value in zip(row._fields[1:], row[1:], strict=True)
    )
    return " ".join(shown)
