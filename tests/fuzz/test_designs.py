"""Designs are found by name and in files, and what is wrong with one is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.designs.mainline import Mainline
from emulator.errors import UsageError
from fuzz import designs

OWN = '''
from emulator.designs.base import Design

def sys_munmap(mm, start, length):
    return 0

class Lazy(Design):
    name = "lazy"
    replaces = {"munmap.sys_munmap": sys_munmap}
'''


def design_file(folder: Path, text: str) -> Path:
    place = folder / "own.py"
    place.write_text(text)
    return place


def test_built_in_designs_come_through_the_entry_points() -> None:
    """The names of the command line."""
    assert {"mainline", "relocate-anon"} <= designs.known().keys()
    assert designs.find("mainline") is Mainline


def test_an_unknown_name_lists_the_known_ones() -> None:
    """Whoever mistypes sees what there is."""
    with pytest.raises(UsageError, match=r"unknown design 'mainlin'; there are .*mainline.*FILE.py:NAME"):
        designs.find("mainlin")


@pytest.mark.parametrize("name", ["", ":Lazy", ":lazy"])
def test_a_users_own_file(tmp_path: Path, name: str) -> None:
    """By class, by name, or alone in its file; the image runs its function."""
    design = designs.find(f"{design_file(tmp_path, OWN)}{name}")
    image = designs.load_image(design)
    assert design.name == "lazy"
    assert image.munmap.sys_munmap(None, 0, 0) == 0


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (OWN, ":Other", "no design 'Other' in this file; it has Lazy"),
        ("x = 1", "", "not exactly one design in this file; it has none"),
        ("def (", "", "cannot be loaded: SyntaxError"),
        ("import nothing_of_that_name", "", "cannot be loaded: ModuleNotFoundError: No module named"),
        (OWN.replace('name = "lazy"', ""), "", "the design has no name"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, name: str, message: str) -> None:
    """A user's mistake is a usage error, never a traceback."""
    with pytest.raises(UsageError, match=message) as caught:
        designs.find(f"{design_file(tmp_path, text)}{name}")
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    """Also when there is no such file."""
    with pytest.raises(UsageError, match=r"none.py: cannot be read: No such file"):
        designs.find(f"{tmp_path}/none.py:X")


def test_a_replacement_of_nothing_is_refused(tmp_path: Path) -> None:
    """A misspelt function name must not make a design that changes nothing."""
    design = designs.find(str(design_file(tmp_path, OWN.replace("munmap.sys_munmap", "munmap.sys_mumap"))))
    with pytest.raises(UsageError, match=r"replaces 'munmap\.sys_mumap', but emulator/mm has no such function"):
        designs.load_image(design)
