"""The RFC's measurement (docs/measurement.md), on the one recording of it that is kept."""

from __future__ import annotations

from pathlib import Path

from fuzz.compare.run import Input, run

ALLOCATOR = Path(__file__).parents[3] / "corpus" / "recordings" / "allocator.rec"


def test_share_of_failing_merges_that_shared_pages_forbid() -> None:
    """1 to 3 %, says the RFC; and the table of the document is what the command gives."""
    figures = run(
        ["mainline", "relocate-anon-series"], [Input(ALLOCATOR, None)], "6.18", lambda done: None
    ).figures
    mainline, series = figures.values()
    assert mainline.steps == 19_633
    assert mainline.missed == {"file": 8, "flags": 163, "page offset": 245, "anon_vma": 6, "shared pages": 4}
    assert mainline.shared_share is not None
    assert 0.01 < mainline.shared_share < 0.03
    assert mainline.shared_for_sure == 3
    assert (mainline.results, mainline.layouts) == (0, 0)
    assert series.curable == 7
    assert (mainline.merges_done, series.merges_done) == (900, 1153)
