"""Coverage counters of our own, compiled into the kernel code of one image.

A pass over the syntax tree puts one cheap call at every function entry and at the start of every branch of
``emulator/mm`` and of the design's files, and of nothing else. Atheris's own bytecode instrumentation makes the
emulator several times slower (``vmafuzz bench instrumentation`` measures by how much).

The call appends the number of its site to a list. ``take`` counts the list and puts the counts into eight buckets as
libFuzzer and AFL do: plain hit flags lose bugs that counts find. Measured on workloads of 16 steps: this costs 0.2 ms
a run, ``hits[n] += 1`` with a scan of all sites or a list for each site 0.3 ms.
"""

from __future__ import annotations

import ast
import weakref
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

BUCKETS: Final = 8
COUNT_MAX: Final = 128  # 128 and more are one bucket

_HIT: Final = "_vmafuzz_hit"
_TRACE_MAX: Final = 1 << 16  # counts below are one look-up
_JUMPS: Final = (ast.Return, ast.Raise, ast.Continue, ast.Break)


def _bucket(count: int) -> int:
    for bucket, first in enumerate((128, 32, 16, 8, 4, 3, 2, 1)):
        if count >= first:
            return BUCKETS - 1 - bucket
    raise ValueError("a count of 0 is no hit")


_BUCKET_OF: Final = bytes([0] + [_bucket(min(count, COUNT_MAX)) for count in range(1, _TRACE_MAX)])


class Site(NamedTuple):
    """A place with a counter."""

    path: str
    line: int
    what: str  # "def vma_merge", "if", "else", "for", ...


class Counters:
    """The counters of one kernel image: pass ``transform`` to ``KernelImage``, call ``take`` after each run.

    ``first`` is the number of the first feature; site n has the features from ``first + n * BUCKETS`` on.
    """

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self._key = next(_KEYS)
        _LIVING[self._key] = self
        self.sites: list[Site] = []
        self._trace: list[int] = []  # the first feature of each site that was passed
        self._crc = 0

    @property
    def features(self) -> int:
        """How many features there can be."""
        return len(self.sites) * BUCKETS

    @property
    def fingerprint(self) -> int:
        """Changes when the instrumented code does: numbers of features mean the same under the same one."""
        return self._crc

    def transform(self, tree: ast.Module, filename: str) -> ast.Module:
        """Put counters into one source file (an ``emulator.image.Transform``)."""
        self._crc = zlib.crc32(ast.dump(tree).encode(), zlib.crc32(Path(filename).name.encode(), self._crc))
        inserter = _Inserter(self.sites, filename, self.first)
        for statement in tree.body:
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):  # what runs at import is no branch
                inserter.visit(statement)
        tree.body.insert(_after_header(tree), self._binding())
        return ast.fix_missing_locations(tree)

    def _binding(self) -> ast.stmt:
        """The statement that gives a module its ``_vmafuzz_hit``."""
        source = f"{_HIT} = __import__({__name__!r}, fromlist=('hit_function',)).hit_function({self._key})"
        return ast.parse(source).body[0]

    @property
    def hit(self) -> Callable[[int], None]:
        """What instrumented code calls."""
        return self._trace.append

    def site_of(self, feature: int) -> Site:
        """The place that a feature is about."""
        return self.sites[(feature - self.first) // BUCKETS]

    def take(self) -> list[int]:
        """The features of the run since the last call, in the order of their sites' first hits."""
        counts = Counter(self._trace)
        self._trace.clear()
        buckets = _BUCKET_OF
        try:
            return [site + buckets[count] for site, count in counts.items()]
        except IndexError:
            return [site + buckets[min(count, COUNT_MAX)] for site, count in counts.items()]


# The instrumented source finds its counters through a number, as a syntax tree cannot hold an object.
_KEYS: Final = count()
_LIVING: Final[weakref.WeakValueDictionary[int, Counters]] = weakref.WeakValueDictionary()


def hit_function(key: int) -> Callable[[int], None]:
    """Called by instrumented modules when they are loaded."""
    return _LIVING[key].hit


def _after_header(tree: ast.Module) -> int:
    """Index of the first statement behind the docstring and the ``from __future__`` lines."""
    for index, statement in enumerate(tree.body):
        is_docstring = index == 0 and _is_docstring(statement)
        is_future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        if not (is_docstring or is_future):
            return index
    return len(tree.body)


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


class _Inserter(ast.NodeTransformer):
    """Puts ``_vmafuzz_hit(N)`` where a path of the code begins."""

    def __init__(self, sites: list[Site], path: str, first: int) -> None:
        self._sites = sites
        self._path = path
        self._first = first

    def _call(self, at: ast.AST, what: str) -> ast.Call:
        number = self._first + BUCKETS * len(self._sites)
        self._sites.append(Site(self._path, getattr(at, "lineno", 0), what))
        call = ast.Call(ast.Name(_HIT, ast.Load()), [ast.Constant(number)], [])
        return ast.copy_location(call, at)

    def _hit(self, at: ast.AST, what: str) -> ast.stmt:
        return ast.copy_location(ast.Expr(self._call(at, what)), at)

    def _function(self, node: ast.FunctionDef) -> ast.FunctionDef:
        start = 1 if _is_docstring(node.body[0]) else 0
        entry = self._hit(node, f"def {node.name}")
        node.body = [*node.body[:start], entry, *self._block(node.body[start:])]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return self._function(node)

    def visit_If(self, node: ast.If) -> ast.If:
        hit = self._hit(node, "if")
        node.test = self.visit(node.test)
        node.body = [hit, *self._block(node.body)]
        elif_follows = len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If)
        if node.orelse and not elif_follows:
            node.orelse = [self._hit(node.orelse[0], "else"), *self._block(node.orelse)]
        else:
            node.orelse = self._block(node.orelse)
        return node

    def _loop(self, node: ast.For | ast.While) -> ast.For | ast.While:
        hit = self._hit(node, "loop")
        if isinstance(node, ast.While):
            node.test = self.visit(node.test)
        node.body = [hit, *self._block(node.body)]
        node.orelse = self._block(node.orelse)
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        return self._loop(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        return self._loop(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.body = [self._hit(node, "except"), *self._block(node.body)]
        return node

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        node.body = [self._hit(node.pattern, "case"), *self._block(node.body)]
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """``a and b`` to ``a and (hit(N) or b)``: the hit is None, so the value stays that of b."""
        what = "and" if isinstance(node.op, ast.And) else "or"
        first, *rest = node.values
        values = [self.visit(first)]
        for value in rest:
            call = self._call(value, what)
            values.append(ast.copy_location(ast.BoolOp(ast.Or(), [call, self.visit(value)]), value))
        node.values = values
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        call = self._call(node.body, "if")
        self.generic_visit(node)
        node.body = ast.copy_location(ast.BoolOp(ast.Or(), [call, node.body]), node.body)
        return node

    def _block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Visit the statements; what follows the last branch that leaves the block is a path of its own.

        (What follows an earlier one has the counts of that path and of the branches between.)
        """
        last = -1
        for index, statement in enumerate(statements[:-1]):
            if isinstance(statement, ast.If) and not statement.orelse and isinstance(statement.body[-1], _JUMPS):
                last = index
        block: list[ast.stmt] = []
        for index, statement in enumerate(statements):
            block.append(self.visit(statement))
            if index == last:
                block.append(self._hit(statements[index + 1], "after"))
        return block
