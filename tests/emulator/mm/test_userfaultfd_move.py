"""UFFDIO_MOVE: what moves and what does not, which VMAs take part, and whose a page is afterwards."""

from __future__ import annotations

import pytest

from emulator.hw.pte import DIRTY
from emulator.hw.pte import RW as PTE_RW
from emulator.uapi import (
    EINVAL,
    ENOENT,
    ENOMEM,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
)
from emulator.workload import FOLL_PIN
from tests.emulator.kernel_world import World
from tests.emulator.mm.uffd_world import entries, run
from tests.emulator.mm.world import PIN_RW, anon_vma_of, fail_next, is_huge, isolated, let_go
from tests.emulator.references import check_all

pytestmark = pytest.mark.live

PRIVATE, SHARED = MAP_PRIVATE | MAP_FIXED, MAP_SHARED | MAP_FIXED


def two_areas(*written: int) -> World:
    """The destination at page 0, registered, and the source at page 20; four pages each, these written."""
    world = World()
    world.mmap(0, 4)
    world.mmap(20, 4)
    for page in written:
        world.write(page)
    run(world, "uffd_register 0 4 missing")
    return world


# ---- which pages move


@pytest.mark.parametrize(
    ("calls", "dst", "src"),
    [
        ("uffd_move 0 20 2 none = 2", "page page none none", "none none zero none"),
        ("uffd_move 1 21 1 none = 1", "none page none none", "page none zero none"),
        ("uffd_move 2 22 1 none = 1", "none none zero none", "page page none none"),
        ("uffd_move 0 20 3 none = 3", "page page zero none", "none none none none"),
        ("uffd_move 0 20 4 none = 3", "page page zero none", "none none none none"),
        ("uffd_move 0 20 4 holes = 4", "page page zero none", "none none none none"),
        ("uffd_move 0 20 4 dontwake|holes = 4", "page page zero none", "none none none none"),
        ("uffd_move 3 23 1 none = ENOENT", "none none none none", "page page zero none"),
        ("uffd_move 3 23 1 holes = 1", "none none none none", "page page zero none"),
        (
            "uffd_move 0 20 1 none = 1; uffd_move 0 21 1 none = EEXIST",
            "page none none none",
            "none page zero none",
        ),
        (
            "uffd_copy 1 20 1 none = 1; uffd_move 0 20 2 none = 1",
            "page page none none",
            "none page zero none",
        ),
        (
            "uffd_zeropage 0 1 = 1; uffd_move 0 20 1 none = EEXIST",
            "zero none none none",
            "page page zero none",
        ),
        (
            "uffd_poison 0 1 = 1; uffd_move 0 20 1 none = EEXIST",
            "poison none none none",
            "page page zero none",
        ),
        (
            "uffd_register 20 4 wp; uffd_wp 20 3 wp; uffd_move 0 20 3 none = 3; write 0 0",
            "page page zero none",
            "none none none none",
        ),
        ("madvise 20 2 pageout; uffd_move 0 20 2 none = 2", "swap swap none none", "none none zero none"),
        (
            "madvise 20 1 pageout; uffd_move 0 20 1 none = 1; read 0",
            "page none none none",
            "none page zero none",
        ),
        (
            "uffd_register 20 4 wp; uffd_wp 20 1 wp; madvise 20 1 pageout; "
            "uffd_register 0 4 missing|wp; uffd_move 0 20 1 none = 1; "
            "write 0 0 = SIGBUS",
            "page+ none none none",
            "none page zero none",
        ),
        ("gup_slow 20 pin 0; uffd_move 0 20 1 none = EBUSY", "none none none none", "page page zero none"),
        ("gup_fast 21 pin|write 0; uffd_move 0 20 2 none = 1", "page none none none", "none page zero none"),
        (
            "gup_fast 20 pin|write 0; unpin 0; uffd_move 0 20 1 none = 1",
            "page none none none",
            "none page zero none",
        ),
        ("gup_slow 20 none 0; uffd_move 0 20 1 none = 1", "page none none none", "none page zero none"),
        ("fork 1; uffd_move 0 20 1 none = EBUSY", "none none none none", "page page zero none"),
        ("fork 1; write 20 0; uffd_move 0 20 2 none = 1", "page none none none", "none page zero none"),
        (
            "madvise 20 1 pageout; fork 1; uffd_move 0 20 1 none = EBUSY",
            "none none none none",
            "swap page zero none",
        ),
    ],
    ids=[
        "two",
        "one",
        "zero_page",
        "three",
        "up_to_a_hole",
        "over_a_hole",
        "dontwake",
        "hole",
        "hole_alone",
        "onto_a_page",
        "up_to_a_page",
        "onto_the_zero_page",
        "onto_poison",
        "protection_does_not",
        "swapped",
        "swapped_and_read",
        "protection_of_a_swapped_page_does",
        "pinned",
        "up_to_a_pinned",
        "unpinned",
        "referenced",
        "shared_with_a_child",
        "copied_after_a_fork",
        "swapped_and_shared",
    ],
)
def test_pages(calls: str, dst: str, src: str) -> None:
    """Pages 20 and 21 are written, 22 is the zero page, 23 is empty: what is where afterwards."""
    world = two_areas(20, 21)
    run(world, "read 22")
    before = [world.content(page) for page in (20, 21)]
    run(world, calls)
    assert (entries(world, 0, 4), entries(world, 20, 4)) == (dst, src)
    if "write" not in calls:
        for i in range(2):
            where = i if dst.split()[i].startswith(("page", "swap")) and src.split()[i] == "none" else 20 + i
            assert world.content(where) == before[i]
    check_all(world)


