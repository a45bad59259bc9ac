"""Overcommit: what each mode promises, and to whom (mm/util.c)."""

from __future__ import annotations

from typing import Final

import pytest

from emulator.designs.mainline import Mainline
from emulator.profile import PROFILES
from emulator.uapi import ENOMEM, MAP_NORESERVE, OVERCOMMIT_ALWAYS, OVERCOMMIT_GUESS, OVERCOMMIT_NEVER
from emulator.workload import Workload
from oracle.judge import Judge
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World, committing, kernel_image, profile_with
from tests.emulator.mm.uffd_world import run

MIB: Final = 1 << 20  # bytes
SETTINGS: Final = {"ram_and_swap": 50, "commit_limit": 40, "user_reserve": 128 * MIB}


@pytest.mark.parametrize(
    ("mode", "changes", "before", "largest"),
    [
        # one request is looked at by itself
        (OVERCOMMIT_GUESS, {}, 0, 50),
        (OVERCOMMIT_GUESS, {}, 45, 50),
        (OVERCOMMIT_GUESS, {"ram_and_swap": None}, 0, 100),
        (OVERCOMMIT_ALWAYS, {}, 90, 100),
        # all that is promised must stay below the limit
        (OVERCOMMIT_NEVER, {}, 0, 39),
        (OVERCOMMIT_NEVER, {}, 30, 9),
        (OVERCOMMIT_NEVER, {"commit_limit": None}, 90, 100),
        # what is kept back: one part in 32 of the process, which has more than 32 pages here, up to the reserve
        (OVERCOMMIT_NEVER, {}, 32, 6),
        (OVERCOMMIT_NEVER, {"commit_limit": 120}, 64, 53),
        (OVERCOMMIT_NEVER, {"commit_limit": 120, "user_reserve": 1 << 12}, 64, 54),
        (OVERCOMMIT_NEVER, {"commit_limit": 120, "user_reserve": 0}, 64, 55),
        # and for root, who may have it
        (OVERCOMMIT_NEVER, {"admin_reserve": 4 << 12}, 0, 39),
        (OVERCOMMIT_NEVER, {"admin_reserve": 4 << 12, "cap_sys_admin": False}, 0, 35),
    ],
)
def test_the_largest_request(mode: int, changes: dict[str, object], before: int, largest: int) -> None:
    """``before``: pages that are charged and mapped already. One page more than the ``largest`` request is refused."""
    world = World(profile=profile_with(**SETTINGS | changes, overcommit_memory=OVERCOMMIT_ALWAYS))
    if before:
        world.mmap(0, before)
    assert world.do("overcommit_memory", mode) == 0
    if largest < 100:
        assert world.do("mmap", 91, largest + 1, RW, PRIVATE_FIXED, 0, 0) == -ENOMEM
        assert world.machine.committed == before
    assert world.do("mmap", 91, largest, RW, PRIVATE_FIXED, 0, 0) == 91
    world.check()


@pytest.mark.parametrize("limit", [3, 4])
def test_nobody_is_charged_for_a_page_of_a_file_of_memory(limit: int) -> None:
    """The size of who touches it does not count: the last page below the limit can be had."""
    world = World(profile=committing(limit))
    run(world, "mmap 0 64 r private|fixed 0 0; mmap 70 4 rw shared|fixed memfd 0 = 70")
    run(world, "write 70 0; write 71 0; write 72 0")
    run(world, "write 73 0" if limit == 4 else "write 73 0 = SIGBUS")


@pytest.mark.live
@pytest.mark.parametrize(
    ("script", "reserved"),
    [
        ("mmap 0 4 rw private|fixed|noreserve 0 0", False),
        ("overcommit_memory always; mmap 0 4 rw private|fixed|noreserve 0 0", False),
        ("overcommit_memory never; mmap 0 4 rw private|fixed|noreserve 0 0", True),
        ("overcommit_memory never; overcommit_memory guess; mmap 0 4 rw private|fixed|noreserve 0 0", False),
        ("mmap 0 4 rw private|fixed|noreserve 0 0; overcommit_memory never; mmap 2 2 rw private|fixed 0 0 = 2", False),
        ("overcommit_memory never; mmap 0 4 r private|fixed|noreserve 0 0; mprotect 0 4 rw", True),
        ("mmap 0 4 r private|fixed|noreserve 0 0; overcommit_memory never; mprotect 0 4 rw", False),
        ("overcommit_memory never; mmap 0 4 rw shared|fixed|noreserve 0 0", True),
        ("overcommit_memory never; mmap 0 4 rw private|fixed|noreserve 0 0; fork 1; overcommit_memory guess", True),
    ],
)
def test_noreserve(script: str, reserved: bool) -> None:
    """What is not to be reserved is reserved where nothing may be overcommitted, and merges with what is."""
    world = World()
    run(world, f"{script}; mmap 4 4 rw private|fixed 0 0 = 4")
    assert world.machine.committed >= (8 if reserved else 4)
    world.check()
    verdict = Judge(kernel_image(Mainline), thorough=True).run(Workload("small8", tuple(world.steps)))
    assert not verdict.findings


@pytest.mark.parametrize("profile", PROFILES)
def test_kernels(profile: str) -> None:
    """All profiles come with the mode that guesses, and refuse nothing."""
    world = World(profile=profile)
    world.mmap(0, 4, RW, PRIVATE_FIXED | MAP_NORESERVE)
    assert world.machine.committed == 0
    assert world.machine.overcommit_memory == OVERCOMMIT_GUESS
