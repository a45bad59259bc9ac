"""The kernel's mremap tests (selftests/mm/mremap_test.c, mremap_dontunmap.c), sizes scaled to each page-table geometry.

The selftests' 1 MB, half of what a PTE table maps on x86-64, is ``HALF`` here; 2 MB is ``PMD``, 1 GB ``PUD``.
"""

from __future__ import annotations

import pytest

from emulator.geometry import LEVEL_PMD, LEVEL_PTE, LEVEL_PUD
from emulator.hw.pgtable import PageTable
from emulator.uapi import (
    EFAULT,
    EINVAL,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_EXEC,
    PROT_NONE,
    UFFDIO_REGISTER_MODE_MISSING,
)
from emulator.workload import MEMFD
from tests.emulator.kernel_world import RW, World

pytestmark = pytest.mark.live

FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
GEOMETRIES = ["small4", "small8", "x86-64"]


def unit(world: World, name: str) -> int:
    """A size of the table as pages."""
    pmd = world.machine.geometry.hpage_pmd_nr
    return {"PTE": 1, "HALF": pmd // 2, "PMD": pmd, "PUD": pmd * pmd}[name]


def mapped(geometry: str, pages: int, page: int = 0) -> World:
    world = World(geometry)
    world.mmap(page, pages)
    return world


# source alignment, destination alignment, size (units of the table), level at which most of it moves
ALIGNMENTS = [
    ("PTE", "PTE", 2, "PTE", LEVEL_PTE),
    ("HALF", "PTE", 2, "HALF", LEVEL_PTE),
    ("HALF", "HALF", 2, "HALF", LEVEL_PMD),  # realigned down to the table: it moves whole
    ("PMD", "PTE", 2, "PMD", LEVEL_PTE),
    ("PMD", "HALF", 2, "PMD", LEVEL_PTE),
    ("PMD", "PMD", 2, "PMD", LEVEL_PMD),
    ("PUD", "PTE", 2, "PUD", LEVEL_PTE),
    ("PUD", "HALF", 2, "PUD", LEVEL_PTE),
    ("PUD", "PMD", 2, "PUD", LEVEL_PMD),
    ("PUD", "PUD", 2, "PUD", LEVEL_PUD),
    ("HALF", "HALF", 5, "HALF", LEVEL_PMD),
]


@pytest.mark.parametrize("preamble", [None, "source", "destination"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    ("src", "dst", "count", "size", "level"),
    [pytest.param(*row, id=f"{row[0]}-{row[1]}-{row[2]}{row[3]}") for row in ALIGNMENTS],
)
def test_alignment(
    src: str, dst: str, count: int, size: str, level: int, geometry: str, preamble: str | None
) -> None:
    """Data arrives whatever the alignment; whole tables move where both sides are aligned, entries elsewhere.

    With a preamble, memory right before the source or the destination keeps its contents and forbids realigning.
    """
    world = World(geometry)
    pages = count * unit(world, size)
    pud = unit(world, "PUD")
    # two places that are far apart, each aligned as asked but not more; both above the arena
    start = 4 * pud + odd_multiple(world, src)
    target = 8 * pud + odd_multiple(world, dst)
    before = {"source": start - 1, "destination": target - 1}.get(str(preamble), 0)
    world.mmap(before, 1, RW | PROT_EXEC)
    kept = world.write(before)
    world.mmap(start, pages)
    tokens = {page: world.write(start + page) for page in sample(world, pages)}
    assert world.do("mremap", start, pages, pages, FIXED, target) == target
    moved = moved_tables(world)
    assert {page: world.content(target + page) for page in tokens} == {p: {0: t} for p, t in tokens.items()}
    assert world.content(start) is None
    assert world.content(before) == {0: kept}
    if preamble and (src, dst, count) == ("HALF", "HALF", 2):
        level = LEVEL_PTE  # it cannot realign
    assert max(moved, default=LEVEL_PTE) == level
    world.check()


def moved_tables(world: World) -> list[int]:
    """The levels at which the last step took a table out of one place and put it into another."""
    taken = [old for _, _, old, new in world.machine.store_log if isinstance(old, PageTable) and new == 0]
    return [
        table.level for table, _, _, new in world.machine.store_log if any(new is other for other in taken)
    ]


def odd_multiple(world: World, name: str) -> int:
    """An offset that is aligned to the unit and to nothing larger, except that a PUD is the largest."""
    return 0 if name == "PUD" else unit(world, name)


def sample(world: World, pages: int) -> list[int]:
    """Pages worth a look: the edges of the range and of its tables."""
    step = max(1, unit(world, "PMD") // 2)
    near = [p + d for p in (0, *range(step, min(pages, 5 * step), step), pages) for d in (-1, 0)]
    return sorted({p for p in near if 0 <= p < pages})


@pytest.mark.parametrize(
    ("addr", "new_addr"), [(0, 4096), (0, 1024), (1024, 1 << 17)], ids=["overlap", "misaligned", "source"]
)
def test_alignment_errors(addr: int, new_addr: int) -> None:
    """Overlapping ranges and misaligned addresses are refused and move nothing."""
    world = mapped("small8", 2)
    token = world.write(0)
    start = world.address(0)
    mremap = world.image.mremap.sys_mremap
    assert mremap(world.mm(), start + addr, 8192, 8192, FIXED, start + new_addr) == -EINVAL
    assert world.contents() == {0: {0: token}, 1: {}}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    ("hole", "source"), [pytest.param(1, 0, id="expand_merge"), pytest.param(2, 1, id="expand_merge_offset")]
)
def test_growth_in_place_merges(hole: int, source: int, geometry: str) -> None:
    """A VMA (or its last page) that grows up to the next one merges with it."""
    world = mapped(geometry, 4 if hole == 2 else 3)
    assert world.do("munmap", hole, 1) == 0
    assert world.do("mremap", source, 1, 2, 0, 0) == source
    assert world.layout() == [(0, 4 if hole == 2 else 3)]
    world.check()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_move_within_range(geometry: str) -> None:
    """A move inside one mapping must not realign: what lies before the source stays in place."""
    world = World(geometry)
    mb = unit(world, "HALF")
    world.mmap(0, 20 * mb)
    source = 10 * mb
    tokens = [world.write(source + page) for page in range(2 * mb)]
    target = source - 2 * mb
    assert world.do("mremap", source + mb, mb, mb, FIXED, target + mb) == target + mb
    for page in range(mb):
        assert world.content(source + page) == {0: tokens[page]}
        assert world.content(target + mb + page) == {0: tokens[mb + page]}
        assert world.content(source + mb + page) is None
    world.check()


@pytest.mark.parametrize(("geometry", "offset"), [("small8", 2), ("x86-64", 128)])
def test_move_from_the_middle_of_a_vma(geometry: str, offset: int) -> None:
    """The range does not begin its VMA: what lies before it in the same page table stays, though all is aligned."""
    world = World(geometry)
    mb = unit(world, "HALF")
    source, target = 2 * mb + offset, 20 * mb + offset
    world.mmap(source, 6 * mb)
    world.mmap(target, 6 * mb)
    tokens = [world.write(source + page) for page in range(2 * mb)]
    assert world.do("munmap", target, mb) == 0
    assert world.do("mremap", source + mb, mb, mb, FIXED, target + mb) == target + mb
    assert [world.content(source + page) for page in range(mb)] == [{0: t} for t in tokens[:mb]]
    assert [world.content(target + mb + page) for page in range(mb)] == [{0: t} for t in tokens[mb:]]
    world.check()


@pytest.mark.parametrize("flags", [0, FIXED], ids=["in_place", "fixed"])
def test_shrink_multiple_vmas(flags: int) -> None:
    """A shrink may cross VMAs and holes: every page past the new length goes."""
    world = mapped("small8", 10)
    for page in (1, 3, 5, 7, 9):
        assert world.do("munmap", page, 1) == 0
    target = 32 if flags else 0
    token = world.write(0)
    assert world.do("mremap", 0, 10, 1, flags, 32) == target
    assert world.contents() == {target: {0: token}}
    world.check(committed=not flags)  # Linux charges the tail of a moving shrink a second time


PIECES = {"move_multiple_vmas": (11, (1, 3, 7, 9), 0, 11), "move_multiple_vmas_split": (10, (5,), 2, 7)}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dontunmap", [0, MREMAP_DONTUNMAP], ids=["move", "dontunmap"])
@pytest.mark.parametrize("target", [40, 20], ids=["far", "next_to_itself"])
@pytest.mark.parametrize("occupied", [False, True], ids=["", "over_prot_none"])
@pytest.mark.parametrize("case", PIECES)
def test_move_multiple_vmas(case: str, dontunmap: int, target: int, occupied: bool, geometry: str) -> None:
    """Every VMA of the range moves, gaps are kept, data and what lay in the destination's gaps survive."""
    pages, holes, first, length = PIECES[case]
    world = mapped(geometry, pages, page=20 - first - length)
    base = 20 - first - length
    for hole in holes:
        assert world.do("munmap", base + hole, 1) == 0
    live = [p for p in range(first, first + length) if p not in holes]
    tokens = {page: world.write(base + page) for page in live}
    if occupied:
        world.mmap(target, length, PROT_NONE)
    start = base + first
    assert world.do("mremap", start, length, length, FIXED | dontunmap, target) == target
    for page in range(first, first + length):
        there = target + page - first
        if page in tokens:
            assert world.content(there) == {0: tokens[page]}
            assert world.content(base + page) == ({} if dontunmap else None)
        else:
            assert world.content(there) == ({} if occupied else None)
    world.check()


# Pages 0 2 4 6 8, each a mapping of its own: which are registered with userfaultfd, what is moved, and what of it then
# is at its new place. A registered mapping can be moved, but only alone.
INVALID = [
    ("all_armed", (0, 2, 4, 6, 8), (0, 10), -EFAULT, ()),
    ("one_alone", (0, 2, 4, 6, 8), (0, 1), 40, (0,)),
    ("all_but_the_first", (2, 4, 6, 8), (0, 10), -EFAULT, (0,)),
    ("the_last", (8,), (0, 10), -EFAULT, (0, 2, 4, 6)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    ("armed", "moved", "result", "gone"), [pytest.param(*row[1:], id=row[0]) for row in INVALID]
)
def test_move_multi_invalid_vmas(
    armed: tuple[int, ...], moved: tuple[int, int], result: int, gone: tuple[int, ...], geometry: str
) -> None:
    """The mappings before the first that cannot move have moved, the others are where they were."""
    world = World(geometry)
    for page in range(0, 10, 2):
        world.mmap(page, 1)
    for page in armed:
        assert world.do("uffd_register", page, 1, UFFDIO_REGISTER_MODE_MISSING) == 0
    start, length = moved
    assert world.do("mremap", start, length, length, FIXED, 40) == result
    assert [page for page in range(0, 10, 2) if not world.mm().mm_mt.lookup(world.address(page))] == list(
        gone
    )
    assert [page for page in range(0, 10, 2) if world.mm().mm_mt.lookup(world.address(40 + page))] == list(
        gone
    )
    world.check()


@pytest.mark.parametrize("pages", [5, 8, 64], ids=["entries", "table", "pud"])
def test_dontunmap_simple(pages: int) -> None:
    """The source stays mapped and reads as zeros, also on a CPU that had its translations cached."""
    world = mapped("small8", pages)
    tokens = [world.write(page) for page in range(pages)]
    assert world.do("mremap", 0, pages, pages, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 64) == 64
    assert [world.content(64 + page) for page in range(pages)] == [{0: t} for t in tokens]
    for page in range(pages):
        assert world.do("read", page) == 0
        assert world.last.data == ()
    world.check()


def test_dontunmap_simple_shmem() -> None:
    """The source of shared memory stays mapped and shows the same pages as the destination."""
    world = World("small8")
    world.mmap(0, 5, RW, MAP_SHARED | MAP_FIXED, MEMFD + 1)
    tokens = [world.write(page) for page in range(5)]
    target = world.do("mremap", 0, 5, 5, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 64)
    assert target == 64
    for page, token in enumerate(tokens):
        for place in (target + page, page):
            assert world.do("read", place) == 0
            assert world.last.data == ((0, token),)
    assert world.do("munmap", target, 5) == 0
    world.check()


def test_dontunmap_fixed() -> None:
    """What lay at the destination is replaced."""
    world = mapped("small8", 5)
    world.mmap(32, 5)
    tokens = [world.write(page) for page in range(5)]
    for page in range(32, 37):
        world.write(page, 1)
    assert world.do("mremap", 0, 5, 5, FIXED | MREMAP_DONTUNMAP, 32) == 32
    assert [world.content(32 + page) for page in range(5)] == [{0: t} for t in tokens]
    assert all(world.content(page) == {} for page in range(5))
    world.check()


def test_dontunmap_partial_mapping() -> None:
    """The last 5 of 10 pages: the first half keeps its data, the second reads as zeros."""
    world = mapped("small8", 10)
    tokens = [world.write(page) for page in range(10)]
    assert world.do("mremap", 5, 5, 5, FIXED | MREMAP_DONTUNMAP, 32) == 32
    assert [world.content(page) for page in range(10)] == [{0: t} for t in tokens[:5]] + [{}] * 5
    assert [world.content(32 + page) for page in range(5)] == [{0: t} for t in tokens[5:]]
    assert world.layout() == [(0, 10), (32, 5)]
    world.check()


def test_dontunmap_partial_mapping_overwrite() -> None:
    """5 pages over the first half of 10: the second half of the destination stays."""
    world = mapped("small8", 5)
    world.mmap(32, 10)
    tokens = [world.write(page) for page in range(5)]
    there = [world.write(page) for page in range(32, 42)]
    assert world.do("mremap", 0, 5, 5, FIXED | MREMAP_DONTUNMAP, 32) == 32
    assert [world.content(32 + page) for page in range(10)] == [{0: t} for t in tokens + there[5:]]
    assert all(world.content(page) == {} for page in range(5))
    world.check()
