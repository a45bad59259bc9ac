"""What userfaultfd lets a process see, in the specification: states of pages, and what accesses to them give.

(Rules: fs/userfaultfd.c with UFFD_FEATURE_SIGBUS, mm/memory.c; the calls stand in ``uffd_calls.py``.)

How a page is registered are flags of it. What decides an access to a registered page, and what the calls give, is
whether something is there, and whether that is protected. The interface does not show either, so it is followed here:
pages of which it is not certain may be taken for one or the other, until an access tells. After a failure, or among
operations that ran at the same time, it is not certain for what these are about.

Something is there once a page was written, read or taken by the kernel; a huge page brings others with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_UFFD_FLAGS,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VM_WIPEONFORK,
)
from emulator.uapi import (
    EFAULT,
    ENOMEM,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_POPULATE,
    PROT_WRITE,
    SIGBUS,
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
)
from emulator.workload import FOLL_WRITE
from oracle.specification.page import GUARDED, Page, Pages, Refusal, names, wrong_result
from oracle.specification.pins import gup_results
from oracle.specification.stack import grow, growth, needed

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification

# What is known of a page beside its contents; contents other than zeros are there in any case. 0: nothing is there.
THERE: Final = 1  # a page, perhaps of zeros, perhaps swapped out
MAYBE: Final = 2  # something may be there
PROTECTED: Final = 4  # a write is told of, where the page is registered for that; nothing being there: it has a marker
MAYBE_PROTECTED: Final = 8
POISONED: Final = 16  # every access fails
MAYBE_POISONED: Final = 32

_POISON: Final = POISONED | MAYBE_POISONED

ACCESSES: Final = frozenset(("read", "write", "fill", "exec", "gup_fast", "gup_slow"))
_GUP: Final = frozenset(("gup_fast", "gup_slow"))
_RANGES: Final = frozenset(("munmap", "madvise", "mlock", "mlock2"))
_WITHOUT_EFFECT: Final = frozenset(
    (
        "mprotect", "mseal", "set_vma_name", "memory_merge", "mbind", "pkey_mprotect", "remap_file_pages", "unpin",
        "pin_write", "reclaim", "swap_readahead", "migrate", "munlock", "munlockall", "setrlimit",
        "max_map_count", "overcommit_memory",
    )
)  # fmt: skip
_DROPS: Final = frozenset((MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_GUARD_INSTALL))
_BRINGS_PAGES: Final = frozenset((MADV_COLLAPSE, MADV_POPULATE_READ, MADV_POPULATE_WRITE))


class Userfaults:
    """What the specification knows of one process."""

    __slots__ = ("blurred", "features", "maybe_open", "states")

    def __init__(self) -> None:
        self.features: int | None = None  # of its userfaultfd; None: it has none
        self.maybe_open = False  # it has none, or one without features
        self.blurred = False  # anything may be there, everywhere
        self.states: dict[int, int] = {}  # page number to what is known of it

    def copy(self) -> Userfaults:
        other = Userfaults()
        other.features, other.maybe_open, other.blurred = self.features, self.maybe_open, self.blurred
        other.states = dict(self.states)
        return other

    def has(self, feature: int) -> bool:
        """Has the process a userfaultfd with this UFFD_FEATURE_*?"""
        return self.features is not None and self.features & feature != 0

    def set(self, numbers: Iterable[int], state: int) -> None:
        """Give pages this state."""
        for number in numbers:
            if state:
                self.states[number] = state
            else:
                self.states.pop(number, None)

    def stir(self, numbers: Iterable[int]) -> None:
        """Something may have come to these pages."""
        for number in numbers:
            self.states[number] = self.states.get(number, 0) | MAYBE

    def blur(self, numbers: Iterable[int]) -> None:
        """What is there at these pages, and whether it is protected, is not certain any more."""
        for number in numbers:
            poison = MAYBE_POISONED if self.states.get(number, 0) & _POISON else 0
            self.states[number] = MAYBE | MAYBE_PROTECTED | poison


# ---- what calls have in common


def opened(known: Userfaults) -> None:
    """A call opens a userfaultfd without features if there is none."""
    if known.features is None:
        known.features = 0
    known.maybe_open = False


def check(op: Op, ret: int, allowed: set[int]) -> Refusal | None:
    return None if ret in allowed else wrong_result(op, ret, names(allowed))


def bad_range(spec: Specification, start: int, length: int) -> bool:
    return not length or start + length > spec.limits.top


# ---- what is there


def must_be_there(spec: Specification, known: Userfaults, number: int, page: Page) -> bool:
    if page.dropped is not None:
        return False  # it may have been thrown away
    return known.states.get(number, 0) & THERE != 0 or spec.content(page) != 0


def may_be_there(spec: Specification, known: Userfaults, number: int, page: Page) -> bool:
    return known.states.get(number, 0) & (THERE | MAYBE) != 0 or known.blurred or spec.content(page) != 0


def appears(spec: Specification, pages: Pages, known: Userfaults, number: int) -> None:
    """Something is at the page now, and with it, where huge pages are wanted, perhaps all around it."""
    page = pages[number]
    if page.flags & VM_HUGEPAGE and not must_be_there(spec, known, number, page):
        known.stir(brought(spec, pages, number))
    known.states[number] = known.states.get(number, 0) & ~(MAYBE | _POISON) | THERE


def brought(spec: Specification, pages: Pages, number: int) -> list[int]:
    """The pages that may come with this one."""
    return _huge_around(spec, pages, number, number + 1) if pages[number].flags & VM_HUGEPAGE else []


def _huge_around(spec: Specification, pages: Pages, start: int, end: int) -> list[int]:
    """The pages that one huge page may bring together with one of [start, end)."""
    huge = spec.limits.huge
    around = range(start - start % huge, end + -end % huge)
    return [number for number in around if number in pages and pages[number].flags & VM_HUGEPAGE]


# ---- accesses


def carried(spec: Specification, label: int, page: Page) -> Page:
    """A page of this process where mremap has moved it: registered as before with EVENT_REMAP only."""
    if not page.flags & VM_UFFD_FLAGS or spec.userfaults[label].has(UFFD_FEATURE_EVENT_REMAP):
        return page
    return page._replace(flags=page.flags & ~VM_UFFD_FLAGS)


def access(
    spec: Specification, pages: Pages, op: Op, ret: int, ordinary: Callable[[], Refusal | None]
) -> Refusal | None:
    """An access, which ``ordinary`` would judge if there were no userfaultfd."""
    number = op.args[0]
    page = pages.get(number)
    known = spec.userfaults[op.proc]
    gup = op.kind in _GUP
    if page is None:
        return _below_a_stack(spec, pages, op, ret, ordinary)
    if page.flags & GUARDED or (gup and 0 not in gup_results(spec, page, op)):
        return ordinary()
    write = op.kind in ("write", "fill") or (gup and op.args[1] & FOLL_WRITE != 0)
    if not page.flags & (PROT_WRITE if write else VM_ACCESS_FLAGS):
        return ordinary()
    may, must = traps(spec, known, number, page, write)
    trapped = -EFAULT if gup else SIGBUS
    if ret == trapped and (may or must):
        _was_trapped(spec, known, number, page, write)
        return None
    if must:
        return wrong_result(op, ret, names({trapped}))
    before = known.states.get(number, 0)
    appears(spec, pages, known, number)
    refusal = ordinary()
    if ret:
        known.states[number] = before | MAYBE  # it failed for another reason
    elif write and page.flags & VM_UFFD_WP:
        known.states[number] &= ~(PROTECTED | MAYBE_PROTECTED)
    return refusal


def _below_a_stack(
    spec: Specification, pages: Pages, op: Op, ret: int, ordinary: Callable[[], Refusal | None]
) -> Refusal | None:
    """An access where nothing is mapped. What a stack grows by is registered as the stack is, and missing."""
    gup = op.kind in _GUP
    found = growth(spec, pages, op.args[0]) if not gup or spec.limits.profile.gup_grows_stack else None
    if found is not None and found.page.flags & VM_UFFD_MISSING and found.page.flags & needed(op):
        trapped = -EFAULT if gup else SIGBUS
        if ret == trapped:
            grow(spec, pages, op, ret)
            return None
        if not ret or found.sure:
            return wrong_result(op, ret, names({trapped}))
    refusal = ordinary()
    if op.args[0] in pages and not ret:
        appears(spec, pages, spec.userfaults[op.proc], op.args[0])
    return refusal


def traps(spec: Specification, known: Userfaults, number: int, page: Page, write: bool) -> tuple[bool, bool]:
    """(may an access fail for userfaultfd's sake, must it). A guard is none of its."""
    if page.flags & GUARDED:
        return False, False
    state = known.states.get(number, 0)
    if state & POISONED:
        return True, True
    if state & MAYBE_POISONED:
        return True, False
    counts = write and page.flags & VM_UFFD_WP != 0
    may = counts and state & (PROTECTED | MAYBE_PROTECTED) != 0
    must = counts and state & PROTECTED != 0
    if page.flags & VM_UFFD_MISSING and not must_be_there(spec, known, number, page):
        return True, must or not may_be_there(spec, known, number, page)
    return may, must


def _was_trapped(spec: Specification, known: Userfaults, number: int, page: Page, write: bool) -> None:
    """What the failure of an access tells."""
    state = known.states.get(number, 0)
    if state & _POISON:
        return
    if not page.flags & VM_UFFD_MISSING:  # so it is protected, and there by now
        known.states[number] = THERE | PROTECTED
    elif must_be_there(spec, known, number, page):
        known.states[number] = state & ~MAYBE_PROTECTED | PROTECTED
    elif not (write and state & (PROTECTED | MAYBE_PROTECTED)) and not known.blurred:
        known.states[number] = state & ~MAYBE


# ---- other operations


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
        _follow_range(pages, op, ret, known)
    elif kind == "mmap":
        if ret >= 0:
            known.set(range(ret, ret + args[1]), 0)
            populated = args[3] & MAP_POPULATE
            known.stir(n for n in range(ret, ret + args[1]) if populated or pages[n].flags & VM_LOCKED)
    elif kind == "brk":
        known.set([number for number in known.states if number not in pages], 0)
        known.stir(number for number, page in pages.items() if page.flags & VM_LOCKED)
    elif kind == "mremap":
        _follow_mremap(pages, op, ret, known, moved)
    elif kind == "fork":
        if not ret:
            spec.forked = True
            spec.userfaults[args[0]] = _inherited(spec, spec.procs[args[0]], known)
    elif kind == "exit":
        del spec.userfaults[op.proc]
    elif kind not in _WITHOUT_EFFECT:
        known.blurred = True


def _follow_range(pages: Pages, op: Op, ret: int, known: Userfaults) -> None:
    """munmap, madvise, or a lock, which brings pages in."""
    numbers = range(op.args[0], op.args[0] + op.args[1])
    drops = op.kind == "munmap" or (op.kind == "madvise" and op.args[2] in _DROPS)
    if drops and ret in (0, -ENOMEM):
        known.set(numbers, 0)
    elif drops:
        known.blur(number for number in numbers if number in pages)
    elif op.kind == "madvise" and op.args[2] == MADV_FREE:
        for number in numbers:
            _may_go(known, number)
    elif op.kind != "madvise" or op.args[2] in _BRINGS_PAGES:
        known.stir(number for number in numbers if number in pages)


def _may_go(known: Userfaults, number: int) -> None:
    """What is at the page, a protection with it, may be thrown away at any time; poison has gone."""
    state = known.states.get(number, 0)
    if state & THERE:
        state = state & ~THERE | MAYBE
    if state & PROTECTED:
        state = state & ~PROTECTED | MAYBE_PROTECTED
    if state & _POISON:
        state &= MAYBE
    known.set((number,), state)


def _follow_mremap(pages: Pages, op: Op, ret: int, known: Userfaults, moved: list[int]) -> None:
    """What is known moves along; a registration with EVENT_REMAP only, and then what is protected too."""
    addr, old, new, _, target = op.args
    if ret < 0:
        known.blur(n for n in (*range(addr, addr + old), *range(target, target + new)) if n in pages)
        return
    if ret == addr:
        known.set(range(addr + new, addr + old), 0)
        known.stir(n for n in range(addr + old, addr + new) if pages[n].flags & VM_LOCKED)
        return
    states = [known.states.get(addr + i, 0) for i in moved]
    grown = range(ret + old, ret + new)
    known.set(range(addr, addr + old), 0)
    known.set(grown, 0)
    for i, state in zip(moved, states, strict=True):
        known.set((ret + i,), state)
    known.stir(n for n in grown if pages[n].flags & VM_LOCKED)
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
            state &= ~(PROTECTED | MAYBE_PROTECTED)
        if state & THERE and not spec.content(page):
            state = state & ~THERE | MAYBE
        if page.flags & VM_WIPEONFORK:
            state = 0
        if state:
            child.states[number] = state
    if event and registered:
        child.features = parent.features
    return child


def unregister_page(pages: Pages, known: Userfaults, number: int) -> None:
    """The page, if there is one, is registered no longer, nor protected if it was registered for that."""
    page = pages.get(number)
    if page is None or not page.flags & VM_UFFD_FLAGS:
        return
    pages[number] = page._replace(flags=page.flags & ~VM_UFFD_FLAGS)
    if page.flags & VM_UFFD_WP:
        known.set((number,), known.states.get(number, 0) & ~(PROTECTED | MAYBE_PROTECTED))


def leave_open(spec: Specification, op: Op, place: int = -1) -> None:
    """``op`` was done in part, or something ran beside it: it is not certain what its pages are.

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
    if op.kind == "mlockall":
        known.blurred = True
    pages = spec.procs[op.proc]
    if op.kind == "mremap":
        op = op._replace(args=(*op.args[:4], place if place >= 0 else op.args[4]))
        for i in range(min(op.args[1:3])):  # no more is known than that it may be poisoned in either place
            if known.states.get(op.args[0] + i, 0) & _POISON and op.args[4] + i in pages:
                known.states[op.args[4] + i] = MAYBE_POISONED
    for start, length in _spans(op):
        known.blur(number for number in range(start, start + length) if number in pages)
        known.stir(_huge_around(spec, pages, start, start + length))


def _spans(op: Op) -> list[tuple[int, int]]:
    """(first page, pages) that the operation names."""
    args = op.args
    if op.kind in ACCESSES:
        return [(args[0], 1)]
    if op.kind == "mremap":
        return [(args[0], args[1]), (args[4], args[2])]
    if op.kind in ("uffd_copy", "uffd_move"):
        return [(args[0], args[2]), (args[1], args[2])]
    return [(args[0], args[1])] if op.kind in _RANGES or (op.kind.startswith("uffd_") and len(args) > 1) else []
