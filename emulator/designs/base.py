"""What a design is: a small class that overrides only what it changes.

::

    from emulator.designs.base import Design
    from emulator.mm import vma

    def dup_anon_vma(vmg, dst, src):
        return 0

    class ForgetsAnonVma(Design):
        name = "forgets-anon-vma"
        summary = "merging forgets to take over the neighbour's anon_vma"
        replaces = {"vma.dup_anon_vma": dup_anon_vma}

A replacement has the signature of the function that it replaces. When its first parameter is called
``original``, it is given the replaced function there. The file of a design runs inside the kernel image,
so ``from emulator.mm import vma`` in it means that image's ``vma``. A design that is a subclass of another
replaces that one's functions the same way: ``relocate_anon.give_up``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar


class Design:
    """One way to merge and relocate VMAs. Subclass it and mark functions with ``replaces``."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""  # where it was proposed
    mremap_flags: ClassVar[int] = 0  # MREMAP_* bits that this design adds to the interface
    mends: ClassVar[str] = ""  # the design whose faults it mends, and which is no reference for it therefore

    replaces: ClassVar[Mapping[str, Callable[..., Any]]] = {}  # "file.function" of mm or a parent to function

    @classmethod
    def replacements(cls, load_file: Callable[[Path, str], ModuleType]) -> dict[str, Callable[..., Any]]:
        """What the design and its parents replace; ``load_file`` runs a design's file in a kernel image."""
        found: dict[str, Callable[..., Any]] = {}
        for base in reversed(cls.__mro__):
            if "replaces" in vars(base) and base is not Design:
                module = load_file(Path(inspect.getfile(base)), base.__module__)
                found.update(getattr(module, base.__name__).replaces)
        return found
