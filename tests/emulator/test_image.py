"""Kernel images: private copies of emulator/mm, with a design's functions put in."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.relocate_anon import RelocateAnon
from emulator.errors import UsageError
from emulator.image import MM_FOLDER, KernelImage
from emulator.machine import Machine
from emulator.workload import Op, Step
from tests.emulator.kernel_world import kernel_image

MODULES = sorted(path.stem for path in MM_FOLDER.glob("*.py") if path.stem != "__init__")


def write_design(folder: Path, text: str) -> type[Design]:
    """A user's design in a file of its own, imported as an ordinary module."""
    name = f"user_design_{folder.name}"
    path = folder / f"{name}.py"
    path.write_text(text)
    sys.path.insert(0, str(folder))
    try:
        module = __import__(name)
    finally:
        sys.path.remove(str(folder))
    found: type[Design] = module.UserDesign
    return found


def test_every_file_is_loaded() -> None:
    """Each file of emulator/mm is a module of the image, under its name."""
    image = kernel_image(Mainline)
    for name in MODULES:
        assert getattr(image, name).__name__ == f"emulator.mm.{name}"
    with pytest.raises(AttributeError, match="no module 'nonsense'"):
        _ = image.nonsense


def test_images_do_not_see_each_other() -> None:
    """A replacement in one image is not seen in another, made before or after."""
    before = KernelImage(Mainline)
    relocating = KernelImage(RelocateAnon)
    after = KernelImage(Mainline)
    assert relocating.mremap.copy_vma_and_data.__module__ == "emulator.designs.relocate_anon"
    for image in (before, after):
        assert image.mremap.copy_vma_and_data.__module__ == "emulator.mm.mremap"
        assert image.mremap.copy_vma_and_data is image.mremap.move_vma.__globals__["copy_vma_and_data"]


def test_modules_of_one_image_see_each_other_only() -> None:
    """Imports inside of an image lead to the image's own modules, and never to a shared one."""
    one, two = KernelImage(Mainline), KernelImage(Mainline)
    assert one.mremap.vma is one.vma
    assert one.vma.rmap is one.rmap
    assert one.vma is not two.vma
    assert "emulator.mm.vma" not in sys.modules or sys.modules["emulator.mm.vma"] is not one.vma


def test_replacement_is_called_by_the_other_modules(tmp_path: Path) -> None:
    """Calls go through the module, so that everybody sees the replacement; its imports are the image's."""
    design = write_design(
        tmp_path,
        """
from emulator.designs.base import Design
from emulator.mm import vma

def vma_pages(area):
    return vma.linear_page_index(area, area.vm_start)

class UserDesign(Design):
    name = "user"
    replaces = {"vma.vma_pages": vma_pages}
""",
    )
    image = KernelImage(design)
    assert image.munmap.vma.vma_pages is image.vma.vma_pages
    assert image.vma.vma_pages.__globals__["vma"] is image.vma
    assert image.vma.can_vma_merge_after.__globals__["vma_pages"] is image.vma.vma_pages


def test_original(tmp_path: Path) -> None:
    """A first parameter called original gets the function that is replaced."""
    design = write_design(
        tmp_path,
        """
from emulator.designs.base import Design

def calc_vm_prot_bits(original, prot):
    return original(prot) | 64

def low_limit(mm):
    return 7

class UserDesign(Design):
    name = "user"
    replaces = {"mmap.calc_vm_prot_bits": calc_vm_prot_bits, "mmap.low_limit": low_limit}
""",
    )
    image = KernelImage(design)
    assert image.mmap.calc_vm_prot_bits(3) == 67
    assert image.mmap.low_limit(None) == 7
    assert KernelImage(Mainline).mmap.calc_vm_prot_bits(3) == 3


@pytest.mark.parametrize(
    "name",
    ["vma.no_such_function", "nowhere.vma_pages", "vma_pages", "vma.VMA_MERGE_START", "relocate_anon.give_up"],
)
def test_unknown_function(tmp_path: Path, name: str) -> None:
    """Said as a usage error that names the design, the function and the files there are."""
    design = write_design(
        tmp_path,
        f"""
from emulator.designs.base import Design

class UserDesign(Design):
    name = "typo"
    replaces = {{"{name}": lambda: None}}
""",
    )
    with pytest.raises(UsageError) as caught:
        KernelImage(design)
    message = str(caught.value)
    assert "'typo'" in message
    assert repr(name) in message
    assert all(module in message for module in ("mremap", "vma", "rmap"))


def test_design_that_builds_on_another(tmp_path: Path) -> None:
    """It has the other's replacements, its own come on top and may call the other's functions."""
    design = write_design(
        tmp_path,
        """
from emulator.designs import relocate_anon
from emulator.designs.relocate_anon import RelocateAnon
from emulator.mm import mremap

def check_mremap_params(original, vrm):
    return original(vrm) or -99

class UserDesign(RelocateAnon):
    name = "stricter"
    replaces = {"mremap.check_mremap_params": check_mremap_params}
""",
    )
    image = KernelImage(design)
    assert image.mremap.copy_vma_and_data.__module__ == "emulator.designs.relocate_anon"
    assert image.mremap.copy_vma_and_data.__globals__["mremap"] is image.mremap
    assert image.mremap.check_mremap_params.func.__name__ == "check_mremap_params"
    assert design.mremap_flags == RelocateAnon.mremap_flags


