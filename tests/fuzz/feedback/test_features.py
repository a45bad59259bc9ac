"""State features and the account of features."""

from __future__ import annotations

import subprocess
import sys

import pytest

from emulator.errors import InternalError
from emulator.machine import Machine
from fuzz.feedback.counters import Counters
from fuzz.feedback.features import END_OF_STATES, FIRST, Feedback
from fuzz.target import Target
from fuzz.workload.text import from_text

FAULTED = "mmap addr=4 len=4 prot=rw flags=private|fixed\nwrite addr=4 at=0\n"
UNFAULTED = "mmap addr=4 len=4 prot=rw flags=private|fixed\n"
REFUSED = "mmap addr=4 len=0 prot=rw flags=private|fixed\n"
COLLISION = """\
mmap addr=4 len=4 prot=rw flags=private|fixed
write addr=4 at=0
together
  mremap addr=4 old_len=4 new_len=4 flags=maymove|fixed new_addr=64
  gup_fast addr=4 flags=pin pin=0
  schedule 1 until {point}, 0 until end
end
"""


def feedback() -> Feedback:
    counters = Counters(END_OF_STATES)
    image, _ = Target("mainline").images(counters.transform)
    return Feedback(counters, image)


def run(one: Feedback, text: str) -> list[int]:
    workload = from_text("world small8\n" + text)
    machine = Machine(one.states.image, workload.geometry)
    for step in workload.steps:
        machine.run_step(step)
    return one.take()


def states(features: list[int]) -> set[int]:
    return {feature for feature in features if feature < END_OF_STATES}


def test_results_and_shapes_tell_workloads_apart() -> None:
    """An errno, or a VMA with an anon_vma, is a state that coverage alone may not show."""
    one = feedback()
    faulted, unfaulted, refused = (states(run(one, text)) for text in (FAULTED, UNFAULTED, REFUSED))
    assert faulted - unfaulted
    assert unfaulted - faulted
    assert refused - unfaulted


def test_where_a_task_stood_is_a_feature() -> None:
    """The schedule decides what ran while another task stood at a point."""
    one = feedback()
    points = ("gup_fast.pte_read", "gup_fast.walked", "end")
    seen = {tuple(sorted(states(run(one, COLLISION.format(point=point))))) for point in points}
    assert len(seen) > 1


def test_runs_do_not_leak_into_each_other() -> None:
    """The same workload has the same features, whatever ran before."""
    one = feedback()
    first = run(one, FAULTED)
    run(one, COLLISION.format(point="any"))
    assert run(one, FAULTED) == first
    assert len(first) == len(set(first))


def test_features_are_the_same_in_every_process() -> None:
    """Workers share a corpus and count the union of what they saw, so numbers must not hang on hash order."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import test_features as t\n"
        "print(t.run(t.feedback(), t.COLLISION.format(point='any')))"
    )
    folder = __file__.rpartition("/")[0]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, folder],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{run(feedback(), COLLISION.format(point='any'))}\n"}


def test_the_account_survives_a_restart() -> None:
    """A resumed campaign must not announce old features as new."""
    one, other = feedback(), feedback()
    features = run(one, FAULTED)
    assert one.note(features)
    assert not one.note(features)
    other.restore(one.seen_bits())
    assert not other.note(features)
    assert other.note([next(number for number in range(FIRST, other.end) if number not in features)])
    other.restore(b"of another size")
    assert not other.note(features)


def test_the_engines_counters_are_the_features() -> None:
    """Every feature has a counter of its own there, and an engine that numbers otherwise is noticed."""
    one = feedback()
    numbers = iter(range(FIRST, 1 << 20))
    one.reserve(lambda: next(numbers))
    assert next(numbers) == one.end
    with pytest.raises(InternalError):
        one.reserve(lambda: next(numbers))
    counted: list[int] = []
    features = run(one, FAULTED)
    one.hand_over(features, counted.append)
    assert counted == features
    assert all(FIRST <= feature < one.end for feature in features)
