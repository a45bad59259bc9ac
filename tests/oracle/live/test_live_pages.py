"""Pages on the running kernel: what each is, which processes share frames, as in the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.designs.mainline import Mainline
from emulator.uapi import MADV_GUARD_INSTALL, MADV_GUARD_REMOVE
from emulator.workload import Op, Step, Workload
from oracle.live.system import LiveSystem
from oracle.live.view import Depth, StepView
from tests.oracle.live.running_kernel import machine_steps, on_linux, sees_frames, workload

pytestmark = [on_linux, sees_frames]



@pytest.fixture(scope="module")
def live() -> Iterator[LiveSystem]:
    with LiveSystem(Depth.PAGES) as opened:
        yield opened


PAGES = {
    "read faults map the page of zeros, write faults replace it": (
        "mmap addr=4 len=8 prot=rw flags=private|fixed",
        "read addr=5",
        "read addr=6",
        "write addr=5 at=0",
        "madvise addr=4 len=8 advice=dontneed",
    ),
    "fork shares until somebody writes": (
        "mmap addr=4 len=4 prot=rw flags=private|fixed",
        "write addr=4 at=0",
        "write addr=6 at=0",
        "fork child=1",
        "p1: fork child=2",
        "p1: write addr=4 at=1",
        "p1: exit",
        "write addr=4 at=2",
        "p2: write addr=4 at=1",
        "exit",
    ),
    "a move takes the frames along": (
        "mmap addr=4 len=4 prot=rw flags=private|fixed",
        "write addr=4 at=0",
        "write addr=5 at=0",
        "mremap addr=5 old_len=1 new_len=1 flags=maymove|fixed new_addr=600",
        "mremap addr=4 old_len=1 new_len=1 flags=maymove|fixed|dontunmap new_addr=900",
        "mprotect addr=600 len=1 prot=none",
        "mprotect addr=900 len=1 prot=rw",
    ),
    "a private file page is copied at the first write": (
        "mmap addr=4 len=4 prot=rw flags=private|fixed file=1",
        "read addr=4",
        "write addr=5 at=1",
        "fork child=1",
        "p1: read addr=5",
        "p1: munmap addr=5 len=1",
    ),
    "a huge page is split where the layout splits it": (
        "mmap addr=512 len=1024 prot=rw flags=private|fixed",
        "madvise addr=512 len=1024 advice=hugepage",
        "write addr=600 at=0",
        "fork child=1",
        "p1: write addr=601 at=0",
        "p1: munmap addr=512 len=1",
        "mprotect addr=512 len=100 prot=r",
        "munmap addr=1000 len=512",
        "write addr=900 at=1",
    ),
}


def shown(run: tuple[StepView, ...]) -> list[tuple[int, int, str, int, int]]:
    """(process, page, state, frame, mapcount) after the last step."""
    return [
        (label, page.page, page.state, page.frame, page.mapcount)
        for label, process in run[-1].processes.items()
        for page in process.pages
    ]


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_the_machines(live: LiveSystem, name: str) -> None:
    """Every page of every process after every step of these workloads."""
    steps = workload(*PAGES[name])
    run = live.run(steps)
    assert run.fate == ""
    assert list(run.steps) == machine_steps(steps, Depth.PAGES)


def test_what_is_shown_is_what_happened(live: LiveSystem) -> None:
    """Not only equal on both sides: one shared frame, one of one's own, and the page of zeros."""
    run = live.run(
        workload(
            "mmap addr=4 len=4 prot=rw flags=private|fixed",
            "write addr=4 at=0",
            "write addr=5 at=0",
            "read addr=6",
            "fork child=1",
            "p1: write addr=5 at=1",
        )
    )
    zero = ("zero", -1, -1)
    assert shown(run.steps) == [
        (0, 4, "present", 0, 2),
        (0, 5, "present", 1, 1),
        (0, 6, *zero),
        (1, 4, "present", 0, 2),
        (1, 5, "present", 2, 1),
        # the child has written to its VMA, so fork copied its tables: the page of zeros too
        (1, 6, *zero),
    ]


def test_guard_regions_are_seen(live: LiveSystem) -> None:
    """They replace what was there, survive fork, and go."""
    arena = Op("mmap", 0, (4, 4, 3, 0x12, 0, 0))
    ops = (
        arena,
        Op("write", 0, (5, 0)),
        Op("madvise", 0, (4, 3, MADV_GUARD_INSTALL)),
        Op("write", 0, (7, 0)),
        Op("read", 0, (5,)),
        Op("fork", 0, (1,)),
        Op("madvise", 1, (4, 4, MADV_GUARD_REMOVE)),
        Op("read", 1, (5,)),
    )
    steps = Workload("x86-64", tuple(Step((op,)) for op in ops))
    run = live.run(steps)
    assert list(run.steps) == machine_steps(steps, Depth.PAGES)
    guards = [page for page in run.steps[-1].processes[0].pages if page.state == "guard"]
    assert [page.page for page in guards] == [4, 5, 6]


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def _setting(name: str) -> str:
    try:
        return (HUGE_PAGES / name).read_text()
    except OSError:
        return ""


@pytest.mark.skipif(
    "[never]" in _setting("enabled") or _setting("use_zero_page") != "1\n",
    reason="no huge page of zeros here",
)
def test_the_huge_page_of_zeros_is_no_file(live: LiveSystem) -> None:
    """pagemap says so of it; a page of a file would be left out."""
    run = live.run(
        workload(
            "mmap addr=512 len=1024 prot=rw flags=private|fixed",
            "madvise addr=512 len=1024 advice=hugepage",
            "read addr=600",
        )
    )
    pages = run.steps[-1].processes[0].pages
    assert [page.page for page in pages] == list(range(512, 1024))
    assert {page.state for page in pages} == {"zero"}


class CopiesAtFork(Mainline):
    name = "copies-at-fork"
    summary = "fork copies every page at once"
    replaces = {"rmap_counts.folio_try_dup_anon_rmap_pte": lambda *_: True}


def test_a_machine_that_does_not_share_looks_different(live: LiveSystem) -> None:
    """Contents and layout are right, but a frame that Linux shares is not shared."""
    steps = workload(*PAGES["fork shares until somebody writes"][:4])
    real, broken = live.run(steps).steps, machine_steps(steps, Depth.PAGES, CopiesAtFork)
    assert list(real[:3]) == broken[:3]
    assert real[3].processes[1].vmas == broken[3].processes[1].vmas
    assert real[3].processes[1].pages != broken[3].processes[1].pages
