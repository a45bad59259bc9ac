"""The structure oracle: VMA trees, page tables against VMAs, exclusive pages.

* VMAs are sorted, disjoint, not empty, page aligned, and ``map_count`` counts them (validate_mm).
* A leaf entry lies in a VMA and grants no more than it does. A writable entry of a private mapping maps an
  exclusive anonymous page; the zero page is never writable.
* A page of a file is mapped where the file offset says, with the file's own folio unless it was copied.
* An exclusive page (PG_anon_exclusive, or a swap entry that says so) has one entry in all of the machine.
* Nobody writes to the zero page, nor to what describes it: it is everybody's.

Page offsets of anonymous pages are the rmap oracle's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import PAGE_MASK, PAGE_SHIFT
from emulator.hw.pte import EXEC, PRESENT, RW, SPECIAL, SWP_EXCLUSIVE, USER
from emulator.mm_types import VM_ACCESS_FLAGS, VM_EXEC, VM_SHARED, VM_WRITE
from oracle.finding import Finding, Subject, finding
from oracle.leaves import KIND_BITS, KIND_SWAP, Leaf, leaf_key
from oracle.observation import Observer

if TYPE_CHECKING:
    from emulator.mm_types import Folio, MmStruct, VmAreaStruct


def entry_permissions(vm_flags: int) -> int:
    """The most that an entry of such a VMA may grant: USER, EXEC, RW."""
    if not vm_flags & VM_ACCESS_FLAGS:
        return 0
    return USER | (EXEC if vm_flags & VM_EXEC else 0) | (RW if vm_flags & VM_WRITE else 0)


class StructureOracle:
    """Judges the leaves and layouts that the last step touched."""

    __slots__ = ("_observer",)

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def check(self, step: int) -> list[Finding]:
        """Judge what the last step touched (or everything, after ``observe_everything``)."""
        found: list[Finding] = []
        observer = self._observer
        for label in observer.spans:
            mm = observer.machine.procs.get(label)
            if mm is not None:
                self._check_tree(mm, step, found)
        for leaf in observer.leaves:
            if leaf.entry:
                self._check_leaf(leaf, step, found)
        for zero in (observer.machine.phys.zero_folio, observer.machine.phys.huge_zero_folio):
            if zero is not None and (zero.index or zero.mapping is not None or any(zero.content)):
                kind = "huge page of zeros" if zero.order else "zero page"
                detail = f"the {kind} has index {zero.index:#x}, mapping {zero.mapping}, contents {zero.content}"
                found.append(
                    finding("structure", "zero-page-changed", detail, step, subjects=(("folio", zero.pfn),))
                )
        return found

    # ---- VMAs

    def _check_tree(self, mm: MmStruct, step: int, found: list[Finding]) -> None:
        end = 0
        task_size = self._observer.machine.geometry.task_size
        count = 0
        for vma in mm.mm_mt:
            start = vma.vm_start
            count += 1
            if start < end:
                self._say("vma-overlap", f"{vma} begins before the VMA below it ends", vma, step, found)
            elif start >= vma.vm_end or (start | vma.vm_end) & ~PAGE_MASK:
                self._say("vma-range", f"{vma} is empty or not page aligned", vma, step, found)
            elif vma.vm_end > task_size:
                self._say("vma-range", f"{vma} ends beyond user space", vma, step, found)
            elif vma.vm_mm is not mm or vma.detached:
                self._say("vma-detached", f"{vma} is in the tree, and does not say so", vma, step, found)
            end = vma.vm_end
        if mm.map_count != count:
            detail = f"process {mm.label} has map_count {mm.map_count}, and {count} VMAs"
            found.append(finding("structure", "map_count", detail, step))

    def _say(self, rule: str, detail: str, vma: VmAreaStruct, step: int, found: list[Finding]) -> None:
        page: Subject = ("page", vma.vm_mm.label << 40 | vma.vm_start >> PAGE_SHIFT)
        found.append(finding("structure", rule, detail, step, subjects=(page,)))

    # ---- entries

    def _check_leaf(self, leaf: Leaf, step: int, found: list[Finding]) -> None:
        entry = leaf.entry
        vma = leaf.vma
        if vma is None:
            self._bad(leaf, "entry-outside-vma", "no VMA covers it", "", step, found)
            return
        if leaf.table.level:
            size = 1 << self._observer.machine.geometry.shifts[leaf.table.level]
            if leaf.address < vma.vm_start or leaf.address + size > vma.vm_end:
                self._bad(leaf, "huge-entry-outside-vma", f"{vma} does not hold all of it", "", step, found)
                return
        if not entry & PRESENT:
            self._check_swap_entry(leaf, step, found)
            return
        excess = entry & (USER | EXEC | RW) & ~entry_permissions(vma.vm_flags)
        if excess:
            names = [name for bit, name in ((USER, "user"), (EXEC, "exec"), (RW, "write")) if excess & bit]
            self._bad(leaf, "entry-permission", f"{vma} allows less", ", ".join(names), step, found)
            return
        if entry & SPECIAL:
            if entry & RW:
                self._bad(leaf, "zero-page-writable", "the zero page is shared by all", "", step, found)
            return
        folio = self._observer.machine.phys.frames[entry >> PAGE_SHIFT]
        page = (entry >> PAGE_SHIFT) - folio.pfn
        if folio.anon:
            self._check_anon(leaf, vma, folio, page, step, found)
        else:
            self._check_file(leaf, vma, folio, page, step, found)

    def _check_anon(
        self, leaf: Leaf, vma: VmAreaStruct, folio: Folio, page: int, step: int, found: list[Finding]
    ) -> None:
        exclusive = folio.anon_exclusive >> page & 1
        if vma.vm_flags & VM_SHARED:
            self._bad(leaf, "anon-in-shared", f"an anonymous page in the shared mapping {vma}", "", step, found)
        elif leaf.entry & RW and not exclusive:
            detail = f"page {page} of {folio} is writable and not exclusive"
            self._bad(leaf, "writable-not-exclusive", detail, "", step, found)
        elif exclusive:
            entries = self._entries(folio, page, bool(leaf.table.level))
            if entries > 1:
                detail = f"page {page} of {folio} is exclusive and mapped {entries} times"
                self._bad(leaf, "exclusive-shared", detail, "", step, found)

    def _entries(self, folio: Folio, page: int, huge: bool) -> int:
        """Entries that map one page, by PTE or PMD (which names the head), and swap entries of its slot."""
        places = self._observer.places
        entries = len(places.get(folio.pfn + page << KIND_BITS, ()))
        if folio.order and page and not huge:
            head = places.get(folio.pfn << KIND_BITS, ())
            entries += sum(1 for table, _ in head if table.level)
        if folio.swapcache:
            entries += len(places.get(folio.swap + page << KIND_BITS | KIND_SWAP, ()))
        return entries

    def _check_file(
        self, leaf: Leaf, vma: VmAreaStruct, folio: Folio, page: int, step: int, found: list[Finding]
    ) -> None:
        file = vma.vm_file
        pgoff = vma.vm_pgoff + (leaf.address - vma.vm_start >> PAGE_SHIFT)
        if file is None:
            self._bad(leaf, "file-page-in-anon", f"{folio} is no anonymous page, {vma} is", "", step, found)
        elif folio.mapping is not file.f_mapping or folio.index + page != pgoff:
            self._bad(leaf, "file-page-misplaced", f"{folio} where {vma} wants page {pgoff:#x}", "", step, found)
        elif leaf.entry & RW and not vma.vm_flags & VM_SHARED:
            self._bad(leaf, "file-page-writable", f"writable in the private mapping {vma}", "", step, found)

    def _check_swap_entry(self, leaf: Leaf, step: int, found: list[Finding]) -> None:
        key = leaf_key(leaf.entry)
        if key & 7 == KIND_SWAP and leaf.entry & SWP_EXCLUSIVE:
            entries = len(self._observer.places.get(key, ()))
            if entries > 1:
                detail = f"the slot is exclusive, and {entries} entries hold it"
                self._bad(leaf, "exclusive-shared", detail, "swap", step, found)

    def _bad(
        self, leaf: Leaf, rule: str, detail: str, cause: str, step: int, found: list[Finding]
    ) -> None:
        page = leaf.address >> PAGE_SHIFT
        subjects: tuple[Subject, ...] = (("page", leaf.mm.label << 40 | page),)
        if leaf.entry & PRESENT and not leaf.entry & SPECIAL:
            subjects += (("folio", self._observer.machine.phys.frames[leaf.entry >> PAGE_SHIFT].pfn),)
        detail = f"entry of process {leaf.mm.label} at page {page:#x}: {detail}"
        found.append(finding("structure", rule, detail, step, cause=cause, subjects=subjects))
