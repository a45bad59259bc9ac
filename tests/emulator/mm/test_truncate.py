"""MADV_REMOVE: holes in files of memory and on disks, and what they leave (mm/truncate.c, mm/madvise.c)."""

from __future__ import annotations

import pytest

from emulator.uapi import (
    EACCES,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_GUARD_INSTALL,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    SIGSEGV,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE, MEMFD, Op, file_token
from tests.emulator.kernel_world import RW, World
from tests.emulator.mm.test_shmem import load
from tests.emulator.references import check_all, every_cut

SHARED, PRIVATE = MAP_SHARED | MAP_FIXED, MAP_PRIVATE | MAP_FIXED
ANON, DISK, MEMORY = 0, 1, MEMFD + 1  # files as mmap names them


def mapped(file: int, pages: int = 4) -> World:
    world = World()
    world.mmap(0, pages, RW, SHARED, file)
    return world


@pytest.mark.live
@pytest.mark.parametrize("file", [ANON, DISK, MEMORY])
def test_a_hole_is_zeros_for_everybody(file: int) -> None:
    """Other mappings and processes see it too; the pages beside it stay, and it can be written again."""
    world = mapped(file)
    for page in range(4):
        world.write(page)
    kept = load(world, 0), load(world, 3)
    assert world.do("mremap", 0, 0, 4, 3, 20) == 20
    world.fork()
    assert load(world, 1, 1)
    assert world.do("madvise", 21, 2, MADV_REMOVE, proc=1) == 0
    assert [load(world, page) for page in range(4)] == [kept[0], {}, {}, kept[1]]
    assert load(world, 22, 1) == {}
    token = world.write(1)
    assert load(world, 21, 1) == {0: token}
    check_all(world)


@pytest.mark.live
@pytest.mark.parametrize("file", [DISK, MEMORY])
def test_private_copies_and_guards_stay(file: int) -> None:
    """What a private mapping has copied is its own; what it has not, it sees through."""
    world = mapped(file)
    world.mmap(10, 4, RW, PRIVATE, file)
    world.write(0)
    world.write(1)
    world.write(10)
    copy = load(world, 10)
    assert load(world, 11) == load(world, 1)
    assert world.do("madvise", 12, 1, MADV_GUARD_INSTALL) == 0
    assert world.do("madvise", 0, 4, MADV_REMOVE) == 0
    assert load(world, 10) == copy
    assert load(world, 11) == load(world, 1) == {}
    assert world.do("read", 12) == SIGSEGV
    assert load(world, 2) == {}
    check_all(world)


@pytest.mark.live
def test_what_was_never_read_is_zeros_too() -> None:
    world = mapped(DISK)
    assert world.do("madvise", 1, 2, MADV_REMOVE) == 0
    assert [load(world, page) for page in range(4)] == [{0: file_token(0, 0)}, {}, {}, {0: file_token(0, 3)}]


@pytest.mark.live
@pytest.mark.parametrize(
    ("flags", "file", "prot", "error"),
    [
        (SHARED, MEMORY, RW, 0),
        (SHARED, MEMORY, PROT_READ, 0),  # it may be made writable
        (SHARED | MAP_LOCKED, MEMORY, RW, -EINVAL),
        (PRIVATE, MEMORY, RW, -EACCES),
        (PRIVATE, ANON, RW, -EINVAL),
    ],
)
def test_where_holes_may_be(flags: int, file: int, prot: int, error: int) -> None:
    world = World()
    world.mmap(0, 2, prot, flags, file)
    assert world.do("madvise", 0, 2, MADV_REMOVE) == error
    assert world.do("madvise", 0, 3, MADV_REMOVE) == (error or -ENOMEM)


@pytest.mark.live
def test_a_mapping_that_refuses_ends_it() -> None:
    """What stands before it has its hole."""
    world = mapped(MEMORY)
    world.write(0)
    world.write(3)
    world.mmap(2, 1, RW, PRIVATE)
    assert world.do("madvise", 0, 4, MADV_REMOVE) == -EINVAL
    assert load(world, 0) == {}
    assert load(world, 3) != {}


@pytest.mark.live
def test_sealed_memory_that_cannot_be_written_keeps_its_contents() -> None:
    world = World()
    world.mmap(0, 1, PROT_READ)
    assert world.do("mseal", 0, 1) == 0
    assert world.do("madvise", 0, 1, MADV_REMOVE) == -EPERM
    assert world.do("madvise", 0, 1, MADV_DONTNEED_LOCKED) == -EPERM


@pytest.mark.live
def test_locked_memory_is_dropped_by_its_own_advice() -> None:
    world = World()
    world.mmap(0, 2, RW, PRIVATE | MAP_LOCKED)
    world.write(0)
    assert world.do("madvise", 0, 2, MADV_DONTNEED) == -EINVAL
    assert world.do("madvise", 0, 2, MADV_DONTNEED_LOCKED) == 0
    assert world.pte(0) == 0
    assert load(world, 0) == {}
    assert world.mm().locked_vm == 2


def test_pages_in_swap_go_and_pins_keep_theirs() -> None:
    world = mapped(MEMORY)
    world.write(0)
    token = world.write(1)
    assert world.do("gup_fast", 1, FOLL_PIN | FOLL_WRITE, 0) == 0
    assert world.do("madvise", 0, 1, MADV_PAGEOUT) == 0
    assert world.machine.committed == 2
    assert world.do("madvise", 0, 4, MADV_REMOVE) == 0
    assert world.machine.committed == 0
    assert not world.machine.swap.count
    assert world.machine.pins[0].folio.content[0] == {0: token}
    assert load(world, 1) == {}
    assert world.do("unpin", 0) == 0
    check_all(world)


@pytest.mark.parametrize("file", [DISK, MEMORY])
@pytest.mark.parametrize(
    "beside",
    [
        Op("write", 0, (0, 1)),
        Op("read", 0, (10,)),
        Op("munmap", 0, (0, 4)),
        Op("fork", 0, (1,)),
        Op("migrate", 0, (0,)),
        Op("reclaim", 0, (0,)),
        Op("mremap", 0, (0, 4, 4, 3, 20)),
        Op("madvise", 0, (0, 4, MADV_REMOVE)),
    ],
)
def test_every_interleaving_is_sound(file: int, beside: Op) -> None:
    """Whatever comes in between, there is a hole or what was written after it, and no reference is lost."""

    def make() -> World:
        world = mapped(file)
        world.mmap(10, 4, RW, PRIVATE, file)
        world.write(0)
        world.write(1)
        load(world, 10)
        return world

    for world, outcomes, where in every_cut(make, (Op("madvise", 0, (0, 2, MADV_REMOVE)), beside)):
        assert outcomes[0].ret in ((0, -ENOMEM) if beside.kind in ("munmap", "mremap") else (0,)), where
        check_all(world)
        assert load(world, 10).keys() <= {1} or beside.kind in ("munmap", "mremap"), where
