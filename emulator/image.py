"""Kernel images: a private copy of ``emulator.mm`` with a design's functions put in.

``KernelImage(design)`` loads every module of ``emulator/mm`` afresh and sets the functions that the design
replaces on their modules before anything runs. Calls inside the kernel go through module attributes, so
everybody sees the replacement, and two designs live side by side in one process without global state.

The same loader lets a caller rewrite the syntax tree (coverage counters) of exactly these modules.
"""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from emulator.errors import UsageError

if TYPE_CHECKING:
    from emulator.designs.base import Design

MM_PACKAGE: Final = "emulator.mm"
MM_FOLDER: Final = Path(__file__).parent / "mm"
DESIGNS_PACKAGE: Final = "emulator.designs."
DESIGNS_FOLDER: Final = Path(__file__).parent / "designs"

Transform = Callable[[ast.Module, str], ast.Module]
"""Rewrites the tree of one source file; gets the tree and the file's name."""


class KernelImage:
    """The modules of ``emulator/mm`` as one design has them: ``image.mremap.do_mremap`` and so on."""

    def __init__(self, design: Design | type[Design], transform: Transform | None = None) -> None:
        self.design = design
        self._transform = transform
        self._modules: dict[str, ModuleType] = {}
        self._designs: dict[str, ModuleType] = {}
        self._builtins = dict(vars(builtins), __import__=self._import)
        for path in sorted(MM_FOLDER.glob("*.py")):
            if path.stem != "__init__":
                self._load(path.stem)
        for name, function in design.replacements(self._load_design).items():
            self._replace(name, function)

    def __getattr__(self, name: str) -> Any:
        module: ModuleType | None = self.__dict__.get("_modules", {}).get(name)
        if module is None:
            raise AttributeError(f"the kernel image has no module {name!r}")
        self.__dict__[name] = module  # next time without this detour
        return module

    def attach(self, name: str, wrapper: Callable[..., Any]) -> Callable[[], None]:
        """A probe, as ftrace sets it: calls of ``file.function`` go through ``wrapper(original, …)`` from now on.

        Returns what takes it off again; probes of one function come off in the opposite order.
        """
        module_name, _, attribute = name.partition(".")
        module = self._modules[module_name]
        original = getattr(module, attribute)
        setattr(module, attribute, functools.partial(wrapper, original))
        return lambda: setattr(module, attribute, original)

    def _replace(self, name: str, function: Callable[..., Any]) -> None:
        module_name, _, attribute = name.partition(".")
        module = self._modules.get(module_name) or self._designs.get(DESIGNS_PACKAGE + module_name)
        original = getattr(module, attribute, None)
        if module is None or not callable(original):
            known = ", ".join(sorted(self._modules))
            raise UsageError(
                f"design {self.design.name!r} replaces {name!r}, but emulator/mm has no such function, nor has "
                f"a design that it builds on (write it as file.function; files: {known})"
            )
        code = function.__code__
        if code.co_argcount and code.co_varnames[0] == "original":
            function = functools.partial(function, original)
        setattr(module, attribute, function)

    def _load(self, stem: str) -> ModuleType:
        module = self._modules.get(stem)
        if module is None:
            module = self._load_file(MM_FOLDER / f"{stem}.py", f"{MM_PACKAGE}.{stem}", self._modules, stem)
        return module

    def _load_design(self, path: Path, name: str) -> ModuleType:
        """The file of a design, run once: what builds on it replaces functions of the one that everybody runs."""
        return self._designs.get(name) or self._load_file(path, name, self._designs, name)

    def _load_file(self, path: Path, name: str, loaded: dict[str, ModuleType], key: str) -> ModuleType:
        """Run one source file inside this image: its imports of ``emulator.mm`` give this image's modules."""
        module = ModuleType(name)
        module.__file__ = str(path)
        module.__dict__["__builtins__"] = self._builtins
        loaded[key] = module  # before it runs, as imports here go in circles
        tree = ast.parse(path.read_bytes(), str(path))
        if self._transform is not None:
            tree = self._transform(tree, str(path))
        exec(compile(tree, str(path), "exec"), module.__dict__)
        return module

    def _import(
        self,
        name: str,
        globals_: Mapping[str, Any] | None = None,
        locals_: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        if level == 0 and name.startswith(DESIGNS_PACKAGE) and name != f"{DESIGNS_PACKAGE}base":
            # a design that builds on another gets that one's functions as they run in this image
            return self._load_design(DESIGNS_FOLDER / f"{name.removeprefix(DESIGNS_PACKAGE)}.py", name)
        if level == 0 and name == MM_PACKAGE and fromlist:
            package = ModuleType(MM_PACKAGE)
            for stem in fromlist:
                setattr(package, stem, self._load(stem))
            return package
        return builtins.__import__(name, globals_, locals_, fromlist, level)
