"""``vmafuzz record``, ``vmafuzz import`` and ``vmafuzz cut``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fuzz.cli.app import CLEAN, app

OutputOption = Annotated[Path, typer.Option("-o", "--output", help="The recording to write.")]


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def record(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="What to run.")],
    output: OutputOption,
) -> int:
    """Run a command and record what it does to its memory (needs perf, and root or a low perf_event_paranoid)."""
    from fuzz.record.recorder import record_command

    recording = record_command(command, output)
    print(f"{output}: {len(recording.events)} events, {len(recording.processes())} processes")
    if recording.header.running:
        print(f"{recording.header.running} tasks still ran when the command had ended: their ends are not in it")
    status = recording.header.exit_status
    if status:
        print(f"the command ended with status {status}")
    return CLEAN


@app.command("import")
def import_command(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="perf script or strace -f text, plain, .xz or .gz.")],
    output: OutputOption,
) -> int:
    """Make a recording from what another machine's perf or strace printed."""
    from fuzz.record import storage
    from fuzz.record.importer import import_file

    recording = import_file(path)
    storage.save(recording, output)
    print(f"{output}: {len(recording.events)} events, {len(recording.processes())} processes")
    skipped = sum(recording.header.skipped.values())
    if skipped or recording.header.lost:
        print(f"lines that are no event: {skipped}, events that the source lost: {recording.header.lost}")
    return CLEAN


@app.command()
def cut(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A recording, or the text that one can be made from.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write workloads to.")],
) -> int:
    """Cut a recording into workloads of useful size; a campaign begins with them by --corpus DIR."""
    from fuzz import files
    from fuzz.record.importer import import_file
    from fuzz.record.seeds import seeds
    from fuzz.workload import wire

    workloads = seeds(import_file(path))
    files.make_folder(output)
    for number, workload in enumerate(workloads):
        files.write_atomic(output / f"{path.name.split('.')[0]}-{number:03}.msgpack", wire.encode(workload), sync=False)
    print(f"{output}: {len(workloads)} workloads")
    return CLEAN
