"""``vmafuzz replay`` and ``vmafuzz minimize``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from emulator.errors import UsageError
from emulator.workload import Workload
from fuzz import files, internal_errors, minimize
from fuzz.cli.app import (
    CLEAN,
    DESIGN,
    FINDINGS,
    PROFILE,
    REFERENCE,
    USAGE,
    DesignOption,
    ProfileOption,
    ReferenceOption,
    app,
)
from fuzz.record import storage
from fuzz.record.context import Observer
from fuzz.record.events import Event
from fuzz.report import explain
from fuzz.target import Target
from fuzz.tracing import Tracing, lines
from fuzz.tracing_view import View
from fuzz.workload import wire
from fuzz.workload.text import to_text
from oracle.finding import Finding
from oracle.judge import Judge, Verdict


@app.command("replay")
def replay_command(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Workloads, or recordings.")],
    design: DesignOption = DESIGN,
    reference: ReferenceOption = REFERENCE,
    profile: ProfileOption = PROFILE,
    json: Annotated[Path | None, typer.Option(help="Write the verdicts there.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Count what the tracepoints of merges tell.")] = False,
) -> int:
    """Run workloads again and say whether they break a promise."""
    target = Target(design, reference, profile)
    judge = target.judge()
    tracing = Tracing(judge.image) if trace else None
    results = [_replay(path, judge, target, tracing) for path in paths]
    if tracing is not None:
        print("\n".join(["tracepoints:", *lines(tracing.counts())]))
    if json is not None:
        files.write_json(json, results)
    verdicts = {result["verdict"] for result in results}
    if "invalid" in verdicts:
        return USAGE
    return FINDINGS if "finding" in verdicts else CLEAN


def _replay(path: Path, judge: Judge, target: Target, tracing: Tracing | None) -> dict[str, Any]:
    """The JSON of one file, printing as it goes."""
    try:
        if is_recording(path):
            return _replay_recording(path, judge, target.profile, tracing)
        workload = load(path)
    except UsageError as error:
        sys.stderr.write(f"vmafuzz: {error}\n")
        return _result(path, "invalid", None, ())
    with internal_errors.kept(wire.encode(workload), target.check()):
        verdict = judge.run(workload)
    if verdict.findings:
        print(f"{path}: finding\n{explain(workload, verdict)}\n")
    else:
        print(f"{path}: clean, digest {verdict.digest}")
    return _result(path, "finding" if verdict.findings else "clean", verdict.digest, verdict.findings)


def _result(path: Path, verdict: str, digest: str | None, findings: tuple[Finding, ...]) -> dict[str, Any]:
    return {
        "workload": str(path),
        "verdict": verdict,
        "digest": digest,
        "findings": [
            {
                "signature": found.signature,
                "oracle": found.oracle,
                "rule": found.rule,
                "detail": found.detail,
                "step": found.step,
                "op": found.op,
            }
            for found in findings
        ],
    }


class _Progress(Observer):
    """Shows the counts of the tracepoints as a recording is replayed."""

    def __init__(self, tracing: Tracing, view: View, path: Path) -> None:
        self._tracing, self._view, self._path = tracing, view, path

    def after(self, event: Event) -> None:
        self._view.update(self._tracing, f"{self._path}: event {event.at:,}")


def _replay_recording(path: Path, judge: Judge, profile: str, tracing: Tracing | None) -> dict[str, Any]:
    from rich.console import Console

    from fuzz.record.replay import Replay
    from fuzz.record.report import render

    recording = storage.load(path)
    if tracing is None:
        report = Replay(recording, judge.image, profile).run()
    else:
        view = View(Console(stderr=True), sys.stderr)
        try:
            report = Replay(recording, judge.image, profile, _Progress(tracing, view, path)).run()
        finally:
            view.close()
    print(f"{path}:")
    Console().print(render(report))
    result = _result(path, "clean" if report.equal else "finding", None, ())
    result["findings"] = [
        {
            "signature": "recording/difference",
            "oracle": "recording",
            "rule": "difference",
            "detail": str(difference),
            "step": difference.at,
            "op": None,
        }
        for difference in report.differences
    ]
    return result


@app.command("minimize")
def minimize_command(
    path: Annotated[Path, typer.Argument(metavar="FILE")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: FILE.min.msgpack.")] = None,
    design: DesignOption = DESIGN,
    reference: ReferenceOption = REFERENCE,
    profile: ProfileOption = PROFILE,
    signature: Annotated[str | None, typer.Option(help="Finding to keep; default: the first.")] = None,
) -> int:
    """Make a workload as small as it can be while it shows the same finding."""
    target = Target(design, reference, profile)
    design_class, judge = target.check(), target.judge()
    workload = load(path)

    def verdict_on(candidate: Workload) -> Verdict:
        with internal_errors.kept(wire.encode(candidate), design_class):
            return judge.run(candidate)

    found = _find(verdict_on(workload), path, signature)

    def shows(candidate: Workload) -> bool:
        return any(one.signature == found.signature for one in verdict_on(candidate).findings)

    small = minimize.minimize(workload, shows, failing_step=found.step)
    place = output or path.with_suffix(".min.msgpack")
    files.write_atomic(place, wire.encode(small))
    print(f"{place}: {len(workload.steps)} steps down to {len(small.steps)}, {found.signature}\n")
    print(to_text(small), end="")
    return FINDINGS


def _find(verdict: Verdict, path: Path, signature: str | None) -> Finding:
    for found in verdict.findings:
        if signature in (None, found.signature):
            return found
    wanted = "no finding" if signature is None else f"no finding {signature!r}"
    raise UsageError(f"{path}: {wanted}, so there is nothing to keep (is the --design right?)")


def load(path: Path) -> Workload:
    """The workload in a file. Raises ``UsageError`` that names the file."""
    if is_recording(path):
        raise UsageError(f"{path}: a recording, not a workload; 'replay' takes both")
    try:
        return wire.decode(files.read_bytes(path, wire.SIZE_MAX))
    except UsageError as error:
        raise UsageError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def is_recording(path: Path) -> bool:
    """Whether the file is a recording of ``vmafuzz record``."""
    try:
        with open(path, "rb") as file:
            return file.read(len(storage.MAGIC)) == storage.MAGIC
    except OSError as error:
        raise files.usage_error(path, "read", error) from None
