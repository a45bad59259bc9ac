"""madvise in the specification (rules: mm/madvise.c).

Every mapping in the range is done in turn. A hole makes the result -ENOMEM at the end and stops nothing; a mapping
that refuses ends the call, and what stands before it stays done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emulator.errors import InternalError
from emulator.mm_types import VM_HUGEPAGE, VM_LOCKED, VM_NOHUGEPAGE
from emulator.uapi import (
    EAGAIN,
    EBUSY,
    EINVAL,
    ENOMEM,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    result_name,
)
from oracle.specification_page import Page, Pages, Refusal, erased, wrong_result

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification import Specification

Effect = Callable[[Page], Page | int]
"""What the page becomes, or the error with which its mapping refuses."""


def keeps_flags(cleared: int, added: int) -> Effect:
    """Advice that is kept in flags of the mapping."""

    def effect(page: Page) -> Page:
        return Page(page.flags & ~cleared | added, page.backing, page.content)

    return effect


def drops(page: Page) -> Page | int:
    return -EINVAL if page.flags & VM_LOCKED else erased(page)


def pages_out(page: Page) -> Page | int:
    return -EINVAL if page.flags & VM_LOCKED else page


def collapses(page: Page) -> Page | int:
    return page


EFFECTS: Final[dict[int, Effect]] = {
    MADV_COLLAPSE: collapses,
    MADV_DONTNEED: drops,
    MADV_HUGEPAGE: keeps_flags(VM_NOHUGEPAGE, VM_HUGEPAGE),
    MADV_NOHUGEPAGE: keeps_flags(VM_HUGEPAGE, VM_NOHUGEPAGE),
    MADV_PAGEOUT: pages_out,
}


# Why a range cannot be collapsed (now) hangs on page tables and references, which nobody sees; contents never change.
COLLAPSE_ERRORS: Final = frozenset((-EINVAL, -EAGAIN, -EBUSY))


def effect_of(advice: int) -> Effect:
    effect = EFFECTS.get(advice)
    if effect is None:
        raise InternalError(f"the specification does not know advice {advice}")
    return effect


def madvise(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """Do the call with this result. None: allowed."""
    addr, length, advice = op.args
    effect = effect_of(advice)
    want = 0
    for number in range(addr, addr + length):
        page = pages.get(number)
        if page is None:
            want = -ENOMEM
            continue
        after = effect(page)
        if isinstance(after, int):
            want = after
            break
        pages[number] = after
    if advice == MADV_COLLAPSE and ret in COLLAPSE_ERRORS:
        return None
    return None if ret == want else wrong_result(op, ret, result_name(want) if want else "success")
