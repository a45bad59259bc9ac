"""Mergeable memory: which VMAs get the flag, what undoes a merge, and what happens to merged pages elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.hw.pte import RW as PTE_RW
from emulator.hw.pte import is_swap
from emulator.mm_types import VM_DONTEXPAND, VM_HUGETLB, VM_IO, VM_MERGEABLE, VM_MIXEDMAP, VM_PFNMAP
from emulator.uapi import (
    EAGAIN,
    EINVAL,
    ENOMEM,
    MADV_MERGEABLE,
    MADV_PAGEOUT,
    MADV_UNMERGEABLE,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE
from tests.emulator.kernel_world import RW, World
from tests.emulator.mm.equal_pages import advise, equal, fill, listed, merged, node_of, scan, walk
from tests.emulator.mm.world import anon_vma_of
from tests.emulator.references import check_all, check_references

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED

pytestmark = pytest.mark.live


class Mergeable(World):
    """With prctl(PR_SET_MEMORY_MERGE)."""

    def merge_any(self, enable: int, *others: int) -> int:
        rest = (*others, 0, 0, 0)[:3]
        result: int = self.image.ksm.prctl_memory_merge(self.mm(), enable, rest)
        return result

    def flagged(self, *pages: int) -> list[bool]:
        return [bool(self.vma(page).vm_flags & VM_MERGEABLE) for page in pages]


def test_all_there_is_and_all_that_comes() -> None:
    """Private memory gets the flag, shared memory does not; taking it back takes it from all."""
    world = Mergeable()
    world.mmap(0, 2)
    world.mmap(4, 2, PROT_READ, MAP_SHARED | MAP_FIXED, file=1)
    assert world.merge_any(1) == 0
    world.mmap(8, 2)
    world.mmap(12, 2, file=1)
    world.mmap(20, 2, PROT_READ, MAP_SHARED | MAP_FIXED, file=1)
    assert world.flagged(0, 4, 8, 12, 20) == [True, False, True, True, False]
    assert world.merge_any(1) == 0
    assert world.merge_any(0) == 0
    world.mmap(16, 2)
    assert world.flagged(0, 8, 12, 16) == [False] * 4
    assert world.merge_any(0) == 0


def test_new_neighbours_merge() -> None:
    """The flag of a new mapping is known before the merge is tried."""
    world = Mergeable()
    assert world.merge_any(1) == 0
    world.mmap(0, 2)
    world.mmap(2, 2)
    assert world.layout() == [(0, 4)]


def test_the_heap_and_children_inherit() -> None:
    """brk and fork."""
    world = Mergeable()
    assert world.merge_any(1) == 0
    world.mm().start_brk = world.mm().brk = world.address(20)
    world.image.brk.sys_brk(world.mm(), world.address(21))
    world.fork()
    assert world.flagged(20) == [True]
    assert world.do("mmap", 0, 1, RW, 0x12, 0, 0, proc=1) == 0
    assert world.vma(0, proc=1).vm_flags & VM_MERGEABLE


def test_other_arguments_must_be_zero() -> None:
    """prctl refuses what may get a meaning one day."""
    assert Mergeable().merge_any(1, 0, 5) == -EINVAL


# ---- madvise


@pytest.mark.parametrize(
    ("make", "advice", "result", "layout"),
    [
        (lambda w: w.mmap(0, 8), MADV_MERGEABLE, 0, [(0, 2), (2, 4), (6, 2)]),
        (lambda w: w.mmap(0, 8), MADV_UNMERGEABLE, 0, [(0, 8)]),
        (lambda w: w.mmap(0, 5), MADV_MERGEABLE, -ENOMEM, [(0, 2), (2, 3)]),
        (lambda w: w.mmap(0, 8, RW, MAP_SHARED | MAP_FIXED, 1), MADV_MERGEABLE, 0, [(0, 8)]),
        (lambda w: w.mmap(0, 8, RW, MAP_DROPPABLE | MAP_FIXED), MADV_MERGEABLE, 0, [(0, 8)]),
        (lambda w: equal(0), MADV_UNMERGEABLE, 0, [(0, 2), (2, 4), (6, 10)]),
    ],
)
def test_advice(make: Callable[[World], object], advice: int, result: int, layout: list[tuple[int, int]]) -> None:
    """A VMA flag, set for part of a VMA; memory that cannot be merged ignores it."""
    world = World()
    made = make(world)
    world = made if isinstance(made, World) else world
    assert world.do("madvise", 2, 4, advice) == result
    assert world.layout() == layout
    flagged = bool(world.vma(2).vm_flags & VM_MERGEABLE)
    assert flagged == (advice == MADV_MERGEABLE and len(layout) > 1)
    check_all(world)


@pytest.mark.parametrize("flag", [VM_IO, VM_PFNMAP, VM_DONTEXPAND, VM_MIXEDMAP, VM_HUGETLB])
def test_special_memory_is_never_mergeable(flag: int) -> None:
    world = World()
    world.mmap(0, 4)
    world.vma(0).vm_flags |= flag
    assert world.do("madvise", 0, 4, MADV_MERGEABLE) == 0
    assert not world.vma(0).vm_flags & VM_MERGEABLE


def test_no_memory_for_a_process_to_be_scanned() -> None:
    """-EAGAIN, as madvise says for memory of the kernel's own; the flag is not set."""
    world = World()
    world.mmap(0, 4)
    assert world.do("madvise", 0, 4, MADV_MERGEABLE, fail_nth=1) == -EAGAIN
    assert world.machine.sched.current.failed == "ksm_mm_slot"
    assert not world.vma(0).vm_flags & VM_MERGEABLE


