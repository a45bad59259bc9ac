"""Workloads on the running kernel: views as the machine's, and every accident is caught, named and cleared away."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.designs.mainline import Mainline
from emulator.errors import InternalError, UsageError
from emulator.workload import Op, Step, Workload
from oracle.live import system
from oracle.live.calls import CALLS, PROCESS_OPS
from oracle.live.expressible import expressible
from oracle.live.system import LiveSystem
from oracle.live.view import Depth
from tests.oracle.live.running_kernel import machine_steps, on_linux, workload

pytestmark = on_linux


@pytest.fixture(scope="module")
def live() -> Iterator[LiveSystem]:
    with LiveSystem() as opened:
        yield opened


LAYOUTS = {
    "a protection splits, the old one merges again": (
        "mmap addr=4 len=8 prot=rw flags=private|fixed",
        "mprotect addr=6 len=2 prot=r",
        "write addr=6 at=0",
        "write addr=5 at=1",
        "mprotect addr=6 len=2 prot=rw",
        "write addr=6 at=3",
        "read addr=6",
    ),
    "a move of written pages keeps contents and stays apart": (
        "mmap addr=4 len=8 prot=rw flags=private|fixed",
        "write addr=5 at=0",
        "mremap addr=5 old_len=2 new_len=2 flags=maymove|fixed new_addr=64",
        "read addr=64",
        "read addr=5",
        "mmap addr=66 len=2 prot=rw flags=private|fixed",
    ),
    "a moved unwritten mapping merges where it comes to lie": (
        "mmap addr=4 len=4 prot=rw flags=private|fixed",
        "mmap addr=20 len=4 prot=rw flags=private|fixed",
        "mremap addr=20 old_len=4 new_len=4 flags=maymove|fixed new_addr=8",
        "mremap addr=4 old_len=8 new_len=300 flags=maymove",
    ),
    "processes share until one writes": (
        "mmap addr=4 len=4 prot=rw flags=private|fixed",
        "write addr=4 at=0",
        "fork child=1",
        "p1: write addr=4 at=1",
        "p1: fork child=2",
        "p1: exit",
        "p1: read addr=4",
        "p2: read addr=4",
        "fork child=2",
        "fork child=1",
        "p1: read addr=4",
        "exit",
        "read addr=4",
    ),
    "files, private and shared": (
        "mmap addr=4 len=4 prot=rw flags=private|fixed file=1 off=14",
        "mmap addr=20 len=4 prot=rwx flags=shared|fixed file=1 off=13",
        "write addr=21 at=2",
        "read addr=4",
        "write addr=4 at=1",
        "read addr=21",
        "read addr=6",
        "exec addr=22",
        "exec addr=23",
        "mmap addr=0 len=4 prot=r flags=private file=2 off=16",
        "mmap addr=0 len=600 prot=r flags=private file=2 off=1",
    ),
    "the kernel chooses places, aligned for huge pages where it likes": (
        "mmap addr=0 len=3 prot=rw flags=private",
        "mmap addr=0 len=512 prot=rw flags=private",
        "mmap addr=0 len=1025 prot=r flags=private",
        "mmap addr=7 len=2 prot=r flags=private",
        "mmap addr=8 len=2 prot=r flags=private",
        "mmap addr=8 len=2 prot=r flags=private|noreplace",
        "madvise addr=7 len=2 advice=hugepage",
        "munmap addr=0 len=0",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_results_and_counters_are_the_machines(live: LiveSystem, name: str) -> None:
    """Every step of these workloads looks the same on the running kernel and in the machine."""
    steps = workload(*LAYOUTS[name])
    run = live.run(steps)
    assert run.fate == ""
    assert list(run.steps) == machine_steps(steps, Depth.MAPS)


def test_every_workload_begins_anew(live: LiveSystem) -> None:
    """Nothing that one did to files or memory is there for the next."""
    writes = workload(
        "mmap addr=0 len=1 prot=rw flags=shared|fixed file=1", "write addr=0 at=0", "read addr=0"
    )
    first, second = live.run(writes), live.run(writes)
    assert first == second
    reads = workload("mmap addr=0 len=1 prot=r flags=shared|fixed file=1", "read addr=0")
    assert list(live.run(reads).steps) == machine_steps(reads, Depth.MAPS)


class NeverMerges(Mainline):
    name = "never-merges"
    summary = "a new mapping never merges"
    replaces = {"vma.vma_merge_new_range": lambda vmg: None}


def test_a_machine_that_merges_wrongly_looks_different(live: LiveSystem) -> None:
    """The comparison sees a broken rule, at the step that breaks it."""
    steps = workload(
        "mmap addr=4 len=4 prot=rw flags=private|fixed", "mmap addr=8 len=4 prot=rw flags=private|fixed"
    )
    shown, broken = live.run(steps).steps, machine_steps(steps, Depth.MAPS, NeverMerges)
    assert shown[0] == broken[0]
    assert shown[1].outcomes == broken[1].outcomes
    assert shown[1].processes != broken[1].processes


# ---- what cannot run


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("gup_fast addr=5 flags=pin pin=0", "step 0: no system call does what gup_fast does"),
        ("munmap addr=4 len=1 (fail_nth 2)", "step 0: no allocation of munmap can be made to fail"),
        ("munmap addr=262143 len=2", "step 0: munmap reaches beyond the arena"),
        ("mremap addr=0 old_len=1 new_len=1 flags=maymove|fixed new_addr=262143", ""),
        ("mremap addr=0 old_len=1 new_len=2 flags=maymove|fixed new_addr=262143", "beyond the arena"),
        ("mremap addr=262143 old_len=1 new_len=2 flags=0", "beyond the arena"),
        ("together\n munmap addr=4 len=1\n munmap addr=4 len=1\nend", "step 0 is a collision"),
        ("fork child=1", ""),
    ],
)
def test_what_a_live_kernel_cannot_do_is_said(line: str, reason: str) -> None:
    found = expressible(workload(line))
    assert reason in found if reason else found == ""


def test_a_small_world_is_refused(live: LiveSystem) -> None:
    small = Workload("small8", (Step((Op("exit", 0, ()),)),))
    with pytest.raises(UsageError, match="small8"):
        live.run(small)


def test_processes_are_no_calls() -> None:
    """fork and exit are the server's: as calls they would leave it behind."""
    assert not CALLS.keys() & set(PROCESS_OPS)


