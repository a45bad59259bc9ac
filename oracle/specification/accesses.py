"""Loads, stores and fetches in the specification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.mm_types import VM_ACCESS_FLAGS, VM_DROPPABLE
from emulator.uapi import PROT_EXEC, PROT_WRITE, SIGBUS, SIGSEGV
from emulator.workload import pattern_token
from oracle.contents import LANE, pack_data, unpack
from oracle.specification.page import (
    GUARDED,
    Page,
    Pages,
    Refusal,
    beyond_file,
    content_difference,
    wrong_result,
)
from oracle.specification.stack import grow

if TYPE_CHECKING:
    from emulator.workload import Op, Outcome
    from oracle.specification.state import Specification


def _store(spec: Specification, label: int, pages: Pages, number: int, page: Page, at: int, token: int) -> None:
    lane = at * LANE
    mask = ~(((1 << LANE) - 1) << lane)
    other = 0 if page.flags & VM_DROPPABLE else page.other()
    if other is not None:  # no more to be thrown away, from now on
        page = pages[number] = Page(page.flags, page.backing, page.content, ~(other & mask | token << lane))
        spec.unsettled.append((label, number))
    spec.set_content(pages, number, page, spec.content(page) & mask | token << lane)


def read(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
    page = pages.get(op.args[0])
    ret = outcome.ret
    if page is None and spec.stacks:
        page = grow(spec, pages, op, ret)
    if page is None or not page.flags & VM_ACCESS_FLAGS or page.flags & GUARDED:
        return None if ret == SIGSEGV else wrong_result(op, ret, "SIGSEGV")
    if spec.meets_end(page, ret == SIGBUS):
        return None if ret == SIGBUS else wrong_result(op, ret, "SIGBUS")
    if ret or outcome.data is None:
        return wrong_result(op, ret, "success")
    got = pack_data(outcome.data)
    if page.dropped is not None:
        page = spec.settle_dropped(pages, op.args[0], page, got)
    spec.settle_overhang(page, got)
    want = spec.content(page)
    if want == got:
        return None
    return Refusal(
        "read",
        content_difference(want, got),
        f"process {op.proc} read {unpack(got)} at page {op.args[0]}, where {unpack(want)} was written",
    )


def _store_refused(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """What is wrong with the result of a store; None also where the store was rightly refused."""
    page = pages.get(op.args[0])
    if page is None and spec.stacks:
        page = grow(spec, pages, op, ret)
    if page is None or not page.flags & PROT_WRITE or page.flags & GUARDED:
        return None if ret == SIGSEGV else wrong_result(op, ret, "SIGSEGV")
    if spec.meets_end(page, ret == SIGBUS):
        return None if ret == SIGBUS else wrong_result(op, ret, "SIGBUS")
    return wrong_result(op, ret, "success") if ret else None


def write(spec: Specification, pages: Pages, op: Op, ret: int, token: int) -> Refusal | None:
    number, at = op.args
    refusal = _store_refused(spec, pages, op, ret)
    if not ret and refusal is None:
        _store(spec, op.proc, pages, number, pages[number], at, token)
    return refusal


def fill(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    number, pattern = op.args
    refusal = _store_refused(spec, pages, op, ret)
    if not ret and refusal is None:
        page = pages[number]
        if page.other() is not None or page.flags & VM_DROPPABLE:  # what was thrown away before is nothing now
            page = Page(page.flags, page.backing, page.content, 0 if page.flags & VM_DROPPABLE else None)
            pages[number] = page
        spec.set_content(pages, number, page, pattern_token(pattern))
    return refusal


def fetch(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    page = pages.get(op.args[0])
    if page is None and spec.stacks:
        page = grow(spec, pages, op, ret)
    if page is None or not page.flags & PROT_EXEC or page.flags & GUARDED:
        if ret == SIGBUS and page is not None and page.flags & VM_ACCESS_FLAGS and beyond_file(page):
            return None  # which of the two errors comes first is the kernel's choice
        return None if ret == SIGSEGV else wrong_result(op, ret, "SIGSEGV")
    if spec.meets_end(page, ret == SIGBUS):
        return None if ret == SIGBUS else wrong_result(op, ret, "SIGBUS")
    return wrong_result(op, ret, "success") if ret else None
