"""How sensitive a comparison with the running kernel is: ``vmafuzz bench sensitivity``.

Mutants of the machine (``mutants``) are compared with the running kernel for a while each, in a process of their own,
as a mutant may run for ever. One that differs, or cannot go on, is noticed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Final, NamedTuple

from emulator.designs.mainline import Mainline
from emulator.image import KernelImage
from emulator.machine import Machine
from fuzz.conform.mutants import Lines, Mutant, lines_run, sample
from fuzz.conform.session import Session
from fuzz.conform.workloads import round_of
from fuzz.designs import one_line
from oracle.live.expressible import has_prompt_swap
from oracle.live.view import Depth

SURVIVED: Final = ""
_GRACE: Final = 20.0  # seconds for the process to start and to end


class Trial(NamedTuple):
    """One mutant. ``noticed``: by what, empty if it was not; after ``seconds``."""

    mutant: Mutant
    noticed: str
    seconds: float


class Request(NamedTuple):
    """What a process is to try, and how."""

    mutant: Mutant
    profile: str
    depth: Depth
    seed: int
    seconds: float


def choose(number: int, seed: int, depth: Depth) -> list[Mutant]:
    """Mutants on lines that a round of workloads of this depth runs."""
    return sample(covered(seed, depth), number, seed)


def covered(seed: int, depth: Depth) -> Lines:
    """The lines of ``emulator/mm`` that the workloads of one round run: those that are compared at this depth."""
    image = KernelImage(Mainline)

    def work() -> None:
        for workload in round_of(seed, depth=depth, swap=has_prompt_swap()):
            machine = Machine(image, workload.geometry)
            for step in workload.steps:
                machine.run_step(step)

    return lines_run(work)


def try_all(requests: list[Request], workers: int) -> Iterator[Trial]:
    """Each request in a process of its own, in order."""
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(_try, requests)


def _try(request: Request) -> Trial:
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fuzz.conform.sensitivity", json.dumps(request)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=request.seconds + _GRACE,
        )
    except subprocess.TimeoutExpired:
        return Trial(request.mutant, "it runs for ever", time.monotonic() - started)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return Trial(request.mutant, last, time.monotonic() - started)
    noticed, seconds = json.loads(done.stdout)
    return Trial(request.mutant, noticed, seconds)


def main() -> None:
    """The process of one mutant."""
    mutant, profile, depth, seed, seconds = json.loads(sys.argv[1])
    request = Request(Mutant(*mutant), profile, Depth(depth), seed, seconds)
    started = time.monotonic()
    noticed = _search(request, lambda: time.monotonic() - started < seconds)
    print(json.dumps([noticed, round(time.monotonic() - started, 2)]))


def _search(request: Request, more_time: Callable[[], bool]) -> str:
    """What notices the mutant, if anything does in time."""
    try:
        with Session(request.profile, request.depth, request.mutant.transform) as session:
            for seed in count(request.seed):
                for workload in round_of(seed, depth=request.depth, swap=session.live.swap):
                    if not more_time():
                        return SURVIVED
                    found = session.compare(workload).finding
                    if found is not None:
                        return found.signature
    except Exception as error:  # the mutant cannot go on: it is noticed by that
        return one_line(error)
    raise AssertionError("seeds do not end")


if __name__ == "__main__":
    main()
