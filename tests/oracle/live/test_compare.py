"""Every field of a view counts: whatever differs in one of them is said, with its own signature."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.uapi import EFAULT, ENOMEM
from emulator.workload import Op, Outcome, Step
from oracle.live.compare import compare, show
from oracle.live.view import (
    AnonView,
    Counters,
    FolioView,
    PageView,
    ProcessView,
    StepView,
    VmaView,
)

NONE: frozenset[str] = frozenset()
VMA = VmaView(3, 8, 3, False, 0, 0, frozenset(("ac",)))
PAGE = PageView(3, "present", True, 0, 1, frozenset(("anon",)))
ANON = AnonView(3, 3, 0, 0, 0, 1, 1, (0,))
FOLIO = FolioView(3, 0, 3)
PROCESS = ProcessView((VMA,), Counters(5, 0, 5, 0), (PAGE,), (ANON,), (FOLIO,))
STEP = Step((Op("mremap", 0, (3, 5, 5, 3, 20)),))


def step(process: ProcessView = PROCESS, ret: int = 20, data: Any = None) -> StepView:
    return StepView((Outcome(ret, data),), {0: process})


def test_equal() -> None:
    """Nothing to say."""
    assert compare(STEP, 4, step(), step()) is None


@pytest.mark.parametrize(
    ("live", "signature"),
    [
        (step(ret=-ENOMEM), "live/result:mremap, success against -ENOMEM"),
        (step(ret=21), "live/result:mremap, another place"),
        (step(data=((0, 5),)), "live/contents:mremap"),
        (StepView(step().outcomes, {0: PROCESS, 1: PROCESS}), "live/processes:mremap"),
        (step(PROCESS._replace(vmas=())), "live/layout:mremap, more VMAs in the machine"),
        (step(PROCESS._replace(vmas=(VMA, VMA))), "live/layout:mremap, fewer VMAs in the machine"),
        (step(PROCESS._replace(vmas=(VMA._replace(prot=1),))), "live/layout:mremap, prot"),
        (step(PROCESS._replace(vmas=(VMA._replace(pgoff=9),))), "live/layout:mremap, pgoff"),
        (step(PROCESS._replace(vmas=(VMA._replace(flags=NONE),))), "live/layout:mremap, flags ac"),
        (step(PROCESS._replace(counters=Counters(5, 1, 5, 0))), "live/counter:mremap, locked_vm"),
        (step(PROCESS._replace(pages=())), "live/page:mremap, only in the machine"),
        (step(PROCESS._replace(pages=(PAGE, PAGE._replace(page=4)))), "live/page:mremap, only on the kernel"),
        (step(PROCESS._replace(pages=(PAGE._replace(mapcount=2),))), "live/page:mremap, mapcount"),
        (step(PROCESS._replace(anon_vmas=(ANON._replace(num_children=2),))), "live/anon-vma:mremap, num_children"),
        (step(PROCESS._replace(anon_vmas=(ANON._replace(chain=(0, 1)),))), "live/anon-vma:mremap, chain"),
        (step(PROCESS._replace(folios=(FOLIO._replace(pgoff=7),))), "live/folio:mremap, pgoff"),
    ],
)
def test_each_field(live: StepView, signature: str) -> None:
    """One difference, one signature; the sentence names both sides."""
    found = compare(STEP, 4, step(), live)
    assert found is not None
    assert found.signature == signature
    assert found.step == 4
    assert found.oracle == "live"
    assert "machine" in found.detail


def test_the_result_comes_first() -> None:
    """A layout that differs because a call failed is a consequence."""
    found = compare(STEP, 0, step(), step(PROCESS._replace(vmas=()), ret=-EFAULT))
    assert found is not None
    assert found.rule == "result"


def test_show() -> None:
    """As in /proc/PID/maps, in arena pages."""
    assert show(VMA) == "[3-8 rw-p ac]"
    assert show(VmaView(0, 1, 5, True, 2, 7, NONE)) == "[0-1 r-xs file1+7]"
