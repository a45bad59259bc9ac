"""The folder of a campaign.

::

    OUT/campaign.json                what is fuzzed, and how
    OUT/status.json                  how it goes; renewed every second
    OUT/corpus/                      inputs worth mutating, shared by the workers (or --corpus)
    OUT/findings/SLUG/raw.msgpack    the workload as it was found, finding.json beside it: one folder a signature
    OUT/findings/SLUG/workload.*     the same, minimised: msgpack and text
    OUT/workers/N.json               the totals of worker N, over all its lives
    OUT/workers/N.features           the features it has seen, one bit each
    OUT/errors/                      inputs that made our own code fail, with the traceback
    OUT/unstable/                    inputs whose second run differed from the first
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from emulator.errors import UsageError
from fuzz import files
from fuzz.target import Target
from fuzz.tracing import added
from oracle.finding import Finding

_NOT_SLUG = re.compile(r"[^a-z0-9]+")
_SHA1_NAME = re.compile(r"[0-9a-f]{40}")
_SLUG_MAX: Final = 64


@dataclass(slots=True)
class Bucket:
    """Everything known about one signature; ``finding.json``."""

    signature: str
    oracle: str
    rule: str
    detail: str
    steps: int
    step: int  # number of the step at which it showed
    worker: int
    found_after: float  # seconds of the worker's life
    minimized: bool = False
    replays: str = ""  # "20/20"
    on_reference: bool = False  # the reference shows it too: no fault of the design's
    folder: Path = field(default_factory=Path)  # not in the file

    @property
    def workload(self) -> Path:
        """The best workload that there is."""
        return self.folder / ("workload.msgpack" if self.minimized else "raw.msgpack")


@dataclass(slots=True)
class Totals:
    """What a worker has done, over all its lives; ``workers/N.json``."""

    execs: int = 0
    steps: int = 0
    rejected: int = 0  # inputs that are no workload
    sampled: int = 0  # inputs run twice
    unstable: int = 0  # of them, how many differed
    seconds: float = 0.0
    features_at: float = 0.0  # wall clock of the last new feature
    fingerprint: int = 0  # of the instrumented code: numbers of features compare under the same one
    findings: dict[str, int] = field(default_factory=dict)  # signature to how often
    traced: dict[str, int] = field(default_factory=dict)  # what the tracepoints told (fuzz.tracing) to how often


def slug(signature: str) -> str:
    """A folder name for a signature: readable, and unique through a checksum."""
    readable = _NOT_SLUG.sub("-", signature.lower()).strip("-")[:_SLUG_MAX].strip("-")
    return f"{readable}-{zlib.crc32(signature.encode()):08x}"


class Store:
    """Reads and writes the folder of a campaign. Methods raise ``UsageError`` when it cannot be written."""

    def __init__(self, out: Path, corpus: Path | None = None) -> None:
        self.out = out
        self.findings = out / "findings"
        self.workers = out / "workers"
        self.errors = out / "errors"
        self.unstable = out / "unstable"
        self.corpus = corpus or out / "corpus"

    # ---- the campaign

    def open(self, target: Target) -> None:
        """Make or find the folders, for this process alone.

        Raises ``UsageError`` when another campaign runs there, or the folder is another target's.
        """
        for folder in (self.out, self.findings, self.workers, self.errors, self.unstable, self.corpus):
            files.make_folder(folder)
        self._lock()
        wanted = {"target": target._asdict(), "corpus": str(self.corpus)}
        there = files.read_json(self.out / "campaign.json")
        was = Target(**there["target"]).options() if isinstance(there, dict) and "target" in there else ""
        if was and was != target.options():
            raise UsageError(f"{self.out} belongs to a campaign with {was}; choose another --out")
        files.write_json(self.out / "campaign.json", wanted)
        self._sweep()

    def _lock(self) -> None:
        # Never closed: the kernel gives the lock back when the process ends, however it ends.
        descriptor = os.open(self.out / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{self.out}: another campaign is running in this folder") from None

    def _sweep(self) -> None:
        """Drop what a killed process left half-written."""
        for folder in (self.out, self.findings, self.workers, self.errors, self.unstable, self.corpus):
            for entry in folder.glob(files.TEMPORARY + "*"):
                if entry.is_dir():
                    for path in entry.iterdir():
                        path.unlink()
                    entry.rmdir()
                else:
                    entry.unlink()
        self.drop_torn_inputs()

    def drop_torn_inputs(self) -> None:
        """libFuzzer names an input by the SHA-1 of its bytes; one that does not match was half-written."""
        for path in self.corpus.iterdir():
            if _SHA1_NAME.fullmatch(path.name) and path.is_file():
                with contextlib.suppress(OSError):
                    if hashlib.sha1(path.read_bytes()).hexdigest() != path.name:
                        path.unlink()

    def corpus_size(self) -> int:
        """How many inputs the corpus folder holds."""
        with os.scandir(self.corpus) as entries:
            return sum(1 for entry in entries if not entry.name.startswith("."))

    def add_input(self, data: bytes) -> None:
        """Put an input into the corpus, under the name that libFuzzer gives it."""
        path = self.corpus / hashlib.sha1(data).hexdigest()
        if not path.exists():
            files.write_atomic(path, data, sync=False)

    # ---- findings

    def add_finding(self, found: Finding, data: bytes, steps: int, worker: int, seconds: float) -> bool:
        """Keep a finding at once; False when its signature has a folder already."""
        bucket = Bucket(found.signature, found.oracle, found.rule, found.detail, steps, found.step, worker, seconds)
        folder = self.findings / slug(found.signature)
        if folder.exists():
            return False
        return files.create_folder(folder, {"raw.msgpack": data, "finding.json": _bucket_json(bucket)})

    def buckets(self) -> list[Bucket]:
        """Every finding so far, sorted by signature; a folder that somebody damaged is left out."""
        found = []
        for path in sorted(self.findings.glob("*/finding.json")):
            if path.parent.name.startswith(files.TEMPORARY):
                continue  # a worker is still writing it, and will rename it
            bucket = self.bucket(path.parent)
            if bucket is not None:
                found.append(bucket)
        return sorted(found, key=lambda bucket: bucket.signature)

    def bucket(self, folder: Path) -> Bucket | None:
        """The finding in this folder; None when it is no finding's."""
        raw = files.read_json(folder / "finding.json")
        try:
            bucket = Bucket(**raw, folder=folder)
        except TypeError:
            return None
        return bucket if bucket.workload.is_file() else None

    def save_bucket(self, bucket: Bucket) -> None:
        """Renew ``finding.json``."""
        files.write_atomic(bucket.folder / "finding.json", _bucket_json(bucket))

    # ---- workers

    def totals(self, worker: int) -> Totals:
        """What worker N has done so far; zeros when it is new."""
        return _totals(files.read_json(self.workers / f"{worker}.json"))

    def seen_features(self, worker: int) -> bytes:
        """What ``save_totals`` was given as features; nothing when the worker is new."""
        try:
            return (self.workers / f"{worker}.features").read_bytes()
        except OSError:
            return b""

    def add_unstable(self, data: bytes) -> None:
        """Keep an input whose second run differed from the first."""
        files.write_atomic(self.unstable / f"{hashlib.sha1(data).hexdigest()}.msgpack", data)

    def save_totals(self, worker: int, totals: Totals, features: bytes) -> None:
        """Written every second and at the worker's end."""
        files.write_atomic(self.workers / f"{worker}.features", features, sync=False)
        data = json.dumps(asdict(totals)).encode()
        files.write_atomic(self.workers / f"{worker}.json", data, sync=False)

    def all_totals(self) -> tuple[Totals, int]:
        """The sum over all workers, and how many different features they have seen together."""
        together = Totals()
        seen: dict[int, int] = {}
        for path in sorted(self.workers.glob("*.json")):
            one = _totals(files.read_json(path))
            for name in ("execs", "steps", "rejected", "sampled", "unstable"):
                setattr(together, name, getattr(together, name) + getattr(one, name))
            if one.features_at >= together.features_at:
                together.features_at = one.features_at
                together.fingerprint = one.fingerprint
            for signature, count in one.findings.items():
                together.findings[signature] = together.findings.get(signature, 0) + count
            together.traced = added(together.traced, one.traced)
            with contextlib.suppress(OSError):
                bits = int.from_bytes(path.with_suffix(".features").read_bytes(), "little")
                seen[one.fingerprint] = seen.get(one.fingerprint, 0) | bits
        return together, seen.get(together.fingerprint, 0).bit_count()


def _bucket_json(bucket: Bucket) -> bytes:
    raw = asdict(bucket)
    del raw["folder"]
    return (json.dumps(raw, indent=2) + "\n").encode()


def _totals(raw: Any) -> Totals:
    try:
        totals = Totals(**raw)
    except TypeError:  # no such file, or one of another version
        return Totals()
    kinds_right = all(isinstance(getattr(totals, one.name), (int, float, dict)) for one in fields(totals))
    return totals if kinds_right else Totals()
