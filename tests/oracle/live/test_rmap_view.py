"""The reverse map as views: numbering, and what the machine shows, without a running kernel."""

from __future__ import annotations

from typing import ClassVar

import pytest

from emulator.designs.base import Design
from emulator.geometry import PAGE_SIZE
from emulator.mm_types import VmAreaStruct
from emulator.rmap_types import AnonVmaChain, avc_insert
from emulator.uapi import MADV_HUGEPAGE, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ
from oracle.live.rmap_view import (
    NONE,
    RawFolio,
    RawProcess,
    RawVma,
    decode_folio,
    live_rmap,
    machine_rmap,
    rmap_views,
)
from oracle.live.view import AnonView, FolioView
from tests.emulator.kernel_world import World

START = 0x1000_0000
FIRST = START // PAGE_SIZE
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED

UNFAULTED = (NONE, NONE, NONE, 0, 0, ())


def vma(page: int, pages: int, of_anon_vma: tuple[object, ...], file: bool = False) -> RawVma:
    """A VMA at an arena page that has not moved; a file's is mapped from its third page on."""
    start = START + page * PAGE_SIZE
    pgoff = 2 if file else FIRST + page
    return RawVma(start, start + pages * PAGE_SIZE, pgoff, file, *of_anon_vma)  # type: ignore[arg-type]


# ---- what folio->mapping says


@pytest.mark.parametrize(
    ("mapping", "folio"),
    [
        (0xFFFF_8880_0000_1001, RawFolio(0xFFFF_8880_0000_1000, 7)),
        (0xFFFF_8880_0000_1003, RawFolio(NONE, 0)),
        (0xFFFF_8880_0000_1000, None),
        (0, None),
    ],
    ids=["anonymous", "ksm", "file", "zero-page"],
)
def test_low_bits_of_mapping(mapping: int, folio: RawFolio | None) -> None:
    """PAGE_MAPPING_ANON, KSM: what is taken for an anon_vma is one."""
    assert decode_folio(mapping, 7) == folio


# ---- numbering


def test_numbers_by_first_appearance() -> None:
    """Over the processes by label, VMAs by address, then pages; what no VMA calls its own is numbered when met."""
    processes = {
        1: RawProcess([vma(0, 1, (70, 50, 60, 0, 1, (70, 60, 50)))], {START: RawFolio(50, FIRST)}),
        0: RawProcess(
            [vma(0, 1, UNFAULTED), vma(2, 1, (90, 50, 50, 0, 1, (90, 50)))],
            {START + 2 * PAGE_SIZE: RawFolio(NONE, 0)},
        ),
    }
    assert rmap_views(processes, START) == {
        0: (
            (AnonView(0, 0, -1, -1, -1, 0, 0, ()), AnonView(2, 2, 0, 1, 1, 0, 1, (0, 1))),
            (FolioView(2, -1, 0),),
        ),
        1: ((AnonView(0, 0, 2, 1, 3, 0, 1, (2, 3, 1)),), (FolioView(0, 1, 0),)),
    }


def test_names_do_not_matter() -> None:
    """Equal graphs give equal views, whatever the objects are called; other graphs do not."""

    def views(own: int, other: int, shared: bool) -> object:
        second = own if shared else other
        vmas = [
            vma(0, 1, (own, own, own, 1, 1, (own,))),
            vma(1, 1, (second, second, second, 1, 1, (second,))),
        ]
        return rmap_views({0: RawProcess(vmas, {START: RawFolio(own, FIRST)})}, START)

    assert views(5, 9, False) == views(9, 5, False)
    assert views(5, 9, True) != views(5, 9, False)


def test_page_offsets_of_a_file_count_from_its_start() -> None:
    """Those of anonymous memory count from the arena's first page: a small world and a large one show the same."""
    processes = {
        0: RawProcess(
            [vma(3, 2, (1, 1, 1, 1, 1, (1,)), file=True), vma(5, 1, (2, 2, 2, 1, 1, (2,)))],
            {START + 4 * PAGE_SIZE: RawFolio(1, 3), START + 5 * PAGE_SIZE: RawFolio(2, FIRST + 5)},
        )
    }
    anon_vmas, folios = rmap_views(processes, START)[0]
    assert [view.pgoff for view in anon_vmas] == [2, 5]
    assert folios == (FolioView(4, 0, 3), FolioView(5, 1, 5))