def test_pages_stay_where_they_are_without_swap() -> None:
    """What the running kernel lacks is said, but only where it shows."""
    steps = workload("mmap addr=4 len=1 prot=rw flags=private|fixed", "madvise addr=4 len=1 advice=pageout")
    assert expressible(steps, Depth.MAPS, swap=False) == ""
    assert expressible(steps, Depth.PAGES, swap=True) == ""
    assert "step 1: without swap" in expressible(steps, Depth.PAGES, swap=False)


# ---- accidents


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveSystem]:
    """A system whose reads go wrong; at the end none of its processes may be left."""
    mark = f"VMAFUZZ_TEST={uuid.uuid4()}"
    monkeypatch.setenv(*mark.split("="))
    monkeypatch.setattr(system, "SERVER", "tests.oracle.live.faulty_server")
    with LiveSystem(timeout=2.0) as opened:
        yield opened
    for _ in range(100):
        if not (left := _marked(mark.encode())):
            return
        time.sleep(0.02)
    pytest.fail(f"left behind: {left}")


def _marked(mark: bytes) -> list[int]:
    """Processes other than this one that have the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


BEGIN = ("mmap addr=0 len=8 prot=rw flags=private|fixed", "fork child=1", "fork child=2")


@pytest.mark.parametrize(
    ("page", "fate"),
    [
        (1, "step 3 (read of process 1): does not answer"),
        (2, "step 3 (read of process 1): died by SIGKILL"),
        (3, "step 3 (read of process 1): died by SIGSEGV"),
    ],
)
def test_a_process_that_hangs_or_dies_is_named(faulty: LiveSystem, page: int, fate: str) -> None:
    """What was seen before is kept, and the next workload runs."""
    steps = workload(*BEGIN, f"p1: read addr={page}", "munmap addr=0 len=8")
    run = faulty.run(steps)
    assert run.fate == fate
    assert list(run.steps) == machine_steps(steps, Depth.MAPS)[:3]
    assert faulty.run(workload(*BEGIN)).fate == ""


def test_a_killed_server_takes_its_processes_along(faulty: LiveSystem) -> None:
    """They sleep for ten minutes when the server dies; a new server is there for the next workload."""
    assert faulty.run(workload(*BEGIN, "p2: read addr=5")).fate == "the server ended with status -9"
    assert faulty.run(workload(*BEGIN)).fate == ""


def test_a_mistake_of_ours_is_no_fate(faulty: LiveSystem) -> None:
    with pytest.raises(InternalError, match="process 1: ValueError: out of order"):
        faulty.run(workload(*BEGIN, "p1: read addr=4"))


def test_no_memory_outside_an_arena_is_no_kernel_to_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot prepare says so in one line."""
    monkeypatch.setattr(system, "_folder", lambda: "/nowhere")
    with pytest.raises(UsageError, match="no live kernel to compare with"):
        LiveSystem()


def test_a_workload_stays_on_one_cpu() -> None:
    """Its processes are forks of the server, which has settled: pages do not wait in batches of another CPU."""
    with LiveSystem() as live:
        assert live._server is not None
        live.run(workload("mmap addr=4 len=4 prot=rw flags=private|fixed", "write addr=4 at=0"))
        assert len(os.sched_getaffinity(live._server.pid)) == 1


def test_a_server_that_has_outgrown_its_heap_is_replaced() -> None:
    """A workload of a hundred thousand pages, all of them seen after each step: the next one finds an empty arena."""
    many = [f"madvise addr=0 len={pages} advice=populate_write" for pages in (60_000, 60_001, 60_002, 60_003)]
    with LiveSystem(Depth.PAGES) as live:
        live.run(workload("mmap addr=0 len=100000 prot=rw flags=private|fixed", *many, "munmap addr=0 len=100000"))
        run = live.run(workload("mmap addr=4 len=4 prot=rw flags=private|fixed"))
        assert run.fate == ""
        assert len(run.steps) == 1
