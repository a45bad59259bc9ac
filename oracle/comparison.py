"""Comparing the machine's pages, processes and pins with the specification, after each step or all of them.

A ``Table`` says what to compare: process to arena page to the page's leaf entry, or UNKNOWN where nobody has
looked it up yet. Almost all pages are anonymous and as they should be: those are sorted out by a short loop, and
only the rest is looked at in detail (``Visible.difference``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.fs_types import AddressSpace
from emulator.geometry import LEVEL_PMD, PAGE_SHIFT
from emulator.hw.pte import PRESENT, SPECIAL
from emulator.mm_types import VM_SHARED
from oracle.contents import LANE, pack
from oracle.finding import Finding, Subject, finding
from oracle.leaves import KIND_SWAP
from oracle.observation import ACCESSES, ON_A_PAGE, Observer
from oracle.specification.page import SHOWN
from oracle.specification.process_madvise import ranges
from oracle.visible import UNKNOWN, Difference, Visible

if TYPE_CHECKING:
    from emulator.mm_types import Folio, MmStruct
    from emulator.workload import Op, Outcome
    from oracle.specification.page import Pages
    from oracle.specification.state import Specification

Table = dict[int, dict[int, int]]

_SINGLE_PAGES = ACCESSES | ON_A_PAGE
_OF_LABELS = frozenset(("fork", "exit", "gup_fast", "gup_slow", "unpin", "setrlimit", "max_map_count"))
_OF_PINS = frozenset(("write", "fill", "pin_write", "gup_fast", "gup_slow"))
_NO_FRAMES: frozenset[int] = frozenset()
_ON_RANGES = frozenset(
    (
        "mmap", "munmap", "mprotect", "madvise", "mremap", "mlock", "mlock2", "munlock", "mseal", "set_vma_name",
        "mbind", "pkey_mprotect", "remap_file_pages", "uffd_register", "uffd_unregister", "uffd_zeropage",
        "uffd_poison", "uffd_wp", "uffd_copy", "uffd_move", "uffd_continue",
    )
)  # fmt: skip
_ON_ALL = frozenset(("mlockall", "munlockall", "brk", "memory_merge", "uffd_close"))


class VisibleOracle:
    """Compares the machine with the specification."""

    __slots__ = ("_first", "_observer", "view")

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._first = observer.machine.geometry.arena_start >> PAGE_SHIFT  # virtual page of arena page 0
        self.view = Visible(observer.machine)

    # ---- what to compare

    def touched(self, ops: tuple[Op, ...], outcomes: list[Outcome]) -> Table:
        """What the last step may have changed."""
        observer = self._observer
        first = self._first
        table: Table = {}
        for op, outcome in zip(ops, outcomes, strict=True):
            pages = table.get(op.proc)
            if pages is None:
                pages = table[op.proc] = {}
            kind = op.kind
            if kind in _SINGLE_PAGES:
                pages[op.args[0]] = UNKNOWN
            elif kind in _ON_RANGES:
                for start, length in spans_of(op, outcome.ret):
                    pages.update(dict.fromkeys(range(start, start + length), UNKNOWN))
            elif kind == "process_madvise":
                for call in ranges(op):
                    there = table.setdefault(call.proc, {})
                    there.update(dict.fromkeys(range(call.args[0], call.args[0] + call.args[1]), UNKNOWN))
            elif kind in _ON_ALL:
                self._add_mapped(op.proc, pages)
        for op in ops:
            if op.kind == "fork":
                self._add_child(op.proc, table.setdefault(op.args[0], {}), table)
        for label, spans in observer.spans.items():  # all leaves in there have been seen: they come next
            pages = table.setdefault(label, {})
            for low, high in spans:
                pages.update(dict.fromkeys(range((low >> PAGE_SHIFT) - first, (high >> PAGE_SHIFT) - first), 0))
        shifts = observer.machine.geometry.shifts
        for entry_table, _, mm, address, entry, _ in observer.leaves:
            pages = table.get(mm.label)
            if pages is None:
                pages = table[mm.label] = {}
            number = (address >> PAGE_SHIFT) - first
            if entry_table.level > LEVEL_PMD and not entry:
                continue  # an empty table went: its pages were stored one by one before
            if entry_table.level:
                span = range(number, number + (1 << shifts[entry_table.level] - PAGE_SHIFT))
                pages.update(dict.fromkeys(span, UNKNOWN))
            else:
                pages[number] = entry
        return table

    def _add_child(self, parent: int, pages: dict[int, int], table: Table) -> None:
        """A child is compared wherever its parent has, or may have had, something mapped."""
        self._add_mapped(parent, pages)
        pages.update(dict.fromkeys(table[parent], UNKNOWN))

    def _add_mapped(self, label: int, pages: dict[int, int]) -> None:
        """Every page that the machine maps in the process."""
        first = self._first
        mm = self._observer.machine.procs.get(label)
        if mm is not None:
            for vma in mm.mm_mt:
                span = range((vma.vm_start >> PAGE_SHIFT) - first, (vma.vm_end >> PAGE_SHIFT) - first)
                pages.update(dict.fromkeys(span, UNKNOWN))

    def everything(self, spec: Specification) -> Table:
        """All pages of all processes, mapped in the machine or in the specification (``observe_everything`` first)."""
        table: Table = {label: dict.fromkeys(pages, UNKNOWN) for label, pages in spec.procs.items()}
        for label, pages in self.touched((), []).items():
            table.setdefault(label, {}).update(pages)
        return table

    # ---- comparing

    def suspects(self, spec: Specification, label: int, numbers: dict[int, int]) -> list[tuple[int, int]]:
        """(page, entry) of those pages that are not obviously as the specification says."""
        pages = spec.procs.get(label)
        machine = self._observer.machine
        mm = machine.procs.get(label)
        if pages is None or mm is None:
            return []
        pinned = {pin.folio.pfn + pin.page for pin in machine.pins.values()} if machine.pins else _NO_FRAMES
        return self._suspects(spec, pages, mm, numbers, pinned)

    def _suspects(
        self,
        spec: Specification,
        pages: Pages,
        mm: MmStruct,
        numbers: dict[int, int],
        pinned: set[int] | frozenset[int],
    ) -> list[tuple[int, int]]:
        machine = self._observer.machine
        frames = machine.phys.frames
        first = self._first
        find = mm.mm_mt.find
        entry_at = self.view.entry
        written = spec.files
        suspects: list[tuple[int, int]] = []
        low = high = 0  # [low, high) bytes: a VMA or, with flags -1, a hole
        flags = -1
        backing: tuple[bool, int, int] | None = None  # of the VMA: shared, file, file page of arena page 0
        for number, entry in numbers.items():
            address = number + first << PAGE_SHIFT
            if not low <= address < high:
                vma = find(address)
                if vma is None:
                    low, high, flags = address, 1 << 64, -1
                elif vma.vm_start > address:
                    low, high, flags = address, vma.vm_start, -1
                else:
                    low, high = vma.vm_start, vma.vm_end
                    flags = vma.vm_flags & SHOWN
                    if vma.anon_name is not None or vma.vm_policy is not None:
                        flags = -2  # no page's: all are looked at in detail
                    backing = None
                    if vma.vm_file is not None:
                        origin = vma.vm_pgoff - (low >> PAGE_SHIFT) + first
                        backing = (vma.vm_flags & VM_SHARED != 0, vma.vm_file.label, origin)
            page = pages.get(number)
            if page is None or page.flags != flags:
                if flags != -1 or page is not None:
                    suspects.append((number, entry))
                continue
            if entry == UNKNOWN:
                entry = entry_at(mm, address)
            of_file = page.backing
            if of_file is not None or backing is not None:
                shown = None if backing is None else (backing[0], backing[1], backing[2] + number)
                # what was written is in the page cache or in swap when it is not mapped
                kept = of_file is not None and (of_file.file, of_file.page) in written
                if entry or kept or page.content is not None or of_file is None or of_file[:3] != shown:
                    suspects.append((number, entry))
            elif entry & PRESENT:
                content = 0
                frame = entry >> PAGE_SHIFT
                if not entry & SPECIAL:
                    folio = frames[frame]
                    stored = folio.content[frame - folio.pfn]
                    if stored:
                        content = pack(stored)
                if content != page.content or frame in pinned:
                    suspects.append((number, entry))
            elif entry or page.content:
                suspects.append((number, entry))
        return suspects

    def first_difference(self, spec: Specification, table: Table) -> tuple[Difference, int, int] | None:
        """The first thing that is not as ``spec`` says, with process and page (-1, -1 where it is none)."""
        whole = self._whole(spec)
        if whole is not None:
            return whole, -1, -1
        if spec.unsettled:
            self._settle(spec, table)
        for label, numbers in table.items():
            for number, entry in self.suspects(spec, label, numbers):
                difference = self.view.difference(spec, label, number, entry)
                if difference is not None:
                    return difference, label, number
        for label, pin in self._observer.machine.pins.items():
            difference = self.view.pin_difference(spec, label, pin)
            if difference is not None:
                return difference, -1, -1
        return None

    def _settle(self, spec: Specification, table: Table) -> None:
        """What the specification left open is settled by looking at it; what is wrong there is still to be told."""
        for label, number in spec.unsettled:
            self.view.difference(spec, label, number)
            table.setdefault(label, {}).setdefault(number, UNKNOWN)
        spec.unsettled.clear()

    def _whole(self, spec: Specification) -> Difference | None:
        """Processes that live, with their limits (getrlimit), and pins that are held."""
        machine = self._observer.machine
        if spec.procs.keys() != machine.procs.keys():
            return "processes", "", f"processes {sorted(machine.procs)} live, it should be {sorted(spec.procs)}"
        if spec.pins.keys() != machine.pins.keys():
            return "pins", "", f"pins {sorted(machine.pins)} are held, it should be {sorted(spec.pins)}"
        for label, mm in machine.procs.items():
            settings = spec.settings_of(label)
            limits = {resource: pages for resource, pages in enumerate(settings.rlim) if pages is not None}
            if mm.rlim != limits or (mm.max_map_count is not None) != settings.maps:
                return "limits", "", f"process {label} has limits {mm.rlim}, it should be {limits}"
        return None

    def compare(self, spec: Specification, step: int, table: Table, ops: tuple[Op, ...]) -> list[Finding]:
        """Every difference at these pages, and in processes and pins, as findings.

        After a single op, processes and pins are looked at if it is one that may concern them.
        """
        found: list[Finding] = []
        single = ops[0].kind if len(ops) == 1 else ""
        whole = self._whole(spec) if not single or single in _OF_LABELS else None
        if whole is not None:
            found.append(_finding(whole, step, ops, ()))
        if spec.unsettled:
            self._settle(spec, table)
        for label, numbers in table.items():
            for number, entry in self.suspects(spec, label, numbers):
                difference = self.view.difference(spec, label, number, entry)
                if difference is not None:
                    found.append(_finding(difference, step, ops, self._subjects(label, number)))
        if single and single not in _OF_PINS:
            return found
        for label, pin in self._observer.machine.pins.items():
            difference = self.view.pin_difference(spec, label, pin)
            if difference is not None:
                found.append(_finding(difference, step, ops, (("folio", pin.folio.pfn),)))
        return found

    def _subjects(self, label: int, number: int) -> tuple[Subject, ...]:
        machine = self._observer.machine
        page: Subject = ("page", label << 40 | number + self._first)
        mm = machine.procs.get(label)
        if mm is not None:
            entry = self.view.entry(mm, number + self._first << PAGE_SHIFT)
            if entry & PRESENT and not entry & SPECIAL:
                return page, ("folio", machine.phys.frames[entry >> PAGE_SHIFT].pfn)
        return (page,)

    # ---- references without a promise

    def settle_wild_writes(self, spec: Specification) -> None:
        """What was written through references without a promise shows wherever the machine shows it."""
        observer = self._observer
        for label in spec.wild:
            pin = observer.machine.pins.get(label)
            if pin is None:
                continue
            folio = pin.folio
            for other_label, other in observer.machine.pins.items():
                state = spec.pins.get(other_label)
                if state is not None and state.cell and other.folio is folio and other.page == pin.page:
                    spec.cells[state.cell] = pack(folio.content[pin.page])
            self._take_file_page(spec, folio, pin.page)
            keys = [folio.pfn + pin.page << 3, folio.pfn << 3]
            if folio.swapcache:
                keys.append(folio.swap + pin.page << 3 | KIND_SWAP)
            for key in keys:
                for place in observer.holders(key):
                    leaf = observer.leaf_at(place)
                    if leaf is not None:
                        within = pin.page if leaf.table.level else 0
                        number = (leaf.address >> PAGE_SHIFT) - self._first + within
                        self.view.take_content(spec, leaf.mm.label, number)
        spec.wild.clear()

    @staticmethod
    def _take_file_page(spec: Specification, folio: Folio, page: int) -> None:
        """A hole in a huge page of a file that is pinned, and so not split, is made of zeros: the pin still has it."""
        mapping, index = folio.mapping, folio.index + page
        if isinstance(mapping, AddressSpace) and mapping.label in spec.overhangs and mapping.pages.get(index) is folio:
            spec.files[mapping.label, index] = pack(folio.content[page])

    def settle_wild_copies(self, spec: Specification, table: Table, stores: list[tuple[int, int]]) -> None:
        """The same where another op of the collision has copied the page between the store and now.

        ``stores``: (sub-page offset, token). A token is unique, so who shows it has it from there.
        """
        for label, numbers in table.items():
            mm = self._observer.machine.procs.get(label)
            for number, _ in self.suspects(spec, label, dict.fromkeys(numbers, UNKNOWN)):
                page = spec.procs[label].get(number)
                address = number + self._first << PAGE_SHIFT
                vma = mm.mm_mt.lookup(address) if mm is not None else None
                if page is None or mm is None or vma is None:
                    continue
                got = self.view.content(vma, address, self.view.entry(mm, address))
                if is_copy(got, spec.content(page), stores):
                    self.view.take_content(spec, label, number)


def is_copy(got: int, want: int, stores: list[tuple[int, int]]) -> bool:
    """Is ``got`` what ``want`` is after one of the stores (sub-page offset, token)?"""
    for at, token in stores:
        lane = ((1 << LANE) - 1) << at * LANE
        if got == want & ~lane | token << at * LANE:
            return True
    return False


def spans_of(op: Op, ret: int) -> list[tuple[int, int]]:
    """(first page, pages) that the operation names by its arguments and its result."""
    kind = op.kind
    if kind in _SINGLE_PAGES:
        return [(op.args[0], 1)]
    if kind not in _ON_RANGES:
        return []
    if kind == "mremap":
        return [(op.args[0], op.args[1]), (ret if ret >= 0 else op.args[4], op.args[2])]
    if kind in ("uffd_copy", "uffd_move"):
        return [(op.args[0], op.args[2]), (op.args[1], op.args[2])]
    return [(ret if kind == "mmap" and ret >= 0 else op.args[0], op.args[1])]


def _finding(
    difference: Difference, step: int, ops: tuple[Op, ...], subjects: tuple[Subject, ...]
) -> Finding:
    rule, cause, detail = difference
    who = "+".join(sorted(op.kind for op in ops))
    cause = ", ".join([word for word in (cause, who) if word])
    return finding("specification", rule, detail, step, cause=cause, subjects=subjects)
