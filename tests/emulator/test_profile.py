"""Profiles: which one stands for a running kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.errors import UsageError
from emulator.profile import PROFILES, Profile, nearest, release_number


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("6.18.44-foo", "6.18"),
        ("6.18", "6.18"),
        ("6.19.0-rc3", "6.18"),
        ("6.8.0-31-generic", "5.17"),
        ("6.1.0-40-amd64", "5.17"),
        ("5.17.15", "5.17"),
        ("5.4.0", "5.17"),
        ("4.18.0-553.el8", "5.17"),
        ("7.0.1", "7.0"),
        ("7.12-rc1", "7.0"),
        ("10.2.0", "7.0"),
    ],
)
def test_nearest(release: str, name: str) -> None:
    """Not newer than the kernel that runs where there is such a one; numbers are compared as numbers."""
    assert nearest(release) is PROFILES[name]


@pytest.mark.parametrize("release", ["", "linux", "6", "v6.18"])
def test_no_release(release: str) -> None:
    """What is no release is the user's mistake, said in a line."""
    with pytest.raises(UsageError, match="is no release of Linux"):
        nearest(release)


def test_profiles_are_in_order() -> None:
    """``nearest`` counts on it."""
    numbers = [release_number(name) for name in PROFILES]
    assert numbers == sorted(numbers)
    assert all(profile.name == name for name, profile in PROFILES.items())


def test_the_table_of_kernels_is_whole() -> None:
    """docs/machine.md has a row for each rule that differs, and none for one that is no more."""
    text = (Path(__file__).parents[2] / "docs/machine.md").read_text()
    rows = [line.split("|") for line in text.split("## Kernels")[1].split("\n## ")[0].splitlines() if "`" in line]
    named = {field.strip(" `") for row in rows if len(row) == 7 for field in row[2].split(",")}
    differ = {f for f in Profile._fields if f != "name" and len({getattr(p, f) for p in PROFILES.values()}) > 1}
    assert named == differ
