"""Running inputs under designs: every figure of a workload and of a recording, flags, findings, and what stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.errors import UsageError
from fuzz.compare.figures import Figures
from fuzz.compare.run import Comparison, Input, run
from fuzz.workload import wire
from fuzz.workload.text import from_text

CORPUS = Path(__file__).parents[3] / "corpus"
STRESS = CORPUS / "recordings" / "stress-1.rec"
UNDO = CORPUS / "regressions" / "relocate-anon" / "undo-beside-gup-fast.msgpack"

MOVE = """\
world small8
mmap addr=0 len=2 prot=rw flags=private|fixed
write addr=0 at=0
mmap addr=10 len=2 prot=rw flags=private|fixed
write addr=10 at=0
mremap addr=10 old_len=2 new_len=2 flags=maymove|fixed|relocate new_addr=2
"""


def compare(names: str, *inputs: Input) -> Comparison:
    """As the command does, without telling anybody."""
    return run(names.split(), inputs, "6.18", lambda done: None)


def workload(text: str) -> Input:
    return Input(Path("made"), from_text(text))


def test_workload() -> None:
    """The flag goes to the design that knows it, the others move without; each gets the same result."""
    figures = compare("mainline relocate-anon-series", workload(MOVE)).figures
    mainline, series = figures["mainline"], figures["relocate-anon-series"]
    assert list(figures) == ["mainline", "relocate-anon-series"]
    assert (mainline.missed["page offset"], series.missed["page offset"]) == (1, 0)
    assert (mainline.vmas_at_end, series.vmas_at_end) == (2, 1)
    assert mainline.merges_done == 0
    assert series.merges_done == 1
    assert not mainline.findings
    assert not mainline.stopped


def test_findings() -> None:
    """What the oracles say of a design stands beside what it costs."""
    found = wire.decode(UNDO.read_bytes())
    figures = compare("mainline relocate-anon", Input(UNDO, found)).figures
    assert not figures["mainline"].findings
    assert sorted(figures["relocate-anon"].findings) == ["kernel", "undo"]


def test_recording() -> None:
    """Every event is run; what is counted on mainline is what the recorded kernel did."""
    figures = compare("mainline relocate-anon-series eight-case", Input(STRESS, None)).figures
    mainline = figures["mainline"]
    assert mainline.steps == 949
    assert mainline.layouts == 0
    assert not mainline.findings
    assert mainline.vmas_at_end > mainline.vmas_peak_of_one > 10
    assert mainline.merges_tried > mainline.merges_done > 0
    assert mainline.results == 0
    series = figures["relocate-anon-series"]
    assert series.curable < mainline.curable
    assert series.layouts > 0
    assert series.results > 0  # the program calls on parts of VMAs at random: it sees where they end
    assert all(
        mainline.locks[name] for name in ("mmap_lock", "anon_vma lock", "page table lock", "folio lock")
    )


def test_same_again() -> None:
    """No clock, no order of processes: the figures are a function of the inputs."""
    inputs = (workload(MOVE), Input(STRESS, None))
    assert compare("mainline no-anon-vma-sharing", *inputs) == compare(
        "mainline no-anon-vma-sharing", *inputs
    )


BREAKS = '''\
"""Breaks at its first mremap."""

from emulator.designs.base import Design
from emulator.errors import KernelBug


def stop(mm, addr, old_len, new_len, flags, new_addr):
    {how}


class Breaks(Design):
    name = "breaks"
    summary = "does not survive a move"
    replaces = {{"mremap.sys_mremap": stop}}
'''


@pytest.mark.parametrize(
    ("how", "why"),
    [('raise KernelBug("gone", "it is gone")', "gone: it is gone"), ("return [][1]", "IndexError")],
)
def test_design_that_stops(tmp_path: Path, how: str, why: str) -> None:
    """A BUG or an exception of the design's own code ends its run: what it did until then stays, and why is said."""
    design = tmp_path / "breaks.py"
    design.write_text(BREAKS.format(how=how))
    figures = compare(f"mainline {design}", workload(MOVE), Input(STRESS, None)).figures
    of_workload, of_recording = figures[str(design)].stopped
    assert of_workload.startswith("made: step 4: ")
    assert why in of_workload
    assert of_recording.startswith(f"{STRESS}: after ")
    assert why in of_recording
    assert figures[str(design)].findings["kernel"]
    assert not figures["mainline"].stopped


def test_wrong_result_of_a_recording(tmp_path: Path) -> None:
    """What programs can tell is counted, and is no finding: the oracles that know a promise judge workloads."""
    design = tmp_path / "planted.py"
    design.write_text(BREAKS.format(how="return -12"))
    figures = compare(f"{design}", Input(STRESS, None)).figures[str(design)]
    assert figures.results > 10
    assert not figures.findings


def test_no_such_design() -> None:
    """Said before anything runs."""
    with pytest.raises(UsageError, match="unknown design 'nothing'"):
        compare("mainline nothing", workload(MOVE))


def test_json() -> None:
    """Every cause is there, also with 0."""
    shown = Figures().for_json()
    assert shown["merges"]["missed"] == {
        "file": 0,
        "flags": 0,
        "shared pages": 0,
        "page offset": 0,
        "anon_vma": 0,
        "nothing": 0,
    }
    assert shown["merges"]["shared_share"] is None
