"""How fast workloads run, and what instrumentation costs: ``vmafuzz bench``.

Every mode has a fresh process and is measured twice inside ``atheris.Fuzz``: on the same generated workloads in
the same order (a mutation, the run with all oracles, the features for the engine), and as a campaign, where the
engine chooses what to run and does its own work on the features.

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
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from types import CodeType, ModuleType
from typing import Any, Final, NamedTuple, NoReturn

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
    campaign_execs: int = 0
    campaign_seconds: float = 0.0

    @property
    def campaign_execs_per_second(self) -> float | None:
        """None for a mode that tells the engine nothing, so it cannot run a campaign."""
        return self.campaign_execs / self.campaign_seconds if self.campaign_seconds else None

    @property
    def execs_per_second(self) -> float:
        return self.execs / self.seconds

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds


def measure(mode: str, design: str, seconds: float, seed: int, workloads: int = WORKLOADS) -> Speed:
    """Run one mode in a process of its own. Raises ``InternalError`` when it fails."""
    with tempfile.TemporaryDirectory(prefix="vmafuzz-bench-") as corpus:
        request = {"mode": mode, "design": design, "seconds": seconds, "seed": seed, "workloads": workloads}
        request["corpus"] = corpus
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
    workloads = _workloads(request["design"], request["seed"], request["workloads"])
    _Measurement(atheris, mode, request["design"], seconds, workloads).run(Path(request["corpus"]))


class _Measurement:
    """The two measurements of one mode, as the engine's target function."""

    def __init__(self, atheris: Any, mode: str, design: str, seconds: float, workloads: list[Any]) -> None:
        from fuzz import designs
        from fuzz.campaign.breeding import Breeder
        from fuzz.campaign.worker import tune_garbage_collector

        self.mode = mode
        self.seconds = seconds
        self.atheris = atheris
        self.workloads = workloads
        self.judge, feedback = _judge(mode, design)
        tune_garbage_collector()
        self.breeder = Breeder(designs.find(design).mremap_flags)
        self.hand_over = _handing_over(atheris, feedback)
        self.speed: Speed | None = None
        self.campaign_execs = 0
        self.campaign_started = 0.0

    def run(self, corpus: Path) -> None:
        """Hand over to the engine; the process ends in there."""
        from fuzz.campaign.breeding import SIZE_MAX
        from fuzz.workload import wire

        for number, workload in enumerate(self.workloads):
            (corpus / f"{number}").write_bytes(wire.encode(workload))
        flags = ["-timeout=3600", "-verbosity=0", f"-max_len={SIZE_MAX}", "-len_control=0", "-seed=1"]
        self.atheris.Setup(
            [sys.argv[0], *flags, str(corpus)],
            self.one_input,
            custom_mutator=self.breeder.mutate,
            custom_crossover=self.breeder.cross,
        )
        self.atheris.Fuzz()

    def one_input(self, data: bytes) -> None:
        """The first call measures fixed workloads, past the engine; the others are the campaign."""
        if self.speed is None:
            self.speed = self.fixed_workloads()
            if self.mode == "none":
                self.end()
            self.campaign_started = time.process_time()
            return
        workload = self.breeder.decode(data)
        if workload is not None:
            self.judge.run(workload)
            self.hand_over()
        self.campaign_execs += 1
        if time.process_time() - self.campaign_started >= self.seconds:
            self.end()

    def fixed_workloads(self) -> Speed:
        """Run the same workloads over and over."""
        from fuzz.campaign.breeding import SIZE_MAX
        from fuzz.workload import wire

        inputs = [wire.encode(workload) for workload in self.workloads]
        for workload in self.workloads:  # warm, as Python specialises code while it runs
            self.judge.run(workload)
            self.hand_over()
        execs = steps = 0
        started = time.process_time()
        while (elapsed := time.process_time() - started) < self.seconds:
            for number in range(execs, execs + _BATCH):
                place = number % len(inputs)
                self.breeder.mutate(inputs[place], SIZE_MAX, number)
                steps += self.judge.run(self.workloads[place]).steps_run
                self.hand_over()
            execs += _BATCH
        return Speed(self.mode, execs, steps, elapsed)

    def end(self) -> NoReturn:
        """Tell the result and leave past the engine."""
        assert self.speed is not None
        seconds = time.process_time() - self.campaign_started if self.campaign_started else 0.0
        speed = self.speed._replace(campaign_execs=self.campaign_execs, campaign_seconds=seconds)
        print(json.dumps(speed._asdict()), flush=True)
        os._exit(0)


def _judge(mode: str, design: str) -> tuple[Any, Any]:
    """The judge, and the feedback of a mode that has ours."""
    from emulator import image as image_module
    from fuzz.feedback.counters import Counters
    from fuzz.feedback.features import END_OF_STATES, Feedback
    from fuzz.target import Target
    from oracle.judge import Judge

    target = Target(design)
    if mode == "own":
        counters = Counters(END_OF_STATES)
        image, reference = target.images(counters.transform)
        return Judge(image, reference), Feedback(counters, image)
    if mode in ("stock", "all"):
        image_module.KernelImage._load_file = _load_patched  # type: ignore[method-assign]
    return Judge(*target.images()), None


def _load_patched(self: Any, path: Path, name: str, loaded: dict[str, ModuleType], key: str) -> ModuleType:
    """``KernelImage._load_file`` with Atheris's instrumentation in place of a syntax-tree pass."""
    import atheris

    module = ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["__builtins__"] = self._builtins
    loaded[key] = module
    code: CodeType = compile(ast.parse(path.read_bytes(), str(path)), str(path), "exec")
    exec(atheris.patch_code(code, True), module.__dict__)
    return module


def _workloads(design: str, seed: int, count: int = WORKLOADS) -> list[Any]:
    from fuzz import designs
    from fuzz.workload.generate import Generator

    generator = Generator(Random(seed), mremap_flags_extra=designs.find(design).mremap_flags)
    return [generator.generate(STEPS) for _ in range(count)]


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
