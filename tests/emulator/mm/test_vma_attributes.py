"""What VMAs have beside flags: names and memory policies; and pages of files in another order."""

from __future__ import annotations

import pytest

from emulator.mm_types import VM_LOCKED, VM_MERGEABLE, VM_NORESERVE, VM_RAND_READ
from emulator.uapi import (
    EAGAIN,
    EBADF,
    EFAULT,
    EINVAL,
    ENOMEM,
    MADV_RANDOM,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from tests.emulator.kernel_world import RW, World, profile_with

pytestmark = pytest.mark.live

SHARED = MAP_SHARED | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


# ---- names


def test_names_split_and_merge() -> None:
    """Equal names may merge, others not; a new mapping has none."""
    world = World()
    world.mmap(0, 6)
    assert world.do("set_vma_name", 2, 2, 1) == 0
    assert world.layout() == [(0, 2), (2, 2), (4, 2)]
    assert world.do("set_vma_name", 4, 2, 2) == 0
    assert world.layout() == [(0, 2), (2, 2), (4, 2)]
    assert world.do("set_vma_name", 0, 6, 1) == 0
    assert world.layout() == [(0, 6)]
    world.mmap(6, 2)
    assert world.layout() == [(0, 6), (6, 2)]
    assert world.do("set_vma_name", 0, 6, 0) == 0
    assert world.layout() == [(0, 8)]


def test_a_name_goes_where_the_memory_goes() -> None:
    """A move, growth and a fork keep it."""
    world = World()
    world.mmap(0, 2)
    world.mmap(10, 2)
    assert world.do("set_vma_name", 0, 2, 1) == 0
    assert world.do("mremap", 0, 2, 2, MOVE, 12) == 12
    assert world.layout() == [(10, 2), (12, 2)]
    assert world.do("mremap", 12, 2, 3, 0, 0) == 12
    world.fork()
    assert [world.vma(page, proc=1).anon_name for page in (10, 14)] == [None, "stack"]


def test_what_cannot_be_named() -> None:
    """Files (EBADF), kernels without names (EINVAL); a hole is an error at the end, want of memory EAGAIN."""
    world = World()
    world.mmap(0, 1)
    world.mmap(1, 1, file=1)
    assert world.do("set_vma_name", 0, 2, 1) == -EBADF
    assert world.vma(0).anon_name == "stack"
    world.mmap(4, 2)
    assert world.do("set_vma_name", 2, 3, 1) == -ENOMEM
    assert world.vma(4).anon_name == "stack"
    world.mmap(8, 3)
    assert world.do("set_vma_name", 9, 1, 2, fail_nth=2) == -EAGAIN
    assert world.do("set_vma_name", 9, 1, 2, fail_nth=1) == -ENOMEM
    assert World(profile=profile_with(anon_vma_name=False)).do("set_vma_name", 0, 1, 1) == -EINVAL


# ---- memory policies


def test_policies_merge_by_value() -> None:
    """Two calls make two policies; that they say the same is enough."""
    world = World()
    world.mmap(0, 6)
    assert world.do("mbind", 0, 2, 1) == 0
    assert world.do("mbind", 4, 2, 1) == 0
    assert world.layout() == [(0, 2), (2, 2), (4, 2)]
    assert world.do("mbind", 2, 2, 2) == 0
    assert world.layout() == [(0, 2), (2, 2), (4, 2)]
    assert world.do("mbind", 2, 2, 1) == 0
    assert world.layout() == [(0, 6)]
    assert world.do("mbind", 0, 6, 0) == 0
    assert world.vma(0).vm_policy is None


def test_mbind_and_holes() -> None:
    """EFAULT before anything is done; the default policy passes over holes, but not over nothing else."""
    world = World()
    world.mmap(0, 2)
    world.mmap(4, 2)
    for addr, length in ((0, 5), (3, 2), (4, 3), (8, 1)):
        assert world.do("mbind", addr, length, 1) == -EFAULT
    assert world.vma(0).vm_policy is None
    assert world.do("mbind", 0, 2, 1) == 0
    assert world.do("mbind", 0, 8, 0) == 0
    assert world.vma(0).vm_policy is None
    assert world.do("mbind", 8, 1, 0) == -EFAULT
    assert world.do("mbind", 8, 0, 1) == 0


def test_a_policy_keeps_neighbours_from_sharing_an_anon_vma() -> None:
    """What could not merge for its policy does not share at the first write either."""
    world = World()
    world.mmap(0, 4)
    assert world.do("mbind", 2, 2, 1) == 0
    world.write(0)
    world.write(2)
    assert world.vma(0).anon_vma is not world.vma(2).anon_vma
    assert world.do("mbind", 2, 2, 0) == 0
    assert world.layout() == [(0, 2), (2, 2)]


def test_mbind_without_memory() -> None:
    """ENOMEM, before and after the VMA was cut."""
    world = World()
    world.mmap(0, 4)
    assert {world.do("mbind", 1, 1, 1, fail_nth=nth) for nth in range(1, 8)} == {0, -ENOMEM}
    world.check()


# ---- the same-page scanner


def test_memory_merge() -> None:
    """All private memory, now and later, the heap too; not what is shared or droppable. A child goes on with it."""
    world = World()
    heap = world.machine.geometry.heap_page
    world.mmap(0, 2)
    world.mmap(4, 2, RW, SHARED, 1)
    assert world.do("memory_merge", 1) == 0
    world.mmap(2, 2)
    world.mmap(8, 2, RW, MAP_PRIVATE | MAP_FIXED, 1)
    world.mmap(12, 2, RW, MAP_DROPPABLE | MAP_FIXED)
    assert world.do("brk", heap + 1) == heap + 1
    flagged = [bool(world.vma(page).vm_flags & VM_MERGEABLE) for page in (0, 2, 4, 8, 12, heap)]
    assert flagged == [True, True, False, True, False, True]
    assert world.layout()[0] == (0, 4)
    world.fork()
    assert world.do("mmap", 20, 1, RW, MAP_PRIVATE | MAP_FIXED, 0, 0, proc=1) == 20
    assert world.vma(20, proc=1).vm_flags & VM_MERGEABLE
    assert world.do("memory_merge", 0) == 0
    assert not any(vma.vm_flags & VM_MERGEABLE for vma in world.mm().mm_mt)


# ---- protection keys


@pytest.mark.parametrize(("key", "result"), [(0, 0), (1, -EINVAL), (2, -EINVAL)])
def test_protection_keys(key: int, result: int) -> None:
    """No key is mprotect; a key is none that this processor has."""
    world = World()
    world.mmap(0, 2)
    assert world.do("pkey_mprotect", 0, 1, PROT_READ, key) == result
    assert world.layout() == ([(0, 1), (1, 1)] if not result else [(0, 2)])
    assert world.do("pkey_mprotect", 0, 0, PROT_READ, key) == 0


# ---- remap_file_pages


def test_pages_in_another_order() -> None:
    """The file's pages from another offset on; the pieces of one file merge again when they follow each other."""
    world = World()
    assert world.do("mmap", 0, 4, RW, SHARED, 1, 0) == 0
    assert world.do("remap_file_pages", 1, 1, 8) == 0
    assert [(vma.vm_pgoff, world.page(vma.vm_start)) for vma in world.mm().mm_mt] == [(0, 0), (8, 1), (2, 2)]
    assert world.do("read", 1) == 0
    assert world.last.data == ((0, 1 << 36 | 9),)
    assert world.do("remap_file_pages", 0, 4, 4) == 0
    assert world.layout() == [(0, 4)]
    world.check()


@pytest.mark.parametrize(
    ("prepare", "addr", "pages"),
    [
        ((), 6, 1),  # nothing there
        ((), 0, 5),  # a hole behind
        ((("mmap", 4, 2, RW, MAP_PRIVATE | MAP_FIXED, 1, 0),), 4, 1),  # private
        ((("mmap", 4, 2, RW, MAP_PRIVATE | MAP_FIXED, 0, 0),), 0, 5),  # on into anonymous memory
        ((("mmap", 4, 2, RW, SHARED, 2, 0),), 0, 5),  # on into another file
        ((("mprotect", 2, 2, PROT_READ),), 0, 3),  # other flags
        ((), 0, 0),
    ],
)
def test_what_cannot_be_remapped(prepare: tuple[tuple[object, ...], ...], addr: int, pages: int) -> None:
    """EINVAL for everything, and nothing done."""
    world = World()
    assert world.do("mmap", 0, 4, RW, SHARED, 1, 0) == 0
    for kind, *args in prepare:
        assert world.do(kind, *args) >= 0  # type: ignore[arg-type]
    before = world.layout()
    assert world.do("remap_file_pages", addr, pages, 8) == -EINVAL
    assert world.layout() == before


def test_what_a_remapping_keeps() -> None:
    """Permissions and the lock; not the advice, nor that nothing was reserved."""
    world = World()
    assert world.do("mmap", 0, 2, PROT_READ, SHARED | MAP_NORESERVE, 1, 0) == 0
    assert world.do("madvise", 0, 2, MADV_RANDOM) == 0
    assert world.do("mlock", 0, 2) == 0
    assert world.do("remap_file_pages", 0, 2, 4) == 0
    flags = world.vma(0).vm_flags
    assert (flags & 7, flags & VM_LOCKED, flags & (VM_RAND_READ | VM_NORESERVE)) == (PROT_READ, VM_LOCKED, 0)
    assert world.mm().locked_vm == 2
