"""Showing the counts of tracepoints while they grow."""

from __future__ import annotations

import time
from typing import Final, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fuzz.tracing import Counts, Tracing, short

LOOK_EVERY: Final = 256  # events of a recording between looks at the clock
SHOW_EVERY: Final = 0.25  # seconds, in a terminal
LINE_EVERY: Final = 10.0  # seconds, elsewhere
FOLLOWS: Final = ("diff_count", "failed_count")  # fields that follow from others, and take room
SHOWN_MAX: Final = 12  # outcomes of one tracepoint on a live screen


def render(counts: Counts, most: int | None = None) -> RenderableType:
    """A table for each tracepoint, a column for each of its fields. ``most``: outcomes shown of each."""
    if not counts:
        return Text("no tracepoint was passed", style="dim")
    kinds: dict[str, list[tuple[dict[str, str], int]]] = {}
    for text, count in counts.items():
        name, _, fields = text.partition(": ")
        values = dict(field.partition("=")[::2] for field in fields.split())
        kinds.setdefault(name, []).append((values, count))
    return Group(*(_table(name, rows, most) for name, rows in sorted(kinds.items())))


def _table(name: str, rows: list[tuple[dict[str, str], int]], most: int | None) -> Table:
    total = sum(count for _, count in rows)
    table = Table(
        title=f"{name}: {total:,}", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.add_column("count", justify="right")
    fields = [field for field in rows[0][0] if field not in FOLLOWS]
    for field in fields:
        table.add_column(field.replace("predecessor_with_successor", "both"), overflow="fold")
    for values, count in rows[:most]:
        table.add_row(f"{count:,}", *(values.get(field, "") for field in fields))
    if most is not None and len(rows) > most:
        table.caption = f"and {len(rows) - most} other outcomes"
    return table


class View:
    """Shows counts while something runs: on a terminal a screen that renews itself, elsewhere a line now and then."""

    def __init__(self, console: Console, plain: TextIO) -> None:
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._plain = plain
        self._next = 0.0
        self._looks = 0
        if self._live is not None:
            self._live.start()
        else:
            self._next = time.monotonic() + LINE_EVERY

    def update(self, tracing: Tracing, done: str) -> None:
        """Call it as often as you like; ``done`` says how far things are."""
        self._looks += 1
        if self._looks % LOOK_EVERY:
            return
        now = time.monotonic()
        if now < self._next:
            return
        counts = tracing.counts()
        if self._live is not None:
            self._next = now + SHOW_EVERY
            self._live.update(Group(Text(done), render(counts, SHOWN_MAX)), refresh=True)
        else:
            self._next = now + LINE_EVERY
            self._plain.write(f"{done}: {short(counts)}\n")
            self._plain.flush()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
