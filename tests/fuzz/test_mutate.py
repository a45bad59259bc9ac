"""The mutator: total, only valid workloads, small steps and large ones, no drift."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given

from emulator.workload import Op, Step, Workload
from fuzz.workload.domains import all_ops
from fuzz.workload.mutate import STEPS_GROWN_MAX, Mutator, crossover, mutate
from fuzz.workload.repair import is_valid
from fuzz.workload.wire import decode, encode
from tests.fuzz.strategies import SAMPLE_POINTS, generated, quick, seeds, valid, wild


def mutant(workload: Workload, rng: Random) -> Workload:
    return mutate(workload, rng, mremap_flags_extra=8, points=SAMPLE_POINTS)


@quick
@given(wild(), wild(), seeds)
def test_total(a: Workload, b: Workload, seed: int) -> None:
    """No workload, however broken, makes the mutator raise: an exception there ends a campaign."""
    rng = Random(seed)
    assert is_valid(mutant(a, rng))
    assert is_valid(crossover(a, b, rng))


@quick
@given(valid, valid, seeds)
def test_valid(a: Workload, b: Workload, seed: int) -> None:
    """Mutants are valid, encodable, different from their parent, and the same for the same seed."""
    child = mutant(a, Random(seed))
    assert is_valid(child)
    assert decode(encode(child)) == child
    assert child != a
    assert child == mutant(a, Random(seed))
    both = crossover(a, b, Random(seed))
    assert is_valid(both)
    assert both == crossover(a, b, Random(seed))


def test_from_nothing() -> None:
    """The empty workload, where libFuzzer begins, grows."""
    empty = Workload("small8", ())
    assert all(mutant(empty, Random(seed)).steps for seed in range(50))


def test_reaches_everything() -> None:
    """From one parent, each kind of change happens within a few thousand mutants."""
    parent = generated(3, steps=12)
    collisions = [step for step in parent.steps if len(step.ops) > 1]
    assert collisions  # or the seed is of no use here
    parts = {op.args for op in all_ops(parent)}
    seen: Counter[str] = Counter()
    rng = Random(1)
    for _ in range(3000):
        child = mutant(parent, rng)
        steps, ops = child.steps, list(all_ops(child))
        now = [step for step in steps if len(step.ops) > 1]
        seen["longer"] += len(steps) > len(parent.steps)
        seen["shorter"] += len(steps) < len(parent.steps)
        seen["together"] += len(now) > len(collisions) and len(ops) == len(list(all_ops(parent)))
        seen["apart"] += len(now) < len(collisions) and len(ops) == len(list(all_ops(parent)))
        seen["reordered"] += steps != parent.steps and sorted(steps) == sorted(parent.steps)
        seen["rescheduled"] += [s.ops for s in steps] == [
            s.ops for s in parent.steps
        ] and steps != parent.steps
        seen["tweaked"] += sum(op.args not in parts for op in ops) == 1 and len(steps) == len(parent.steps)
        seen["failing"] += sum(op.fail_nth > 0 for op in ops) > sum(op.fail_nth > 0 for op in all_ops(parent))
        seen["other world"] += child.geometry != parent.geometry
        seen["doubled"] += max(Counter(steps).values()) > max(Counter(parent.steps).values())
    assert min(seen.values()) > 0, seen
    assert len(seen) == 10


def test_mostly_small_steps() -> None:
    """Most mutants keep most of their parent; that is what makes a corpus worth having."""
    rng = Random(2)
    kept = []
    for seed in range(200):
        parent = generated(seed, steps=12)
        child = mutant(parent, rng)
        common = sum((Counter(parent.steps) & Counter(child.steps)).values())
        kept.append(common / len(parent.steps))
    kept.sort()
    assert kept[len(kept) // 2] > 0.8
    assert kept[0] < 0.6  # and there are leaps


def test_insertions_favour_the_end() -> None:
    """New steps come rather late, where there is state to meet."""
    rng = Random(3)
    late = early = 0
    parents = [generated(seed, steps=12) for seed in range(100)]
    for number in range(2000):
        parent = parents[number % len(parents)]
        child = mutant(parent, rng)
        for place in range(len(child.steps)):
            if child.steps[:place] + child.steps[place + 1 :] == parent.steps:
                late += place * 2 > len(parent.steps)
                early += place * 2 < len(parent.steps)
                break
    assert late > 1.5 * early
    assert early > 0


def test_no_drift() -> None:
    """Mutants of mutants without selection neither grow to the limit, nor vanish, nor become all collisions."""
    rng = Random(4)
    mutator = Mutator(rng, mremap_flags_extra=8, points=SAMPLE_POINTS)
    pool = [generated(seed) for seed in range(30)]
    for _ in range(3000):
        pool[rng.randrange(len(pool))] = mutator.mutate(rng.choice(pool))
    sizes = sorted(len(workload.steps) for workload in pool)
    assert 6 < sizes[len(sizes) // 2] < 26
    assert sizes[-1] <= STEPS_GROWN_MAX + 8
    steps = [step for workload in pool for step in workload.steps]
    assert 0.05 < sum(len(step.ops) > 1 for step in steps) / len(steps) < 0.6


def test_no_memory() -> None:
    """What a mutator did before does not change what a seed gives: a campaign's finds can be retraced."""
    rng = Random(0)
    mutator = Mutator(rng, mremap_flags_extra=8, points=SAMPLE_POINTS)
    for seed in range(60):
        parent = generated(seed)
        rng.seed(seed)
        assert mutator.mutate(parent) == mutant(parent, Random(seed))


def test_crossover_takes_from_both() -> None:
    """Children of two parents have steps of each, in the world of the first."""
    rng = Random(5)
    mixed = 0
    for seed in range(100):
        a, b = generated(seed), generated(seed + 1000, "x86-64")
        child = crossover(a, b, rng)
        assert child.geometry == a.geometry
        only_a = set(a.steps) & set(child.steps)
        mixed += bool(only_a) and len(only_a) < len(child.steps)
    assert mixed > 50


def test_extra_flags_only_if_asked() -> None:
    """Mutants for a design without flags of its own stay within mremap's."""
    parent = Workload("small8", (Step((Op("mremap", 0, (1, 2, 2, 3, 30)),)),) * 3)
    rng = Random(6)
    seen = set()
    for _ in range(3000):
        child = mutate(parent, rng, points=SAMPLE_POINTS)
        seen |= {op.args[3] for op in all_ops(child) if op.kind == "mremap"}
    assert seen == set(range(8))
