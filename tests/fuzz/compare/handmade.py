"""A comparison made by hand, so that a snapshot changes only with what shows it."""

from __future__ import annotations

from collections import Counter

from fuzz.compare.figures import Figures
from fuzz.compare.run import Comparison


def comparison() -> Comparison:
    """Mainline, a design that gains something, and one that stops."""
    mainline = Figures(
        steps=1000,
        vmas_at_end=120,
        vmas_peak=100,
        vmas_peak_of_one=60,
        merges_tried=500,
        merges_done=300,
        missed=Counter({"flags": 90, "file": 8, "page offset": 70, "anon_vma": 20, "shared pages": 10}),
        folios=4000,
        entries=5000,
        locks=Counter({"mmap_lock": 1000, "page table lock": 2000, "anon_vma lock": 300, "folio lock": 50}),
        allocations=Counter(vm_area_alloc=130, folio_alloc=1200),
        metadata_peak=30_000,
    )
    gains = Figures(
        steps=1000,
        vmas_at_end=100,
        vmas_peak=80,
        vmas_peak_of_one=50,
        merges_tried=520,
        merges_done=390,
        missed=Counter({"flags": 90, "file": 8, "shared pages": 10}),
        folios=4000,
        entries=5000,
        locks=Counter({"mmap_lock": 1000, "page table lock": 2100, "anon_vma lock": 500, "folio lock": 900}),
        allocations=Counter(vm_area_alloc=140, folio_alloc=1200),
        metadata_peak=24_000,
        findings={
            "kernel": ["kernel/sleep-in-atomic:folio lock"],
            "rmap": ["rmap/lost", "rmap/<odd> & long"],
        },
    )
    stops = Figures(steps=10, merges_tried=2, stopped=["made/it.rec: after 10 of 1,000 events: BUG"])
    return Comparison("6.18", ("made/it.rec",), {"mainline": mainline, "gains-much": gains, "stops": stops})
