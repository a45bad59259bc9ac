"""mmap and munmap in the specification (rules: mm/mmap.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_WIPEONFORK,
)
from emulator.uapi import (
    EAGAIN,
    EEXIST,
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
    EPERM,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    MAP_TYPE,
    OVERCOMMIT_NEVER,
    PROT_WRITE,
)
from emulator.workload import RLIMIT_MEMLOCK, shared_memory
from oracle.specification.limits import limit_of, may_expand
from oracle.specification.lock import may_lock
from oracle.specification.page import Backing, Page, Pages, Refusal, names, sealed, wrong_result
from oracle.specification.placement import check_place, may_lack_space

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification


_MAPPING_FLAGS: Final = ((MAP_NORESERVE, VM_NORESERVE), (MAP_LOCKED, VM_LOCKED), (MAP_GROWSDOWN, VM_GROWSDOWN))


def mmap(spec: Specification, pages: Pages, op: Op, ret: int, token: int) -> Refusal | None:
    """``token`` is the op's: what is shared and anonymous is known by it."""
    addr, length, prot, flags, file, offset = op.args
    fixed = bool(flags & (MAP_FIXED | MAP_FIXED_NOREPLACE))
    errors = _mmap_errors(spec, pages, op, fixed)
    if ret in errors or (ret == -ENOMEM and may_lack_space(spec, pages, length, anywhere=not fixed)):
        return None
    if errors or ret < 0:
        return wrong_result(op, ret, names(errors or {0}))
    refusal = check_place(spec, pages, op, ret, length, addr if fixed else None, replace=fixed)
    if refusal is not None:
        return refusal
    shown = prot & VM_ACCESS_FLAGS | spec.settings_of(op.proc).lock
    for flag, added in _MAPPING_FLAGS:
        if flags & flag:
            shown |= added
    if spec.overcommit == OVERCOMMIT_NEVER:  # everything is reserved
        shown &= ~VM_NORESERVE
    if flags & MAP_STACK and spec.limits.profile.map_stack_nohugepage:
        shown |= VM_NOHUGEPAGE
    if flags & MAP_TYPE == MAP_DROPPABLE:
        shown = shown & ~VM_LOCKED_MASK | VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP
        spec.frees = True
    if flags & MAP_GROWSDOWN:
        spec.stacks = True
    shared = flags & MAP_TYPE in (MAP_SHARED, MAP_SHARED_VALIDATE)
    if spec.settings_of(op.proc).merge and not shared and not shown & VM_DROPPABLE:
        shown |= VM_MERGEABLE
    if file == 0 and not shared:
        pages.update(dict.fromkeys(range(ret, ret + length), Page(shown, None, 0)))
        return None
    # what is shared and anonymous is a file of its own, as long as the mapping
    first = Backing(shared, file - 1, offset) if file else Backing(True, shared_memory(token), 0, length)
    for i in range(length):
        pages[ret + i] = Page(shown, first._replace(page=first.page + i), None)
    return None


def _mmap_errors(spec: Specification, pages: Pages, op: Op, fixed: bool) -> set[int]:
    """The errors of which one must come; empty when the call must succeed."""
    addr, length, prot, flags, file, _ = op.args
    errors = set()
    if not length:
        errors.add(-EINVAL)
    kind = flags & MAP_TYPE
    if file == 0:
        not_with = {MAP_PRIVATE: 0, MAP_SHARED: MAP_GROWSDOWN}
        if spec.limits.profile.map_droppable:
            not_with[MAP_DROPPABLE] = MAP_LOCKED | MAP_GROWSDOWN
        if kind not in not_with or flags & not_with[kind]:
            errors.add(-EINVAL)
    elif kind not in (MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE) or flags & MAP_GROWSDOWN:
        errors.add(-EINVAL)
    if file and kind == MAP_SHARED_VALIDATE and flags & MAP_FIXED_NOREPLACE:
        errors.add(-EOPNOTSUPP)  # it is newer than VALIDATE's list of flags
    if flags & MAP_FIXED_NOREPLACE and any(n in pages for n in range(addr, addr + length)):
        errors.add(-EEXIST)
    if fixed and addr + length > spec.limits.top:
        errors.add(-ENOMEM)
    if fixed and sealed(pages, addr, addr + length):
        errors.add(-EPERM)
    replaced = sum(n in pages for n in range(addr, addr + length)) if flags & MAP_FIXED else 0
    data = kind in (MAP_PRIVATE, MAP_DROPPABLE) and bool(prot & PROT_WRITE) and not flags & MAP_GROWSDOWN
    if not may_expand(spec, pages, length - replaced, data=data):
        errors.add(-ENOMEM)
    if flags & MAP_LOCKED and limit_of(spec, pages, RLIMIT_MEMLOCK) == 0:
        errors.add(-EPERM)
    if flags & MAP_LOCKED or spec.settings_of(op.proc).lock:
        if not may_lock(spec, pages, length):
            errors.add(-EAGAIN)
    return errors


def munmap(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    addr, length = op.args
    if not length:
        return None if ret == -EINVAL else wrong_result(op, ret, "-EINVAL")
    if sealed(pages, addr, addr + length):
        return None if ret == -EPERM else wrong_result(op, ret, "-EPERM")
    if ret:
        return wrong_result(op, ret, "success")
    for number in range(addr, addr + length):
        pages.pop(number, None)
    return None
