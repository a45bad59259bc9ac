"""munmap: errors, what is cut, what is given back."""

from __future__ import annotations

import pytest

from emulator.geometry import PAGE_SIZE
from emulator.mm_types import VM_SEALED
from emulator.uapi import EINVAL, ENOMEM, EPERM, PROT_NONE, PROT_READ
from tests.emulator.kernel_world import PRIVATE_FIXED, World, profile_with

pytestmark = pytest.mark.live

BASE = 64 * PAGE_SIZE  # arena page 0 of small8
TASK = 4095 * PAGE_SIZE


@pytest.mark.parametrize(("limit", "errno"), [(1, ENOMEM), (2, 0)])
@pytest.mark.parametrize("kind", ["munmap", "mmap"])
def test_hole_in_one_vma_at_the_limit(kind: str, limit: int, errno: int) -> None:
    """Cutting a VMA in two needs room for one more map; nothing is unmapped without it."""
    world = World(profile=profile_with(max_map_count=limit))
    world.mmap(0, 5)
    args = (2, 1) if kind == "munmap" else (2, 1, PROT_NONE, PRIVATE_FIXED, 0, 0)
    if errno:
        assert world.do(kind, *args) == -errno
        assert world.layout() == [(0, 5)]
    else:
        assert world.do(kind, *args) >= 0
        assert world.layout()[0] == (0, 2)
    world.check()


def test_edge_cuts_at_the_limit() -> None:
    """Cutting a piece off an end may take the count one above the limit meanwhile."""
    world = World(profile=profile_with(max_map_count=1))
    world.mmap(0, 5)
    assert world.do("munmap", 0, 2) == 0
    assert world.do("munmap", 4, 1) == 0
    assert world.layout() == [(2, 2)]


MUNMAP_ERRORS = [
    ("unaligned", BASE + 1, 4096, EINVAL),
    ("no_length", BASE, 0, EINVAL),
    ("start_beyond", TASK + PAGE_SIZE, 4096, EINVAL),
    ("end_beyond", BASE, TASK, EINVAL),
    ("sealed", BASE, 5 * PAGE_SIZE, EPERM),
    ("part_of_sealed", BASE + 2 * PAGE_SIZE, PAGE_SIZE, EPERM),
    ("nothing_mapped", BASE + 9 * PAGE_SIZE, 4096, 0),
]


@pytest.mark.parametrize(
    ("addr", "length", "errno"), [pytest.param(*row[1:], id=row[0]) for row in MUNMAP_ERRORS]
)
def test_munmap_error(addr: int, length: int, errno: int) -> None:
    """A sealed VMA anywhere in the range: nothing at all is unmapped."""
    world = World()
    world.mmap(0, 5)
    assert world.do("mprotect", 2, 1, PROT_READ) == 0
    world.vma(2).vm_flags |= VM_SEALED
    assert world.image.munmap.sys_munmap(world.mm(), addr, length) == -errno
    assert world.layout() == [(0, 2), (2, 1), (3, 2)]
    world.check()


@pytest.mark.parametrize(
    ("start", "pages", "left"),
    [
        (0, 2, [(2, 3), (6, 3)]),
        (4, 1, [(0, 4), (6, 3)]),
        (1, 1, [(0, 1), (2, 3), (6, 3)]),
        (3, 4, [(0, 3), (7, 2)]),
        (0, 9, []),
        (5, 1, [(0, 5), (6, 3)]),
    ],
    ids=["head", "tail", "hole", "across", "all", "gap"],
)
def test_munmap(start: int, pages: int, left: list[tuple[int, int]]) -> None:
    """Layout, contents, charges and the reverse map after unmapping part of two VMAs."""
    world = World()
    world.mmap(0, 5)
    world.mmap(6, 3)
    tokens = {page: world.write(page) for page in (0, 1, 2, 3, 4, 6, 7, 8)}
    assert world.do("munmap", start, pages) == 0
    assert world.layout() == left
    gone = range(start, start + pages)
    assert world.contents() == {page: {0: token} for page, token in tokens.items() if page not in gone}
    world.check()


def test_everything_is_given_back() -> None:
    """Nothing of an unmapped range stays: folios, page tables, anon_vmas, charge."""
    world = World()
    frames = len(world.machine.phys.live)
    world.mmap(0, 20)
    for page in range(20):
        world.write(page)
    assert world.do("munmap", 0, 20) == 0
    assert len(world.machine.phys.live) == frames
    assert not world.mm().pgd.entries
    assert not world.machine.anon_vmas_live
    assert world.machine.committed == world.mm().total_vm == 0
