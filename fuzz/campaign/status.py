"""How a campaign goes: the numbers behind ``status.json``, the screen, the summary and ``--json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fuzz.campaign.command import replay_line, shown
from fuzz.campaign.store import Bucket
from fuzz.target import Target


@dataclass(slots=True)
class FindingStatus:
    """One signature."""

    signature: str
    oracle: str
    rule: str
    detail: str
    steps: int
    count: int  # how many inputs showed it
    minimized: bool
    replays: str  # "20/20" once the minimised workload was replayed
    on_reference: bool  # the minimised workload shows it on the reference too
    workload: str
    replay: str  # the line to paste

    @property
    def replays_always(self) -> bool:
        """False when a replay did not show it again: the code has changed since, or is not deterministic."""
        shown_again, _, tried = self.replays.partition("/")
        return shown_again == tried


@dataclass(slots=True)
class Status:
    """A campaign at one moment; totals are over all its runs."""

    state: str  # starting, fuzzing, minimizing, stopped
    target: Target
    seed: int
    workers: int
    workers_alive: int = 0
    restarts: int = 0
    seconds: float = 0.0  # over all runs
    execs: int = 0
    execs_per_second: float = 0.0
    execs_per_second_now: float = 0.0
    steps: int = 0
    steps_per_second: float = 0.0
    features: int = 0
    corpus: int = 0
    rejected: int = 0
    stability: float = 100.0  # percent of the inputs that were run twice
    stability_sampled: int = 0
    last_feature: float | None = None  # seconds ago
    last_finding: float | None = None
    out: str = ""
    findings: list[FindingStatus] = field(default_factory=list)
    traced: dict[str, int] = field(default_factory=dict)  # what the tracepoints told to how often, with --trace

    def for_file(self) -> dict[str, Any]:
        """``status.json``."""
        raw = asdict(self)
        del raw["target"]
        return self.target._asdict() | raw

    def for_json(self) -> dict[str, Any]:
        """``--json``."""
        return {
            "design": self.target.design,
            "profile": self.target.profile,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "workers": self.workers,
            "execs": self.execs,
            "execs_per_second": round(self.execs_per_second, 1),
            "steps_per_second": round(self.steps_per_second, 1),
            "features": self.features,
            "corpus": self.corpus,
            "stability": self.stability,
            "findings": [
                {
                    "signature": found.signature,
                    "oracle": found.oracle,
                    "rule": found.rule,
                    "steps": found.steps,
                    "workload": found.workload,
                    "replay": found.replay,
                }
                for found in self.findings
            ],
        }


def finding_status(bucket: Bucket, count: int, target: Target) -> FindingStatus:
    """A bucket as people and scripts see it."""
    return FindingStatus(
        signature=bucket.signature,
        oracle=bucket.oracle,
        rule=bucket.rule,
        detail=bucket.detail,
        steps=bucket.steps,
        count=max(count, 1),
        minimized=bucket.minimized,
        replays=bucket.replays,
        on_reference=bucket.on_reference,
        workload=shown(bucket.workload),
        replay=replay_line(bucket.workload, target),
    )
