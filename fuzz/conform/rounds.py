"""Many rounds of random workloads, on as many processes as wanted.

Each process has a session of its own. Rounds are handed out by seed, so what is run does not hang on how many
processes there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from typing import NamedTuple

from fuzz.conform.session import Session
from fuzz.conform.workloads import round_of
from fuzz.workload import wire
from oracle.live.view import Depth


class Divergence(NamedTuple):
    """A workload (its bytes) on which machine and kernel differ."""

    signature: str
    step: int
    workload: bytes


class Round(NamedTuple):
    """What one round gave. ``steps`` were compared and equal; a workload ends at its first difference."""

    seed: int
    workloads: int
    steps: int
    divergences: tuple[Divergence, ...]


def run_round(session: Session, seed: int, steps: int) -> Round:
    """The round of that seed."""
    workloads = done = 0
    found: list[Divergence] = []
    for workload in round_of(seed, steps, session.depth, swap=session.live.swap):
        comparison = session.compare(workload)
        workloads += 1
        done += comparison.steps
        if comparison.finding is not None:
            found.append(Divergence(comparison.finding.signature, comparison.finding.step, wire.encode(workload)))
    return Round(seed, workloads, done, tuple(found))


def run_rounds(profile: str, depth: Depth, seeds: Iterator[tuple[int, int]], workers: int) -> Iterator[Round]:
    """Rounds of (seed, steps), each as soon as it is done."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_open, initargs=(profile, depth))
    try:
        running: set[Future[Round]] = set()
        while True:
            for seed, steps in islice(seeds, 2 * workers - len(running)):
                running.add(pool.submit(_run, seed, steps))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                yield one.result()
    finally:
        pool.shutdown(cancel_futures=True)


def default_workers() -> int:
    """One a core."""
    return len(os.sched_getaffinity(0))


_SESSION: list[Session] = []  # of this worker process: an executor has no other place to keep one


def _open(profile: str, depth: Depth) -> None:
    _SESSION.append(Session(profile, depth))


def _run(seed: int, steps: int) -> Round:
    return run_round(_SESSION[0], seed, steps)
