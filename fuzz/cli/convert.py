"""``vmafuzz show`` and ``vmafuzz assemble``: between the wire form and text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from emulator.errors import UsageError
from fuzz import files
from fuzz.cli.app import CLEAN, app
from fuzz.cli.replay import load
from fuzz.workload import text, wire


@app.command()
def show(path: Annotated[Path, typer.Argument(metavar="FILE")]) -> int:
    """Print a workload as text; 'assemble' reads it back."""
    print(text.to_text(load(path)), end="")
    return CLEAN


@app.command()
def assemble(
    path: Annotated[Path, typer.Argument(metavar="TEXT", help="A workload as text; - is standard input.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The workload file to write.")],
) -> int:
    """Make a workload file from text."""
    data = sys.stdin.buffer.read(text.TEXT_MAX + 1) if str(path) == "-" else files.read_bytes(path, text.TEXT_MAX)
    try:
        workload = text.from_text(data.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    files.write_atomic(output, wire.encode(workload))
    return CLEAN