def test_unmerging() -> None:
    """Every merged page of the range gets one of its own, and only those; contents stay."""
    world = merged(0, 1, 5)
    before = world.contents()
    folio = world.folio(0)
    advise(world, 0, 2, MADV_UNMERGEABLE)
    assert [world.folio(page).ksm for page in (0, 1, 5)] == [False, False, True]
    assert [world.folio(page).anon_exclusive for page in (0, 1)] == [1, 1]
    assert not world.pte(0) & PTE_RW  # unshared, and not made writable for nobody's write
    assert world.folio(5) is folio
    assert folio.mapcounts == [1]
    assert world.contents() == before
    check_all(world)


@pytest.mark.parametrize("nth", [1, 2])
def test_no_memory_to_unmerge(nth: int) -> None:
    """-EAGAIN, and the flag stays on all of the range, as merged pages are left in it."""
    world = merged(0, 1)
    before = world.contents()
    assert world.do("madvise", 0, 2, MADV_UNMERGEABLE, fail_nth=nth) == -EAGAIN
    assert [world.folio(page).ksm for page in (0, 1)] == [nth == 1, True]
    assert world.vma(0).vm_flags & VM_MERGEABLE
    assert world.contents() == before
    check_all(world)


# ---- prctl


def test_prctl_takes_back_what_was_merged() -> None:
    """Also what madvise had asked for."""
    world = Mergeable()
    world.mmap(0, 4)
    advise(world, 0, 2, MADV_MERGEABLE)
    assert world.merge_any(1) == 0
    fill(world, 0, 3)
    assert scan(world, 2) == 2
    assert world.merge_any(0) == 0
    assert world.flagged(0, 3) == [False, False]
    assert [world.folio(page).ksm for page in (0, 3)] == [False, False]
    check_all(world)


def test_prctl_without_memory() -> None:
    """What cannot be unmerged leaves everything mergeable."""
    world = Mergeable()
    world.mmap(0, 2)
    world.mmap(4, 2)
    assert world.merge_any(1) == 0
    fill(world, 0, 4)
    scan(world, 2)
    world.machine.sched.current.fail_nth = world.machine.sched.current.fail_count + 2
    assert world.merge_any(0) == -ENOMEM
    assert world.flagged(0, 4) == [True, True]
    assert world.mm().merge_any
    check_all(world)


def test_a_process_that_the_scanner_had_forgotten() -> None:
    """Its next mapping brings it back."""
    world = Mergeable()
    assert world.merge_any(1) == 0
    scan(world)
    assert world.machine.ksm.mm_slots == []
    world.mmap(0, 2)
    fill(world, 0, 1)
    assert scan(world, 2) == 2


