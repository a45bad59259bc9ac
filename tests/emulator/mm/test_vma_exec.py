"""What exec does: the stack that is built at the top and moved down, and the kernel's own pages."""

from __future__ import annotations

import pytest

from emulator.geometry import PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pte import SPECIAL
from emulator.mm_types import VM_EXEC, VM_GROWSDOWN, VM_MAYREAD, VM_MAYWRITE, VM_PFNMAP, VM_READ, VM_WRITE
from emulator.uapi import EFAULT, EINVAL, ENOMEM, MREMAP_MAYMOVE, OOM_KILLED, SIGSEGV
from tests.emulator.kernel_world import RW, World

ROOM = 32  # pages below the arguments


class Exec(World):
    """A process whose stack is at the top of user space, with the arguments in it."""

    def __init__(self, arguments: int = 1, geometry: str = "x86-64") -> None:
        super().__init__(geometry)
        found = self.image.vma_exec.create_init_stack_vma(self.mm())
        assert found is not None
        self.stack = found
        assert self.image.vma_exec.put_arguments(self.stack, arguments) == 0

    def setup(self, down: int, flags: int = 0) -> int:
        """setup_arg_pages with the stack's end ``down`` pages below the top."""
        module = self.image.vma_exec
        top = self.machine.geometry.task_size - (down << PAGE_SHIFT)
        result: int = module.setup_arg_pages(self.stack, top, module.VM_STACK_FLAGS | flags)
        return result

    def special(self, page: int, pages: int, flags: int) -> None:
        area = self.image.vma_exec.install_special_mapping(
            self.mm(), self.address(page), pages << PAGE_SHIFT, flags
        )
        assert area is not None


@pytest.mark.parametrize("arguments", [1, 3])
@pytest.mark.parametrize("down", [0, 1, 700, 3 << 18])
def test_the_stack_is_moved_with_its_pages(arguments: int, down: int) -> None:
    """Down by part of a table, several tables, several PUDs: contents, rmap and page offsets go along."""
    world = Exec(arguments)
    top = world.machine.geometry.task_size
    frames = [_frame(world, top - (n + 1) * PAGE_SIZE) for n in range(arguments)]
    assert world.setup(down) == 0
    end = top - (down << PAGE_SHIFT)
    assert (world.stack.vm_end, world.stack.vm_start) == (end, end - ((arguments + ROOM) << PAGE_SHIFT))
    # the page offset of the first place, less the room that was given afterwards
    assert world.stack.vm_pgoff == (top >> PAGE_SHIFT) - arguments - ROOM
    assert [_frame(world, end - (n + 1) * PAGE_SIZE) for n in range(arguments)] == frames
    assert world.stack.vm_flags & VM_GROWSDOWN
    assert world.stack.anon_vma is not None
    assert world.mm().stack_vm == arguments + ROOM
    world.check()


def _frame(world: World, address: int) -> int:
    got = world.image.fault.access(world.mm(), address, 0)
    assert not isinstance(got, int)
    folio, _ = got
    pfn: int = folio.pfn
    return pfn


def test_a_move_that_overlaps_itself() -> None:
    """The old and the new place share pages."""
    world = Exec(arguments=5)
    assert world.setup(2) == 0
    world.check()


def test_an_executable_stack() -> None:
    """PT_GNU_STACK decides."""
    world = Exec()
    assert world.setup(4, VM_EXEC) == 0
    assert world.stack.vm_flags & (VM_EXEC | VM_WRITE) == VM_EXEC | VM_WRITE


def test_the_way_down_must_be_free() -> None:
    """EFAULT, the stack unmoved."""
    world = Exec()
    top = world.machine.geometry.task_size
    world.image.mmap.sys_mmap(world.mm(), top - 4 * PAGE_SIZE, PAGE_SIZE, RW, 0x32, None, 0)
    assert world.setup(3) == -EFAULT
    assert world.stack.vm_end == top


@pytest.mark.parametrize("nth", range(1, 12))
def test_every_allocation_may_fail(nth: int) -> None:
    """An error, never a machine that is wrong: the process is thrown away afterwards."""
    world = Exec(arguments=2)
    task = world.machine.sched.current
    task.fail_count, task.fail_nth = 0, nth
    result = world.setup(700)
    task.fail_nth = 0
    assert result in (0, -ENOMEM, -EFAULT)
    world.machine.procs[0] = world.mm()
    world.image.fork.sys_exit(world.mm())
    assert world.machine.anon_vmas_live == {}


def test_no_memory_for_the_first_page() -> None:
    """Neither for the VMA nor for the arguments."""
    world = World("x86-64")
    task = world.machine.sched.current
    for nth in (1, 2, 3):
        task.fail_count, task.fail_nth = 0, nth
        assert world.image.vma_exec.create_init_stack_vma(world.mm()) is None
    task.fail_nth = 0
    stack = world.image.vma_exec.create_init_stack_vma(world.mm())
    assert stack is not None
    results = set()
    for nth in range(1, 8):
        task.fail_count, task.fail_nth = 0, nth
        results.add(world.image.vma_exec.put_arguments(stack, 2))
        task.fail_nth = 0
    assert results <= {0, -ENOMEM}
    assert -ENOMEM in results


def test_the_kernels_own_pages() -> None:
    """vdso and vvar: readable, no folio is accounted; they can neither be cut nor grown."""
    world = Exec(geometry="small8")
    world.special(0, 2, VM_READ | VM_EXEC | VM_MAYREAD | VM_MAYWRITE)
    world.special(2, 2, VM_READ | VM_MAYREAD | VM_PFNMAP)
    assert [world.do(kind, 0) for kind in ("read", "exec")] == [0, 0]
    assert world.do("read", 3) == 0
    assert world.do("exec", 3) == SIGSEGV
    assert world.do("write", 0, 0) == SIGSEGV
    assert world.pte(0) & SPECIAL
    assert world.do("munmap", 1, 1) == -EINVAL
    assert world.do("mremap", 0, 2, 4, MREMAP_MAYMOVE, 0) == -EFAULT
    assert world.do("mprotect", 0, 2, RW) == 0
    token = world.write(1)
    assert world.content(1) == {0: token}
    assert world.content(0) == {}
    world.fork()
    assert world.do("read", 1, proc=1) == 0
    world.check()
    assert world.do("munmap", 0, 4) == 0
    world.check()


def test_special_mappings_need_memory_too() -> None:
    """None when there is none for the VMA or for its page tables."""
    world = World()
    task = world.machine.sched.current
    for nth in (1, 2):
        task.fail_count, task.fail_nth = 0, nth
        found = world.image.vma_exec.install_special_mapping(
            world.mm(), world.address(0), PAGE_SIZE, VM_READ | VM_MAYREAD
        )
        assert found is None
    task.fail_nth = 0
    assert world.layout() == []


@pytest.mark.parametrize("nth", range(1, 5))
def test_a_fault_without_memory_for_tables(nth: int) -> None:
    """A page of the kernel's own needs page tables as any other."""
    world = Exec(geometry="small8")
    world.special(0, 1, VM_READ | VM_MAYREAD)
    result = world.do("read", 0, fail_nth=nth)
    assert result in (0, OOM_KILLED)
    assert world.do("read", 0) == 0
