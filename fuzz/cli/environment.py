"""``vmafuzz designs`` and ``vmafuzz doctor``: what there is here, and what can be done here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from emulator.errors import UsageError
from fuzz import designs as designs_module
from fuzz import doctor, files
from fuzz.cli.app import CLEAN, USAGE, app


@app.command()
def designs() -> int:
    """List the designs that are installed."""
    table = Table(box=None, pad_edge=False)
    for column in ("design", "what it is", "from"):
        table.add_column(column, overflow="fold")
    status = CLEAN
    for name, point in designs_module.known().items():
        try:
            design = designs_module.find(name)
            table.add_row(name, design.summary, design.source)
        except UsageError as error:
            table.add_row(name, f"broken: {error}", point.value)
            status = USAGE
    Console().print(table)
    print("A design of your own: --design FILE.py:NAME")
    return status


@app.command("doctor")
def doctor_command(
    json: Annotated[Path | None, typer.Option(help="Write the checks there.")] = None,
) -> int:
    """Say what this machine can do, and what is missing for the rest."""
    checks = doctor.examine()
    if json is not None:
        files.write_json(json, [check._asdict() for check in checks])
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "here"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row("[green]yes[/]" if check.ok else "[red]no[/]", check.what, check.here)
    Console().print(table)
    return CLEAN if all(check.ok for check in checks if check.required) else USAGE
