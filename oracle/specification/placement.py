"""Where a call may place what it maps, and when there is no place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.mm_types import VM_GROWSDOWN
from oracle.specification.page import Pages, Refusal, wrong_result

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification


def may_lack_space(spec: Specification, pages: Pages, more: int, *, anywhere: bool) -> bool:
    """May -ENOMEM come without a failure: too much mapped, or no gap of that size?"""
    if len(pages) + more > spec.limits.total:
        return True
    if not anywhere:
        return False
    floor = 0
    for number in sorted(pages):
        gap = spec.limits.stack_guard_gap if pages[number].flags & VM_GROWSDOWN else 0
        if number - gap - floor >= more:
            return False
        floor = number + 1
    return spec.limits.top - floor < more


def check_place(
    spec: Specification, pages: Pages, op: Op, ret: int, length: int, asked: int | None, *, replace: bool
) -> Refusal | None:
    """Is the address that the call returned one that it may return?"""
    if asked is not None and ret != asked:
        return wrong_result(op, ret, "the address asked for")
    if ret + length > spec.limits.top:
        return Refusal("placement", f"{op.kind} beyond user space", f"{op.kind} placed pages beyond user space")
    if not replace and any(number in pages for number in range(ret, ret + length)):
        detail = f"{op.kind} of process {op.proc} chose page {ret}, where something is mapped"
        return Refusal("placement", f"{op.kind} over a mapping", detail)
    return None