def test_frames_that_are_not_anonymous_are_left_out() -> None:
    """The page of zeros and file pages are present, and the probe does not tell of them."""
    views = live_rmap(
        {0: [vma(0, 2, (8, 8, 8, 1, 1, (8,)))]}, {0: {0: 33, 1: 44}}, {44: RawFolio(8, FIRST + 1)}, START
    )
    assert views[0][1] == (FolioView(1, 0, 1),)


# ---- the machine


def test_machine_shows_splits_and_forks() -> None:
    """A split shares the anon_vma, a fork makes one for each VMA; a root counts itself among its children."""
    world = World()
    world.mmap(2, 3)
    world.write(3)
    assert world.do("mprotect", 3, 1, PROT_READ) == 0
    world.fork()
    views = machine_rmap(world.machine)
    assert views[0][0] == tuple(AnonView(page, page, 0, 0, 0, 4, 3, (0,)) for page in (2, 3, 4))
    assert views[1][0] == tuple(
        AnonView(page, page, number, 0, 0, 0, 1, (number, 0)) for page, number in ((2, 1), (3, 2), (4, 3))
    )
    assert views[0][1] == views[1][1] == (FolioView(3, 0, 3),)


def test_machine_keeps_the_index_when_it_moves() -> None:
    """A faulted VMA takes its page offset along."""
    world = World()
    world.mmap(2, 2)
    world.write(3)
    assert world.do("mremap", 2, 2, 2, MOVE, 20) == 20
    assert machine_rmap(world.machine)[0] == ((AnonView(20, 2, 0, 0, 0, 1, 1, (0,)),), (FolioView(21, 0, 3),))


def test_machine_shows_every_page_of_a_huge_one() -> None:
    """By PMD or by PTEs, each page has the offset of that very page."""
    world = World()
    world.mmap(8, 8)
    assert world.do("madvise", 8, 8, MADV_HUGEPAGE) == 0
    world.write(9)
    whole = tuple(FolioView(page, 0, page) for page in range(8, 16))
    assert machine_rmap(world.machine)[0][1] == whole
    assert world.do("munmap", 10, 1) == 0
    assert machine_rmap(world.machine)[0][1] == whole[:2] + whole[3:]


def test_machine_leaves_out_zeros_and_file_pages() -> None:
    """They belong to no anon_vma; a written page of a private file mapping does."""
    world = World()
    world.mmap(0, 2)
    world.mmap(4, 3, file=1)
    assert world.do("read", 0) == 0
    assert world.do("read", 4) == 0
    assert machine_rmap(world.machine)[0][1] == ()
    world.write(6)
    assert machine_rmap(world.machine)[0][1] == (FolioView(6, 0, 2),)


def clone_of_the_youngest_only(dst: VmAreaStruct, src: VmAreaStruct, operation: int) -> int:
    """Copies the head of the chain and forgets the ancestors."""
    if src.anon_vma is not None:
        avc = AnonVmaChain(dst.vm_mm.machine.serial(), dst, src.anon_vma)
        dst.anon_vma_chain.append(avc)
        avc_insert(avc)
        if dst.anon_vma is not None:
            src.anon_vma.num_active_vmas += 1
    return 0


class ForgetsAncestors(Design):
    name = "forgets-ancestors"
    replaces: ClassVar = {"rmap.anon_vma_clone": clone_of_the_youngest_only}


def test_a_broken_clone_shows() -> None:
    """Two generations of forks: a chain without the grandparent's anon_vma is another view."""

    def views(world: World) -> object:
        world.mmap(0, 1)
        world.write(0)
        world.fork(1)
        world.fork(2, proc=1)
        return machine_rmap(world.machine)

    assert views(World()) != views(World(design=ForgetsAncestors))
