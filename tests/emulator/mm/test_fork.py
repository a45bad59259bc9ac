"""fork and exit: what the child's VMAs are like, what is charged, who shares which anon_vma and page."""

from __future__ import annotations

import pytest

from emulator.hw.pte import RW as PTE_RW
from emulator.mm_types import (
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_SEALED,
    VM_UFFD_WP,
    VM_WIPEONFORK,
)
from emulator.uapi import (
    EBUSY,
    ENOMEM,
    ESRCH,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_SHARED,
    PROT_READ,
    UFFDIO_REGISTER_MODE_WP,
)
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World, committing

pytestmark = pytest.mark.live


def forked(pages: int = 3, flag: int = 0) -> World:
    """Three pages, the first two written, some flag set by hand, and a child."""
    world = World()
    world.mmap(0, pages)
    world.write(0)
    world.write(1)
    world.vma(0).vm_flags |= flag
    if flag & VM_LOCKED:
        world.mm().locked_vm = pages
    world.fork()
    return world


def test_copy_on_write() -> None:
    """Both see the same page until one writes; then each has its own."""
    world = forked()
    before = world.contents()
    assert world.contents(1) == before
    assert world.folio(0) is world.folio(0, 1)
    assert not world.pte(0) & PTE_RW
    assert not world.pte(0, 1) & PTE_RW
    token = world.write(0, 1, proc=1)
    assert world.contents() == before
    assert world.content(0, 1) == {**before[0], 1: token}
    assert world.folio(0) is not world.folio(0, 1)
    world.check()


def test_parent_reuses_its_page_when_the_child_is_gone() -> None:
    """The last one to map a page writes to it in place."""
    world = forked()
    folio = world.folio(0)
    world.write(0, 1, proc=1)
    world.write(0, 1)
    assert world.folio(0) is folio
    world.check()


def test_layout_is_copied() -> None:
    """VMA for VMA; fork never merges."""
    world = World()
    world.mmap(0, 3, PROT_READ, PRIVATE_FIXED | MAP_NORESERVE)
    world.mmap(3, 3, RW, PRIVATE_FIXED | MAP_NORESERVE)
    world.vma(3).vm_flags = world.vma(0).vm_flags
    world.fork()
    assert world.layout(1) == [(0, 3), (3, 3)]
    child = world.mm(1)
    assert (child.total_vm, child.data_vm) == (world.mm().total_vm, 0)
    assert child.mmap_base == world.mm().mmap_base


def test_anon_vmas() -> None:
    """The child's VMA has an anon_vma of its own and is on the parent's too; the parent's chain stays short."""
    world = forked()
    mine, childs = world.vma(0), world.vma(0, 1)
    assert mine.anon_vma is not None
    assert childs.anon_vma is not None
    assert childs.anon_vma is not mine.anon_vma
    assert childs.anon_vma.parent is childs.anon_vma.root is mine.anon_vma
    assert len(mine.anon_vma_chain) == 1
    assert [avc.anon_vma for avc in childs.anon_vma_chain].count(mine.anon_vma) == 1
    assert (mine.anon_vma.num_children, mine.anon_vma.num_active_vmas) == (2, 1)
    world.check()


def test_unfaulted_vma_stays_unfaulted() -> None:
    """No anon_vma, no pages to copy."""
    world = World()
    world.mmap(0, 3)
    world.do("read", 0)
    world.fork()
    assert world.vma(0, 1).anon_vma is None
    assert world.pte(0, 1) == 0
    world.check()


def test_grandchild_reuses_an_anon_vma() -> None:
    """An anon_vma without VMAs of its own and with one child at most is taken by the next to fork from it."""
    world = forked()
    first = world.vma(0, 1).anon_vma
    world.fork(2, proc=1)
    second = world.vma(0, 2).anon_vma
    assert second not in (first, world.vma(0).anon_vma)
    assert world.do("exit", proc=1) == 0
    world.fork(1, proc=2)
    assert world.vma(0, 1).anon_vma is first
    world.check()


@pytest.mark.parametrize("flag", [VM_LOCKED, VM_LOCKED | VM_LOCKONFAULT], ids=["locked", "onfault"])
def test_locks_are_not_inherited(flag: int) -> None:
    """The child has no mlocked memory; the parent keeps its own."""
    world = forked(flag=flag)
    assert not world.vma(0, 1).vm_flags & flag
    assert world.mm(1).locked_vm == 0
    assert world.vma(0).vm_flags & flag == flag


def test_wipeonfork() -> None:
    """The child sees zeros in an unfaulted VMA, and its own fork too; the parent keeps its pages exclusive."""
    world = forked(flag=VM_WIPEONFORK)
    assert world.contents(1) == {0: {}, 1: {}, 2: {}}
    assert world.vma(0, 1).anon_vma is None
    assert world.vma(0, 1).vm_flags & VM_WIPEONFORK
    assert world.pte(0) & PTE_RW
    world.write(0, proc=1)
    world.fork(2, proc=1)
    assert world.contents(2) == {0: {}, 1: {}, 2: {}}
    world.check()


