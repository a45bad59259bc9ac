"""Small states that tests of the memory manager begin with, and shorthands to ask for parts of them."""

from __future__ import annotations

from emulator.geometry import LEVEL_PMD
from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import PSE
from emulator.mm_types import Folio, VmAreaStruct
from emulator.rmap_types import AnonVma
from emulator.sched.scheduler import Task
from emulator.uapi import MADV_HUGEPAGE
from emulator.workload import FOLL_PIN, FOLL_WRITE
from tests.emulator.kernel_world import World

PIN_RW = FOLL_PIN | FOLL_WRITE


def faulted(pages: int = 4, profile: str = "6.18") -> World:
    """One VMA of ``pages`` pages, the first written."""
    world = World(profile=profile)
    world.mmap(0, pages)
    world.write(0)
    return world


def huge(pages: int = 8, geometry: str = "small8", profile: str = "6.18") -> World:
    """One VMA that wants huge pages, the first one (pages 0 to 7) faulted in by a write to page 3."""
    world = World(geometry, profile=profile)
    world.mmap(0, pages)
    assert world.do("madvise", 0, pages, MADV_HUGEPAGE) == 0
    world.write(3)
    assert world.folio(0).nr_pages == world.machine.geometry.hpage_pmd_nr
    return world


def is_huge(world: World, page: int, proc: int = 0) -> bool:
    """Does a PMD map the page?"""
    table, _, entry = walk_slot(world.mm(proc), world.machine.geometry, world.address(page))
    return table.level == LEVEL_PMD and entry & PSE != 0


def anon_vma_of(world: World, page: int, proc: int = 0) -> AnonVma:
    anon_vma = world.vma(page, proc).anon_vma
    assert anon_vma is not None
    return anon_vma


def chain_of(vma: VmAreaStruct) -> list[AnonVma]:
    """The anon_vmas of a VMA's chain, head first."""
    return [avc.anon_vma for avc in vma.anon_vma_chain]


def isolated(world: World, page: int, proc: int = 0) -> Folio:
    """The folio of a page, locked and referenced, as who unmaps it has it."""
    folio = world.folio(page, proc)
    folio.lock.lock()
    world.image.swap.folio_get(folio)
    return folio


def let_go(world: World, folio: Folio) -> None:
    """The end of ``isolated``, also when steps have run in between."""
    assert folio.lock.owner is not None
    world.machine.sched.current = folio.lock.owner
    folio.lock.unlock()
    world.image.swap.folio_put(world.machine, folio)


def fail_next(world: World, nth: int) -> None:
    """Let the nth fault point from now on fail."""
    world.machine.sched.current = Task(0, 0, nth)


def warnings(world: World) -> list[str]:
    """The rules that the kernel has complained of."""
    return [rule for rule, *_ in world.machine.sched.warnings]


def fault(world: World, page: int, flags: int = 0, proc: int = 0) -> int:
    """handle_mm_fault on its own; its VM_FAULT_* bits."""
    result: int = world.image.memory.handle_mm_fault(world.vma(page, proc), world.address(page), flags)
    return result
