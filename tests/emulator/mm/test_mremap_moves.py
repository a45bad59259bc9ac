"""What a move does: several VMAs in one call, DONTUNMAP, charges and counters, failures half-way."""

from __future__ import annotations

import pytest

from emulator.mm_types import VM_ACCOUNT, VM_LOCKED, VM_LOCKONFAULT, VM_SEALED
from emulator.uapi import (
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    UFFDIO_REGISTER_MODE_WP,
)
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World, committing

pytestmark = pytest.mark.live

FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
DONTUNMAP = MREMAP_MAYMOVE | MREMAP_DONTUNMAP


def single_pages(count: int = 5) -> tuple[World, list[int]]:
    """Single written pages at 0, 2, 4, ...; their tokens."""
    world = World()
    world.mmap(0, 2 * count)
    for page in range(1, 2 * count, 2):
        assert world.do("munmap", page, 1) == 0
    return world, [world.write(page) for page in range(0, 2 * count, 2)]


def moved(world: World, tokens: list[int]) -> list[bool]:
    """Which of the single pages have arrived at 32 + page; the others must be in place."""
    arrived = []
    for i, token in enumerate(tokens):
        here, there = world.content(2 * i), world.content(32 + 2 * i)
        assert [here, there].count({0: token}) == 1
        arrived.append(there == {0: token})
    return arrived


# ---- several VMAs in one call (the rules of remap_move)


@pytest.mark.parametrize(
    ("armed", "errno", "arrived"),
    [([0, 2, 4, 6, 8], EFAULT, 0), ([2, 4, 6, 8], EFAULT, 1), ([8], EFAULT, 4), ([], 0, 5)],
    ids=["all", "all_but_first", "last", "none"],
)
@pytest.mark.parametrize("pages", [9, 10])
def test_userfaultfd_vmas_move_alone(armed: list[int], errno: int, arrived: int, pages: int) -> None:
    """move_multi_invalid_vmas: a VMA with userfaultfd is no part of a multi-VMA move; those before it stay moved."""
    world, tokens = single_pages()
    for page in armed:
        assert world.do("uffd_register", page, 1, UFFDIO_REGISTER_MODE_WP) == 0
    ret = world.do("mremap", 0, pages, pages, FIXED, 32)
    assert ret == (-errno if errno else 32)
    assert moved(world, tokens) == [i < arrived for i in range(5)]
    world.check()


def test_userfaultfd_vma_alone_moves() -> None:
    """One such VMA by itself moves."""
    world, tokens = single_pages(1)
    assert world.do("uffd_register", 0, 1, UFFDIO_REGISTER_MODE_WP) == 0
    assert world.do("mremap", 0, 1, 1, FIXED, 32) == 32
    assert moved(world, tokens) == [True]


def test_range_must_begin_in_a_vma() -> None:
    """A gap at the start: EFAULT, nothing moves."""
    world, tokens = single_pages()
    assert world.do("mremap", 1, 9, 9, FIXED, 33) == -EFAULT
    assert moved(world, tokens) == [False] * 5


def test_gap_at_the_end_is_fine() -> None:
    """What follows the last VMA need not be mapped; the result is where the first piece went."""
    world, tokens = single_pages(2)
    assert world.do("mremap", 0, 9, 9, FIXED, 32) == 32
    assert moved(world, tokens) == [True, True]


def test_sealed_piece() -> None:
    """An error in one piece leaves those before it moved (observed on Linux)."""
    world, tokens = single_pages()
    world.vma(4).vm_flags |= VM_SEALED
    assert world.do("mremap", 0, 9, 9, FIXED, 32) == -EPERM
    assert moved(world, tokens) == [True, True, False, False, False]
    world.check()


def test_piece_unmaps_its_own_destination_only() -> None:
    """What lies in the destination's gaps stays, also when a later piece fails."""
    world, tokens = single_pages()
    world.mmap(32, 10)
    there = {page: world.write(page) for page in range(32, 42)}
    world.vma(4).vm_flags |= VM_SEALED
    assert world.do("mremap", 0, 9, 9, FIXED, 32) == -EPERM
    for page in (33, 35, 36, 37, 38):
        assert world.content(page) == {0: there[page]}
    assert world.content(32) == {0: tokens[0]}


