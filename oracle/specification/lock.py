"""mlock and its kin in the specification (rules: mm/mlock.c).

A lock is a flag of the mapping. What populating the range leaves in the pages is what was there; that it cannot be
populated is an error all the same, when all of it is locked already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.mm_types import VM_ACCESS_FLAGS, VM_DROPPABLE, VM_LOCKED, VM_LOCKED_MASK, VM_LOCKONFAULT
from emulator.uapi import (
    EINVAL,
    ENOMEM,
    EPERM,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    result_name,
)
from emulator.workload import RLIMIT_MEMLOCK
from oracle.specification.limits import limit_of
from oracle.specification.page import (
    GUARDED,
    MAYBE_UNLOCKED,
    Page,
    Pages,
    Refusal,
    unlocked,
    with_flags,
    wrong_result,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulator.workload import Op
    from oracle.specification.state import Specification


def lock_flags(op: Op) -> int:
    """The lock flags that mlock, mlock2 or munlock gives."""
    if op.kind == "munlock":
        return 0
    return VM_LOCKED_MASK if op.kind == "mlock2" and op.args[2] & MLOCK_ONFAULT else VM_LOCKED


def with_lock(page: Page, flags: int) -> Page:
    """The page with these lock flags and no others; droppable memory is passed over."""
    if page.flags & VM_DROPPABLE:
        return page
    return with_flags(page, VM_LOCKED_MASK, flags)


def can_populate(spec: Specification, page: Page, refused: bool) -> bool:
    """Can the page be faulted in? Where that may be or not, whether the call was ``refused`` says so."""
    return page.flags & VM_ACCESS_FLAGS != 0 and not page.flags & GUARDED and not spec.meets_end(page, refused)


def locked_pages(pages: Pages) -> int:
    return sum(page.flags & VM_LOCKED != 0 for page in pages.values())


def may_lock(spec: Specification, pages: Pages, more: int) -> bool:
    """Does RLIMIT_MEMLOCK leave room for ``more`` pages (mlock_future_ok)?"""
    limit = limit_of(spec, pages, RLIMIT_MEMLOCK)
    return limit is None or locked_pages(pages) + more <= limit


def _result(op: Op, ret: int, want: int) -> Refusal | None:
    return None if ret == want else wrong_result(op, ret, result_name(want) if want else "success")


def mlock(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """mlock, mlock2 and munlock: the mappings up to the first hole get the flags."""
    if op.kind == "mlock2" and op.args[2] & ~MLOCK_ONFAULT:
        return _result(op, ret, -EINVAL)
    addr, length = op.args[:2]
    flags = lock_flags(op)
    if flags:
        if limit_of(spec, pages, RLIMIT_MEMLOCK) == 0:
            return _result(op, ret, -EPERM)
        held = sum(number in pages and pages[number].flags & VM_LOCKED != 0 for number in range(addr, addr + length))
        if not may_lock(spec, pages, length - held):
            return _result(op, ret, -ENOMEM)
    want = 0
    for number in range(addr, addr + length):
        page = pages.get(number)
        if page is None:
            return _result(op, ret, -ENOMEM)
        page = pages[number] = with_lock(page, flags)
        if flags and not page.flags & VM_LOCKONFAULT and not can_populate(spec, page, ret == -ENOMEM):
            want = -ENOMEM  # the hole, if there is one, is found first, with the same error
    return _result(op, ret, want)


def mlockall(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """mlockall and munlockall. What cannot be populated is no error here."""
    asked = op.args[0] if op.kind == "mlockall" else 0
    limit = limit_of(spec, pages, RLIMIT_MEMLOCK)
    if op.kind == "mlockall":
        if not asked or asked == MCL_ONFAULT or asked & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
            return _result(op, ret, -EINVAL)
        if limit == 0:
            return _result(op, ret, -EPERM)
        if asked & MCL_CURRENT and limit is not None and len(pages) > limit:
            return _result(op, ret, -ENOMEM)
    set_future(spec, op)
    flags = current_flags(op)
    if flags is not None:
        for number, page in pages.items():
            pages[number] = with_lock(page, flags)
    return _result(op, ret, 0)


def decisions(spec: Specification, op: Op, ret: int) -> Iterator[Specification]:
    """The states in which it is known which of the pages that may have lost their lock have kept it.

    All, none, or those where ``op``, a move with DONTUNMAP, has put them: beside what it comes from, but a VMA apart.
    """
    source, length = op.args[:2] if op.kind == "mremap" else (0, 0)
    target = range(ret, spec.limits.top) if ret > source else range(ret + length)
    for kept in (range(0), range(spec.limits.top), target):
        after = spec.copy()
        for label, number in after.unsettled:
            page = after.procs[label].get(number)
            if page is not None and page.flags & MAYBE_UNLOCKED:
                after.procs[label][number] = with_flags(page, MAYBE_UNLOCKED, 0) if number in kept else unlocked(page)
        yield after



def current_flags(op: Op) -> int | None:
    """The lock flags that everything mapped gets; None: as they are."""
    asked = op.args[0] if op.kind == "mlockall" else 0
    if asked & MCL_CURRENT:
        return VM_LOCKED_MASK if asked & MCL_ONFAULT else VM_LOCKED
    return None if asked & MCL_FUTURE else 0


def set_future(spec: Specification, op: Op) -> None:
    """What mappings to come will have; without MCL_FUTURE that ends."""
    asked = op.args[0] if op.kind == "mlockall" else 0
    lock = 0
    if asked & MCL_FUTURE:
        lock = VM_LOCKED_MASK if asked & MCL_ONFAULT else VM_LOCKED
    spec.settings[op.proc] = spec.settings_of(op.proc)._replace(lock=lock)
