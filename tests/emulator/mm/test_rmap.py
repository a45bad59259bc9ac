"""The life of anon_vmas: who shares which, how chains are cloned at splits and forks, when they go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.errors import KernelBug
from emulator.mm_types import VmAreaStruct
from emulator.rmap_types import AnonVma
from emulator.sched.scheduler import Task
from emulator.uapi import ENOMEM, MAP_NORESERVE, PROT_READ
from emulator.workload import Switch
from tests.emulator.kernel_world import PRIVATE_FIXED, World
from tests.emulator.mm.world import anon_vma_of, chain_of, fail_next, faulted, warnings
from tests.emulator.references import TO_THE_END


def hand_made(world: World, first: int, pages: int) -> VmAreaStruct:
    """A VMA that is in no tree, at arena page ``first``."""
    like = world.vma(0)
    start = world.address(first)
    vma = VmAreaStruct(world.mm(), start, world.address(first + pages), like.vm_pgoff, like.vm_flags)
    vma.vm_pgoff = start >> 12
    return vma


# ---- becoming faulted


def test_first_write_makes_a_root() -> None:
    """A lone VMA gets an anon_vma of its own, which counts itself as its child."""
    world = faulted()
    anon_vma = anon_vma_of(world, 0)
    assert anon_vma.root is anon_vma
    assert anon_vma.parent is anon_vma
    assert (anon_vma.num_children, anon_vma.num_active_vmas, anon_vma.refcount) == (1, 1, 1)
    assert chain_of(world.vma(0)) == [anon_vma]
    assert list(world.machine.anon_vmas_live.values()) == [anon_vma]
    world.check()


def test_prepare_is_idempotent() -> None:
    """A faulted VMA is left alone, and allocates nothing."""
    world = faulted()
    before = anon_vma_of(world, 0)
    fail_next(world, 1)
    assert world.image.rmap.anon_vma_prepare(world.vma(0)) == 0
    assert anon_vma_of(world, 0) is before


def test_neighbour_shares_its_anon_vma() -> None:
    """Two VMAs that differ in permissions alone share one anon_vma, so that they can merge later."""
    world = World()
    world.mmap(0, 4, flags=PRIVATE_FIXED | MAP_NORESERVE)  # else what is charged differs too
    world.do("mprotect", 2, 2, PROT_READ)
    world.write(0)
    world.image.rmap.anon_vma_prepare(world.vma(2))
    assert anon_vma_of(world, 2) is anon_vma_of(world, 0)
    assert anon_vma_of(world, 0).num_active_vmas == 2
    world.check()


@pytest.mark.parametrize("nth", [1, 2])
def test_no_memory_for_an_anon_vma(nth: int) -> None:
    """Either allocation can fail; the VMA stays unfaulted and nothing leaks."""
    world = World()
    world.mmap(0, 2)
    fail_next(world, nth)
    assert world.image.rmap.anon_vma_prepare(world.vma(0)) == -ENOMEM
    assert world.vma(0).anon_vma is None
    assert world.vma(0).anon_vma_chain == []
    assert world.machine.anon_vmas_live == {}


def test_two_faults_prepare_at_once() -> None:
    """The slower of two first faults finds the VMA faulted, and gives its own anon_vma back."""
    world = World()
    world.mmap(0, 2)
    sched = world.machine.sched
    vma = world.vma(0)
    tasks = [Task(0, 0), Task(1, 1)]

    def prepare() -> None:
        assert world.image.rmap.anon_vma_prepare(vma) == 0

    sched.run_collision(
        tasks, [prepare, prepare], [Switch(0, "anon_vma.found", 1), Switch(1, "", TO_THE_END)]
    )
    assert [op for op, _ in sched.trace] == [0, 1, 1, 0]
    assert len(world.machine.anon_vmas_live) == 1
    assert anon_vma_of(world, 0).num_active_vmas == 1
    assert len(vma.anon_vma_chain) == 1
    world.check()


# ---- cloning a chain


@pytest.mark.parametrize(("profile", "turned"), [("6.18", False), ("7.0", True)])
def test_clone_for_a_split(profile: str, turned: bool) -> None:
    """The copy is in the same trees under its own range, in the order of that kernel, and counted as active."""
    world = faulted(profile=profile)
    world.fork()
    world.write(0, proc=1)
    src = world.vma(0, 1)
    dst = hand_made(world, 20, 2)
    dst.vm_mm = src.vm_mm
    dst.anon_vma = src.anon_vma
    rmap = world.image.rmap
    assert rmap.anon_vma_clone(dst, src, rmap.VMA_OP_SPLIT) == 0
    assert chain_of(dst) == chain_of(src)[:: -1 if turned else 1]
    assert anon_vma_of(world, 0, 1).num_active_vmas == 2
    for avc in dst.anon_vma_chain:
        assert avc.key in avc.anon_vma.rb_root
        assert avc.key is not None
        assert (avc.key.first, avc.key.last) == (dst.vm_pgoff, dst.vm_pgoff + 1)
    assert world.machine.sched.warnings == []


def test_clone_of_an_unfaulted_vma_does_nothing() -> None:
    """Nothing to copy, nothing to allocate."""
    world = World()
    world.mmap(0, 2)
    dst = hand_made(world, 20, 2)
    fail_next(world, 1)
    assert world.image.rmap.anon_vma_clone(dst, world.vma(0), world.image.rmap.VMA_OP_SPLIT) == 0
    assert dst.anon_vma_chain == []
    assert dst.anon_vma is None


@pytest.mark.parametrize("nth", [1, 2])
def test_clone_without_memory(nth: int) -> None:
    """The copy ends unfaulted, and no tree has heard of it."""
    world = faulted()
    world.fork()
    src = world.vma(0, 1)
    dst = hand_made(world, 20, 2)
    dst.vm_mm = src.vm_mm
    dst.anon_vma = src.anon_vma
    sizes = [len(anon_vma.rb_root) for anon_vma in chain_of(src)]
    fail_next(world, nth)
    assert world.image.rmap.anon_vma_clone(dst, src, world.image.rmap.VMA_OP_SPLIT) == -ENOMEM
    assert dst.anon_vma is None
    assert dst.anon_vma_chain == []
    assert [len(anon_vma.rb_root) for anon_vma in chain_of(src)] == sizes
    assert anon_vma_of(world, 0, 1).num_active_vmas == 1


def dst_has_chain(world: World, dst: VmAreaStruct) -> None:
    world.image.rmap.anon_vma_prepare(dst)


def dst_has_other(world: World, dst: VmAreaStruct) -> None:
    dst.anon_vma = AnonVma(world.machine, 99, anon_vma_of(world, 0).rwsem)


@pytest.mark.parametrize(
    "prepare", [dst_has_chain, dst_has_other, lambda world, dst: None], ids=["chain", "other", "no-anon-vma"]
)
def test_clone_into_what_does_not_fit_warns(prepare: Callable[[World, VmAreaStruct], None]) -> None:
    """The kernel's assertions: an empty chain, and the source's anon_vma already set."""
    world = faulted()
    dst = hand_made(world, 20, 2)
    prepare(world, dst)
    world.image.rmap.check_anon_vma_clone(dst, world.vma(0), world.image.rmap.VMA_OP_REMAP)
    assert warnings(world) == ["anon-vma-clone"]


def test_merge_clones_singular_chains_only() -> None:
    """Duplicating a fork child's chain into an unfaulted VMA would widen what its pages reach."""
    world = faulted()
    world.fork()
    src = world.vma(0, 1)
    dst = hand_made(world, 20, 2)
    dst.vm_mm = src.vm_mm
    dst.anon_vma = src.anon_vma
    world.image.rmap.check_anon_vma_clone(dst, src, world.image.rmap.VMA_OP_MERGE_UNFAULTED)
    assert warnings(world) == ["anon-vma-clone"]


