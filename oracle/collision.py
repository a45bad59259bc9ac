"""The collision oracle: what operations did at the same time, some serial order of them would have done too.

All orders (two or three operations: six at most) are tried on copies of the specification, each operation with the
outcome that it gave; an order explains the collision when the specification allows every outcome and the machine's
pages, processes and pins are as it says. Reclaim, migration and read-ahead change nothing visible, wherever they
come in the order.

mmap_lock makes nearly every system call and fault of the model one point in time, and an access that needs no fault
touches one page. Weaker outcomes are allowed where Linux promises no more. Who looks while a guard region is installed
may find the pages empty and no guard yet. Pages of a private file mapping may be copied at any time, and show the file
as it was then. remap_file_pages gives up if the mapping has changed since it first looked. UFFDIO_COPY, ZEROPAGE, MOVE
and POISON fill or move one page after the other, and others come in between; each page is then an operation of its
own, and what COPY copies may have been read before others came. An access faults first, and UFFDIO_WRITEPROTECT may
come before it tries again; so may whoever makes memory inaccessible down to which a stack has just grown.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from emulator.uapi import (
    EFAULT,
    EINVAL,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MLOCK_ONFAULT,
    SIGBUS,
    SIGSEGV,
)
from emulator.workload import FOLL_WRITE, OPS, Domain, Op, Outcome, token
from oracle.comparison import Table, VisibleOracle, is_copy, spans_of
from oracle.contents import pack_data
from oracle.finding import Finding, finding
from oracle.observation import ACCESSES, KERNEL_ACTIVITY, PAGE_BY_PAGE
from oracle.specification.failure import AFTER_FAILURE, alternatives, left_in_part, settle
from oracle.specification.lock import decisions
from oracle.specification.madvise import emptied_for_guards, installs_guards
from oracle.specification.page import FAILURES, follows_file
from oracle.specification.process_madvise import ranges
from oracle.specification.uffd_fill import read_before, source_gone
from oracle.specification.uffd_follow import contested

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulator.workload import Step
    from oracle.specification.state import Specification


# Beside these, operations are taken apart if nothing else explains it.
_TAKE_TURNS = PAGE_BY_PAGE | {"uffd_wp", "process_madvise"}
# Where each page is an operation there are more orders than can be tried: those with few turns come first.
_TURNS_MAX = 8
_TRIES_MAX = 10_000  # parts of operations done in trying
_OF_MAPPINGS = frozenset(("mapped", "unmapped", "permissions", "flags", "name", "policy", "backing"))
_NOTHING = ("result", "", "no state that an injected failure may leave is shown")


class Explanation(NamedTuple):
    """A serial order (op numbers) that gives what the collision gave, and the state after it."""

    order: tuple[int, ...]
    wild: bool  # something was written through a reference without a promise
    after: Specification
    apart: str  # why the operations do not do the same one after the other in this order; "": they do


class CollisionOracle:
    """Looks for the serial order that explains a collision."""

    __slots__ = ("_visible",)

    def __init__(self, visible: VisibleOracle) -> None:
        self._visible = visible

    def explain(
        self,
        spec: Specification,
        step: Step,
        index: int,
        outcomes: list[Outcome],
        completed: list[int],
        table: Table,
    ) -> Explanation | Finding:
        """The order that explains step number ``index``, or the finding that there is none.

        ``completed``: the ops in the order in which they ended. ``table``: the pages to compare.
        """
        done = list(zip(step.ops, outcomes, strict=True))

        def search(parts: list[list[Part]] | None = None) -> _Search:
            return _Search(self._visible, step, index, outcomes, table, completed, parts)

        first = search()
        found = first.run(spec)
        grown = spec.stacks and any(map(_may_have_grown, step.ops, outcomes))
        if found is None and (grown or any(op.kind in _TAKE_TURNS for op in step.ops)):
            parts = [_pages(op, outcome) for op, outcome in done]
            found = search(parts).by_turns(spec)
            if found is None and any(op.kind == "uffd_copy" for op in step.ops):
                found = search([_with_reads(pages) for pages in parts]).by_turns(spec)
        if found is None and spec.userfaults and any(op.kind in ACCESSES for op in step.ops):
            # accesses may meet others half way: what they bring is in a file, and not mapped yet
            before = spec.copy()
            before.contested = contested(spec, step.ops)
            parts = [_with_faults(_with_reads(_pages(op, outcome))) for op, outcome in done]
            found = search().run(before) or search(parts).by_turns(before)
            if found is not None:
                found.after.contested = spec.contested
        return found or first.finding()


Part = tuple[Op, Outcome]


def _pages(op: Op, outcome: Outcome) -> list[Part]:
    """The operation page by page, as far as it came; what ended it then is left out."""
    if op.kind == "mlock" and not outcome.ret and not outcome.injected:
        flags = Op("mlock2", op.proc, (*op.args, MLOCK_ONFAULT))
        return [(flags, outcome), (op, outcome)]  # the pages come after the flags
    if op.kind in ACCESSES and outcome.ret in (SIGBUS, -EFAULT):
        populate = (op.args[0], 1, MADV_POPULATE_WRITE if _writes(op) else MADV_POPULATE_READ)
        return [(Op("madvise", op.proc, populate), Outcome(0)), (op, outcome)]  # the fault, and the access after it
    if op.kind == "process_madvise" and outcome.ret > 0:
        calls = ranges(op)
        if sum(call.args[1] for call in calls) == outcome.ret:
            return [(call, Outcome(0, None, outcome.injected)) for call in calls]
    if _may_have_grown(op, outcome):
        return [(Op("read", op.proc, op.args[:1]), Outcome(0, ())), (op, outcome)]  # zeros, and the access after them
    if op.kind not in PAGE_BY_PAGE or outcome.ret < 1:
        return [(op, outcome)]
    moving = [domain is Domain.PAGE for _, domain in OPS[op.kind].args]
    length = next(place for place, (_, domain) in enumerate(OPS[op.kind].args) if domain is Domain.LENGTH)
    parts = []
    for i in range(outcome.ret):
        args = [value + i if moves else value for value, moves in zip(op.args, moving, strict=True)]
        args[length] = 1
        parts.append((op._replace(args=tuple(args)), outcome._replace(ret=1, injected=False)))
    return parts


def _may_have_grown(op: Op, outcome: Outcome) -> bool:
    """Was this access refused, perhaps after a stack had grown down to it, when it was tried again?"""
    return op.kind in ACCESSES and outcome.ret == SIGSEGV


def _with_reads(parts: list[Part]) -> list[Part]:
    """Before each page of UFFDIO_COPY the load from its source, which may bring a page in."""
    reads = []
    for op, outcome in parts:
        if op.kind == "uffd_copy":
            reads.append((Op("madvise", op.proc, (op.args[1], 1, MADV_POPULATE_READ)), Outcome(0)))
        reads.append((op, outcome))
    return reads


def _with_faults(parts: list[Part]) -> list[Part]:
    """Before each access the fault that brings its page into a file of memory, where others find it then."""
    faults = []
    for op, outcome in parts:
        if op.kind in ACCESSES and not outcome.ret:
            advice = MADV_POPULATE_WRITE if _writes(op) else MADV_POPULATE_READ
            faults.append((Op("madvise", op.proc, (op.args[0], 1, advice)), Outcome(0)))
        faults.append((op, outcome))
    return faults


def _writes(op: Op) -> bool:
    return op.kind in ("write", "fill") or (op.kind in ("gup_fast", "gup_slow") and op.args[1] & FOLL_WRITE != 0)


def _copied_before(states: tuple[Specification, ...], op: Op) -> Iterator[Specification]:
    """The last of ``states``, had the private file page that ``op`` is about been copied in one of those before."""
    spec = states[-1]
    page = spec.procs[op.proc].get(op.args[0]) if op.proc in spec.procs else None
    if page is None or not follows_file(page):
        return
    now = spec.content(page)
    for content in dict.fromkeys(state.content(page) for state in states):
        if content != now:
            before = spec.copy()
            before.procs[op.proc][op.args[0]] = page._replace(content=content)
            yield before


def _changed_between_looks(states: tuple[Specification, ...], op: Op, outcome: Outcome) -> bool:
    """Has remap_file_pages given up, as another had changed the mapping between its two looks?"""
    if op.kind != "remap_file_pages" or outcome.ret != -EINVAL:
        return False
    heads = [state.procs[op.proc].get(op.args[0]) for state in states if op.proc in state.procs]
    return len({head and (head.flags, head.backing and head.backing.file) for head in heads}) > 1


def _turns(order: tuple[int, ...]) -> int:
    return 1 + sum(a != b for a, b in pairwise(order))


class _Search:
    """A depth-first search over the orders of one collision."""

    __slots__ = ("best", "candidates", "index", "outcomes", "parts", "step", "table", "tries", "turns", "visible")

    def __init__(
        self,
        visible: VisibleOracle,
        step: Step,
        index: int,
        outcomes: list[Outcome],
        table: Table,
        completed: list[int],
        parts: list[list[Part]] | None = None,
    ) -> None:
        self.parts = parts or [[part] for part in zip(step.ops, outcomes, strict=True)]
        self.turns = len(self.parts)  # that operations may take
        self.tries = _TRIES_MAX  # that are left
        self.candidates = completed  # the order in which the ops ended is the likeliest, and comes first
        self.visible = visible
        self.step = step
        self.index = index
        self.outcomes = outcomes
        self.table = table
        # how far the most successful order came: (ops allowed, what was wrong then, the order, kinds concerned)
        self.best: tuple[int, tuple[str, str, str], tuple[int, ...], str] = (-1, _NOTHING, (), "")

    def run(self, spec: Specification) -> Explanation | None:
        return self._extend((spec,), ())

    def by_turns(self, spec: Specification) -> Explanation | None:
        """As ``run``, with one turn more each time."""
        for turns in range(len(self.parts), _TURNS_MAX + 1):
            self.turns = turns
            found = self.run(spec)
            if found is not None or self.tries <= 0:
                return found
        return None

    def _extend(
        self,
        states: tuple[Specification, ...],
        order: tuple[int, ...],
        begun: tuple[int, ...] = (),
        early: bool = False,
    ) -> Explanation | None:
        """``states``: one before each part of ``order``, and the one after it. ``begun``: those that install guards.

        ``early``: something was copied before its operation's turn.
        """
        if len(order) == sum(map(len, self.parts)):
            return self._compare(states, order, early)
        for number in self.candidates:
            if order.count(number) < len(self.parts[number]) and _turns((*order, number)) <= self.turns:
                self.tries -= 1
                if self.tries <= 0:
                    return None
                for after in self._do(states, number, order):
                    found = self._extend((*states, after), (*order, number), begun, early)
                    if found is not None:
                        return found
                for after in self._do_early(states, number, order):
                    found = self._extend((*states, after), (*order, number), begun, early=True)
                    if found is not None:
                        return found
        for number in self.candidates:
            if number not in (*order, *begun) and installs_guards(self.step.ops[number]):
                between = emptied_for_guards(states[-1], self.step.ops[number])
                found = self._extend((*states, between), order, (*begun, number), early)
                if found is not None:
                    return found
        return None

    def _do(
        self, states: tuple[Specification, ...], number: int, order: tuple[int, ...]
    ) -> Iterator[Specification]:
        """The states that the next part of op ``number`` may have left after those of ``order``."""
        spec = states[-1]
        op, outcome = self.parts[number][order.count(number)]
        mark = token(self.index, number)
        if left_in_part(spec, op, outcome):
            view = self.visible.view
            settled = spec.copy()
            if settle(settled, op, outcome, mark, lambda *page: view.shows(spec, *page)) is None:
                yield settled
            yield from alternatives(spec, op, outcome, mark)
            return
        after = spec.copy()
        refusal = after.apply(op, outcome, mark)
        if refusal is None:
            yield after
            if after.unsettled:  # what comes next may depend on it
                yield from decisions(after, op, outcome.ret)
        elif self._reads_wild_store(spec, op, outcome) or _changed_between_looks(states, op, outcome):
            yield spec.copy()
        else:
            spans = [(op.proc, n) for start, length in spans_of(op, outcome.ret) for n in range(start, start + length)]
            self._note(len(order), refusal, (*order, number), spans)

    def _do_early(
        self, states: tuple[Specification, ...], number: int, order: tuple[int, ...]
    ) -> Iterator[Specification]:
        """The same, had it copied what it copies in one of the states before."""
        op, outcome = self.parts[number][order.count(number)]
        mark = token(self.index, number)
        if left_in_part(states[-1], op, outcome):
            return
        if op.kind == "uffd_copy" and outcome.ret == 1:
            yield from read_before(states, op)
        if op.kind == "uffd_copy" and outcome.ret == -EFAULT and source_gone(states, op):
            yield states[-1].copy()
        if op.kind in ACCESSES:
            for after in _copied_before(states, op):
                if after.apply(op, outcome, mark) is None:
                    yield after

    def _compare(
        self, states: tuple[Specification, ...], order: tuple[int, ...], early: bool
    ) -> Explanation | None:
        spec = states[-1]
        wild = bool(spec.wild)
        if wild:
            copied = self._wild_stores(spec)
            self.visible.settle_wild_writes(spec)
            self.visible.settle_wild_copies(spec, self.table, copied)
        difference = self.visible.first_difference(spec, self.table)
        while difference is not None and self.visible.view.follow_earlier_copy(states, *difference[1:]):
            early = True
            difference = self.visible.first_difference(spec, self.table)
        if difference is None:
            whole = len(order) == len(self.step.ops)
            apart = "" if whole else "calls that go on page by page took turns"
            if early:
                apart = apart or "something was copied before another came"
            return Explanation(order if whole else tuple(dict.fromkeys(order)), wild, spec, apart)
        what, label, page = difference
        self._note(len(order), what, order, [(label, page)])
        return None

    def _reads_wild_store(self, spec: Specification, op: Op, outcome: Outcome) -> bool:
        """Did the load see what this collision stored before it through a reference without a promise?"""
        page = spec.procs[op.proc].get(op.args[0]) if op.kind == "read" and op.proc in spec.procs else None
        if page is None or outcome.data is None or not spec.wild:
            return False
        return is_copy(pack_data(outcome.data), spec.content(page), self._wild_stores(spec))

    def _wild_stores(self, spec: Specification) -> list[tuple[int, int]]:
        """(sub-page offset, token) of what the collision stored through references without a promise."""
        return [
            (op.args[1], token(self.index, number))
            for number, op in enumerate(self.step.ops)
            if op.kind == "pin_write" and op.args[0] in spec.wild
        ]

    def _note(
        self, length: int, what: tuple[str, str, str], order: tuple[int, ...], pages: list[tuple[int, int]]
    ) -> None:
        if length > self.best[0]:
            self.best = (length, what, order, self._concerned(pages))

    def _concerned(self, pages: list[tuple[int, int]]) -> str:
        """The kinds of operation that have to do with these pages, for the signature: what ran beside is left out."""
        if (-1, -1) in pages:
            return "+".join(sorted(op.kind for op in self.step.ops))
        wanted = set(pages)
        kinds = []
        for op, outcome in zip(self.step.ops, self.outcomes, strict=True):
            spans = spans_of(op, outcome.ret)
            if op.kind in KERNEL_ACTIVITY or not spans or any(
                (op.proc, number) in wanted for start, length in spans for number in range(start, start + length)
            ):
                kinds.append(op.kind)
        return "+".join(sorted(kinds))

    def finding(self) -> Finding:
        """That no order explains it, with the order that came closest.

        Where an allocation of one op was made to fail, what that op left is the likeliest cause: the same finding
        as when it runs alone.
        """
        length, (rule, cause, detail), order, kinds = self.best
        names = ", ".join(f"op {i} {self.step.ops[i].kind}" for i in order)
        detail = f"no order of the operations gives this; the closest ({names}): {detail}"
        number = order[-1] if 0 <= length < len(self.step.ops) else None
        failed = [
            op.kind
            for op, outcome in zip(self.step.ops, self.outcomes, strict=True)
            if outcome.injected and outcome.ret in FAILURES and op.kind not in ACCESSES
        ]
        if failed:
            return finding("specification", AFTER_FAILURE, detail, self.index, cause=failed[0], op=number)
        if rule in _OF_MAPPINGS:  # which of them the closest order meets first is chance
            rule = "mappings"
        cause = ", ".join([word for word in (kinds, rule, cause) if word])
        return finding("collision", "no-serial-order", detail, self.index, cause=cause, op=number)
