"""The mergeable flag: which VMAs get it, and that only equal ones merge."""

from __future__ import annotations

from emulator.mm_types import VM_MERGEABLE
from emulator.uapi import EINVAL, MAP_FIXED, MAP_SHARED, PROT_READ
from tests.emulator.kernel_world import RW, World


class Mergeable(World):
    """With prctl(PR_SET_MEMORY_MERGE)."""

    def merge_any(self, enable: int, *others: int) -> int:
        rest = (*others, 0, 0, 0)[:3]
        result: int = self.image.ksm.prctl_memory_merge(self.mm(), enable, rest)
        return result

    def flagged(self, *pages: int) -> list[bool]:
        return [bool(self.vma(page).vm_flags & VM_MERGEABLE) for page in pages]


def test_all_there_is_and_all_that_comes() -> None:
    """Private memory gets the flag, shared memory does not; taking it back takes it from all."""
    world = Mergeable()
    world.mmap(0, 2)
    world.mmap(4, 2, PROT_READ, MAP_SHARED | MAP_FIXED, file=1)
    assert world.merge_any(1) == 0
    world.mmap(8, 2)
    world.mmap(12, 2, file=1)
    assert world.flagged(0, 4, 8, 12) == [True, False, True, True]
    assert world.merge_any(1) == 0
    assert world.merge_any(0) == 0
    world.mmap(16, 2)
    assert world.flagged(0, 8, 12, 16) == [False] * 4
    assert world.merge_any(0) == 0


def test_new_neighbours_merge() -> None:
    """The flag of a new mapping is known before the merge is tried."""
    world = Mergeable()
    assert world.merge_any(1) == 0
    world.mmap(0, 2)
    world.mmap(2, 2)
    assert world.layout() == [(0, 4)]


def test_the_heap_and_children_inherit() -> None:
    """brk and fork."""
    world = Mergeable()
    assert world.merge_any(1) == 0
    world.mm().start_brk = world.mm().brk = world.address(20)
    world.image.brk.sys_brk(world.mm(), world.address(21))
    world.fork()
    assert world.flagged(20) == [True]
    assert world.do("mmap", 0, 1, RW, 0x12, 0, 0, proc=1) == 0
    assert world.vma(0, proc=1).vm_flags & VM_MERGEABLE


def test_other_arguments_must_be_zero() -> None:
    """prctl refuses what may get a meaning one day."""
    assert Mergeable().merge_any(1, 0, 5) == -EINVAL
