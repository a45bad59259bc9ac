"""Where mmap puts memory when it may choose (get_unmapped_area)."""

from __future__ import annotations

from emulator.geometry import PAGE_SIZE
from emulator.mm_types import VM_GROWSDOWN
from emulator.uapi import MAP_ANONYMOUS, MAP_PRIVATE, PROT_NONE
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World, profile_with

ANON = MAP_PRIVATE | MAP_ANONYMOUS


def place(world: World, length: int) -> int:
    """mmap(2) of ``length`` bytes without a hint."""
    result: int = world.image.mmap.sys_mmap(world.mm(), 0, length, RW, ANON, None, 0)
    return result


def test_top_down() -> None:
    """The highest place that is free; a hint that is free is taken, one that is not is passed over."""
    world = World()
    last = world.machine.geometry.arena_pages
    assert world.do("mmap", 50, 3, RW, MAP_PRIVATE, 0, 0) == 50
    assert world.do("mmap", 52, 3, RW, MAP_PRIVATE, 0, 0) == last - 3
    assert world.do("mmap", 51, 2, RW, MAP_PRIVATE, 0, 0) == last - 5
    assert world.span(last - 1) == (last - 5, 5)


def test_first_fit_from_the_top() -> None:
    """A hole that is large enough is filled before space further down is used."""
    world = World()
    last = world.machine.geometry.arena_pages
    world.mmap(last - 2, 2, PROT_NONE)
    world.mmap(last - 8, 2, PROT_NONE)
    assert world.do("mmap", last - 1, 4, RW, MAP_PRIVATE, 0, 0) == last - 6
    assert world.do("mmap", last - 1, 3, RW, MAP_PRIVATE, 0, 0) == last - 11


def test_bottom_up_when_the_top_is_full() -> None:
    """Nothing fits below mmap_base: the search goes upwards from the arena's start, past its end."""
    world = World()
    last = world.machine.geometry.arena_pages
    world.mmap(0, last, PROT_NONE)
    assert world.do("mmap", 5, 4, RW, MAP_PRIVATE, 0, 0) == last


def test_huge_page_alignment() -> None:
    """Without a hint a length of whole huge pages is placed on their boundary, other lengths are not."""
    world = World()
    g = world.machine.geometry
    assert place(World(), g.pmd_size) == g.arena_end - g.pmd_size
    world.mmap(g.arena_pages - 3, 3, PROT_NONE)
    assert place(world, g.pmd_size) % g.pmd_size == 0
    assert place(world, g.pmd_size + PAGE_SIZE) % g.pmd_size != 0


def test_guard_gap_of_a_stack() -> None:
    """The space below a stack is its own."""
    world = World(profile=profile_with(stack_guard_gap=4))
    last = world.machine.geometry.arena_pages
    world.mmap(last - 2, 2)
    world.vma(last - 2).vm_flags |= VM_GROWSDOWN
    assert world.do("mmap", last - 4, 2, RW, MAP_PRIVATE, 0, 0) == last - 8
    assert world.do("mmap", last - 5, 1, RW, PRIVATE_FIXED, 0, 0) == last - 5


def test_guard_gap_of_a_stack_behind_another() -> None:
    """Two stacks, one above the other: the gap of the lower one counts, though the upper one's begins above it."""
    world = World(profile=profile_with(stack_guard_gap=4))
    last = world.machine.geometry.arena_pages
    for page in (last - 2, last - 4):
        world.mmap(page, 1)
        world.vma(page).vm_flags |= VM_GROWSDOWN
    assert world.do("mmap", last - 1, 1, RW, MAP_PRIVATE, 0, 0) == last - 1
    assert world.do("mmap", last - 1, 2, RW, MAP_PRIVATE, 0, 0) == last - 10
