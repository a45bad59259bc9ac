"""Cutting recordings into workloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.designs.mainline import Mainline
from emulator.image import KernelImage
from emulator.workload import Workload
from fuzz.record.compress import DISTANCE_MAX, FIRST_PAGE, Compression
from fuzz.record.importer import import_file
from fuzz.record.seeds import seeds
from fuzz.workload import wire
from fuzz.workload.repair import is_valid
from fuzz.workload.text import to_text
from oracle.judge import Judge
from tests.fuzz.record.perf_text import FIRST, Script, exits, forked, map_page, started

RECORDINGS = Path(__file__).parents[3] / "corpus" / "recordings"
KNOWN_OF_LINUX = {"accounting/committed:too many, mremap"}  # wrong accounts that Linux itself keeps


def lines(workload: Workload) -> list[str]:
    """The workload's text without the line of the world, single spaces."""
    return [" ".join(line.split()) for line in to_text(workload).splitlines()[1:] if line.strip()]


def test_neighbours_stay_neighbours() -> None:
    """Ranges that touch go on touching, gaps stay gaps, long distances shrink."""
    places = Compression([(0x10000, 0x12000), (0x12000, 0x13000), (0x900000, 0x901000)])
    assert [places.page(a) for a in (0x10000, 0x12000, 0x13000, 0x900000, 0x901000)] == [
        FIRST_PAGE,
        FIRST_PAGE + 2,
        FIRST_PAGE + 3,
        FIRST_PAGE + 3 + DISTANCE_MAX,
        FIRST_PAGE + 4 + DISTANCE_MAX,
    ]
    assert places.pages == FIRST_PAGE + 5 + DISTANCE_MAX


def test_an_address_inside_a_shortened_range_stays_inside() -> None:
    """A fault in the middle of a large mapping must not land behind it."""
    places = Compression([(0x100000, 0x900000)])
    assert places.page(0x100000) < places.page(0x800000) < places.page(0x900000)


def test_nothing_to_compress() -> None:
    """A window without ranges needs no arena."""
    assert Compression([]).pages == 0


def test_a_window_becomes_a_workload() -> None:
    """mmap, a write, a split by mprotect, a move: the same ranges meet in the arena."""
    script = map_page(started(), FIRST - 0x3000, 3).fault(FIRST - 0x3000)
    script.enter(10, FIRST - 0x2000, 0x1000, 1).mapping(FIRST - 0x2000, 0x1000, "r--p")
    script.leave(10, 0).call(25, FIRST - 0x3000, 0x1000, 0x1000, 3, FIRST - 0x9000, result=FIRST - 0x9000)
    (workload,) = seeds(script.call(11, FIRST - 0x1000, 0x1000, result=0).recording())
    assert lines(workload)[-5:] == [
        "mmap addr=14 len=3 prot=rw flags=private|fixed",
        "write addr=14 at=1",
        "mprotect addr=15 len=1 prot=r",
        "mremap addr=14 old_len=1 new_len=1 flags=maymove|fixed new_addr=8",
        "munmap addr=16 len=1",
    ]


def test_what_stood_there_before_is_built_first() -> None:
    """A window begins in the middle of a program's life: its mappings come as ops, written to if faulted."""
    script = started()
    for number in range(1, 13):
        map_page(script, FIRST - number * 0x2000, 2)
    script.fault(FIRST - 0x2000).fault(FIRST - 0x18000)
    for number in range(3):
        script.call(11, FIRST - 0x2000 + number * 0x800, 0x1000 if number else 0x800, result=0 if number == 0 else -22)
    script.call(11, FIRST - 0x17000, 0x1000, result=0).call(11, FIRST - 0x15000, 0x1000, result=0)
    found = seeds(script.recording())
    assert len(found) == 2
    text = lines(found[1])
    assert text[0].startswith("mmap addr=")
    assert any(line.startswith("write ") for line in text)
    assert sum(line.startswith("munmap ") for line in text) >= 3


def test_children_get_labels() -> None:
    """A fork and what the child does are part of the parent's window."""
    script = forked(map_page(started(), FIRST - 0x1000).fault(FIRST - 0x1000))
    map_page(script, FIRST - 0x2000, pid=200)
    exits(script, 200).call(11, FIRST - 0x1000, 0x1000, result=0)
    (workload,) = seeds(script.recording())
    assert lines(workload)[-4:] == [
        "fork child=1",
        "p1: mmap addr=8 len=1 prot=rw flags=private|fixed",
        "p1: exit",
        "munmap addr=9 len=1",
    ]


def test_brk_becomes_anonymous_memory() -> None:
    """The arena has no heap: growing maps, shrinking unmaps."""
    heap = 0x5600_0000_0000
    script = started().call(12, 0, result=heap).enter(12, heap + 0x3000).mapping(heap, 0x3000)
    script.leave(12, heap + 0x3000).call(12, heap + 0x1000, result=heap + 0x1000)
    (workload,) = seeds(script.call(10, heap, 0x1000, 3, result=0).recording())
    assert lines(workload) == [
        "mmap addr=8 len=3 prot=rw flags=private|fixed",
        "munmap addr=9 len=2",
        "mprotect addr=8 len=1 prot=rw",
    ]


def test_few_calls_are_no_seed() -> None:
    """Two calls teach a campaign nothing."""
    assert seeds(map_page(Script(), FIRST - 0x1000).recording()) == []


@pytest.mark.parametrize(
    ("name", "at_least"), [("kselftest-merge.perf.txt.xz", 20), ("threads.rec", 40), ("stress-1.rec", 10)]
)
def test_seeds_of_real_programs(name: str, at_least: int) -> None:
    """Valid, distinct, the same every time, and clean on mainline: a campaign can begin with them."""
    recording = import_file(RECORDINGS / name)
    found = seeds(recording)
    assert len(found) >= at_least
    assert all(is_valid(workload) for workload in found)
    encoded = [wire.encode(workload) for workload in found]
    assert len(set(encoded)) == len(encoded)
    assert [wire.encode(workload) for workload in seeds(recording)] == encoded
    judge = Judge(KernelImage(Mainline))
    broken = {found.signature for workload in found for found in judge.run(workload).findings}
    assert broken - KNOWN_OF_LINUX == set()
