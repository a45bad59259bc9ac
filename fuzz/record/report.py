"""What a replay found out, and how a terminal shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fuzz.record.events import Header

SHOWN_MAX: Final = 20  # differences that are shown; all are counted


Kind = Literal["result", "layout", "kernel", "leak"]
"""What a difference is about: a result, how memory is cut into VMAs, a complaint of the kernel, what is left over."""


class Difference(NamedTuple):
    """A result or layout on which the machine and the recorded kernel disagree."""

    at: int  # position in the recording
    pid: int
    tid: int
    what: str  # the call, fault or layout
    recorded: str
    machine: str
    kind: Kind = "result"

    def __str__(self) -> str:
        thread = f"{self.pid}" if self.pid == self.tid else f"{self.pid}/{self.tid}"
        return f"event {self.at}, {thread}: {self.what}: kernel {self.recorded}, machine {self.machine}"


@dataclass(slots=True)
class ReplayReport:
    """``modelled`` and ``unmodelled`` count, by kind, the events that concern an address space.

    They are the memory system calls, page faults, forks, execs and exits. ``apart`` counts calls and signals that
    have nothing to do with it. ``notes`` count what is worth knowing and no disagreement.
    """

    header: Header
    modelled: Counter[str] = field(default_factory=Counter)
    unmodelled: Counter[str] = field(default_factory=Counter)
    apart: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    results_compared: int = 0
    mappings_compared: int = 0
    layouts_compared: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Events that concern an address space."""
        return self.modelled.total() + self.unmodelled.total()

    @property
    def share(self) -> float:
        """Part of them that was modelled, 0 to 1."""
        return self.modelled.total() / self.total if self.total else 1.0

    @property
    def equal(self) -> bool:
        """Every modelled result and layout was the recorded one."""
        return not self.differences


def verdict(report: ReplayReport) -> str:
    """One line for logs."""
    state = "every modelled result equal" if report.equal else f"{len(report.differences)} differences"
    return (
        f"{report.modelled.total()} of {report.total} memory events modelled ({report.share:.1%}), {state}; "
        f"compared: {report.results_compared} results, {report.mappings_compared} mappings, "
        f"{report.layouts_compared} layouts"
    )


def render(report: ReplayReport) -> RenderableType:
    """The whole report for a rich console."""
    parts: list[RenderableType] = [Text(verdict(report), style="bold green" if report.equal else "bold red")]
    lost = report.header.lost
    if lost:
        parts.append(Text(f"The source lost {lost} events: differences may come from that.", style="yellow"))
    if report.differences:
        parts.append(_differences(report))
    if report.unmodelled:
        parts.append(_counts("not modelled", report.unmodelled))
    if report.notes:
        parts.append(_counts("notes", report.notes))
    if report.header.skipped:
        parts.append(_counts("lines of the source that are no event", Counter(report.header.skipped)))
    parts.append(Text(f"{report.apart.total()} other events have nothing to do with memory", style="dim"))
    return Group(*parts)


def _differences(report: ReplayReport) -> Table:
    table = Table(title="differences", title_justify="left", box=None, pad_edge=False)
    for name in ("event", "thread", "what", "kernel", "machine"):
        table.add_column(name, overflow="fold")
    for difference in report.differences[:SHOWN_MAX]:
        table.add_row(
            str(difference.at),
            str(difference.tid),
            escape(difference.what),
            escape(difference.recorded),
            escape(difference.machine),
        )
    hidden = len(report.differences) - SHOWN_MAX
    if hidden > 0:
        table.caption = f"and {hidden} more"
    return table


def _counts(title: str, counts: Counter[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(str(count), escape(name))
    return table
