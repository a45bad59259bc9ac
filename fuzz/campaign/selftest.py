"""The start-up self-test against blind fuzzing.

A fuzzer whose target is not instrumented runs for days and finds nothing, and looks well all the time. So a
worker first runs its seeds and refuses to go on unless the counters of the code under test moved.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emulator.errors import InternalError
from emulator.image import MM_FOLDER

if TYPE_CHECKING:
    from emulator.designs.base import Design
    from fuzz.feedback.features import Feedback

SHARE_MIN: Final = 0.05  # of the counters that some seed must reach


class BlindError(InternalError):
    """The code under test does not tell the engine what it does."""


def check_instrumented(feedback: Feedback, design: type[Design]) -> None:
    """Every file that the image runs has counters."""
    counted = {site.path for site in feedback.counters.sites}
    wanted = {str(path) for path in MM_FOLDER.glob("*.py") if path.stem != "__init__"}
    wanted |= {inspect.getfile(base) for base in design.__mro__ if vars(base).get("replaces")}
    missing = sorted(Path(path).name for path in wanted - counted if _has_functions(path))
    if missing:
        raise BlindError(f"blind fuzzing: no counters in {', '.join(missing)}")


def check_moved(feedback: Feedback, runs: Sequence[Sequence[int]]) -> None:
    """``runs``: the features of each seed. Some seeds reached code, and not all the same."""
    counters = feedback.counters
    reached = {counters.site_of(number) for run in runs for number in run if number >= counters.first}
    wanted = SHARE_MIN * len(counters.sites)
    if len(reached) < wanted:
        raise BlindError(f"blind fuzzing: {len(runs)} seeds moved {len(reached)} of {len(counters.sites)} counters")
    if len(runs) > 1 and len({tuple(run) for run in runs}) == 1:
        raise BlindError(f"blind fuzzing: {len(runs)} different seeds have the same features")


def _has_functions(path: str) -> bool:
    return "def " in Path(path).read_text()
