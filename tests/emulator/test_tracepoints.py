"""The tracepoints of the 2022 RFC: what they say of each design, that they cost nothing unheard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from emulator.designs.base import Design
from emulator.designs.eight_case import EightCase
from emulator.designs.eight_case_refactored import EightCaseRefactored
from emulator.designs.mainline import Mainline
from emulator.designs.matena_2022 import Matena2022
from emulator.designs.merge_new_2024 import MergeNew2024
from emulator.designs.relocate_anon import RelocateAnon
from emulator.designs.relocate_anon_series import RelocateAnonSeries
from emulator.machine import Machine
from emulator.tracepoints import TraceEvent, Tracer, VmaMergeRes, VmAvMerge, VmPgoffMerge, show
from emulator.uapi import MREMAP_FIXED, MREMAP_MAYMOVE, MREMAP_RELOCATE_ANON
from tests.emulator.kernel_world import World

FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
FAILED, SHARED, OK, DIFFERENT = VmaMergeRes
DESIGNS = (EightCase, EightCaseRefactored, Mainline, Matena2022, MergeNew2024, RelocateAnon)


class Traced(World):
    """A world with ears. ``heard`` counts."""

    def __init__(self, design: type[Design], profile: str = "5.17") -> None:
        super().__init__("small8", design, profile)
        self.heard: Counter[TraceEvent] = Counter()
        self.tracer = Tracer(self.image, self.hear)

    def hear(self, machine: Machine, event: TraceEvent) -> None:
        assert machine is self.machine
        self.heard[event] += 1

    def moved_beside(self) -> None:
        """Pages 0-1 and, read-only beside them, 2-3 that have moved there: two VMAs with two anon_vmas, written."""
        self.mmap(0, 2, flags=0x4012)
        self.mmap(40, 2, flags=0x4012)
        for page in (0, 1, 40, 41):
            self.write(page)
        assert self.do("mprotect", 40, 2, 1) == 0
        assert self.do("mremap", 40, 2, 2, FIXED, 2) == 2
        self.heard.clear()


Make = Callable[..., Traced]


@pytest.fixture
def traced() -> Iterator[Make]:
    """Makes traced worlds, and closes their ears afterwards: tests share the images."""
    worlds: list[Traced] = []

    def make(design: type[Design], profile: str = "5.17") -> Traced:
        worlds.append(Traced(design, profile))
        return worlds[-1]

    yield make
    for world in worlds:
        world.tracer.close()


@pytest.mark.parametrize("design", DESIGNS)
def test_what_stands_in_the_way(traced: Make, design: type[Design]) -> None:
    """The outcomes mean the same for each design; what it does with them is its own.

    Without the RFC the page offset of what moved does not fit, and no more is asked.
    """
    world = traced(design)
    world.moved_beside()
    assert world.do("mprotect", 2, 2, 3) == 0
    merges = design is Matena2022
    assert world.heard == {VmAvMerge(merges, DIFFERENT if merges else FAILED, FAILED, FAILED, 1): 1}


def test_shared_pages_are_told_apart(traced: Make) -> None:
    """AV_MERGE_FAILED: all fits but the anon_vma, which a child has pages of."""
    world = traced(Matena2022)
    world.moved_beside()
    world.fork()
    assert world.do("mprotect", 2, 2, 3) == 0
    assert world.layout() == [(0, 2), (2, 2)]
    assert world.heard == {VmAvMerge(False, SHARED, FAILED, FAILED, 1): 1}


@pytest.mark.parametrize("design", DESIGNS)
def test_a_hole_is_filled(traced: Make, design: type[Design]) -> None:
    """Both neighbours fit, and so do they together."""
    world = traced(design)
    world.mmap(0, 2)
    world.mmap(4, 2)
    world.heard.clear()
    world.mmap(2, 2)
    assert world.layout() == [(0, 6)]
    assert world.heard == {VmAvMerge(True, OK, OK, OK, 2): 1}


@pytest.mark.parametrize(("design", "profile"), [(Mainline, "6.18"), (EightCase, "5.17")])
def test_faulted_range_beside_an_unfaulted_vma(traced: Make, design: type[Design], profile: str) -> None:
    """Since 6.18 they merge: the kernel's rule decides whether the anon_vma stands in the way."""
    world = traced(design, profile)
    world.mmap(0, 4)
    assert world.do("mprotect", 2, 2, 7) == 0
    world.write(2)
    world.heard.clear()
    assert world.do("mprotect", 2, 2, 3) == 0
    merged = profile == "6.18"
    assert world.heard == {VmAvMerge(merged, OK if merged else SHARED, FAILED, FAILED, 1): 1}


@pytest.mark.parametrize(
    ("design", "flags", "updated"),
    [
        (Mainline, 0, False),
        (Matena2022, 0, True),
        (RelocateAnon, 0, False),
        (RelocateAnon, MREMAP_RELOCATE_ANON, True),
        (RelocateAnonSeries, MREMAP_RELOCATE_ANON, True),
    ],
)
def test_moves(traced: Make, design: type[Design], flags: int, updated: bool) -> None:
    """vm_pgoff_merge says whether the page offset followed, and whether that let the VMA merge."""
    world = traced(design)
    world.mmap(0, 2)
    world.write(0)
    world.mmap(50, 2)
    world.write(50)
    assert world.do("mremap", 0, 2, 2, FIXED | flags, 52) == 52
    moves = Counter({event: n for event, n in world.heard.items() if isinstance(event, VmPgoffMerge)})
    assert moves == {VmPgoffMerge(True, updated, updated): 1}


def test_nothing_after_the_end(traced: Make) -> None:
    """A closed tracer has taken its probes off, and the image is as it was."""
    world = traced(Mainline)
    attached = world.image.vma.vma_merge_new_range
    world.tracer.close()
    assert world.image.vma.vma_merge_new_range is not attached
    assert world.image.vma.vma_merge_new_range.__name__ == "vma_merge_new_range"
    world.mmap(0, 2)
    world.mmap(2, 2)
    assert not world.heard


def test_special_memory_is_never_tried(traced: Make) -> None:
    """VM_SPECIAL ends vma_merge() before its tracepoint."""
    world = traced(Mainline)
    world.mmap(0, 2)
    area = world.vma(0)
    area.vm_flags |= 0x40000
    world.heard.clear()
    assert world.do("mprotect", 0, 1, 1) == 0
    assert not world.heard


def test_text() -> None:
    """As the kernel would print them, names in place of numbers."""
    assert show(VmAvMerge(False, DIFFERENT, SHARED, FAILED, 2)) == (
        "merged=0 predecessor=AV_MERGE_DIFFERENT successor=AV_MERGE_FAILED predecessor_with_successor=MERGE_FAILED "
        "diff_count=1 failed_count=1 neighbours=2"
    )
    assert show(VmPgoffMerge(True, False, False)) == "faulted=1 updated=0 merged=0"
