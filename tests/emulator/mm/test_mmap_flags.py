"""Flags of mmap that change the VMA and no more: stacks, locked, populated, droppable; and the brk operation."""

from __future__ import annotations

import pytest

from emulator.hw.pte import PRESENT
from emulator.mm_types import (
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_WIPEONFORK,
)
from emulator.uapi import (
    EAGAIN,
    EINVAL,
    EPERM,
    MADV_DODUMP,
    MADV_KEEPONFORK,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_STACK,
    PROT_NONE,
    PROT_READ,
    SIGSEGV,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World, profile_with
from tests.emulator.mm.world import is_huge
from tests.emulator.references import check_all

pytestmark = pytest.mark.live

DROPPABLE = MAP_DROPPABLE | MAP_FIXED
OF_DROPPABLE = VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP


@pytest.mark.parametrize(
    ("flags", "file", "vm_flags"),
    [
        (PRIVATE_FIXED | MAP_GROWSDOWN, 0, VM_GROWSDOWN),
        (PRIVATE_FIXED | MAP_LOCKED, 0, VM_LOCKED),
        (PRIVATE_FIXED | MAP_LOCKED, 1, VM_LOCKED),
        (PRIVATE_FIXED | MAP_STACK, 0, VM_NOHUGEPAGE),
        (DROPPABLE, 0, OF_DROPPABLE),
        (DROPPABLE | MAP_POPULATE | MAP_STACK, 0, OF_DROPPABLE | VM_NOHUGEPAGE),
    ],
)
def test_flags_of_the_vma(flags: int, file: int, vm_flags: int) -> None:
    """What each flag of mmap makes of the VMA; a neighbour without it does not merge."""
    world = World()
    world.mmap(0, 2)
    world.mmap(2, 2, RW, flags, file)
    all_of_them = VM_GROWSDOWN | VM_LOCKED | VM_NOHUGEPAGE | OF_DROPPABLE
    assert world.vma(2).vm_flags & all_of_them == vm_flags
    assert world.layout() == [(0, 2), (2, 2)]
    world.mmap(4, 2, RW, flags, 0)
    assert world.layout() == ([(0, 2), (2, 4)] if not file else [(0, 2), (2, 2), (4, 2)])
    world.check()


@pytest.mark.parametrize(
    ("flags", "file"),
    [
        (PRIVATE_FIXED | MAP_GROWSDOWN, 1),
        (MAP_SHARED | MAP_FIXED | MAP_GROWSDOWN, 1),
        (DROPPABLE, 1),
        (DROPPABLE | MAP_LOCKED, 0),
        (DROPPABLE | MAP_GROWSDOWN, 0),
        (DROPPABLE | MAP_PRIVATE, 0),
        (DROPPABLE | MAP_SHARED, 0),
    ],
)
def test_what_makes_no_sense(flags: int, file: int) -> None:
    """Stacks of files, droppable memory that is locked or a stack or a file or of two types at once."""
    assert World().do("mmap", 0, 2, RW, flags, file, 0) == -EINVAL


@pytest.mark.parametrize(
    ("flag", "prot", "there"),
    [
        (MAP_LOCKED, RW, True),
        (MAP_POPULATE, RW, True),
        (MAP_POPULATE, PROT_READ, True),
        (MAP_LOCKED, PROT_NONE, False),
    ],
)
def test_populated(flag: int, prot: int, there: bool) -> None:
    """LOCKED and POPULATE fault pages in, as far as they can."""
    world = World()
    world.mmap(0, 2, prot, PRIVATE_FIXED | flag)
    assert [bool(world.pte(page) & PRESENT) for page in (0, 1)] == [there] * 2


# ---- droppable memory


def test_reclaim_empties_droppable_memory() -> None:
    """Written or not, it is thrown away, without swap; pinned it stays."""
    world = World()
    world.mmap(0, 3, RW, DROPPABLE)
    for page in range(3):
        world.write(page)
    assert not world.machine.committed
    assert world.do("gup_fast", 1, FOLL_PIN | FOLL_WRITE, 0) == 0
    for page in range(3):
        world.do("reclaim", page)
    assert [world.content(page) == {} for page in range(3)] == [True, False, True]
    assert not world.machine.swap.count
    check_all(world)


def test_a_droppable_huge_page_goes_whole() -> None:
    """Dirty as it is."""
    world = World()
    world.mmap(0, 8, RW, DROPPABLE)
    assert world.do("madvise", 0, 8, 14) == 0
    world.write(3)
    assert is_huge(world, 0)
    world.do("reclaim", 0)
    assert world.content(3) == {}
    check_all(world)


def test_droppable_memory_keeps_what_it_is() -> None:
    """It cannot be locked, dumped or kept over fork; a child's is empty."""
    world = World()
    world.mmap(0, 2, RW, DROPPABLE)
    world.write(0)
    assert [world.do("madvise", 0, 1, advice) for advice in (MADV_KEEPONFORK, MADV_DODUMP)] == [-EINVAL] * 2
    assert world.do("mlock", 0, 2) == 0
    assert world.vma(0).vm_flags & (VM_LOCKED | OF_DROPPABLE) == OF_DROPPABLE
    assert world.do("mlockall", 2) == 0
    world.mmap(4, 1, RW, DROPPABLE)
    assert not world.vma(4).vm_flags & VM_LOCKED
    assert world.mm().locked_vm == 0
    world.fork()
    assert world.content(0, proc=1) == {}
    assert world.content(0) != {}


# ---- limits


def test_locked_mappings_without_the_right() -> None:
    """RLIMIT_MEMLOCK 0: EPERM; too little of it: EAGAIN, for stacks and the heap as well."""
    none = World(profile=profile_with(cap_ipc_lock=False, rlimit_memlock=0))
    assert none.do("mmap", 0, 1, RW, PRIVATE_FIXED | MAP_LOCKED, 0, 0) == -EPERM
    world = World(profile=profile_with(cap_ipc_lock=False, rlimit_memlock=3 << 12))
    assert world.do("mmap", 0, 4, RW, PRIVATE_FIXED | MAP_LOCKED, 0, 0) == -EAGAIN
    world.mmap(10, 2, RW, PRIVATE_FIXED | MAP_LOCKED | MAP_GROWSDOWN)
    assert world.do("write", 8, 0) == SIGSEGV
    assert world.do("write", 9, 0) == 0
    assert world.mm().locked_vm == 3
    assert world.do("mlockall", 2) == 0
    heap = world.machine.geometry.heap_page
    assert world.do("brk", heap + 1) == heap


# ---- the heap as an operation


def test_brk() -> None:
    """It begins at the world's heap page; the result is where it ends, whatever was asked for."""
    world = World()
    heap = world.machine.geometry.heap_page
    assert [world.do("brk", page) for page in (heap - 1, heap, heap + 4, heap + 2)] == [heap, heap, heap + 4, heap + 2]
    assert world.layout() == [(heap, 2)]
    world.fork()
    assert world.do("brk", heap + 3, proc=1) == heap + 3
    assert world.do("brk", heap + 1) == heap + 1
    assert world.layout(1) == [(heap, 3)]
    world.mmap(heap + 4, 1)
    assert world.do("brk", heap + 4) == heap + 1
    world.check()


def test_a_stack_below_other_memory_that_never_grew_into_it() -> None:
    """Growth that is not accountable is charged and never given back: a leak of Linux, and so of mainline."""
    world = World()
    world.mmap(20, 1, PROT_READ, PRIVATE_FIXED | MAP_GROWSDOWN)
    assert world.do("read", 17) == 0
    assert world.do("munmap", 17, 4) == 0
    assert world.machine.committed == 3


def test_a_stack_that_may_not_be_touched_grows_all_the_same() -> None:
    """First the VMA grows, then the access is refused."""
    world = World()
    world.mmap(20, 1, PROT_READ, PRIVATE_FIXED | MAP_GROWSDOWN)
    assert world.do("write", 18, 0) == SIGSEGV
    assert world.layout() == [(18, 3)]
