"""What a person sees while fuzzing, and the summary after it.

In a terminal a live screen in the manner of AFL++, elsewhere one line every ten seconds. All of it goes to stderr, so
stdout stays free for the summary.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fuzz.campaign.status import FindingStatus, Status
from fuzz.tracing import lines as traced_lines
from fuzz.tracing import short
from fuzz.tracing_view import render as render_traced

LINE_EVERY: Final = 10.0  # seconds, where there is no terminal
SLOW: Final = 100.0  # execs a second and worker: below, something is wrong
TRACED_MAX: Final = 6  # outcomes of one tracepoint
STALE: Final = 600.0  # seconds without a new feature: it may be time to stop


def duration(seconds: float | None) -> str:
    """``3 s``, ``1 min 12 s``, ``2 h 5 min``, ``3 d 4 h``; a dash for never."""
    if seconds is None:
        return "–"
    whole = int(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {small_unit}"
    return f"{whole} s"


def ago(seconds: float | None) -> str:
    """``12 s ago``."""
    return "none yet" if seconds is None else f"{duration(seconds)} ago"


class PlainScreen:
    """One line every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = 0.0

    def update(self, status: Status) -> None:
        """Print when it is time."""
        now = time.monotonic()
        if now < self._next or not status.execs:
            return
        self._next = now + LINE_EVERY
        self._stream.write(
            f"[{duration(status.seconds)}] {status.state}: {status.execs} execs, "
            f"{status.execs_per_second_now:.0f}/s, corpus {status.corpus}, features {status.features}, "
            f"stability {status.stability:g} %, findings {len(status.findings)}"
            f"{', ' + short(status.traced) if status.traced else ''}\n"
        )
        self._stream.flush()

    def close(self) -> None:
        """Nothing to put away."""


class LiveScreen:
    """The whole picture, renewed once a second."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def update(self, status: Status) -> None:
        """Draw."""
        self._live.update(render(status), refresh=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()


def render(status: Status) -> Panel:
    """The live screen."""
    grid = Table.grid(padding=(0, 2), expand=True)
    for _ in range(2):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(no_wrap=True, ratio=1)
    speed = f"{status.execs_per_second_now:,.0f}/s now, {status.execs_per_second:,.0f}/s mean"
    slow = status.state == "fuzzing" and 0 < status.execs_per_second_now < SLOW * status.workers
    stale = (status.last_feature or 0) > STALE
    rows: list[tuple[str, Text, str, Text]] = [
        ("run time", Text(duration(status.seconds)), "execs", Text(f"{status.execs:,}")),
        (
            "last new feature",
            Text(ago(status.last_feature), style="yellow" if stale else ""),
            "speed",
            Text(speed, style="red" if slow else ""),
        ),
        ("last finding", Text(ago(status.last_finding)), "steps/s", Text(f"{status.steps_per_second:,.0f}")),
        (
            "workers",
            Text(f"{status.workers_alive} of {status.workers}, {status.restarts} restarts"),
            "corpus",
            Text(f"{status.corpus:,}"),
        ),
        (
            "stability",
            Text(f"{status.stability:g} %", style="" if status.stability == 100 else "bold red"),
            "features",
            Text(f"{status.features:,}"),
        ),
    ]
    for row in rows:
        grid.add_row(*row)
    parts: list[RenderableType] = [grid, Text()]
    parts.append(_findings_table(status.findings) if status.findings else Text("no finding yet", style="dim"))
    if status.traced:
        parts += [Text(), render_traced(status.traced, TRACED_MAX)]
    title = f"vmafuzz · {status.target.design} · {status.target.profile} · {status.state}"
    return Panel(Group(*parts), title=title, subtitle="Ctrl-C ends", padding=(0, 1))


def _findings_table(findings: list[FindingStatus]) -> Table:
    table = Table(expand=True, box=None, header_style="bold", padding=(0, 1))
    table.add_column("finding", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("rule", overflow="ellipsis", no_wrap=True, max_width=28)
    table.add_column("steps", justify="right")
    table.add_column("count", justify="right")
    table.add_column("replays", justify="right")
    for found in findings:
        steps = str(found.steps) if found.minimized else f"{found.steps}…"
        replays = Text(found.replays or "–", style="" if found.replays_always else "bold red")
        table.add_row(Text(found.signature), Text(found.rule), steps, f"{found.count:,}", replays)
    return table


def summary(status: Status) -> str:
    """The last word: the figures in two lines, then each rule that was broken, ending with the line that replays it.

    Other causes of the same rule follow their smallest in short: most are one flaw seen from several sides.
    """
    lines = [
        f"{status.target.design} ({status.target.profile}): {status.execs:,} workloads in {duration(status.seconds)} "
        f"({status.execs_per_second:,.0f}/s, {status.steps_per_second:,.0f} steps/s) on {status.workers} workers,",
        f"corpus {status.corpus:,}, features {status.features:,}, stability {status.stability:g} %, "
        f"{_count(len(status.findings))}.",
    ]
    rules: dict[tuple[bool, str, str], list[FindingStatus]] = {}
    for found in status.findings:
        rules.setdefault((found.on_reference, found.oracle, found.rule), []).append(found)
    # what is the design's own comes first
    for number, key in enumerate(sorted(rules, key=lambda key: key[0]), 1):
        smallest, *others = sorted(rules[key], key=lambda found: (found.steps, -found.count))
        lines += ["", f"{number}. {smallest.signature}  ({_about(smallest, status)})"]
        lines += [f"   {smallest.detail}", f"   {smallest.replay}"]
        if others:
            lines.append(f"   also, in {Path(smallest.workload).parents[1]}:")
        for found in others:
            lines.append(f"     {found.signature.partition(':')[2] or 'no cause'}  ({_about(found, status)})")
    if status.traced:
        lines += ["", "Tracepoints:", *traced_lines(status.traced)]
    return "\n".join(lines)


def _about(found: FindingStatus, status: Status) -> str:
    """``3 steps, seen 27 times, replays 20/20, also on mainline``."""
    text = f"{found.steps} steps{'' if found.minimized else ', not minimised yet'}, seen {found.count:,} times"
    if found.replays:
        text += f", replays {found.replays}"
    if not found.replays_always:
        text += " — was the code changed meanwhile?"
    return f"{text}, also on {status.target.reference}" if found.on_reference else text


def _count(findings: int) -> str:
    return {0: "no finding", 1: "1 finding"}.get(findings, f"{findings} findings")
