"""A run as a trace: valid in the JSON trace event format, with tasks as tracks and steps as time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fuzz import cli
from fuzz.export.perfetto import STEP, export_recording, export_workload
from fuzz.record import storage
from fuzz.target import Target
from fuzz.workload import wire
from fuzz.workload.text import from_text

CORPUS = Path(__file__).parents[3] / "corpus"
UNDO = CORPUS / "regressions" / "relocate-anon" / "undo-beside-gup-fast.msgpack"
THREADS = CORPUS / "recordings" / "threads.rec"
TRUE = CORPUS / "recordings" / "true.rec"

Json = dict[str, Any]


def checked(text: str) -> list[Json]:
    """The events of a trace, which must be what the format demands of each kind; tracks are named and nest."""
    body = json.loads(text)
    events: list[Json] = body["traceEvents"]
    assert body["displayTimeUnit"] in ("ms", "ns")
    assert all(isinstance(value, str) for value in body["otherData"].values())
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    processes = {event["pid"] for event in events if event["name"] == "process_name"}
    for event in events:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert isinstance(event["args"]["name"], str)
            continue
        assert event["ph"] in ("X", "i", "C")
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
        elif event["ph"] == "i":
            assert event["s"] == "t"
        else:
            assert all(isinstance(value, int) for value in event["args"].values())
            continue
        assert event["pid"] in processes
        assert (event["pid"], event["tid"]) in named
    for track in named:
        assert_nested(event for event in events if event["ph"] == "X" and (event["pid"], event["tid"]) == track)
    return events


def assert_nested(slices: Iterable[Json]) -> None:
    """Slices of one track are one inside the other or one after the other: no viewer draws anything else."""
    ends: list[float] = []
    for one in sorted(slices, key=lambda event: (event["ts"], -event["dur"])):
        while ends and ends[-1] <= one["ts"] + 1e-6:
            ends.pop()
        end = one["ts"] + one["dur"]
        assert not ends or end <= ends[-1] + 1e-6
        ends.append(end)


def trace_of(text: str, design: str = "relocate-anon-series") -> list[Json]:
    image, _ = Target(design).images()
    return checked(export_workload(image, from_text(text), "6.18"))


def test_collision() -> None:
    """Two ops of a step are two tracks; points and tracepoints stand between in the order in which they came."""
    image, _ = Target("relocate-anon").images()
    events = checked(export_workload(image, wire.decode(UNDO.read_bytes()), "6.18"))
    last = [event for event in events if event["ph"] != "M" and event["ts"] >= 4 * STEP]
    slices = {event["name"]: event for event in last if event["ph"] == "X"}
    assert {name: event["tid"] for name, event in slices.items()} == {"gup_fast": 0, "mremap": 1}
    move, pin = slices["mremap"], slices["gup_fast"]
    assert move["ts"] < pin["ts"] < pin["ts"] + pin["dur"] < move["ts"] + move["dur"]
    at = {event["name"]: event["ts"] for event in last if event["ph"] == "i"}
    assert move["ts"] < at["relocate.folio_relocated"] < pin["ts"] < at["gup_fast.pte_read"] < pin["ts"] + pin["dur"]
    assert all(event["ts"] < 5 * STEP for event in last)


def test_step_is_time() -> None:
    """A slice begins in its step's millisecond, with the op and its result; VMAs are counted after each."""
    events = trace_of(
        "world small8\nmmap addr=0 len=2 prot=rw flags=private|fixed\nmmap addr=2 len=2 prot=r flags=private|fixed\n"
        "munmap addr=0 len=0\n"
    )
    slices = [event for event in events if event["ph"] == "X"]
    assert [(event["name"], event["ts"] // STEP) for event in slices] == [("mmap", 0), ("mmap", 1), ("munmap", 2)]
    assert slices[0]["args"]["op"].startswith("mmap")
    assert slices[2]["args"]["result"] == "-EINVAL"
    assert [event["args"]["VMAs"] for event in events if event["ph"] == "C"] == [1, 2, 2]
    merges = [event for event in events if event["name"] == "vm_av_merge"]
    assert [event["args"]["neighbours"] for event in merges] == [0, 1]


def test_kernel_that_stops() -> None:
    """A BUG ends the trace: its op has a slice to the end of the step, and an instant says what happened."""
    path = CORPUS / "regressions" / "matena-2022" / "shared-pages-in-a-merge.msgpack"
    image, _ = Target("matena-2022", profile="5.17").images()
    events = checked(export_workload(image, wire.decode(path.read_bytes()), "5.17"))
    bugs = [event for event in events if event["name"].startswith("BUG")]
    assert len(bugs) == 1
    last = max(event["ts"] + event.get("dur", 0) for event in events if event["ph"] == "X")
    assert last == bugs[0]["ts"]


@pytest.mark.parametrize("path", [THREADS, TRUE])
def test_recording(path: Path) -> None:
    """Every call that concerns memory and every fault is a slice of its thread, at its place in the recording."""
    image, _ = Target("mainline").images()
    recording = storage.load(path)
    events = checked(export_recording(image, recording, "6.18"))
    faults = [event for event in events if event["name"].startswith("page fault")]
    assert len(faults) == sum(type(event).__name__ == "Fault" for event in recording.events)
    tracks = {event["tid"] for event in events if event["name"] == "thread_name"}
    assert tracks <= {event.tid for event in recording.events}
    assert sum(event["name"] == "vm_av_merge" for event in events) > 5
    assert any(event["ph"] == "C" for event in events)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Findings stand in the trace of a workload, recordings are taken too, and the same run gives the same bytes."""
    words = ["export", str(UNDO), "--format", "perfetto", "--design", "relocate-anon"]
    assert cli.run(words) == 0
    once = capsys.readouterr().out
    assert cli.run([*words, "-o", str(tmp_path / "a.json")]) == 0
    assert (tmp_path / "a.json").read_text() == once
    assert any(event["name"].startswith("finding: undo/") for event in checked(once))
    assert cli.run(["export", str(TRUE), "--format", "perfetto", "-o", str(tmp_path / "b.json")]) == 0
    checked((tmp_path / "b.json").read_text())
    assert cli.run(["export", str(TRUE), "--format", "c"]) == 2
