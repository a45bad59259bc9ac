"""Page-table geometry: how many entries a table holds, and what follows from it.

x86-64 (512 entries, source: the architecture) is for conformance and recordings. The small worlds (8 or
4 entries) make every table boundary, PMD move and huge page cheap to reach, and are what campaigns use.
All sizes and addresses are bytes.
"""

from __future__ import annotations

from typing import Final

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = ~(PAGE_SIZE - 1)

LEVEL_PTE: Final = 0
LEVEL_PMD: Final = 1
LEVEL_PUD: Final = 2
LEVEL_PGD: Final = 3
LEVELS: Final = 4


def page_align(length: int) -> int:
    """Round ``length`` (bytes) up to whole pages."""
    return (length + PAGE_SIZE - 1) & PAGE_MASK


class Geometry:
    """One page-table shape; immutable, shared by every machine that uses it."""

    __slots__ = (
        "arena_pages",
        "arena_start",
        "bits",
        "heap_page",
        "hpage_pmd_nr",
        "hpage_pmd_order",
        "index_mask",
        "name",
        "pgdir_shift",
        "pmd_mask",
        "pmd_shift",
        "pmd_size",
        "ptrs_per_table",
        "pud_shift",
        "pud_size",
        "shifts",
        "stack_guard_gap_max",
        "task_size",
    )

    def __init__(
        self, name: str, bits: int, arena_start: int, arena_pages: int, stack_guard_gap_max: int = 256
    ) -> None:
        self.name = name
        self.bits = bits
        self.ptrs_per_table = 1 << bits
        self.index_mask = self.ptrs_per_table - 1
        self.shifts = tuple(PAGE_SHIFT + bits * level for level in range(LEVELS))
        self.pmd_shift = self.shifts[LEVEL_PMD]
        self.pud_shift = self.shifts[LEVEL_PUD]
        self.pgdir_shift = self.shifts[LEVEL_PGD]
        self.pmd_size = 1 << self.pmd_shift
        self.pmd_mask = ~(self.pmd_size - 1)
        self.pud_size = 1 << self.pud_shift
        self.hpage_pmd_order = bits
        self.hpage_pmd_nr = 1 << bits
        # x86-64 user space is the lower half, less the guard page at its end (TASK_SIZE_MAX); a small
        # world has no kernel half.
        top = 1 << (PAGE_SHIFT + bits * LEVELS)
        self.task_size = (top >> 1 if bits == 9 else top) - PAGE_SIZE
        self.arena_start = arena_start
        self.arena_pages = arena_pages
        self.heap_page = arena_pages // 2  # arena page where the heap of the first process begins (start_brk)
        # pages below a stack that the kernel keeps free, at most: there is not room for 256 in a small world
        self.stack_guard_gap_max = stack_guard_gap_max

    def __repr__(self) -> str:
        return f"Geometry({self.name})"

    @property
    def arena_end(self) -> int:
        """First byte past the arena."""
        return self.arena_start + self.arena_pages * PAGE_SIZE


# The arena starts at a PUD boundary so that PMD- and PUD-level moves are in reach of small addresses.
GEOMETRIES: Final[dict[str, Geometry]] = {
    g.name: g
    for g in (
        Geometry("small8", 3, 64 * PAGE_SIZE, 192, 4),
        Geometry("small4", 2, 16 * PAGE_SIZE, 96, 2),
        Geometry("x86-64", 9, 0x1000_0000_0000, 1 << 18),
    )
}
