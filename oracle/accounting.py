"""The accounting oracle: total_vm and its parts, and the pages that are committed, recounted.

Linux itself miscounts ``Committed_AS`` in two corners, and the reference follows Linux; what is allowed there
stands in ``_drift_allowed``. Everything is pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import VM_ACCOUNT, VM_EXEC, VM_GROWSDOWN, VM_LOCKED, VM_SHARED, VM_WRITE
from emulator.uapi import MREMAP_FIXED
from oracle.finding import Finding, finding
from oracle.observation import Observer

if TYPE_CHECKING:
    from emulator.mm_types import MmStruct
    from emulator.workload import Op, Outcome

_NAMES = ("total_vm", "exec_vm", "stack_vm", "data_vm", "locked_vm")


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


class AccountingOracle:
    """Keeps each process's accountable pages, and how far Committed_AS may be off."""

    __slots__ = ("_accountable", "_drift", "_observer")

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._accountable: dict[int, int] = {}  # process label to pages of VM_ACCOUNT VMAs
        self._drift = 0  # committed minus the sum of those, as far as it is allowed

    def check(self, step: int, ops: tuple[Op, ...], outcomes: list[Outcome]) -> list[Finding]:
        """Judge the processes whose layout the last step changed, and the machine's sum."""
        observer = self._observer
        machine = observer.machine
        found: list[Finding] = []
        labels = dict.fromkeys([vma.vm_mm.label for vma in observer.changed])
        labels.update(dict.fromkeys([label for label, _, _ in observer.gone]))
        for label in labels:
            mm = machine.procs.get(label)
            if mm is None:
                self._accountable.pop(label, None)
            else:
                self._check_mm(mm, step, found)
        drift = machine.committed - sum(self._accountable.values())
        if drift != self._drift:
            if not self._drift_allowed(drift - self._drift, ops, outcomes):
                detail = (
                    f"committed is {machine.committed} pages, the accountable VMAs have "
                    f"{machine.committed - drift}; the step made it wrong by {drift - self._drift}"
                )
                way = "too many" if drift > self._drift else "too few"
                cause = f"{way}, {'+'.join(sorted({op.kind for op in ops}))}"
                found.append(finding("accounting", "committed", detail, step, cause=cause))
            self._drift = drift
        return found

    def _check_mm(self, mm: MmStruct, step: int, found: list[Finding]) -> None:
        counted = recount(mm)
        kept = (mm.total_vm, mm.exec_vm, mm.stack_vm, mm.data_vm, mm.locked_vm)
        self._accountable[mm.label] = counted[5]
        if kept != counted[:5]:
            for name, have, want in zip(_NAMES, kept, counted, strict=False):
                if have != want:
                    detail = f"process {mm.label} has {name} {have}, its VMAs have {want} pages"
                    found.append(finding("accounting", name, detail, step))
                    return

    @staticmethod
    def _drift_allowed(change: int, ops: tuple[Op, ...], outcomes: list[Outcome]) -> bool:
        """Is this what Linux gets wrong itself?

        A move to a fixed address that shrinks charges the difference although the tail was unmapped and
        uncharged before (vrm_calc_charge, 6.17 to 7.0). After a failed allocation, mremap and mmap do not put
        right what they had changed (unmap_source_vma, __mmap_region).
        """
        for op, outcome in zip(ops, outcomes, strict=True):
            if op.kind in ("mremap", "mmap") and outcome.injected:
                return True
            if op.kind == "mremap" and outcome.ret >= 0 and op.args[3] & MREMAP_FIXED:
                shrunk = op.args[1] - op.args[2]
                if shrunk > 0 and (change == shrunk or len(ops) > 1):
                    return True
        return False
