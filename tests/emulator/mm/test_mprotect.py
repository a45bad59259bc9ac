"""mprotect: errors, what is charged and given back, what merges, and what becomes of the entries."""

from __future__ import annotations

import pytest

from emulator.geometry import PAGE_SIZE
from emulator.hw.pte import RW as PTE_RW
from emulator.mm_types import VM_ACCOUNT, VM_GROWSDOWN, VM_LOCKED, VM_MAYWRITE, VM_SEALED
from emulator.uapi import (
    EACCES,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_HUGEPAGE,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_NONE,
    PROT_READ,
    SIGSEGV,
)
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World, committing, profile_with

pytestmark = pytest.mark.live

BASE = 64 * PAGE_SIZE
NR = PRIVATE_FIXED | MAP_NORESERVE

# name, address, length, prot, errno; pages 0-3 are mapped, page 6 too, page 2 is sealed, page 3 may not be written
ERRORS = [
    ("both_directions", BASE, 4096, PROT_GROWSDOWN | PROT_GROWSUP, EINVAL),
    ("unaligned", BASE + 1, 4096, RW, EINVAL),
    ("unaligned_before_length", BASE + 1, 0, RW, EINVAL),
    ("no_length", BASE, 0, 0x40, 0),
    ("overflow", BASE, -BASE + 4096, RW, ENOMEM),
    ("overflow_before_bad_prot", BASE, -BASE, 0x40, ENOMEM),
    ("bad_prot", BASE, 4096, 0x40, EINVAL),
    ("semaphores_are_no_matter", BASE, 4096, RW | 8, 0),
    ("nothing_there", BASE + 9 * PAGE_SIZE, 4096, RW, ENOMEM),
    ("hole_at_the_start", BASE + 5 * PAGE_SIZE, 8192, RW, ENOMEM),
    ("hole_at_the_end", BASE + 6 * PAGE_SIZE, 8192, RW, ENOMEM),
    ("sealed", BASE + 2 * PAGE_SIZE, 4096, PROT_READ, EPERM),
    ("sealed_and_no_change", BASE + 2 * PAGE_SIZE, 4096, RW, EPERM),
    ("may_not_write", BASE + 3 * PAGE_SIZE, 4096, RW, EACCES),
    ("grows_down", BASE, 4096, PROT_READ | PROT_GROWSDOWN, EINVAL),
    ("grows_up", BASE, 4096, PROT_READ | PROT_GROWSUP, EINVAL),
    ("grows_down_of_nothing", BASE + 4 * PAGE_SIZE, 4096, PROT_READ | PROT_GROWSDOWN, ENOMEM),
]


@pytest.mark.parametrize(
    ("addr", "length", "prot", "errno"), [pytest.param(*row[1:], id=row[0]) for row in ERRORS]
)
def test_error(addr: int, length: int, prot: int, errno: int) -> None:
    """Each bad call and what it gives, checks in the kernel's order."""
    world = World()
    world.mmap(0, 4)
    world.mmap(6, 1)
    assert world.do("mprotect", 3, 1, PROT_READ) == 0
    assert world.do("mprotect", 2, 1, PROT_EXEC | RW) == 0
    assert world.layout() == [(0, 2), (2, 1), (3, 1), (6, 1)]
    world.vma(2).vm_flags = world.vma(2).vm_flags & ~PROT_EXEC | VM_SEALED
    world.vma(3).vm_flags &= ~VM_MAYWRITE
    assert world.image.mprotect.sys_mprotect(world.mm(), addr, length, prot) == -errno
    assert world.layout() == [(0, 2), (2, 1), (3, 1), (6, 1)]


@pytest.mark.parametrize(
    ("spoil", "errno"), [("hole", ENOMEM), ("sealed", EPERM), ("may", EACCES)], ids=["hole", "sealed", "may"]
)
def test_earlier_vmas_stay_changed(spoil: str, errno: int) -> None:
    """An error in a later VMA (or a hole) leaves the change of those before it."""
    world = World()
    world.mmap(0, 3, PROT_READ)
    world.mmap(3, 3, PROT_NONE)
    if spoil == "hole":
        world.do("munmap", 3, 1)
    elif spoil == "sealed":
        world.vma(3).vm_flags |= VM_SEALED
    else:
        world.vma(3).vm_flags &= ~VM_MAYWRITE
    assert world.do("mprotect", 1, 5, RW) == -errno
    assert world.layout()[:2] == [(0, 1), (1, 2)]
    assert world.do("write", 1, 0) == 0
    assert world.do("write", 4, 0) == SIGSEGV
    world.check()


