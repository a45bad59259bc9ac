"""What tests of the live oracle need of the computer that they run on, and how they find out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.image import KernelImage
from emulator.machine import Machine
from emulator.workload import Workload
from fuzz.workload.text import from_text
from oracle.live import machine_view
from oracle.live.surroundings import ENVIRONMENT
from oracle.live.view import Depth, StepView

ROOT = Path(__file__).parents[3]

on_linux = pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"),
    reason="the live oracle needs Linux on x86-64",
)

sees_frames = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not os.access("/proc/kpageflags", os.R_OK),
    reason="frames of pages (/proc/PID/pagemap, kpageflags) are shown to root only",
)


def workload(*lines: str) -> Workload:
    """From the text form, a live kernel's world."""
    return from_text("\n".join(("world x86-64", *lines)))


def run_script(module: str, *args: str) -> Any:
    """What a test script prints as JSON, run as the live oracle's server is: in an environment of its own."""
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-S", "-m", module, *args]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, timeout=60, check=True)
    return json.loads(done.stdout)


_IMAGES: dict[str, KernelImage] = {}  # by the design's name


def machine_steps(workload: Workload, depth: Depth, design: type[Design] = Mainline) -> list[StepView]:
    """The workload in the machine: the same views as ``LiveSystem.run`` gives."""
    image = _IMAGES.get(design.name) or _IMAGES.setdefault(design.name, KernelImage(design))
    machine = Machine(image, workload.geometry)
    found = []
    for step in workload.steps:
        outcomes = tuple(machine.run_step(step))
        found.append(StepView(outcomes, machine_view.view(machine, depth)))
    return found