def test_attributes_travel() -> None:
    """Each piece keeps its permissions, so the destination has as many VMAs."""
    world = World()
    world.mmap(0, 6)
    assert world.do("mprotect", 2, 2, PROT_READ) == 0
    assert world.do("mremap", 1, 4, 4, FIXED, 32) == 32
    assert world.layout() == [(0, 1), (5, 1), (32, 1), (33, 2), (35, 1)]
    assert not world.vma(33).vm_flags & 2
    world.check()


# ---- DONTUNMAP


def test_dontunmap_hint_is_taken_where_free() -> None:
    """Without FIXED the new address is a hint: taken when free, else another place, nothing unmapped."""
    world = World()
    world.mmap(0, 2)
    world.mmap(32, 2)
    token = world.write(32)
    assert world.do("mremap", 0, 2, 2, DONTUNMAP, 40) == 40
    other = world.do("mremap", 40, 2, 2, DONTUNMAP, 32)
    assert other not in (32, 40)
    assert other > 0
    assert world.content(32) == {0: token}


@pytest.mark.parametrize(
    ("start", "pages", "faulted"), [(0, 4, False), (0, 2, True), (2, 2, True)], ids=["whole", "head", "tail"]
)
def test_dontunmap_makes_a_whole_source_unfaulted(start: int, pages: int, faulted: bool) -> None:
    """A source VMA that was moved whole loses its anon_vma, one that was moved in part keeps it."""
    world = World()
    world.mmap(0, 4)
    world.write(0)
    assert world.do("mremap", start, pages, pages, FIXED | MREMAP_DONTUNMAP, 32) == 32
    assert (world.vma(0).anon_vma is not None) == faulted
    assert world.vma(32).anon_vma is not None
    world.check()


def test_dontunmap_source_keeps_its_page_offset() -> None:
    """After an earlier move the emptied source has a foreign page offset still, so it merges with no neighbour."""
    world = World()
    world.mmap(0, 2)
    world.write(0)
    assert world.do("mremap", 0, 2, 2, FIXED, 32) == 32
    offset = world.vma(32).vm_pgoff
    assert world.do("mremap", 32, 2, 2, FIXED | MREMAP_DONTUNMAP, 64) == 64
    assert world.vma(32).anon_vma is None
    assert world.vma(32).vm_pgoff == offset
    world.mmap(34, 2)
    assert world.span(32) == (32, 2)


@pytest.mark.parametrize("locked", [VM_LOCKED, VM_LOCKED | VM_LOCKONFAULT], ids=["locked", "onfault"])
@pytest.mark.parametrize("pages", [4, 2], ids=["whole", "part"])
def test_dontunmap_unlocks_the_source(locked: int, pages: int) -> None:
    """The whole source VMA is no longer locked, even when a part moved; the destination is, and is counted."""
    world = World()
    world.mmap(0, 4)
    world.vma(0).vm_flags |= locked
    world.mm().locked_vm = 4
    assert world.do("mremap", 0, pages, pages, FIXED | MREMAP_DONTUNMAP, 32) == 32
    assert not world.vma(0).vm_flags & locked
    assert world.vma(32).vm_flags & locked == locked
    assert world.mm().locked_vm == 4 + pages  # Linux never takes the source's pages off


def test_dontunmap_of_shared_file() -> None:
    """Allowed since 5.13; both places show the file."""
    world = World()
    world.mmap(0, 2, RW, MAP_SHARED | MAP_FIXED, file=1)
    token = world.write(0)
    assert world.do("mremap", 0, 2, 2, FIXED | MREMAP_DONTUNMAP, 32) == 32
    for page in (0, 32):
        assert world.do("read", page) == 0
        assert world.last.data == ((0, token),)


# ---- charges and counters


