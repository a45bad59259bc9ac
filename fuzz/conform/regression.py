"""A kept workload, compared with the running kernel again: what the pytest plugin asks for ``depth``."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import lru_cache

from emulator.profile import nearest
from emulator.workload import Workload
from fuzz.conform.report import explain
from fuzz.conform.session import Session
from oracle.live import facilities
from oracle.live.settings import asleep, quiet
from oracle.live.view import Depth


def difference(workload: Workload, depth: Depth) -> tuple[str, str]:
    """(signature, report) of the first difference on the kernel that runs; two empty texts when there is none."""
    comparison = _session(depth).compare(workload)
    if comparison.finding is None:
        return "", ""
    return comparison.finding.signature, explain(workload, comparison)


@lru_cache(maxsize=len(Depth))
def _session(depth: Depth) -> Session:
    """One for the life of the process: the kernel stays quiet until its end."""
    stack = ExitStack()
    atexit.register(stack.close)
    if depth >= Depth.PAGES:
        stack.enter_context(quiet())
        stack.enter_context(asleep())
    return stack.enter_context(Session(nearest(facilities.kernel_release()).name, depth))