def test_growsdown_takes_the_whole_stack() -> None:
    """PROT_GROWSDOWN begins at the VMA's start."""
    world = World()
    world.mmap(0, 4)
    world.vma(0).vm_flags |= VM_GROWSDOWN
    assert world.do("mprotect", 2, 1, PROT_READ | PROT_GROWSDOWN) == 0
    assert world.layout() == [(0, 3), (3, 1)]


# ---- accounting: name, mapping prot, map flags, written before, new prot, charge afterwards, VM_ACCOUNT afterwards
ACCOUNTING = [
    ("becomes_writable", PROT_READ, PRIVATE_FIXED, False, RW, 2, True),
    ("none_becomes_writable", PROT_NONE, PRIVATE_FIXED, False, RW, 2, True),
    ("noreserve_becomes_writable", PROT_READ, NR, False, RW, 0, False),
    ("unfaulted_gives_back", RW, PRIVATE_FIXED, False, PROT_READ, 2, False),
    ("faulted_keeps", RW, PRIVATE_FIXED, True, PROT_READ, 4, True),
    ("still_writable", RW, PRIVATE_FIXED, False, RW | PROT_EXEC, 4, True),
]


@pytest.mark.parametrize(
    ("prot", "flags", "written", "new_prot", "charge", "account"),
    [pytest.param(*row[1:], id=row[0]) for row in ACCOUNTING],
)
def test_accounting(prot: int, flags: int, written: bool, new_prot: int, charge: int, account: bool) -> None:
    """2 of 4 pages change: who becomes writable is charged, who never was written gives its charge back."""
    world = World()
    world.mmap(0, 4, prot, flags)
    if written:
        world.write(0)
    assert world.do("mprotect", 1, 2, new_prot) == 0
    assert world.machine.committed == charge
    assert bool(world.vma(1).vm_flags & VM_ACCOUNT) == account
    world.check()


def test_private_file_keeps_its_charge() -> None:
    """Only anonymous memory gives its charge back."""
    world = World()
    world.mmap(0, 2, RW, PRIVATE_FIXED, file=1)
    assert world.do("mprotect", 0, 2, PROT_READ) == 0
    assert world.machine.committed == 2


def test_shared_file_is_never_charged() -> None:
    """Shared memory that becomes writable costs nothing."""
    world = World()
    world.mmap(0, 2, PROT_READ, MAP_SHARED | MAP_FIXED, file=1)
    assert world.do("mprotect", 0, 2, RW) == 0
    assert world.machine.committed == 0


@pytest.mark.parametrize(("limit", "errno"), [(3, 0), (2, ENOMEM)])
def test_commit_limit(limit: int, errno: int) -> None:
    """Becoming writable can be refused; then nothing has changed."""
    world = World(profile=committing(limit))
    world.mmap(0, 5, PROT_READ)
    assert world.do("mprotect", 1, 3, RW) == -errno
    assert world.layout() == ([(0, 5)] if errno else [(0, 1), (1, 3), (4, 1)])
    world.check()


def test_counters_move_between_kinds() -> None:
    """data_vm and exec_vm follow the permissions."""
    world = World()
    world.mmap(0, 4)
    assert world.do("mprotect", 0, 3, PROT_READ | PROT_EXEC) == 0
    mm = world.mm()
    assert (mm.total_vm, mm.data_vm, mm.exec_vm) == (4, 1, 3)


# ---- layout


# name, protections of pages 0-2 / 3-5 / 6-8 (None: hole), range, new prot, layout
R, RX = PROT_READ, PROT_READ | PROT_EXEC
LAYOUTS = [
    ("both", (R, RX, R), (3, 3), R, [(0, 9)]),
    ("left", (R, RX, 0), (3, 3), R, [(0, 6), (6, 3)]),
    ("right", (0, RX, R), (3, 3), R, [(0, 3), (3, 6)]),
    ("left_part", (R, RX, R), (3, 2), R, [(0, 5), (5, 1), (6, 3)]),
    ("right_part", (R, RX, R), (4, 2), R, [(0, 3), (3, 1), (4, 5)]),
    ("middle", (R, RX, R), (4, 1), R, [(0, 3), (3, 1), (4, 1), (5, 1), (6, 3)]),
    ("across", (0, R, RX), (1, 7), R, [(0, 1), (1, 7), (8, 1)]),
    ("everything", (0, R, RX), (0, 9), R, [(0, 9)]),
    ("no_change", (R, R, R), (3, 3), R, [(0, 9)]),
]


@pytest.mark.parametrize(
    ("prots", "where", "prot", "layout"), [pytest.param(*row[1:], id=row[0]) for row in LAYOUTS]
)
def test_layout(
    prots: tuple[int, ...], where: tuple[int, int], prot: int, layout: list[tuple[int, int]]
) -> None:
    """Splits and merges of unfaulted memory."""
    world = World()
    for i, one in enumerate(prots):
        world.mmap(3 * i, 3, one, NR)
    assert world.do("mprotect", *where, prot) == 0
    assert world.layout() == layout
    world.check()


