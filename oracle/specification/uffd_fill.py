"""UFFDIO_COPY, ZEROPAGE, POISON and MOVE in the specification (rules: mm/userfaultfd.c).

They go on page by page and tell how far they came: it is checked that each page that was done could be, and that the
next could not. Where one VMA must hold a range, the model knows no more than ``mremap`` does: pages of different kind
certainly stand in different VMAs, pages of one kind in one or in several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_UFFD_FLAGS,
    VM_UFFD_WP,
)
from emulator.uapi import (
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    ENOENT,
    PROT_WRITE,
    UFFDIO_COPY_MODE_WP,
    UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
)
from emulator.workload import Op
from oracle.specification.mremap import (
    one_mapping,
)
from oracle.specification.page import (
    GUARDED,
    Page,
    Pages,
    Refusal,
    names,
    with_flags,
    wrong_result,
)
from oracle.specification.stack import grow
from oracle.specification.uffd import (
    MAYBE,
    MAYBE_POISONED,
    MAYBE_PROTECTED,
    POISONED,
    PROTECTED,
    THERE,
    Userfaults,
    appears,
    bad_range,
    brought,
    check,
    may_be_there,
    must_be_there,
    opened,
    traps,
)

if TYPE_CHECKING:
    from emulator.workload import Outcome
    from oracle.specification.state import Specification


# ---- calls that go on page by page


Step = Callable[[int], set[int]]
"""What may come of the page with this number in the call: 0 (it is done), errors that end the call."""


def _page_by_page(op: Op, outcome: Outcome, length: int, may: Step, do: Callable[[int], None]) -> Refusal | None:
    """Check the number of pages done, or the error of the first, and do as many."""
    ret = outcome.ret
    done = ret if ret > 0 else 0
    for i in range(min(done, length)):
        results = may(i)
        if 0 not in results:
            return wrong_result(op, ret, str(i) if i else names(results))
        do(i)
    if done == length:
        return None if ret == length else wrong_result(op, ret, str(length))
    errors = may(done) - {0}
    if outcome.injected or (errors and (done or ret in errors)):
        return None
    return wrong_result(op, ret, "more pages" if done else names(errors or {0}))


def _destination(spec: Specification, pages: Pages, start: int, length: int) -> set[int]:
    """0 if one registered VMA may hold the range; -ENOENT if not, or perhaps not."""
    page = pages.get(start)
    if page is None or not page.flags & VM_UFFD_FLAGS or not one_mapping(pages, start, length):
        return {-ENOENT}
    return {0} if length == 1 else {0, -ENOENT}


def _fill(
    spec: Specification,
    pages: Pages,
    op: Op,
    outcome: Outcome,
    length: int,
    may: Step,
    do: Callable[[int], None],
) -> Refusal | None:
    allowed = _destination(spec, pages, op.args[0], length)
    if outcome.ret in allowed - {0}:
        return None
    if 0 not in allowed:
        return wrong_result(op, outcome.ret, names(allowed))
    return _page_by_page(op, outcome, length, may, do)


def copy(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    dst, src, length, mode = op.args
    known = spec.userfaults[op.proc]
    opened(known)
    if bad_range(spec, dst, length) or bad_range(spec, src, length):
        return check(op, outcome.ret, {-EINVAL})
    protect = mode & UFFDIO_COPY_MODE_WP

    def may(i: int) -> set[int]:
        """The source is read before the destination is looked at, which it may be, or bring along."""
        source = pages.get(src + i) or grow(spec, pages, Op("read", op.proc, (src + i,)), min(outcome.ret, 0))
        results = _empty(spec, known, dst + i, pages[dst + i], markers=True)
        if source is None or not source.flags & VM_ACCESS_FLAGS or source.flags & GUARDED:
            return results - {0} | {-EFAULT}
        if spec.meets_end(source, outcome.ret == -EFAULT):
            return results - {0} | {-EFAULT}
        may_trap, must_trap = traps(spec, known, src + i, source, False)
        if must_trap:
            return results - {0} | {-EFAULT}
        if dst == src:
            results = {-EEXIST}
        elif dst + i in brought(spec, pages, src + i):
            results.add(-EEXIST)
        return results | {-EFAULT} if may_trap else results

    def do(i: int) -> None:
        appears(spec, pages, known, src + i)
        there = with_flags(pages[dst + i], GUARDED, 0)
        pages[dst + i] = _holding(spec, op.proc, dst + i, there, pages[src + i])
        known.states[dst + i] = THERE | (PROTECTED if protect else 0)

    page = pages.get(dst)
    if protect and page is not None and page.flags & VM_UFFD_FLAGS and not page.flags & VM_UFFD_WP:
        return check(op, outcome.ret, _destination(spec, pages, dst, length) - {0} | {-EINVAL})
    refusal = _fill(spec, pages, op, outcome, length, may, do)
    ended = src + max(outcome.ret, 0)
    if ended < src + length and ended in pages:  # it may have been read
        known.stir((ended, *brought(spec, pages, ended)))
    return refusal


def _holding(spec: Specification, label: int, number: int, page: Page, source: Page) -> Page:
    """The page with the contents of ``source``, which may have been thrown away before."""
    other = source.other()
    if other is None:
        return page._replace(content=spec.content(source), dropped=None)
    spec.unsettled.append((label, number))
    return page._replace(content=spec.content(source), dropped=~other)


def read_before(states: Sequence[Specification], op: Op) -> Iterator[Specification]:
    """What UFFDIO_COPY of one page leaves after the last of ``states`` if it read its source in one of those before."""
    dst, src, _, mode = op.args
    spec = states[-1]
    page = spec.procs[op.proc].get(dst) if op.proc in spec.procs else None
    if page is None or 0 not in _destination(spec, spec.procs[op.proc], dst, 1):
        return
    if 0 not in _empty(spec, spec.userfaults[op.proc], dst, page, markers=True):
        return
    sources = [(state, state.procs[op.proc].get(src)) for state in states]
    contents = [state.content(source) for state, source in sources if source is not None]
    contents += [source.other() or 0 for _, source in sources if source is not None and source.dropped is not None]
    for content in dict.fromkeys(contents):
        after = spec.copy()
        after.procs[op.proc][dst] = with_flags(page, GUARDED, 0)._replace(content=content, dropped=None)
        protect = PROTECTED if mode & UFFDIO_COPY_MODE_WP else 0
        after.userfaults[op.proc].states[dst] = THERE | protect
        yield after


def _empty(spec: Specification, known: Userfaults, number: int, page: Page, *, markers: bool) -> set[int]:
    """0 if nothing may be there, -EEXIST if something may; ``markers``: those of protection and poison are nothing."""
    state = known.states.get(number, 0)
    if page.flags & GUARDED:
        return {0} if markers and spec.limits.profile.uffd_copy_fills_guards else {-EEXIST}
    if must_be_there(spec, known, number, page):
        return {-EEXIST}
    maybe = may_be_there(spec, known, number, page)
    if not markers:
        if state & POISONED or (state & PROTECTED and not maybe):
            return {-EEXIST}
        maybe = maybe or bool(state & (MAYBE_PROTECTED | MAYBE_POISONED))
    return {0, -EEXIST} if maybe else {0}


def zeropage(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    """UFFDIO_ZEROPAGE and UFFDIO_POISON."""
    start, length = op.args
    known = spec.userfaults[op.proc]
    opened(known)
    if bad_range(spec, start, length):
        return check(op, outcome.ret, {-EINVAL})
    state = THERE if op.kind == "uffd_zeropage" else POISONED

    def may(i: int) -> set[int]:
        return _empty(spec, known, start + i, pages[start + i], markers=False)

    def do(i: int) -> None:
        known.states[start + i] = state

    return _fill(spec, pages, op, outcome, length, may, do)


def move(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    dst, src, length, mode = op.args
    known = spec.userfaults[op.proc]
    opened(known)
    ret = outcome.ret
    if bad_range(spec, dst, length) or bad_range(spec, src, length):
        return check(op, ret, {-EINVAL})
    if dst not in pages or src not in pages:
        return check(op, ret, {-ENOENT})
    if not _movable(pages, dst, src, length):
        return check(op, ret, {-EINVAL})
    if ret == -EINVAL and length > 1:
        return None  # several VMAs of one kind

    def may(i: int) -> set[int]:
        results = _empty(spec, known, dst + i, pages[dst + i], markers=False)
        leaves = _leaves(spec, known, src + i, pages[src + i], mode)
        return results - {0} | (leaves if 0 in results else leaves - {0})

    def do(i: int) -> None:
        page = pages[src + i]
        state = known.states.get(src + i, 0)
        if not may_be_there(spec, known, src + i, page):
            return
        pages[dst + i] = pages[dst + i]._replace(content=page.content, dropped=page.dropped)
        pages[src + i] = page._replace(content=0, dropped=None)
        # what is swapped out takes its protection along
        left = MAYBE_PROTECTED if state & (PROTECTED | MAYBE_PROTECTED) else 0
        known.states[dst + i] = state & (THERE | MAYBE) | left
        known.set((src + i,), 0)

    return _page_by_page(op, outcome, length, may, do)


def _movable(pages: Pages, dst: int, src: int, length: int) -> bool:
    """Can the two ranges lie in one VMA each, writable anonymous ones of one kind, the destination's registered?"""
    to, origin = pages[dst], pages[src]
    if to.backing is not None or origin.backing is not None or not to.flags & VM_UFFD_FLAGS:
        return False
    if (to.flags ^ origin.flags) & (VM_ACCESS_FLAGS | VM_LOCKED) or not to.flags & PROT_WRITE:
        return False
    return one_mapping(pages, dst, length) and one_mapping(pages, src, length)


def _leaves(spec: Specification, known: Userfaults, number: int, page: Page, mode: int) -> set[int]:
    """0 if the page may be moved, or a hole passed over; and what may keep it."""
    state = known.states.get(number, 0)
    if state & POISONED or page.flags & GUARDED:
        return {-EFAULT}
    hole = 0 if mode & UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES else -ENOENT
    results = {-EFAULT} if state & MAYBE_POISONED else set()
    if not must_be_there(spec, known, number, page):
        if not state & PROTECTED:
            results.add(hole)
        if state & (PROTECTED | MAYBE_PROTECTED):
            results.add(-EFAULT)  # a marker
    if may_be_there(spec, known, number, page):
        results.add(0)
        if spec.forked or spec.merged or spec.pins or page.flags & VM_HUGEPAGE:
            results.add(-EBUSY)  # perhaps it is shared, pinned, or part of something larger
    own = page.content
    if own is not None and own < 0 and any(pin.cell == -own for pin in spec.pins.values()):
        return results - {0}
    return results
