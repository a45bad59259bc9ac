"""Workloads that tests compare with the running kernel: those that are kept, and what a test asked the machine for."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import lru_cache

from emulator.profile import nearest
from emulator.workload import Workload
from fuzz.conform.report import explain
from fuzz.conform.session import Session
from oracle.live import facilities
from oracle.live.settings import still
from oracle.live.view import Depth


def difference(workload: Workload, depth: Depth) -> tuple[str, str]:
    """(signature, report) of the first difference on the kernel that runs; two empty texts when there is none."""
    comparison = session_at(depth).compare(workload)
    if comparison.finding is None:
        return "", ""
    return comparison.finding.signature, explain(workload, comparison)


@lru_cache(maxsize=len(Depth))
def session_at(depth: Depth) -> Session:
    """The session of this depth, one for the life of the process: the kernel stays quiet until its end."""
    stack = ExitStack()
    atexit.register(stack.close)
    stack.enter_context(still(depth))
    return stack.enter_context(Session(nearest(facilities.kernel_release()).name, depth))
