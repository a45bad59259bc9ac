"""mseal: what sealed memory refuses, and that the flag splits and merges VMAs like any other."""

from __future__ import annotations

import pytest

from emulator.mm_types import VM_SEALED
from emulator.uapi import (
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World

pytestmark = pytest.mark.live

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


def sealed(first: int = 2, pages: int = 3, prot: int = RW) -> World:
    """Ten pages, some of them sealed (2 to 4, if not said otherwise)."""
    world = World()
    world.mmap(0, 10, prot)
    assert world.do("mseal", first, pages) == 0
    return world


def test_the_seal_splits_and_merges() -> None:
    """It is part of what VMAs must agree on, and stays for good; a child has it too."""
    world = sealed()
    assert world.layout() == [(0, 2), (2, 3), (5, 5)]
    assert world.do("mseal", 0, 10) == 0
    assert world.layout() == [(0, 10)]
    world.fork()
    assert world.vma(0, proc=1).vm_flags & VM_SEALED
    world.check()


def test_a_hole_seals_nothing() -> None:
    """ENOMEM before anything is done; no length is no error."""
    world = World()
    world.mmap(0, 2)
    world.mmap(4, 2)
    for addr, length in ((0, 6), (1, 2), (3, 2), (4, 3)):
        assert world.do("mseal", addr, length) == -ENOMEM
    assert world.layout() == [(0, 2), (4, 2)]
    assert world.do("mseal", 8, 0) == 0
    assert world.image.mseal.sys_mseal(world.mm(), world.address(0), 1, 1) == -EINVAL
    assert world.image.mseal.sys_mseal(world.mm(), world.address(0) + 1, 1, 0) == -EINVAL


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("munmap", (0, 4)),
        ("munmap", (3, 1)),
        ("munmap", (4, 6)),
        ("mmap", (1, 3, RW, PRIVATE_FIXED, 0, 0)),
        ("mprotect", (2, 1, PROT_READ)),
        ("mprotect", (2, 1, RW)),
        ("pkey_mprotect", (2, 1, PROT_READ, 0)),
        ("mremap", (2, 1, 1, MOVE, 20)),
        ("mremap", (2, 1, 1, 0, 0)),
        ("mremap", (4, 1, 2, MREMAP_MAYMOVE, 0)),
        ("mremap", (2, 2, 2, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 20)),
        ("mremap", (6, 1, 1, MOVE, 3)),
        ("mremap", (0, 4, 1, 0, 0)),
        ("mremap", (0, 4, 1, MOVE, 20)),
    ],
)
def test_what_is_refused(kind: str, args: tuple[int, ...]) -> None:
    """EPERM; what would have been unmapped is there."""
    world = sealed()
    world.write(3)
    before = world.contents()
    assert world.do(kind, *args) == -EPERM
    assert world.contents() == before
    world.check()


def test_what_was_done_before_the_seal_was_met_stays() -> None:
    """mprotect changes what stands before; a move of several mappings moves what stands before."""
    world = sealed()
    assert world.do("mprotect", 0, 4, PROT_READ) == -EPERM
    assert [world.vma(page).vm_flags & 2 for page in (0, 2)] == [0, 2]
    assert world.do("mremap", 0, 4, 4, MOVE, 20) == -EPERM
    assert world.layout() == [(2, 3), (5, 5), (20, 2)]
    assert world.do("mremap", 5, 5, 5, MOVE, 0) == -EPERM  # onto it


def test_contents_that_cannot_be_written_cannot_be_thrown_away() -> None:
    """Advice that discards is refused on sealed memory that cannot be written; other advice is not."""
    world = sealed(prot=PROT_READ)
    for advice in (MADV_DONTNEED, MADV_FREE):
        assert world.do("madvise", 0, 4, advice) == -EPERM
        assert world.do("madvise", 0, 2, advice) == 0
    assert world.do("madvise", 2, 1, MADV_HUGEPAGE) == 0
    writable = sealed()
    assert writable.do("madvise", 0, 4, MADV_DONTNEED) == 0


def test_a_sealed_heap_does_not_shrink() -> None:
    """brk says so by its result; growing is another matter."""
    world = World()
    heap = world.machine.geometry.heap_page
    assert world.do("brk", heap + 4) == heap + 4
    assert world.do("mseal", heap + 1, 1) == 0
    assert world.do("brk", heap) == heap + 4
    assert world.do("brk", heap + 2) == heap + 2
    assert world.do("brk", heap + 3) == heap + 3


def test_out_of_memory() -> None:
    """What was sealed before stays sealed."""
    world = World()
    world.mmap(0, 2)
    world.mmap(2, 2, PROT_READ)
    results = set()
    for nth in range(1, 6):
        results.add(world.do("mseal", 1, 2, fail_nth=nth))
    assert results == {0, -ENOMEM}
    world.check()
