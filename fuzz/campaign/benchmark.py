"""How fast workloads run, and what instrumentation costs: ``vmafuzz bench``.

Every mode does what a campaign does, in the same order on the same generated workloads, in a fresh process inside
``atheris.Fuzz``: a mutation, the run with all oracles, the features for the engine.

========= =============================================================================================
``none``  no instrumentation, nothing handed to the engine
``own``   what a campaign does: counters of ours and state features, handed over once a run
``stock`` Atheris's own instrumentation of ``emulator/`` (branches and comparisons), kernel image included
``all``   the same of everything that a run executes, oracles and mutator too: what ``instrument_imports`` does
========= =============================================================================================
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from types import CodeType, ModuleType
from typing import Any, Final, NamedTuple

from emulator.errors import InternalError

MODES: Final = ("none", "own", "stock", "all")
STEPS: Final = 16  # of each workload
WORKLOADS: Final = 256
_BATCH: Final = 8  # workloads between looks at the clock


class Speed(NamedTuple):
    """What one mode did."""

    mode: str
    execs: int
    steps: int  # that were run: a workload whose promise breaks ends there
    seconds: float  # of CPU time, so that what else runs on the machine counts little

    @property
    def execs_per_second(self) -> float:
        return self.execs / self.seconds

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds


def measure(mode: str, design: str, seconds: float, seed: int) -> Speed:
    """Run one mode in a process of its own. Raises ``InternalError`` when it fails."""
    request = {"mode": mode, "design": design, "seconds": seconds, "seed": seed}
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.campaign.benchmark", json.dumps(request)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            return Speed(**json.loads(line))
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise InternalError(f"the benchmark process ended with status {done.returncode}: {last}")


def main() -> None:
    request = json.loads(sys.argv[1])
    mode, seconds = request["mode"], request["seconds"]
    import atheris

    if mode == "all":
        with atheris.instrument_imports(include=["emulator", "oracle", "fuzz.workload"]):
            import_module("fuzz.workload.generate")
            import_module("oracle.judge")
    elif mode == "stock":
        with atheris.instrument_imports(include=["emulator"]):
            import_module("oracle.judge")
    from fuzz import designs
    from fuzz.campaign.breeding import SIZE_MAX, Breeder
    from fuzz.campaign.worker import tune_garbage_collector
    from fuzz.workload import wire

    run = _runner(mode, request["design"])
    tune_garbage_collector()
    workloads = _workloads(request["design"], request["seed"])
    inputs = [wire.encode(workload) for workload in workloads]
    breeder = Breeder(designs.find(request["design"]).mremap_flags)
    hand_over = _handing_over(atheris, run.feedback)

    def one_input(data: bytes) -> None:
        """The engine's first input: everything is measured in here, past the engine's own work on inputs."""
        for workload in workloads:  # warm, as Python specialises code while it runs
            run.judge.run(workload)
            hand_over()
        execs = steps = 0
        started = time.process_time()
        while (elapsed := time.process_time() - started) < seconds:
            for number in range(execs, execs + _BATCH):
                place = number % len(workloads)
                breeder.mutate(inputs[place], SIZE_MAX, number)
                steps += run.judge.run(workloads[place]).steps_run
                hand_over()
            execs += _BATCH
        print(json.dumps(Speed(mode, execs, steps, elapsed)._asdict()), flush=True)
        os._exit(0)

    atheris.Setup([sys.argv[0], "-timeout=3600", "-verbosity=0"], one_input)
    atheris.Fuzz()


class _Runner(NamedTuple):
    judge: Any
    feedback: Any


def _runner(mode: str, design: str) -> _Runner:
    from emulator import image as image_module
    from fuzz.feedback.counters import Counters
    from fuzz.feedback.features import END_OF_STATES, Feedback
    from fuzz.target import Target
    from oracle.judge import Judge

    target = Target(design)
    if mode == "own":
        counters = Counters(END_OF_STATES)
        image, reference = target.images(counters.transform)
        return _Runner(Judge(image, reference), Feedback(counters, image))
    if mode in ("stock", "all"):
        image_module.KernelImage._load_file = _load_patched  # type: ignore[method-assign]
    return _Runner(Judge(*target.images()), None)


def _load_patched(self: Any, path: Path, name: str, stem: str | None = None) -> ModuleType:
    """``KernelImage._load_file`` with Atheris's instrumentation in place of a syntax-tree pass."""
    import atheris

    module = ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["__builtins__"] = self._builtins
    if stem is not None:
        self._modules[stem] = module
    code: CodeType = compile(ast.parse(path.read_bytes(), str(path)), str(path), "exec")
    exec(atheris.patch_code(code, True), module.__dict__)
    return module


def _workloads(design: str, seed: int) -> list[Any]:
    from fuzz import designs
    from fuzz.workload.generate import Generator

    generator = Generator(Random(seed), mremap_flags_extra=designs.find(design).mremap_flags)
    return [generator.generate(STEPS) for _ in range(WORKLOADS)]


def _handing_over(atheris: Any, feedback: Any) -> Callable[[], None]:
    """What a worker does after each run."""
    if feedback is None:
        return lambda: None
    feedback.reserve(atheris._reserve_counter)

    def hand_over() -> None:
        features = feedback.take()
        feedback.hand_over(features, atheris._trace_branch)
        feedback.note(features)

    return hand_over


if __name__ == "__main__":
    main()
