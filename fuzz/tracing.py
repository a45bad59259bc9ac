"""Counting what the tracepoints of a kernel image tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from emulator.tracepoints import TraceEvent, Tracer, show

if TYPE_CHECKING:
    from emulator.image import KernelImage
    from emulator.machine import Machine

Counts = Mapping[str, int]
"""``vm_av_merge: merged=1 …`` to how often."""


class Tracing:
    """Listens to an image until ``close``, on every machine that runs it."""

    def __init__(self, image: KernelImage) -> None:
        self._heard: Counter[TraceEvent] = Counter()
        self._tracer = Tracer(image, self._hear)

    def _hear(self, machine: Machine, event: TraceEvent) -> None:
        self._heard[event] += 1

    def close(self) -> None:
        """Listen no longer; the counts stay."""
        self._tracer.close()

    def counts(self) -> dict[str, int]:
        """The most frequent first; those of equal count by name."""
        named = [(f"{event.name}: {show(event)}", count) for event, count in self._heard.items()]
        return dict(sorted(named, key=lambda item: (-item[1], item[0])))


def added(some: Counts, more: Counts) -> dict[str, int]:
    """The sum of both, in the order of ``Tracing.counts``."""
    together = Counter(some) + Counter(more)
    return dict(sorted(together.items(), key=lambda item: (-item[1], item[0])))


def lines(counts: Counts) -> list[str]:
    """One outcome a line, as ``trace-cmd hist`` would put it: count, tracepoint, fields."""
    return [f"{count:>10,}  {text}" for text, count in counts.items()]


def short(counts: Counts) -> str:
    """``vm_av_merge 1,234 (merged 56), vm_pgoff_merge 7 (merged 3)``."""
    totals: Counter[str] = Counter()
    merged: Counter[str] = Counter()
    for text, count in counts.items():
        name = text.partition(":")[0]
        totals[name] += count
        merged[name] += count if "merged=1" in text else 0
    return (
        ", ".join(f"{name} {totals[name]:,} (merged {merged[name]:,})" for name in sorted(totals))
        or "nothing yet"
    )
