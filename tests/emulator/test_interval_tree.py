"""The order of a file's mappings: by their first page, and among equals by when they were entered or changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.uapi import MAP_FIXED, MAP_SHARED, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ
from tests.emulator.kernel_world import RW, World

SHARED = MAP_SHARED | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


def three() -> World:
    """Three mappings of the beginning of one file, at pages 0, 10 and 20."""
    world = World()
    for page in (0, 10, 20):
        world.mmap(page, 4, RW, SHARED, 1)
    return world


def order(world: World) -> list[tuple[int, int]]:
    """(process, arena page) of each mapping, in tree order."""
    file = world.vma(10).vm_file
    assert file is not None
    return [(vma.vm_mm.label, world.page(vma.vm_start)) for vma in file.f_mapping.i_mmap]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda world: None, [0, 10, 20]),
        (lambda world: world.do("mprotect", 0, 1, PROT_READ), [10, 20, 0, 1]),  # the lower part is new
        (lambda world: world.do("mprotect", 3, 1, PROT_READ), [10, 20, 0, 3]),  # the old one, changed
        (lambda world: world.do("munmap", 0, 1), [10, 20, 1]),
        (lambda world: world.do("mremap", 0, 4, 4, MOVE, 30), [10, 20, 30]),
        (lambda world: world.do("mmap", 4, 2, RW, SHARED, 1, 4), [10, 20, 0]),  # merges
        (lambda world: world.do("mmap", 40, 2, RW, SHARED, 1, 2), [0, 10, 20, 40]),
    ],
    ids=["as mapped", "cut low", "cut high", "unmapped", "moved", "grown", "by page"],
)
def test_order(change: Callable[[World], object], expected: list[int]) -> None:
    world = three()
    change(world)
    assert [page for _, page in order(world)] == expected
    world.check()


def test_the_copy_that_fork_makes_stands_behind_its_original() -> None:
    world = three()
    world.fork()
    world.fork(2)
    assert order(world) == [(proc, page) for page in (0, 10, 20) for proc in (0, 2, 1)]


def test_which_mappings_overlap() -> None:
    """First and last page included."""
    world = three()
    world.mmap(30, 2, RW, SHARED, 1)
    assert world.do("munmap", 0, 1) == 0
    file = world.vma(10).vm_file
    assert file is not None
    tree = file.f_mapping.i_mmap
    assert [world.page(vma.vm_start) for vma in tree.overlapping(0, 0)] == [10, 20, 30]
    assert [world.page(vma.vm_start) for vma in tree.overlapping(2, 9)] == [10, 20, 1]
    assert tree.overlapping(4, 4) == []
