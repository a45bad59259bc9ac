"""Mapcounts and exclusive marks, and what the kernel complains of when they cannot be right."""

from __future__ import annotations

import pytest

from emulator.errors import KernelBug
from emulator.mm_types import NO_MM
from emulator.uapi import PROT_READ
from tests.emulator.kernel_world import World
from tests.emulator.mm.world import anon_vma_of, faulted, huge, warnings


def test_shared_page_hangs_at_the_root() -> None:
    """A page that is not exclusive may be anywhere in the family: its mapping is the root's anon_vma."""
    world = faulted()
    world.fork()
    folio = world.machine.phys.alloc(0)
    counts = world.image.rmap_counts
    counts.folio_add_new_anon_rmap(folio, world.vma(1, 1), world.address(1), False)
    assert folio.mapping is anon_vma_of(world, 0)
    assert folio.anon_exclusive == 0
    counts.folio_remove_rmap_ptes(folio, 0, 1, world.vma(1, 1))
    counts.folio_add_new_anon_rmap(folio, world.vma(1, 1), world.address(1), True)
    assert folio.mapping is anon_vma_of(world, 0, 1)
    assert folio.anon_exclusive == 1
    assert folio.index == world.address(1) >> 12


def test_mapping_in_the_wrong_place_warns() -> None:
    """The kernel's __page_check_anon_rmap: the offset, and the root, must be those of the VMA."""
    world = faulted()
    world.mmap(20, 4)
    world.write(20)
    folio = world.folio(0)
    counts = world.image.rmap_counts
    counts.folio_add_anon_rmap_ptes(folio, 0, 1, world.vma(1), world.address(1), False)
    counts.folio_add_anon_rmap_ptes(folio, 0, 1, world.vma(20), world.address(20), False)
    rules = warnings(world)
    assert rules.count("page-check-anon-rmap") == 2


def test_exclusive_page_mapped_twice_warns() -> None:
    """An exclusive page has one mapping."""
    world = faulted()
    world.image.rmap_counts.folio_add_anon_rmap_ptes(
        world.folio(0), 0, 1, world.vma(0), world.address(0), False
    )
    assert warnings(world) == ["exclusive-mapped-twice"]


def test_mapping_outside_of_the_vma_warns() -> None:
    """A new page must lie inside the VMA that it is mapped in."""
    world = faulted()
    folio = world.machine.phys.alloc(0)
    world.image.rmap_counts.folio_add_new_anon_rmap(folio, world.vma(0), world.address(9), True)
    assert warnings(world) == ["rmap-outside-vma"]


def test_counting_on_what_is_gone() -> None:
    """A freed folio ends the machine; a freed anon_vma and the zero page are complained about."""
    world = faulted()
    folio, vma = world.folio(0), world.vma(0)
    counts = world.image.rmap_counts
    counts.folio_add_file_rmap_pte(world.machine.phys.zero_folio, 0, vma)
    anon_vma_of(world, 0).freed = True
    counts.folio_remove_rmap_ptes(folio, 0, 1, vma)
    rules = warnings(world)
    assert rules == ["rmap-zero-page", "rmap-anon-vma-freed"]
    folio.freed = True
    with pytest.raises(KernelBug, match="use-after-free"):
        counts.folio_remove_rmap_ptes(folio, 0, 1, vma)


def test_unmapping_more_often_than_mapped() -> None:
    """Negative mapcounts end the machine, by PTE and by PMD."""
    world = faulted()
    folio, vma = world.folio(0), world.vma(0)
    counts = world.image.rmap_counts
    counts.folio_remove_rmap_ptes(folio, 0, 1, vma)
    with pytest.raises(KernelBug, match="mapcount-underflow"):
        counts.folio_remove_rmap_ptes(folio, 0, 1, vma)
    with pytest.raises(KernelBug, match="mapcount-underflow"):
        counts.folio_remove_rmap_pmd(folio, vma)


def test_anonymous_page_in_an_unfaulted_vma() -> None:
    """There is no anon_vma to hang it at."""
    world = World()
    world.mmap(0, 1)
    folio = world.machine.phys.alloc(0)
    counts = world.image.rmap_counts
    with pytest.raises(KernelBug, match="no-anon-vma"):
        counts.folio_add_new_anon_rmap(folio, world.vma(0), world.address(0), True)
    folio.lock.lock()
    with pytest.raises(KernelBug, match="no-anon-vma"):
        counts.folio_move_anon_rmap(folio, world.vma(0))


def test_move_needs_the_folio_lock() -> None:
    """Walkers rely on the mapping of a locked folio."""
    world = faulted()
    with pytest.raises(KernelBug, match="folio-not-locked"):
        world.image.rmap_counts.folio_move_anon_rmap(world.folio(0), world.vma(0))


def test_anonymous_folio_mapped_as_a_files_warns() -> None:
    """Counting it as a file's would lose its exclusive mark."""
    world = faulted()
    world.image.rmap_counts.folio_add_file_rmap_pte(world.folio(0), 0, world.vma(0))
    assert "rmap-file-anon" in warnings(world)


def test_mapped_shared() -> None:
    """A small folio by its mapcount, a large one by how many processes map it."""
    world = faulted()
    shared = world.image.rmap_counts.folio_maybe_mapped_shared
    assert not shared(world.folio(0))
    world.fork()
    assert shared(world.folio(0))
    large = huge()
    large.do("mprotect", 0, 2, PROT_READ)  # mapped by PTEs now
    folio = large.folio(0)
    assert folio.mapcount() == 8
    assert not shared(folio)
    large.fork()
    assert shared(folio)
    large.do("exit", proc=1)
    assert not shared(folio)
    assert folio.mm_ids == [(large.mm().asid, 8), NO_MM]


def test_a_third_process_is_not_known_by_name() -> None:
    """When the two that are known have gone, the folio still counts as shared: a write copies."""
    large = huge()
    shared = large.image.rmap_counts.folio_maybe_mapped_shared
    large.do("mprotect", 0, 2, PROT_READ)  # mapped by PTEs now
    folio = large.folio(0)
    large.fork(1)
    large.fork(2)
    large.do("exit", proc=1)
    assert shared(folio)
    large.do("exit", proc=0)
    assert shared(folio)
    large.write(5, proc=2)
    assert large.folio(5, proc=2) is not folio
    large.fork(1, proc=2)
    assert folio.mm_ids[0][0] == large.mm(1).asid
    large.do("exit", proc=2)
    assert not shared(folio)  # one that is known has all the mappings


def test_huge_pages_are_checked_as_small_ones() -> None:
    """A second PMD for an exclusive page, in a place that is not its own: both complained of."""
    world = huge()
    folio, vma = world.folio(0), world.vma(0)
    counts = world.image.rmap_counts
    counts.folio_add_anon_rmap_pmd(folio, vma, world.address(0), False)
    assert warnings(world) == ["exclusive-mapped-twice"]
    counts.folio_remove_rmap_pmd(folio, vma)
    folio.anon_exclusive = 0
    counts.folio_add_anon_rmap_pmd(folio, vma, world.address(1), False)
    assert warnings(world)[1:] == ["page-check-anon-rmap"]
    counts.folio_remove_rmap_pmd(folio, vma)
    counts.folio_remove_rmap_pmd(folio, vma)
    counts.folio_add_anon_rmap_pmd(folio, vma, world.address(0), True)
    assert folio.anon_exclusive == 1
    assert len(warnings(world)) == 2
