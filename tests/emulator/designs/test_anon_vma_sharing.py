"""Sharing a neighbour's anon_vma at the first write fault: as posted in 2004, as today, and not at all."""

from __future__ import annotations

import pytest

from emulator.designs.anon_vma_sharing_2004 import AnonVmaSharing2004
from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.no_anon_vma_sharing import NoAnonVmaSharing
from emulator.fs_types import VmOps
from tests.emulator.kernel_world import World
from tests.emulator.map_script import ScriptRunner
from tests.emulator.mm.world import anon_vma_of, chain_of

WORLDS = [("x86-64", 1000), ("small8", 64), ("small4", 32)]

# name, sequence, pages of the VMA with sharing, without
MERGES = [
    ("mprotect_back", "A = C1+10 NR; rwx A[5:10]; F A[0]; F A[5]; rw A[5:10]", 10, 5),
    ("next_is_asked_too", "A = C1+10 NR; rwx A[0:5]; F A[5]; F A[0]; rw A[0:5]", 10, 5),
    (  # the "reasonable repetitive sequence of syscalls and faults" of the patch: each page in turn
        "each_page_in_turn",
        """A = C1+4 NR; ro A[1:4]; F A[0]; rwx A[1]; F A[1]; rw A[1]; rwx A[2]; F A[2]; rw A[2]
           rwx A[3]; F A[3]; rw A[3]""",
        4,
        1,
    ),
    ("faulted_before_the_split", "A = C1+10 NR; F A[0]; rwx A[5:10]; F A[5]; rw A[5:10]", 10, 10),
    # the page offsets do not fit
    ("moved", "A = C1+5 NR; F A; B = C20+5 NR RWX; F B; mv B -> A+5; rw B", 5, 5),
]


@pytest.mark.parametrize(("geometry", "far"), WORLDS)
@pytest.mark.parametrize("design", [AnonVmaSharing2004, Mainline, NoAnonVmaSharing])
@pytest.mark.parametrize(("script", "shared", "apart"), [pytest.param(*row[1:], id=row[0]) for row in MERGES])
def test_what_merges(
    script: str, shared: int, apart: int, design: type[Design], geometry: str, far: int
) -> None:
    """With sharing, as posted and as today, parts that were faulted apart merge again; without it they do not."""
    pages = apart if design is NoAnonVmaSharing else shared
    ScriptRunner(World(geometry, design), far).run(f"{script}; => A:{pages}")


def between_two(design: type[Design]) -> World:
    """Pages 0, 1 and 2 of one mapping, three VMAs; the outer two are faulted."""
    world = World("small8", design)
    world.mmap(0, 3)
    assert world.do("mprotect", 1, 1, 7) == 0
    world.write(0)
    world.write(2)
    return world


def test_next_before_prev() -> None:
    """Of two neighbours that could be shared with, the next one is."""
    world = between_two(AnonVmaSharing2004)
    assert anon_vma_of(world, 0) is not anon_vma_of(world, 2)
    world.write(1)
    assert anon_vma_of(world, 1) is anon_vma_of(world, 2)
    world.check()


@pytest.mark.parametrize(("design", "shares"), [(AnonVmaSharing2004, False), (Mainline, True)])
def test_close_hook(design: type[Design], shares: bool) -> None:
    """A neighbour with a close() hook is not shared with, as it would not merge; Linux does not look today."""
    world = World("small8", design)
    world.mmap(0, 3)
    assert world.do("mprotect", 1, 2, 7) == 0
    world.vma(0).vm_ops = VmOps("closing", close=True)
    world.write(0)
    world.write(1)
    assert (anon_vma_of(world, 1) is anon_vma_of(world, 0)) == shares


def beside_inherited(design: type[Design]) -> World:
    """Process 1 has inherited a written page 0, and has memory of its own beside it at page 1, which it writes."""
    world = World("small8", design)
    world.mmap(0, 1)
    world.write(0)
    world.fork()
    assert world.do("mmap", 1, 1, 7, 0x12, 0, 0, proc=1) == 1
    world.write(1, proc=1)
    return world


def test_fork_child_shares() -> None:
    """A flaw on today's anon_vmas, kept: the neighbour's anon_vma is shared, the rest of its chain is not."""
    world = beside_inherited(AnonVmaSharing2004)
    assert anon_vma_of(world, 1, 1) is anon_vma_of(world, 0, 1)
    assert chain_of(world.vma(1, 1)) == chain_of(world.vma(0, 1))[:1]
    assert len(chain_of(world.vma(0, 1))) == 2
    world = beside_inherited(Mainline)
    assert anon_vma_of(world, 1, 1) is not anon_vma_of(world, 0, 1)
    world.check()


def test_merge_that_loses_the_parents_pages() -> None:
    """What comes of it: the merged VMA has the shorter chain, and no walk from the parent's page finds the child."""
    world = beside_inherited(AnonVmaSharing2004)
    folio = world.folio(0, 1)
    assert folio is world.folio(0)
    assert world.do("mprotect", 0, 1, 7, proc=1) == 0
    assert world.layout(1) == [(0, 2)]
    assert folio.mapping is anon_vma_of(world, 0)
    assert folio.mapping not in chain_of(world.vma(0, 1))
