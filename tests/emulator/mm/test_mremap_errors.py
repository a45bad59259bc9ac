"""Which error mremap gives when: the parameter checks, then those on the VMA, each in the kernel's order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.geometry import PAGE_SIZE
from emulator.mm_types import VM_DONTEXPAND, VM_PFNMAP, VM_SEALED
from emulator.uapi import (
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_RELOCATE_ANON,
    PROT_READ,
)
from tests.emulator.kernel_world import RW, World, profile_with

pytestmark = pytest.mark.live

FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
DONTUNMAP = MREMAP_MAYMOVE | MREMAP_DONTUNMAP
TASK_PAGES = 4095  # of small8

# The numbers of the rows are those of the kernel's checks, in order. addr and new_addr in bytes past page 0 and
# page 32, lengths in bytes.
PARAMETERS = [
    ("1 unknown flag", 0, 4096, 4096, 16, 0, EINVAL),
    ("1 relocation is not mainline's", 0, 4096, 4096, MREMAP_MAYMOVE | MREMAP_RELOCATE_ANON, 0, EINVAL),
    ("2 old address unaligned", 1, 4096, 4096, MREMAP_MAYMOVE, 0, EINVAL),
    ("3 no new length", 0, 4096, 0, MREMAP_MAYMOVE, 0, EINVAL),
    ("4 new length silly", 0, 4096, (TASK_PAGES + 1) * PAGE_SIZE, MREMAP_MAYMOVE, 0, EINVAL),
    ("5 new address silly", 0, 4096, 4096, FIXED, TASK_PAGES * PAGE_SIZE, EINVAL),
    ("5 of a mere hint", 0, 4096, 4096, DONTUNMAP, TASK_PAGES * PAGE_SIZE, EINVAL),
    ("6 new address unaligned", 0, 4096, 4096, FIXED, 1, EINVAL),
    ("6 of a mere hint", 0, 4096, 4096, DONTUNMAP, 1, EINVAL),
    ("7 FIXED without MAYMOVE", 0, 4096, 4096, MREMAP_FIXED, 0, EINVAL),
    ("7 DONTUNMAP without MAYMOVE", 0, 4096, 4096, MREMAP_DONTUNMAP, 0, EINVAL),
    ("8 DONTUNMAP that grows", 0, 4096, 8192, DONTUNMAP, 0, EINVAL),
    ("8 DONTUNMAP that shrinks", 0, 8192, 4096, DONTUNMAP, 0, EINVAL),
    ("9 overlap", 0, 8192, 8192, FIXED, -31 * PAGE_SIZE, EINVAL),
    ("9 overlap of a mere hint", 0, 8192, 8192, DONTUNMAP, -31 * PAGE_SIZE, EINVAL),
    ("9 growth over itself", 0, 4096, 33 * PAGE_SIZE, FIXED, -32 * PAGE_SIZE, EINVAL),
]
ROWS = [pytest.param(*row[1:], id=row[0]) for row in PARAMETERS]


def call(world: World, addr: int, old_len: int, new_len: int, flags: int, new_addr: int) -> int:
    """mremap(2) with addresses in bytes past page 0 and page 32."""
    start, target = world.address(0) + addr, world.address(32) + new_addr
    result: int = world.image.mremap.sys_mremap(world.mm(), start, old_len, new_len, flags, target)
    return result


@pytest.mark.parametrize(("addr", "old_len", "new_len", "flags", "new_addr", "errno"), ROWS)
def test_parameter(addr: int, old_len: int, new_len: int, flags: int, new_addr: int, errno: int) -> None:
    """Each bad parameter is refused with nothing changed, not even what lies at the destination."""
    world = World()
    world.mmap(0, 2)
    world.mmap(32, 2)
    tokens = {page: {0: world.write(page)} for page in (0, 1, 32, 33)}
    assert call(world, addr, old_len, new_len, flags, new_addr) == -errno
    assert world.contents() == tokens
    world.check()


@pytest.mark.parametrize(("addr", "old_len", "new_len", "flags", "new_addr", "errno"), ROWS)
def test_parameters_come_before_the_map_count(
    addr: int, old_len: int, new_len: int, flags: int, new_addr: int, errno: int
) -> None:
    """Checks 1 to 9 come before 10, and before the VMA is looked at: here there is none."""
    world = World(profile=profile_with(max_map_count=4))
    assert call(world, addr, old_len, new_len, flags, new_addr) == -errno


@pytest.mark.parametrize(("limit", "errno"), [(5, ENOMEM), (6, EFAULT)])
@pytest.mark.parametrize("flags", [FIXED, DONTUNMAP], ids=["fixed", "dontunmap"])
def test_map_count(limit: int, errno: int, flags: int) -> None:
    """10: map_count + 2 >= max_map_count - 3 gives ENOMEM, before the lack of a VMA is noticed."""
    world = World(profile=profile_with(max_map_count=limit))
    assert call(world, 0, 4096, 4096, flags, 0) == -errno


def test_map_count_is_no_matter_in_place() -> None:
    """Check 10 is for calls that imply a new address."""
    world = World(profile=profile_with(max_map_count=2))
    world.mmap(0, 2)
    assert call(world, 0, 8192, 4096, 0, 0) == world.address(0)


@pytest.mark.parametrize(("others", "errno"), [(1, 0), (2, ENOMEM)])
def test_map_count_of_a_moving_growth(others: int, errno: int) -> None:
    """move_vma wants three maps left; a growth that has to move meets only that check."""
    world = World(profile=profile_with(max_map_count=6))
    world.mmap(0, 1)
    for i in range(others):
        world.mmap(1 + 2 * i, 1, PROT_READ)
    ret = world.do("mremap", 0, 1, 2, MREMAP_MAYMOVE, 0)
    assert (ret == -errno) if errno else ret > 0


Change = Callable[[World], object]


def flagged(flag: int) -> Change:
    """The source VMA gets a flag by hand."""

    def change(world: World) -> None:
        world.vma(0).vm_flags |= flag

    return change


def combined(*changes: Change) -> Change:
    def change(world: World) -> None:
        for one in changes:
            one(world)

    return change


def nothing(world: World) -> None:
    """A plain 4-page source."""


def unmapped(world: World) -> None:
    world.do("munmap", 0, 4)


def full(world: World) -> None:
    """So much is mapped that the address space has no room for what the call wants to add."""
    world.mmap(100, 150, 0)


SEALED = flagged(VM_SEALED)
DONT_EXPAND = flagged(VM_DONTEXPAND)

# what the source is like, old pages, new pages, flags, errno (0: success)
VMA_CHECKS = [
    ("no_vma", unmapped, 4, 4, MREMAP_MAYMOVE, EFAULT),
    ("no_vma_fixed", unmapped, 4, 4, FIXED, EFAULT),
    ("sealed_noop", SEALED, 4, 4, 0, EPERM),
    ("sealed_shrink", SEALED, 4, 2, 0, EPERM),
    ("sealed_before_crossing", SEALED, 9, 9, DONTUNMAP, EPERM),
    ("sealed_before_empty", SEALED, 0, 4, FIXED, EPERM),
    ("noop_past_the_end", nothing, 9, 9, 0, 0),
    ("shrink_past_the_end", nothing, 9, 2, 0, 0),
    ("noop_of_dontexpand", DONT_EXPAND, 4, 4, 0, 0),
    ("empty_private", nothing, 0, 4, MREMAP_MAYMOVE, EINVAL),
    ("empty_private_fixed", nothing, 0, 4, FIXED, EINVAL),
    ("empty_before_dontexpand", DONT_EXPAND, 0, 4, FIXED, EINVAL),
    ("dontunmap_dontexpand", DONT_EXPAND, 4, 4, DONTUNMAP, EINVAL),
    ("dontunmap_pfnmap", flagged(VM_PFNMAP), 4, 4, DONTUNMAP, EINVAL),
    ("dontunmap_dontexpand_before_crossing", DONT_EXPAND, 9, 9, DONTUNMAP, EINVAL),
    ("dontunmap_crossing", nothing, 5, 5, DONTUNMAP, EFAULT),
    ("growth_crossing", nothing, 5, 6, MREMAP_MAYMOVE, EFAULT),
    ("growth_crossing_in_place", nothing, 5, 6, 0, EFAULT),
    ("moving_shrink_whose_new_length_crosses", nothing, 9, 5, FIXED, EFAULT),
    ("moving_shrink_that_starts_inside", nothing, 9, 4, FIXED, 0),
    ("move_of_dontexpand", DONT_EXPAND, 4, 4, FIXED, 0),
    ("growth_of_dontexpand", DONT_EXPAND, 4, 5, MREMAP_MAYMOVE, EFAULT),
    ("growth_of_pfnmap", flagged(VM_PFNMAP), 4, 5, MREMAP_MAYMOVE, EFAULT),
    ("moving_shrink_of_dontexpand", DONT_EXPAND, 4, 2, FIXED, 0),
    ("growth_without_room", full, 4, 3950, MREMAP_MAYMOVE, ENOMEM),
    ("growth_of_dontexpand_before_room", combined(full, DONT_EXPAND), 4, 3950, MREMAP_MAYMOVE, EFAULT),
    ("growth_in_place_blocked", lambda w: w.mmap(4, 1, 0), 4, 5, 0, ENOMEM),
]


@pytest.mark.parametrize(
    ("change", "old", "new", "flags", "errno"), [pytest.param(*row[1:], id=row[0]) for row in VMA_CHECKS]
)
def test_vma_check(change: Change, old: int, new: int, flags: int, errno: int) -> None:
    """The checks on the source VMA; all come before anything at the destination is unmapped."""
    world = World()
    world.mmap(0, 4)
    world.mmap(32, 4)
    token = world.write(33)
    change(world)
    before = world.layout()
    ret = world.do("mremap", 0, old, new, flags, 32)
    if errno:
        assert ret == -errno
        assert world.layout() == before
        assert world.content(33) == {0: token}
    else:
        assert ret == (32 if flags & FIXED == FIXED else 0)
    world.check(committed=not (flags & FIXED == FIXED and new < old))


def test_limit_comes_before_the_destination() -> None:
    """A growth that the address space has no room for is refused before the destination is unmapped."""
    world = World()
    world.mmap(0, 2500, 0)
    world.mmap(3000, 2)
    assert world.do("mremap", 3000, 2, 2000, FIXED, 0) == -ENOMEM
    assert world.layout() == [(0, 2500), (3000, 2)]


def test_moving_shrink_is_not_limited() -> None:
    """A moving shrink needs no more room than there is: the limits are not asked, though its delta is large."""
    world = World()
    world.mmap(0, 2100, 0)
    world.mmap(2200, 1, 0)
    assert world.do("mremap", 0, 2100, 1, FIXED, 3000) == 3000
    assert world.layout() == [(2200, 1), (3000, 1)]


def test_empty_shared_makes_a_second_mapping() -> None:
    """old_len 0 of a shared mapping: the same file pages once more, the source stays."""
    world = World()
    world.mmap(0, 4, RW, MAP_SHARED | MAP_FIXED, file=1)
    token = world.write(1)
    assert world.do("mremap", 0, 0, 4, FIXED, 32) == 32
    assert world.layout() == [(0, 4), (32, 4)]
    assert world.do("read", 33) == 0
    assert world.last.data == ((0, token),)


def test_sealed_destination() -> None:
    """FIXED onto a sealed mapping: EPERM, and both stay."""
    world = World()
    world.mmap(0, 2)
    world.mmap(32, 2)
    world.vma(32).vm_flags |= VM_SEALED
    token = world.write(0)
    assert world.do("mremap", 0, 2, 2, FIXED, 32) == -EPERM
    assert world.layout() == [(0, 2), (32, 2)]
    assert world.content(0) == {0: token}


def test_sealed_source_keeps_the_destination() -> None:
    """The source is checked before the destination is unmapped (observed on Linux)."""
    world = World()
    world.mmap(0, 2)
    world.mmap(32, 2)
    token = world.write(32)
    world.vma(0).vm_flags |= VM_SEALED
    assert world.do("mremap", 0, 2, 2, FIXED, 32) == -EPERM
    assert world.content(32) == {0: token}


@pytest.mark.parametrize("flags", [FIXED, FIXED | MREMAP_DONTUNMAP], ids=["fixed", "fixed_dontunmap"])
def test_no_memory_after_the_destination_was_unmapped(flags: int) -> None:
    """Once FIXED has unmapped the destination a failure leaves it unmapped, and the source whole."""
    points = []
    for nth in range(1, 20):
        world = World()
        world.mmap(0, 2)
        world.mmap(32, 2)
        token = world.write(0)
        ret = world.do("mremap", 0, 2, 2, flags, 32, fail_nth=nth)
        if not world.last.injected:
            break
        points.append(ret)
        if ret == -ENOMEM:
            assert world.content(0) == {0: token}
            assert world.content(32) in (None, {})
    assert -ENOMEM in points
