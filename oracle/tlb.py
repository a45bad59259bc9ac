"""The TLB oracle: after a step no TLB translates to what the page tables no longer say.

An entry may grant less than the page tables do (the next access faults for nothing); it must not name another
frame, grant more, or outlive the page-table entry. Only pages whose translation was stored in the step can have
become stale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT
from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import EXEC, PRESENT, RW, USER
from oracle.finding import Finding, Subject, finding
from oracle.observation import Observer

if TYPE_CHECKING:
    from emulator.mm_types import MmStruct

_PERMISSIONS = USER | RW | EXEC


class TlbOracle:
    """Compares TLB entries with the page tables."""

    __slots__ = ("_observer",)

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def check(self, step: int) -> list[Finding]:
        """Judge the pages that the last step stored."""
        observer = self._observer
        machine = observer.machine
        found: list[Finding] = []
        if not (observer.direct or observer.ranges):
            return found
        tlbs = [(cpu, tlb.entries) for cpu, tlb in enumerate(machine.tlbs) if tlb.entries]
        if not tlbs:
            return found
        spans = dict.fromkeys(observer.ranges)
        for table, _, mm, address, entry, _ in observer.leaves[: observer.direct]:
            if table.level:
                spans[mm, address, address + (1 << machine.geometry.shifts[table.level])] = None
                continue
            key = (mm.asid, address >> PAGE_SHIFT)
            for cpu, entries in tlbs:
                cached = entries.get(key)
                if cached is not None and cached != entry:
                    self._compare(mm, cpu, key[1], cached, entry, step, found)
        for mm, start, end in spans:
            for cpu, entries in tlbs:
                self._check_range(mm, cpu, start >> PAGE_SHIFT, end >> PAGE_SHIFT, entries, step, found)
        return found

    def check_all(self, step: int) -> list[Finding]:
        """Judge every entry of every TLB."""
        found: list[Finding] = []
        for mm in self._observer.machine.procs.values():
            for cpu, tlb in enumerate(self._observer.machine.tlbs):
                self._check_range(mm, cpu, 0, 1 << 52, tlb.entries, step, found)
        return found

    def _check_range(
        self,
        mm: MmStruct,
        cpu: int,
        first: int,
        last: int,
        entries: dict[tuple[int, int], int],
        step: int,
        found: list[Finding],
    ) -> None:
        machine = self._observer.machine
        asid = mm.asid
        if machine.procs.get(mm.label) is not mm:
            return  # nobody runs in it any more, and its number is not used again
        for key, cached in entries.items():
            if key[0] == asid and first <= key[1] < last:
                address = key[1] << PAGE_SHIFT
                table, _, entry = walk_slot(mm, machine.geometry, address)
                if table.level and entry & PRESENT:
                    entry += address & ((1 << machine.geometry.shifts[table.level]) - 1)
                self._compare(mm, cpu, key[1], cached, entry, step, found)

    def _compare(
        self, mm: MmStruct, cpu: int, page: int, cached: int, entry: int, step: int, found: list[Finding]
    ) -> None:
        """``entry`` is what the tables say, with the frame of this very page."""
        if self._observer.machine.procs.get(mm.label) is not mm:
            return
        if not entry & PRESENT:
            cause = "entry cleared"
        elif entry >> PAGE_SHIFT != cached >> PAGE_SHIFT:
            cause = "frame changed"
        elif cached & _PERMISSIONS & ~entry:
            cause = "permission taken away"
        else:
            return
        folio = self._observer.machine.phys.frames[cached >> PAGE_SHIFT]
        detail = (
            f"CPU {cpu} still translates page {page:#x} of process {mm.label} to {folio}"
            f"{' writable' if cached & RW else ''}; {cause}, not flushed"
        )
        subjects: tuple[Subject, ...] = (("page", mm.label << 40 | page), ("folio", folio.pfn))
        found.append(finding("tlb", "stale-translation", detail, step, cause=cause, subjects=subjects))