# ---- writes, GUP, fork


@pytest.mark.parametrize(
    ("op", "unmerged"),
    [
        (("write", 0, 1), True),
        (("read", 0), False),
        (("gup_fast", 0, 0, 1), False),
        (("gup_fast", 0, FOLL_PIN, 1), True),  # a pin must see what the process sees
        (("gup_slow", 0, FOLL_PIN, 1), True),
        (("gup_fast", 0, FOLL_PIN | FOLL_WRITE, 1), True),
        (("madvise", 0, 1, MADV_PAGEOUT), False),
        (("mprotect", 0, 1, PROT_READ), False),
    ],
)
def test_who_gets_a_page_of_his_own(op: tuple[object, ...], unmerged: bool) -> None:
    """Whoever writes or pins; the other place keeps the merged page, unchanged."""
    world = merged(0, 1)
    other = world.content(1)
    assert world.do(*op) == 0  # type: ignore[arg-type]
    assert world.folio(0).ksm != unmerged
    assert world.folio(1).ksm
    assert world.content(1) == other
    check_all(world)


def test_the_last_place_is_copied_too() -> None:
    """A KSM page is never reused, as its node may give it to others at any time."""
    world = merged(0, 1)
    folio = world.folio(0)
    world.write(0)
    world.write(1)
    assert folio.freed
    check_all(world)


def test_made_writable_again() -> None:
    """mprotect to read-only and back: the entry stays read-only, a write still gets a copy."""
    world = merged(0, 1)
    assert world.do("mprotect", 0, 2, PROT_READ) == 0
    assert world.do("mprotect", 0, 2, RW) == 0
    assert not world.pte(0) & PTE_RW
    token = world.write(0, 1)
    assert token not in (world.content(1) or {}).values()
    check_all(world)


# ---- mremap


@pytest.mark.parametrize("flags", [MOVE, MOVE | MREMAP_DONTUNMAP])
def test_moved_pages_are_unmerged(flags: int) -> None:
    """Items name addresses, so nothing would find them in the new place. The rest of the VMA stays merged."""
    world = merged(0, 1, 2)
    before = world.contents()
    assert world.do("mremap", 0, 2, 2, flags, 32) == 32
    assert [world.folio(page).ksm for page in (32, 33, 2)] == [False, False, True]
    assert world.content(32) == before[0]
    assert world.vma(32).vm_flags & VM_MERGEABLE
    assert scan(world, 2) == 2
    assert world.folio(32) is world.folio(2)
    check_all(world)


def test_a_move_that_cannot_unmerge() -> None:
    """-ENOMEM, before anything is moved."""
    world = merged(0, 1)
    assert world.do("mremap", 0, 2, 2, MOVE, 32, fail_nth=1) == -ENOMEM
    assert world.machine.sched.current.failed == "folio_alloc"
    assert world.layout() == [(0, 16)]
    assert world.folio(0).ksm
    check_all(world)


# ---- the reverse map


def test_a_walk_visits_items_and_forks() -> None:
    """First every item's own place, then the same address in processes forked from it."""
    world = merged(0, 5)
    world.fork()
    visited = walk(world, world.folio(0))
    assert [sorted(visited[:2]), sorted(visited[2:])] == [[(0, 0), (0, 5)], [(1, 0), (1, 5)]]
    scan(world)
    assert sorted(set(walk(world, world.folio(0)))) == [(0, 0), (0, 5), (1, 0), (1, 5)]
    world.write(5, 1, proc=1)
    assert world.do("munmap", 0, 2) == 0
    assert (0, 0) not in walk(world, world.folio(5))


def test_a_walk_finds_no_child_whose_parent_was_given_up() -> None:
    """Items of the parent go when the scanner comes by before it has met the child: nothing leads there until then."""
    world = merged(1, 2)
    fill(world, 0, pattern=2)
    assert world.do("ksm_scan", 1) == 0  # the cursor stands in the parent: the child waits for the next scan
    world.fork()
    assert world.do("munmap", 0, 16) == 0
    scan(world, proc=1)
    folio = world.folio(1, 1)
    assert walk(world, folio) == []
    assert world.do("migrate", 1, proc=1) == 0
    assert scan(world, proc=1) == 2
    assert sorted(walk(world, folio)) == [(1, 1), (1, 2)]
    check_all(world)


