"""The lines of a comparison, once for the table in a terminal and once for the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from fuzz.compare.causes import Cause
from fuzz.compare.figures import Figures


class Row(NamedTuple):
    """One line: what it counts, and a design's figure; None: there is none."""

    label: str
    value: Callable[[Figures], float | None]
    percent: bool = False  # the figure is a part, 0 to 1


class Section(NamedTuple):
    """Lines that belong together."""

    title: str
    rows: tuple[Row, ...]


def _missed(cause: Cause) -> Row:
    return Row(cause.value, lambda figures: figures.missed[cause.value])


def _locks(name: str) -> Row:
    return Row(name, lambda figures: figures.locks[name])


SECTIONS: Final = (
    Section(
        "VMAs",
        (
            Row("at the end of each process", lambda figures: figures.vmas_at_end),
            Row("at the peak", lambda figures: figures.vmas_peak),
            Row("at the peak of one process", lambda figures: figures.vmas_peak_of_one),
        ),
    ),
    Section(
        "merges",
        (
            Row("tried", lambda figures: figures.merges_tried),
            Row("done", lambda figures: figures.merges_done),
        ),
    ),
    Section("merges missed because of", tuple(_missed(cause) for cause in Cause)),
    Section(
        "of page offset, anon_vma, shared pages",
        (Row("forbidden by shared pages", lambda figures: figures.shared_share, percent=True),),
    ),
    Section(
        "work",
        (
            Row("folios touched", lambda figures: figures.folios),
            Row("page-table entries stored", lambda figures: figures.entries),
            Row("locks taken", lambda figures: figures.locks.total()),
            *(_locks(name) for name in ("mmap_lock", "anon_vma lock", "folio lock", "page table lock")),
            Row("allocations", lambda figures: figures.allocations.total()),
        ),
    ),
    Section(
        "bytes of VMAs, anon_vmas and AVCs",
        (Row("at the peak", lambda figures: figures.metadata_peak),),
    ),
    Section(
        "other than recorded",
        (
            Row("results", lambda figures: figures.results),
            Row("layouts", lambda figures: figures.layouts),
        ),
    ),
)


def findings_section(all_figures: Sequence[Figures]) -> Section:
    """A line for each oracle that has found something in any of the designs."""
    oracles = sorted({oracle for figures in all_figures for oracle in figures.findings})
    return Section("findings of the oracle", tuple(_findings(oracle) for oracle in oracles))


def _findings(oracle: str) -> Row:
    return Row(oracle, lambda figures: len(figures.findings.get(oracle, ())))


def shown(row: Row, figures: Figures) -> str:
    """The figure as text: ``1,234``, ``2.5 %``, or a dash."""
    value = row.value(figures)
    if value is None:
        return "–"
    return f"{value:.1%}".replace("%", " %") if row.percent else f"{value:,}"
