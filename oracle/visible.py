"""What a process would see at a page, read from the machine's data, and its comparison with the specification.

A page's protection and backing are its VMA's; its contents those of what the entry leads to: a frame, a slot of
the swap device or its cache, or, where there is no entry, zeros or the file's page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT
from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import PRESENT, SPECIAL
from emulator.mm_types import VM_ACCESS_FLAGS, VM_SHARED
from emulator.workload import file_token
from oracle.finding import Finding, Subject, finding
from oracle.observation import (
    ACCESSES,
    KERNEL_ACTIVITY,
    KIND_MIGRATION,
    KIND_SWAP,
    Observer,
    leaf_key,
    pack,
    unpack,
)
from oracle.specification_page import Page, content_difference

if TYPE_CHECKING:
    from emulator.machine import Machine
    from emulator.mm_types import MmStruct, Pin, VmAreaStruct
    from emulator.workload import Op, Outcome
    from oracle.specification import Specification

UNREADABLE = -1  # an entry that leads nowhere

_UNKNOWN = -1  # in a table of pages to compare: the entry has to be looked up

_ON_RANGES = frozenset(("mmap", "munmap", "mprotect", "madvise", "mremap"))

Difference = tuple[str, str, str]
"""(rule, cause, detail)."""


class Visible:
    """The view of one machine's processes."""

    __slots__ = ("_first", "machine")

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._first = machine.geometry.arena_start >> PAGE_SHIFT  # virtual page of arena page 0

    def entry(self, mm: MmStruct, address: int) -> int:
        """The leaf entry for the page, with the frame of this very page where it is huge."""
        geometry = self.machine.geometry
        table, _, entry = walk_slot(mm, geometry, address)
        if table.level and entry & PRESENT:
            entry += address & ((1 << geometry.shifts[table.level]) - 1) & ~0xFFF
        return entry

    def content(self, vma: VmAreaStruct, address: int, entry: int) -> int:
        """What a load gives (packed), whatever the protection; UNREADABLE where the entry leads nowhere."""
        machine = self.machine
        if entry & PRESENT:
            if entry & SPECIAL:
                return 0
            folio = machine.phys.frames[entry >> PAGE_SHIFT]
            return pack(folio.content[(entry >> PAGE_SHIFT) - folio.pfn])
        if entry:
            kind = leaf_key(entry) & 7
            value = entry >> PAGE_SHIFT
            if kind == KIND_SWAP:
                cached = machine.swap.cache.get(value)
                if cached is not None:
                    return pack(cached.content[value - cached.swap])
                stored = machine.swap.content.get(value)
                return UNREADABLE if stored is None else pack(stored)
            if kind == KIND_MIGRATION:
                folio = machine.phys.frames[value]
                return pack(folio.content[value - folio.pfn])
            return UNREADABLE
        file = vma.vm_file
        if file is None:
            return 0
        mapping = file.f_mapping
        index = vma.vm_pgoff + (address - vma.vm_start >> PAGE_SHIFT)
        cached = mapping.pages.get(index)
        return file_token(file.label, index) if cached is None else pack(cached.content[index - cached.index])

    # ---- one page

    def difference(self, spec: Specification, label: int, number: int, entry: int = _UNKNOWN) -> Difference | None:
        """How arena page ``number`` of a process differs from the specification; None if it does not."""
        pages = spec.procs.get(label)
        mm = self.machine.procs.get(label)
        if pages is None or mm is None:
            return None  # whether the process lives is judged elsewhere
        address = number + self._first << PAGE_SHIFT
        vma = mm.mm_mt.lookup(address)
        page = pages.get(number)
        if vma is None:
            if page is None:
                return None
            return "unmapped", "", f"page {number} of process {label} should be mapped and is not"
        if page is None:
            return "mapped", "", f"page {number} of process {label} is mapped in {vma} and should not be"
        wrong = _mapping_difference(vma, page, address)
        if wrong:
            return wrong, "", f"page {number} of process {label} should be {page}, and stands in {vma}"
        if entry == _UNKNOWN:
            entry = self.entry(mm, address)
        got = self.content(vma, address, entry)
        want = spec.content(page)
        if got == want:
            return None
        cause = "entry leads nowhere" if got == UNREADABLE else content_difference(want, got)
        shown = "nothing" if got == UNREADABLE else str(unpack(got))
        return "contents", cause, f"page {number} of process {label} holds {shown}, where {unpack(want)} was written"

    def shows(self, spec: Specification, label: int, number: int, page: Page | None) -> bool:
        """Does the machine show ``page`` (None: nothing mapped) at this place?"""
        mm = self.machine.procs.get(label)
        if mm is None:
            return False
        address = number + self._first << PAGE_SHIFT
        vma = mm.mm_mt.lookup(address)
        if vma is None or page is None:
            return vma is None and page is None
        if _mapping_difference(vma, page, address):
            return False
        return self.content(vma, address, self.entry(mm, address)) == spec.content(page)

    def take_content(self, spec: Specification, label: int, number: int) -> None:
        """Let the specification believe the machine about the contents of one page."""
        pages = spec.procs.get(label)
        mm = self.machine.procs.get(label)
        page = pages.get(number) if pages is not None else None
        if mm is None or pages is None or page is None:
            return
        address = number + self._first << PAGE_SHIFT
        vma = mm.mm_mt.lookup(address)
        if vma is not None:
            spec.set_content(pages, number, page, self.content(vma, address, self.entry(mm, address)))

    # ---- pins

    def pin_difference(self, spec: Specification, label: int, pin: Pin) -> Difference | None:
        """A pin and the process must agree on the contents of the page for as long as it stays mapped."""
        state = spec.pins.get(label)
        if state is None:
            return None
        if state.cell:
            want = spec.cells[state.cell]
        elif state.file is not None:
            want = spec.file_content(*state.file)
        else:
            return None
        got = pack(pin.folio.content[pin.page])
        if got == want:
            return None
        detail = f"pin {label} sees {unpack(got)} in {pin.folio}, the process {unpack(want)}"
        return "pin-incoherent", "", detail


