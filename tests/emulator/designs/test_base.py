"""What every design has to say of itself."""

from __future__ import annotations

import inspect

import pytest

from emulator.designs.mainline import Mainline
from emulator.designs.relocate_anon import RelocateAnon
from emulator.designs.relocate_anon_series import RelocateAnonSeries
from emulator.uapi import MREMAP_MUST_RELOCATE_ANON, MREMAP_RELOCATE_ANON
from fuzz import designs

OURS = [name for name, point in designs.known().items() if point.value.startswith("emulator.designs.")]


@pytest.mark.parametrize("name", OURS)
def test_described(name: str) -> None:
    """Each design that comes with the machine: its name, a summary, where it comes from; and its functions exist."""
    design = designs.find(name)
    assert design.name == name
    assert design.summary
    assert design.source
    assert inspect.getdoc(inspect.getmodule(design))
    designs.load_image(design)


def test_mainline_replaces_nothing() -> None:
    """It is the reference."""
    assert Mainline.replacements(lambda path, name: pytest.fail("no file to load")) == {}
    assert Mainline.mremap_flags == 0


def test_relocation_adds_a_flag() -> None:
    """To the mremap interface; the series two."""
    assert RelocateAnon.mremap_flags == MREMAP_RELOCATE_ANON
    assert RelocateAnonSeries.mremap_flags == MREMAP_RELOCATE_ANON | MREMAP_MUST_RELOCATE_ANON
