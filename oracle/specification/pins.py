"""get_user_pages in the specification: what a pin promises (rules: mm/gup.c, and fork's treatment of pinned pages).

A pin for writing, a long-term pin, and any pin on a page that has contents of its own is *coherent*: the pin and
the process see the same contents for as long as the page stays mapped. A short pin for reading on a page that
was never written, or holds zeros (UFFDIO_ZEROPAGE), may get the zero page or the file's page, and a later write
leaves it behind. References without FOLL_PIN promise nothing on private memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.mm_types import VM_ACCESS_FLAGS, VM_DROPPABLE
from emulator.uapi import EBUSY, EFAULT, EINVAL, PROT_READ, PROT_WRITE, result_name
from emulator.workload import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE, is_memory
from oracle.contents import LANE
from oracle.specification import stack
from oracle.specification.page import (
    GUARDED,
    Page,
    Pages,
    PinState,
    Refusal,
    names,
    wrong_result,
)

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification


def gup(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """gup_fast and gup_slow."""
    number, flags, label = op.args
    page = pages.get(number)
    grows = page is None and spec.stacks and spec.limits.profile.gup_grows_stack
    if grows and gup_results(spec, page, op) == {-EFAULT}:
        page = stack.grow(spec, pages, op, ret)
    allowed = gup_results(spec, page, op)
    if ret not in allowed:
        return wrong_result(op, ret, names(allowed))
    if ret:
        return None
    page = pages[number]
    backing = page.backing
    if backing is not None and backing.shared:
        spec.pins[label] = PinState(flags, 0, (backing.file, backing.page))
        return None
    own = page.content
    dropped = page.dropped
    if dropped is not None and dropped >= 0 and flags & FOLL_WRITE and not page.flags & VM_DROPPABLE:
        dropped = ~dropped  # dirty from now on
        pages[number] = Page(page.flags, backing, own, dropped)
        spec.unsettled.append((op.proc, number))
    if flags & (FOLL_WRITE | FOLL_LONGTERM) and own is None:
        own = spec.content(page)  # copied from the file
        pages[number] = Page(page.flags, backing, own)
    cell = 0
    if flags & FOLL_PIN and own is not None:
        if own < 0:
            cell = -own
        elif own or flags & (FOLL_WRITE | FOLL_LONGTERM):
            cell = spec.next_cell
            spec.next_cell += 1
            spec.cells[cell] = own
            pages[number] = Page(page.flags, backing, -cell, dropped)
    spec.pins[label] = PinState(flags, cell, None)
    return None


def gup_results(spec: Specification, page: Page | None, op: Op) -> set[int]:
    """The results that are allowed."""
    _, flags, label = op.args
    if label in spec.pins:
        return {-EBUSY}
    if flags & FOLL_LONGTERM and not flags & FOLL_PIN:
        return {-EINVAL}
    if page is None or not page.flags & VM_ACCESS_FLAGS or page.flags & GUARDED:
        return {-EFAULT}
    if flags & FOLL_WRITE:
        if not page.flags & PROT_WRITE:
            return {-EFAULT}
        backing = page.backing
        if flags & FOLL_LONGTERM and backing is not None and backing.shared and not is_memory(backing.file):
            return {-EFAULT}  # a device could write after the file system has cleaned the page
    beyond = {-EFAULT} if spec.meets_end(page, True) else set()
    if beyond and spec.meets_end(page, False):
        return beyond
    if flags & FOLL_WRITE or page.flags & PROT_READ:
        return {0} | beyond
    # x86 cannot map a page that is not readable, so the lockless walk may find it
    return {0, -EFAULT} if op.kind == "gup_fast" else {-EFAULT}


def unpin(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    want = 0 if spec.pins.pop(op.args[0], None) is not None else -EINVAL
    return None if ret == want else wrong_result(op, ret, result_name(want) if want else "success")


def pin_write(spec: Specification, op: Op, ret: int, token: int) -> Refusal | None:
    """A store through a pin."""
    label, at = op.args
    pin = spec.pins.get(label)
    if pin is None or not pin.flags & FOLL_WRITE:
        return None if ret == -EINVAL else wrong_result(op, ret, "-EINVAL")
    if ret:
        return wrong_result(op, ret, "success")
    lane = at * LANE
    mask = ~(((1 << LANE) - 1) << lane)
    if pin.cell:
        spec.cells[pin.cell] = spec.cells[pin.cell] & mask | token << lane
    elif pin.file is not None:
        spec.files[pin.file] = spec.file_content(*pin.file) & mask | token << lane
    else:
        spec.wild.append(label)
    return None
