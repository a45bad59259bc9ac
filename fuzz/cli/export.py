"""``vmafuzz export``: a workload or recording as something that other programs run or show."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from emulator.errors import UsageError
from fuzz import files, internal_errors
from fuzz.cli.app import CLEAN, DESIGN, PROFILE, ProfileOption, app
from fuzz.cli.replay import is_recording, load
from fuzz.target import Target, check_profile
from fuzz.workload import wire
from oracle.judge import Judge


class Format(Enum):
    """What a workload or recording can become."""

    C = "c"
    PERFETTO = "perfetto"


@app.command()
def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A workload; for perfetto also a recording.")],
    format: Annotated[
        Format,
        typer.Option(help="c: a C program that checks itself against Linux's results. perfetto: for ui.perfetto.dev."),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: standard output.")] = None,
    design: Annotated[str, typer.Option(help="Whose run a trace shows; a C program is always mainline's.")] = DESIGN,
    profile: ProfileOption = PROFILE,
) -> int:
    """Write a workload as a C program with what to expect at each step, or its run as a trace to look at."""
    check_profile(profile)
    text = _trace(path, design, profile) if format is Format.PERFETTO else _program(path, output, profile)
    if output is None:
        print(text, end="")
    else:
        files.write_atomic(output, text.encode())
    return CLEAN


def _program(path: Path, output: Path | None, profile: str) -> str:
    from fuzz.export import c_program

    workload = load(path)
    try:
        with internal_errors.kept(wire.encode(workload)):
            return c_program.export(workload, (output or path).stem, profile)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _trace(path: Path, design: str, profile: str) -> str:
    from fuzz.export import perfetto
    from fuzz.record import storage

    target = Target(design, profile=profile)
    image, reference = target.images()
    if is_recording(path):
        return perfetto.export_recording(image, storage.load(path), profile)
    workload = load(path)
    with internal_errors.kept(wire.encode(workload), target.check()):
        verdict = Judge(image, reference, profile=profile).run(workload)
        return perfetto.export_workload(image, workload, profile, verdict.findings)
