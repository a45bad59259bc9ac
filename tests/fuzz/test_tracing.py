"""Counts of tracepoints: collected, added up, shown, on the command line and in a campaign."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from emulator.machine import Machine
from fuzz import cli, tracing_view
from fuzz.designs import find, load_image
from fuzz.tracing import Tracing, added, lines, short
from fuzz.workload.text import from_text

CORPUS = Path(__file__).parents[2] / "corpus"
UNDO = CORPUS / "regressions" / "relocate-anon" / "undo-beside-gup-fast.msgpack"
TRUE = CORPUS / "recordings" / "true.rec"

THREE = """\
world small8
mmap addr=0 len=2 prot=rw flags=private|fixed
mmap addr=2 len=2 prot=rw flags=private|fixed
mmap addr=4 len=2 prot=rw flags=private|fixed
mremap addr=0 old_len=6 new_len=6 flags=maymove|fixed new_addr=20
"""
MERGED = (
    "vm_av_merge: merged=1 predecessor=MERGE_OK successor=MERGE_FAILED predecessor_with_successor=MERGE_FAILED "
    "diff_count=0 failed_count=0 neighbours=1"
)
ALONE = (
    "vm_av_merge: merged=0 predecessor=MERGE_FAILED successor=MERGE_FAILED predecessor_with_successor=MERGE_FAILED "
    "diff_count=0 failed_count=0 neighbours=0"
)
MOVED = "vm_pgoff_merge: faulted=0 updated=1 merged=0"


def counts() -> dict[str, int]:
    """Of a run of THREE on mainline."""
    workload = from_text(THREE)
    image = load_image(find("mainline"))
    tracing = Tracing(image)
    machine = Machine(image, workload.geometry)
    for step in workload.steps:
        machine.run_step(step)
    tracing.close()
    return tracing.counts()


def test_counts() -> None:
    """By outcome, equal ones by name."""
    assert list(counts().items()) == [(ALONE, 2), (MERGED, 2), (MOVED, 1)]


def test_added() -> None:
    """What several workers heard is a sum, the most frequent first again."""
    assert list(added({"b": 2, "a": 1}, {"a": 3}).items()) == [("a", 4), ("b", 2)]


def test_shown() -> None:
    """As a table with a column for each field, as lines, and in short."""
    out = io.StringIO()
    Console(file=out, width=100).print(tracing_view.render(counts(), most=1))
    text = out.getvalue()
    assert "vm_av_merge: 4" in text
    assert "and 1 other outcomes" in text
    assert "vm_pgoff_merge: 1" in text
    assert "faulted" in text
    assert lines(counts())[0] == f"         2  {ALONE}"
    assert short(counts()) == "vm_av_merge 4 (merged 2), vm_pgoff_merge 1 (merged 0)"
    assert short({}) == "nothing yet"


@pytest.mark.parametrize("terminal", [True, False])
def test_view(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets a table that renews itself, anything else lines now and then, both only when it is time."""
    monkeypatch.setattr(tracing_view, "LOOK_EVERY", 1)
    monkeypatch.setattr(tracing_view, "LINE_EVERY", 0.0)
    monkeypatch.setattr(tracing_view, "SHOW_EVERY", 0.0)
    screen, plain = io.StringIO(), io.StringIO()
    view = tracing_view.View(Console(file=screen, force_terminal=terminal, width=100), plain)
    image = load_image(find("mainline"))
    tracing = Tracing(image)
    machine = Machine(image)
    machine.run_step(from_text(THREE).steps[0])
    view.update(tracing, "event 7")
    view.close()
    tracing.close()
    if terminal:
        assert "event 7" in screen.getvalue()
        assert plain.getvalue() == ""
    else:
        assert plain.getvalue() == "event 7: vm_av_merge 1 (merged 0)\n"
        assert screen.getvalue() == ""


def test_replay(capsys: pytest.CaptureFixture[str]) -> None:
    """``vmafuzz replay --trace`` counts over all its files, workloads and recordings; without it nobody listens."""
    words = ["replay", str(UNDO), str(TRUE), "--design", "relocate-anon"]
    assert cli.run([*words, "--trace"]) == 1
    shown = capsys.readouterr().out
    assert "tracepoints:" in shown
    assert "vm_pgoff_merge: faulted=1" in shown
    assert cli.run(words) == 1
    assert "vm_av_merge" not in capsys.readouterr().out
