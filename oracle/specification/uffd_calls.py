"""The calls of userfaultfd in the specification (rules: fs/userfaultfd.c, mm/userfaultfd.c).

Those that fill or move pages stand in ``uffd_fill.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_DROPPABLE,
    VM_UFFD_FLAGS,
    VM_UFFD_MINOR,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
)
from emulator.uapi import (
    EBADF,
    EBUSY,
    EFAULT,
    EHWPOISON,
    EINVAL,
    ENOENT,
    ENOMEM,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    PROT_READ,
    PROT_WRITE,
    UFFD_FEATURE_WP_UNPOPULATED,
    UFFDIO_REGISTER_MODE_MINOR,
    UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP,
    UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
    UFFDIO_WRITEPROTECT_MODE_WP,
)
from oracle.specification.page import (
    GUARDED,
    Page,
    Pages,
    Refusal,
    wrong_result,
)
from oracle.specification.uffd import (
    ACCESSES,
    Userfaults,
    access,
    appears,
    bad_range,
    check,
    may_be_there,
    must_be_there,
    opened,
    traps,
    unregister_page,
)
from oracle.specification.uffd_fill import (
    copy,
    move,
    resume,
    zeropage,
)
from oracle.specification.uffd_follow import follow, moving, stir
from oracle.specification.uffd_memory import (
    MAYBE_POISONED,
    MAYBE_PROTECTED,
    POISONED,
    PROTECTED,
    can_be_registered,
)

if TYPE_CHECKING:
    from emulator.workload import Op, Outcome
    from oracle.specification.state import Specification

Call = Callable[["Specification", Pages, "Op", "Outcome"], Refusal | None]
"""Does the call with this outcome. None: allowed."""


def open_context(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    known = spec.userfaults[op.proc]
    allowed = {0, -EBUSY} if known.maybe_open else {0} if known.features is None else {-EBUSY}
    if outcome.ret == 0:
        known.features = op.args[0]
    elif known.maybe_open:
        known.features = 0
    known.maybe_open = False
    return check(op, outcome.ret, allowed)


def close(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    known = spec.userfaults[op.proc]
    allowed = {0, -EBADF} if known.maybe_open else {-EBADF} if known.features is None else {0}
    known.features = None
    known.maybe_open = False
    for number in pages:
        unregister_page(pages, known, number)
    return check(op, outcome.ret, allowed)


def _mapped(pages: Pages, start: int, length: int) -> list[int]:
    return [number for number in range(start, start + length) if number in pages]


def _can_be_registered(page: Page, mode: int = 0) -> bool:
    """Minor faults are of files only."""
    minor = mode & UFFDIO_REGISTER_MODE_MINOR and page.backing is None
    return can_be_registered(page) and not page.flags & VM_DROPPABLE and not minor


def register(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    start, length, mode = op.args
    known = spec.userfaults[op.proc]
    opened(known)
    numbers = _mapped(pages, start, length)
    bad = not mode or bad_range(spec, start, length) or not numbers
    if bad or not all(_can_be_registered(pages[number], mode) for number in numbers):
        return check(op, outcome.ret, {-EINVAL})
    for number in numbers:
        register_page(pages, known, number, mode)
    return check(op, outcome.ret, {0})


def registered(page: Page, mode: int) -> Page:
    """The page registered in these modes, and in no other; one that has them all stays as it is."""
    wanted = VM_UFFD_MISSING if mode & UFFDIO_REGISTER_MODE_MISSING else 0
    wanted |= VM_UFFD_WP if mode & UFFDIO_REGISTER_MODE_WP else 0
    wanted |= VM_UFFD_MINOR if mode & UFFDIO_REGISTER_MODE_MINOR else 0
    if page.flags & wanted == wanted:
        return page
    return page._replace(flags=page.flags & ~VM_UFFD_FLAGS | wanted)


def register_page(pages: Pages, known: Userfaults, number: int, mode: int) -> None:
    """What is protected stays so when the page is not registered for that any more, and may count again later."""
    before = pages[number]
    after = pages[number] = registered(before, mode)
    state = known.states.get(number, 0)
    if state & PROTECTED and not after.flags & VM_UFFD_WP:
        known.states[number] = state & ~PROTECTED | MAYBE_PROTECTED


def unregister(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    start, length = op.args
    known = spec.userfaults[op.proc]
    opened(known)
    numbers = _mapped(pages, start, length)
    bad = bad_range(spec, start, length) or not numbers
    if bad or not all(_can_be_registered(pages[number]) for number in numbers):
        return check(op, outcome.ret, {-EINVAL})
    for number in numbers:
        unregister_page(pages, known, number)
    return check(op, outcome.ret, {0})


def write_protect(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    start, length, mode = op.args
    known = spec.userfaults[op.proc]
    opened(known)
    if mode == UFFDIO_WRITEPROTECT_MODE_WP | UFFDIO_WRITEPROTECT_MODE_DONTWAKE or bad_range(spec, start, length):
        return check(op, outcome.ret, {-EINVAL})
    want = -ENOENT
    for number in _mapped(pages, start, length):
        page = pages[number]
        if not page.flags & VM_UFFD_WP:
            want = -ENOENT
            break
        want = 0
        _protect(spec, known, number, page, bool(mode & UFFDIO_WRITEPROTECT_MODE_WP))
    return check(op, outcome.ret, {want})


def _protect(spec: Specification, known: Userfaults, number: int, page: Page, on: bool) -> None:
    state = known.states.get(number, 0)
    if state & POISONED or page.flags & GUARDED:
        return
    if state & MAYBE_POISONED:
        known.states[number] = state | (MAYBE_PROTECTED if on else 0)
        return
    state &= ~MAYBE_PROTECTED
    if not on:
        state &= ~PROTECTED
    elif page.backing is not None or (
        page.dropped is None
        and (must_be_there(spec, known, number, page) or known.has(UFFD_FEATURE_WP_UNPOPULATED))
    ):
        state |= PROTECTED
    elif may_be_there(spec, known, number, page):
        state |= MAYBE_PROTECTED
    known.set((number,), state)


def apply(spec: Specification, pages: Pages, op: Op, outcome: Outcome, token: int) -> Refusal | None:
    """Do ``op``, of a process with these pages, with this outcome. None: allowed."""
    call = CALLS.get(op.kind)
    if call is not None:
        return call(spec, pages, op, outcome)
    if op.kind in ACCESSES:
        return access(spec, pages, op, outcome.ret, lambda: spec.ordinary(pages, op, outcome, token))
    if op.kind == "madvise" and op.args[2] in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        return populate(spec, pages, op, outcome, token)
    moved = moving(pages, op)
    populates = can_populate(spec, pages, op) if op.kind in ("mlock", "mlock2") else (True, True)
    refusal = spec.ordinary(pages, op, outcome, token)
    if outcome.ret == -ENOMEM and not populates[0]:
        refusal = None  # the lock is set all the same
    elif refusal is None and not outcome.ret and not populates[1]:
        return wrong_result(op, 0, "-ENOMEM")
    if refusal is None:
        follow(spec, pages, op, outcome.ret, moved)
    return refusal


def populate(spec: Specification, pages: Pages, op: Op, outcome: Outcome, token: int) -> Refusal | None:
    """MADV_POPULATE_*: page by page, up to one that cannot be had."""
    start, length, advice = op.args
    known = spec.userfaults[op.proc]
    write = advice == MADV_POPULATE_WRITE
    errors = set()
    for number in range(start, start + length):
        page = pages.get(number)
        if page is None or not page.flags & (PROT_WRITE if write else PROT_READ) or page.flags & GUARDED:
            break
        may, must = traps(spec, known, number, page, write)
        if may:
            errors |= _why(known.states.get(number, 0))
        if must:
            ahead = op._replace(args=(start, number - start, advice))
            refusal = spec.ordinary(pages, ahead, outcome._replace(ret=0), token)
            if refusal is None:  # so far it came
                stir(spec, pages, known, range(start, number))
                return check(op, outcome.ret, errors)
            break
        if not outcome.ret:
            appears(spec, pages, known, number)
    if outcome.ret in errors:
        numbers = _mapped(pages, start, length)
        known.blur(numbers)
        stir(spec, pages, known, numbers)
        return None
    refusal = spec.ordinary(pages, op, outcome, token)
    if refusal is None:
        follow(spec, pages, op, outcome.ret, [])
    return refusal


def _why(state: int) -> set[int]:
    """How MADV_POPULATE_* tells of a page that it cannot have."""
    if state & POISONED:
        return {-EHWPOISON}
    return {-EFAULT, -EHWPOISON} if state & MAYBE_POISONED else {-EFAULT}


def can_populate(spec: Specification, pages: Pages, op: Op) -> tuple[bool, bool]:
    """(will mlock certainly find every page, may it): it faults pages in, for writing where it may."""
    known = spec.userfaults[op.proc]
    if op.kind == "mlock2" and op.args[2]:
        return True, True
    found = [
        traps(spec, known, number, pages[number], _populated_by_writing(pages[number]))
        for number in _mapped(pages, *op.args[:2])
        if pages[number].flags & VM_ACCESS_FLAGS
    ]
    return not any(may for may, _ in found), not any(must for _, must in found)


def _populated_by_writing(page: Page) -> bool:
    """Does a lock write to the page? Where that makes a copy of the process's own."""
    return page.flags & PROT_WRITE != 0 and not (page.backing is not None and page.backing.shared)


CALLS: Final[dict[str, Call]] = {
    "userfaultfd": open_context,
    "uffd_close": close,
    "uffd_register": register,
    "uffd_unregister": unregister,
    "uffd_copy": copy,
    "uffd_zeropage": zeropage,
    "uffd_poison": zeropage,
    "uffd_continue": resume,
    "uffd_wp": write_protect,
    "uffd_move": move,
}