def test_a_page_that_moves_is_the_destinations() -> None:
    """Its mapping and index are those of the new place, so that the rmap finds it there; it stays exclusive."""
    world = two_areas(20)
    folio = world.folio(20)
    run(world, "uffd_move 2 20 1 none = 1")
    assert world.folio(2) is folio
    assert folio.mapping is anon_vma_of(world, 2)
    assert folio.mapping is not anon_vma_of(world, 20)
    assert folio.index == world.vma(2).vm_pgoff + 2
    assert folio.anon_exclusive == 1
    assert world.pte(2) & PTE_RW
    run(world, "write 2 0; reclaim 2 = 1; read 2")
    check_all(world)


@pytest.mark.parametrize("clean", [False, True])
def test_the_dirty_bit_moves(clean: bool) -> None:
    """A page that was not written since keeps its copy on the swap device."""
    world = two_areas(20)
    if clean:
        run(world, "madvise 20 1 pageout; read 20")
    run(world, "uffd_move 0 20 1 none = 1")
    assert bool(world.pte(0) & DIRTY) is not clean
    check_all(world)


def test_within_one_vma() -> None:
    """Source and destination may be parts of one VMA, and overlap where pages have gone already."""
    world = World()
    world.mmap(0, 8)
    tokens = [world.write(page) for page in (3, 4)]
    run(
        world,
        "uffd_register 0 8 missing; uffd_move 2 3 2 none = 2; "
        "uffd_move 3 2 2 none = EEXIST; uffd_move 2 2 1 none = EEXIST",
    )
    assert [world.content(2), world.content(3)] == [{0: token} for token in tokens]
    assert entries(world, 0, 6) == "none none page page none none"
    check_all(world)


def test_what_the_swap_cache_has_moves_along() -> None:
    """A page that is read ahead gets the new mapping and index though nothing maps it: the next fault finds it."""
    world = two_areas(20)
    run(world, "madvise 20 1 pageout; swap_readahead 20 = 1")
    cached = next(iter(world.machine.swap.cache.values()))
    cached.anon = True  # as after a fault that was undone
    cached.mapping = anon_vma_of(world, 20)
    run(world, "uffd_move 1 20 1 none = 1")
    assert cached.index == world.vma(1).vm_pgoff + 1
    assert cached.mapping is anon_vma_of(world, 1)


def test_no_tlb_reads_the_old_place() -> None:
    """The CPU had the page; after the move an access to it finds nothing, and gets a new page."""
    world = two_areas(20, 21)
    run(world, "read 20; write 21 0; uffd_move 0 20 2 none = 2; read 20; write 21 1")
    assert world.content(20) == {}
    assert world.content(21) != world.content(1)
    check_all(world)


# ---- which VMAs


