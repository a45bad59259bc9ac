"""madvise in the specification (rules: mm/madvise.c).

Every mapping in the range is done in turn. A hole makes the result -ENOMEM at the end and stops nothing; a mapping
that refuses ends the call, and what stands before it stays done. Populating ends at the first page that cannot be had,
holes among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emulator.errors import InternalError
from emulator.mm_types import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_SEALED,
    VM_SEQ_READ,
    VM_WIPEONFORK,
)
from emulator.uapi import (
    EACCES,
    EAGAIN,
    EBUSY,
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    PROT_READ,
    PROT_WRITE,
    result_name,
)
from oracle.specification.attributes import can_merge
from oracle.specification.page import (
    GUARDED,
    Page,
    Pages,
    Refusal,
    erased,
    with_flags,
    wrong_result,
)
from oracle.specification.process_madvise import ranges

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification

Effect = Callable[[Page], Page | int]
"""What the page becomes, or the error with which its mapping refuses."""

# Advice that throws contents away, now or in a child.
DISCARDS: Final = frozenset(
    (
        MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_REMOVE, MADV_DONTFORK, MADV_WIPEONFORK,
        MADV_GUARD_INSTALL,
    )
)  # fmt: skip

# Why a range cannot be collapsed (now) hangs on page tables and references, which nobody sees; contents never change.
COLLAPSE_ERRORS: Final = frozenset((-EINVAL, -EAGAIN, -EBUSY))


def keeps_flags(cleared: int, added: int) -> Effect:
    """Advice that is kept in flags of the mapping."""
    return lambda page: with_flags(page, cleared, added)


def keeps_flags_if_not_droppable(cleared: int) -> Effect:
    """Advice that takes back what droppable memory must have."""
    return lambda page: -EINVAL if page.flags & VM_DROPPABLE else with_flags(page, cleared, 0)


def stays(page: Page) -> Page | int:
    return page


def stays_unless_locked(page: Page) -> Page | int:
    return -EINVAL if page.flags & VM_LOCKED else page


def drops(page: Page) -> Page | int:
    return -EINVAL if page.flags & VM_LOCKED else erased(page)


def may_drop(page: Page) -> Page | int:
    """MADV_FREE: the contents may go at any time, until the page is written to."""
    if page.flags & VM_LOCKED or page.backing is not None:
        return -EINVAL
    return page if page.content == 0 else Page(page.flags, None, page.content, 0)


def guards(page: Page) -> Page | int:
    return -EINVAL if page.flags & VM_LOCKED else with_flags(erased(page), 0, GUARDED)


def wipes_on_fork(page: Page) -> Page | int:
    return -EINVAL if page.backing is not None else with_flags(page, 0, VM_WIPEONFORK)


def merges_if_private(page: Page) -> Page | int:
    """What is never merged is left out, and nothing says so."""
    return with_flags(page, 0, VM_MERGEABLE) if can_merge(page) else page


EFFECTS: Final[dict[int, Effect]] = {
    MADV_NORMAL: keeps_flags(VM_RAND_READ | VM_SEQ_READ, 0),
    MADV_RANDOM: keeps_flags(VM_SEQ_READ, VM_RAND_READ),
    MADV_SEQUENTIAL: keeps_flags(VM_RAND_READ, VM_SEQ_READ),
    MADV_WILLNEED: stays,
    MADV_DONTNEED: drops,
    MADV_DONTNEED_LOCKED: erased,
    MADV_FREE: may_drop,
    MADV_DONTFORK: keeps_flags(0, VM_DONTCOPY),
    MADV_DOFORK: keeps_flags(VM_DONTCOPY, 0),
    MADV_MERGEABLE: merges_if_private,
    MADV_UNMERGEABLE: keeps_flags(VM_MERGEABLE, 0),
    MADV_HUGEPAGE: keeps_flags(VM_NOHUGEPAGE, VM_HUGEPAGE),
    MADV_NOHUGEPAGE: keeps_flags(VM_HUGEPAGE, VM_NOHUGEPAGE),
    MADV_DONTDUMP: keeps_flags(0, VM_DONTDUMP),
    MADV_DODUMP: keeps_flags_if_not_droppable(VM_DONTDUMP),
    MADV_WIPEONFORK: wipes_on_fork,
    MADV_KEEPONFORK: keeps_flags_if_not_droppable(VM_WIPEONFORK),
    MADV_COLD: stays_unless_locked,
    MADV_PAGEOUT: stays_unless_locked,
    MADV_COLLAPSE: stays,
    MADV_GUARD_INSTALL: guards,
    MADV_GUARD_REMOVE: keeps_flags(GUARDED, 0),
}


def madvise(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """Do the call with this result. None: allowed."""
    addr, length, advice = op.args
    if advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        return _populate(spec, pages, op, ret)
    if advice == MADV_REMOVE:
        return _remove(spec, pages, op, ret)
    effect = EFFECTS.get(advice)
    if effect is None:
        raise InternalError(f"the specification does not know advice {advice}")
    if advice in spec.limits.profile.advice_unknown:
        return None if ret == -EINVAL else wrong_result(op, ret, "-EINVAL")
    if advice == MADV_FREE:
        spec.frees = True
    want = 0
    for number in range(addr, addr + length):
        page = pages.get(number)
        if page is None:
            want = -ENOMEM
            continue
        after = effect(page) if not _kept_by_seal(page, advice) else -EPERM
        if isinstance(after, int):
            want = after
            break
        pages[number] = after
    if advice == MADV_COLLAPSE and ret in COLLAPSE_ERRORS:
        return None
    return None if ret == want else wrong_result(op, ret, result_name(want) if want else "success")


def _remove(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """A hole is punched into the file of a shared mapping: zeros for all who see its pages. A pin keeps what it has."""
    addr, length, advice = op.args
    want = 0
    for number in range(addr, addr + length):
        page = pages.get(number)
        if page is None:
            want = -ENOMEM
            continue
        backing = page.backing
        if _kept_by_seal(page, advice):
            want = -EPERM
        elif page.flags & VM_LOCKED or backing is None:
            want = -EINVAL
        elif not backing.shared:
            want = -EACCES
        else:
            spec.punch(backing.file, backing.page)
            continue
        break
    return None if ret == want else wrong_result(op, ret, result_name(want) if want else "success")


def _kept_by_seal(page: Page, advice: int) -> bool:
    """Private anonymous memory that is sealed and cannot be written must keep its contents."""
    return advice in DISCARDS and page.backing is None and page.flags & (VM_SEALED | PROT_WRITE) == VM_SEALED


def installs_guards(op: Op) -> bool:
    return op.kind in ("madvise", "process_madvise") and op.args[-1] == MADV_GUARD_INSTALL


def emptied_for_guards(spec: Specification, op: Op) -> Specification:
    """What there is while a guard region is being installed: pages that were in the way are gone, no guard is there."""
    between = spec.copy()
    pages = between.procs.get(op.proc, {})
    for call in ranges(op) if op.kind == "process_madvise" else [op]:
        for number in range(call.args[0], call.args[0] + call.args[1]):
            page = pages.get(number)
            if page is not None:
                if page.flags & VM_LOCKED or _kept_by_seal(page, MADV_GUARD_INSTALL):
                    return between
                pages[number] = erased(page)
                if op.proc in between.userfaults:
                    between.userfaults[op.proc].set((number,), 0)
    return between


def _populate(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    addr, length, advice = op.args
    write = advice == MADV_POPULATE_WRITE
    want = holes = 0
    for number in range(addr, addr + length):
        page = pages.get(number)
        if page is None:
            holes = -ENOMEM
            if spec.limits.profile.populate_ends_at_hole:
                break
        elif not page.flags & (PROT_WRITE if write else PROT_READ):
            want = -EINVAL
        elif page.flags & GUARDED or spec.meets_end(page, ret == -EFAULT):
            want = -EFAULT
        elif write:
            pages[number] = written_to(spec, op.proc, number, page)
        if want:
            break
    want = want or holes
    return None if ret == want else wrong_result(op, ret, result_name(want) if want else "success")


def written_to(spec: Specification, label: int, number: int, page: Page) -> Page:
    """A page after a write fault that stored nothing: its own, and no more to be thrown away."""
    backing = page.backing
    if backing is not None and not backing.shared and page.content is None:
        return Page(page.flags, backing, spec.content(page))
    if page.dropped is not None and page.dropped >= 0 and not page.flags & VM_DROPPABLE:
        spec.unsettled.append((label, number))
        return Page(page.flags, backing, page.content, ~page.dropped)
    return page