# ---- fork


def test_child_has_an_anon_vma_of_its_own() -> None:
    """Its parent is the parent's, its root the family's; the chain leads to both."""
    world = faulted()
    world.fork()
    parent, child = anon_vma_of(world, 0), anon_vma_of(world, 0, 1)
    assert child is not parent
    assert child.parent is parent
    assert child.root is parent
    assert (parent.num_children, parent.num_active_vmas) == (2, 1)
    assert (child.num_children, child.num_active_vmas) == (0, 1)
    assert parent.refcount == 2  # the child's anon_vma keeps the lock's owner
    assert chain_of(world.vma(0, 1)) == [child, parent]
    assert chain_of(world.vma(0)) == [parent]
    world.check()


def test_grandchild_reaches_every_ancestor() -> None:
    """One AVC for each generation, the youngest first."""
    world = faulted()
    world.fork(1)
    world.fork(2, proc=1)
    assert chain_of(world.vma(0, 2)) == [anon_vma_of(world, 0, p) for p in (2, 1, 0)]
    assert anon_vma_of(world, 0, 2).root is anon_vma_of(world, 0)
    world.check()


def test_unfaulted_parent_leaves_the_child_unfaulted() -> None:
    """There is nothing to inherit."""
    world = World()
    world.mmap(0, 2)
    world.fork()
    assert world.vma(0, 1).anon_vma is None


def test_anon_vma_without_a_vma_is_used_again() -> None:
    """A middle generation that has exited leaves its anon_vma to the next child, instead of a growing chain."""
    world = faulted()
    world.fork(1)
    world.fork(2, proc=1)
    middle = anon_vma_of(world, 0, 1)
    assert world.do("exit", proc=1) == 0
    assert (middle.num_active_vmas, middle.num_children) == (0, 1)
    assert not middle.freed
    world.fork(3, proc=2)
    assert anon_vma_of(world, 0, 3) is middle
    assert middle.num_active_vmas == 1
    assert len(world.machine.anon_vmas_live) == 3
    world.check()