@pytest.mark.parametrize(
    ("calls", "result"),
    [
        ("mprotect 0 4 r", -EINVAL),
        ("mprotect 20 4 r", -EINVAL),
        ("mprotect 0 4 r; mprotect 20 4 r", -EINVAL),
        ("mprotect 0 4 none; mprotect 20 4 none", -EINVAL),
        ("uffd_unregister 0 4", -EINVAL),
        ("uffd_register 0 4 wp", 1),
        ("munmap 20 4", -ENOENT),
        ("munmap 0 4", -ENOENT),
        ("munmap 20 1", -ENOENT),
        ("mmap 20 4 rw private|fixed file0 0 = 20", -EINVAL),
        ("mmap 20 4 rw shared|fixed file0 0 = 20", -EINVAL),
        ("mmap 0 4 rw private|fixed file0 0", -EINVAL),
        ("mmap 0 4 rw shared|fixed file0 0", -EINVAL),
    ],
    ids=[
        "read_only_destination",
        "read_only_source",
        "both_read_only",
        "both_inaccessible",
        "not_registered",
        "any_mode",
        "no_source",
        "no_destination",
        "no_beginning_of_the_source",
        "private_file",
        "shared_file",
        "to_a_private_file",
        "to_a_shared_file",
    ],
)
def test_areas(calls: str, result: int) -> None:
    """Both must be writable private anonymous memory, the destination registered."""
    world = two_areas(20)
    run(world, f"{calls}; uffd_move 0 20 1 none = {result}")
    check_all(world)


@pytest.mark.parametrize(
    "call",
    [
        "uffd_move 3 20 2 none = EINVAL",
        "uffd_move 0 23 2 none = EINVAL",
        "uffd_move 0 20 5 none = EINVAL",
    ],
    ids=["destination", "source", "both"],
)
def test_ranges_lie_in_one_vma_each(call: str) -> None:
    """Neither may go on in the next, not even where that is like it."""
    world = two_areas(20)
    world.mmap(4, 2, PROT_READ)
    world.mmap(24, 2, PROT_READ)
    run(world, call)


@pytest.mark.parametrize(("locked", "result"), [((0,), -EINVAL), ((20,), -EINVAL), ((0, 20), 1)])
def test_both_locked_or_none(locked: tuple[int, ...], result: int) -> None:
    """mlock promises that pages stay: they move to locked memory only, or from unlocked."""
    world = two_areas(20)
    for page in locked:
        world.image.mlock.sys_mlock(world.mm(), world.address(page), 0x4000)
    run(
        world, f"madvise 0 4 dontneed = {0 if 0 not in locked else -EINVAL}; uffd_move 0 20 1 none = {result}"
    )


def test_the_destination_becomes_faulted() -> None:
    """Pages need an anon_vma there; the source needs none for its holes."""
    world = two_areas()
    run(world, "uffd_move 0 20 4 holes = 4")
    assert world.vma(0).anon_vma is not None
    assert world.vma(20).anon_vma is None


@pytest.mark.parametrize("nth", range(1, 8))
def test_without_memory(nth: int) -> None:
    """Whatever cannot be had, the page is here or there."""
    world = World()
    world.mmap(0, 4)
    token = {0: world.write(0)}
    world.mmap(100, 4)
    run(world, "uffd_register 100 4 missing")
    ret = world.do("uffd_move", 100, 0, 1, 0, fail_nth=nth)
    assert ret == (-ENOMEM if world.last.injected else 1)
    assert world.content(100 if ret == 1 else 0) == token
    check_all(world)


# ---- huge pages


def huge(registered: int = 16) -> World:
    """A huge page at page 32, written, and a place of three page tables' size for it at page 0."""
    world = World()
    world.mmap(0, 24)
    world.mmap(32, 16)
    run(world, "madvise 32 16 hugepage")
    for page in range(32, 40):
        world.write(page)
    run(world, f"uffd_register 0 {registered} missing")
    assert is_huge(world, 32)
    return world


@pytest.mark.parametrize("target", [0, 8])
def test_a_huge_page_moves_whole(target: int) -> None:
    """From one boundary to another, where no page table is: by its entry."""
    world = huge()
    folio = world.folio(32)
    contents = [world.content(page) for page in range(32, 40)]
    run(world, f"uffd_move {target} 32 8 none = 8")
    assert is_huge(world, target)
    assert world.folio(target) is folio
    assert folio.mapping is anon_vma_of(world, target)
    assert folio.index == world.vma(target).vm_pgoff + target
    assert [world.content(page) for page in range(target, target + 8)] == contents
    run(world, f"write {target + 3} 1; read 33")
    check_all(world)


