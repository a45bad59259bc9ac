"""Idioms of several operations that chance alone rarely puts together, as data.

A recipe is written like the text form of a workload, with sums of symbols for numbers:

=====  ===============================================================================
``a``  a page, free or mapped, with room for what follows
``n``  a length of 2 or more pages; ``m`` is less, at least 1
``d``  a page far from ``a``, for moves
``H``  a page at the beginning of a huge page; ``D`` the same for moves
``h``  pages of a huge page; ``j`` is less, at least 1
``c``  a free process label; a line that begins with ``c:`` is done by that process
``k``  a free pin label
``x``  in the flags of mremap: the flags that the design under test adds
=====  ===============================================================================

Recipes set a stage. What goes wrong on it, and beside what, is left to the rest of the workload.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from emulator.workload import OPS, Domain, Op
from fuzz.workload.symbols import parse_value

_TEXTS: Final[dict[str, str]] = {
    "two neighbours, one moves away and comes back": """
        mmap addr=a len=n prot=rw flags=private|fixed
        mmap addr=a+n len=n prot=rw flags=private|fixed
        mremap addr=a+n old_len=n new_len=n flags=maymove|fixed|x new_addr=d
        write addr=a+n-1 at=0
        write addr=d at=1
        mremap addr=d old_len=n new_len=n flags=maymove|fixed|x new_addr=a+n
    """,
    "the middle moves away and comes back": """
        mmap addr=a len=n+n prot=rw flags=private|fixed
        write addr=a at=0
        write addr=a+m at=1
        mremap addr=a+m old_len=m new_len=m flags=maymove|fixed|x new_addr=d
        write addr=d at=2
        mremap addr=d old_len=m new_len=m flags=maymove|fixed|x new_addr=a+m
    """,
    "a range written at both ends moves beside a written neighbour": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a+n-1 at=0
        mmap addr=d len=n prot=rw flags=private|fixed
        write addr=d at=0
        write addr=d+n-1 at=1
        mremap addr=d old_len=n new_len=n flags=maymove|fixed|x new_addr=a+n
    """,
    "neighbours with memory of their own, and a hole that both could fill": """
        mmap addr=a len=n prot=rw flags=private|fixed
        mmap addr=a+n+m len=n prot=rw flags=private|fixed
        write addr=a at=0
        write addr=a+n+m at=0
        mmap addr=a+n len=m prot=rw flags=private|fixed
    """,
    "a huge page loses its tail": """
        mmap addr=H len=h prot=rw flags=private|fixed
        madvise addr=H len=h advice=hugepage
        write addr=H at=0
        munmap addr=H+j len=h-j
    """,
    "a huge page, protected in part and back": """
        mmap addr=H len=h prot=rw flags=private|fixed
        madvise addr=H len=h advice=hugepage
        write addr=H+j at=0
        mprotect addr=H+j len=h-j prot=r
        mprotect addr=H+j len=h-j prot=rw
    """,
    "small pages before a huge page, moved in one": """
        mmap addr=H+h-j len=j+h prot=rw flags=private|fixed
        madvise addr=H+h-j len=j+h advice=hugepage
        write addr=H+h-j at=0
        write addr=H+h at=0
        mremap addr=H+h-j old_len=j+h new_len=j+h flags=maymove|fixed|x new_addr=D+h-j
    """,
    "half small pages, half huge page, moved in one": """
        mmap addr=H len=h+h prot=rw flags=private|fixed
        write addr=H+j at=0
        madvise addr=H len=h+h advice=hugepage
        write addr=H+h at=0
        mremap addr=H old_len=h+h new_len=h+h flags=maymove|fixed|x new_addr=D
    """,
    "a huge page moves to where none fits": """
        mmap addr=H len=h prot=rw flags=private|fixed
        madvise addr=H len=h advice=hugepage
        write addr=H at=0
        mremap addr=H old_len=h new_len=h flags=maymove|fixed|x new_addr=D+j
    """,
    "swapped out but still in the swap cache, then moved": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a at=0
        gup_slow addr=a flags=none pin=k
        madvise addr=a len=n advice=pageout
        mremap addr=a old_len=n new_len=n flags=maymove|fixed|x new_addr=d
    """,
    "swapped out and brought back unmapped": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a at=0
        write addr=a+1 at=0
        madvise addr=a len=n advice=pageout
        swap_readahead addr=a
    """,
    "swapped out, then shared": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a at=0
        madvise addr=a len=n advice=pageout
        fork child=c
        c: read addr=a
    """,
    "copy on write on both sides": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a at=0
        fork child=c
        c: write addr=a at=1
        write addr=a at=2
    """,
    "a child came and went": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a at=0
        fork child=c
        c: write addr=a+1 at=0
        c: exit
    """,
    "a child moves what it inherited": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a at=0
        fork child=c
        c: mremap addr=a old_len=n new_len=n flags=maymove|fixed|x new_addr=d
        c: write addr=d at=1
    """,
    "pinned before a fork": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a at=0
        gup_fast addr=a flags=pin|write pin=k
        fork child=c
        write addr=a at=1
    """,
    "moved, the old place kept": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a at=0
        mremap addr=a old_len=n new_len=n flags=maymove|fixed|dontunmap|x new_addr=d
        write addr=a at=1
    """,
    "written once, nothing left": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a at=0
        madvise addr=a len=n advice=dontneed
        mmap addr=a+n len=m prot=rw flags=private|fixed
    """,
    "grown up to a neighbour": """
        mmap addr=a len=n prot=rw flags=private|fixed
        mmap addr=a+n+m len=m prot=rw flags=private|fixed
        write addr=a at=0
        mremap addr=a old_len=n new_len=n+m flags=none
    """,
    "shared memory, swapped out and seen by a child": """
        mmap addr=a len=n prot=rw flags=shared|fixed
        write addr=a at=0
        fork child=c
        madvise addr=a len=n advice=pageout
        c: write addr=a at=1
        c: mremap addr=a old_len=0 new_len=n flags=maymove|fixed new_addr=d
    """,
    "a hole in a file of memory that is mapped twice": """
        mmap addr=a len=n prot=rw flags=shared|fixed file=memfd
        mmap addr=a+n len=n prot=rw flags=private|fixed file=memfd
        write addr=a at=0
        read addr=a+n
        write addr=a+n+1 at=0
        madvise addr=a len=n advice=remove
    """,
    "a private page of a file, moved": """
        mmap addr=a len=n prot=rw flags=private|fixed file=file0
        read addr=a
        write addr=a+1 at=0
        mremap addr=a old_len=n new_len=n flags=maymove|fixed|x new_addr=d
    """,
    "split by protection and joined again": """
        mmap addr=a len=n+n prot=rw flags=private|fixed
        mprotect addr=a+m len=m prot=r
        write addr=a at=0
        mprotect addr=a+m len=m prot=rw
    """,
    "guards move beside a neighbour, and a child": """
        mmap addr=a len=n prot=rw flags=private|fixed
        mmap addr=d len=n prot=rw flags=private|fixed
        madvise addr=d len=m advice=guard_install
        mremap addr=d old_len=n new_len=n flags=maymove|fixed|x new_addr=a+n
        fork child=c
    """,
    "a part of a file joins another that has guards, and a child": """
        mmap addr=a len=n+n prot=rw flags=private|fixed file=file0
        mprotect addr=a+n len=n prot=r
        madvise addr=a len=m advice=guard_install
        mprotect addr=a+n len=n prot=rw
        fork child=c
    """,
    "several mappings and a hole, moved in one": """
        mmap addr=a len=n prot=rw flags=private|fixed
        mmap addr=a+n len=m prot=r flags=private|fixed
        mmap addr=a+n+m+m len=n prot=rw flags=private|fixed
        write addr=a at=0
        write addr=a+n+m+m at=0
        mremap addr=a old_len=n+n+m+m new_len=n+n+m+m flags=maymove|fixed|x new_addr=d
    """,
    "equal pages, merged": """
        mmap addr=a len=n prot=rw flags=private|fixed
        madvise addr=a len=n advice=mergeable
        fill addr=a pattern=1
        fill addr=a+1 pattern=1
        ksm_scan pages=0
        ksm_scan pages=0
    """,
    "equal pages of a parent and a child": """
        mmap addr=a len=n prot=rw flags=private|fixed
        madvise addr=a len=n advice=mergeable
        fill addr=a pattern=1
        fork child=c
        c: fill addr=a+n-1 pattern=1
        ksm_scan pages=0
    """,
    "small pages, collapsed": """
        mmap addr=H len=h+h prot=rw flags=private|fixed
        write addr=H+j at=0
        write addr=H at=1
        madvise addr=H len=h advice=collapse
    """,
    "small pages, shared with a child and collapsed by it": """
        mmap addr=H len=h prot=rw flags=private|fixed
        write addr=H+j at=0
        fork child=c
        c: madvise addr=H len=h advice=collapse
        c: write addr=H+j at=1
    """,
    "shared memory, collapsed, seen by a child, with a hole": """
        mmap addr=H len=h prot=rw flags=shared|fixed
        write addr=H+j at=0
        madvise addr=H len=h advice=collapse
        fork child=c
        c: write addr=H at=1
        madvise addr=H len=j advice=remove
    """,
    "shared memory, collapsed and swapped out": """
        mmap addr=H len=h+h prot=rw flags=shared|fixed
        write addr=H+j at=0
        madvise addr=H len=h advice=collapse
        madvise addr=H len=h advice=pageout
        read addr=H
    """,
    "shared memory, collapsed and moved in part": """
        mmap addr=H len=h+h prot=rw flags=shared|fixed
        write addr=H at=0
        write addr=H+h at=1
        madvise addr=H len=h+h advice=collapse
        mremap addr=H+j old_len=h new_len=h flags=maymove|fixed|x new_addr=D+j
    """,
    "a file of memory, collapsed beside a private copy of a page": """
        mmap addr=H len=h prot=rw flags=shared|fixed file=memfd
        mmap addr=H+h len=h prot=rw flags=private|fixed file=memfd
        write addr=H+h+j at=0
        write addr=H at=1
        madvise addr=H len=h+h advice=collapse
        read addr=H+h
    """,
    "a huge page of a file of memory, mapped privately and written to": """
        mmap addr=H len=h prot=rw flags=private|fixed file=memfd
        read addr=H
        madvise addr=H len=h advice=collapse
        fork child=c
        c: write addr=H+j at=0
        write addr=H+j at=1
    """,
    "pages moved to where they are missing": """
        mmap addr=a len=n prot=rw flags=private|fixed
        mmap addr=d len=n prot=rw flags=private|fixed
        write addr=d at=0
        write addr=d+n-1 at=1
        uffd_register addr=a len=n mode=missing
        uffd_move dst=a src=d len=n mode=holes
    """,
    "missing pages of shared memory, filled, and seen by a child": """
        mmap addr=a len=n prot=rw flags=shared|fixed
        mmap addr=d len=n prot=rw flags=private|fixed
        uffd_register addr=a len=n mode=missing
        uffd_copy dst=a src=d len=m mode=none
        fork child=c
        c: write addr=a+m at=1
    """,
    "protected pages of a file of memory that go and come back": """
        mmap addr=a len=n prot=rw flags=shared|fixed file=memfd
        write addr=a at=0
        uffd_register addr=a len=n mode=missing|wp
        uffd_wp addr=a len=n mode=wp
        madvise addr=a len=n advice=pageout
        uffd_copy dst=a+m src=a len=1 mode=wp
    """,
    "pages that a file of memory has and the page table has not": """
        mmap addr=a len=n prot=rw flags=shared|fixed file=memfd
        mmap addr=d len=n prot=rw flags=private|fixed file=memfd
        write addr=a at=0
        uffd_register addr=d len=n mode=minor|wp
        read addr=d
        uffd_continue addr=d len=n mode=wp
    """,
    "a huge page moved to where it is missing": """
        mmap addr=H len=h prot=rw flags=private|fixed
        mmap addr=D len=h prot=rw flags=private|fixed
        madvise addr=D len=h advice=hugepage
        write addr=D+j at=0
        uffd_register addr=H len=h mode=missing
        uffd_move dst=H src=D len=h mode=none
    """,
    "written pages, protected and moved": """
        mmap addr=a len=n prot=rw flags=private|fixed
        write addr=a at=0
        write addr=a+n-1 at=1
        uffd_register addr=a len=n mode=wp
        uffd_wp addr=a len=m mode=wp
        mremap addr=a old_len=n new_len=n flags=maymove|fixed|x new_addr=d
    """,
    "large folios smaller than huge pages": """
        thp_sizes sizes=508
        mmap addr=H len=h-1 prot=rw flags=private|fixed
        madvise addr=H len=h-1 advice=hugepage
        write addr=H+j at=0
        write addr=H at=1
        mremap addr=H+1 old_len=n new_len=n flags=maymove|fixed|x new_addr=d
    """,
    "small pages and a part of a huge one, moved in one": """
        mmap addr=H+h-j len=j+h prot=rw flags=private|fixed
        write addr=H+h-j at=0
        madvise addr=H+h-j len=j+h advice=hugepage
        write addr=H+h at=0
        mremap addr=H+h-j old_len=j+1 new_len=j+1 flags=maymove|fixed|x new_addr=d
    """,
    "a whole page table, moved": """
        mmap addr=H len=h prot=rw flags=private|fixed
        write addr=H at=0
        write addr=H+h-1 at=0
        mremap addr=H old_len=h new_len=h flags=maymove|fixed|x new_addr=D
    """,
}

_NUMBERS: Final = (
    Domain.PAGE, Domain.LENGTH, Domain.NEW_PROC, Domain.NEW_PIN, Domain.PIN, Domain.PATTERN, Domain.SCAN,
)  # fmt: skip
_TERM = re.compile(r"([+-]?)([A-Za-z]|\d+)")
_EXTRA: Final = "|x"

Sum = tuple[tuple[int, str], ...]  # (1 or -1, symbol) for each term; a number is a symbol that means itself


class Line(NamedTuple):
    """One operation of a recipe."""

    by_child: bool
    kind: str
    args: tuple[int | Sum, ...]
    extra_at: int  # number of the argument that gets ``x``, or -1


class Recipe(NamedTuple):
    """An idiom, ready to be filled in."""

    name: str
    lines: tuple[Line, ...]
    kinds: frozenset[str]
    symbols: frozenset[str]  # that it uses

    @property
    def moves(self) -> bool:
        """Does it move memory, with whatever flags a design has for that?"""
        return any(line.extra_at >= 0 for line in self.lines)


def expand(recipe: Recipe, symbols: Mapping[str, int], proc: int) -> list[Op]:
    """The recipe's operations, done by ``proc``. Values may lie outside their domains: repair afterwards."""
    ops: list[Op] = []
    for line in recipe.lines:
        args = [arg if isinstance(arg, int) else _add_up(arg, symbols) for arg in line.args]
        if line.extra_at >= 0:
            args[line.extra_at] |= symbols["x"]
        ops.append(Op(line.kind, symbols["c"] if line.by_child else proc, tuple(args)))
    return ops


