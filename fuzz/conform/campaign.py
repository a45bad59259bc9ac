"""A whole conformance run: rounds, one minimised finding for each signature, the figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from emulator.workload import Workload
from fuzz import files
from fuzz.campaign.store import slug
from fuzz.conform.report import explain
from fuzz.conform.rounds import Divergence, run_rounds
from fuzz.conform.session import Session
from fuzz.conform.workloads import ROUND_STEPS
from fuzz.minimize import minimize
from fuzz.workload import wire
from oracle.live.view import Depth

_BUDGET = 600  # runs of a minimisation


class Plan(NamedTuple):
    """What to do. ``steps``: how many to compare at least."""

    profile: str
    depth: Depth
    steps: int
    seed: int
    workers: int
    out: Path


class Found(NamedTuple):
    """One divergence, minimised: where it stands, how often it was met, the text for people."""

    signature: str
    seen: int
    steps: int
    workload: Path
    text: str


class Outcome(NamedTuple):
    """The figures of a run."""

    rounds: int
    workloads: int
    steps: int
    seconds: float
    found: tuple[Found, ...]

    @property
    def steps_per_second(self) -> float:
        """Compared steps, all processes together."""
        return self.steps / self.seconds if self.seconds else 0.0


Progress = Callable[[Outcome], None]


def seeds_of(plan: Plan) -> Iterator[tuple[int, int]]:
    """(seed, steps) of each round."""
    for number in range(-(-plan.steps // ROUND_STEPS)):
        yield plan.seed + number, min(ROUND_STEPS, plan.steps - number * ROUND_STEPS)


def run(plan: Plan, progress: Progress) -> Outcome:
    """Run all rounds; each signature is minimised when it is first met."""
    started = time.monotonic()
    rounds = workloads = steps = 0
    found: dict[str, Found] = {}
    for one in run_rounds(plan.profile, plan.depth, seeds_of(plan), plan.workers):
        rounds += 1
        workloads += one.workloads
        steps += one.steps
        for divergence in one.divergences:
            known = found.get(divergence.signature)
            found[divergence.signature] = (
                _keep(plan, divergence) if known is None else known._replace(seen=known.seen + 1)
            )
        progress(Outcome(rounds, workloads, steps, time.monotonic() - started, tuple(found.values())))
    return Outcome(rounds, workloads, steps, time.monotonic() - started, tuple(found.values()))


def _keep(plan: Plan, divergence: Divergence) -> Found:
    """Minimise and write it down."""
    workload = wire.decode(divergence.workload)
    with Session(plan.profile, plan.depth) as session:

        def differs(candidate: Workload) -> bool:
            return session.shows(candidate, divergence.signature)

        small = workload  # a difference that does not come again is kept as it was met
        if differs(workload):
            small = minimize(workload, differs, failing_step=divergence.step, budget=_BUDGET)
        comparison = session.compare(small)
    text = explain(small, comparison) if comparison.finding is not None else "it did not come again"
    folder = plan.out / slug(divergence.signature)
    files.make_folder(folder)
    files.write_atomic(folder / "workload.msgpack", wire.encode(small))
    files.write_atomic(folder / "report.txt", f"{text}\n".encode())
    return Found(divergence.signature, 1, len(small.steps), folder / "workload.msgpack", text)


def for_json(plan: Plan, outcome: Outcome, kernel: str, left_out: list[str]) -> dict[str, Any]:
    """The figures and findings, as ``--json`` writes them."""
    return {
        "profile": plan.profile,
        "kernel": kernel,
        "depth": plan.depth.name.lower(),
        "seed": plan.seed,
        "rounds": outcome.rounds,
        "workloads": outcome.workloads,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "steps_per_second": round(outcome.steps_per_second),
        "not_compared": left_out,
        "findings": [
            {
                "signature": found.signature,
                "seen": found.seen,
                "steps": found.steps,
                "workload": str(found.workload),
                "replay": replay_line(found.workload, plan),
            }
            for found in outcome.found
        ],
    }


def replay_line(workload: Path, plan: Plan) -> str:
    """What to paste to see it again."""
    return f"vmafuzz conform --workload {workload} --depth {plan.depth.name.lower()}"
