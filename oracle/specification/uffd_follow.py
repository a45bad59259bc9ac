"""What other operations make of what userfaultfd lets a process see: states of pages move, go, or become uncertain.

(Rules: as in ``uffd.py``, which has the states.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from emulator.mm_types import VM_LOCKED, VM_UFFD_FLAGS, VM_WIPEONFORK
from emulator.uapi import (
    ENOMEM,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_POPULATE,
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
)
from oracle.specification import uffd_memory
from oracle.specification.page import Pages
from oracle.specification.uffd import ACCESSES, Userfaults, huge_around, unregister_page
from oracle.specification.uffd_memory import (
    MAYBE,
    MAYBE_POISONED,
    MAYBE_PROTECTED,
    POISON,
    PROTECTED,
    PROTECTION,
    THERE,
)

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification

_RANGES: Final = frozenset(("munmap", "madvise", "mlock", "mlock2"))
_POPULATES: Final = frozenset(("mprotect", "pkey_mprotect", "remap_file_pages"))  # what is locked
_WITHOUT_EFFECT: Final = frozenset(
    (
        "mseal", "set_vma_name", "memory_merge", "mbind", "unpin", "pin_write", "swap_readahead", "migrate", "munlock",
        "munlockall", "setrlimit", "max_map_count", "overcommit_memory",
    )
)  # fmt: skip
_DROPS: Final = frozenset((MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_GUARD_INSTALL))
_BRINGS_PAGES: Final = frozenset((MADV_COLLAPSE, MADV_POPULATE_READ, MADV_POPULATE_WRITE))
_RECLAIMS: Final = frozenset((MADV_COLD, MADV_PAGEOUT, MADV_COLLAPSE))


def stir(spec: Specification, pages: Pages, known: Userfaults, numbers: Iterable[int]) -> None:
    """Something may have come to these pages, and to the files behind them."""
    found = [number for number in numbers if number in pages]
    known.stir(found)
    uffd_memory.stir_files(spec, pages, found)


def moving(pages: Pages, op: Op) -> list[int]:
    """Which pages of the range an mremap moves if it moves anything: numbers from the range's first page on."""
    if op.kind != "mremap":
        return []
    return [i for i in range(min(op.args[1], op.args[2])) if op.args[0] + i in pages]


def follow(spec: Specification, pages: Pages, op: Op, ret: int, moved: list[int]) -> None:
    """``op``, no access and no call of userfaultfd, has given ``ret``; ``pages`` are as they are after it.

    ``moved`` is what ``moving`` said before.
    """
    kind, args = op.kind, op.args
    known = spec.userfaults[op.proc]
    if kind in _RANGES:
        _follow_range(spec, pages, op, ret, known)
    elif kind == "mmap":
        if ret >= 0:
            known.set(range(ret, ret + args[1]), 0)
            populated = args[3] & MAP_POPULATE
            numbers = range(ret, ret + args[1])
            stir(spec, pages, known, (n for n in numbers if populated or pages[n].flags & VM_LOCKED))
    elif kind == "brk":
        known.set([number for number in known.states if number not in pages], 0)
        known.stir(number for number, page in pages.items() if page.flags & VM_LOCKED)
    elif kind == "mremap":
        _follow_mremap(spec, pages, op, ret, known, moved)
    elif kind == "fork":
        if not ret:
            spec.forked = True
            spec.userfaults[args[0]] = _inherited(spec, spec.procs[args[0]], known)
    elif kind == "exit":
        del spec.userfaults[op.proc]
    elif kind in _POPULATES:
        numbers = range(args[0], args[0] + args[1])
        if kind == "remap_file_pages" and not ret:
            known.set(numbers, 0)
            stir(spec, pages, known, numbers)
        stir(spec, pages, known, (n for n in numbers if n in pages and pages[n].flags & VM_LOCKED))
    elif kind == "reclaim":
        uffd_memory.shaken(spec)
    elif kind not in _WITHOUT_EFFECT:
        known.blurred = True
        uffd_memory.stir_files(spec, pages, pages)


def _follow_range(spec: Specification, pages: Pages, op: Op, ret: int, known: Userfaults) -> None:
    """munmap, madvise, or a lock, which brings pages in."""
    numbers = range(op.args[0], op.args[0] + op.args[1])
    drops = op.kind == "munmap" or (op.kind == "madvise" and op.args[2] in _DROPS)
    advice = op.args[2] if op.kind == "madvise" else 0
    if advice in _RECLAIMS:
        uffd_memory.shaken(spec)
    if advice == MADV_COLLAPSE:
        uffd_memory.stir_whole_files(spec, pages, numbers)
    if drops and ret in (0, -ENOMEM):
        _drop(pages, known, numbers, kept=advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED))
    elif drops:
        known.blur(number for number in numbers if number in pages)
    elif advice == MADV_FREE:
        for number in numbers:
            if number not in pages or pages[number].backing is None:
                _may_go(known, number)
    elif op.kind != "madvise" or advice in _BRINGS_PAGES:
        stir(spec, pages, known, numbers)


def _drop(pages: Pages, known: Userfaults, numbers: Iterable[int], *, kept: bool) -> None:
    """What was at the pages has gone; ``kept``: but for the protection of a file's pages."""
    for number in numbers:
        page = pages.get(number)
        if kept and page is not None and page.backing is not None:
            uffd_memory.dropped(known, number, page)
        else:
            known.set((number,), 0)


