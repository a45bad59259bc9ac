"""What was counted of one design, and how the figures of several inputs add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from fuzz.compare.causes import CURABLE, Cause

# Bytes of one object in the caches of Linux 6.18.44, x86-64: the third column of /proc/slabinfo there.
SIZEOF_VMA: Final = 192  # struct vm_area_struct
SIZEOF_ANON_VMA: Final = 104
SIZEOF_AVC: Final = 64  # struct anon_vma_chain


@dataclass(slots=True)
class Figures:
    """Everything is summed over the inputs, but for peaks: each is that of the input where it was largest."""

    steps: int = 0  # steps of workloads and memory events of recordings that were run
    vmas_at_end: int = 0  # of each process when it ended or the input did
    vmas_peak: int = 0  # of all processes that lived at the same time
    vmas_peak_of_one: int = 0  # of one process
    merges_tried: int = 0  # ranges with at least one neighbour that touched them
    merges_done: int = 0
    missed: Counter[str] = field(default_factory=Counter)  # Cause to neighbours that a call left apart
    shared_for_sure: int = 0  # of those with shared pages: a page of each is mapped by another process
    folios: int = 0  # for each step: that were locked, or that a store mapped or unmapped
    entries: int = 0  # stores to page tables of any level
    locks: Counter[str] = field(default_factory=Counter)
    allocations: Counter[str] = field(default_factory=Counter)  # that were tried, by the fault point
    metadata_peak: int = 0  # bytes of VMAs, anon_vmas and AVCs
    findings: dict[str, list[str]] = field(default_factory=dict)  # oracle to distinct signatures
    stopped: list[str] = field(default_factory=list)  # inputs that could not be run to the end, and why
    results: int = (
        0  # that the recorded kernel gave otherwise: a program can tell, and would have gone on otherwise
    )
    layouts: int = 0  # that were otherwise under the recorded kernel: what a design is for

    def add(self, other: Figures) -> None:
        """Take the figures of another input in."""
        for name in ("vmas_peak", "vmas_peak_of_one", "metadata_peak"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for name in (
            *("steps", "vmas_at_end", "merges_tried", "merges_done", "shared_for_sure", "folios", "entries"),
            *("results", "layouts"),
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("missed", "locks", "allocations"):
            getattr(self, name).update(getattr(other, name))
        for oracle, signatures in other.findings.items():
            for signature in signatures:
                self.find(oracle, signature)
        self.stopped += other.stopped

    def find(self, oracle: str, signature: str) -> None:
        """One more finding, if it is another one."""
        known = self.findings.setdefault(oracle, [])
        if signature not in known:
            known.append(signature)

    @property
    def curable(self) -> int:
        """Missed merges that nothing but page offset or anon_vma stood in the way of."""
        return sum(self.missed[cause.value] for cause in CURABLE)

    @property
    def shared_share(self) -> float | None:
        """Part of them, 0 to 1, that shared pages forbid all the same; None: there are none."""
        return self.missed[Cause.SHARED_PAGES.value] / self.curable if self.curable else None

    def for_json(self) -> dict[str, Any]:
        """``--json``; every cause is there, also with 0."""
        return {
            "steps": self.steps,
            "vmas": {
                "at_end": self.vmas_at_end,
                "peak": self.vmas_peak,
                "peak_of_one_process": self.vmas_peak_of_one,
            },
            "merges": {
                "tried": self.merges_tried,
                "done": self.merges_done,
                "missed": {cause.value: self.missed[cause.value] for cause in Cause},
                "shared_for_sure": self.shared_for_sure,
                "shared_share": self.shared_share,
            },
            "folios_touched": self.folios,
            "entries_stored": self.entries,
            "locks": dict(sorted(self.locks.items())),
            "allocations": dict(sorted(self.allocations.items())),
            "metadata_bytes_peak": self.metadata_peak,
            "findings": dict(sorted(self.findings.items())),
            "other_than_recorded": {"results": self.results, "layouts": self.layouts},
            "stopped": self.stopped,
        }
