"""UFFDIO_COPY, ZEROPAGE, CONTINUE, POISON and MOVE in the specification (rules: mm/userfaultfd.c).

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
    UFFDIO_CONTINUE_MODE_WP,
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
from oracle.specification.uffd_memory import (
    MAYBE,
    MAYBE_POISONED,
    MAYBE_PROTECTED,
    POISONED,
    PROTECTED,
    THERE,
    ZEROS,
    cell,
    follows,
    has,
    stir_files,
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
        if behind_file(pages[dst + i]):
            return {-EFAULT}
        source = pages.get(src + i) or grow(spec, pages, Op("read", op.proc, (src + i,)), min(outcome.ret, 0))
        results = _empty_to_fill(spec, known, dst + i, pages[dst + i])
        if source is None or not source.flags & VM_ACCESS_FLAGS or source.flags & GUARDED:
            return results - {0} | {-EFAULT}
        if spec.meets_end(source, outcome.ret == -EFAULT):
            return results - {0} | {-EFAULT}
        may_trap, must_trap = traps(spec, known, src + i, source, False)
        if must_trap:
            return results - {0} | {-EFAULT}
        if dst == src or _is_source(pages[dst + i], source):
            results = {-EEXIST}
        elif dst + i in brought(spec, pages, src + i):
            results.add(-EEXIST)
        return results | {-EFAULT} if may_trap else results

    def do(i: int) -> None:
        appears(spec, pages, known, src + i)
        there = pages[dst + i] = with_flags(pages[dst + i], GUARDED, 0)
        _hold(spec, op.proc, dst + i, there, pages[src + i])
        _filled(spec, known, dst + i, there, PROTECTED if protect else 0)

    page = pages.get(dst)
    if protect and page is not None and page.flags & VM_UFFD_FLAGS and not page.flags & VM_UFFD_WP:
        return check(op, outcome.ret, _destination(spec, pages, dst, length) - {0} | {-EINVAL})
    refusal = _fill(spec, pages, op, outcome, length, may, do)
    ended = src + max(outcome.ret, 0)
    if ended < src + length and ended in pages:  # it may have been read
        known.stir((ended, *brought(spec, pages, ended)))
        stir_files(spec, pages, (ended,))
    return refusal


def _is_source(page: Page, source: Page) -> bool:
    """Does reading the source bring in what is to be filled: are both the same page of a file?"""
    place = cell(page)
    return place is not None and in_page_cache(page) and follows(source) and place == cell(source)


def _hold(spec: Specification, label: int, number: int, page: Page, source: Page) -> None:
    """Give the page the contents of ``source``, which may have been thrown away before."""
    pages = spec.procs[label]
    content, other = spec.content(source), source.other()
    if other is not None:
        spec.unsettled.append((label, number))
    dropped = None if other is None else ~other
    if in_page_cache(page):
        spec.set_content(pages, number, page, content)
        pages[number] = page._replace(dropped=dropped)
    else:
        pages[number] = page._replace(content=content, dropped=dropped)


def _filled(spec: Specification, known: Userfaults, number: int, page: Page, state: int) -> None:
    """Something is at the page now, and in its file; what was there has gone."""
    known.states[number] = THERE | state
    place = cell(page)
    if place is not None and in_page_cache(page):
        spec.resident[place] = THERE


def in_page_cache(page: Page) -> bool:
    """Does what fills the page go into the page cache of a file?"""
    return page.backing is not None and page.backing.shared


def behind_file(page: Page) -> bool:
    """Does the page lie behind the end of its file?"""
    return page.backing is not None and page.backing.page >= page.backing.length


def read_before(states: Sequence[Specification], op: Op) -> Iterator[Specification]:
    """What UFFDIO_COPY of one page leaves after the last of ``states`` if it read its source in one of those before."""
    dst, src, _, mode = op.args
    spec = states[-1]
    page = spec.procs[op.proc].get(dst) if op.proc in spec.procs else None
    if page is None or 0 not in _destination(spec, spec.procs[op.proc], dst, 1):
        return
    if behind_file(page) or 0 not in _empty_to_fill(spec, spec.userfaults[op.proc], dst, page):
        return
    sources = [(state, state.procs[op.proc].get(src)) for state in states]
    contents = [state.content(source) for state, source in sources if source is not None]
    contents += [source.other() or 0 for _, source in sources if source is not None and source.dropped is not None]
    for content in dict.fromkeys(contents):
        after = spec.copy()
        there = after.procs[op.proc][dst] = with_flags(page, GUARDED, 0)._replace(dropped=None)
        if in_page_cache(page):
            after.set_content(after.procs[op.proc], dst, there, content)
        else:
            after.procs[op.proc][dst] = there._replace(content=content)
        _filled(after, after.userfaults[op.proc], dst, there, PROTECTED if mode & UFFDIO_COPY_MODE_WP else 0)
        yield after


def source_gone(states: Sequence[Specification], op: Op) -> bool:
    """May UFFDIO_COPY of one page fail with EFAULT: was the destination there before, and the source is not now?

    A source that has to be faulted in is read without the lock, when the destination has been looked at.
    """
    dst, src, length, _ = op.args

    def found(spec: Specification) -> bool:
        return op.proc in spec.procs and 0 in _destination(spec, spec.procs[op.proc], dst, length)

    now = states[-1].procs.get(op.proc, {}).get(src)
    readable = now is not None and now.flags & VM_ACCESS_FLAGS and not now.flags & GUARDED
    return not readable and any(map(found, states))


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


def _empty_to_fill(spec: Specification, known: Userfaults, number: int, page: Page) -> set[int]:
    """As ``_empty`` for a page that gets contents: in a shared mapping its file must not have the page either."""
    results = _empty(spec, known, number, page, markers=True)
    place = cell(page)
    if place is None or not in_page_cache(page) or 0 not in results:
        return results
    there, maybe = has(spec, place)
    return {-EEXIST} if there else {0, -EEXIST} if maybe else {0}


def zeropage(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    """UFFDIO_ZEROPAGE and UFFDIO_POISON."""
    start, length = op.args
    known = spec.userfaults[op.proc]
    opened(known)
    if bad_range(spec, start, length):
        return check(op, outcome.ret, {-EINVAL})
    zeros = op.kind == "uffd_zeropage"

    def may(i: int) -> set[int]:
        page = pages[start + i]
        if behind_file(page):
            return {-EFAULT}
        if zeros and in_page_cache(page):
            return _empty_to_fill(spec, known, start + i, page)
        return _empty(spec, known, start + i, page, markers=False)

    def do(i: int) -> None:
        page = pages[start + i] = with_flags(pages[start + i], GUARDED, 0)
        if not zeros:
            known.states[start + i] = POISONED
        elif page.backing is None or in_page_cache(page):
            _filled(spec, known, start + i, page, 0)
        else:
            pages[start + i] = page._replace(content=0)
            known.states[start + i] = THERE | ZEROS

    return _fill(spec, pages, op, outcome, length, may, do)


def resume(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    """UFFDIO_CONTINUE: map what a file of memory has."""
    start, length, mode = op.args
    known = spec.userfaults[op.proc]
    opened(known)
    if bad_range(spec, start, length):
        return check(op, outcome.ret, {-EINVAL})
    protect = mode & UFFDIO_CONTINUE_MODE_WP
    page = pages.get(start)
    if page is not None and page.flags & VM_UFFD_FLAGS:
        if page.backing is None or (protect and not page.flags & VM_UFFD_WP):
            return check(op, outcome.ret, _destination(spec, pages, start, length) - {0} | {-EINVAL})

    def may(i: int) -> set[int]:
        page = pages[start + i]
        place = cell(page)
        if place is None:
            return {-EINVAL}
        there, maybe = has(spec, place)
        if not maybe:
            return {-EFAULT}
        results = _empty(spec, known, start + i, page, markers=True)
        return results if there else results | {-EFAULT}

    def do(i: int) -> None:
        page = pages[start + i] = with_flags(pages[start + i], GUARDED, 0)
        place = cell(page)
        assert place is not None
        spec.resident[place] = THERE
        known.states[start + i] = THERE | (PROTECTED if protect else 0)

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