def _may_go(known: Userfaults, number: int) -> None:
    """What is at the page, a protection with it, may be thrown away at any time; poison has gone."""
    state = known.states.get(number, 0)
    if state & THERE:
        state = state & ~THERE | MAYBE
    if state & PROTECTED:
        state = state & ~PROTECTED | MAYBE_PROTECTED
    if state & POISON:
        state &= MAYBE
    known.set((number,), state)


def _follow_mremap(
    spec: Specification, pages: Pages, op: Op, ret: int, known: Userfaults, moved: list[int]
) -> None:
    """What is known moves along; a registration with EVENT_REMAP only, and then what is protected too."""
    addr, old, new, _, target = op.args
    if ret < 0:
        known.blur(n for n in (*range(addr, addr + old), *range(target, target + new)) if n in pages)
        return
    if ret == addr:
        known.set(range(addr + new, addr + old), 0)
        stir(spec, pages, known, (n for n in range(addr + old, addr + new) if pages[n].flags & VM_LOCKED))
        return
    states = [known.states.get(addr + i, 0) for i in moved]
    grown = range(ret + old, ret + new)
    known.set(range(addr, addr + old), 0)
    known.set(grown, 0)
    for i, state in zip(moved, states, strict=True):
        known.set((ret + i,), state)
    stir(spec, pages, known, (n for n in grown if pages[n].flags & VM_LOCKED))
    if not known.has(UFFD_FEATURE_EVENT_REMAP):
        for number in (*(ret + i for i in moved), *grown):
            unregister_page(pages, known, number)


def _inherited(spec: Specification, pages: Pages, parent: Userfaults) -> Userfaults:
    """What a child begins with. A page of zeros may not be copied to it."""
    child = Userfaults()
    child.blurred = parent.blurred
    event = parent.has(UFFD_FEATURE_EVENT_FORK)
    registered = False
    for number, page in pages.items():
        state = parent.states.get(number, 0)
        if page.flags & VM_UFFD_FLAGS:
            registered = True
            if not event:
                pages[number] = page._replace(flags=page.flags & ~VM_UFFD_FLAGS)
        if not event:
            state &= ~PROTECTION
        if page.backing is not None:
            state = uffd_memory.inherited(state, page)
        elif state & THERE and not spec.content(page):
            state = state & ~THERE | MAYBE
        if page.flags & VM_WIPEONFORK:
            state = 0
        if state:
            child.states[number] = state
    if event and registered:
        child.features = parent.features
    return child


def leave_open(spec: Specification, op: Op, place: int = -1) -> None:
    """``op`` was done in part, or something ran beside it: it is not certain what its pages are, nor what reclaim took.

    ``place``: where an mremap has moved them, if it has told.
    """
    known = spec.userfaults.get(op.proc)
    if known is None:
        return
    if op.kind == "fork":
        spec.forked = True  # a child that did not come to be has shared pages all the same
    if op.kind == "uffd_close" and not known.features:  # others may have opened it anew, or have used the old one
        known.features = None
    if op.kind.startswith("uffd_") and known.features is None:
        known.maybe_open = True
    pages = spec.procs[op.proc]
    uffd_memory.shaken(spec)
    if op.kind == "mlockall":
        known.blurred = True
        uffd_memory.stir_files(spec, pages, pages)
    if op.kind == "mremap":
        op = op._replace(args=(*op.args[:4], place if place >= 0 else op.args[4]))
        for i in range(min(op.args[1:3])):  # no more is known than that it may be poisoned in either place
            if known.states.get(op.args[0] + i, 0) & POISON and op.args[4] + i in pages:
                known.states[op.args[4] + i] = MAYBE_POISONED
    for start, length in _spans(op):
        found = [number for number in range(start, start + length) if number in pages]
        known.blur(found)
        if op.kind == "madvise" and op.args[2] == MADV_COLLAPSE:
            uffd_memory.stir_whole_files(spec, pages, found)
        stir(spec, pages, known, found)
        known.stir(huge_around(spec, pages, start, start + length))


def contested(spec: Specification, ops: Sequence[Op]) -> frozenset[uffd_memory.Cell]:
    """The pages of files of memory that several of these operations are about, which ran at the same time.

    A fault brings its page into the file first and into the page table later. So the others may find it in the file or
    not, mapped or not, in whatever order they are done.
    """
    users: dict[uffd_memory.Cell, set[int]] = {}
    for index, op in enumerate(ops):
        pages = spec.procs.get(op.proc, {})
        for start, length in _spans(op):
            for number in range(start, start + length):
                place = uffd_memory.cell(pages[number]) if number in pages else None
                if place is not None:
                    users.setdefault(place, set()).add(index)
    return frozenset(place for place, indices in users.items() if len(indices) > 1)


def _spans(op: Op) -> list[tuple[int, int]]:
    """(first page, pages) that the operation names."""
    args = op.args
    if op.kind in ACCESSES:
        return [(args[0], 1)]
    if op.kind == "mremap":
        return [(args[0], args[1]), (args[4], args[2])]
    if op.kind in ("uffd_copy", "uffd_move"):
        return [(args[0], args[2]), (args[1], args[2])]
    named = op.kind in _RANGES or op.kind == "remap_file_pages"
    return [(args[0], args[1])] if named or (op.kind.startswith("uffd_") and len(args) > 1) else []
