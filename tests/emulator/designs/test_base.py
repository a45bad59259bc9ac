"""What every design has to say of itself."""

from __future__ import annotations

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.relocate_anon import RelocateAnon
from emulator.uapi import MREMAP_RELOCATE_ANON


@pytest.mark.parametrize("design", [Mainline, RelocateAnon])
def test_described(design: type[Design]) -> None:
    """A name, a summary and where it comes from."""
    assert design.name
    assert design.summary
    assert design.source


def test_mainline_replaces_nothing() -> None:
    """It is the reference."""
    assert Mainline.replacements(lambda path, name: pytest.fail("no file to load")) == {}
    assert Mainline.mremap_flags == 0


def test_relocation_adds_a_flag() -> None:
    """To the mremap interface."""
    assert RelocateAnon.mremap_flags == MREMAP_RELOCATE_ANON
