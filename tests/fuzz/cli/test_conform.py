"""Which kernel ``vmafuzz conform`` compares with when nobody says."""

from __future__ import annotations

import pytest

from emulator.errors import UsageError
from fuzz.cli.conform import profile_of

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("given", "release", "chosen", "said"),
    [
        (None, "6.18.44-fc", "6.18", ""),
        (None, "6.12.9", "5.17", "profile 5.17 is the nearest to Linux 6.12.9"),
        ("7.0", "6.12.9", "7.0", ""),
    ],
)
def test_profile(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, given: str | None, release: str, chosen: str, said: str
) -> None:
    """The one that is asked for, else the nearest; that it is another kernel's is said."""
    monkeypatch.setattr("platform.release", lambda: release)
    assert profile_of(given) == chosen
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(said)
    assert bool(captured.err) == bool(said)


def test_unknown_profile() -> None:
    """A mistake of the user, not a KeyError."""
    with pytest.raises(UsageError, match=r"unknown profile '2\.4'; there are 5\.17, 6\.18, 7\.0"):
        profile_of("2.4")
