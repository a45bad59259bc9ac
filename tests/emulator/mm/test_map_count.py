"""vm.max_map_count: what each call may still do how near to it. The running kernel is asked for the same."""

from __future__ import annotations

from typing import Final

import pytest

from emulator.designs.mainline import Mainline
from emulator.profile import PROFILES
from emulator.uapi import MREMAP_FIXED, MREMAP_MAYMOVE
from emulator.workload import Op, Switch, Workload
from oracle.judge import Judge
from tests.emulator.kernel_world import World, kernel_image
from tests.emulator.mm.uffd_world import run

# Three mappings, of pages 0 to 7, 8 to 15 (which are faulted alike) and 400 to 407 (a stack). The last may go beyond
# the limit by one.
TWO: Final = "mmap 0 16 rw private|fixed 0 0; write 2 0; mprotect 8 8 r; "
THIRD: Final = "; mmap 400 8 rw private|fixed|growsdown 0 0 = 400; "
LOWEST: Final = 2

# A call, how it is refused, and the lowest limit with which it works (0: with any).
CALLS: Final = (
    # as many as there may be are no hindrance, one more is; what merges counts before it is known that it will
    ("mmap 40 1 rw private|fixed 0 0 = 40", "ENOMEM", 3),
    ("mmap 16 1 r private|fixed 0 0 = 16", "ENOMEM", 3),
    ("mmap 40 1 rw shared|fixed 0 0 = 40", "ENOMEM", 3),
    ("brk 131073 = 131073", "131072", 3),  # refused, it gives the old break
    # what is replaced or unmapped is cut at its edges whatever there may be, unless it lies within one mapping
    ("mmap 2 1 rw private|fixed 0 0 = 2", "ENOMEM", 4),
    ("mmap 2 1 r private|fixed 0 0 = 2", "ENOMEM", 4),
    ("mmap 4 4 r private|fixed 0 0 = 4", "ENOMEM", 3),
    ("munmap 2 1", "ENOMEM", 4),
    ("munmap 0 4", "", 0),
    ("munmap 4 4", "", 0),
    ("munmap 4 400", "", 0),
    ("munmap 0 8", "", 0),
    # a cut, or two, where it does not merge
    ("mprotect 2 1 r", "ENOMEM", 5),
    ("mprotect 0 4 r", "ENOMEM", 4),
    ("mprotect 4 4 r", "", 0),
    ("mprotect 4 4 none", "ENOMEM", 4),
    ("mprotect 0 8 rwx", "", 0),
    ("pkey_mprotect 2 1 r none", "ENOMEM", 5),
    ("madvise 2 1 random", "EAGAIN", 5),
    ("madvise 0 4 hugepage", "EAGAIN", 4),
    ("madvise 2 1 mergeable", "EAGAIN", 5),
    ("madvise 2 1 dontneed", "", 0),
    ("madvise 2 1 populate_read", "", 0),
    ("mlock 2 1", "ENOMEM", 5),
    ("mlock 0 4", "ENOMEM", 4),
    ("mlock2 4 4 onfault", "ENOMEM", 4),
    ("mlockall future", "", 0),
    ("mbind 2 1 bind", "ENOMEM", 5),
    ("set_vma_name 2 1 heap", "EAGAIN", 5),
    ("uffd_register 2 1 missing", "ENOMEM", 5),
    # a move keeps four mappings free, one to a chosen place two more; shrinking and growing in place none
    ("mremap 400 8 9 none 0 = 400", "", 0),
    ("mremap 400 8 4 none 0 = 400", "", 0),
    ("mremap 2 3 2 none 0 = 2", "ENOMEM", 4),
    ("mremap 0 8 9 maymove 0 = 262135", "ENOMEM", 7),
    ("mremap 0 8 8 maymove|fixed 40 = 40", "ENOMEM", 9),
    ("mremap 0 4 4 maymove|fixed 40 = 40", "ENOMEM", 9),
    ("mremap 0 8 8 maymove|dontunmap 40 = 40", "ENOMEM", 9),
    ("mremap 0 8 4 maymove|fixed 40 = 40", "ENOMEM", 9),
    # nobody asks
    ("fork 1", "", 0),
    ("write 399 0", "", 0),
)
LIMITS: Final = range(LOWEST, max(least for _, _, least in CALLS) + 1)