# name, mapping flags, old pages, new pages, mremap flags, change of Committed_AS
CHARGES = [
    ("move", PRIVATE_FIXED, 4, 4, FIXED, 0),
    ("move_of_a_part", PRIVATE_FIXED, 2, 2, FIXED, 0),
    ("growing_move", PRIVATE_FIXED, 4, 6, FIXED, 2),
    ("growth_in_place", PRIVATE_FIXED, 4, 6, 0, 2),
    ("shrink_in_place", PRIVATE_FIXED, 4, 1, 0, -3),
    ("dontunmap", PRIVATE_FIXED, 4, 4, FIXED | MREMAP_DONTUNMAP, 4),
    ("noreserve_dontunmap", PRIVATE_FIXED | MAP_NORESERVE, 4, 4, FIXED | MREMAP_DONTUNMAP, 0),
    ("noreserve_growth", PRIVATE_FIXED | MAP_NORESERVE, 4, 6, 0, 0),
    # a bug of Linux 6.17 and later, kept: the tail of a moving shrink is uncharged, then charged again
    ("moving_shrink", PRIVATE_FIXED, 4, 1, FIXED, 0),
]


@pytest.mark.parametrize(
    ("map_flags", "old", "new", "flags", "change"), [pytest.param(*row[1:], id=row[0]) for row in CHARGES]
)
def test_charge(map_flags: int, old: int, new: int, flags: int, change: int) -> None:
    """What a call adds to Committed_AS and to total_vm; VM_ACCOUNT stays on every piece."""
    world = World()
    world.mmap(0, 4, RW, map_flags)
    world.write(0)
    charged = world.machine.committed
    assert charged == (0 if map_flags & MAP_NORESERVE else 4)
    accounted = world.vma(0).vm_flags & VM_ACCOUNT
    assert world.do("mremap", 0, old, new, flags, 32) >= 0
    assert world.machine.committed - charged == change
    assert all(vma.vm_flags & VM_ACCOUNT == accounted for vma in world.mm().mm_mt)
    world.check(committed=not (flags & MREMAP_FIXED and new < old))


@pytest.mark.parametrize("page", [0, 1, 2], ids=["head", "middle", "tail"])
def test_account_flag_of_what_is_left(page: int) -> None:
    """The flag that is hidden while the source is unmapped comes back on every remnant."""
    world = World()
    world.mmap(0, 3)
    assert world.do("mremap", page, 1, 1, FIXED, 32) == 32
    assert all(vma.vm_flags & VM_ACCOUNT for vma in world.mm().mm_mt)
    world.check()


# name, pages to grow to, flags: each needs 2 pages more than the limit leaves
@pytest.mark.parametrize(
    ("new", "flags"),
    [(6, 0), (6, FIXED), (4, FIXED | MREMAP_DONTUNMAP)],
    ids=["growth", "growing_move", "dontunmap"],
)
def test_commit_limit(new: int, flags: int) -> None:
    """Where overcommit refuses: ENOMEM, with nothing charged and the source as it was."""
    world = World(profile=committing(5))
    world.mmap(0, 4)
    token = world.write(0)
    assert world.do("mremap", 0, 4, new, flags, 32) == -ENOMEM
    assert world.contents() == {0: {0: token}, 1: {}, 2: {}, 3: {}}
    world.check()


# name, new pages, flags
@pytest.mark.parametrize(
    ("new", "flags"),
    [(6, 0), (6, FIXED), (4, FIXED | MREMAP_DONTUNMAP)],
    ids=["growth", "growing_move", "dontunmap"],
)
def test_failed_copy_is_uncharged(new: int, flags: int) -> None:
    """Whatever the destination VMA lacks: what was charged for it is given back."""
    failed = set()
    for nth in range(1, 20):
        world = World()
        world.mmap(0, 4)
        world.write(0)
        ret = world.do("mremap", 0, 4, new, flags, 32, fail_nth=nth)
        if not world.last.injected:
            break
        point = world.machine.sched.current.failed
        if point in ("vm_enough_memory", "vm_area_alloc", "vma_tree_prealloc", "anon_vma_chain_alloc"):
            assert ret == -ENOMEM
            assert world.layout() == [(0, 4)]
            world.check()
            failed.add(point)
    assert len(failed) >= (2 if not flags else 4)


