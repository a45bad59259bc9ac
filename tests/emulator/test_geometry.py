"""Page-table shapes."""

from __future__ import annotations

import pytest

from emulator.geometry import GEOMETRIES, LEVEL_PMD, LEVEL_PUD, Geometry, page_align


@pytest.mark.parametrize(
    ("name", "pmd_pages", "pud_pages", "task_size"),
    [
        ("x86-64", 512, 512 * 512, (1 << 47) - 4096),
        ("small8", 8, 64, (1 << 24) - 4096),
        ("small4", 4, 16, (1 << 20) - 4096),
    ],
)
def test_sizes(name: str, pmd_pages: int, pud_pages: int, task_size: int) -> None:
    """The numbers of the architecture, and of the small worlds."""
    g = GEOMETRIES[name]
    assert g.pmd_size == pmd_pages * 4096 == 1 << g.shifts[LEVEL_PMD]
    assert g.pud_size == pud_pages * 4096 == 1 << g.shifts[LEVEL_PUD]
    assert g.hpage_pmd_nr == 1 << g.hpage_pmd_order == pmd_pages
    assert g.pmd_mask == -g.pmd_size
    assert g.task_size == task_size


@pytest.mark.parametrize("g", GEOMETRIES.values(), ids=repr)
def test_arena(g: Geometry) -> None:
    """It begins at a PUD boundary, above mmap_min_addr, and fits into user space with room after it."""
    assert g.arena_start % g.pud_size == 0
    assert g.arena_start >= 65536
    assert g.arena_end == g.arena_start + g.arena_pages * 4096 < g.task_size
    assert g.arena_pages > 2 * g.hpage_pmd_nr


@pytest.mark.parametrize(("length", "aligned"), [(0, 0), (1, 4096), (4096, 4096), (4097, 8192)])
def test_page_align(length: int, aligned: int) -> None:
    """Up to whole pages."""
    assert page_align(length) == aligned
