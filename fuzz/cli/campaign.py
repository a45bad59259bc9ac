"""``vmafuzz fuzz``."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path
from typing import Annotated

import typer

from emulator.errors import UsageError
from fuzz import files
from fuzz.campaign import screen, supervisor
from fuzz.cli.app import (
    CLEAN,
    DESIGN,
    FINDINGS,
    PROFILE,
    REFERENCE,
    DesignOption,
    ProfileOption,
    ReferenceOption,
    app,
)
from fuzz.target import Target


@app.command()
def fuzz(
    design: DesignOption = DESIGN,
    reference: ReferenceOption = REFERENCE,
    profile: ProfileOption = PROFILE,
    time: Annotated[float | None, typer.Option(help="Seconds; without it until Ctrl-C.", min=0.1)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core.", min=1, max=512)] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed; default: another one each time.", min=0)] = None,
    corpus: Annotated[Path | None, typer.Option(help="Inputs to begin with and to add to [OUT/corpus].")] = None,
    out: Annotated[Path | None, typer.Option(help="Campaign folder; goes on where it was [out/DESIGN].")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Count what the tracepoints of merges tell.")] = False,
) -> int:
    """Look for workloads that break a design. Every finding ends with the line that replays it."""
    require_atheris()
    plan = supervisor.Plan(
        target=Target(design, reference, profile),
        out=out or default_out(design),
        corpus=corpus,
        seconds=time,
        workers=workers or len(os.sched_getaffinity(0)),
        seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
        trace=trace,
    )
    status = supervisor.Supervisor(plan, _screen()).run()
    if json is not None:
        files.write_json(json, status.for_json())
    print(screen.summary(status))
    return FINDINGS if status.findings else CLEAN


def default_out(design: str) -> Path:
    """``out/relocate-anon``; for FILE.py:NAME ``out/NAME`` or ``out/FILE``."""
    path, _, name = design.partition(":")
    return Path("out") / (name or Path(path).stem or "campaign")


def require_atheris() -> None:
    """Raises ``UsageError`` when fuzzing is not possible here."""
    if importlib.util.find_spec("atheris") is None:
        raise UsageError("fuzzing needs Atheris: pip install 'vmafuzz[fuzz]' (Python 3.11 to 3.13, Linux)")


def _screen() -> supervisor.Screen:
    from rich.console import Console

    console = Console(stderr=True)
    return screen.LiveScreen(console) if console.is_terminal else screen.PlainScreen(sys.stderr)
