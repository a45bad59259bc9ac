"""process_madvise: several ranges, of this process or another (mm/madvise.c)."""

from __future__ import annotations

import pytest

from emulator.uapi import (
    EINVAL,
    ENOMEM,
    ESRCH,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_PAGEOUT,
    MADV_WILLNEED,
    SIGSEGV,
)
from emulator.workload import Op
from tests.emulator.kernel_world import World
from tests.emulator.references import check_all, every_cut


def written() -> World:
    """Pages 0 to 3 and 10 to 13, all written."""
    world = World()
    for first in (0, 10):
        world.mmap(first, 4)
        for page in range(first, first + 4):
            world.write(page)
    return world


@pytest.mark.live
@pytest.mark.parametrize(
    ("advice", "first", "second", "result"),
    [
        (MADV_DONTNEED, (0, 2), (10, 3), 5),
        (MADV_DONTNEED, (0, 2), (0, 0), 2),
        (MADV_DONTNEED, (0, 0), (10, 3), 3),
        (MADV_DONTNEED, (0, 0), (5, 0), 0),
        (MADV_DONTNEED, (0, 2), (5, 3), 2),  # the second is a hole
        (MADV_DONTNEED, (5, 3), (0, 2), -ENOMEM),
        (MADV_DONTNEED, (0, 6), (10, 2), -ENOMEM),  # what is mapped of the first is done
        (MADV_COLD, (0, 4), (10, 4), 8),
        (MADV_PAGEOUT, (0, 4), (10, 4), 8),
        (MADV_WILLNEED, (0, 4), (10, 4), 8),
        (MADV_COLLAPSE, (0, 4), (10, 4), -EINVAL),
        (MADV_GUARD_INSTALL, (0, 4), (10, 4), 8),
        (MADV_GUARD_REMOVE, (0, 4), (10, 4), 8),
    ],
)
def test_ranges_are_done_in_turn(advice: int, first: tuple[int, int], second: tuple[int, int], result: int) -> None:
    """The result is how many pages of whole ranges were done; an errno where it was none."""
    world = written()
    assert world.do("process_madvise", 0, *first, *second, advice) == result
    if advice == MADV_DONTNEED:
        assert world.content(0) == ({} if first[0] == 0 and first[1] else {0: 1 + 4 * 1})
    if advice == MADV_GUARD_INSTALL:
        assert [world.do("read", page) for page in (0, 3, 10, 13)] == [SIGSEGV] * 4
    check_all(world)


@pytest.mark.live
@pytest.mark.parametrize(
    ("advice", "result"),
    [
        (MADV_PAGEOUT, 6),
        (MADV_COLD, 6),
        (MADV_WILLNEED, 6),
        (MADV_DONTNEED, -EINVAL),
        (MADV_GUARD_INSTALL, -EINVAL),
        (MADV_GUARD_REMOVE, -EINVAL),
    ],
)
def test_another_process_gets_hints_only(advice: int, result: int) -> None:
    world = written()
    world.fork()
    before = world.contents(0)
    assert world.do("process_madvise", 0, 0, 4, 10, 2, advice, proc=1) == result
    assert world.do("read", 0) == 0
    assert world.contents(0) == before
    check_all(world)


@pytest.mark.live
def test_there_must_be_such_a_process() -> None:
    world = written()
    assert world.do("process_madvise", 1, 0, 4, 10, 2, MADV_PAGEOUT) == -ESRCH


@pytest.mark.parametrize("beside", [Op("exit", 0, ()), Op("munmap", 0, (0, 4)), Op("write", 0, (0, 1))])
def test_every_interleaving_is_sound(beside: Op) -> None:
    """The other process may end meanwhile: its memory stays until the call is done."""

    def make() -> World:
        world = written()
        world.fork()
        return world

    for world, outcomes, where in every_cut(make, (Op("process_madvise", 1, (0, 0, 4, 10, 4, MADV_PAGEOUT)), beside)):
        assert outcomes[0].ret in (8, -ESRCH, -ENOMEM), where
        check_all(world)
