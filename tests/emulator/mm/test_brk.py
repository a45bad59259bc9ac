"""The heap (brk) and the growing of stacks."""

from __future__ import annotations

from typing import Final

import pytest

from emulator.geometry import PAGE_SHIFT, PAGE_SIZE
from emulator.mm_types import VM_ACCOUNT, VM_GROWSDOWN, VM_LOCKED, VM_SEALED
from emulator.uapi import EFAULT, ENOMEM, EPERM, OVERCOMMIT_NEVER, PROT_NONE, SIGSEGV
from tests.emulator.kernel_world import World, profile_with

pytestmark = pytest.mark.live

NEVER: Final = {"overcommit_memory": OVERCOMMIT_NEVER}


class Heap(World):
    """A world whose heap begins at page 20."""

    def __init__(self, **profile: object) -> None:
        super().__init__(profile=profile_with(**profile))
        self.mm().start_brk = self.mm().brk = self.address(20)

    def brk(self, page: int, extra: int = 0) -> int:
        """brk(2) to a page (and some bytes more); the break afterwards as page."""
        result: int = self.image.brk.sys_brk(self.mm(), self.address(page) + extra)
        return self.page(result)


def test_grow_and_shrink() -> None:
    """The heap is one VMA, charged and counted as data; what is cut off is given back."""
    heap = Heap()
    assert heap.brk(23) == 23
    token = heap.write(21)
    assert heap.brk(26) == 26
    assert heap.layout() == [(20, 6)]
    assert heap.vma(20).vm_flags & VM_ACCOUNT
    assert heap.mm().data_vm == heap.machine.committed == 6
    assert heap.brk(22) == 22
    assert heap.contents() == {20: {}, 21: {0: token}}
    heap.check()


def test_within_a_page() -> None:
    """Nothing is mapped or unmapped, but the break moves."""
    heap = Heap()
    heap.brk(21, 1)
    assert heap.layout() == [(20, 2)]
    heap.brk(21, 4095)
    assert heap.layout() == [(20, 2)]
    assert heap.mm().brk == heap.address(21) + 4095


@pytest.mark.parametrize(
    ("page", "pages", "prot"), [(24, 1, 3), (25, 1, PROT_NONE)], ids=["in_the_way", "no_page_between"]
)
def test_what_is_in_the_way(page: int, pages: int, prot: int) -> None:
    """The heap keeps a page's distance from the next mapping; the old break comes back."""
    heap = Heap()
    heap.brk(22)
    heap.mmap(page, pages, prot)
    assert heap.brk(25) == 22
    assert heap.layout() == [(20, 2), (page, pages)]
    heap.check()


def test_a_page_of_distance_is_enough() -> None:
    """One free page is left between heap and mapping."""
    heap = Heap()
    heap.mmap(26, 1)
    assert heap.brk(25) == 25


def test_stack_gap_in_the_way() -> None:
    """The guard gap of a stack counts as taken."""
    heap = Heap(stack_guard_gap=4)
    heap.mmap(32, 1)
    heap.vma(32).vm_flags |= VM_GROWSDOWN
    assert heap.brk(28) == 20
    assert heap.brk(27) == 27


def test_below_the_start() -> None:
    """Not possible; so one asks where the break is."""
    heap = Heap()
    heap.brk(22)
    assert heap.brk(19) == 22


def test_never_merges_with_next() -> None:
    """A heap that grows up to a like VMA stays apart from it (here the distance rule is out of the way)."""
    heap = Heap()
    heap.brk(22)
    heap.mmap(25, 2)
    vma = heap.vma(20)
    assert heap.image.brk.do_brk_flags(heap.mm(), vma, heap.address(22), 3 * PAGE_SIZE) == 0
    assert heap.layout() == [(20, 5), (25, 2)]


def test_prev_below_the_start_is_not_the_heap() -> None:
    """A like VMA that ends where the heap starts is not grown."""
    heap = Heap()
    heap.mmap(18, 2)
    heap.brk(22)
    assert heap.layout() == [(18, 2), (20, 2)]


@pytest.mark.parametrize("limits", [NEVER | {"commit_limit": 6}, {"max_map_count": 2}], ids=["commit", "maps"])
def test_limits(limits: dict[str, int]) -> None:
    """Overcommit and the number of maps: the old break, nothing changed."""
    heap = Heap(**limits)
    for page in (0, 2, 4):
        heap.mmap(page, 1)
    assert heap.brk(23) == 20
    assert heap.layout() == [(0, 1), (2, 1), (4, 1)]
    heap.check()


def test_shrink_over_a_foreign_hole() -> None:
    """Where the heap was unmapped by other means there is nothing to shrink: the break stays."""
    heap = Heap()
    heap.brk(24)
    assert heap.do("munmap", 22, 2) == 0
    assert heap.brk(22) == 24


