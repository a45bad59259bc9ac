"""The merge rules of the profile's kernel, nothing changed: the reference."""

from __future__ import annotations

from emulator.designs.base import Design


class Mainline(Design):
    """What Linux does today."""

    name = "mainline"
    summary = "the merge rules of the profile's kernel"
    source = "Linux"