@pytest.mark.parametrize(
    ("calls", "moved"),
    [
        ("uffd_move 1 33 2 none = 2", 2),
        ("uffd_move 1 32 8 none = 8", 8),
        ("uffd_move 0 32 7 none = 7", 7),
        ("uffd_zeropage 7 1 = 1; uffd_move 0 32 8 none = 7", 7),
        ("uffd_zeropage 0 1 = 1; uffd_move 0 32 8 none = EEXIST", 0),
        ("uffd_zeropage 0 1 = 1; madvise 0 1 dontneed; uffd_move 0 32 8 none = 8", 8),
    ],
    ids=[
        "part",
        "not_at_a_boundary",
        "shorter",
        "a_page_in_the_way",
        "a_page_at_the_beginning",
        "a_table_in_the_way",
    ],
)
def test_a_huge_page_is_split(calls: str, moved: int) -> None:
    """Where it cannot move whole its pages do."""
    world = huge()
    contents = {page: world.content(page) for page in range(32, 40)}
    run(world, calls)
    assert not is_huge(world, 32)
    dst, src = map(int, calls.rsplit("; ", maxsplit=1)[-1].split()[1:3])
    for page, content in contents.items():
        where = dst + page - src if src <= page < src + moved else page
        assert world.content(where) == content
        assert world.folio(where).order == (0 if moved else 3)
    check_all(world)


@pytest.mark.parametrize("length", [8, 3])
@pytest.mark.parametrize("flags", [FOLL_PIN, PIN_RW])
def test_a_pinned_huge_page_stays(length: int, flags: int) -> None:
    """It can neither move nor be split."""
    world = huge()
    run(world, f"gup_fast 33 {flags} 0; uffd_move 0 32 {length} none = EBUSY")
    assert world.folio(32).order == 3
    check_all(world)


@pytest.mark.parametrize("length", [8, 3])
def test_a_shared_huge_page_stays(length: int) -> None:
    """It is a child's too; nothing is split for that."""
    world = huge()
    world.fork()
    run(world, f"uffd_move 0 32 {length} none = EBUSY")
    assert is_huge(world, 32)
    check_all(world)


def test_pages_of_a_referenced_huge_page_stay() -> None:
    """A mere reference keeps it from being split. The call says so, it does not try for ever."""
    world = huge()
    run(world, "gup_slow 34 none 0; uffd_move 1 32 2 none = EBUSY")
    run(world, "unpin 0; uffd_move 1 32 2 none = 2")
    check_all(world)


def test_onto_a_huge_page() -> None:
    """Nothing moves to where a huge page is mapped."""
    world = huge()
    run(world, "uffd_register 32 16 missing; write 0 0 = SIGBUS; uffd_unregister 0 16")
    world.write(0)
    run(world, "uffd_move 33 0 1 none = EEXIST")


def test_a_large_folio_in_the_swap_cache_stays() -> None:
    """Its pages cannot be told apart there."""
    world = huge()
    folio = isolated(world, 32)
    assert world.image.swap_state.add_to_swap(world.machine, folio)
    world.image.rmap_unmap.try_to_unmap(folio)
    let_go(world, folio)
    assert entries(world, 32, 2) == "swap swap"
    run(world, "uffd_move 0 33 1 none = EBUSY")
    check_all(world)


def test_a_lock_that_cannot_be_had() -> None:
    """The helper that looks for the next page to move along does not wait for its lock."""
    world = two_areas(20, 21)
    fail_next(world, 0)
    folio = isolated(world, 21)
    move = world.image.userfaultfd_pages.PageMove(
        world.vma(0), world.vma(20), world.address(1), world.address(21), 0x1000
    )
    run(world, "uffd_zeropage 3 1 = 1")
    assert move.find_tables()
    assert world.image.userfaultfd_pages.check_ptes_for_batched_move(move) is None
    let_go(world, folio)
    assert world.image.userfaultfd_pages.check_ptes_for_batched_move(move) is folio
    folio.lock.unlock()
