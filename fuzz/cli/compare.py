"""``vmafuzz compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from emulator.errors import UsageError
from fuzz import files
from fuzz.cli.app import CLEAN, FINDINGS, ProfileOption, app
from fuzz.cli.replay import is_recording, load
from fuzz.target import DEFAULT_PROFILE


@app.command()
def compare(
    designs: Annotated[
        str, typer.Option(metavar="A,B,…", help="Designs; the first is what the others are held to.")
    ],
    workloads: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[WORKLOAD…]", help="Workloads, or recordings.", show_default=False),
    ] = None,
    recording: Annotated[
        list[Path] | None, typer.Option(help="A recording, or text to make one from; may be given several times.")
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    json: Annotated[Path | None, typer.Option(help="Write the figures there.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw them there.")] = None,
) -> int:
    """Run the same workloads and recordings under several designs: what each gains, costs and breaks."""
    from rich.console import Console
    from rich.live import Live
    from rich.markup import escape

    from fuzz.compare.picture import draw
    from fuzz.compare.run import Input, run
    from fuzz.compare.table import render

    names = [name.strip() for name in designs.split(",") if name.strip()]
    if not names:
        raise UsageError("--designs names no design")
    if len(set(names)) < len(names):
        raise UsageError("--designs names a design twice")
    inputs = [Input(path, None if is_recording(path) else load(path)) for path in workloads or ()]
    inputs += [Input(path, None) for path in recording or ()]
    if not inputs:
        raise UsageError("nothing to compare: name workloads, or recordings with --recording")
    # nothing that draws from a thread of its own: the processes are forked from this one
    with Live("comparing", console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        comparison = run(names, inputs, profile, lambda done: live.update(f"done: {escape(done)}", refresh=True))
    if json is not None:
        files.write_json(json, comparison.for_json())
    if svg is not None:
        files.write_atomic(svg, draw(comparison).encode())
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    console.print(render(comparison))
    sys.stdout.flush()
    return FINDINGS if any(one.findings for one in comparison.figures.values()) else CLEAN


_WIDTH = 160  # columns, where there is no terminal to ask
