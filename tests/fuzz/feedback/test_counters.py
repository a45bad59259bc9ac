"""Our own coverage counters: they see every branch, and the code does what it did."""

from __future__ import annotations

import ast
import contextlib
import textwrap
from typing import Any

import pytest

from fuzz.feedback.counters import BUCKETS, Counters


def compiled(source: str, counters: Counters | None = None) -> dict[str, Any]:
    """The globals of the module, instrumented if counters are given."""
    tree = ast.parse(textwrap.dedent(source))
    if counters is not None:
        tree = counters.transform(tree, "sample.py")
    namespace: dict[str, Any] = {}
    exec(compile(tree, "sample.py", "exec"), namespace)
    return namespace


def reached(counters: Counters) -> list[str]:
    """What the sites that were hit are called."""
    return [counters.site_of(feature).what for feature in counters.take()]


BRANCHES = '''
"""Docstring."""
from __future__ import annotations

def f(x):
    """Docstring."""
    if x == 0:
        return "zero"
    if x == 1:
        y = "one"
    elif x == 2:
        y = "two"
    else:
        y = "more"
    for _ in range(x):
        pass
    while x > 100:
        x -= 1
    try:
        if x == 5:
            raise KeyError
    except KeyError:
        y = "five"
    match x:
        case 7:
            y = "seven"
        case _:
            pass
    return y if x != 8 else "eight"

class C:
    def g(self, a, b):
        return (a and b, a or b, a and not b or b)
'''


def test_every_branch_has_features_of_its_own() -> None:
    """Two inputs that take different branches must differ in their features."""
    counters = Counters()
    f = compiled(BRANCHES, counters)["f"]
    counters.take()
    seen = set()
    for x in (0, 1, 2, 3, 5, 7, 8, 101):
        f(x)
        seen.add(tuple(counters.take()))
    assert len(seen) == 8
    f(0)
    assert reached(counters) == ["def f", "if"]


def test_the_code_does_what_it_did() -> None:
    """Instrumentation must not change results: values of and/or are kept, not only their truth."""
    plain, counted = compiled(BRANCHES), compiled(BRANCHES, Counters())
    for x in (0, 1, 2, 3, 5, 7, 8, 101):
        assert counted["f"](x) == plain["f"](x)
    values: list[object] = [0, 1, "a", "", None, []]
    for a in values:
        for b in values:
            assert counted["C"]().g(a, b) == plain["C"]().g(a, b)
    assert counted["__doc__"] == plain["__doc__"]
    assert counted["f"].__doc__ == plain["f"].__doc__


@pytest.mark.parametrize(("op", "a", "expected"), [("and", 1, 1), ("and", 0, 0), ("or", 0, 1), ("or", 1, 0)])
def test_short_circuits_are_counted(op: str, a: int, expected: int) -> None:
    """Whether the second half of a condition was asked is a branch, too."""
    counters = Counters()
    f = compiled(f"def f(a, b): return a {op} b", counters)["f"]
    f(a, 1)
    assert reached(counters).count(op) == expected


def test_counts_fall_into_eight_buckets() -> None:
    """Counts are told apart as libFuzzer does; hit flags alone would lose what only repetition shows."""
    counters = Counters()
    f = compiled("def f(): pass", counters)["f"]
    buckets = {}
    for count in (1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 127, 128, 5000):
        for _ in range(count):
            f()
        (feature,) = counters.take()
        buckets[count] = feature % BUCKETS
    assert list(buckets.values()) == [0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


def test_taking_resets() -> None:
    """A run must not inherit counts of the one before, not even of one that died half-way."""
    counters = Counters()
    f = compiled("def f(x):\n    for i in range(x): 1 // (i - 2)", counters)["f"]
    with contextlib.suppress(ZeroDivisionError):
        f(5)
    first = counters.take()
    assert first
    assert counters.take() == []
    with contextlib.suppress(ZeroDivisionError):
        f(5)
    assert counters.take() == first


def test_numbers_and_fingerprint_hang_on_the_code_alone() -> None:
    """Workers share what features mean; other code must be told apart."""
    one, other, changed = Counters(), Counters(), Counters()
    compiled(BRANCHES, one)
    compiled(BRANCHES, other)
    compiled(BRANCHES.replace("x == 5", "x == 6"), changed)
    assert one.sites == other.sites
    assert one.fingerprint == other.fingerprint != changed.fingerprint
