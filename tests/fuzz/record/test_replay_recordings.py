"""Replaying recordings of real programs: the machine must agree in everything, and a wrong one must be caught."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.errors import KernelBug
from emulator.image import KernelImage
from fuzz.record.events import Layout, Recording
from fuzz.record.importer import import_file
from fuzz.record.replay import replay_recording
from fuzz.record.report import ReplayReport

RECORDINGS = Path(__file__).parents[3] / "corpus" / "recordings"


def told(report: ReplayReport) -> list[str]:
    return [str(difference) for difference in report.differences]


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("true.rec", 1.0),
        ("bash-ls-sort.rec", 1.0),
        ("gcc-hello.rec", 1.0),
        ("threads.rec", 1.0),
        ("allocator.rec", 1.0),
        ("stress-1.rec", 1.0),
        ("stress-2.rec", 1.0),
        ("stress-huge.rec", 1.0),
        ("kselftest-mremap_dontunmap.perf.txt.xz", 1.0),
        ("kselftest-merge.perf.txt.xz", 1.0),
        ("kselftest-guard-regions.perf.txt.xz", 0.999),
    ],
)
def test_real_programs_replay_without_a_difference(name: str, share: float) -> None:
    """What a running Linux did, the machine does: every result, mapping and layout, in exec, fork, vfork, threads."""
    recording = import_file(RECORDINGS / name)
    report = replay_recording(recording, KernelImage(Mainline))
    assert told(report) == []
    assert report.share >= share
    assert report.results_compared > 50
    assert report.mappings_compared > 20
    assert report.layouts_compared == len([one for one in recording.layouts if _comparable(recording, one)])


def _comparable(recording: Recording, layout: Layout) -> bool:
    """Layouts of threads that end before their process say what others may still change."""
    return layout.when == "exec" or layout == [one for one in recording.layouts if one.pid == layout.pid][-1]


def test_what_is_not_modelled_is_said() -> None:
    """The guard-region selftests use calls that the machine does not know: each is counted under its name."""
    recording = import_file(RECORDINGS / "kselftest-guard-regions.perf.txt.xz")
    report = replay_recording(recording, KernelImage(Mainline))
    assert dict(report.unmodelled) == {
        "process_madvise": 6,
        "userfaultfd": 2,
        "madvise MADV_COLLAPSE": 3,
    }


def never_merges(vmg: object) -> None:
    """A planted bug: new mappings stay alone."""


def wrong_guard_gap(area: Any) -> int:
    """A planted bug: no gap is kept below a stack."""
    start: int = area.vm_start
    return start


def keeps_source(vrm: Any) -> None:
    """A planted bug: a move leaves the old mapping behind."""


def crashes(mm: Any, start: int, length: int) -> int:
    raise KernelBug("planted", "munmap falls over")


class NeverMerges(Design):
    name = "never-merges"
    replaces: ClassVar = {"vma.vma_merge_new_range": never_merges}


class WrongGuardGap(Design):
    name = "wrong-guard-gap"
    replaces: ClassVar = {"mmap.vm_start_gap": wrong_guard_gap}


class KeepsSource(Design):
    name = "keeps-source"
    replaces: ClassVar = {"mremap.unmap_source_vma": keeps_source}


class Crashes(Design):
    name = "crashes"
    replaces: ClassVar = {"munmap.sys_munmap": crashes}


@pytest.mark.parametrize(
    ("design", "recording", "message"),
    [
        (NeverMerges, "gcc-hello.rec", "a mapping: kernel"),
        (KeepsSource, "stress-1.rec", "layout at the end: kernel"),
        (WrongGuardGap, "stress-2.rec", ": kernel 0x"),
        (Crashes, "true.rec", "machine planted: munmap falls over"),
    ],
)
def test_a_wrong_machine_is_caught(design: type[Design], recording: str, message: str) -> None:
    """Each planted bug makes real recordings differ; without that the tests above would mean nothing."""
    report = replay_recording(import_file(RECORDINGS / recording), KernelImage(design))
    assert any(message in line for line in told(report)), told(report)[:5]


def test_the_events_after_a_crash_count_as_not_modelled() -> None:
    """A replay that stops half-way must not claim a share of 100 %."""
    report = replay_recording(import_file(RECORDINGS / "true.rec"), KernelImage(Crashes))
    assert report.unmodelled["events after the machine's kernel stopped"] > 5
    assert report.share < 1


def test_the_image_is_left_as_it_was() -> None:
    """The replay listens by wrapping functions of the image; others use the same image afterwards."""
    image = KernelImage(Mainline)
    before = (image.mmap.mmap_region, image.mprotect.mprotect_fixup)
    replay_recording(import_file(RECORDINGS / "true.rec"), image)
    assert (image.mmap.mmap_region, image.mprotect.mprotect_fixup) == before
