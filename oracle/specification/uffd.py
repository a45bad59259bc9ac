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
    VM_UFFD_FLAGS,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
)
from emulator.uapi import (
    EFAULT,
    PROT_WRITE,
    SIGBUS,
    UFFD_FEATURE_EVENT_REMAP,
)
from emulator.workload import FOLL_WRITE
from oracle.specification import uffd_memory
from oracle.specification.page import GUARDED, Page, Pages, Refusal, names, wrong_result
from oracle.specification.pins import gup_results
from oracle.specification.stack import grow, growth, needed
from oracle.specification.uffd_memory import (
    MAYBE,
    MAYBE_POISONED,
    MAYBE_PROTECTED,
    POISON,
    POISONED,
    PROTECTED,
    PROTECTION,
    THERE,
    ZEROS,
    stir_files,
)

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification

ACCESSES: Final = frozenset(("read", "write", "fill", "exec", "gup_fast", "gup_slow"))
_GUP: Final = frozenset(("gup_fast", "gup_slow"))


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
            poison = MAYBE_POISONED if self.states.get(number, 0) & POISON else 0
            self.states[number] = MAYBE | MAYBE_PROTECTED | poison | self.states.get(number, 0) & ZEROS


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
    """Is there certainly an entry, of a page or of a swap slot?"""
    if page.backing is not None:
        return uffd_memory.mapped(spec, known, number, page)[0]
    if page.dropped is not None:
        return False  # it may have been thrown away
    return known.states.get(number, 0) & THERE != 0 or spec.content(page) != 0


def may_be_there(spec: Specification, known: Userfaults, number: int, page: Page) -> bool:
    if page.backing is not None:
        return uffd_memory.mapped(spec, known, number, page)[1]
    return known.states.get(number, 0) & (THERE | MAYBE) != 0 or known.blurred or spec.content(page) != 0


def appears(spec: Specification, pages: Pages, known: Userfaults, number: int) -> None:
    """Something is at the page now, and with it, where huge pages are wanted, perhaps all around it."""
    page = pages[number]
    if page.backing is not None:
        uffd_memory.appears(spec, known, number, page)
        return
    if page.flags & VM_HUGEPAGE and not must_be_there(spec, known, number, page):
        known.stir(brought(spec, pages, number))
    known.states[number] = known.states.get(number, 0) & ~(MAYBE | POISON) | THERE


def brought(spec: Specification, pages: Pages, number: int) -> list[int]:
    """The pages that may come with this one."""
    return huge_around(spec, pages, number, number + 1) if pages[number].flags & VM_HUGEPAGE else []


def huge_around(spec: Specification, pages: Pages, start: int, end: int) -> list[int]:
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
        stir_files(spec, pages, (number,))
    elif write or gup:
        left = PROTECTION if write and page.flags & VM_UFFD_WP else 0
        known.states[number] &= ~(left | ZEROS)
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
    if page.backing is not None:
        return uffd_memory.traps(spec, known, number, page, write)
    counts = write and page.flags & VM_UFFD_WP != 0
    may = counts and state & (PROTECTED | MAYBE_PROTECTED) != 0
    must = counts and state & PROTECTED != 0
    if page.flags & VM_UFFD_MISSING and not must_be_there(spec, known, number, page):
        return True, must or not may_be_there(spec, known, number, page)
    return may, must


def _was_trapped(spec: Specification, known: Userfaults, number: int, page: Page, write: bool) -> None:
    """What the failure of an access tells."""
    state = known.states.get(number, 0)
    if state & POISON:
        return
    if page.backing is not None:
        uffd_memory.was_trapped(spec, known, number, page, write)
    elif not page.flags & VM_UFFD_MISSING:  # so it is protected, and there by now
        known.states[number] = THERE | PROTECTED
    elif must_be_there(spec, known, number, page):
        known.states[number] = state & ~MAYBE_PROTECTED | PROTECTED
    elif not (write and state & (PROTECTED | MAYBE_PROTECTED)) and not known.blurred:
        known.states[number] = state & ~MAYBE


def unregister_page(pages: Pages, known: Userfaults, number: int) -> None:
    """The page, if there is one, is registered no longer, nor protected if it was registered for that."""
    page = pages.get(number)
    if page is None or not page.flags & VM_UFFD_FLAGS:
        return
    pages[number] = page._replace(flags=page.flags & ~VM_UFFD_FLAGS)
    if page.flags & VM_UFFD_WP:
        known.set((number,), known.states.get(number, 0) & ~PROTECTION)
