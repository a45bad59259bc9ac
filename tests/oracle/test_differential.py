"""What the reference gets of a workload, and what the two may differ in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.mainline_fixed import MainlineFixed
from emulator.designs.relocate_anon import RelocateAnon
from emulator.designs.relocate_anon_series import RelocateAnonSeries
from emulator.geometry import PAGE_SIZE
from emulator.image import KernelImage
from emulator.uapi import (
    EAGAIN,
    EBUSY,
    EFAULT,
    EINVAL,
    MADV_COLLAPSE,
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_MUST_RELOCATE_ANON,
    MREMAP_RELOCATE_ANON,
    SIGBUS,
)
from emulator.workload import Op, Step, Workload
from fuzz.workload.text import from_text
from oracle.differential import added_flags, for_reference
from oracle.judge import Judge

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
FLAG = MREMAP_RELOCATE_ANON


@pytest.mark.parametrize(
    ("design", "reference", "flags", "kept"),
    [
        (RelocateAnon, Mainline, MOVE | FLAG, MOVE),
        (RelocateAnon, Mainline, MREMAP_FIXED | FLAG, MREMAP_FIXED | FLAG),  # an error, and so it shall stay
        (RelocateAnon, RelocateAnon, MOVE | FLAG, MOVE | FLAG),
        (MainlineFixed, Mainline, MOVE | FLAG, MOVE | FLAG),  # neither knows it: both refuse
        (Mainline, RelocateAnon, MOVE | FLAG, MOVE | FLAG),
    ],
)
def test_flags_of_the_reference(
    design: type[Design], reference: type[Design], flags: int, kept: int
) -> None:
    """Only what the design has added is taken off, and only where it can mean something."""
    op = Op("mremap", 0, (0, 1, 1, flags, 8), fail_nth=3)
    assert for_reference(op, added_flags(design, reference)) == Op("mremap", 0, (0, 1, 1, kept, 8))


def test_a_flag_that_neither_knows_is_refused_by_both() -> None:
    """A design without new flags beside mainline: no difference in how they refuse an unknown one."""
    workload = Workload(
        "small4",
        (Step((Op("mmap", 0, (0, 2, 3, 0x12, 0, 0)),)), Step((Op("mremap", 0, (0, 1, 1, MOVE | FLAG, 8)),))),
    )
    verdict = Judge(KernelImage(MainlineFixed), KernelImage(Mainline)).run(workload)
    assert verdict.findings == ()
    assert verdict.outcomes[1][0].ret == -EINVAL


MUST = MOVE | MREMAP_MUST_RELOCATE_ANON
RW = 3
FIXED = 0x12


def mmap(page: int, pages: int) -> Op:
    return Op("mmap", 0, (page, pages, RW, FIXED, 0, 0))


@pytest.mark.parametrize(
    ("occupied", "beside", "detached"),
    [(False, False, False), (True, False, True), (False, True, True)],
    ids=["nothing_changed", "destination_gone", "in_a_collision"],
)
def test_refusal_to_relocate(occupied: bool, beside: bool, detached: bool) -> None:
    """What MUST refuses the reference leaves out, if that changed nothing; else it cannot be compared any further."""
    refused = Op("mremap", 0, (0, 2, 2, MUST, 8))
    ops = [mmap(0, 2), *([mmap(8, 2)] if occupied else []), Op("write", 0, (0, 0)), Op("fork", 0, (1,))]
    steps = [Step((op,)) for op in ops]
    steps.append(Step((refused, Op("read", 1, (0,)))) if beside else Step((refused,)))
    steps += [Step((op,)) for op in (Op("read", 0, (0,)), Op("read", 0, (8,)), mmap(8, 2), Op("read", 0, (9,)))]
    verdict = Judge(KernelImage(RelocateAnonSeries), KernelImage(Mainline)).run(Workload("small8", tuple(steps)))
    assert verdict.outcomes[len(ops)][0].ret == -EFAULT
    assert verdict.findings == ()
    assert bool(verdict.notes) == detached


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "in_a_collision"])
@pytest.mark.parametrize("lost", [0, 1])
def test_refusal_that_loses_pages(lost: int, beside: bool) -> None:
    """A refused move may take the destination away, but no page of the source: that is found, whichever it is."""

    class Loses(RelocateAnonSeries):
        name = "loses"

    image = KernelImage(Loses)
    refusing = image.mremap.copy_vma_and_data

    def copy_vma_and_data(vrm: Any) -> object:
        result = refusing(vrm)
        image.munmap.do_munmap(vrm.mm, vrm.addr + lost * PAGE_SIZE, PAGE_SIZE)
        return result

    image.mremap.copy_vma_and_data = copy_vma_and_data
    refused = Op("mremap", 0, (0, 2, 2, MUST, 8))
    steps = [Step((op,)) for op in (mmap(0, 2), Op("write", 0, (0, 0)), Op("fork", 0, (1,)))]
    steps.append(Step((refused, Op("read", 1, (0,)))) if beside else Step((refused,)))
    found = Judge(image, KernelImage(Mainline)).run(Workload("small8", tuple(steps))).findings
    assert [f.oracle for f in found] == ["specification"]  # beside a read too


def never_collapses(*args: object) -> tuple[int, bool]:
    return -EAGAIN, False


class NeverCollapses(Mainline):
    """MADV_COLLAPSE always meets somebody who uses a page."""

    name = "never-collapses"
    replaces: ClassVar[dict[str, Callable[..., object]]] = {"khugepaged.madvise_collapse": never_collapses}


def test_a_collapse_may_fail_on_one_of_the_two() -> None:
    """Contents are the same either way. Sharing is not compared from then on: the copies share nothing."""
    workload = Workload(
        "small4",
        tuple(
            Step((op,))
            for op in (
                Op("mmap", 0, (0, 4, 3, 0x12, 0, 0)),
                Op("write", 0, (0, 0)),
                Op("fork", 0, (1,)),
                Op("madvise", 0, (0, 4, MADV_COLLAPSE)),
                Op("munmap", 0, (1, 3)),
                Op("migrate", 0, (0,)),  # splits the huge page
                Op("read", 0, (0,)),
            )
        ),
    )
    verdict = Judge(KernelImage(Mainline), KernelImage(NeverCollapses)).run(workload)
    assert verdict.findings == ()
    assert verdict.outcomes[3][0].ret == 0
    assert verdict.outcomes[5][0].ret == 1
    assert not any(folio.order for folio in verdict.machine.phys.live.values())


@pytest.mark.parametrize("turned", [False, True])
def test_a_huge_page_behind_the_end_of_a_file_on_one_of_the_two(turned: bool) -> None:
    """An access there says which of the two has it, and nothing can be compared any more."""
    ops = (
        Op("mmap", 0, (0, 3, 3, 0x11, 0, 0)),
        Op("mremap", 0, (0, 3, 4, 0, 0)),
        Op("write", 0, (0, 0)),
        Op("madvise", 0, (0, 4, MADV_COLLAPSE)),
        Op("write", 0, (3, 0)),
        Op("read", 0, (3,)),
    )
    images = [KernelImage(Mainline), KernelImage(NeverCollapses)]
    if turned:
        images.reverse()
    verdict = Judge(*images).run(Workload("small4", tuple(Step((op,)) for op in ops)))
    assert verdict.findings == ()
    assert verdict.outcomes[4][0].ret == (SIGBUS if turned else 0)
    assert "behind the end" in verdict.notes[0]


def never_moves(*args: object) -> int:
    return -EBUSY


class NeverMoves(Mainline):
    """UFFDIO_MOVE always meets somebody who uses a page."""

    name = "never-moves"
    replaces: ClassVar[dict[str, Callable[..., object]]] = {"userfaultfd_move_pages.move_pages": never_moves}


@pytest.mark.parametrize("beside", [False, True])
def test_a_page_that_one_of_the_two_cannot_move(beside: bool) -> None:
    """Whether a page can be moved hangs on who uses it, and whether it is large: the reference is left out then."""
    move = Op("uffd_move", 0, (8, 0, 1, 0))
    steps = [Step((op,)) for op in (mmap(0, 1), Op("write", 0, (0, 0)), mmap(8, 1), Op("uffd_register", 0, (8, 1, 1)))]
    steps += [Step((move, Op("read", 0, (0,)))) if beside else Step((move,)), Step((Op("read", 0, (8,)),))]
    verdict = Judge(KernelImage(Mainline), KernelImage(NeverMoves)).run(Workload("small8", tuple(steps)))
    assert verdict.findings == ()
    assert any("uffd_move gave 1, on the reference -EBUSY" in note for note in verdict.notes)


def never_reclaims(*args: object) -> int:
    return 0


def test_a_userfaultfd_that_one_order_leaves_open() -> None:
    """A call beside the one that closes it opens another, or used the old one: the reference is left out."""
    steps = """world small8
        mmap addr=88 len=4 prot=rw flags=private|fixed
        uffd_register addr=88 len=4 mode=missing
        together
          uffd_move dst=88 src=78 len=4 mode=holes
          uffd_close
          uffd_poison addr=88 len=2
          schedule 0 until uffd.locked, 2 until end, 1 until end
        end
        uffd_close
    """
    verdict = Judge(KernelImage(Mainline), KernelImage(Mainline)).run(from_text(steps))
    assert verdict.findings == ()
    assert any("hangs on their order" in note for note in verdict.notes)


class NeverReclaims(Mainline):
    """Pages stay mapped."""

    name = "never-reclaims"
    replaces: ClassVar[dict[str, Callable[..., object]]] = {"vmscan.reclaim_folio": never_reclaims}


def test_an_access_that_one_of_the_two_tells_of() -> None:
    """Reclaim may unmap a page or not, and then there is a minor fault or none: the reference is left out."""
    shared = Op("mmap", 0, (0, 1, 3, MAP_SHARED | MAP_FIXED, 0, 0))
    ops = (shared, Op("write", 0, (0, 0)), Op("uffd_register", 0, (0, 1, 4)), Op("reclaim", 0, (0,)))
    steps = [Step((op,)) for op in (*ops, Op("read", 0, (0,)))]
    verdict = Judge(KernelImage(Mainline), KernelImage(NeverReclaims)).run(Workload("small8", tuple(steps)))
    assert verdict.findings == ()
    assert any("a userfaultfd is told of read on one of the two" in note for note in verdict.notes)


def test_a_copy_that_failed_somewhere() -> None:
    """How far it came without the failure is not asked of the reference."""
    copy = Op("uffd_copy", 0, (8, 0, 4, 0), 3)
    steps = [Step((op,)) for op in (mmap(0, 4), mmap(8, 4), Op("uffd_register", 0, (8, 4, 1)), copy)]
    verdict = Judge(KernelImage(Mainline), KernelImage(Mainline)).run(Workload("small8", tuple(steps)))
    assert verdict.findings == ()
    assert verdict.outcomes[-1][0].injected
    assert verdict.notes


def test_a_userfaultfd_that_a_failed_call_has_opened() -> None:
    """What comes before the failure stays done: the reference, which did not do it, is left out."""
    steps = [Step((op,)) for op in (mmap(0, 2), Op("uffd_register", 0, (0, 1, 2), 2), Op("userfaultfd", 0, (0,)))]
    verdict = Judge(KernelImage(Mainline), KernelImage(Mainline)).run(Workload("small8", tuple(steps)))
    assert verdict.findings == ()
    assert verdict.outcomes[1][0].injected
    assert verdict.notes


def test_a_heap_that_could_not_grow() -> None:
    """The old break is no error, and all the same nothing was done; the reference goes on beside."""
    grow = Op("brk", 0, (100,), 2)
    steps = [Step((op,)) for op in (Op("uffd_register", 0, (0, 1, 1)), grow, mmap(0, 2))]
    verdict = Judge(KernelImage(Mainline), KernelImage(Mainline)).run(Workload("small8", tuple(steps)))
    assert verdict.findings == ()
    assert verdict.outcomes[1][0].injected
    assert not verdict.notes
