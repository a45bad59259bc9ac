"""Minimises one finding in a process of its own, at low priority.

::

    python -m fuzz.campaign.minimizer OUT SLUG SUPERVISOR_PID

Keeps the signature, then replays the result, without instrumentation, as often as ``REPLAYS`` says. Ends with
status 0 when the folder of the finding is up to date.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

from emulator.workload import Workload
from fuzz import files, internal_errors, minimize
from fuzz.campaign.store import Store
from fuzz.campaign.worker import die_with_parent, end
from fuzz.target import Target
from fuzz.workload import text, wire

REPLAYS: Final = 20
NICENESS: Final = 5


def main() -> None:
    out, slug, supervisor = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    die_with_parent(supervisor)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    store = Store(out)
    try:
        minimize_bucket(store, slug)
    except Exception as error:
        end(error, store.errors)


def minimize_bucket(store: Store, slug: str) -> None:
    """Write ``workload.msgpack`` and ``workload.txt`` of one finding and renew its ``finding.json``."""
    target = Target(**files.read_json(store.out / "campaign.json")["target"])
    design, judge = target.check(), target.judge()
    bucket = store.bucket(store.findings / slug)
    if bucket is None or bucket.minimized:
        return

    def shows(workload: Workload) -> bool:
        with internal_errors.kept(wire.encode(workload), design, store.errors):
            return any(found.signature == bucket.signature for found in judge.run(workload).findings)

    raw = wire.decode(files.read_bytes(bucket.folder / "raw.msgpack", wire.SIZE_MAX))
    small = minimize.minimize(raw, shows, failing_step=bucket.step) if shows(raw) else raw
    replayed = sum(shows(small) for _ in range(REPLAYS))
    bucket.replays = f"{replayed}/{REPLAYS}"
    if target.reference != target.design:
        verdict = target._replace(design=target.reference).judge().run(small)
        bucket.on_reference = any(found.signature == bucket.signature for found in verdict.findings)
    bucket.steps = len(small.steps)
    files.write_atomic(bucket.folder / "workload.msgpack", wire.encode(small))
    files.write_atomic(bucket.folder / "workload.txt", text.to_text(small).encode())
    bucket.minimized = True  # last: until then the raw workload is the finding's
    store.save_bucket(bucket)


if __name__ == "__main__":
    main()
