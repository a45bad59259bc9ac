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
        list[Path] | None, typer.Option(help="A recording; may be given several times.")
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    json: Annotated[Path | None, typer.Option(help="Write the figures there.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw them there.")] = None,
) -> int:
    """Run the same workloads and recordings under several designs: what each gains, costs and breaks."""
    from rich.console import Console

    from fuzz.compare.picture import draw
    from fuzz.compare.run import Input, run
    from fuzz.compare.table import render

    names = [name.strip() for name in designs.split(",") if name.strip()]
    if not names:
        raise UsageError("--designs names no design")
    if len(set(names)) < len(names):
        raise UsageError("--designs names a design twice")
    inputs = [Input(path, None if is_recording(path) else load(path)) for path in workloads or ()]
    for path in recording or ():
        if not is_recording(path):
            raise UsageError(f"{path}: not a recording of vmafuzz")
        inputs.append(Input(path, None))
    if not inputs:
        raise UsageError("nothing to compare: name workloads, or recordings with --recording")
    errors = Console(stderr=True)
    with errors.status("comparing") as status:
        comparison = run(names, inputs, profile, lambda done: status.update(f"done: {done}"))
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
