"""Runs a campaign: starts the workers, restarts the dead, has findings minimised, and tells how it goes.

The supervisor holds no state that is not on the disk as well, so a campaign that was killed goes on where it was
when it is started again in the same folder.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

from emulator.errors import InternalError, UsageError
from fuzz import files
from fuzz.campaign.children import SHORT_LIVES_MAX, Child, WorkerChild, stop
from fuzz.campaign.seeds import seed_inputs
from fuzz.campaign.status import Status, finding_status
from fuzz.campaign.store import Bucket, Store
from fuzz.campaign.worker import Config
from fuzz.target import Target

TICK: Final = 0.1  # seconds
STATUS_EVERY: Final = 1.0
START_MAX: Final = 30.0  # seconds for the workers to start, then the time of the plan runs all the same
MINIMIZE_MAX: Final = 120.0  # seconds for one finding, then its raw workload stays
FINISH_MAX: Final = 45.0  # seconds that are added to --time for what is not minimised yet
GRACE: Final = 0.7  # seconds for a worker to write its totals
NOW_WEIGHT: Final = 0.3  # of the last second in "execs/s now"
BLIND_EXECS: Final = 20_000  # so many inputs and a corpus of one: the engine sees nothing


class WorkerError(InternalError):
    """A worker ended with an error of ours; it has kept the input."""


class Screen(Protocol):
    """Where the progress is shown."""

    def update(self, status: Status) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Plan:
    """What ``vmafuzz fuzz`` was asked for."""

    target: Target
    out: Path
    corpus: Path | None
    seconds: float | None  # None: until Ctrl-C
    workers: int
    seed: int
    trace: bool = False  # count what the tracepoints tell


class Supervisor:
    """One run of a campaign, from start to summary."""

    def __init__(self, plan: Plan, screen: Screen) -> None:
        self.plan = plan
        self.screen = screen
        self.store = Store(plan.out, plan.corpus)
        self.status = Status("starting", plan.target, plan.seed, plan.workers, out=str(plan.out))
        self._workers: list[WorkerChild] = []
        self._minimizers: dict[str, Child] = {}  # slug to process
        self._given_up: set[str] = set()
        self._stop = False
        self._started = time.monotonic()
        self._fuzzing_since: float | None = None
        self._seconds_before = 0.0
        self._execs_before = 0
        self._last: tuple[float, int] | None = None  # time and execs at the last status

    def run(self) -> Status:
        """Fuzz until the time is over or somebody says stop; the final status.

        Raises ``UsageError`` (folder, design, disk) and ``InternalError`` (a worker's, or blind fuzzing).
        """
        design = self.plan.target.check()
        self.store.open(self.plan.target)
        before = files.read_json(self.store.out / "status.json")
        self._seconds_before = before.get("seconds", 0.0) if isinstance(before, dict) else 0.0
        for data in seed_inputs(self.plan.seed, design.mremap_flags):
            self.store.add_input(data)
        old = [signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            self._fuzz()
            self._finish_minimizing()
        finally:
            try:
                self._end()
            finally:
                for number, handler in zip((signal.SIGINT, signal.SIGTERM), old, strict=True):
                    signal.signal(number, handler)
        return self.status

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    # ---- fuzzing

    def _fuzz(self) -> None:
        self._report("starting")
        self._execs_before = self.status.execs
        for number in range(self.plan.workers):
            self._workers.append(WorkerChild(self._config(number)))
        status_at = 0.0
        while not self._stop and not self._time_is_over():
            self._look_after_workers()
            self._look_after_minimizers(1)
            if time.monotonic() >= status_at:
                status_at = time.monotonic() + STATUS_EVERY
                self._report("fuzzing")
                self._check_not_blind()
            time.sleep(TICK)
        stop([worker.child for worker in self._workers], GRACE)
        self._report("fuzzing")

    def _time_is_over(self) -> bool:
        """The seconds of the plan count from the first workload that ran: starting takes its time on a busy machine."""
        if self.plan.seconds is None:
            return False
        now = time.monotonic()
        if self._fuzzing_since is None and (self.status.execs > self._execs_before or now > self._started + START_MAX):
            self._fuzzing_since = now
        return self._fuzzing_since is not None and now >= self._fuzzing_since + self.plan.seconds

    def _config(self, number: int) -> Config:
        target = self.plan.target
        return Config(
            out=str(self.store.out),
            corpus=str(self.store.corpus),
            number=number,
            seed=self.plan.seed + number * 7919,
            design=target.design,
            reference=target.reference,
            profile=target.profile,
            trace=self.plan.trace,
        )

    def _look_after_workers(self) -> None:
        for worker in self._workers:
            status = worker.child.poll()
            if status is None:
                continue
            if status == 2:
                raise UsageError(worker.child.last_line())
            if status == 3:
                raise WorkerError(worker.child.last_line().removeprefix("internal error: "))
            if worker.short_lives >= SHORT_LIVES_MAX:
                last = worker.child.last_line() or "it said nothing"
                raise WorkerError(f"worker {worker.config.number} keeps dying (status {status}): {last}")
            worker.restart()
            self.status.restarts += 1

    def _check_not_blind(self) -> None:
        if self.status.execs > BLIND_EXECS and self.status.features > 1 and self.status.corpus <= 1:
            raise InternalError(f"blind fuzzing: {self.status.execs} inputs and a corpus of {self.status.corpus}")

    # ---- minimising

    def _pending(self) -> list[Bucket]:
        return [
            bucket
            for bucket in self.store.buckets()
            if not bucket.minimized
            and bucket.folder.name not in self._minimizers
            and bucket.folder.name not in self._given_up
        ]

    def _look_after_minimizers(self, at_once: int) -> None:
        for slug, child in list(self._minimizers.items()):
            status = child.poll()
            if status is None and child.age() < MINIMIZE_MAX:
                continue
            if status is None:
                stop([child], 0.0)
            child.close()
            del self._minimizers[slug]
            if status == 2:
                raise UsageError(child.last_line())
            if status == 3:
                raise WorkerError(child.last_line().removeprefix("internal error: "))
            if status != 0:  # killed or too slow: the raw workload stands, and the next run tries again
                self._given_up.add(slug)
        if len(self._minimizers) < at_once:
            for bucket in self._pending()[: at_once - len(self._minimizers)]:
                arguments = ["fuzz.campaign.minimizer", str(self.store.out), bucket.folder.name]
                self._minimizers[bucket.folder.name] = Child([*arguments, str(os.getpid())])

    def _finish_minimizing(self) -> None:
        """The time is over, the workers have stopped, and what was found last is minimised, too."""
        deadline = time.monotonic() + FINISH_MAX
        status_at = 0.0
        while not self._stop and time.monotonic() < deadline and (self._minimizers or self._pending()):
            self._look_after_minimizers(max(self.plan.workers, 1))
            if time.monotonic() >= status_at:
                status_at = time.monotonic() + STATUS_EVERY
                self._report("minimizing")
            time.sleep(TICK)

    # ---- the end and the numbers

    def _end(self) -> None:
        stop([worker.child for worker in self._workers] + list(self._minimizers.values()), GRACE)
        self.screen.close()
        self.store.drop_torn_inputs()
        failing = sys.exception() is not None
        try:
            self._report("stopped", show=False)
        except UsageError:
            if not failing:  # the first reason is the one to tell
                raise

    def _report(self, state: str, show: bool = True) -> None:
        status = self.status
        now = time.monotonic()
        totals, status.features = self.store.all_totals()
        status.state = state
        if state in ("starting", "fuzzing"):
            status.seconds = self._seconds_before + now - self._started
        status.workers_alive = sum(1 for worker in self._workers if worker.child.process.poll() is None)
        status.execs, status.steps, status.rejected = totals.execs, totals.steps, totals.rejected
        if status.seconds > 0:
            status.execs_per_second = status.execs / status.seconds
            status.steps_per_second = status.steps / status.seconds
        self._note_speed(now, totals.execs)
        status.stability_sampled = totals.sampled
        status.traced = totals.traced
        if totals.sampled:
            status.stability = round(100 * (1 - totals.unstable / totals.sampled), 3)
        status.corpus = self.store.corpus_size()
        status.last_feature = round(time.time() - totals.features_at, 1) if totals.features_at else None
        buckets = self.store.buckets()
        status.findings = [
            finding_status(bucket, totals.findings.get(bucket.signature, 0), self.plan.target) for bucket in buckets
        ]
        found_at = [bucket.folder.joinpath("raw.msgpack").stat().st_mtime for bucket in buckets]
        status.last_finding = round(time.time() - max(found_at), 1) if found_at else None
        files.write_json(self.store.out / "status.json", status.for_file(), sync=False)
        if show:
            self.screen.update(status)

    def _note_speed(self, now: float, execs: int) -> None:
        if self._last is not None and now > self._last[0]:
            rate = (execs - self._last[1]) / (now - self._last[0])
            old = self.status.execs_per_second_now
            self.status.execs_per_second_now = rate if old == 0 else old + NOW_WEIGHT * (rate - old)
        self._last = (now, execs)

