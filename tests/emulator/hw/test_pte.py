"""Page-table entries as integers."""

from __future__ import annotations

import pytest

from emulator.hw import pte

ENTRIES = [
    (0, "none", 0, False, False, False),
    (pte.mk_pte(12, pte.USER | pte.RW | pte.DIRTY), "pfn 12 user rw dirty", 0, False, False, False),
    (pte.mk_pte(1, pte.USER | pte.SPECIAL), "pfn 1 user special", 0, False, False, False),
    (pte.mk_pte(8, pte.USER | pte.PSE | pte.EXEC), "pfn 8 user x huge", 0, False, False, False),
    (pte.mk_softleaf(pte.SOFTLEAF_SWAP, 3), "swap 3", 1, True, False, False),
    (pte.mk_softleaf(pte.SOFTLEAF_SWAP, 3, pte.SWP_EXCLUSIVE), "swap 3 excl", 1, True, False, False),
    (pte.mk_softleaf(pte.SOFTLEAF_MIGRATION_READ, 9), "migration-read 9", 2, False, True, False),
    (
        pte.mk_softleaf(pte.SOFTLEAF_MIGRATION_READ_EXCLUSIVE, 9),
        "migration-read-excl 9",
        3,
        False,
        True,
        False,
    ),
    (pte.mk_softleaf(pte.SOFTLEAF_MIGRATION_WRITE, 9), "migration-write 9", 4, False, True, False),
    (pte.mk_softleaf(pte.SOFTLEAF_MARKER, pte.MARKER_GUARD), "marker 1", 5, False, False, True),
    (pte.mk_softleaf(pte.SOFTLEAF_MARKER, pte.MARKER_UFFD_WP), "marker 2", 5, False, False, False),
]


@pytest.mark.parametrize(
    ("entry", "text", "kind", "swap", "migration", "guard"),
    [pytest.param(*row, id=row[1].replace(" ", "_")) for row in ENTRIES],
)
def test_kinds(entry: int, text: str, kind: int, swap: bool, migration: bool, guard: bool) -> None:
    """An entry is one thing only, and reads as that."""
    assert pte.describe(entry) == text
    assert pte.softleaf_type(entry) == kind
    assert (pte.is_swap(entry), pte.is_migration(entry), pte.is_guard(entry)) == (swap, migration, guard)
    assert pte.pte_present(entry) == text.startswith("pfn")


@pytest.mark.parametrize("value", [1, 7, 1 << 30])
@pytest.mark.parametrize("flags", [0, pte.SWP_EXCLUSIVE, pte.SOFT_DIRTY, pte.UFFD_WP])
@pytest.mark.parametrize("kind", range(1, 6))
def test_softleaf_round_trip(kind: int, value: int, flags: int) -> None:
    """Type, value and flags do not get into each other's way, and never look present."""
    entry = pte.mk_softleaf(kind, value, flags)
    assert pte.softleaf_type(entry) == kind
    assert pte.softleaf_value(entry) == value
    assert not entry & pte.PRESENT
    assert entry & flags == flags


def test_frame_number() -> None:
    """Flags and frame do not overlap."""
    every = pte.RW | pte.USER | pte.ACCESSED | pte.DIRTY | pte.PSE | pte.SPECIAL | pte.EXEC | pte.SOFT_DIRTY
    entry = pte.mk_pte(0xABCDE, every | pte.UFFD_WP | pte.SWP_EXCLUSIVE)
    assert pte.pte_pfn(entry) == 0xABCDE
