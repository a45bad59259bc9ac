"""Page-table entries as integers, the way the hardware and the kernel see them.

A leaf entry (PTE, or PMD/PUD with ``PAGE_PSE``) is an int: flag bits below bit 12, the frame number (pfn) above.
0 is "none". An entry without ``PRESENT`` is a *softleaf*: swap, migration or marker (include/linux/leafops.h);
bits 3-5 say which, bits 12 and up hold its value.

``USER`` is clear for PROT_NONE: present to the kernel, a fault to the hardware.
"""

from __future__ import annotations

from typing import Final

PRESENT: Final = 1 << 0
RW: Final = 1 << 1
USER: Final = 1 << 2
ACCESSED: Final = 1 << 3
DIRTY: Final = 1 << 4
PSE: Final = 1 << 5  # leaf above the PTE level
SPECIAL: Final = 1 << 6  # no struct page is accounted: the zero page
EXEC: Final = 1 << 7  # the inverse of NX
SOFT_DIRTY: Final = 1 << 8
UFFD_WP: Final = 1 << 9
SWP_EXCLUSIVE: Final = 1 << 10  # softleaf only: the swapped-out page was PageAnonExclusive

PFN_SHIFT: Final = 12
FLAGS_MASK: Final = (1 << PFN_SHIFT) - 1
PROT_BITS: Final = USER | RW | EXEC

# softleaf types (bits 3-5 of an entry that is not present)
_TYPE_SHIFT: Final = 3
_TYPE_MASK: Final = 7 << _TYPE_SHIFT
SOFTLEAF_SWAP: Final = 1
SOFTLEAF_MIGRATION_READ: Final = 2
SOFTLEAF_MIGRATION_READ_EXCLUSIVE: Final = 3
SOFTLEAF_MIGRATION_WRITE: Final = 4
SOFTLEAF_MARKER: Final = 5

MARKER_GUARD: Final = 1
MARKER_UFFD_WP: Final = 2
MARKER_POISON: Final = 4


def mk_pte(pfn: int, flags: int) -> int:
    """A present leaf of frame ``pfn`` with the given flag bits."""
    return pfn << PFN_SHIFT | flags | PRESENT


def pte_pfn(pte: int) -> int:
    """The frame number of a present leaf."""
    return pte >> PFN_SHIFT


def pte_present(pte: int) -> bool:
    return pte & PRESENT != 0


def mk_softleaf(kind: int, value: int, flags: int = 0) -> int:
    """A non-present entry: ``value`` is a swap slot, a pfn under migration, or marker bits."""
    return value << PFN_SHIFT | kind << _TYPE_SHIFT | flags


def softleaf_type(pte: int) -> int:
    """Which softleaf; 0 for none and for present entries."""
    return 0 if pte & PRESENT else (pte & _TYPE_MASK) >> _TYPE_SHIFT


def softleaf_value(pte: int) -> int:
    return pte >> PFN_SHIFT


def is_swap(pte: int) -> bool:
    return softleaf_type(pte) == SOFTLEAF_SWAP


def is_migration(pte: int) -> bool:
    return SOFTLEAF_MIGRATION_READ <= softleaf_type(pte) <= SOFTLEAF_MIGRATION_WRITE


def is_guard(pte: int) -> bool:
    return softleaf_type(pte) == SOFTLEAF_MARKER and bool(softleaf_value(pte) & MARKER_GUARD)


def is_poison_marker(pte: int) -> bool:
    """Nothing can be read here (UFFDIO_POISON)."""
    return softleaf_type(pte) == SOFTLEAF_MARKER and bool(softleaf_value(pte) & MARKER_POISON)


def is_uffd_wp_marker(pte: int) -> bool:
    """Nothing is mapped, and userfaultfd wants to know of the first write."""
    return softleaf_type(pte) == SOFTLEAF_MARKER and bool(softleaf_value(pte) & MARKER_UFFD_WP)


def describe(pte: int) -> str:
    """An entry for people: ``pfn 12 rw dirty``, ``swap 3 excl``, ``migration 12 write``, ``none``."""
    if not pte:
        return "none"
    if pte & PRESENT:
        names = (
            (USER, "user"), (RW, "rw"), (EXEC, "x"), (DIRTY, "dirty"), (PSE, "huge"), (SPECIAL, "special"),
        )  # fmt: skip
        return " ".join([f"pfn {pte_pfn(pte)}", *(n for bit, n in names if pte & bit)])
    kinds = {1: "swap", 2: "migration-read", 3: "migration-read-excl", 4: "migration-write", 5: "marker"}
    text = f"{kinds[softleaf_type(pte)]} {softleaf_value(pte)}"
    return text + (" excl" if pte & SWP_EXCLUSIVE else "")
