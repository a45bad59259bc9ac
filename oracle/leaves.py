"""Leaf entries of page tables: where they stand, what they point to, finding those of a range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.geometry import PAGE_SHIFT
from emulator.hw.pgtable import PageTable

if TYPE_CHECKING:
    from emulator.geometry import Geometry
    from emulator.mm_types import MmStruct, VmAreaStruct

Place = tuple[PageTable, int]
"""Where a leaf entry stands: (table, slot)."""

# A leaf key says what an entry points to: the value (pfn or swap slot) and, in the low three bits, the kind.
KIND_BITS: Final = 3
KIND_PRESENT: Final = 0
KIND_SWAP: Final = 1
KIND_MIGRATION: Final = 2
KIND_MARKER: Final = 5
_KIND_OF_TYPE: Final = (0, KIND_SWAP, KIND_MIGRATION, KIND_MIGRATION, KIND_MIGRATION, KIND_MARKER, 0, 0)

_CHUNKS_MAX: Final = 8  # PTE tables that are looked at one by one


class Leaf(NamedTuple):
    """One leaf entry as it stands after the step, 0 where it was cleared; ``vma`` is what covers it."""

    table: PageTable
    slot: int
    mm: MmStruct
    address: int
    entry: int
    vma: VmAreaStruct | None


def leaf_key(entry: int) -> int:
    """What a leaf entry points to, as one int; markers all alike."""
    if entry & 1:
        return entry >> 12 << KIND_BITS
    return entry >> 12 << KIND_BITS | _KIND_OF_TYPE[entry >> 3 & 7]


def collect_leaves(
    table: PageTable,
    base: int,
    start: int,
    end: int,
    shifts: tuple[int, ...],
    out: list[tuple[PageTable, int, int, int]],
) -> None:
    """Append (table, slot, address, entry) of every leaf below ``table`` that meets [start, end) (bytes)."""
    shift = shifts[table.level]
    size = 1 << shift
    for slot, entry in table.entries.items():
        address = base + (slot << shift)
        if address < end and address + size > start:
            if entry.__class__ is PageTable:
                collect_leaves(entry, address, start, end, shifts, out)
            else:
                out.append((table, slot, address, entry))  # type: ignore[arg-type]


def leaves_between(
    mm: MmStruct, geometry: Geometry, start: int, end: int
) -> list[tuple[PageTable, int, int, int]]:
    """(table, slot, address, entry) of every leaf of ``mm`` that meets [start, end) (bytes)."""
    out: list[tuple[PageTable, int, int, int]] = []
    add_leaves(mm, geometry, start, end, out)
    return out


def add_leaves(
    mm: MmStruct, geometry: Geometry, start: int, end: int, out: list[tuple[PageTable, int, int, int]]
) -> None:
    """As ``leaves_between``, appending. A short range costs a walk for each PTE table in it."""
    shifts = geometry.shifts
    size = geometry.pmd_size
    base = start & geometry.pmd_mask
    if end - base > _CHUNKS_MAX * size:
        collect_leaves(mm.pgd, 0, start, end, shifts, out)
        return
    mask = geometry.index_mask
    while base < end:
        table = mm.pgd
        while True:
            slot = (base >> shifts[table.level]) & mask
            entry = table.entries.get(slot, 0)
            if entry.__class__ is not PageTable:
                if entry:  # a huge page; an entry above the PMD level covers more than this chunk
                    address = base >> shifts[table.level] << shifts[table.level]
                    out.append((table, slot, address, entry))  # type: ignore[arg-type]
                break
            table = entry
            if not table.level:
                for slot, entry in table.entries.items():
                    address = base + (slot << PAGE_SHIFT)
                    if start <= address < end:
                        out.append((table, slot, address, entry))  # type: ignore[arg-type]
                break
        base += size
