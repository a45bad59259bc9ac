"""Limits of a process: what they refuse, and that children have them too."""

from __future__ import annotations

import pytest

from emulator.designs.mainline import Mainline
from emulator.profile import PROFILES
from emulator.workload import Workload
from oracle.judge import Judge
from tests.emulator.kernel_world import World, kernel_image
from tests.emulator.mm.uffd_world import run

MEMORY = "mmap 0 4 rw private|fixed 0 0; mmap 8 4 r private|fixed 0 0 = 8; "


@pytest.mark.live
@pytest.mark.parametrize(
    "script",
    [
        # address space: everything counts
        "setrlimit as 8; mmap 16 1 r private|fixed 0 0 = ENOMEM",
        "setrlimit as 9; mmap 16 1 r private|fixed 0 0 = 16; mmap 17 1 rw shared|fixed 0 0 = ENOMEM",
        "setrlimit as 8; mmap 8 4 rw private|fixed 0 0 = 8",  # what it replaces makes room
        "setrlimit as 7; mmap 8 4 rw private|fixed 0 0 = ENOMEM; munmap 8 1; mmap 9 3 rw private|fixed 0 0 = 9",
        "setrlimit as 9; mremap 8 4 6 maymove 0 = ENOMEM; mremap 8 4 5 none 0 = 8",
        "setrlimit as 8; mremap 8 4 4 maymove|fixed 20 = 20",
        "setrlimit as 11; mremap 8 4 4 maymove|dontunmap 20 = ENOMEM",
        "setrlimit as 12; mremap 8 4 4 maymove|dontunmap 20 = 20",
        "setrlimit as 7; mprotect 8 4 rw; munmap 0 1",  # what is there already stays
        "setrlimit as 4; mremap 8 4 2 none 0 = 8",
        # data: private, writable, no stack
        "setrlimit data 4; mmap 16 4 r private|fixed 0 0 = 16; mmap 20 4 rw shared|fixed 0 0 = 20",
        "setrlimit data 4; mmap 16 1 rw private|fixed 0 0 = ENOMEM; mmap 16 1 rw private|fixed|growsdown 0 0 = 16",
        "setrlimit data 4; mprotect 8 4 rw = ENOMEM; setrlimit data 8; mprotect 8 4 rw",
        "setrlimit data 4; mmap 0 4 rw private|fixed 0 0",
        "setrlimit data 4; mremap 0 4 5 none 0 = ENOMEM; mremap 8 4 5 none 0 = 8",
        "setrlimit data 3; mprotect 0 2 r; mprotect 0 2 rw = ENOMEM; mmap 16 1 rw private|fixed 0 0 = 16",
        # stacks, each for itself
        "mmap 60 2 rw private|fixed|growsdown 0 0 = 60; setrlimit stack 4; write 58 0; write 57 0 = SIGSEGV",
        "mmap 60 2 rw private|fixed|growsdown 0 0 = 60; setrlimit stack 0; write 59 0 = SIGSEGV; write 60 0",
        "mmap 60 2 rw private|fixed|growsdown 0 0 = 60; setrlimit as 11; write 58 0 = SIGSEGV; write 59 0",
        # locked memory
        "setrlimit memlock 3; mlock 0 4 = ENOMEM; mlock 0 3; mlock 3 1 = ENOMEM; munlock 0 1; mlock 3 1",
        "setrlimit memlock 0; mlock 0 1 = EPERM; mmap 16 1 rw private|fixed|locked 0 0 = EPERM; munlock 0 1",
        "setrlimit memlock 4; mlock 0 4; mremap 0 4 5 maymove 0 = EAGAIN",
        "setrlimit memlock 4; mlock 0 4; mmap 16 1 rw private|fixed|locked 0 0 = EAGAIN",
        "setrlimit memlock 4; mlockall future; mmap 16 4 rw private|fixed 0 0 = 16; mmap 20 1 r private 0 0 = EAGAIN",
    ],
)
def test_limits(script: str) -> None:
    """One limit each; the results are Linux's."""
    world = World()
    run(world, MEMORY + script)
    world.check(committed=False)


@pytest.mark.live
def test_the_heap() -> None:
    """Neither beyond the limit of data, nor below it when it lies beyond; and it is data like any other."""
    world = World("x86-64")
    heap = world.machine.geometry.heap_page
    run(world, MEMORY + f"brk {heap + 3} = {heap + 3}; setrlimit data 7; brk {heap + 4} = {heap + 3}")
    run(world, f"setrlimit data 2; brk {heap + 3} = {heap + 3}; brk {heap + 2} = {heap + 2}; setrlimit as 20")
    run(world, f"setrlimit data 40; brk {heap + 12} = {heap + 12}; brk {heap + 13} = {heap + 2 + 10}")
    world.check(committed=False)


@pytest.mark.live
def test_children() -> None:
    """A child has its parent's limits, and its own from then on."""
    world = World()
    run(world, MEMORY + "setrlimit as 8; fork 1; setrlimit as 9; mmap 16 1 r private|fixed 0 0 = 16")
    run(
        world,
        "mmap 16 1 r private|fixed 0 0 = ENOMEM; setrlimit as 10; mmap 16 2 r private|fixed 0 0 = 16",
        proc=1,
    )
    run(world, "mmap 17 1 r private|fixed 0 0 = ENOMEM")


@pytest.mark.live
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("script", "layout"),
    [
        # eight pages of data, one of shared memory: whatever is replaced makes room, data or not
        ("setrlimit data 14; mmap 8 7 rw private|fixed 0 0 = 8", [(0, 15)]),
        ("setrlimit data 13; mmap 8 7 rw private|fixed 0 0 = ENOMEM", [(0, 8), (8, 1)]),
        ("setrlimit as 15; mmap 8 7 rw private|fixed 0 0 = 8", [(0, 15)]),
        ("setrlimit as 14; mmap 8 7 rw private|fixed 0 0 = ENOMEM", [(0, 8), (8, 1)]),
        # what cannot be written, and a hole behind it
        ("mmap 9 1 r private|fixed 0 0 = 9; setrlimit data 10; mmap 8 4 rw private|fixed 0 0 = 8", [(0, 12)]),
        ("mmap 9 1 r private|fixed 0 0 = 9; setrlimit data 9; mmap 8 4 rw private|fixed 0 0 = ENOMEM",
         [(0, 8), (8, 1), (9, 1)]),
        # data over data, with what is replaced cut out of a larger mapping
        ("setrlimit data 8; mmap 2 4 rwx private|fixed 0 0 = 2", [(0, 2), (2, 4), (6, 2), (8, 1)]),
        ("setrlimit data 7; mmap 0 9 rw private|fixed 0 0 = ENOMEM", [(0, 8), (8, 1)]),
        ("setrlimit data 9; mmap 7 3 rw private|fixed 0 0 = 7", [(0, 10)]),
        # nothing is asked where nothing is data
        ("setrlimit data 1; mmap 8 7 r private|fixed 0 0 = 8", [(0, 8), (8, 7)]),
    ],
)  # fmt: skip
def test_what_is_replaced_makes_room(profile: str, script: str, layout: list[tuple[int, int]]) -> None:
    """Every kernel asks once, with what is still there, and takes off what is to go: 5.17 unmaps it only then."""
    world = World(profile=profile)
    run(world, "mmap 0 8 rw private|fixed 0 0; mmap 8 1 rw shared|fixed 0 0 = 8; " + script)
    assert world.layout() == layout
    world.check()
    verdict = Judge(kernel_image(Mainline), profile=profile).run(Workload("small8", tuple(world.steps)))
    assert not verdict.findings
