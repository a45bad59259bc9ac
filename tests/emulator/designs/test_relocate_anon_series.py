"""The whole series of June 2025: its own selftests, large folios, the MUST flag, and the flaws it was posted with."""

from __future__ import annotations

from itertools import product

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.relocate_anon import RelocateAnon
from emulator.designs.relocate_anon_series import RelocateAnonSeries
from emulator.geometry import PAGE_SHIFT
from emulator.uapi import (
    EFAULT,
    EINVAL,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_MUST_RELOCATE_ANON,
    MREMAP_RELOCATE_ANON,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE
from tests.emulator.kernel_world import World
from tests.emulator.map_script import ScriptRunner
from tests.emulator.mm.world import is_huge

FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
RELOCATE = FIXED | MREMAP_RELOCATE_ANON
MUST = FIXED | MREMAP_MUST_RELOCATE_ANON
WORLDS = [("x86-64", 1000), ("x86-64", 1024), ("small8", 64), ("small8", 67), ("small4", 32)]


def series(geometry: str = "small8") -> World:
    return World(geometry, RelocateAnonSeries)


# ---- the selftests that the series adds to selftests/mm/merge.c, all with the MUST flag

SELFTESTS = [
    ("faulted_after_unfaulted", "A = C1+5; B = C7+5; mv B -> +1; F B; mvm B -> A+5; => A:10"),
    ("faulted_before_unfaulted", "A = C6+5; B = C12+5; mv B -> +1; F B; mvm B -> C1; => B:10"),
    (
        "faulted_between_unfaulted",
        "A = C1+5; B = C7+5; D = C14+5; mv B -> +1; mv D -> +2; mv D -> A+10; F B; mvm B -> A+5; => A:15",
    ),
    ("faulted_after_faulted", "A = C1+5; B = C7+5; mv B -> +1; F A; F B; mvm B -> A+5; => A:10"),
    ("faulted_before_faulted", "A = C6+5; B = C12+5; mv B -> +1; F A; F B; mvm B -> C1; => B:10"),
    (
        "faulted_between_faulted_unfaulted",
        "A = C1+5; B = C7+5; D = C14+5; mv B -> +1; mv D -> +2; mv D -> A+10; F A; F B; mvm B -> A+5; => A:15",
    ),
    (
        "faulted_between_unfaulted_faulted",
        "A = C1+5; B = C7+5; D = C14+5; mv B -> +1; mv D -> +2; mv D -> A+10; F B; F D; mvm B -> A+5; => A:15",
    ),
    (  # but only the latter two
        "faulted_between_faulted",
        """A = C1+5; B = C7+5; D = C14+5; mv B -> +1; mv D -> +2; mv D -> A+10
           F A; F B; F D; mvm B -> A+5; => A:5 B:10""",
    ),
    (
        "faulted_between_correctly_placed_faulted",
        "A = C1+15; F A; unmap A[5:10]; B = C20+5; F B; mvm B -> A+5; => A:15",
    ),
    ("mprotect_faulted_faulted", "A = C1+5; B = C12+5; F A; F B; ro B; mvm B -> A+5; => A:5; rw B; => A:10"),
    (
        "single_fork",
        "A = C0+3; F A; fork; P = A[0:1]; mvm P -> C3 EFAULT; child; mvm P -> C3 EFAULT",
    ),
    (
        "fork_twice",
        """A = C0+3; F A; P = A[0:1]; fork 1; mvm P -> C3 EFAULT; proc 1; fork 2; mvm P -> C3 EFAULT
           parent; mvm P -> C3 EFAULT; proc 2; mvm P -> C3 EFAULT""",
    ),
    (
        "3_times_reuse_anon_vma",
        """A = C0+3; F A; P = A[0:1]; fork 1; proc 1; fork 2; mvm P -> C3 EFAULT; unmap A
           proc 2; fork 3; mvm P -> C3 EFAULT; parent; mvm P -> C3 EFAULT; proc 3; mvm P -> C3 EFAULT""",
    ),
]


@pytest.mark.parametrize(("geometry", "far"), WORLDS)
@pytest.mark.parametrize("script", [pytest.param(row[1], id=row[0]) for row in SELFTESTS])
def test_selftest(script: str, geometry: str, far: int) -> None:
    """Each selftest of the series passes, with tables of every size."""
    ScriptRunner(series(geometry), far).run(script)


# ---- the author's matrix: what stands left and right, whether the moved VMA is populated

LEFT = {
    "none": "",
    "unfaulted": "A = C1+5",
    "same": "A = C1+15; F A; unmap A[5:15]",
    "other": "A = C1+5; F A",
}
RIGHT = {"none": "", "unfaulted": "D = C11+5", "other": "D = C11+5; F D"}


def expected(left: str, right: str, populated: bool) -> str:
    """What merges with the moved B: its anon_vma is the right neighbour's, else the left one's, else its own."""
    with_right = right != "none"
    with_left = left != "none"
    if right == "other" and left in ("same", "other"):
        # B, and an unfaulted B too, can be of one anon_vma only: relocation asks the right neighbour first, a plain
        # merge the left one
        if populated:
            with_left = False
        else:
            with_right = False
    return f"=> {'A' if with_left else 'B'}:{5 + 5 * with_left + 5 * with_right}"


@pytest.mark.parametrize(("geometry", "far"), [("x86-64", 1000), ("small8", 64), ("small4", 32)])
@pytest.mark.parametrize("populated", [False, True], ids=["unfaulted", "populated"])
@pytest.mark.parametrize(("left", "right"), list(product(LEFT, RIGHT)))
def test_matrix(left: str, right: str, populated: bool, geometry: str, far: int) -> None:
    """A VMA moved with MUST between any two neighbours merges with as many of them as one anon_vma allows."""
    source = f"B = C20+5; {'W B' if populated else ''}; mv B -> +1"
    script = f"{LEFT[left]}; {RIGHT[right]}; {source}; mvm B -> C6; {expected(left, right, populated)}"
    ScriptRunner(series(geometry), far).run(script)


@pytest.mark.parametrize(("geometry", "far"), [("x86-64", 1000), ("small8", 64), ("small4", 32)])
@pytest.mark.parametrize("populated", [False, True], ids=["unfaulted", "populated"])
def test_between_neighbours_of_one_anon_vma(populated: bool, geometry: str, far: int) -> None:
    """All three merge."""
    source = f"B = C20+5; {'W B' if populated else ''}; mv B -> +1"
    script = f"A = C1+15; F A; unmap A[5:10]; {source}; mvm B -> A+5; => A:15"
    ScriptRunner(series(geometry), far).run(script)


# ---- the flags


@pytest.mark.parametrize(
    ("design", "flags", "result"),
    [
        (Mainline, MUST, -EINVAL),
        (RelocateAnon, MUST, -EINVAL),
        (RelocateAnonSeries, MREMAP_MUST_RELOCATE_ANON, -EINVAL),
        (RelocateAnonSeries, MREMAP_MUST_RELOCATE_ANON | MREMAP_FIXED, -EINVAL),
        (RelocateAnonSeries, MUST, 3),
        (RelocateAnonSeries, MUST | MREMAP_RELOCATE_ANON, 3),
        (RelocateAnonSeries, RELOCATE, 3),
        (RelocateAnonSeries, MUST | MREMAP_DONTUNMAP, 3),
    ],
)
def test_flag(design: type[Design], flags: int, result: int) -> None:
    """Both flags need MAYMOVE; they may be given together."""
    world = World("small8", design)
    world.mmap(40, 3)
    world.write(40)
    assert world.do("mremap", 40, 3, 3, flags, 3) == result
    if result >= 0:
        assert world.folio(3).index == world.address(3) >> PAGE_SHIFT


def test_must_is_content_where_nothing_is_to_do() -> None:
    """An unfaulted VMA, and one that merges as it is, move without relocation and without an error."""
    world = series()
    world.mmap(40, 3)
    assert world.do("mremap", 40, 3, 3, MUST, 3) == 3
    world.mmap(50, 6)
    token = world.write(53)
    anon_vma = world.vma(50).anon_vma
    assert world.do("mremap", 53, 3, 3, FIXED, 80) == 80
    assert world.do("mremap", 80, 3, 3, MUST, 53) == 53
    assert world.vma(50).anon_vma is anon_vma
    assert world.span(50) == (50, 6)
    assert world.content(53) == {0: token}
    world.check()


def test_must_refuses_files() -> None:
    """Only anonymous memory is supported: EFAULT, where the other flag moves the ordinary way."""
    world = series()
    world.mmap(40, 3, file=1)
    assert world.do("mremap", 40, 3, 3, MUST, 3) == -EFAULT
    assert world.do("mremap", 40, 3, 3, RELOCATE, 3) == 3
    world.check()


def test_refusal_keeps_the_charge() -> None:
    """A flaw of the patch, kept: the refusal comes after the charge for a growing move, which is not given back."""
    world = series()
    world.mmap(40, 3)
    world.write(40)
    world.fork()
    before = world.machine.committed
    assert world.do("mremap", 40, 3, 5, MUST, 3) == -EFAULT
    assert world.machine.committed - before == 2
    world.check(committed=False)


# ---- large folios


def huge_world(page: int, pages: int, geometry: str = "small8") -> World:
    """``pages`` written pages at ``page`` that want huge pages, and a written neighbour at 0."""
    world = series(geometry)
    world.mmap(0, 1)
    world.write(0)
    world.mmap(page, pages)
    assert world.do("madvise", page, pages, MADV_HUGEPAGE) == 0
    for number in range(page, page + pages):
        world.write(number)
    return world


def split_pmd(world: World, page: int) -> None:
    """Map the huge page by PTEs from now on."""
    assert world.do("mprotect", page, 1, 1) == 0
    assert world.do("mprotect", page, 1, 3) == 0
    assert not is_huge(world, page)


@pytest.mark.parametrize("geometry", ["small4", "small8", "x86-64"])
@pytest.mark.parametrize("by_pte", [False, True], ids=["pmd_mapped", "pte_mapped"])
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "misaligned"])
def test_large_folio_is_relocated_whole(by_pte: bool, shift: int, geometry: str) -> None:
    """It stays one folio, under the index of its new place; an aligned PMD moves as such, a misaligned one is split."""
    world = series(geometry)
    nr = world.machine.geometry.hpage_pmd_nr
    world = huge_world(4 * nr, 2 * nr, geometry)
    if by_pte:
        split_pmd(world, 4 * nr)
    folios = [world.folio(page) for page in range(4 * nr, 6 * nr)]
    contents = [world.content(page) for page in range(4 * nr, 6 * nr)]
    assert [folio.nr_pages for folio in folios[::nr]] == [nr, nr]
    target = 8 * nr + shift
    assert world.do("mremap", 4 * nr, 2 * nr, 2 * nr, MUST, target) == target
    assert [world.folio(page) for page in range(target, target + 2 * nr)] == folios
    assert [world.content(page) for page in range(target, target + 2 * nr)] == contents
    assert is_huge(world, target) == (not by_pte and not shift)
    assert [f.index for f in folios[::nr]] == [(world.address(target) >> PAGE_SHIFT) + i for i in (0, nr)]
    world.check()


