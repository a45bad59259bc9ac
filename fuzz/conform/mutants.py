"""One-line mistakes planted in the machine: how many of them does a comparison with the running kernel notice?

A mutant changes one expression or drops one statement of ``emulator/mm`` while an image is loaded; no file is touched.
Only lines that a conformance round really runs are mutated: a mistake in code that a running kernel cannot be asked
to run can show in no comparison.
"""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Final, NamedTuple

from emulator.image import MM_FOLDER

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}

Lines = set[tuple[str, int]]
"""(file name, line) that were run."""


class Mutant(NamedTuple):
    """The ``number``-th mutable place of a file, and what is done there."""

    file: str
    line: int
    number: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  ->  {self.after}"

    def transform(self, tree: ast.Module, path: str) -> ast.Module:
        """Plant it (an ``emulator.image.Transform``)."""
        if Path(path).name != self.file or Path(path).parent != MM_FOLDER:
            return tree
        for number, (node, change) in enumerate(_places(tree)):
            if number == self.number:
                change(node)
                return ast.fix_missing_locations(tree)
        raise AssertionError(f"{self.file} has no mutable place {self.number}")


def mutants(lines: Lines) -> list[Mutant]:
    """Every mutant on these lines, in order of file and place."""
    found = []
    for path in sorted(MM_FOLDER.glob("*.py")):
        tree = ast.parse(path.read_bytes(), str(path))
        for number, (node, change) in enumerate(_places(tree)):
            if (path.name, node.lineno) in lines:
                before, after = ast.unparse(node), _changed(node, change)
                found.append(Mutant(path.name, node.lineno, number, _short(before), _short(after)))
    return found


def sample(lines: Lines, count: int, seed: int) -> list[Mutant]:
    """``count`` of them by chance, one a function line at most, so that no long expression dominates."""
    rng = Random(seed)
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for mutant in mutants(lines):
        by_line.setdefault((mutant.file, mutant.line), []).append(mutant)
    chosen = rng.sample(sorted(by_line), min(count, len(by_line)))
    return [rng.choice(by_line[place]) for place in chosen]


def lines_run(work: Callable[[], object]) -> Lines:
    """The lines of ``emulator/mm`` that ``work`` runs."""
    seen: Lines = set()
    names: dict[str, str] = {}

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            seen.add((names[frame.f_code.co_filename], frame.f_lineno))
        return local

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        path = frame.f_code.co_filename
        if path not in names:
            names[path] = Path(path).name if Path(path).parent == MM_FOLDER else ""
        return local if names[path] else None

    before = sys.gettrace()  # a debugger's, or that of a measurement of coverage
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return seen


Change = Callable[[Any], None]


def _places(tree: ast.Module) -> Iterator[tuple[Any, Change]]:
    """Every place in a function where something can be changed, in the order of the source."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            _strip_annotations(function)
            for node in ast.walk(function):
                yield from _changes(node)


def _strip_annotations(function: ast.FunctionDef) -> None:
    """They are not run."""
    for node in ast.walk(function):
        if isinstance(node, (ast.AnnAssign, ast.arg)):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None


def _changes(node: ast.AST) -> Iterator[tuple[Any, Change]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        yield node, _swap_comparison
    elif isinstance(node, ast.BoolOp):
        yield node, _swap_connective
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield node, _swap_arithmetic
    elif isinstance(node, ast.If):
        yield node.test, _negate
    elif isinstance(node, ast.AugAssign) or _is_call(node):
        yield node, _drop


def _is_call(node: ast.AST) -> bool:
    """A call for its effect; a preemption point has none where nothing runs beside."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    called = node.value.func
    return not (isinstance(called, ast.Attribute) and called.attr == "point")


def _swap_comparison(node: ast.Compare) -> None:
    node.ops[0] = _COMPARISONS[type(node.ops[0])]()


def _swap_connective(node: ast.BoolOp) -> None:
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()


def _swap_arithmetic(node: ast.BinOp) -> None:
    node.op = _ARITHMETIC[type(node.op)]()


def _negate(node: ast.expr) -> None:
    """In place, as whoever holds the node is not at hand: the node becomes the negation of a copy of itself."""
    inner = copy.copy(node)
    vars(node).clear()
    node.__class__ = ast.UnaryOp
    node.op, node.operand = ast.Not(), inner  # type: ignore[attr-defined]
    ast.copy_location(node, inner)


def _drop(node: ast.stmt) -> None:
    where = copy.copy(node)
    vars(node).clear()
    node.__class__ = ast.Pass
    ast.copy_location(node, where)


def _changed(node: Any, change: Change) -> str:
    changed = copy.deepcopy(node)
    change(changed)
    return ast.unparse(changed)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 72 else f"{line[:69]}..."
