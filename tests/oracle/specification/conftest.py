"""What the tests of the specification share."""

from __future__ import annotations

import pytest

from tests.oracle.specification.bench import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()