def test_relocated_huge_page_merges() -> None:
    """Beside small pages that belong to another anon_vma."""
    world = series()
    world.mmap(24, 8)
    world.mmap(64, 8)
    for page, pages in ((24, 8), (64, 8)):
        assert world.do("madvise", page, pages, MADV_HUGEPAGE) == 0
        world.write(page)
    assert world.do("mremap", 64, 8, 8, MUST, 32) == 32
    assert world.layout() == [(24, 16)]
    world.check()


@pytest.mark.parametrize(("first", "pages"), [(32, 5), (35, 5), (34, 3)], ids=["head", "tail", "middle"])
def test_large_folio_in_part_is_split(first: int, pages: int) -> None:
    """A folio that PTEs map and that is not moved whole is split, and what is moved is relocated."""
    world = huge_world(32, 8)
    split_pmd(world, 32)
    contents = [world.content(page) for page in range(first, first + pages)]
    assert world.do("mremap", first, pages, pages, MUST, 1) == 1
    assert [world.content(page) for page in range(1, 1 + pages)] == contents
    assert [world.folio(page).nr_pages for page in range(1, 1 + pages)] == [1] * pages
    assert world.layout()[0] == (0, 1)  # unlike its neighbour it wants huge pages
    world.check()


@pytest.mark.parametrize(("first", "pages"), [(32, 5), (35, 5)], ids=["head", "tail"])
def test_huge_page_in_part_gives_up(first: int, pages: int) -> None:
    """A flaw of the patch, kept: its text says that such a page is split, but a PMD that the range cuts is refused."""
    world = huge_world(32, 8)
    contents = [world.content(page) for page in range(32, 40)]
    assert world.do("mremap", first, pages, pages, MUST, 60) == -EFAULT
    assert [world.content(page) for page in range(32, 40)] == contents
    assert world.do("mremap", first, pages, pages, RELOCATE, 60) == 60
    assert world.folio(60).index != world.address(60) >> PAGE_SHIFT
    world.check(committed=False)


