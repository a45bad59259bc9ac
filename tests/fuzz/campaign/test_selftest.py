"""Fuzzing must never be blind."""

from __future__ import annotations

import pytest

from emulator.designs.mainline import Mainline
from fuzz.campaign import selftest
from fuzz.campaign.selftest import BlindError
from fuzz.feedback.counters import BUCKETS, Counters
from fuzz.feedback.features import END_OF_STATES, Feedback
from fuzz.target import Target


@pytest.fixture(scope="module")
def sighted() -> Feedback:
    counters = Counters(END_OF_STATES)
    image, _ = Target("mainline").images(counters.transform)
    return Feedback(counters, image)


def test_an_instrumented_image_passes(sighted: Feedback) -> None:
    """The usual case."""
    selftest.check_instrumented(sighted, Mainline)
    many = [END_OF_STATES + BUCKETS * site for site in range(len(sighted.counters.sites))]
    selftest.check_moved(sighted, [many, many[1:]])


def test_a_file_without_counters(sighted: Feedback, planted: str) -> None:
    """A design in a file of its own that was not instrumented is the trap that others fell into."""
    with pytest.raises(BlindError, match=r"blind fuzzing: no counters in planted.py"):
        selftest.check_instrumented(sighted, Target(planted).check())


def test_an_image_without_counters() -> None:
    """As is an image that was loaded without the pass."""
    counters = Counters(END_OF_STATES)
    image, _ = Target("mainline").images()
    with pytest.raises(BlindError, match=r"blind fuzzing: no counters in .*mremap.py"):
        selftest.check_instrumented(Feedback(counters, image), Mainline)


def test_counters_that_do_not_move(sighted: Feedback) -> None:
    """Or seeds that reach nothing."""
    with pytest.raises(BlindError, match=r"2 seeds moved 0 of \d+ counters"):
        selftest.check_moved(sighted, [[1, 2], [1]])


def test_seeds_that_all_look_the_same(sighted: Feedback) -> None:
    """Features that do not hang on the input guide nobody."""
    many = [END_OF_STATES + BUCKETS * site for site in range(len(sighted.counters.sites))]
    with pytest.raises(BlindError, match="different seeds have the same features"):
        selftest.check_moved(sighted, [many, many])