def test_shrink_of_sealed_memory() -> None:
    """It fails, so the break stays."""
    heap = Heap()
    heap.brk(24)
    heap.vma(20).vm_flags |= VM_SEALED
    assert heap.brk(22) == 24
    assert heap.layout() == [(20, 4)]


@pytest.mark.parametrize("heap_pages", [0, 2], ids=["first", "growing"])
def test_every_fault_point(heap_pages: int) -> None:
    """Out of memory anywhere: the old break, nothing charged, nothing changed."""
    for nth in range(1, 10):
        heap = Heap()
        heap.brk(20 + heap_pages)
        before = heap.layout()
        task = heap.machine.sched.current
        task.fail_count, task.fail_nth, task.failed = 0, nth, ""
        result = heap.brk(24)
        heap.check()
        if not task.failed:
            assert nth > 2
            break
        assert result == 20 + heap_pages
        assert heap.layout() == before


# ---- stacks


class Stack(World):
    """A stack of two pages at page 40."""

    def __init__(self, **profile: object) -> None:
        super().__init__(profile=profile_with(stack_guard_gap=4, **profile))
        self.mmap(40, 2)
        self.vma(40).vm_flags |= VM_GROWSDOWN
        mm = self.mm()
        mm.data_vm, mm.stack_vm = mm.data_vm - 2, mm.stack_vm + 2

    def expand(self, page: int) -> int:
        result: int = self.image.brk.expand_downwards(self.vma(40), self.address(page) + 7)
        return result


def test_stack_grows_at_an_access() -> None:
    """An access below the stack extends it to that page, faults it in, and keeps the page offsets linear."""
    stack = Stack()
    token = stack.write(40)
    low = stack.write(37)
    assert stack.layout() == [(37, 5)]
    assert stack.contents() == {37: {0: low}, 38: {}, 39: {}, 40: {0: token}, 41: {}}
    assert stack.vma(40).vm_pgoff == stack.address(37) >> PAGE_SHIFT
    assert stack.mm().stack_vm == 5
    stack.check()


def test_stack_becomes_faulted_before_the_page() -> None:
    """The VMA gets its anon_vma by growing alone."""
    stack = Stack()
    assert stack.vma(40).anon_vma is None
    assert stack.expand(38) == 0
    assert stack.vma(40).anon_vma is not None
    assert stack.pte(38) == 0


def test_stack_never_merges() -> None:
    """It may touch another stack, and stays apart."""
    stack = Stack()
    stack.mmap(36, 2)
    stack.vma(36).vm_flags |= VM_GROWSDOWN
    assert stack.expand(38) == 0
    assert stack.layout() == [(36, 2), (38, 4)]


# name, protection of a mapping at page 30 (None: none there), page to grow to, errno
GAPS = [
    ("gap_kept", 3, 35, 0),
    ("gap_broken", 3, 34, ENOMEM),
    ("no_access_no_gap", PROT_NONE, 32, 0),
    ("free_below", None, 32, 0),
]


@pytest.mark.parametrize(("prot", "page", "errno"), [pytest.param(*row[1:], id=row[0]) for row in GAPS])
def test_guard_gap(prot: int | None, page: int, errno: int) -> None:
    """Between a stack and what can be accessed below it lies the guard gap (here 4 pages)."""
    stack = Stack()
    if prot is not None:
        stack.mmap(30, 1, prot)
    assert stack.expand(page) == -errno
    assert stack.span(40)[0] == (40 if errno else page)
    if errno:
        assert stack.do("write", page, 0) == SIGSEGV
    stack.check(committed=True)


def test_only_stacks_grow() -> None:
    """EFAULT for another VMA; an access below it is a SIGSEGV."""
    world = World()
    world.mmap(40, 2)
    assert world.image.brk.expand_downwards(world.vma(40), world.address(39)) == -EFAULT
    assert world.do("write", 39, 0) == SIGSEGV


def test_lowest_address() -> None:
    """Not below mmap_min_addr."""
    stack = Stack(mmap_min_addr=104 * PAGE_SIZE)
    assert stack.expand(39) == -EPERM
    assert stack.expand(40) == 0


@pytest.mark.parametrize(
    "limits", [{"rlimit_stack": 3 * PAGE_SIZE}, NEVER | {"commit_limit": 4}], ids=["stack", "commit"]
)
def test_stack_limits(limits: dict[str, int]) -> None:
    """RLIMIT_STACK and overcommit: ENOMEM, the stack as it was."""
    stack = Stack(**limits)
    assert stack.expand(38) == -ENOMEM
    assert stack.expand(39) == 0
    assert stack.span(40) == (39, 3)
    stack.check()


def test_locked_stack() -> None:
    """What it grows by counts as locked."""
    stack = Stack()
    stack.vma(40).vm_flags |= VM_LOCKED
    assert stack.expand(38) == 0
    assert stack.mm().locked_vm == 2