def world_with(limit: int, profile: str) -> World:
    world = World("x86-64", profile=profile)
    run(world, f"{TWO}max_map_count {limit}{THIRD}")
    return world


def check(world: World, profile: str) -> None:
    """Sound, and neither the specification nor another oracle has anything to say but of the charge."""
    world.check(committed=False)
    verdict = Judge(kernel_image(Mainline), profile=profile, thorough=True).run(Workload("x86-64", tuple(world.steps)))
    assert [found for found in verdict.findings if found.rule != "committed"] == []


def refuse(limit: int, profile: str) -> None:
    """All that is refused with this limit, one after the other: nothing changes but where mappings are cut."""
    world = world_with(limit, profile)
    before = world.contents()
    for call, error, least in sorted(CALLS, key=lambda row: -row[2]):  # the first of two cuts may be done, and stay
        if limit < least:
            run(world, f"{call.partition(' = ')[0]} = {error}")
            assert world.contents() == before, call
    check(world, profile)


def allow(call: str, least: int, profile: str) -> None:
    world = world_with(least, profile)
    run(world, call)
    check(world, profile)


@pytest.mark.live
@pytest.mark.parametrize("limit", LIMITS)
def test_refused(limit: int) -> None:
    refuse(limit, "6.18")


@pytest.mark.live
@pytest.mark.parametrize(("call", "least"), [(call, least) for call, _, least in CALLS])
def test_allowed(call: str, least: int) -> None:
    allow(call, least, "6.18")


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "6.18"])
def test_other_kernels(profile: str) -> None:
    """They draw the line where 6.18 does."""
    for limit in LIMITS:
        refuse(limit, profile)
    for call, _, least in CALLS:
        allow(call, least, profile)


@pytest.mark.live
def test_set_again_and_inherited() -> None:
    """Another limit takes the place of the first; a child has its parent's, which counts its own mappings."""
    world = world_with(3, "6.18")
    run(world, "munmap 2 1 = ENOMEM; max_map_count 4; munmap 2 1; munmap 10 1 = ENOMEM; fork 1; munmap 400 8")
    run(world, "munmap 10 1 = ENOMEM; munmap 0 2; munmap 10 1", proc=1)
    run(world, "munmap 10 1; max_map_count 0; munmap 405 1; mmap 40 1 rw private|fixed 0 0 = 40")
    run(world, "mmap 50 1 rw private|fixed 0 0 = ENOMEM; munmap 40 1; mmap 50 1 rw private|fixed 0 0 = 50")
    check(world, "6.18")


@pytest.mark.live
@pytest.mark.parametrize(
    ("script", "results"),
    [
        ("mseal 2 1", {4: "ENOMEM", 5: "0"}),
        ("uffd_register 0 8 missing; uffd_unregister 2 1", {4: "ENOMEM", 5: "0"}),
        ("mmap 40 4 rw shared|fixed memfd 0 = 40; remap_file_pages 40 1 2", {3: "ENOMEM", 4: "0"}),
        # several mappings in turn; what becomes alike merges, and needs no cut
        ("mprotect 2 8 none", {3: "ENOMEM", 4: "0"}),
        ("mlock 2 8", {3: "ENOMEM", 4: "ENOMEM", 5: "0"}),
        ("mremap 0 16 16 maymove|fixed 40", {7: "ENOMEM", 8: "ENOMEM", 9: "40"}),
    ],
)
def test_several_at_once(script: str, results: dict[int, str]) -> None:
    """What the last call gives with each limit; what it had done before it was refused stays done."""
    for limit, result in results.items():
        world = world_with(limit, "6.18")
        run(world, f"{script} = {result}")
        check(world, "6.18")


def test_not_in_the_middle_of_a_move() -> None:
    """A move has looked at what is free; the limit comes when it is done, and the source could be unmapped."""
    world = World("small4")
    run(world, "mmap 2 3 rw private|fixed 0 0 = 2; read 2")
    ops = Op("max_map_count", 0, (2,)), Op("mremap", 0, (3, 1, 1, MREMAP_MAYMOVE | MREMAP_FIXED, 0))
    assert [outcome.ret for outcome in world.collide(ops, [Switch(1, "mremap.after_ptes", 1)])] == [0, 0]
    assert world.layout() == [(0, 1), (2, 1), (4, 1)]
    world.check()