def test_design_replaces_functions_of_another(tmp_path: Path) -> None:
    """A subclass names its parent's functions by the parent's file; the parent itself stays as it is."""
    design = write_design(
        tmp_path,
        """
from emulator.designs.relocate_anon import RelocateAnon

def give_up(original, vrm, pmc, reached):
    return original(vrm, pmc, reached)

class UserDesign(RelocateAnon):
    name = "strict"
    replaces = {"relocate_anon.give_up": give_up}
""",
    )
    of_parent = KernelImage(design).mremap.copy_vma_and_data.__globals__
    assert of_parent["give_up"].func.__name__ == "give_up"
    assert of_parent["give_up"].args[0].__globals__ is of_parent
    assert not hasattr(KernelImage(RelocateAnon).mremap.copy_vma_and_data.__globals__["give_up"], "func")


def test_base_class_replacements_come_first(tmp_path: Path) -> None:
    """Where both replace a function the subclass's counts; its original is mainline's."""
    design = write_design(
        tmp_path,
        """
from emulator.designs.base import Design

def base(prot):
    return 1

def derived(prot):
    return 2

class Base(Design):
    name = "base"
    replaces = {"mmap.calc_vm_prot_bits": base, "mmap.low_limit": base}

class UserDesign(Base):
    name = "derived"
    replaces = {"mmap.calc_vm_prot_bits": derived}
""",
    )
    image = KernelImage(design)
    assert image.mmap.calc_vm_prot_bits(0) == 2
    assert image.mmap.low_limit(0) == 1


def test_transform() -> None:
    """A caller may rewrite the tree of every file of the image, mm and designs; other images stay as written."""
    seen: list[str] = []

    def note(tree: ast.Module, name: str) -> ast.Module:
        seen.append(Path(name).stem)
        tree.body.append(ast.parse("transformed = True").body[0])
        return tree

    image = KernelImage(RelocateAnon, note)
    assert set(MODULES) <= set(seen)
    assert "relocate_anon" in seen
    assert image.vma.transformed
    assert not hasattr(KernelImage(Mainline).vma, "transformed")


# ---- what the sources must be like for this to work


@pytest.mark.parametrize("name", MODULES)
def test_mm_imports_modules_not_functions(name: str) -> None:
    """A function imported by name would go past a design's replacement."""
    tree = ast.parse((MM_FOLDER / f"{name}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("emulator.mm."), ast.unparse(node)
            assert not (node.module or "").startswith(("oracle", "fuzz")), ast.unparse(node)
            if node.module == "emulator.mm":
                assert {alias.name for alias in node.names} <= set(MODULES)
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("emulator.mm") for alias in node.names)


@pytest.mark.parametrize("name", MODULES)
def test_mm_asks_nothing_while_it_loads(name: str) -> None:
    """Imports go in circles: whichever module a design imports first, none may need another to be there already."""
    tree = ast.parse((MM_FOLDER / f"{name}.py").read_text())
    modules = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "emulator.mm"
        for alias in node.names
    }
    for statement in tree.body:
        at_once: list[ast.AST] = [statement]
        if isinstance(statement, ast.FunctionDef):
            at_once = [*statement.args.defaults, *filter(None, statement.args.kw_defaults), *statement.decorator_list]
        for node in (node for part in at_once for node in ast.walk(part)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id not in modules or inside_function(statement, node), ast.unparse(node)


def inside_function(statement: ast.AST, wanted: ast.AST) -> bool:
    """Does the node stand in a function of the statement (a method of a class)?"""
    functions = [node for node in ast.walk(statement) if isinstance(node, ast.FunctionDef)]
    return any(node is wanted for function in functions for node in ast.walk(function))


@pytest.mark.parametrize("name", MODULES)
def test_mm_has_no_state(name: str) -> None:
    """No function sets a global of its module: images are shared by all machines of a process."""
    tree = ast.parse((MM_FOLDER / f"{name}.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Global, ast.Nonlocal))]


def test_probes_go_on_and_come_off() -> None:
    """A probe sees the calls of its image, from other modules too, and of no other; off, nothing of it is left."""
    image, other = KernelImage(Mainline), KernelImage(Mainline)
    before = image.vma.vma_pages
    heard: list[str] = []

    def probe(name: str) -> Callable[..., int]:
        def wrapper(original: Callable[..., int], *args: object) -> int:
            heard.append(name)
            return original(*args)

        return wrapper

    off = [image.attach("vma.vma_pages", probe(name)) for name in ("inner", "outer")]
    machine = Machine(image)
    machine.run_step(Step((Op("mmap", 0, (0, 2, 3, 0x12, 0, 0)),)))
    machine.run_step(Step((Op("mremap", 0, (0, 2, 2, 3, 40)),)))
    assert heard[:2] == ["outer", "inner"]
    for take_off in reversed(off):
        take_off()
    assert image.vma.vma_pages is before
    assert other.vma.vma_pages.__name__ == "vma_pages"
