"""The measurements run, in a process of their own, under the real engine."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from emulator.errors import InternalError
from fuzz import cli
from fuzz.campaign import benchmark

pytestmark = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs Atheris")


def test_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the project states as its speed can be measured by anybody."""
    assert cli.run(["bench", "speed", "--time", "0.3", "--json", str(tmp_path / "b.json")]) == 0
    result = json.loads((tmp_path / "b.json").read_text())
    assert (result["design"], result["steps"]) == ("relocate-anon", 16)
    (own,) = result["speeds"]
    assert own["instrumentation"] == "own"
    assert own["execs_per_second"] > 10
    assert own["steps_per_second"] > own["execs_per_second"]
    assert own["campaign_execs_per_second"] > 10
    assert "workloads/s" in " ".join(capsys.readouterr().out.split())


def test_stock_instrumentation_is_what_it_says() -> None:
    """The comparison is with code that really is instrumented: then the engine can run a campaign on it."""
    stock = benchmark.measure("stock", "mainline", 0.5, 1, workloads=8)
    assert stock.execs > 0
    assert stock.campaign_execs > 8  # without features the engine gives up after the seeds


def test_a_failing_benchmark_says_why() -> None:
    """No figure is better than a wrong one."""
    with pytest.raises(InternalError, match=r"ended with status \d+: .*unknown design 'nonesuch'"):
        benchmark.measure("own", "nonesuch", 0.1, 1)
