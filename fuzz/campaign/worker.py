"""One worker: an Atheris process that runs workloads through the judge for ever.

::

    python -m fuzz.campaign.worker '{"out": ..., "number": 0, ...}'

A process of its own, as ``atheris.Fuzz`` never returns. Findings go to the disk at once and the fuzzing goes on; the
engine never sees an exception. Ends with status 0 on SIGTERM, 2 when a folder cannot be written, 3 on an error of our
own (its input kept); the last line on stderr then says why.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from emulator.errors import InternalError, UsageError
from emulator.workload import Workload
from fuzz import internal_errors
from fuzz.campaign import selftest
from fuzz.campaign.breeding import SIZE_MAX, Breeder
from fuzz.campaign.seeds import seed_inputs
from fuzz.campaign.store import Store
from fuzz.feedback.counters import Counters
from fuzz.feedback.features import END_OF_STATES, Feedback
from fuzz.target import Target
from fuzz.tracing import Tracing, added
from oracle.judge import Judge, Verdict

SAVE_EVERY: Final = 1.0  # seconds between writes of the totals
SAMPLE_EVERY: Final = 64  # inputs between stability checks
HANG_SECONDS: Final = 10.0  # of CPU time for one input
UNSTABLE_KEPT: Final = 16
PR_SET_PDEATHSIG: Final = 1


@dataclass(slots=True)
class Config:
    """What the supervisor tells a worker, as JSON on the command line."""

    out: str
    corpus: str
    number: int
    seed: int
    design: str
    reference: str
    profile: str
    trace: bool = False

    def target(self) -> Target:
        return Target(self.design, self.reference, self.profile)


class Worker:
    """The state of this process."""

    def __init__(self, config: Config) -> None:
        self.number = config.number
        self.store = Store(Path(config.out), Path(config.corpus))
        target = config.target()
        self.design = target.check()
        counters = Counters(END_OF_STATES)
        image, reference = target.images(counters.transform)
        self.feedback = Feedback(counters, image)
        self.judge = Judge(image, reference, profile=target.profile)
        self.breeder = Breeder(self.design.mremap_flags)
        self.totals = self.store.totals(self.number)
        self._tracing = Tracing(image) if config.trace else None
        self._traced_before = self.totals.traced
        self._seconds_before = self.totals.seconds
        self._started = time.monotonic()
        self._save_at = self._started + SAVE_EVERY
        self._running = b""  # the input that runs now
        self._beat = -1  # execs at the last tick of the watchdog
        self._trace_branch: Any = None
        self._resume()

    def _resume(self) -> None:
        if self.totals.fingerprint == self.feedback.counters.fingerprint:
            self.feedback.restore(self.store.seen_features(self.number))
        self.totals.fingerprint = self.feedback.counters.fingerprint

    # ---- before the engine starts

    def self_test(self, inputs: list[bytes]) -> None:
        """Raises ``InternalError`` when the counters do not move as the seeds run."""
        selftest.check_instrumented(self.feedback, self.design)
        runs = []
        for data in inputs:
            workload = self.breeder.decode(data)
            if workload is not None:
                _, features = self._run(data, workload)
                runs.append(features)
        selftest.check_moved(self.feedback, runs)

    def fuzz(self, flags: list[str]) -> NoReturn:
        """Hand over to the engine."""
        import atheris

        blind = atheris._trace_branch  # does nothing until Fuzz() puts the real one in its place
        self.feedback.reserve(atheris._reserve_counter)

        def first_input(data: bytes) -> None:
            if self._trace_branch is None:
                self._trace_branch = atheris._trace_branch
                if self._trace_branch is blind:
                    self._fail(selftest.BlindError("blind fuzzing: the engine takes no counters"))
            self.one_input(data)

        atheris.Setup([sys.argv[0], *flags], first_input, custom_mutator=self._mutate, custom_crossover=self._cross)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGVTALRM, self._watchdog)
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG_SECONDS, HANG_SECONDS)
        atheris.Fuzz()
        raise InternalError("the engine returned")

    # ---- one input after another

    def one_input(self, data: bytes) -> None:
        """What the engine calls. Ends the process on an error of ours; findings only go to the disk."""
        totals = self.totals
        workload = self.breeder.decode(data)
        if workload is None:  # no counter moves, so the engine will not keep it
            totals.rejected += 1
            return
        self._running = data
        try:
            verdict, features = self._run(data, workload)
            totals.execs += 1
            totals.steps += len(workload.steps)
            if totals.execs % SAMPLE_EVERY == 1:
                self._check_stable(data, workload, verdict, features)
            self.feedback.hand_over(features, self._trace_branch)
            if verdict.findings:
                self._keep(verdict, data, workload)
            if self.feedback.note(features):
                totals.features_at = time.time()
            if time.monotonic() >= self._save_at:
                self.save()
        except Exception as error:
            self._fail(error)
        finally:
            self._running = b""

    def _run(self, data: bytes, workload: Workload) -> tuple[Verdict, list[int]]:
        with internal_errors.kept(data, self.design, self.store.errors):
            verdict = self.judge.run(workload)
        return verdict, self.feedback.take()

    def _check_stable(self, data: bytes, workload: Workload, verdict: Verdict, features: list[int]) -> None:
        again, features_again = self._run(data, workload)
        self.totals.sampled += 1
        if again.digest != verdict.digest or features_again != features:
            self.totals.unstable += 1
            if self.totals.unstable <= UNSTABLE_KEPT:
                self.store.add_unstable(data)

    def _keep(self, verdict: Verdict, data: bytes, workload: Workload) -> None:
        counts = self.totals.findings
        for found in verdict.findings:
            signature = found.signature
            if signature not in counts:
                counts[signature] = 0
                self.store.add_finding(found, data, len(workload.steps), self.number, self._seconds())
            counts[signature] += 1

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def save(self) -> None:
        """Totals and features to the disk."""
        self._save_at = time.monotonic() + SAVE_EVERY
        self.totals.seconds = round(self._seconds(), 3)
        if self._tracing is not None:
            self.totals.traced = added(self._traced_before, self._tracing.counts())
        self.store.save_totals(self.number, self.totals, self.feedback.seen_bits())

    def _mutate(self, data: bytes, size_max: int, seed: int) -> bytes:
        try:
            with internal_errors.kept(data):
                return self.breeder.mutate(data, size_max, seed)
        except Exception as error:
            self._fail(error)

    def _cross(self, first: bytes, second: bytes, size_max: int, seed: int) -> bytes:
        try:
            with internal_errors.kept(first):
                return self.breeder.cross(first, second, size_max, seed)
        except Exception as error:
            self._fail(error)

    # ---- the end

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.save()
        os._exit(0)

    def _watchdog(self, number: int, frame: FrameType | None) -> None:
        if self._running and self._beat == self.totals.execs:
            late = TimeoutError(f"one workload took more than {HANG_SECONDS:.0f} s")
            self._fail(internal_errors.InternalErrorOn(self._running, late))
        self._beat = self.totals.execs

    def _fail(self, error: BaseException) -> NoReturn:
        end(error, self.store.errors)


def end(error: BaseException, folder: Path) -> NoReturn:
    """Say why on the last line of stderr, and leave past the engine, which would take it for a crash."""
    if isinstance(error, UsageError):
        status, text = 2, str(error)
    elif isinstance(error, selftest.BlindError):
        status, text = 3, str(error)
    else:
        status, text = 3, internal_errors.message(error, internal_errors.save(error, folder))
    sys.stderr.write(f"\n{text}\n")
    sys.stderr.flush()
    os._exit(status)


def die_with_parent(parent: int) -> None:
    """Be killed when the supervisor dies, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(0)


def tune_garbage_collector() -> None:
    """A run makes thousands of objects that live as long as it does: looking at them often is wasted (5 %)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)


def main() -> NoReturn:
    raw = json.loads(sys.argv[1])
    die_with_parent(raw.pop("supervisor"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    config = Config(**raw)
    try:
        worker = Worker(config)
        tune_garbage_collector()
        worker.self_test(seed_inputs(config.seed, worker.design.mremap_flags))
        worker.fuzz(
            [
                f"-seed={config.seed % (1 << 31) or 1}",
                f"-max_len={SIZE_MAX}",
                "-len_control=0",
                "-reload=1",
                "-timeout=3600",  # the watchdog comes first, and counts CPU time
                "-rss_limit_mb=4096",
                "-handle_int=0",
                "-handle_term=0",
                "-verbosity=0",
                f"-artifact_prefix={config.out}/errors/",
                config.corpus,
            ]
        )
    except Exception as error:
        end(error, Path(config.out) / "errors")


if __name__ == "__main__":
    main()
