"""fork and exit in the specification (rules: kernel/fork.c dup_mmap).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.mm_types import VM_DONTCOPY, VM_LOCKED, VM_WIPEONFORK
from emulator.uapi import EBUSY
from oracle.specification.page import Page, Pages, Refusal, fresh, unlocked, wrong_result

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification


_CHANGED_BY_FORK: Final = VM_LOCKED | VM_DONTCOPY | VM_WIPEONFORK


def fork(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    label = op.args[0]
    if label in spec.procs:
        return None if ret == -EBUSY else wrong_result(op, ret, "-EBUSY")
    if ret:
        return wrong_result(op, ret, "success")
    child = dict(pages)
    for number, page in pages.items():
        if page.content is not None and page.content < 0:
            child[number] = page = Page(page.flags, page.backing, spec.cells[-page.content], page.dropped)
        if page.flags & _CHANGED_BY_FORK:
            if page.flags & VM_DONTCOPY:
                del child[number]
                continue
            child[number] = unlocked(fresh(page) if page.flags & VM_WIPEONFORK else page)
    spec.procs[label] = child
    if op.proc in spec.settings:
        spec.settings[label] = spec.settings[op.proc]._replace(lock=0)
    return None


def exit(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    del spec.procs[op.proc]
    spec.settings.pop(op.proc, None)
    return wrong_result(op, ret, "success") if ret else None
