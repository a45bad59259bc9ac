"""What the reference gets of a workload, and what the two may differ in."""

from __future__ import annotations

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.mainline_fixed import MainlineFixed
from emulator.designs.relocate_anon import RelocateAnon
from emulator.image import KernelImage
from emulator.uapi import EINVAL, MREMAP_FIXED, MREMAP_MAYMOVE, MREMAP_RELOCATE_ANON
from emulator.workload import Op, Step, Workload
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