@pytest.mark.parametrize("fork", [False, True])
def test_migration(fork: bool) -> None:
    """All places follow, and the node: it is found under its contents as before."""
    world = merged(0, 1)
    if fork:
        world.fork()
    before = world.contents()
    old, node = world.folio(0), node_of(world, 0)
    assert world.do("migrate", 0) == 1
    folio = world.folio(0)
    assert folio is not old
    assert folio is world.folio(1)
    assert (folio.ksm, folio.mapping, node.folio) == (True, node, folio)
    assert old.mapping is None
    fill(world, 3)
    assert scan(world, 2) == 1
    assert world.folio(3) is folio
    assert world.contents() == {**before, 3: before[0]}
    check_all(world)


# ---- swap


def test_a_merged_page_is_swapped_out_from_everywhere() -> None:
    """One slot for all; where it comes back first the page belongs, the others get copies."""
    world = merged(0, 1, 5)
    before = world.contents()
    assert world.do("reclaim", 0) == 1
    assert all(is_swap(world.pte(page)) for page in (0, 1, 5))
    assert list(world.machine.swap.count.values()) == [3]
    for page in (1, 0, 5):
        assert world.do("read", page) == 0
    folios = [world.folio(page) for page in (1, 0, 5)]
    assert len(set(folios)) == 3
    assert not any(folio.ksm for folio in folios)
    assert [folio.index for folio in folios] == [world.address(page) >> 12 for page in (1, 0, 5)]
    assert all(folio.mapping is anon_vma_of(world, 0) for folio in folios)
    assert world.contents() == before
    check_all(world)
    assert scan(world) == 3  # with contents that are known


def test_a_copy_that_is_written() -> None:
    """It is the writer's own at once."""
    world = merged(0, 1)
    assert world.do("reclaim", 0) == 1
    assert world.do("read", 0) == 0
    token = world.write(1, 2)
    assert world.pte(1) & PTE_RW
    assert world.folio(1).anon_exclusive
    assert world.content(1) != world.content(0)
    assert (world.content(1) or {})[2] == token
    check_all(world)


def test_no_memory_for_a_copy() -> None:
    """The fault fails, and works the next time."""
    world = merged(0, 1)
    before = world.contents()
    assert world.do("reclaim", 0) == 1
    assert world.do("read", 0) == 0
    assert world.do("read", 1, fail_nth=1) < 0
    assert world.machine.sched.current.failed == "ksm_copy"
    assert world.do("read", 1) == 0
    assert world.contents() == before
    check_all(world)


def test_a_merged_page_in_the_swap_cache_stays_one() -> None:
    """It comes back as the KSM page that it still is, for reading; a write gets a copy as ever."""
    world = merged(0, 1)
    node = node_of(world, 0)
    assert world.do("gup_fast", 1, 0, 1) == 0  # keeps it in memory
    assert world.do("reclaim", 0) == 0
    assert is_swap(world.pte(0))
    assert world.do("read", 0) == 0
    assert world.folio(0) is node.folio
    assert not world.pte(0) & PTE_RW
    world.write(1, 1)
    assert not world.folio(1).ksm
    assert world.do("unpin", 1) == 0
    check_references(world)
    assert listed(world, node) == [(0, 0), (0, 1)]


def test_a_family_of_its_own_gets_a_copy() -> None:
    """Merged across unrelated VMAs: the anon_vma of the first does not do for the second, whatever the index says."""
    world = equal()
    world.fork()
    for proc in (0, 1):
        fill(world, 0, proc=proc)
    assert scan(world, 2) == 2
    assert anon_vma_of(world, 0).root is not anon_vma_of(world, 0, 1).root
    assert world.do("reclaim", 0) == 1
    for proc in (0, 1):
        assert world.do("read", 0, proc=proc) == 0
        assert world.folio(0, proc).mapping is anon_vma_of(world, 0, proc)
    check_all(world)