def test_split_that_would_lock_twice_gives_up() -> None:
    """The destination shares the anon_vma of the folio: the split would wait for a lock that the move holds."""
    world = series()
    world.mmap(24, 24)
    assert world.do("madvise", 24, 24, MADV_HUGEPAGE) == 0
    for page in range(24, 48):
        world.write(page)
    split_pmd(world, 40)
    # beside pages of the same VMA, and not where page offsets would let it merge
    assert world.do("mremap", 42, 4, 4, MUST, 48) == -EFAULT
    world.check(committed=False)


@pytest.mark.parametrize("by_pte", [False, True], ids=["pmd_mapped", "pte_mapped"])
def test_pinned_large_folio(by_pte: bool) -> None:
    """A PMD whose folio is pinned is a reason to give up; where PTEs map it, it is passed over: a flaw, kept."""
    world = huge_world(32, 8)
    if by_pte:
        split_pmd(world, 32)
    assert world.do("gup_slow", 33, FOLL_PIN | FOLL_WRITE, 0) == 0
    index = world.folio(32).index
    assert world.do("mremap", 32, 8, 8, MUST, 64) == (64 if by_pte else -EFAULT)
    assert world.folio(64 if by_pte else 32).index == index
    if not by_pte:
        world.check(committed=False)


def test_relocation_before_the_pinned_huge_page_is_undone() -> None:
    """A huge page and small pages that were relocated before the one that cannot be get their old index back."""
    world = huge_world(28, 20)
    assert [world.folio(page).nr_pages for page in (28, 32, 40)] == [1, 8, 8]
    assert world.do("gup_slow", 40, FOLL_PIN | FOLL_WRITE, 0) == 0
    indexes = [world.folio(page).index for page in (28, 32, 40)]
    anon_vma = world.vma(28).anon_vma
    assert world.do("mremap", 28, 20, 20, MUST, 60) == -EFAULT
    assert [world.folio(page).index for page in (28, 32, 40)] == indexes
    assert all(world.folio(page).mapping is anon_vma for page in (28, 32, 40))
    world.check(committed=False)