def _mapping_difference(vma: VmAreaStruct, page: Page, address: int) -> str:
    """Which attribute of the mapping is wrong; "" if none."""
    if vma.vm_flags & VM_ACCESS_FLAGS != page.prot:
        return "permissions"
    backing = page.backing
    file = vma.vm_file
    if backing is None:
        return "backing" if file is not None else ""
    if (
        file is None
        or file.label != backing.file
        or bool(vma.vm_flags & VM_SHARED) != backing.shared
        or vma.vm_pgoff + (address - vma.vm_start >> PAGE_SHIFT) != backing.page
    ):
        return "backing"
    return ""


class VisibleOracle:
    """Compares the machine with the specification after each step."""

    __slots__ = ("_observer", "view")

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.view = Visible(observer.machine)

    def settle_wild_writes(self, spec: Specification) -> None:
        """What was written through references without a promise shows wherever the machine shows it."""
        observer = self._observer
        first = observer.machine.geometry.arena_start >> PAGE_SHIFT
        for label in spec.wild:
            pin = observer.machine.pins.get(label)
            if pin is None:
                continue
            folio = pin.folio
            keys = [folio.pfn + pin.page << 3, folio.pfn << 3]
            if folio.swapcache:
                keys.append(folio.swap + pin.page << 3 | KIND_SWAP)
            for key in keys:
                for place in observer.holders(key):
                    leaf = observer.leaf_at(place)
                    if leaf is not None:
                        within = pin.page if leaf.table.level else 0
                        self.view.take_content(spec, leaf.mm.label, (leaf.address >> PAGE_SHIFT) - first + within)
        spec.wild.clear()

    def touched(self, ops: tuple[Op, ...], outcomes: list[Outcome]) -> dict[int, dict[int, int]]:
        """Process to arena page to entry (or _UNKNOWN): what the last step may have changed."""
        observer = self._observer
        geometry = observer.machine.geometry
        first = geometry.arena_start >> PAGE_SHIFT
        table: dict[int, dict[int, int]] = {}
        for leaf in observer.leaves:
            pages = table.setdefault(leaf.mm.label, {})
            number = (leaf.address >> PAGE_SHIFT) - first
            if leaf.table.level:
                for i in range(1 << geometry.shifts[leaf.table.level] - PAGE_SHIFT):
                    pages[number + i] = _UNKNOWN
            else:
                pages[number] = leaf.entry
        for vma in observer.changed:
            pages = table.setdefault(vma.vm_mm.label, {})
            for number in range((vma.vm_start >> PAGE_SHIFT) - first, (vma.vm_end >> PAGE_SHIFT) - first):
                if number not in pages:
                    pages[number] = 0  # all leaves of changed VMAs have been seen
        for label, _, was in observer.gone:
            pages = table.setdefault(label, {})
            for number in range((was.start >> PAGE_SHIFT) - first, (was.end >> PAGE_SHIFT) - first):
                if number not in pages:
                    pages[number] = _UNKNOWN
        for op, outcome in zip(ops, outcomes, strict=True):
            _add_range(op, outcome.ret, table.setdefault(op.proc, {}))
        for op in ops:
            if op.kind == "fork":
                self._add_child(op.proc, table.setdefault(op.args[0], {}), table)
        return table

    def _add_child(self, parent: int, pages: dict[int, int], table: dict[int, dict[int, int]]) -> None:
        """A child is compared wherever its parent has, or may have had, something mapped."""
        machine = self._observer.machine
        first = machine.geometry.arena_start >> PAGE_SHIFT
        mm = machine.procs.get(parent)
        if mm is not None:
            for vma in mm.mm_mt:
                for number in range((vma.vm_start >> PAGE_SHIFT) - first, (vma.vm_end >> PAGE_SHIFT) - first):
                    if number not in pages:
                        pages[number] = _UNKNOWN
        for number in table[parent]:
            if number not in pages:
                pages[number] = _UNKNOWN

    def first_difference(self, spec: Specification, table: dict[int, dict[int, int]]) -> Difference | None:
        """The first thing at these pages, or among processes and pins, that is not as ``spec`` says."""
        machine = self._observer.machine
        if spec.procs.keys() != machine.procs.keys():
            return "processes", "", f"processes {sorted(machine.procs)} live, it should be {sorted(spec.procs)}"
        if spec.pins.keys() != machine.pins.keys():
            return "pins", "", f"pins {sorted(machine.pins)} are held, it should be {sorted(spec.pins)}"
        for label, pages in table.items():
            for number, entry in pages.items():
                difference = self.view.difference(spec, label, number, entry)
                if difference is not None:
                    return difference
        for label, pin in machine.pins.items():
            difference = self.view.pin_difference(spec, label, pin)
            if difference is not None:
                return difference
        return None

    def compare(
        self, spec: Specification, step: int, table: dict[int, dict[int, int]], ops: tuple[Op, ...]
    ) -> list[Finding]:
        """Every difference at these pages, as findings."""
        machine = self._observer.machine
        found: list[Finding] = []
        who = "+".join(sorted(op.kind for op in ops))
        if spec.procs.keys() != machine.procs.keys():
            detail = f"the living processes are {sorted(machine.procs)}, they should be {sorted(spec.procs)}"
            found.append(finding("specification", "processes", detail, step, cause=who))
        if spec.pins.keys() != machine.pins.keys():
            detail = f"the pins are {sorted(machine.pins)}, they should be {sorted(spec.pins)}"
            found.append(finding("specification", "pins", detail, step, cause=who))
        for label, pages in table.items():
            for number, entry in pages.items():
                difference = self.view.difference(spec, label, number, entry)
                if difference is not None:
                    found.append(self._finding(difference, step, who, label, number))
        for label, pin in machine.pins.items():
            difference = self.view.pin_difference(spec, label, pin)
            if difference is not None:
                subjects: tuple[Subject, ...] = (("folio", pin.folio.pfn),)
                rule, cause, detail = difference
                cause = ", ".join([word for word in (cause, who) if word])
                found.append(finding("specification", rule, detail, step, cause=cause, subjects=subjects))
        return found

    def _finding(self, difference: Difference, step: int, who: str, label: int, number: int) -> Finding:
        machine = self._observer.machine
        address = machine.geometry.arena_start + (number << PAGE_SHIFT)
        subjects: tuple[Subject, ...] = (("page", label << 40 | address >> PAGE_SHIFT),)
        mm = machine.procs.get(label)
        if mm is not None:
            entry = self.view.entry(mm, address)
            if entry & PRESENT and not entry & SPECIAL:
                subjects += (("folio", machine.phys.frames[entry >> PAGE_SHIFT].pfn),)
        rule, cause, detail = difference
        cause = ", ".join([word for word in (cause, who) if word])
        return finding("specification", rule, detail, step, cause=cause, subjects=subjects)

    def everything(self, spec: Specification) -> dict[int, dict[int, int]]:
        """All pages of all processes, mapped in the machine or in the specification."""
        machine = self._observer.machine
        first = machine.geometry.arena_start >> PAGE_SHIFT
        table = {label: dict.fromkeys(pages, _UNKNOWN) for label, pages in spec.procs.items()}
        for label, mm in machine.procs.items():
            pages = table.setdefault(label, {})
            for vma in mm.mm_mt:
                for number in range((vma.vm_start >> PAGE_SHIFT) - first, (vma.vm_end >> PAGE_SHIFT) - first):
                    if number not in pages:
                        pages[number] = _UNKNOWN
        return table


def _add_range(op: Op, ret: int, pages: dict[int, int]) -> None:
    """The pages that the operation names, by its arguments and its result."""
    kind = op.kind
    if kind in ACCESSES or kind in KERNEL_ACTIVITY:
        pages.setdefault(op.args[0], _UNKNOWN)
        return
    if kind not in _ON_RANGES:
        return
    spans = [(op.args[0], op.args[1])]
    if kind == "mremap":
        spans += [(ret, op.args[2])] if ret >= 0 else [(op.args[4], op.args[2])]
    elif kind == "mmap" and ret >= 0:
        spans = [(ret, op.args[1])]
    for start, length in spans:
        for number in range(start, start + length):
            if number not in pages:
                pages[number] = _UNKNOWN
