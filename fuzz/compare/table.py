"""A comparison in a terminal: a column for each design, the first of them being what the others are held to."""

from __future__ import annotations

from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from fuzz.compare.rows import SECTIONS, Row, Section, findings_section, shown
from fuzz.compare.run import Comparison

LABELS: Final = 40  # columns of the longest label
COLUMN: Final = 12  # ... of a design's figures


def render(comparison: Comparison) -> RenderableType:
    """The whole table, what was found, and what could not be run to its end."""
    parts: list[RenderableType] = [_Tables(comparison)]
    for name, one in comparison.figures.items():
        found = [
            f"{oracle}: {signature}"
            for oracle, all_of in sorted(one.findings.items())
            for signature in all_of
        ]
        if found or one.stopped:
            parts += [Text(), Text(name, style="bold"), *(Text(f"  {line}") for line in found)]
        parts += [Text(f"  stopped: {line}", style="red") for line in one.stopped]
    return Group(*parts)


class _Tables:
    """As many designs beside each other as the terminal is wide, the first of them in each table."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        profile, inputs, figures = self.comparison
        first, *others = figures
        beside = max((options.max_width - LABELS) // COLUMN - 1, 1)
        for start in range(0, max(len(others), 1), beside):
            if start:
                yield Text()
            names = [first, *others[start : start + beside]]
            yield _table(
                Comparison(profile, inputs, {name: figures[name] for name in names}), self.comparison
            )


def _table(part: Comparison, whole: Comparison) -> Table:
    """One table; the lines for oracles are those of the ``whole`` comparison."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("", no_wrap=True)
    for name in part.figures:
        table.add_column(_header(name), justify="right", no_wrap=True)
    for section in (*SECTIONS, findings_section(list(whole.figures.values()))):
        if section.rows:
            _add(table, section, part)
    return table


def _header(name: str) -> str:
    """Names are long and figures short: a line for each word."""
    return "\n".join(name.split("-"))


def _add(table: Table, section: Section, comparison: Comparison) -> None:
    table.add_row(Text(section.title, style="bold"))
    for row in section.rows:
        table.add_row(f"  {row.label}", *_cells(row, comparison))


def _cells(row: Row, comparison: Comparison) -> list[Text]:
    """Bold where a design differs from the first."""
    texts = [shown(row, figures) for figures in comparison.figures.values()]
    styles = ["", *("dim" if text == texts[0] else "bold" for text in texts[1:])]
    return [Text(text, style=style) for text, style in zip(texts, styles, strict=True)]
