"""Compiling and running exported programs, and workloads that can be exported."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from emulator.workload import Op, Step, Workload
from fuzz.export import c_program
from fuzz.export.c_calls import inexpressible
from fuzz.workload import text

PROFILE: Final = "6.18"
COMPILERS: Final = [name for name in ("gcc", "clang") if shutil.which(name)]
WARNINGS: Final = ("-Wall", "-Wextra", "-Werror")

compiled = pytest.mark.skipif(
    not (shutil.which("cc") and sys.platform == "linux" and platform.machine() == "x86_64"),
    reason="needs a C compiler, and Linux on x86-64",
)
# Other kernels merge by other rules.
conforms = pytest.mark.skipif(
    not platform.release().startswith(PROFILE + "."), reason=f"what is expected is what Linux {PROFILE} does"
)


class Run(NamedTuple):
    """How a program ended."""

    status: int
    out: str
    err: str


def program(workload: str) -> str:
    """The C text of a workload that is given as text."""
    return c_program.export(text.from_text(workload), "test", PROFILE)


def build(source: str, folder: Path, *options: str, compiler: str = "cc") -> Path:
    """Compile without a warning."""
    place = folder / "test"
    (folder / "test.c").write_text(source)
    done = subprocess.run(
        [compiler, *WARNINGS, *options, "-o", place, folder / "test.c"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return place


def run(place: Path, **environment: str) -> Run:
    """Run a program; its own alarm is what ends it if it hangs."""
    done = subprocess.run(
        [place], capture_output=True, text=True, check=False, timeout=120, env=environment or None
    )
    return Run(done.returncode, done.stdout, done.stderr)


def exportable(workload: Workload) -> Workload:
    """The workload with all that a program can do; the ops of a collision become steps of their own."""
    steps = []
    for step in workload.steps:
        for op in step.ops:
            plain = _without_kernel(op)
            if not inexpressible(plain):
                steps.append(Step((plain,)))
    return Workload(workload.geometry, tuple(steps))


def _without_kernel(op: Op) -> Op:
    if op.kind == "mremap":
        args = list(op.args)
        args[3] &= 7
        op = op._replace(args=tuple(args))
    return op._replace(fail_nth=0)