def _add_up(terms: Sum, symbols: Mapping[str, int]) -> int:
    return sum(sign * (symbols[s] if s in symbols else int(s)) for sign, s in terms)


def _parse(name: str, text: str) -> Recipe:
    lines = tuple([_parse_line(line) for line in text.strip().splitlines()])
    symbols = {s for line in lines for arg in line.args if isinstance(arg, tuple) for _, s in arg}
    return Recipe(
        name, lines, frozenset(line.kind for line in lines), frozenset(s for s in symbols if not s.isdigit())
    )


def _parse_line(text: str) -> Line:
    words = text.split()
    by_child = words[0] == "c:"
    kind, *pairs = words[1:] if by_child else words
    given = dict(pair.split("=") for pair in pairs)
    args: list[int | Sum] = []
    extra_at = -1
    for position, (name, domain) in enumerate(OPS[kind].args):
        value = given.pop(name, "anon" if domain is Domain.FILE else "0")
        if domain in _NUMBERS:
            args.append(tuple([(-1 if sign == "-" else 1, s) for sign, s in _TERM.findall(value)]))
            continue
        if value.endswith(_EXTRA):
            value = value.removesuffix(_EXTRA)
            extra_at = position
        args.append(parse_value(domain, value))
    if given:
        raise ValueError(f"{text.strip()}: no such argument: {', '.join(given)}")
    return Line(by_child, kind, tuple(args), extra_at)


RECIPES: Final[tuple[Recipe, ...]] = tuple([_parse(name, text) for name, text in _TEXTS.items()])
