"""mremap in the specification (rules: mm/mremap.c of 6.17 and later; for older kernels that of 5.17).

Where one VMA must hold the whole source range, the model knows only what the interface shows: pages of different
kind certainly stand in different VMAs (-EFAULT), pages of one kind may stand in one or several (either is
allowed).

MREMAP_MUST_RELOCATE_ANON (L. Stoakes, June 2025) lets a design refuse, -EFAULT, what it cannot relocate, after the
destination has been made free; memory of files it has to refuse. Whether it could have relocated the rest is not
to be seen from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.mm_types import VM_LOCKED, VM_LOCKED_MASK, VM_SEALED, VM_UFFD_FLAGS
from emulator.uapi import (
    EAGAIN,
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_MUST_RELOCATE_ANON,
    MREMAP_RELOCATE_ANON,
)
from oracle.specification.limits import is_data, may_expand
from oracle.specification.lock import may_lock
from oracle.specification.page import (
    GUARDED,
    KIND,
    MAYBE_UNLOCKED,
    Page,
    Pages,
    Refusal,
    fresh,
    names,
    sealed,
    unlocked,
    with_flags,
    wrong_result,
)
from oracle.specification.placement import check_place, may_lack_space

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification

_KNOWN = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
_PLAIN = Page(0, None, 0)
_RELOCATE = MREMAP_RELOCATE_ANON | MREMAP_MUST_RELOCATE_ANON


def bad_flags(spec: Specification, op: Op) -> bool:
    """Must the call be refused with -EINVAL before anything is looked at?"""
    _, old, new, flags, _ = op.args
    if flags & ~(_KNOWN | spec.limits.mremap_flags) or not new:
        return True
    if flags & _RELOCATE and not flags & MREMAP_MAYMOVE:
        return True
    if not flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return False
    return not flags & MREMAP_MAYMOVE or bool(flags & MREMAP_DONTUNMAP and old != new)


def bad_place(spec: Specification, op: Op) -> bool:
    """Is the new address, if there is one, none where the range can go? -EINVAL too."""
    addr, old, new, flags, new_addr = op.args
    if not flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return False
    return new_addr + new > spec.limits.top or (addr + old > new_addr and new_addr + new > addr)


def bad_parameters(spec: Specification, op: Op) -> bool:
    """Is the call refused for what its arguments say, whatever is mapped?"""
    return bad_flags(spec, op) or bad_place(spec, op)


def moves_several(spec: Specification, op: Op) -> bool:
    """Does the call move whatever is mapped in the range?"""
    _, old, new, flags, _ = op.args
    return bool(flags & MREMAP_FIXED) and old == new and spec.limits.profile.mremap_moves_several


def next_page(page: Page, distance: int) -> Page:
    """What stands ``distance`` pages after ``page`` in the same mapping, untouched."""
    backing = page.backing
    flags = page.flags & ~GUARDED
    if backing is None:
        return Page(flags, None, 0)
    return Page(flags, backing._replace(page=backing.page + distance), None)


def _differ(a: int, b: int) -> bool:
    """Do these flags tell VMAs apart? Not where it has to show yet whether one of them was unlocked."""
    difference = (a ^ b) & KIND
    if (a | b) & MAYBE_UNLOCKED:
        difference &= ~VM_LOCKED_MASK
    return difference != 0


def one_mapping(pages: Pages, first: int, count: int) -> bool:
    """Can [first, first+count) lie in one VMA? (Certainly not when pages differ in kind or are missing.)"""
    head = pages[first]
    for i in range(1, count):
        page = pages.get(first + i)
        if page is None or (page.flags != head.flags and _differ(page.flags, head.flags)):
            return False
        if page.backing is not head.backing and page.backing != next_page(head, i).backing:
            return False
    return True


def refused_to_relocate(spec: Specification, op: Op, ret: int) -> bool:
    """Is this -EFAULT one that MUST_RELOCATE_ANON allows: a move, of what may be one mapping, that had begun?"""
    if op.kind != "mremap" or ret != -EFAULT or not op.args[3] & MREMAP_MUST_RELOCATE_ANON:
        return False
    pages = spec.procs.get(op.proc, {})
    addr, old, new, flags, _ = op.args
    if addr not in pages or bad_parameters(spec, op):
        return False
    if moves_several(spec, op):
        return True
    if not flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) and (new <= old or _room_behind(spec, pages, addr, old, new)):
        return False
    return (bool(old) or pages[addr].backing is not None) and one_mapping(pages, addr, min(old, new))


def must_refuse(pages: Pages, op: Op, moved: int) -> bool:
    """Is something of a file among the pages that MUST_RELOCATE_ANON is to relocate?"""
    if not op.args[3] & MREMAP_MUST_RELOCATE_ANON:
        return False
    source = [pages.get(op.args[0] + i) for i in range(max(moved, 1))]
    return any(page is not None and page.backing is not None for page in source)


def mremap(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """Do the call with this result. None: allowed."""
    if bad_flags(spec, op):
        return None if ret == -EINVAL else wrong_result(op, ret, "-EINVAL")
    addr, old, new, flags, new_addr = op.args
    if addr not in pages and not spec.limits.profile.mremap_checks_first:
        return None if ret == -EFAULT else wrong_result(op, ret, "-EFAULT")
    if bad_place(spec, op):
        return None if ret == -EINVAL else wrong_result(op, ret, "-EINVAL")
    if addr not in pages:
        return None if ret == -EFAULT else wrong_result(op, ret, "-EFAULT")
    if pages[addr].flags & VM_SEALED:
        refused = _refused_sealed(spec, pages, op)
        return None if ret in refused else wrong_result(op, ret, names(refused))
    if moves_several(spec, op):
        spec.stack_moved = spec.stack_moved or spec.stacks
        return _move_several(spec, pages, op, ret)
    spec.stack_moved = spec.stack_moved or spec.stacks
    refusal = _one(spec, pages, op, ret)
    if ret < 0 and flags & MREMAP_FIXED and not spec.limits.profile.mremap_checks_first:
        # refused when what is in the way had gone already
        _unmap(pages, new_addr, new_addr + new)
        _unmap(pages, addr + min(old, new), addr + old)
    return refusal


def _one(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """The arguments are good, the source is mapped, and one VMA must hold all of it that is to be kept."""
    addr, old, new, flags, _ = op.args
    head = pages[addr]
    implied = flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)
    if not implied and new <= old:
        if sealed(pages, addr + new, addr + old):
            return None if ret == -EPERM else wrong_result(op, ret, "-EPERM")
        if ret != addr:
            return wrong_result(op, ret, "the old address")
        _unmap(pages, addr + new, addr + old)
        return None
    if not old and not (head.backing is not None and head.backing.shared):
        return None if ret == -EINVAL else wrong_result(op, ret, "-EINVAL")
    if not old and flags & MREMAP_FIXED and op.args[4] == addr:
        _unmap(pages, addr, addr + new)  # the destination goes first, and with it what was to be mapped once more
        return None if ret == -EFAULT else wrong_result(op, ret, "-EFAULT")
    moved = min(old, new)
    if not one_mapping(pages, addr, moved):
        return None if ret == -EFAULT else wrong_result(op, ret, "-EFAULT")
    if head.flags & VM_LOCKED and new != old and not may_lock(spec, pages, abs(new - old)):
        if ret == -EAGAIN or (ret == -EFAULT and moved > 1):
            return None
        return wrong_result(op, ret, "-EAGAIN")
    if flags & MREMAP_FIXED and not (ret == -EFAULT and moved > 1):
        new_addr = op.args[4]
        if sealed(pages, new_addr, new_addr + new):
            return None if ret == -EPERM else wrong_result(op, ret, "-EPERM")
        if sealed(pages, addr + new, addr + old):  # the destination has gone by then
            _unmap(pages, new_addr, new_addr + new)
            return None if ret == -EPERM else wrong_result(op, ret, "-EPERM")
    if ret < 0:
        return _refused(spec, pages, op, ret, moved)
    if new > old and not may_expand(spec, pages, new - old, data=is_data(head)):
        return wrong_result(op, ret, "-ENOMEM")
    if not implied and ret == addr:
        return _grow_in_place(spec, pages, op, ret)
    if not flags & MREMAP_MAYMOVE:
        return wrong_result(op, ret, "the old address or -ENOMEM")
    return _move_one(spec, pages, op, ret, moved)


def _refused(spec: Specification, pages: Pages, op: Op, ret: int, moved: int) -> Refusal | None:
    """An error after the parameters and the source range were found good."""
    addr, old, new, flags, _ = op.args
    if ret == -EFAULT and moved > 1:
        return None  # several VMAs of one kind
    if ret == -ENOMEM:
        more = new if flags & MREMAP_DONTUNMAP else abs(new - old)
        if may_lack_space(spec, pages, max(more, new), anywhere=not flags & MREMAP_FIXED):
            return None
        if not flags & MREMAP_MAYMOVE and not _room_behind(spec, pages, addr, old, new):
            return None
    return wrong_result(op, ret, "success")


def _room_behind(spec: Specification, pages: Pages, addr: int, old: int, new: int) -> bool:
    """Can the range grow where it stands?"""
    if not old or addr + new > spec.limits.top:
        return False
    return not any(number in pages for number in range(addr + old, addr + new))


def _grow_in_place(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    addr, old, new, _, _ = op.args
    if not _room_behind(spec, pages, addr, old, new):
        return Refusal("placement", "mremap grew over a mapping", f"mremap of process {op.proc} grew over a mapping")
    head = pages[addr]
    for i in range(old, new):
        pages[addr + i] = next_page(head, i)
    return None


def _move_one(spec: Specification, pages: Pages, op: Op, ret: int, moved: int) -> Refusal | None:
    """[addr, addr+moved) is at ``ret`` now, followed by fresh pages up to the new length."""
    addr, old, new, flags, new_addr = op.args
    if must_refuse(pages, op, moved):
        return wrong_result(op, ret, "-EFAULT")
    fixed = flags & MREMAP_FIXED
    refusal = check_place(spec, pages, op, ret, new, new_addr if fixed else None, replace=bool(fixed))
    if refusal is not None:
        return refusal
    if fixed:
        _unmap(pages, ret, ret + new)
    _unmap(pages, addr + moved, addr + old)
    head = pages[addr]
    beside = same_vma_beside(pages, addr, moved, ret) if flags & MREMAP_DONTUNMAP else []
    for i in range(moved):
        _carry(pages, addr + i, ret + i, flags)
    for i in range(moved, new):
        pages[ret + i] = next_page(head, i)
    _leave_open(spec, pages, op.proc, beside)
    return None


def _move_several(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """A pure move with FIXED: whatever is mapped in the range moves, and gaps do not touch the destination."""
    addr, length, _, flags, new_addr = op.args
    stop, certain = sealed_in_move(pages, op)
    armed = _registered(pages, addr, length)
    if armed is not None and armed <= stop and ret in (-EFAULT, -EPERM, new_addr):
        alone = not armed and one_mapping(pages, addr, length)
        if ret == -EFAULT and (not alone or length > 1):
            _move_before(pages, op, armed)
            return None
        if not alone:
            return wrong_result(op, ret, "-EFAULT")
    if stop < length:
        if ret != -EPERM:
            return wrong_result(op, ret, "-EPERM")
        if certain < stop:  # left_by_seal
            return Refusal("result", "mremap met a seal", "it is not known how many mappings moved before the seal")
        for i in range(stop):
            if addr + i in pages:
                _carry(pages, addr + i, new_addr + i, flags)
        return None
    if ret < 0:
        if ret == -ENOMEM and flags & MREMAP_DONTUNMAP and len(pages) + length > spec.limits.total:
            return None
        return wrong_result(op, ret, "success")
    if must_refuse(pages, op, length):
        return wrong_result(op, ret, "-EFAULT")
    if ret != new_addr:
        return wrong_result(op, ret, "the address asked for")
    beside = same_vma_beside(pages, addr, length, ret) if flags & MREMAP_DONTUNMAP else []
    for i in range(length):
        if addr + i in pages:
            _carry(pages, addr + i, new_addr + i, flags)
    _leave_open(spec, pages, op.proc, beside)
    return None


def _refused_sealed(spec: Specification, pages: Pages, op: Op) -> set[int]:
    """What a move of a mapping that is sealed gives: that it is not the only one is seen before, where it has to be."""
    addr, length = op.args[:2]
    if not moves_several(spec, op) or not pages[addr].flags & VM_UFFD_FLAGS or length < 2:
        return {-EPERM}
    return {-EPERM, -EFAULT} if one_mapping(pages, addr, length) else {-EFAULT}


def sealed_in_move(pages: Pages, op: Op) -> tuple[int, int]:
    """How many pages a move of several mappings comes to before it meets a seal, and how many of them have moved then.

    The mapping that meets it stays as it was, and may begin anywhere in the stretch of its kind. Without a seal both
    are the length of the move.
    """
    addr, length, _, _, new_addr = op.args
    for i in range(length):
        page, there = pages.get(addr + i), pages.get(new_addr + i)
        if page is None or not (page.flags | (there.flags if there is not None else 0)) & VM_SEALED:
            continue
        start = i
        while start and _continues(pages.get(addr + start - 1), pages[addr + start]):
            start -= 1
        return i, start
    return length, length


def met_seal(spec: Specification, op: Op, ret: int) -> tuple[int, int] | None:
    """``sealed_in_move`` where this -EPERM is that of a move of several mappings that met a seal; None: it is not."""
    pages = spec.procs.get(op.proc, {})
    if op.kind != "mremap" or ret != -EPERM or op.args[0] not in pages or bad_parameters(spec, op):
        return None
    if pages[op.args[0]].flags & VM_SEALED or not moves_several(spec, op):
        return None
    met = sealed_in_move(pages, op)
    return met if met[0] < op.args[1] else None


def left_by_seal(spec: Specification, op: Op, ret: int) -> bool:
    """Is this -EPERM one of a move of several mappings of which it is not known how many have moved?"""
    met = met_seal(spec, op, ret)
    return met is not None and met[1] < met[0]


def _registered(pages: Pages, addr: int, length: int) -> int | None:
    """How many pages of a range stand before one that is registered with userfaultfd; None if none is."""
    return next((i for i in range(length) if pages.get(addr + i, _PLAIN).flags & VM_UFFD_FLAGS), None)


def ended_at_registered(spec: Specification, op: Op, ret: int) -> bool:
    """Has the call given up at a mapping that is registered with userfaultfd, and moved what stands before it?"""
    if ret != -EFAULT or not moves_several(spec, op) or bad_parameters(spec, op):
        return False
    return bool(_registered(spec.procs[op.proc], *op.args[:2]))


def _move_before(pages: Pages, op: Op, armed: int) -> None:
    """A mapping that is registered with userfaultfd moves alone or not at all: those before it have moved."""
    addr, _, _, flags, new_addr = op.args
    for i in range(armed):
        if addr + i in pages:
            _carry(pages, addr + i, new_addr + i, flags)


def same_vma_beside(pages: Pages, addr: int, length: int, target: int) -> list[int]:
    """Locked pages that may stand in one VMA with the first or last of [addr, addr+length), by their numbers after it.

    A VMA of which a part is moved with DONTUNMAP is unlocked whole. So is the moved part itself, at ``target``, where
    it lands beside what it comes from and merges with it. To be asked before the move.
    """
    low, high = addr, addr + length
    stop = target + length
    while low != stop and _same_vma(pages, low - 1):
        low -= 1
    while high != target and _same_vma(pages, high - 1):
        high += 1
    found = [*range(low, addr), *range(addr + length, high)]
    head = pages[addr]
    if not head.flags & VM_LOCKED:
        return found
    if high == target:
        found += range(target, stop)
        if _continues(head, pages.get(stop)):
            found.append(stop)
            while _same_vma(pages, found[-1]):
                found.append(found[-1] + 1)
    elif low == stop:
        found += range(target, stop)
        if _continues(pages.get(target - 1), head):
            found.append(target - 1)
            while _same_vma(pages, found[-1] - 1):
                found.append(found[-1] - 1)
    return found


def _same_vma(pages: Pages, number: int) -> bool:
    """Can pages ``number`` and ``number + 1`` stand in one locked VMA?"""
    low, high = pages.get(number), pages.get(number + 1)
    return low is not None and low.flags & VM_LOCKED != 0 and _continues(low, high)


def _continues(low: Page | None, high: Page | None) -> bool:
    if low is None or high is None or _differ(low.flags, high.flags):
        return False
    return high.backing == next_page(low, 1).backing


def _leave_open(spec: Specification, pages: Pages, label: int, numbers: list[int]) -> None:
    """These pages may have lost their lock."""
    for number in numbers:
        page = pages.get(number)  # a move of several mappings leaves holes
        if page is not None:
            pages[number] = with_flags(page, 0, MAYBE_UNLOCKED)
            spec.unsettled.append((label, number))


def _carry(pages: Pages, source: int, target: int, flags: int) -> None:
    page = pages[source]
    pages[target] = page
    if flags & MREMAP_DONTUNMAP:
        pages[source] = unlocked(fresh(page))
    else:
        del pages[source]


def _unmap(pages: Pages, first: int, end: int) -> None:
    for number in range(first, end):
        pages.pop(number, None)
