"""Page tables with real levels.

A ``PageTable`` maps slot numbers to entries; absent means none. At the PTE level entries are ints
(``emulator.hw.pte``); above it an entry is a lower ``PageTable`` or, for a huge page, an int with ``PSE``
or a softleaf.

Every store goes through ``PageTable.set`` and is written to the *store log*, as a bus analyser would see
it: ``(table, slot, old, new)``. Oracles read the log instead of scanning tables, and so do not depend on
the code that they judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from emulator.geometry import LEVEL_PGD, LEVEL_PTE, Geometry

if TYPE_CHECKING:
    from emulator.mm_types import MmStruct
    from emulator.sched.locks import SpinLock


class PageTable:
    """One table. ``level`` is LEVEL_PTE … LEVEL_PGD."""

    __slots__ = ("entries", "level", "log", "mm", "parent", "ptl", "slot")

    def __init__(
        self, level: int, mm: MmStruct, ptl: SpinLock, log: list[tuple[PageTable, int, object, object]]
    ) -> None:
        self.level = level
        self.mm = mm
        self.ptl = ptl  # protects the entries (split PTE/PMD locks)
        self.entries: dict[int, int | PageTable] = {}
        self.parent: PageTable | None = None  # the table that points here, None when unlinked or the root
        self.slot = 0  # our slot in the parent
        self.log = log

    def get(self, slot: int) -> int | PageTable:
        """The entry, 0 for none."""
        return self.entries.get(slot, 0)

    def set(self, slot: int, entry: int | PageTable) -> None:
        """Store an entry; 0 clears. A table that is stored somewhere gets this one as its parent."""
        entries = self.entries
        old = entries.get(slot, 0)
        if entry == 0:
            if old == 0:
                return
            del entries[slot]
        else:
            entries[slot] = entry
        if old.__class__ is PageTable and old.parent is self and old.slot == slot:
            old.parent = None
        if entry.__class__ is PageTable:
            entry.parent = self
            entry.slot = slot
        self.log.append((self, slot, old, entry))

    def base(self, geometry: Geometry) -> int | None:
        """The virtual address that slot 0 translates (bytes), or None when not linked to a root."""
        address = 0
        table = self
        while table.level != LEVEL_PGD:
            parent = table.parent
            if parent is None:
                return None
            address += table.slot << geometry.shifts[parent.level]
            table = parent
        return address

    def leaves(self, geometry: Geometry, base: int = 0) -> Iterator[tuple[int, int, int]]:
        """Every leaf below this table in address order: (address in bytes, level, entry). For oracles."""
        shift = geometry.shifts[self.level]
        for slot in sorted(self.entries):
            entry = self.entries[slot]
            address = base + (slot << shift)
            if isinstance(entry, PageTable):
                yield from entry.leaves(geometry, address)
            else:
                yield address, self.level, entry

    def __repr__(self) -> str:
        return f"<{'PTE PMD PUD PGD'.split()[self.level]} table, {len(self.entries)} entries>"


StoreLog = list[tuple[PageTable, int, object, object]]


def walk_slot(mm: MmStruct, geometry: Geometry, address: int) -> tuple[PageTable, int, int]:
    """What the hardware walker finds for ``address``: (table, slot, leaf entry); entry 0 for none."""
    table = mm.pgd
    shifts = geometry.shifts
    mask = geometry.index_mask
    while True:
        level = table.level
        slot = (address >> shifts[level]) & mask
        entry = table.entries.get(slot, 0)
        if level == LEVEL_PTE or entry.__class__ is not PageTable:
            return table, slot, entry  # type: ignore[return-value]
        table = entry