@pytest.mark.parametrize(
    ("new", "flags", "leaked"),
    [
        (4, FIXED, 0),
        (4, FIXED | MREMAP_DONTUNMAP, 0),
        # a bug of Linux, kept: what the growth was charged stays charged when the tables could not be moved
        (6, FIXED, 2),
    ],
    ids=["move", "dontunmap", "growing_move"],
)
def test_charge_of_a_move_that_is_taken_back(new: int, flags: int, leaked: int) -> None:
    """Page tables cannot be had: the entries go back, the destination goes, total_vm is as it was."""
    taken_back = 0
    for nth in range(1, 20):
        world = World()
        world.mmap(0, 4)
        tokens = [world.write(page) for page in range(4)]
        ret = world.do("mremap", 0, 4, new, flags, 62, fail_nth=nth)
        if not world.last.injected:
            break
        if world.machine.sched.current.failed in ("pte_alloc", "pmd_alloc"):
            taken_back += 1
            assert ret == -ENOMEM
            assert world.layout() == [(0, 4)]
            assert [world.content(page) for page in range(4)] == [{0: token} for token in tokens]
            assert world.machine.committed == 4 + leaked
            world.check(committed=False)
    assert taken_back == 3


def test_growth_moves_to_where_huge_pages_fit() -> None:
    """The new place is chosen without a hint: a length of whole huge pages is placed on their boundary."""
    world = World()
    last = world.machine.geometry.arena_pages
    world.mmap(last - 3, 3, PROT_NONE)
    world.mmap(0, 4)
    world.mmap(4, 1, PROT_NONE)
    assert world.do("mremap", 0, 4, 8, MREMAP_MAYMOVE, 0) == last - 16


def test_growth_moves_where_it_must() -> None:
    """A VMA that cannot grow in place moves when it may, with its data, and its old place is free."""
    world = World()
    world.mmap(0, 2)
    world.mmap(2, 1, PROT_NONE)
    token = world.write(1)
    there = world.do("mremap", 0, 2, 4, MREMAP_MAYMOVE, 0)
    assert there > 2
    assert world.content(there + 1) == {0: token}
    assert world.content(0) is None
    assert world.span(there) == (there, 4)
    world.check()


def test_growth_of_the_middle_moves_only_it() -> None:
    """The range ends before its VMA does, so it cannot grow in place: it moves out of the VMA."""
    world = World()
    world.mmap(0, 4)
    tokens = [world.write(page) for page in range(4)]
    there = world.do("mremap", 1, 2, 3, MREMAP_MAYMOVE, 0)
    assert there > 4
    assert [world.content(there + i) for i in range(3)] == [{0: tokens[1]}, {0: tokens[2]}, {}]
    assert world.layout()[:2] == [(0, 1), (3, 1)]
    world.check()


def test_growth_of_locked_is_populated() -> None:
    """mlocked memory that grows is faulted in at once."""
    world = World()
    world.mmap(0, 2)
    world.vma(0).vm_flags |= VM_LOCKED
    world.mm().locked_vm = 2
    assert world.do("mremap", 0, 2, 4, 0, 0) == 0
    assert world.mm().locked_vm == 4
    assert world.folio(2) is not world.folio(3)
    assert world.pte(1) == 0


# ---- hooks of the VMA's operations


def test_may_split_refuses() -> None:
    """A VMA that must not be split moves whole or not at all."""
    world = World()
    world.mmap(0, 4)
    ops = type(world.image.mmap.GENERIC_FILE_VM_OPS)("rigid", may_split=False)
    world.vma(0).vm_ops = ops
    assert world.do("mremap", 0, 2, 2, FIXED, 32) == -EINVAL
    assert world.do("mremap", 2, 2, 2, FIXED, 32) == -EINVAL
    assert world.do("munmap", 0, 2) == -EINVAL
    assert world.do("mremap", 0, 9, 4, FIXED, 32) == 32  # shrunk to what it is
    assert world.do("mremap", 32, 4, 4, FIXED, 0) == 0


def test_mremap_hook_fails() -> None:
    """A failing mremap() hook moves the tables back and unmaps the destination."""
    world = World()
    world.mmap(0, 4)
    tokens = [world.write(page) for page in range(4)]
    ops = type(world.image.mmap.GENERIC_FILE_VM_OPS)("stubborn", mremap=False)
    world.vma(0).vm_ops = ops
    assert world.do("mremap", 0, 4, 4, FIXED, 32) == -EINVAL
    assert world.layout() == [(0, 4)]
    assert [world.content(page) for page in range(4)] == [{0: token} for token in tokens]
    world.check()
