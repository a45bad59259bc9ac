"""Mutator and crossover as the engine calls them: total, and only ever yielding workloads."""

from __future__ import annotations

import pytest

from fuzz.campaign.breeding import SIZE_MAX, Breeder
from fuzz.campaign.seeds import seed_inputs
from fuzz.workload import wire
from fuzz.workload.repair import is_valid

SEEDS = seed_inputs(1)


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff" * 10, bytes(range(64)), b"\x91" * 3000])
def test_bytes_that_are_no_workload_become_one(data: bytes) -> None:
    """The engine starts from the empty input; what it is given back must be worth running."""
    breeder = Breeder()
    assert breeder.decode(data) is None
    for child in (breeder.mutate(data, SIZE_MAX, 1), breeder.cross(data, SEEDS[0], SIZE_MAX, 1)):
        assert wire.decode(child).steps


def test_children_are_valid_and_the_seed_decides() -> None:
    """A campaign with the same seed breeds the same, whatever the breeder did before."""
    one, other = Breeder(8), Breeder(8)
    for number, data in enumerate(SEEDS):
        child = one.mutate(data, SIZE_MAX, number)
        crossed = one.cross(data, SEEDS[0], SIZE_MAX, number)
        assert is_valid(wire.decode(child))
        assert is_valid(wire.decode(crossed))
    for number, data in reversed(list(enumerate(SEEDS))):
        assert other.mutate(data, SIZE_MAX, number) == Breeder(8).mutate(data, SIZE_MAX, number)


def test_children_keep_within_the_size() -> None:
    """The engine ends the process when a child is longer than it allows."""
    breeder = Breeder()
    for limit in (0, 1, 40, 200):
        for number, data in enumerate(SEEDS):
            assert len(breeder.mutate(data, limit, number)) <= limit
            assert len(breeder.cross(data, SEEDS[1], limit, number)) <= limit


def test_seeds_are_distinct_and_hang_on_the_seed() -> None:
    """Two campaigns with other seeds begin elsewhere."""
    assert len(set(SEEDS)) == len(SEEDS) >= 16
    assert seed_inputs(1) == SEEDS
    assert seed_inputs(2) != SEEDS
