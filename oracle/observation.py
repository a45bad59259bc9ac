"""What the machine holds, read as data: the base that every oracle stands on.

``Observer`` follows the hardware's log of page-table stores and keeps an inverse map of all leaf entries from
it, so that "who maps this frame" costs one look-up, and a step costs what it touched. Nothing here calls kernel
code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.geometry import PAGE_SHIFT
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import SPECIAL
from oracle.leaves import (
    KIND_BITS,
    KIND_MARKER,
    Leaf,
    Place,
    add_leaves,
    collect_leaves,
    leaf_key,
    leaves_between,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.machine import Machine
    from emulator.mm_types import MmStruct, VmAreaStruct
    from emulator.rmap_types import AnonVma
    from emulator.workload import Op

_new: Final = tuple.__new__  # what a NamedTuple's constructor calls in the end

ACCESSES: Final = frozenset(("read", "write", "fill", "exec", "gup_fast", "gup_slow"))
ON_A_PAGE: Final = frozenset(("reclaim", "swap_readahead", "migrate"))  # kernel activity that names one
KERNEL_ACTIVITY: Final = ON_A_PAGE | {"ksm_scan", "thp_sizes"}
PAGE_BY_PAGE: Final = frozenset(("uffd_copy", "uffd_zeropage", "uffd_move", "uffd_poison", "uffd_continue"))
_KEEPS_LAYOUT: Final = KERNEL_ACTIVITY | {"unpin", "pin_write"}


Imprint = tuple[int, int, int, "AnonVma | None", int, int]
"""What is remembered of a VMA, to see that it changed: start, end, pgoff, anon_vma, flags, length of the chain."""


def imprint(vma: VmAreaStruct) -> Imprint:
    return (
        vma.vm_start,
        vma.vm_end,
        vma.vm_pgoff,
        vma.anon_vma,
        vma.vm_flags,
        len(vma.anon_vma_chain),
    )


class Observer:
    """Follows one machine from its start; ``observe`` after each step.

    ``places`` maps a leaf key to the places that hold such an entry, over all page tables (the zero page and
    markers are left out). The other attributes describe the last step.
    """

    __slots__ = (
        "changed",
        "direct",
        "gone",
        "keys",
        "layouts",
        "leaves",
        "machine",
        "places",
        "ranges",
        "spans",
        "stored",
        "stray",
    )

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.places: dict[int, dict[Place, None]] = {}
        self.layouts: dict[int, dict[VmAreaStruct, Imprint]] = {}  # process label to what it mapped
        self.stored: dict[Place, None] = {}  # leaf places stored to
        self.keys: dict[int, None] = {}  # leaf keys that gained or lost a place
        self.ranges: list[tuple[MmStruct, int, int]] = []  # [start, end) whose tables were linked or unlinked
        self.changed: list[VmAreaStruct] = []  # new, or anything in the imprint changed
        self.gone: list[tuple[int, VmAreaStruct]] = []  # (process, VMA that is no longer mapped)
        # process to ranges (bytes) where another VMA, another attribute or another page offset stands now
        self.spans: dict[int, list[tuple[int, int]]] = {}
        self.leaves: list[Leaf] = []  # stored places (``direct`` of them, first), and all leaves of the spans
        self.direct = 0
        self.stray: list[Place] = []  # stored places with an entry in a table that no process can reach

    # ---- the inverse map

    def _forget(self, place: Place, entry: int) -> None:
        key = leaf_key(entry)
        if entry & SPECIAL or key & 7 == KIND_MARKER:
            return
        self.keys[key] = None
        holders = self.places[key]
        del holders[place]
        if not holders:
            del self.places[key]

    def _learn(self, place: Place, entry: int) -> None:
        key = leaf_key(entry)
        if entry & SPECIAL or key & 7 == KIND_MARKER:
            return
        self.keys[key] = None
        holders = self.places.get(key)
        if holders is None:
            self.places[key] = {place: None}
        else:
            holders[place] = None

    def _read_log(self) -> None:
        """Take the stores of the step into the inverse map."""
        stored = self.stored = {}
        self.keys = {}
        self.ranges = []
        linked: list[PageTable] = []
        relinked: list[Place] = []
        for table, slot, old, new in self.machine.store_log:
            place = (table, slot)
            if old.__class__ is PageTable:
                relinked.append(place)
            elif old:
                self._forget(place, old)  # type: ignore[arg-type]
            if new.__class__ is PageTable:
                relinked.append(place)
                linked.append(new)
            else:
                if new:
                    self._learn(place, new)  # type: ignore[arg-type]
                stored[place] = None
        if relinked:
            self._follow_tables(relinked, linked)

    def _follow_tables(self, relinked: list[Place], linked: list[PageTable]) -> None:
        """Tables came or went: the leaves below have other addresses now, and the ranges other translations."""
        shifts = self.machine.geometry.shifts
        for table, slot in relinked:
            base = table.base(self.machine.geometry)
            if base is not None:  # else the table itself was unlinked, and a higher store covers the range
                shift = shifts[table.level]
                start = base + (slot << shift)
                self.ranges.append((table.mm, start, start + (1 << shift)))
        below: list[tuple[PageTable, int, int, int]] = []
        for table in linked:
            collect_leaves(table, 0, 0, 1 << 64, shifts, below)
        for table, slot, _, _ in below:
            self.stored[table, slot] = None

    # ---- the layout

    def _compare_layout(self, label: int) -> None:
        mm = self.machine.procs.get(label)
        before = self.layouts.get(label) or {}
        now: dict[VmAreaStruct, Imprint] = {}
        if mm is not None:
            for vma in mm.mm_mt:
                new = now[vma] = (
                    vma.vm_start,
                    vma.vm_end,
                    vma.vm_pgoff,
                    vma.anon_vma,
                    vma.vm_flags,
                    len(vma.anon_vma_chain),
                )
                was = before.get(vma)
                if was != new:
                    self._note_change(label, vma, was, new)
        if before and (len(now) != len(before) or self.changed):
            for vma, was in before.items():
                if vma not in now:
                    self.gone.append((label, vma))
                    self.spans.setdefault(label, []).append((was[0], was[1]))
        if mm is not None:
            self.layouts[label] = now
        elif before:
            del self.layouts[label]

    def _note_change(self, label: int, vma: VmAreaStruct, was: Imprint | None, new: Imprint) -> None:
        """The VMA is new (``was`` None), or was different."""
        self.changed.append(vma)
        start, end = new[0], new[1]
        if was is None:
            self.spans.setdefault(label, []).append((start, end))
            return
        old_start, old_end = was[0], was[1]
        same_place = new[2] - was[2] == start - old_start >> PAGE_SHIFT and was[4] == new[4]
        same_rmap = was[3] is None or (was[3] is new[3] and was[5] == new[5])
        if not (same_place and same_rmap):
            self.spans.setdefault(label, []).append((min(start, old_start), max(end, old_end)))
            return
        if start != old_start:
            self.spans.setdefault(label, []).append((min(start, old_start), max(start, old_start)))
        if end != old_end:
            self.spans.setdefault(label, []).append((min(end, old_end), max(end, old_end)))

    def _compare_one(self, label: int, address: int) -> None:
        """An access can change no VMA but the one that it meets."""
        mm = self.machine.procs.get(label)
        vma = mm.mm_mt.lookup(address) if mm is not None else None
        if vma is not None:
            layout = self.layouts.setdefault(label, {})
            new = imprint(vma)
            was = layout.get(vma)
            if was != new:
                layout[vma] = new
                self._note_change(label, vma, was, new)

    def _compare_layouts(self, ops: Iterable[Op]) -> None:
        self.changed = []
        self.gone = []
        self.spans = {}
        whole: dict[int, None] = {}
        for op in ops:
            kind = op.kind
            if kind in ACCESSES:
                if op.proc not in whole:
                    self._compare_one(op.proc, self.machine.geometry.arena_start + (op.args[0] << PAGE_SHIFT))
            elif kind not in _KEEPS_LAYOUT:
                whole[op.proc] = None
                if kind == "fork":
                    whole[op.args[0]] = None
        for label in whole:
            self._compare_layout(label)

    # ---- leaves of the step

    def _collect(self) -> None:
        """Every leaf whose translation, address or VMA may have changed in the step, once each."""
        geometry = self.machine.geometry
        shifts = geometry.shifts
        procs = self.machine.procs
        leaves = self.leaves
        known: PageTable | None = None
        base: int | None = None
        for place in self.stored:
            table, slot = place
            if table is not known:
                known = table
                base = table.base(geometry)
            entry = table.entries.get(slot, 0)
            mm = table.mm
            if base is None or procs.get(mm.label) is not mm:
                if entry:
                    self.stray.append(place)
            elif entry.__class__ is not PageTable:
                address = base + (slot << shifts[table.level])
                leaf = (table, slot, mm, address, entry, mm.mm_mt.lookup(address))
                leaves.append(_new(Leaf, leaf))
        self.direct = len(leaves)
        if self.spans:
            self._collect_spans()

    def _collect_spans(self) -> None:
        machine = self.machine
        seen = dict(self.stored)
        for label, spans in self.spans.items():
            mm = machine.procs.get(label)
            if mm is None or not mm.pgd.entries:
                continue
            spans.sort()
            found: list[tuple[PageTable, int, int, int]] = []
            done = 0
            for start, end in spans:
                if end > done:
                    add_leaves(mm, machine.geometry, max(start, done), end, found)
                    done = end
            lookup = mm.mm_mt.lookup
            for table, slot, address, entry in found:
                place = (table, slot)
                if place not in seen:
                    seen[place] = None
                    self.leaves.append(_new(Leaf, (table, slot, mm, address, entry, lookup(address))))

    def observe(self, ops: Iterable[Op]) -> None:
        """Take in the step that just ran, whose operations were ``ops``."""
        self._read_log()
        self._compare_layouts(ops)
        self.leaves = []
        self.direct = 0
        self.stray = []
        if self.stored or self.spans:
            self._collect()

    def observe_everything(self) -> None:
        """As ``observe``, with every VMA and every leaf of every process counted as touched.

        Follows a call of ``observe`` for the same step: the log is not read again.
        """
        m = self.machine
        self.changed = [vma for mm in m.procs.values() for vma in mm.mm_mt]
        self.spans = {
            label: [(vma.vm_start, vma.vm_end) for vma in mm.mm_mt] for label, mm in m.procs.items()
        }
        self.layouts = {label: {vma: imprint(vma) for vma in mm.mm_mt} for label, mm in m.procs.items()}
        self.gone = []
        self.keys = dict.fromkeys(self.places)
        self.leaves = []
        self.direct = 0
        for mm in m.procs.values():
            for table, slot, address, entry in leaves_between(mm, m.geometry, 0, 1 << 64):
                self.leaves.append(_new(Leaf, (table, slot, mm, address, entry, mm.mm_mt.lookup(address))))
        reached = {(leaf.table, leaf.slot) for leaf in self.leaves}
        self.stray = [place for holders in self.places.values() for place in holders if place not in reached]

    # ---- questions

    def mappings(self, pfn: int) -> dict[Place, None]:
        """Places of present entries that name the frame (PTEs, or PMDs whose first frame it is)."""
        return self.places.get(pfn << KIND_BITS, _NO_PLACES)

    def holders(self, key: int) -> dict[Place, None]:
        """Places of entries with this leaf key."""
        return self.places.get(key, _NO_PLACES)

    def leaf_at(self, place: Place) -> Leaf | None:
        """The leaf at a place with its address; None where its table is not linked."""
        table, slot = place
        base = table.base(self.machine.geometry)
        if base is None:
            return None
        address = base + (slot << self.machine.geometry.shifts[table.level])
        entry = table.entries.get(slot, 0)
        return Leaf(table, slot, table.mm, address, entry, table.mm.mm_mt.lookup(address))  # type: ignore[arg-type]


_NO_PLACES: Final[dict[Place, None]] = {}