def test_folio_taken_for_one_at_a_multiple_of_its_size() -> None:
    """A flaw of the patch, kept: of a folio that is mapped elsewhere, a part is relocated as if it were all."""
    world = huge_world(32, 16)
    assert world.do("mremap", 32, 16, 16, FIXED, 67) == 67
    folio = world.folio(67)
    assert world.folio(72) is world.folio(74) is folio
    assert world.do("mremap", 72, 8, 8, RELOCATE, 99) == 99
    assert world.folio(99) is world.folio(71) is folio  # page 5 of it, and page 4, which has stayed
    assert folio.index == world.address(99) >> PAGE_SHIFT


def test_folio_without_its_first_page() -> None:
    """A flaw of the patch, kept: the index is counted from the first page that is mapped, not from the first."""
    world = huge_world(32, 8)
    split_pmd(world, 32)
    assert world.do("madvise", 32, 1, MADV_DONTNEED) == 0
    folio = world.folio(33)
    assert world.do("mremap", 32, 8, 8, RELOCATE, 64) == 64
    assert "relocate-large-misaligned" in [warning[0] for warning in world.machine.sched.warnings]
    assert world.folio(65) is folio
    assert folio.index == world.address(65) >> PAGE_SHIFT


def test_swapped_out_pages() -> None:
    """Nothing is present: nothing to relocate."""
    world = huge_world(32, 8)
    assert world.do("madvise", 32, 8, MADV_PAGEOUT) == 0
    assert world.do("mremap", 32, 8, 8, MUST, 64) == 64
    world.check()
