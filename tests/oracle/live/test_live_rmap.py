"""The reverse map on the running kernel, after each step of a workload, as in the machine."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from emulator.designs.mainline import Mainline
from emulator.geometry import PAGE_SIZE
from oracle.live.rmap_probe import missing
from oracle.live.surroundings import ARENA_START
from oracle.live.system import LiveSystem, Look
from oracle.live.view import Depth
from tests.oracle.live.running_kernel import machine_steps, on_linux, sees_frames, workload

pytestmark = [on_linux, sees_frames, pytest.mark.skipif(bool(missing()), reason="; ".join(missing()))]


@pytest.fixture(scope="module")
def live() -> Iterator[LiveSystem]:
    with LiveSystem(Depth.RMAP) as opened:
        yield opened


FAMILY = workload(
    "mmap addr=4 len=8 prot=rw flags=private|fixed",
    "write addr=4 at=0",
    "write addr=9 at=0",
    "mprotect addr=6 len=2 prot=r",
    "fork child=1",
    "p1: write addr=4 at=1",
    "mremap addr=8 old_len=2 new_len=2 flags=maymove|fixed new_addr=64",
    "p1: fork child=2",
    "p2: write addr=9 at=0",
    "p1: exit",
    "p2: munmap addr=4 len=3",
)
MERGE = workload(
    "mmap addr=8 len=4 prot=rw flags=private|fixed",
    "write addr=8 at=0",
    "mprotect addr=8 len=4 prot=r",
    "mmap addr=4 len=4 prot=rw flags=private|fixed",
    "mprotect addr=8 len=4 prot=rw",
)


def test_anon_vmas_of_a_family_are_the_machines(live: LiveSystem) -> None:
    """Splits, forks of forks, a move and ends: topology, counters and what folios say."""
    run = live.run(FAMILY)
    assert run.fate == ""
    assert list(run.steps) == machine_steps(FAMILY, Depth.RMAP)
    before_exit = run.steps[8].processes
    assert {vma.root for process in before_exit.values() for vma in process.anon_vmas} == {0}
    assert len({vma.anon_vma for process in before_exit.values() for vma in process.anon_vmas}) > 3
    assert all(process.folios for process in before_exit.values())


SMALL_PAGES = workload(
    "mmap addr=0 len=512 prot=rw flags=private|fixed",
    "write addr=5 at=0",
    "write addr=6 at=0",
)


class Disturbed(LiveSystem):
    """While the processes stand still, the kernel makes a huge page of theirs, as khugepaged does by itself."""

    looks = 0

    def _look(self, pids: dict[int, int], frames: list[int]) -> Look:
        self.looks += 1
        if self.looks == len(SMALL_PAGES.steps):
            collapse(pids[0])
        return super()._look(pids, frames)


def collapse(pid: int) -> None:
    """MADV_COLLAPSE of the arena's first 512 pages."""
    process = os.pidfd_open(pid)
    region = (ctypes.c_size_t * 2)(ARENA_START, 512 * PAGE_SIZE)
    process_madvise, advice = 440, 25
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.syscall(process_madvise, process, region, ctypes.c_size_t(1), advice, 0)
    error = ctypes.get_errno()
    os.close(process)
    if done < 0:
        pytest.skip(f"no huge page could be made: {os.strerror(error)}")


def test_pages_that_the_kernel_moves_meanwhile() -> None:
    """Pages, frames and what folios say are of one moment, though the kernel changed them between two reads."""
    with Disturbed(Depth.RMAP) as disturbed:
        shown = disturbed.run(SMALL_PAGES).steps[-1].processes[0]
    assert disturbed.looks == len(SMALL_PAGES.steps) + 1
    assert len(shown.pages) == 512
    assert [folio.page for folio in shown.folios] == list(range(512))
    assert {folio.mapping for folio in shown.folios} == {0}


def forgets(vmg: object, dst: object, src: object) -> int:
    return 0


class Forgetful(Mainline):
    name = "forgetful"
    summary = "merging forgets to take over the neighbour's anon_vma"
    replaces = {"vma.dup_anon_vma": forgets}


def test_a_machine_that_forgets_an_anon_vma_looks_different(live: LiveSystem) -> None:
    """Layout, contents and frames are right; only the reverse map is not."""
    real, broken = live.run(MERGE).steps, machine_steps(MERGE, Depth.RMAP, Forgetful)
    assert list(real) == machine_steps(MERGE, Depth.RMAP)
    assert list(real[:4]) == broken[:4]
    mine, theirs = broken[4].processes[0], real[4].processes[0]
    assert (mine.vmas, mine.pages) == (theirs.vmas, theirs.pages)
    assert mine.anon_vmas != theirs.anon_vmas