@pytest.mark.parametrize(("profile", "used"), [("6.18", 1), ("7.0", 2)])
def test_which_idle_ancestor_is_used_again(profile: str, used: int) -> None:
    """Two generations in the middle have exited: 6.18 takes the oldest, 7.0 has turned the chain round."""
    world = faulted(profile=profile)
    world.fork(1)
    world.fork(2, proc=1)
    world.fork(3, proc=2)
    assert world.do("exit") == 0
    world.fork(0, proc=3)
    wanted = anon_vma_of(world, 0, used)
    for proc in (1, 2):
        assert world.do("exit", proc=proc) == 0
    world.fork(1)
    assert anon_vma_of(world, 0, 1) is wanted
    world.check()


def test_anon_vma_with_two_children_is_not_used_again() -> None:
    """Two live children: their pages must not be found through a third one's VMA."""
    world = faulted()
    world.fork(1)
    world.fork(2, proc=1)
    world.fork(3, proc=1)
    middle = anon_vma_of(world, 0, 1)
    assert world.do("exit", proc=1) == 0
    world.fork(1, proc=2)
    assert anon_vma_of(world, 0, 1) is not middle
    world.check()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_fork_without_memory(nth: int) -> None:
    """Whatever allocation fails, the parent's family is as before."""
    world = faulted()
    parent = world.vma(0)
    child = hand_made(world, 0, 4)
    child.vm_mm = world.machine.new_mm(1)
    fail_next(world, nth)
    assert world.image.rmap.anon_vma_fork(child, parent) == -ENOMEM
    assert child.anon_vma is None
    assert child.anon_vma_chain == []
    anon_vma = anon_vma_of(world, 0)
    assert (anon_vma.num_children, anon_vma.refcount, len(anon_vma.rb_root)) == (1, 1, 1)
    assert len(world.machine.anon_vmas_live) == 1


# ---- the end of an anon_vma


def test_root_outlives_its_process() -> None:
    """The parent exits: its anon_vma stays while the child's AVC leads to it, and goes with that."""
    world = faulted()
    world.fork()
    root = anon_vma_of(world, 0)
    assert world.do("exit") == 0
    assert not root.freed
    assert root.num_active_vmas == 0
    world.check()
    assert world.do("exit", proc=1) == 0
    assert root.freed
    assert world.machine.anon_vmas_live == {}
    assert world.machine.sched.warnings == []


def test_child_goes_first() -> None:
    """The child's anon_vma is freed with its only VMA, and uncounted in its parent."""
    world = faulted()
    world.fork()
    root, child = anon_vma_of(world, 0), anon_vma_of(world, 0, 1)
    assert world.do("exit", proc=1) == 0
    assert child.freed
    assert (root.num_children, root.refcount) == (1, 1)
    world.check()


def test_unlink_warns_of_wrong_counts() -> None:
    """An anon_vma that is freed while it counts children or VMAs: the kernel complains."""
    world = faulted()
    anon_vma_of(world, 0).num_active_vmas += 1
    assert world.do("munmap", 0, 4) == 0
    assert warnings(world) == ["anon-vma-freed-in-use"]


def test_unlink_warns_of_a_chain_without_anon_vma() -> None:
    """An unfaulted VMA has no AVCs."""
    world = faulted()
    world.vma(0).anon_vma = None
    world.image.rmap.unlink_anon_vmas(world.vma(0))
    assert warnings(world) == ["anon-vma-unlink"]


def test_references_are_checked() -> None:
    """A reference to what has been freed, and one put too often, end the machine."""
    world = faulted()
    anon_vma = anon_vma_of(world, 0)
    world.image.rmap.get_anon_vma(anon_vma)
    assert world.do("munmap", 0, 4) == 0
    assert not anon_vma.freed
    world.image.rmap.put_anon_vma(anon_vma)
    assert anon_vma.freed
    with pytest.raises(KernelBug, match="use-after-free"):
        world.image.rmap.get_anon_vma(anon_vma)
    with pytest.raises(KernelBug, match="refcount-underflow"):
        world.image.rmap.put_anon_vma(anon_vma)


def test_last_reference_to_a_child_frees_the_root() -> None:
    """A child's anon_vma that somebody still holds keeps the root, whose lock it uses."""
    world = faulted()
    world.fork()
    root, child = anon_vma_of(world, 0), anon_vma_of(world, 0, 1)
    world.image.rmap.get_anon_vma(child)
    world.do("exit", proc=1)
    world.do("exit")
    assert not root.freed
    world.image.rmap.put_anon_vma(child)
    assert child.freed
    assert root.freed
    assert world.machine.anon_vmas_live == {}
