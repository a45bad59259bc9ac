"""The accounting oracle: total_vm and its parts, and the pages that are committed, recounted.

Committed are the pages of accountable VMAs, and what shared memory has charged by itself: all of a file of memory when
it is made or, where nothing was reserved, each page that it has.

Linux itself miscounts ``Committed_AS`` in some corners, and the mainline design follows Linux: it is reported there
as anywhere else (docs/mainline-findings.md). A wrong count breaks nothing else, so the run goes on, and each mistake
is reported once. Everything is pages.
"""

from __future__ import annotations

from operator import sub
from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import VM_ACCOUNT, VM_EXEC, VM_GROWSDOWN, VM_LOCKED, VM_SHARED, VM_WRITE
from oracle.finding import Finding, finding
from oracle.observation import ACCESSES, Observer

if TYPE_CHECKING:
    from emulator.machine import Machine
    from emulator.mm_types import MmStruct
    from emulator.workload import Op, Outcome

_SUSPECTS = ("mremap", "mprotect", "mmap", "fork", "munmap", "exit")
_NAMES = ("total_vm", "exec_vm", "stack_vm", "data_vm", "locked_vm")
_RIGHT = (0, 0, 0, 0, 0)


def recount(mm: MmStruct) -> tuple[int, int, int, int, int, int]:
    """(total, exec, stack, data, locked, accountable) pages of the VMAs (is_exec_mapping and so on)."""
    total = executable = stack = data = locked = accountable = 0
    for vma in mm.mm_mt:
        pages = vma.vm_end - vma.vm_start >> PAGE_SHIFT
        flags = vma.vm_flags
        total += pages
        if flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN) == VM_EXEC:
            executable += pages
        elif flags & VM_GROWSDOWN:
            stack += pages
        elif flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
            data += pages
        if flags & VM_LOCKED:
            locked += pages
        if flags & VM_ACCOUNT:
            accountable += pages
    return total, executable, stack, data, locked, accountable


def charged_by_files(machine: Machine) -> int:
    """Pages that files of memory have charged."""
    charged = 0
    for mapping in machine.shared_memory.values():
        charged += len(mapping.pages) + len(mapping.swapped) if mapping.noreserve else mapping.size >> PAGE_SHIFT
    return charged


def _suspect(ops: tuple[Op, ...], outcomes: list[Outcome]) -> str:
    """What most likely did it, for the signature: one flaw, whatever ran beside it.

    mremap before all others, then one in which a failure was injected; and whether it ended well all the same.
    """
    kinds = {op.kind for op in ops}
    failed = {op.kind for op, outcome in zip(ops, outcomes, strict=False) if outcome.injected}
    if failed and "mremap" not in kinds:
        kinds = failed
    kind = next((kind for kind in _SUSPECTS if kind in kinds), "access" if kinds <= ACCESSES else "other")
    if not failed:
        return kind
    hidden = any(op.kind == kind and o.injected and o.ret >= 0 for op, o in zip(ops, outcomes, strict=False))
    return f"{kind}, failure injected{' and hidden' if hidden else ''}"


class AccountingOracle:
    """Keeps each process's accountable pages, and how far Committed_AS may be off."""

    __slots__ = ("_accountable", "_drift", "_kept", "_observer", "_sum")

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._accountable: dict[int, int] = {}  # process label to pages of VM_ACCOUNT VMAs
        self._sum = 0  # of all of them
        self._kept: dict[int, tuple[int, ...]] = {}  # process label to how far its counters are off
        self._drift = 0  # committed minus the sum, as far as it has been reported

    @property
    def expected(self) -> int:
        """What ``committed`` is, unless the layout changed or something went wrong that has not been reported."""
        return self._sum + charged_by_files(self._observer.machine) + self._drift

    def check(self, step: int, ops: tuple[Op, ...], outcomes: list[Outcome]) -> list[Finding]:
        """Judge the processes whose layout the last step changed, and the machine's sum."""
        observer = self._observer
        machine = observer.machine
        found: list[Finding] = []
        if observer.spans:
            for label in observer.spans:
                mm = machine.procs.get(label)
                if mm is None:
                    self._accountable.pop(label, None)
                    self._kept.pop(label, None)
                else:
                    self._check_mm(mm, step, found)
            self._sum = sum(self._accountable.values())
        drift = machine.committed - self._sum - charged_by_files(machine)
        if drift != self._drift:
            detail = (
                f"committed is {machine.committed} pages, accountable VMAs and shared memory have "
                f"{machine.committed - drift}; the step made it wrong by {drift - self._drift}"
            )
            way = "too many" if drift > self._drift else "too few"
            cause = f"{way}, {_suspect(ops, outcomes)}"
            found.append(finding("accounting", "committed", detail, step, cause=cause, ends_run=False))
            self._drift = drift
        return found

    def _check_mm(self, mm: MmStruct, step: int, found: list[Finding]) -> None:
        """Report counters that went wrong in this step; those that were wrong before have been reported."""
        counted = recount(mm)
        self._accountable[mm.label] = counted[5]
        kept = (mm.total_vm, mm.exec_vm, mm.stack_vm, mm.data_vm, mm.locked_vm)
        off = _RIGHT if kept == counted[:5] else tuple(map(sub, kept, counted[:5]))
        before = self._kept.get(mm.label, _RIGHT)
        if off != before:
            self._kept[mm.label] = off
            for i, name in enumerate(_NAMES):
                if off[i] and off[i] != before[i]:
                    detail = f"process {mm.label} has {name} {kept[i]}, its VMAs have {counted[i]} pages"
                    found.append(finding("accounting", name, detail, step, ends_run=False))
                    return
