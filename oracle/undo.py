"""The undo oracle: a relocation that fails leaves exactly what the plain move leaves.

A plain move never touches a folio's mapping and index. So, of the pages that a call was asked to move: where the VMA
that maps the page afterwards is in the old page-offset space (was not relocated), the folio must say what it said
before. What runs beside the call does not excuse it: a GUP-fast pin taken between the forward walk and the undo is
part of the state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT
from emulator.hw.pte import PRESENT, SPECIAL
from oracle.finding import Finding, finding
from oracle.leaves import leaves_between
from oracle.observation import Observer
from oracle.rmap import is_pinned

if TYPE_CHECKING:
    from emulator.mm_types import Folio
    from emulator.rmap_types import AnonVma
    from emulator.workload import Op, Step


class _Before:
    """One page of the range as it was: what the folio said, and what the VMA said of the page."""

    __slots__ = ("anon_vma", "folio", "index", "mapping", "op", "page", "pgoff", "proc")

    def __init__(self, op: int, proc: int, folio: Folio, page: int, pgoff: int, anon_vma: AnonVma | None) -> None:
        self.op = op
        self.proc = proc
        self.folio = folio
        self.page = page
        self.mapping = folio.mapping
        self.index = folio.index
        self.pgoff = pgoff
        self.anon_vma = anon_vma


class UndoOracle:
    """``before`` each step, ``check`` after it."""

    __slots__ = ("_before", "_observer")

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._before: list[_Before] = []

    def before(self, step: Step) -> None:
        """Remember the pages that the step's moves are about."""
        if self._before:
            self._before = []
        for i, op in enumerate(step.ops):
            if op.kind == "mremap":
                self._remember(i, op)

    def _remember(self, number: int, op: Op) -> None:
        machine = self._observer.machine
        mm = machine.procs.get(op.proc)
        if mm is None:
            return
        geometry = machine.geometry
        start = geometry.arena_start + (op.args[0] << PAGE_SHIFT)
        end = start + (op.args[1] << PAGE_SHIFT)
        for table, _, address, entry in leaves_between(mm, geometry, start, end):
            vma = mm.mm_mt.lookup(max(address, start))
            if vma is None or not entry & PRESENT or entry & SPECIAL:
                continue
            pfn = entry >> PAGE_SHIFT
            if table.level:  # a huge page: any page of it inside the range will do
                pfn += (max(address, start) - address) >> PAGE_SHIFT
                address = max(address, start)
            folio = machine.phys.frames[pfn]
            if folio.anon:
                pgoff = vma.vm_pgoff + (address - vma.vm_start >> PAGE_SHIFT)
                self._before.append(_Before(number, op.proc, folio, pfn - folio.pfn, pgoff, vma.anon_vma))

    def check(self, step: Step, index: int, injected: bool) -> list[Finding]:
        """Judge the folios remembered before step number ``index``."""
        found: list[Finding] = []
        beside = len(step.ops) > 1
        told: set[int] = set()
        for was in self._before:
            folio = was.folio
            if folio.freed or folio.pfn in told:
                continue
            if folio.index == was.index and folio.mapping is was.mapping:
                continue
            if folio.ksm:
                continue  # the scanner has made it a page of its own beside the call
            if self._in_old_space(was, beside):
                told.add(folio.pfn)
                found.append(self._not_restored(was, index, beside, injected))
        return found

    def _in_old_space(self, was: _Before, beside: bool) -> bool:
        """Is the page still mapped where the page offsets are the old ones, with the folio saying otherwise?"""
        observer = self._observer
        folio = was.folio
        places = dict(observer.mappings(folio.pfn + was.page))
        if folio.large:
            places.update(observer.mappings(folio.pfn))  # a PMD names the head
        for place in places:
            leaf = observer.leaf_at(place)
            if leaf is None or leaf.vma is None or leaf.mm.label != was.proc:
                continue
            vma = leaf.vma
            address = leaf.address + (was.page << PAGE_SHIFT if leaf.table.level else 0)
            pgoff = vma.vm_pgoff + (address - vma.vm_start >> PAGE_SHIFT)
            if pgoff != was.pgoff or vma.anon_vma is not was.anon_vma:
                continue
            # a write fault beside the call that reuses the page gives it its VMA's own anon_vma, rightly
            if beside and folio.index == was.index and folio.mapping is vma.anon_vma:
                continue
            return True
        return False

    def _not_restored(self, was: _Before, step: int, beside: bool, injected: bool) -> Finding:
        folio = was.folio
        words = ["pinned"] if is_pinned(self._observer, folio) else []
        if folio.large:
            words.append("large")
        if injected:
            words.append("failure injected")
        detail = (
            f"the VMA of process {was.proc} was not relocated, but {folio} says index {folio.index:#x} of "
            f"{folio.mapping}; before the call it said {was.index:#x} of {was.mapping}"
        )
        return finding(
            "undo",
            "folio-not-restored",
            detail,
            step,
            cause=", ".join(words) or "unpinned",
            op=was.op if beside else None,
            subjects=(("folio", folio.pfn),),
        )