def test_dontcopy() -> None:
    """The child does not get the VMA at all, and is not charged for it."""
    world = World()
    world.mmap(0, 3)
    world.mmap(6, 2)
    world.vma(0).vm_flags |= VM_DONTCOPY
    world.fork()
    assert world.layout(1) == [(6, 2)]
    assert world.mm(1).total_vm == 2
    assert world.machine.committed == 7
    world.check()


@pytest.mark.parametrize("flag", [VM_SEALED, VM_ACCOUNT], ids=["sealed", "account"])
def test_flags_are_inherited(flag: int) -> None:
    """Sealing and charging go on in the child."""
    assert forked(flag=flag).vma(0, 1).vm_flags & flag


def test_userfaultfd_is_not_inherited() -> None:
    """Without EVENT_FORK the child's VMAs have no context."""
    world = World()
    world.mmap(0, 1)
    assert world.do("uffd_register", 0, 1, UFFDIO_REGISTER_MODE_WP) == 0
    world.fork()
    assert world.vma(0, 1).uffd_ctx is None
    assert not world.vma(0, 1).vm_flags & VM_UFFD_WP
    assert world.vma(0).uffd_ctx is world.mm().userfaultfd


def test_charge() -> None:
    """The child is charged for VM_ACCOUNT memory, and its end gives it back."""
    world = World()
    world.mmap(0, 3)
    world.mmap(6, 2, RW, PRIVATE_FIXED | MAP_NORESERVE)
    world.fork()
    assert world.machine.committed == 6
    assert world.do("exit", proc=1) == 0
    assert world.machine.committed == 3
    world.check()


def test_refused_charge() -> None:
    """Overcommit refuses the second VMA: no child, nothing of it left, the parent's pages are its own again."""
    world = World(profile=committing(9))
    world.mmap(0, 3)
    world.mmap(6, 3)
    token = world.write(0)
    assert world.do("fork", 1) == -ENOMEM
    assert list(world.machine.procs) == [0]
    assert world.machine.committed == 6
    assert world.folio(0).mapcounts == [1]
    assert world.content(0) == {0: token}
    world.write(0, 1)
    world.check()


def test_shared_file() -> None:
    """A write of one process is seen by the other."""
    world = World()
    world.mmap(0, 1, RW, MAP_SHARED | MAP_FIXED, file=1)
    world.fork()
    token = world.write(0, 2, proc=1)
    assert world.do("read", 0) == 0
    assert world.last.data is not None
    assert (2, token) in world.last.data


def test_private_file() -> None:
    """Pages that the parent had copied are shared copy-on-write; file pages come from the file again."""
    world = World()
    world.mmap(0, 2, RW, PRIVATE_FIXED, file=1)
    token = world.write(0)
    world.do("read", 1)
    world.fork()
    assert world.content(0, 1) == {0: token}
    world.write(0, proc=1)
    assert world.content(0) == {0: token}
    world.check()


def test_huge_page() -> None:
    """Shared copy-on-write as a whole; contents are each process's own after a write."""
    world = World()
    world.mmap(0, 16)
    assert world.do("madvise", 0, 16, 14) == 0
    tokens = [world.write(page, 1) for page in range(8, 16)]
    assert world.folio(8).order == 3
    world.fork()
    assert world.folio(8, 1) is world.folio(8)
    world.write(9, 2, proc=1)
    assert [world.content(page) for page in range(8, 16)] == [{1: token} for token in tokens]
    world.write(10, 2)
    world.check()


def test_labels() -> None:
    """A label names one living process: taken EBUSY, free again after exit; ops of nobody give ESRCH."""
    world = World()
    world.fork()
    assert world.do("fork", 1) == -EBUSY
    assert world.do("exit", proc=1) == 0
    assert world.do("read", 0, proc=1) == -ESRCH
    world.fork()


def test_exit_gives_everything_back() -> None:
    """The last process that ends leaves nothing but the zero page."""
    world = forked()
    world.write(0, proc=1)
    child = world.mm(1)
    assert world.do("exit", proc=0) == 0
    assert world.do("exit", proc=1) == 0
    assert child.dead
    machine = world.machine
    assert list(machine.phys.live.values()) == [machine.phys.zero_folio]
    assert not machine.anon_vmas_live
    assert machine.committed == 0
    assert not any(tlb.entries for tlb in machine.tlbs)


def test_flush_before_sharing() -> None:
    """The parent's writable translation is gone after fork: its next write makes a copy."""
    world = World()
    world.mmap(0, 1)
    token = world.write(0)
    world.fork()
    world.write(0, 1)
    assert world.content(0, 1) == {0: token}
