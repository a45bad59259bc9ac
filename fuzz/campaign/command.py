"""Lines to paste, and paths as people see them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from functools import lru_cache
from pathlib import Path

from fuzz.target import Target


@lru_cache(maxsize=1)
def program() -> str:
    """How to call vmafuzz here: by its name where PATH finds it, else by the path of this installation."""
    if shutil.which("vmafuzz"):
        return "vmafuzz"
    beside = Path(sys.executable).with_name("vmafuzz")
    return shown(beside) if beside.exists() else f"{sys.executable} -m fuzz"


def shown(path: Path | str) -> str:
    """The path relative to the current folder when it lies below, else absolute."""
    path = os.path.abspath(path)
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def replay_line(workload: Path | str, target: Target) -> str:
    """The one line to paste that replays a workload."""
    return f"{program()} replay {shlex.quote(shown(workload))} {target.options()}"
