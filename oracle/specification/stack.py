"""Growing mappings in the specification: stacks (MAP_GROWSDOWN) and the heap (rules: expand_downwards and brk of mm/).

An access below a stack lets it grow down to the page, unless other memory is too near or a limit forbids it. Two of the
limits hang on what a process cannot see, where VMAs end and which page offset they have: there both outcomes are
allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from emulator.mm_types import VM_ACCESS_FLAGS, VM_GROWSDOWN, VM_LOCKED, VM_MERGEABLE
from emulator.uapi import EFAULT, PROT_EXEC, PROT_READ, PROT_WRITE, SIGSEGV
from emulator.workload import FOLL_WRITE, RLIMIT_DATA, RLIMIT_STACK
from oracle.specification.limits import limit_of, may_expand
from oracle.specification.lock import may_lock
from oracle.specification.page import (
    GUARDED,
    MAYBE_UNLOCKED,
    MAYBE_UNMAPPED,
    Page,
    Pages,
    Refusal,
    sealed,
    wrong_result,
)
from oracle.specification.placement import may_lack_space

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification

_REFUSED = (SIGSEGV, -EFAULT)


class Growth(NamedTuple):
    """What an access below a stack brings: the pages, all alike, and whether that is certain."""

    numbers: range
    page: Page
    sure: bool


def growth(spec: Specification, pages: Pages, number: int) -> Growth | None:
    """How far a stack would grow for an access to ``number``, where nothing is mapped; None: none may."""
    if not spec.stacks:
        return None
    above = min((other for other in pages if other > number), default=None)
    if above is None or not pages[above].flags & VM_GROWSDOWN:
        return None
    head = pages[above]
    below = max((other for other in pages if other < number), default=None)
    if below is not None and number - below - 1 < spec.limits.stack_guard_gap:
        flags = pages[below].flags
        if flags & VM_ACCESS_FLAGS and not flags & VM_GROWSDOWN:
            return None
    limit = limit_of(spec, pages, RLIMIT_STACK)
    assert limit is not None
    if not may_expand(spec, pages, above - number, data=False):
        return None
    if above + 1 - number > limit or (head.flags & VM_LOCKED and not may_lock(spec, pages, above - number)):
        return None
    end = above
    while end in pages and pages[end].flags & VM_GROWSDOWN:
        end += 1
    sure = end - number <= limit and not spec.stack_moved and len(pages) + above - number <= spec.limits.total
    return Growth(range(number, above), Page(head.flags & ~(MAYBE_UNLOCKED | GUARDED), None, 0), sure)


def grow(spec: Specification, pages: Pages, op: Op, ret: int) -> Page | None:
    """The page that ``op`` accesses, where nothing is mapped, once a stack has grown down to it; None: none has."""
    number = op.args[0]
    found = growth(spec, pages, number)
    if found is None:
        return None
    page = found.page
    if not found.sure and ret in _REFUSED:
        if page.flags & needed(op):
            return None
        page = Page(page.flags | MAYBE_UNMAPPED, None, 0)  # refused it was in any case
    for grown in found.numbers:
        pages[grown] = page
        spec.unsettled.append((op.proc, grown))
    return page


def needed(op: Op) -> int:
    """The permissions of which one must be there for the access."""
    if op.kind in ("gup_fast", "gup_slow"):
        return PROT_WRITE if op.args[1] & FOLL_WRITE else PROT_READ
    return {"write": PROT_WRITE, "fill": PROT_WRITE, "exec": PROT_EXEC}.get(op.kind, VM_ACCESS_FLAGS)


# ---- the heap


def brk_of(spec: Specification, label: int) -> int:
    """The page where the heap ends."""
    end = spec.settings_of(label).brk
    return spec.limits.heap if end < 0 else end


def brk(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """Move the end of the heap. The result is where it is then: where it was, if the call is refused."""
    old, new = brk_of(spec, op.proc), op.args[0]
    if ret == old and new > old and may_lack_space(spec, pages, new - old, anywhere=False):
        return None
    if not _can_move(spec, pages, op, old, new):
        new = old
    if ret != new:
        return wrong_result(op, ret, "the old end of the heap" if new == old else "the end asked for")
    for number in range(new, old):
        pages.pop(number, None)
    if new > old:
        settings = spec.settings_of(op.proc)
        flags = PROT_READ | PROT_WRITE | settings.lock | (VM_MERGEABLE if settings.merge else 0)
        page = Page(flags, None, 0)
        pages.update(dict.fromkeys(range(old, new), page))
    spec.unsettled += [(op.proc, number) for number in range(min(old, new), max(old, new))]
    spec.settings[op.proc] = spec.settings_of(op.proc)._replace(brk=new)
    return None


def _can_move(spec: Specification, pages: Pages, op: Op, old: int, new: int) -> bool:
    data = limit_of(spec, pages, RLIMIT_DATA)
    if new < spec.limits.heap or (data is not None and new - spec.limits.heap > data):
        return False
    if new > old:
        return _can_grow(spec, pages, op, old, new)
    if sealed(pages, new, old):
        return False
    return new == old or not spec.limits.profile.heap_must_be_there or any(n in pages for n in range(new, old))


def _can_grow(spec: Specification, pages: Pages, op: Op, old: int, new: int) -> bool:
    """The page behind the new end must be free as well, and the gap below a stack."""
    if new > spec.limits.top or (spec.settings_of(op.proc).lock and not may_lock(spec, pages, new - old)):
        return False
    if not may_expand(spec, pages, new - old, data=True):
        return False
    following = min((number for number in pages if number >= old), default=None)
    if following is None:
        return True
    gap = spec.limits.stack_guard_gap if pages[following].flags & VM_GROWSDOWN else 0
    return new + 1 <= following - gap
