"""Worlds of equal pages in mergeable memory, and what tests of same-page merging ask of them."""

from __future__ import annotations

from emulator.ksm_types import KsmRmapItem, KsmStableNode
from emulator.mm_types import Folio
from emulator.uapi import MADV_MERGEABLE
from tests.emulator.kernel_world import World, ksm_nodes


def equal(*pages: int, geometry: str = "small8", mapped: int = 16) -> World:
    """One mergeable VMA from page 0 on, these pages filled with the same."""
    world = World(geometry)
    world.mmap(0, mapped)
    advise(world, 0, mapped, MADV_MERGEABLE)
    fill(world, *pages)
    return world


def merged(*pages: int, geometry: str = "small8", mapped: int = 16) -> World:
    """The same, merged."""
    world = equal(*pages, geometry=geometry, mapped=mapped)
    scan(world, 2)
    assert len(ksm_nodes(world)) == 1
    assert len({world.folio(page).pfn for page in pages}) == 1
    return world


def advise(world: World, page: int, pages: int, advice: int, proc: int = 0) -> None:
    assert world.do("madvise", page, pages, advice, proc=proc) == 0


def fill(world: World, *pages: int, pattern: int = 1, proc: int = 0) -> None:
    for page in pages:
        assert world.do("fill", page, pattern, proc=proc) == 0


def scan(world: World, times: int = 1, proc: int = 0) -> int:
    """Whole scans; how many pages the last of them merged."""
    return [0, *(world.do("ksm_scan", 0, proc=proc) for _ in range(times))][-1]


def node_of(world: World, page: int, proc: int = 0) -> KsmStableNode:
    node = world.folio(page, proc).mapping
    assert isinstance(node, KsmStableNode)
    return node


def listed(world: World, node: KsmStableNode) -> list[tuple[int, int]]:
    """(process, page) of the items of a node, sorted."""
    return sorted((item.mm.label, world.page(item.address)) for item in node.hlist)


def items(world: World, proc: int = 0) -> list[KsmRmapItem]:
    """What the scanner remembers of a process."""
    slot = world.machine.ksm.slot_of(world.mm(proc))
    return [] if slot is None else slot.rmap_list


def walk(world: World, folio: Folio) -> list[tuple[int, int]]:
    """(process, page) of the places that a walk of the reverse map visits, in its order."""
    visited: list[tuple[int, int]] = []

    def visit(folio: Folio, vma: object, address: int) -> bool:
        visited.append((vma.vm_mm.label, world.page(address)))  # type: ignore[attr-defined]
        return True

    folio.lock.lock()
    world.image.rmap.rmap_walk(folio, visit)
    folio.lock.unlock()
    return visited