def test_no_change_means_no_merge() -> None:
    """newflags == oldflags: not even a try to merge with a neighbour that would fit."""
    world = World()
    world.mmap(0, 3, R, NR)
    world.mmap(3, 3, RX, NR)
    world.vma(3).vm_flags = world.vma(0).vm_flags
    assert world.do("mprotect", 3, 3, R) == 0
    assert world.layout() == [(0, 3), (3, 3)]


def test_at_the_map_limit() -> None:
    """No room for a split: ENOMEM. A front split that is done when the tail split fails stays (user space sees it)."""
    world = World(profile=profile_with(max_map_count=2))
    world.mmap(0, 9)
    assert world.do("mprotect", 3, 3, R) == -ENOMEM
    assert world.layout() == [(0, 3), (3, 6)]
    assert world.do("write", 4, 0) == 0
    world.check()


# ---- page-table entries


def test_write_after_a_round_trip() -> None:
    """Read-only and back: the exclusive page is writable at once, without a fault; a shared one is not."""
    world = World()
    world.mmap(0, 2)
    world.write(0)
    world.write(1)
    world.fork()
    world.write(0)  # the parent's own copy again
    assert world.do("mprotect", 0, 2, R) == 0
    assert world.do("write", 0, 0) == SIGSEGV
    assert world.do("mprotect", 0, 2, RW) == 0
    assert world.pte(0) & PTE_RW
    assert not world.pte(1) & PTE_RW
    world.check()


def test_none_and_back() -> None:
    """PROT_NONE forbids everything and keeps the contents."""
    world = World()
    world.mmap(0, 1)
    token = world.write(0)
    assert world.do("mprotect", 0, 1, PROT_NONE) == 0
    assert world.do("read", 0) == SIGSEGV
    assert world.content(0) == {0: token}
    assert world.do("mprotect", 0, 1, R) == 0
    assert world.do("read", 0) == 0
    assert world.last.data == ((0, token),)


def test_exec() -> None:
    """Instructions are fetched only where PROT_EXEC is."""
    world = World()
    world.mmap(0, 1)
    world.write(0)
    assert world.do("exec", 0) == SIGSEGV
    assert world.do("mprotect", 0, 1, RX) == 0
    assert world.do("exec", 0) == 0


def test_locked_memory_that_becomes_writable_is_populated() -> None:
    """A private locked VMA takes its copy at once."""
    world = World()
    world.mmap(0, 2, R)
    world.vma(0).vm_flags |= VM_LOCKED
    assert world.do("mprotect", 0, 2, RW) == 0
    assert world.folio(0).anon
    assert world.folio(1).anon


@pytest.mark.parametrize(
    ("start", "pages", "huge"),
    [(8, 8, True), (0, 24, True), (8, 4, False), (12, 4, False), (10, 2, False)],
    ids=["exactly", "around", "head", "tail", "middle"],
)
def test_huge_page(start: int, pages: int, huge: bool) -> None:
    """A huge page that changes as a whole stays one; a boundary inside it splits its mapping, contents intact."""
    world = World()
    world.mmap(0, 24)
    assert world.do("madvise", 0, 24, MADV_HUGEPAGE) == 0
    tokens = [world.write(page, 1) for page in range(8, 16)]
    assert world.folio(8).order == 3
    assert world.do("mprotect", start, pages, R) == 0
    assert bool(world.folio(8).entire_mapcount) == huge
    assert [world.content(page) for page in range(8, 16)] == [{1: token} for token in tokens]
    world.check()


@pytest.mark.parametrize(("start", "pages"), [(8, 4), (12, 4)], ids=["to_the_left", "to_the_right"])
def test_huge_page_cut_by_a_merge(start: int, pages: int) -> None:
    """The boundary that a partial merge moves into a huge page must split the mapping, in either direction."""
    world = World()
    world.mmap(0, 24, RW, NR)
    assert world.do("madvise", 0, 24, MADV_HUGEPAGE) == 0
    assert world.do("mprotect", 0, 8, R) == 0
    assert world.do("mprotect", 16, 8, R) == 0
    tokens = [world.write(page, 1) for page in range(8, 16)]
    assert world.folio(8).entire_mapcount == 1
    assert world.do("mprotect", start, pages, R) == 0
    assert world.layout() == ([(0, 12), (12, 4), (16, 8)] if start == 8 else [(0, 8), (8, 4), (12, 12)])
    assert world.folio(8).entire_mapcount == 0
    writable = range(12, 16) if start == 8 else range(8, 12)
    for page in range(8, 16):
        assert bool(world.pte(page) & PTE_RW) == (page in writable)
    assert [world.content(page) for page in range(8, 16)] == [{1: token} for token in tokens]
    world.check()
