"""The machine code of live accesses: each gives 0, SIGSEGV or SIGBUS exactly, and nothing else is caught."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.uapi import EINVAL, SIGBUS, SIGSEGV
from oracle.live.machine_code import CODE_SIZE, assemble
from tests.oracle.live.running_kernel import on_linux, run_script


@pytest.fixture(scope="module")
def found() -> Any:
    return run_script("tests.oracle.live.accesses")


@on_linux
@pytest.mark.parametrize(
    ("page", "load", "store", "fetch"),
    [
        ("hole", [SIGSEGV, None], SIGSEGV, SIGSEGV),
        ("nothing", [SIGSEGV, None], SIGSEGV, SIGSEGV),
        ("r", [0, []], SIGSEGV, SIGSEGV),
        ("rw", [0, []], 0, SIGSEGV),
        ("rx", [0, []], SIGSEGV, 0),
        ("file", [0, [[0, 0x1234_5678_9ABC]]], 0, 0),
        ("beyond", [SIGBUS, None], SIGBUS, SIGBUS),
        ("written", [0, [[0, 100], [3, 103]]], SIGSEGV, 0),
    ],
)
def test_accesses_end_as_the_page_demands(found: Any, page: str, load: Any, store: int, fetch: int) -> None:
    """Loads, stores and fetches on pages of every kind, and the contents that a load finds."""
    assert found["accesses"][page] == {"load": load, "store": store, "fetch": fetch}


@on_linux
def test_a_fault_that_is_no_access_ends_the_process(found: Any) -> None:
    """The handler recovers accesses only: a mistake of ours must not go unseen."""
    assert found["own fault dies"]


@on_linux
def test_system_calls_give_errors_as_negative_numbers(found: Any) -> None:
    assert found["calls"] == {"getpid": True, "bad": -EINVAL}


def test_the_code_fits_its_page() -> None:
    code, entries = assemble()
    assert len(code) <= CODE_SIZE
    assert all(0 <= offset < len(code) for offset in entries.values())
