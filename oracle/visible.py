"""What a process would see at a page, read from the machine's data, and how it differs from the specification.

A page's flags and backing are its VMA's; its contents those of what the entry leads to: a frame, a slot of
the swap device or its cache, or, where there is no entry, zeros or the file's page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT
from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import MARKER_POISON, MARKER_UFFD_WP, PRESENT, SPECIAL, is_guard
from emulator.mm_types import VM_ACCESS_FLAGS, VM_LOCKED_MASK, VM_SHARED
from emulator.workload import VMA_NAMES, file_token
from oracle.contents import pack, unpack
from oracle.leaves import KIND_MARKER, KIND_MIGRATION, KIND_SWAP, leaf_key
from oracle.specification.page import (
    GUARDED,
    MAYBE_UNLOCKED,
    MAYBE_UNMAPPED,
    NAME,
    NAME_SHIFT,
    POLICY,
    POLICY_SHIFT,
    SHOWN,
    Page,
    Pages,
    content_difference,
    follows_file,
    unlocked,
    with_flags,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.machine import Machine
    from emulator.mm_types import MmStruct, Pin, VmAreaStruct
    from oracle.specification.state import Specification

UNREADABLE = -1  # an entry that leads nowhere
_MARKERS = frozenset((MARKER_UFFD_WP, MARKER_POISON))  # nothing is mapped, or nothing that can be read

UNKNOWN = -1  # in place of an entry: it has to be looked up

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
                return self._swapped(value)
            if kind == KIND_MIGRATION:
                folio = machine.phys.frames[value]
                return pack(folio.content[value - folio.pfn])
            if kind != KIND_MARKER or value not in _MARKERS:
                return UNREADABLE
        file = vma.vm_file
        if file is None:
            return 0
        mapping = file.f_mapping
        index = vma.vm_pgoff + (address - vma.vm_start >> PAGE_SHIFT)
        cached = mapping.pages.get(index)
        if cached is not None:
            return pack(cached.content[index - cached.index])
        if not mapping.shmem:
            return 0 if index in mapping.holes else file_token(file.label, index)
        swapped = mapping.swapped.get(index)
        return 0 if swapped is None else self._swapped(swapped)

    def _swapped(self, slot: int) -> int:
        """What a swap slot holds, in the cache or on the device (packed); UNREADABLE where it holds nothing."""
        cached = self.machine.swap.cache.get(slot)
        if cached is not None:
            return pack(cached.content[slot - cached.swap])
        stored = self.machine.swap.content.get(slot)
        return UNREADABLE if stored is None else pack(stored)

    # ---- one page

    def difference(self, spec: Specification, label: int, number: int, entry: int = UNKNOWN) -> Difference | None:
        """How arena page ``number`` of a process differs from the specification; None if it does not."""
        pages = spec.procs.get(label)
        mm = self.machine.procs.get(label)
        if pages is None or mm is None:
            return None  # whether the process lives is judged elsewhere
        address = number + self._first << PAGE_SHIFT
        vma = mm.mm_mt.lookup(address)
        page = pages.get(number)
        if page is not None and page.flags & MAYBE_UNMAPPED:
            page = settled_growth(pages, number, page, vma is not None)
        if vma is None:
            if page is None:
                return None
            return "unmapped", "", f"page {number} of process {label} should be mapped and is not"
        if page is None:
            return "mapped", "", f"page {number} of process {label} is mapped in {vma} and should not be"
        if page.flags & MAYBE_UNLOCKED:
            page = pages[number] = settled_lock(page, vma.vm_flags)
        wrong = _mapping_difference(vma, page, address)
        if wrong:
            return wrong, "", f"page {number} of process {label} should be {page}, and stands in {vma}"
        if entry == UNKNOWN:
            entry = self.entry(mm, address)
        if is_guard(entry) != (page.flags & GUARDED != 0):
            lost = page.flags & GUARDED
            what = "no guard, and should have one" if lost else "a guard, and should have none"
            return "guard", "lost" if lost else "", f"page {number} of process {label} has {what}"
        if page.flags & GUARDED:
            return None
        got = self.content(vma, address, entry)
        if page.dropped is not None:
            page = spec.settle_dropped(pages, number, page, got)
        spec.settle_overhang(page, got)
        want = spec.content(page)
        if got == want:
            if follows_file(page) and entry:
                self._follow_copy(pages, number, page, entry, got)
            if spec.pins:
                return self._pin_replaced(spec, label, number, page, entry >> PAGE_SHIFT if entry & PRESENT else -1)
            return None
        cause = "entry leads nowhere" if got == UNREADABLE else content_difference(want, got)
        shown = "nothing" if got == UNREADABLE else str(unpack(got))
        return "contents", cause, f"page {number} of process {label} holds {shown}, where {unpack(want)} was written"

    def _follow_copy(self, pages: Pages, number: int, page: Page, entry: int, content: int) -> None:
        """A private file page that the machine has copied without need (a fault for writing that then failed)."""
        if self._is_copy(entry):
            pages[number] = Page(page.flags, page.backing, content)

    def _is_copy(self, entry: int) -> bool:
        """Is it a page of the process's own, not the file's?"""
        if not entry & PRESENT:
            return leaf_key(entry) & 7 != KIND_MARKER
        return self.machine.phys.frames[entry >> PAGE_SHIFT].anon

    def follow_earlier_copy(self, states: Sequence[Specification], label: int, number: int) -> bool:
        """Has the machine copied a private file page when the file was as in one of ``states``? The last takes it over.

        Whoever brings the pages of a private mapping in, copies them one by one, and others come in between.
        """
        spec = states[-1]
        page = spec.procs[label].get(number) if label in spec.procs else None
        mm = self.machine.procs.get(label)
        if page is None or mm is None or not follows_file(page):
            return False
        entry = self.entry(mm, number + self._first << PAGE_SHIFT)
        shown = self.holds(label, number)
        if not entry or not self._is_copy(entry) or shown not in {state.content(page) for state in states}:
            return False
        spec.procs[label][number] = Page(page.flags, page.backing, shown)
        return True

    def _pin_replaced(
        self, spec: Specification, label: int, number: int, page: Page, frame: int
    ) -> Difference | None:
        """A page that is pinned stays the page that the pin has, and no other page is that."""
        own = page.content
        want = -own if own is not None and own < 0 else 0
        wanted = False
        for pin_label, state in spec.pins.items():
            pin = self.machine.pins.get(pin_label) if state.cell else None
            if pin is not None:
                wanted = state.cell == want
                if wanted != (pin.folio.pfn + pin.page == frame):
                    break
        else:
            return None
        what = "is not the page that its pin has" if wanted else "is a page that a pin has that it should not share"
        return "pin-incoherent", "", f"page {number} of process {label} {what}"

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
        entry = self.entry(mm, address)
        if is_guard(entry) or page.flags & GUARDED:
            return is_guard(entry) and page.flags & GUARDED != 0
        shown = self.content(vma, address, entry)
        spec.settle_overhang(page, shown)
        if shown not in (spec.content(page), page.other()):
            return False
        frame = entry >> PAGE_SHIFT if entry & PRESENT else -1
        return not spec.pins or self._pin_replaced(spec, label, number, page, frame) is None

    def holds(self, label: int, number: int) -> int | None:
        """What a load from arena page ``number`` would give; None where nothing is mapped."""
        mm = self.machine.procs.get(label)
        address = number + self._first << PAGE_SHIFT
        vma = mm.mm_mt.lookup(address) if mm is not None else None
        return None if mm is None or vma is None else self.content(vma, address, self.entry(mm, address))

    def take_content(self, spec: Specification, label: int, number: int) -> None:
        """Let the specification believe the machine about the contents of one page."""
        pages = spec.procs.get(label)
        page = pages.get(number) if pages is not None else None
        shown = self.holds(label, number)
        if pages is not None and page is not None and shown is not None:
            spec.set_content(pages, number, page, shown)

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


def settled_lock(page: Page, vm_flags: int) -> Page:
    """A page that may have been unlocked, as its VMA shows it."""
    if not vm_flags & VM_LOCKED_MASK:
        return unlocked(page)
    return with_flags(page, MAYBE_UNLOCKED, 0)


def settled_growth(pages: Pages, number: int, page: Page, mapped: bool) -> Page | None:
    """A page down to which a stack may have grown, as the machine shows it."""
    if not mapped:
        del pages[number]
        return None
    page = pages[number] = with_flags(page, MAYBE_UNMAPPED, 0)
    return page


def named(vma: VmAreaStruct) -> int:
    """The NAME and POLICY bits of a VMA."""
    name = VMA_NAMES.index(vma.anon_name) + 1 if vma.anon_name is not None else 0
    policy = vma.vm_policy if isinstance(vma.vm_policy, int) else 0
    return name << NAME_SHIFT | policy << POLICY_SHIFT


def _mapping_difference(vma: VmAreaStruct, page: Page, address: int) -> str:
    """Which attribute of the mapping is wrong; "" if none."""
    wrong = (vma.vm_flags ^ page.flags) & SHOWN
    if wrong:
        return "permissions" if wrong & VM_ACCESS_FLAGS else "flags"
    wrong = page.flags & (NAME | POLICY) ^ named(vma)
    if wrong:
        return "policy" if wrong & POLICY else "name"
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
