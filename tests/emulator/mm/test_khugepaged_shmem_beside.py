"""MADV_COLLAPSE of files of memory, and what their huge pages go through, while others use or unmap the same pages."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.uapi import (
    EAGAIN,
    EINVAL,
    ENOMEM,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MADV_WILLNEED,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from emulator.workload import FOLL_PIN, MEMFD, Op, Switch
from tests.emulator.kernel_world import RW, World
from tests.emulator.mm.test_khugepaged_shmem import shared
from tests.emulator.mm.world import PIN_RW
from tests.emulator.references import TO_THE_END, assert_coherent, check_all, every_cut

SHARED = MAP_SHARED | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
PAGES = range(16)


def small_pages() -> World:
    """Shared memory of two ranges and some pages, one swapped out, and a child that has mapped some."""
    world = World()
    world.mmap(0, 16, RW, SHARED)
    for page in (0, 1, 2, 9):
        world.write(page)
    assert world.do("reclaim", 2) == 1
    world.fork()
    for page in (1, 9):
        world.do("read", page, proc=1)
    return world


def huge_pages() -> World:
    """The same, collapsed; the child has the first by its PMD, the second not at all."""
    world = small_pages()
    assert world.do("madvise", 0, 16, MADV_COLLAPSE) == 0
    world.do("read", 1, proc=1)
    return world


def private_beside_shared() -> World:
    """The memfd, shared, and privately in a child that has a copy of a page of the second range."""
    world = World()
    world.mmap(0, 16, RW, SHARED, MEMFD + 1)
    for page in (0, 1, 9):
        world.write(page)
    world.fork()
    assert world.do("mmap", 0, 16, RW, MAP_PRIVATE | MAP_FIXED, MEMFD + 1, 0, proc=1) == 0
    world.do("read", 1, proc=1)
    world.write(12, proc=1)
    return world


OPS = {
    "read": Op("read", 1, (1,)),
    "write": Op("write", 0, (1, 1)),
    "write in the child": Op("write", 1, (5, 1)),
    "munmap": Op("munmap", 0, (0, 8)),
    "munmap of a part": Op("munmap", 1, (6, 4)),
    "dontneed": Op("madvise", 0, (0, 8, MADV_DONTNEED)),
    "hole": Op("madvise", 0, (0, 8, MADV_REMOVE)),
    "hole in parts": Op("madvise", 0, (3, 8, MADV_REMOVE)),
    "guard": Op("madvise", 0, (9, 2, MADV_GUARD_INSTALL)),
    "mremap": Op("mremap", 0, (0, 8, 8, MOVE, 32)),
    "mremap of a part": Op("mremap", 1, (4, 8, 8, MOVE, 33)),
    "pin": Op("gup_fast", 0, (1, PIN_RW, 1)),
    "get": Op("gup_fast", 1, (1, 0, 1)),
    "slow pin": Op("gup_slow", 0, (9, FOLL_PIN, 1)),
    "reclaim": Op("reclaim", 0, (1,)),
    "migrate": Op("migrate", 0, (1,)),
    "pageout": Op("madvise", 0, (0, 16, MADV_PAGEOUT)),
    "pageout of a part": Op("madvise", 0, (0, 4, MADV_PAGEOUT)),
    "willneed": Op("madvise", 0, (0, 16, MADV_WILLNEED)),
    "collapse": Op("madvise", 0, (0, 16, MADV_COLLAPSE)),
    "collapse in the child": Op("madvise", 1, (0, 16, MADV_COLLAPSE)),
    "fork": Op("fork", 0, (2,)),
    "mprotect": Op("mprotect", 0, (4, 8, PROT_READ)),
    "against huge pages": Op("madvise", 0, (8, 8, MADV_NOHUGEPAGE)),
    "exit": Op("exit", 1, ()),
}


def seen(world: World, proc: int) -> list[object]:
    """What a process finds at each page: contents, or the signal."""
    found: list[object] = []
    for page in PAGES:
        ret = world.do("read", page, proc=proc)
        found.append(ret if ret else world.last.data)
    return found


@pytest.mark.parametrize("beside", OPS)
@pytest.mark.parametrize("make", [small_pages, huge_pages, private_beside_shared])
def test_a_collapse_beside(make: Callable[[], World], beside: str) -> None:
    """Cut anywhere: the state is sound, and who reads finds what the other op alone leaves."""
    op = OPS[beside]
    alone = make()
    alone.collide((Op("exec", 3, (0,)), op))  # op number 1 of its step, as beside the collapse
    expected = {proc: seen(alone, proc) for proc in sorted(alone.machine.procs)}
    for world, outcomes, where in every_cut(make, (Op("madvise", 0, (0, 16, MADV_COLLAPSE)), op)):
        assert outcomes[0].ret in (0, -EINVAL, -EAGAIN, -ENOMEM), where
        check_all(world)
        assert {proc: seen(world, proc) for proc in sorted(world.machine.procs)} == expected, where
        check_all(world)
        pin = world.machine.pins.get(1)
        if pin is not None and pin.flags & FOLL_PIN and op.args[0] == 1:
            assert_coherent(world, 1, 1)


SPLITS = {
    "hole": Op("madvise", 0, (3, 8, MADV_REMOVE)),
    "pageout": Op("madvise", 0, (0, 16, MADV_PAGEOUT)),
    "pageout of a part": Op("madvise", 0, (2, 4, MADV_PAGEOUT)),
    "migrate": Op("migrate", 0, (1,)),
}


def places(world: World) -> dict[int, list[object]]:
    """As ``seen``, by process, without what was written: that has the number of its step."""
    found: dict[int, list[object]] = {}
    for proc in sorted(world.machine.procs):
        found[proc] = [tuple(at for at, _ in x) if isinstance(x, tuple) else x for x in seen(world, proc)]
    return found


@pytest.mark.parametrize("beside", OPS)
@pytest.mark.parametrize("split", SPLITS)
def test_huge_pages_beside(split: str, beside: str) -> None:
    """Cut anywhere, the state is sound; what is read is what one of the two orders leaves."""
    first, op = SPLITS[split], OPS[beside]
    orders = []
    for turn in ((0, 1), (1, 0)):
        serial = huge_pages()
        for i in turn:
            serial.collide((first, Op("exec", 3, (0,))) if i == 0 else (Op("exec", 3, (0,)), op))
        orders.append(places(serial))
    for world, _, where in every_cut(huge_pages, (first, op)):
        check_all(world)
        assert places(world) in orders, where
        check_all(world)


def test_the_file_goes_with_its_last_mapping_during_a_collapse() -> None:
    """The call holds the file; the huge page is made for nobody, and goes with it."""
    world = shared("small8", 1, 0, 0)
    got = world.collide(
        [Op("madvise", 0, (0, 8, MADV_COLLAPSE)), Op("munmap", 0, (0, 8))],
        [Switch(0, "collapse.file_unlocked", 1), Switch(1, "end", TO_THE_END), Switch(0, "end", TO_THE_END)],
    )
    assert [outcome.ret for outcome in got] == [-EINVAL, 0]
    assert [mapping.label for mapping in world.machine.shared_memory.values()] == [MEMFD]
    check_all(world)


def test_an_anonymous_vma_in_the_place_of_a_file() -> None:
    """It is looked at again whenever mmap_lock was dropped: what was to be anonymous must still be."""
    world = World()
    world.mmap(0, 16)
    world.write(0)
    world.write(8)
    got = world.collide(
        [Op("madvise", 0, (0, 16, MADV_COLLAPSE)), Op("mmap", 0, (0, 8, RW, SHARED, MEMFD + 1, 0))],
        [Switch(0, "collapse.unlocked", 1), Switch(1, "end", TO_THE_END), Switch(0, "end", TO_THE_END)],
    )
    assert [outcome.ret for outcome in got] == [-EINVAL, 0]
    check_all(world)
