"""Finding designs: by the name under which a package offers them, or in a user's own file.

Packages offer designs through the entry point group ``vmafuzz.designs``; a file is named ``FILE.py:NAME``,
``NAME`` being the class or its ``name``, or just ``FILE.py`` when it holds one design.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from emulator.designs.base import Design
from emulator.errors import UsageError
from emulator.image import KernelImage

GROUP: Final = "vmafuzz.designs"


def known() -> dict[str, EntryPoint]:
    """Every design that an installed package offers, by name, sorted."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def find(name: str) -> type[Design]:
    """The design of that name or in that file. Raises ``UsageError`` that says what there is."""
    path, _, class_name = name.partition(":")
    if path.endswith(".py"):
        return _find_in_file(Path(path), class_name)
    points = known()
    point = points.get(name)
    if point is None:
        names = ", ".join(points) or "none is installed: pip install -e ."
        raise UsageError(f"unknown design {name!r}; there are {names}, or write FILE.py:NAME")
    try:
        design = point.load()
    except Exception as error:
        raise UsageError(f"design {name!r} cannot be loaded: {one_line(error)}") from error
    return _checked(design, name)


def load_image(design: type[Design], transform: Callable[..., Any] | None = None) -> KernelImage:
    """The kernel image of a design. What is wrong with the design's own code is a ``UsageError``."""
    try:
        return KernelImage(design, transform)
    except UsageError:
        raise
    except Exception as error:
        if not raised_in_design(error, design):
            raise
        raise UsageError(f"design {design.name!r} cannot be loaded: {one_line(error)}") from error


def raised_in_design(error: BaseException, design: type[Design]) -> bool:
    """Whether the error came out of code in the design's own file, and that is no file of ours."""
    frames = error.__traceback__
    if frames is None:
        return False
    while frames.tb_next is not None:
        frames = frames.tb_next
    path = inspect.getfile(design)
    return frames.tb_frame.f_code.co_filename == path and not design.__module__.startswith("emulator.")


def one_line(error: BaseException) -> str:
    """An exception of somebody else's code in one line: its type and the first line of its text."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _find_in_file(path: Path, class_name: str) -> type[Design]:
    module = _load_file(path.absolute(), path)
    found = {
        value.__name__: value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Design) and value.__module__ == module.__name__
    }
    if not class_name and len(found) == 1:
        return _checked(next(iter(found.values())), str(path))
    for design in found.values():
        if class_name and class_name in (design.__name__, design.name):
            return _checked(design, f"{path}:{class_name}")
    names = ", ".join(sorted(found)) or "none"
    wanted = f"no design {class_name!r}" if class_name else "not exactly one design"
    raise UsageError(f"{path}: {wanted} in this file; it has {names}")


@lru_cache(maxsize=64)
def _load_file(path: Path, shown: Path) -> ModuleType:
    # The name is the same in every process, and inspect finds the file of a class through sys.modules.
    name = f"vmafuzz_design_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{shown}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise UsageError(f"{shown}: cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise UsageError(f"{shown}: cannot be loaded: {one_line(error)}") from error
    return module


def _checked(design: Any, where: str) -> type[Design]:
    if not (inspect.isclass(design) and issubclass(design, Design)):
        raise UsageError(f"{where}: not a subclass of emulator.designs.base.Design")
    if not design.name:
        raise UsageError(f"{where}: the design has no name (set the class attribute 'name')")
    return design
