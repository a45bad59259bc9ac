"""The graph of VMAs, anon_vmas and AVCs, recounted (part of the lifetime oracle).

Rules (mm/rmap.c): a VMA that is faulted has its anon_vma in its chain; every AVC of the chain stands in its
anon_vma's interval tree under the range that the VMA has now, exactly once; all of them share one root and none
has been freed; VMAs with the same anon_vma have AVCs to the same anon_vmas. ``num_active_vmas`` counts the VMAs
whose anon_vma it is, ``num_children`` the live anon_vmas whose parent it is (a root counts itself). An anon_vma
lives as long as an AVC leads to it, or an item of the same-page scanner has a reference (it is nobody's child then).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT
from oracle.finding import Finding, Subject, finding
from oracle.observation import Observer

if TYPE_CHECKING:
    from emulator.mm_types import VmAreaStruct
    from emulator.rmap_types import AnonVma


class AnonVmaGraph:
    """Keeps the counts of the last step, and recounts what changed."""

    __slots__ = ("_active", "_live", "_observer", "_of_vma")

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._of_vma: dict[VmAreaStruct, AnonVma] = {}  # the anon_vma of each faulted VMA that is mapped
        self._active: dict[AnonVma, int] = {}
        self._live: list[int] = []  # serials of m.anon_vmas_live when the children were counted

    def check(self, step: int) -> list[Finding]:
        """Judge the VMAs that changed in the step, and the counters of the anon_vmas concerned."""
        found: list[Finding] = []
        touched: dict[AnonVma, None] = {}
        of_vma = self._of_vma
        for _, vma in self._observer.gone:
            before = of_vma.pop(vma, None)
            if before is not None:
                self._count(before, -1, touched)
        for vma in self._observer.changed:
            before = of_vma.pop(vma, None)
            if before is not None:
                self._count(before, -1, touched)
            if vma.anon_vma is not None and not vma.detached:
                of_vma[vma] = vma.anon_vma
                self._count(vma.anon_vma, 1, touched)
            self._check_chain(vma, step, found)
        for anon_vma in touched:
            self._check_active(anon_vma, step, found)
        live = self._observer.machine.anon_vmas_live
        known = self._live
        if len(live) != len(known) or (known and next(reversed(live)) != known[-1]):  # serials only grow
            self._check_children(step, found)
        return found

    def check_all(self, step: int) -> list[Finding]:
        """Judge everything (``observe_everything`` first)."""
        self._of_vma = {}
        self._active = {}
        found = self.check(step)
        for anon_vma in self._observer.machine.anon_vmas_live.values():
            self._check_active(anon_vma, step, found)
            self._check_tree(anon_vma, step, found)
        self._check_children(step, found)
        self._check_references(step, found)
        self._check_equal_sets(step, found)
        return found

    def _count(self, anon_vma: AnonVma, change: int, touched: dict[AnonVma, None]) -> None:
        self._active[anon_vma] = self._active.get(anon_vma, 0) + change
        touched[anon_vma] = None

    # ---- chains and trees

    def _check_chain(self, vma: VmAreaStruct, step: int, found: list[Finding]) -> None:
        own = vma.anon_vma
        chain = vma.anon_vma_chain
        if own is None:
            if chain:
                detail = f"{vma} is not faulted and has {len(chain)} AVCs"
                self._say("avc-of-unfaulted", detail, chain[0].anon_vma, step, found)
            return
        first = vma.vm_pgoff
        last = first + (vma.vm_end - vma.vm_start >> PAGE_SHIFT) - 1
        has_own = False
        for avc in chain:
            anon_vma = avc.anon_vma
            has_own = has_own or anon_vma is own
            key = avc.key
            if anon_vma.freed:
                self._say("use-after-free: anon_vma", f"{vma} has an AVC to {anon_vma}", anon_vma, step, found)
            elif avc.vma is not vma:
                detail = f"an AVC in the chain of {vma} belongs to {avc.vma}"
                self._say("avc-of-other-vma", detail, anon_vma, step, found)
            elif key is None or key not in anon_vma.rb_root:
                self._say("avc-not-in-tree", f"{vma} is missing in the tree of {anon_vma}", anon_vma, step, found)
            elif key.first != first or key.last != last:
                detail = f"{vma} stands in the tree of {anon_vma} under [{key.first:#x}, {key.last:#x}]"
                self._say("avc-range-stale", detail, anon_vma, step, found)
            elif anon_vma.root is not own.root:
                detail = f"{vma} has an AVC to {anon_vma} of another root"
                self._say("avc-of-other-root", detail, anon_vma, step, found)
        if not has_own:
            self._say("avc-missing", f"{vma} has no AVC to its own anon_vma", own, step, found)

    def _check_tree(self, anon_vma: AnonVma, step: int, found: list[Finding]) -> None:
        """Every AVC in the tree belongs to a mapped VMA that has it in its chain."""
        machine = self._observer.machine
        for key in anon_vma.rb_root:
            avc = key.avc
            vma = avc.vma
            mm = vma.vm_mm
            if vma.detached or machine.procs.get(mm.label) is not mm:
                detail = f"{anon_vma} has an AVC of {vma}, which is not mapped"
                self._say("avc-leaked", detail, anon_vma, step, found)
            elif avc not in vma.anon_vma_chain:
                detail = f"{anon_vma} has an AVC of {vma}, whose chain does not know it"
                self._say("avc-leaked", detail, anon_vma, step, found)

    def _check_equal_sets(self, step: int, found: list[Finding]) -> None:
        sets: dict[AnonVma, list[int]] = {}
        for mm in self._observer.machine.procs.values():
            for vma in mm.mm_mt:
                if vma.anon_vma is None:
                    continue
                reached = sorted(avc.anon_vma.serial for avc in vma.anon_vma_chain)
                if sets.setdefault(vma.anon_vma, reached) != reached:
                    detail = f"{vma} has AVCs to {reached}, another VMA of {vma.anon_vma} to {sets[vma.anon_vma]}"
                    self._say("avc-sets-differ", detail, vma.anon_vma, step, found)

    # ---- counters

    def _check_active(self, anon_vma: AnonVma, step: int, found: list[Finding]) -> None:
        active = self._active.get(anon_vma, 0)
        if anon_vma.freed:
            if active:
                detail = f"{anon_vma} is the anon_vma of {active} VMAs"
                self._say("use-after-free: anon_vma", detail, anon_vma, step, found)
            self._active.pop(anon_vma, None)
        elif anon_vma.num_active_vmas != active:
            detail = f"{anon_vma} has num_active_vmas {anon_vma.num_active_vmas}, and {active} VMAs"
            self._say("num_active_vmas", detail, anon_vma, step, found)
        elif not anon_vma.rb_root and not self._kept_by_ksm(anon_vma):
            self._say("anon_vma-leaked", f"{anon_vma} lives, and no AVC leads to it", anon_vma, step, found)

    def _kept_by_ksm(self, anon_vma: AnonVma) -> bool:
        """Has an item of the same-page scanner a reference, on this anon_vma or on one whose root it is?"""
        return any(
            item.anon_vma is anon_vma or (item.anon_vma is not None and item.anon_vma.root is anon_vma)
            for slot in self._observer.machine.ksm.mm_slots
            for item in slot.rmap_list
            if item.head is not None
        )

    def _check_children(self, step: int, found: list[Finding]) -> None:
        """Recount ``num_children`` over all live anon_vmas."""
        live: dict[int, AnonVma] = self._observer.machine.anon_vmas_live
        self._live = list(live)
        children: dict[AnonVma, int] = {}
        for anon_vma in live.values():
            if anon_vma.rb_root:
                children[anon_vma.parent] = children.get(anon_vma.parent, 0) + 1
        for anon_vma in live.values():
            counted = children.get(anon_vma, 0)
            if (anon_vma.parent.freed and anon_vma.rb_root) or anon_vma.root.freed:
                detail = f"parent or root of {anon_vma} is freed"
                self._say("use-after-free: anon_vma", detail, anon_vma, step, found)
            elif not anon_vma.rb_root and not self._kept_by_ksm(anon_vma):
                self._say("anon_vma-leaked", f"{anon_vma} lives, and no AVC leads to it", anon_vma, step, found)
            elif anon_vma.num_children != counted:
                detail = f"{anon_vma} has num_children {anon_vma.num_children}, and {counted} children"
                self._say("num_children", detail, anon_vma, step, found)

    def _check_references(self, step: int, found: list[Finding]) -> None:
        """Recount references: one while AVCs lead to it, one for each anon_vma whose root it is, one for each item."""
        machine = self._observer.machine
        references: dict[AnonVma, int] = {}
        for anon_vma in machine.anon_vmas_live.values():
            if anon_vma.rb_root:
                references[anon_vma] = references.get(anon_vma, 0) + 1
            if anon_vma.root is not anon_vma:
                references[anon_vma.root] = references.get(anon_vma.root, 0) + 1
        for slot in machine.ksm.mm_slots:
            for item in slot.rmap_list:
                if item.head is not None and item.anon_vma is not None:
                    references[item.anon_vma] = references.get(item.anon_vma, 0) + 1
        for anon_vma in machine.anon_vmas_live.values():
            counted = references.get(anon_vma, 0)
            if anon_vma.refcount != counted:
                detail = f"{anon_vma} has {anon_vma.refcount} references, {counted} are accounted for"
                self._say("anon_vma-refcount", detail, anon_vma, step, found)

    def _say(self, rule: str, detail: str, anon_vma: AnonVma, step: int, found: list[Finding]) -> None:
        subjects: tuple[Subject, ...] = (("anon_vma", anon_vma.serial),)
        found.append(finding("lifetime", rule, detail, step, subjects=subjects))
