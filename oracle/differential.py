"""The differential oracle: the same workload on a reference design, in step.

Same results, same pages, same sharing. For one operation from equal states (layouts, page offsets and the pattern
of anon_vmas alike) the design under test has never more VMAs than the reference: that is what it is for.

A flag that asks for what only the design does is taken off for the reference. A collision runs on the
reference as the serial order that the collision oracle found. An operation in which a failure was injected, or
that refused to relocate, is left out on the reference when it changed nothing. Where the two can no longer be
compared (a failure left a call half done; a result differs that depends on the layout, and layouts differ by
design) the reference is *detached* for the rest of the workload, and ``detached`` says why.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from emulator.errors import KernelBug
from emulator.geometry import PAGE_SHIFT
from emulator.hw.pte import PRESENT, SPECIAL
from emulator.mm_types import VM_LOCKED
from emulator.uapi import (
    EFAULT,
    MADV_COLLAPSE,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_POPULATE,
    MREMAP_DONTUNMAP,
    MREMAP_MAYMOVE,
    SIGBUS,
    result_name,
)
from oracle.comparison import Table, VisibleOracle
from oracle.finding import Finding, finding
from oracle.leaves import KIND_SWAP, leaf_key
from oracle.observation import ACCESSES, KERNEL_ACTIVITY, PAGE_BY_PAGE, Observer
from oracle.specification.page import FAILURES
from oracle.visible import UNKNOWN, Visible

if TYPE_CHECKING:
    from emulator.designs.base import Design
    from emulator.machine import Machine
    from emulator.mm_types import MmStruct
    from emulator.rmap_types import AnonVma
    from emulator.workload import Op, Outcome, Step
    from oracle.specification.state import Specification

_SINGLE_PAGES = ACCESSES | KERNEL_ACTIVITY | {"unpin", "pin_write"}
_PLACES = frozenset(("mmap", "mremap"))
LOCKS = frozenset(("mlock", "mlock2", "munlock", "mlockall", "munlockall"))



class Fate(Enum):
    """What became of an op in which an allocation was made to fail, or that refused what the reference does."""

    UNDONE = "undone"  # it changed nothing
    DONE = "done"  # as if nothing had failed
    OTHER = "other"  # half done, or not known


def alike(mine: MmStruct | None, other: MmStruct | None) -> bool:
    """Is all that merging looks at the same: ranges, pgoff, flags, files, which VMAs share an anon_vma, AVC chains?"""
    if mine is None or other is None:
        return mine is other
    if len(mine.mm_mt) != len(other.mm_mt):
        return False
    names: dict[AnonVma | None, AnonVma | None] = {None: None}
    names_back: dict[AnonVma | None, AnonVma | None] = {None: None}
    for a, b in zip(mine.mm_mt, other.mm_mt, strict=True):
        if a.vm_start != b.vm_start or a.vm_end != b.vm_end or a.vm_pgoff != b.vm_pgoff or a.vm_flags != b.vm_flags:
            return False
        if names.setdefault(a.anon_vma, b.anon_vma) is not b.anon_vma:
            return False
        if names_back.setdefault(b.anon_vma, a.anon_vma) is not a.anon_vma:
            return False
        if len(a.anon_vma_chain) != len(b.anon_vma_chain):
            return False
        if a.anon_name != b.anon_name or a.vm_policy != b.vm_policy:
            return False
        if a.vm_file is not b.vm_file and (
            a.vm_file is None or b.vm_file is None or a.vm_file.label != b.vm_file.label
        ):
            return False
    return True


def added_flags(design: Design | type[Design], reference: Design | type[Design]) -> int:
    """MREMAP_* bits that the design knows and the reference does not."""
    return design.mremap_flags & ~reference.mremap_flags


def best_effort(op: Op) -> bool:
    """May the op succeed on one design and fail on the other, and change nothing that is seen? (MADV_COLLAPSE)"""
    return op.kind in ("madvise", "process_madvise") and op.args[-1] == MADV_COLLAPSE


def _locked(mm: MmStruct) -> list[int]:
    """The ends of the ranges that are locked, however many VMAs they are."""
    ends: list[int] = []
    for vma in mm.mm_mt:
        if vma.vm_flags & VM_LOCKED:
            if ends and ends[-1] == vma.vm_start:
                ends.pop()
            else:
                ends.append(vma.vm_start)
            ends.append(vma.vm_end)
    return ends


def for_reference(op: Op, added: int) -> Op:
    """The op as the reference gets it: no injected failure, none of the flags that the design has ``added``.

    Without MAYMOVE such a flag is an error, and stays: the reference refuses it as unknown.
    """
    args = op.args
    if op.kind == "mremap" and args[3] & added and args[3] & MREMAP_MAYMOVE:
        args = (*args[:3], args[3] & ~added, args[4])
    return op._replace(args=args, fail_nth=0)


def fate_by_kind(op: Op, ret: int) -> Fate:
    """What became of an op in which a failure was injected, as far as its kind and result say."""
    if op.kind in KERNEL_ACTIVITY:
        return Fate.DONE
    if op.kind == "brk":  # refused, it gives the old break, which is no error
        return Fate.DONE if ret == op.args[0] else Fate.UNDONE
    if ret not in FAILURES:
        return Fate.OTHER if op.kind == "mremap" else Fate.DONE
    if op.kind == "mmap":
        return Fate.OTHER if op.args[3] & MAP_FIXED else Fate.UNDONE
    return Fate.UNDONE if op.kind in ACCESSES or op.kind in ("fork", "munmap") else Fate.OTHER


class DifferentialOracle:
    """Drives the reference machine and compares."""

    __slots__ = ("_added", "_alike", "_machine", "_reference", "_sharing_open", "_visible", "detached")

    def __init__(self, machine: Machine, reference: Machine) -> None:
        self._machine = machine
        self._reference = reference
        self._visible = VisibleOracle(Observer(reference))
        self._added = added_flags(machine.image.design, reference.image.design)
        self._alike: dict[int, bool] = {}  # process to: its layouts were alike after the last step
        self._sharing_open = False  # which pages share memory may differ from now on
        self.detached = ""

    def _other_locks(self, op: Op) -> bool:
        """Did DONTUNMAP unlock more on one side, where the VMA that keeps the old place reaches further?"""
        if op.kind != "mremap" or not op.args[3] & MREMAP_DONTUNMAP:
            return False
        mine, other = self._machine.procs.get(op.proc), self._reference.procs.get(op.proc)
        return mine is not None and other is not None and _locked(mine) != _locked(other)

    def _behind_end(self, op: Op) -> bool:
        """Is the page behind the end of a file of memory that has, or had, huge pages (MADV_COLLAPSE)?"""
        for machine in (self._machine, self._reference):
            mm = machine.procs.get(op.proc)
            address = machine.geometry.arena_start + (op.args[0] << PAGE_SHIFT)
            vma = mm.mm_mt.lookup(address) if mm is not None else None
            if vma is not None and vma.vm_file is not None and vma.vm_file.f_mapping.large_folios:
                index = vma.vm_pgoff + (address - vma.vm_start >> PAGE_SHIFT)
                if index << PAGE_SHIFT >= vma.vm_file.f_mapping.size:
                    return True
        return False

    def detach(self, index: int, why: str) -> None:
        """Leave the reference out from step number ``index``."""
        if not self.detached:
            self.detached = f"step {index}: {why}"

    def _told(self, op: Op, mine: int, other: int) -> bool:
        """May a userfaultfd be told of the access on one of the two only? Whether it should the specification says."""
        if not {mine, other} & {SIGBUS, -EFAULT}:
            return False
        geometry = self._machine.geometry
        address = geometry.arena_start + (op.args[0] << PAGE_SHIFT)
        spaces = (self._machine.procs.get(op.proc), self._reference.procs.get(op.proc))
        areas = [mm.mm_mt.lookup(address) for mm in spaces if mm is not None]
        return any(area is not None and area.uffd_ctx is not None for area in areas)

    def _did_more(self, op: Op) -> bool:
        """May the op, in which something failed, have grown a stack or faulted in pages, which shows in no result?"""
        mm = self._machine.procs.get(op.proc)
        if op.kind in ACCESSES:
            return mm is not None and mm.stack_vm != 0
        if op.kind in KERNEL_ACTIVITY or op.kind in ("fork", "munmap"):
            return False
        if op.kind == "madvise" and op.args[2] in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
            return True
        if op.kind in PAGE_BY_PAGE or op.kind == "uffd_wp":
            return True
        if op.kind in LOCKS or (op.kind == "mmap" and op.args[3] & (MAP_POPULATE | MAP_LOCKED)):
            return True
        return mm is not None and (mm.locked_vm != 0 or mm.def_flags & VM_LOCKED != 0)

    def check(
        self,
        step: Step,
        index: int,
        outcomes: list[Outcome],
        order: tuple[int, ...],
        fate: dict[int, Fate],
    ) -> list[Finding]:
        """Run step number ``index`` on the reference and compare results and layouts.

        ``order``: the serial order of its ops. ``fate``: what became of those in which a failure was injected, or
        that refused to relocate, where that is known.
        """
        if self.detached:
            return []
        found: list[Finding] = []
        self._sharing_open = self._sharing_open or len(order) > 1 or step.ops[0].kind == "ksm_scan"
        equal = all(self._alike.get(op.proc, True) for op in step.ops)
        try:
            for number in order:
                outcome = outcomes[number]
                became = fate.get(number)
                if outcome.injected:
                    became = became or fate_by_kind(step.ops[number], outcome.ret)
                    if self._did_more(step.ops[number]):
                        became = Fate.OTHER
                if became is Fate.UNDONE:
                    continue
                if became is Fate.OTHER:
                    self.detach(index, f"{step.ops[number].kind} was left half done")
                    return []
                op = for_reference(step.ops[number], self._added)
                reference = self._reference.run_alone(op, index, number)
                if not self._same_result(op, outcome, reference, equal, index, number, found):
                    if found and len(step.ops) > 1:  # another order may have explained it as well
                        self.detach(index, f"in one order of the collision, {found[0].detail}")
                        return []
                    return found
                if self._other_locks(op):
                    self.detach(index, "layouts differ, and DONTUNMAP unlocked other pages")
                    return []
        except KernelBug as bug:
            self.detach(index, f"the reference stopped: {bug}")
            return []
        failed = outcomes[0].injected or outcomes[0].ret < 0  # it may have made its VMA faulted before that
        if self._machine.store_log or failed or step.ops[0].kind not in _SINGLE_PAGES or len(step.ops) > 1:
            self._compare_layouts(step, index, outcomes, equal, found)
        return found

    def _same_result(
        self,
        op: Op,
        outcome: Outcome,
        reference: Outcome,
        equal: bool,
        index: int,
        number: int,
        found: list[Finding],
    ) -> bool:
        """Compare the results of one op. False: a finding, or detached."""
        if op.kind in KERNEL_ACTIVITY or (outcome.ret == reference.ret and outcome.data == reference.data):
            return True
        if best_effort(op):
            self._sharing_open = True
            return True
        if op.kind in ACCESSES and self._behind_end(op):
            self.detach(index, f"a huge page reaches behind the end of its file, or none does: {op.kind} found out")
            return False
        if op.kind in ("userfaultfd", "uffd_close") and self._sharing_open:
            self.detach(index, f"which call has opened the userfaultfd hangs on their order: {op.kind} found out")
            return False
        if op.kind in ACCESSES and self._told(op, outcome.ret, reference.ret):
            self.detach(index, f"other pages are there, and a userfaultfd is told of {op.kind} on one of the two")
            return False
        if outcome.ret == reference.ret:
            detail = f"{op.kind} of process {op.proc} read {outcome.data}, on the reference {reference.data}"
            found.append(finding("differential", "read", detail, index, op=number))
            return False
        names = f"{result_name(outcome.ret)}, on the reference {result_name(reference.ret)}"
        if op.kind in PAGE_BY_PAGE:
            self.detach(index, f"other pages are there, or large, and {op.kind} gave {names}")
            return False
        if not equal and op.kind not in ACCESSES:
            self.detach(index, f"layouts differ, and {op.kind} gave {names}")
            return False
        what = "address" if op.kind in _PLACES and min(outcome.ret, reference.ret) >= 0 else "result"
        cause = op.kind
        if what == "result":
            cause = f"{op.kind}, {_name(outcome.ret)} against {_name(reference.ret)}"
        detail = f"{op.kind} of process {op.proc} gave {names}"
        found.append(finding("differential", what, detail, index, cause=cause, op=number))
        return False

    def _compare_layouts(
        self, step: Step, index: int, outcomes: list[Outcome], equal: bool, found: list[Finding]
    ) -> None:
        """Never more VMAs after one op from equal states; and are the layouts equal now?"""
        labels = dict.fromkeys([op.proc for op in step.ops])
        labels.update(dict.fromkeys([op.args[0] for op in step.ops if op.kind == "fork"]))
        single = len(step.ops) == 1 and not outcomes[0].injected
        for label in labels:
            mine = self._machine.procs.get(label)
            other = self._reference.procs.get(label)
            if single and equal and mine is not None and other is not None and len(mine.mm_mt) > len(other.mm_mt):
                op = step.ops[0]
                detail = (
                    f"after {op.kind}, process {label} has {len(mine.mm_mt)} VMAs, on the reference "
                    f"{len(other.mm_mt)}, and before it both were alike"
                )
                found.append(finding("differential", "more-vmas", detail, index, cause=op.kind, op=0))
            self._alike[label] = alike(mine, other)

    # ---- pages and sharing

    def look_for_dropped(self, index: int, spec: Specification) -> None:
        """Detach the reference when it has thrown away what the design has kept (MADV_FREE)."""
        if self.detached:
            return
        for label, pages in spec.procs.items():
            for number, page in pages.items():
                if page.dropped is not None and self._visible.view.holds(label, number) != spec.content(page):
                    self.detach(index, "the reference has thrown away what MADV_FREE let it")
                    return

    def check_pages(self, index: int, spec: Specification, table: Table) -> list[Finding]:
        """The design agrees with ``spec`` at these pages already; so must the reference, and on sharing too."""
        if self.detached:
            return []
        difference = self._visible.view.difference
        for label, pages in table.items():
            for number, _ in self._visible.suspects(spec, label, dict.fromkeys(pages, UNKNOWN)):
                wrong = difference(spec, label, number)
                if wrong is not None:
                    rule, cause, detail = wrong
                    detail = f"the design is as specified, but on the reference {detail}"
                    cause = ", ".join([word for word in (rule, cause) if word])
                    return [finding("differential", "pages", detail, index, cause=cause)]
        return self._check_sharing(index, spec)

    def _check_sharing(self, index: int, spec: Specification) -> list[Finding]:
        """Which pages share memory (copy-on-write): the same on both.

        Not compared after a collision, whose order may show in nothing but sharing, nor after an op that only one of
        the two could do, nor once equal pages may have been merged. Pages of zeros are left out, as
        whether they have memory depends on huge pages, and so does sharing of all pages where there are any.
        """
        if self._sharing_open or any(f.order for m in (self._machine, self._reference) for f in m.phys.live.values()):
            return []
        mine = _sharing(self._machine, spec)
        other = _sharing(self._reference, spec)
        if mine == other:
            return []
        for label, number in mine:
            if mine[label, number] != other.get((label, number)):
                detail = (
                    f"page {number} of process {label} shares memory with {_page(mine[label, number])}, "
                    f"on the reference with {_page(other.get((label, number)))}"
                )
                return [finding("differential", "sharing", detail, index)]
        return []


def _sharing(machine: Machine, spec: Specification) -> dict[tuple[int, int], tuple[int, int]]:
    """Each private page with contents, to the first page that has the same memory (itself, if not shared)."""
    first_of: dict[tuple[str, int], tuple[int, int]] = {}
    sharing: dict[tuple[int, int], tuple[int, int]] = {}
    view = Visible(machine)
    base = machine.geometry.arena_start
    for label in sorted(spec.procs):
        mm = machine.procs.get(label)
        if mm is None:
            continue
        for number, page in spec.procs[label].items():
            if page.content and not (page.backing is not None and page.backing.shared):
                memory = _memory(machine, view.entry(mm, base + (number << PAGE_SHIFT)))
                if memory is not None:
                    sharing[label, number] = first_of.setdefault(memory, (label, number))
    return sharing


def _memory(machine: Machine, entry: int) -> tuple[str, int] | None:
    """What holds a private page: a frame, or a swap slot that is not cached."""
    if entry & PRESENT:
        return None if entry & SPECIAL else ("frame", entry >> PAGE_SHIFT)
    if entry and leaf_key(entry) & 7 == KIND_SWAP:
        slot = entry >> PAGE_SHIFT
        cached = machine.swap.cache.get(slot)
        return ("slot", slot) if cached is None else ("frame", cached.pfn + slot - cached.swap)
    return None


def _page(page: tuple[int, int] | None) -> str:
    return "nothing" if page is None else f"page {page[1]} of process {page[0]}"


def _name(result: int) -> str:
    return result_name(result) if result < 0 else "success"
