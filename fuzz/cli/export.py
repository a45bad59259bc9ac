"""``vmafuzz export``: a workload as something that runs without vmafuzz."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from emulator.errors import UsageError
from fuzz import files, internal_errors
from fuzz.cli.app import CLEAN, PROFILE, ProfileOption, app
from fuzz.cli.replay import load
from fuzz.target import check_profile
from fuzz.workload import wire


class Format(Enum):
    """What a workload can become."""

    C = "c"


@app.command()
def export(
    path: Annotated[Path, typer.Argument(metavar="FILE")],
    format: Annotated[Format, typer.Option(help="c: a C program that checks itself against Linux's results.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: standard output.")] = None,
    profile: ProfileOption = PROFILE,
) -> int:
    """Write a workload as a program that anybody can run, with what to expect at each step."""
    from fuzz.export import c_program

    check_profile(profile)
    workload = load(path)
    stem = (output or path).stem
    try:
        with internal_errors.kept(wire.encode(workload)):
            text = c_program.export(workload, stem, profile)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if output is None:
        print(text, end="")
    else:
        files.write_atomic(output, text.encode())
    return CLEAN
