"""What the specification allows after an injected failure (rules: kernel-facts 6.9 in docs, mm/vma.c, mm/mremap.c).

An allocation that failed may leave a call undone, done, or done in part. So may a refusal to relocate, without the
failure. In part means: destinations of FIXED and
the tail of a shrinking move may be gone, a prefix of a multi-VMA call may be done, and a source that could not be
cut may stay mapped, empty. Whatever is left, each page keeps its contents, moves with them, or is unmapped as the
call would have unmapped it.

A call is broken up into ``Group`` of pages that hang together (a source page and its destination), each with the
alternatives that it may be left in; ``settle`` picks those that the machine shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise, product
from typing import TYPE_CHECKING

from emulator.mm_types import VM_MERGEABLE, VM_SEALED, VM_UFFD_FLAGS
from emulator.uapi import EFAULT, MADV_GUARD_INSTALL, MAP_FIXED, MREMAP_DONTUNMAP, MREMAP_FIXED, SIGSEGV
from oracle.observation import ACCESSES
from oracle.specification import process_madvise
from oracle.specification.attributes import can_be_named, can_merge
from oracle.specification.limits import stopped_by_limit
from oracle.specification.lock import current_flags, lock_flags, set_future, with_lock
from oracle.specification.madvise import EFFECTS
from oracle.specification.mremap import (
    bad_parameters,
    ended_at_registered,
    left_by_seal,
    met_seal,
    moves_several,
    next_page,
    one_mapping,
    refused_to_relocate,
    same_vma_beside,
)
from oracle.specification.page import (
    FAILURES,
    NAME,
    NAME_SHIFT,
    POLICY,
    POLICY_SHIFT,
    Group,
    Page,
    Pages,
    Refusal,
    erased,
    fresh,
    protected,
    unlocked,
    with_flags,
    wrong_result,
)
from oracle.specification.placement import check_place
from oracle.specification.stack import brk_of, growth
from oracle.specification.uffd import carried
from oracle.specification.uffd_calls import registered
from oracle.specification.uffd_follow import leave_open

if TYPE_CHECKING:
    from emulator.profile import Profile
    from emulator.workload import Op, Outcome
    from oracle.specification.state import Specification

_GROUPS_MANY = 12  # beyond it, states are not enumerated in full
AFTER_FAILURE = "after-failure"
_CANNOT_FAIL = frozenset(("exit", "unpin", "pin_write", "uffd_close"))
_NOT_GROWN = (SIGSEGV, -EFAULT)  # what an access below a stack that could not grow gives
_LOCK_ALL = frozenset(("mlockall", "munlockall"))

Shows = Callable[[int, int, Page | None], bool]
"""Does the machine show this page (process, page number, page or None for unmapped)?"""


def left_in_part(spec: Specification, op: Op, outcome: Outcome) -> bool:
    """May ``op`` have been done in part, so that ``settle`` has to look at what the machine shows?"""
    return outcome.injected or stopped_half_way(spec, op, outcome.ret)


def stopped_half_way(spec: Specification, op: Op, ret: int) -> bool:
    """Is this the error, for which no allocation has to fail, of a move that may have begun?"""
    return refused_to_relocate(spec, op, ret) or left_by_seal(spec, op, ret) or stopped_by_limit(spec, op, ret)


def groups_after_failure(spec: Specification, op: Op, outcome: Outcome) -> list[Group]:
    """What ``op``, which may have been done in part, may have left; other pages are as before."""
    pages = spec.procs[op.proc]
    kind, ret = op.kind, outcome.ret
    met = met_seal(spec, op, ret)
    if met is not None:
        return _seal_groups(pages, op, outcome, *met)
    if kind == "mremap":
        return _mremap_groups(spec, pages, op, outcome)
    if kind in _LOCK_ALL:  # a mapping that cannot be cut stays as it was, and nobody is told
        flags = current_flags(op)
        return [] if flags is None else [[{n: page}, {n: with_lock(page, flags)}] for n, page in pages.items()]
    if kind in ACCESSES:
        found = growth(spec, pages, op.args[0]) if op.args[0] not in pages else None
        return [] if found is None else [[dict.fromkeys(found.numbers, found.page), dict.fromkeys(found.numbers)]]
    if ret >= 0:
        return []
    if kind == "memory_merge" and not op.args[0]:  # what could not be taken back is given to all
        return [[{n: with_flags(page, 0, VM_MERGEABLE)}] for n, page in pages.items() if can_merge(page)]
    if kind == "remap_file_pages" or (kind == "mmap" and op.args[3] & MAP_FIXED):
        addr, length = op.args[:2]
        return [[{n: pages[n]}, {n: None}] for n in range(addr, addr + length) if n in pages]
    change = _change(op, spec.limits.profile)
    if change is None:
        return []
    addr, length = op.args[:2]
    groups = [_either(n, pages[n], change(pages[n])) for n in range(addr, addr + length) if n in pages]
    if kind == "madvise" and op.args[2] == MADV_GUARD_INSTALL:  # emptied, and then no memory for page tables
        for group in groups:
            group += [{n: erased(page)} for n, page in group[0].items() if page is not None]
    return groups


def _either(number: int, before: Page, after: Page) -> Group:
    """A page that the call got to or not. What may be thrown away from now on looks as it did before."""
    if after.dropped is not None and before.dropped is None:
        return [{number: after}]
    return [{number: before}, {number: after}]


def _seal_groups(pages: Pages, op: Op, outcome: Outcome, stop: int, certain: int) -> list[Group]:
    """What a move of several mappings leaves that met a seal after ``stop`` pages, ``certain`` of them moved."""
    addr, new_addr = op.args[0], op.args[4]
    groups: list[Group] = []
    for i in range(stop):
        page = pages.get(addr + i)
        if page is not None:
            left = unlocked(erased(page)) if op.args[3] & MREMAP_DONTUNMAP else None
            group: Group = [{addr + i: left, new_addr + i: page}]
            if i >= certain:
                group.append({addr + i: page, new_addr + i: pages.get(new_addr + i)})
            if outcome.injected:
                group.append({addr + i: erased(page), new_addr + i: page})
            groups.append(group)
    return groups


def _change(op: Op, profile: Profile) -> Callable[[Page], Page] | None:
    """What a call that changes mappings in turn makes of a page that it gets to."""
    kind, args = op.kind, op.args
    if kind in ("mprotect", "pkey_mprotect"):
        return lambda page: protected(page, args[2])
    if kind == "mseal":
        return lambda page: with_flags(page, 0, VM_SEALED)
    if kind == "set_vma_name":
        name = args[2] << NAME_SHIFT
        return lambda page: with_flags(page, NAME, name) if can_be_named(page, profile) else page
    if kind == "mbind":
        return lambda page: with_flags(page, POLICY, args[2] << POLICY_SHIFT)
    if kind in ("mlock", "mlock2", "munlock"):
        return lambda page: with_lock(page, lock_flags(op))
    if kind == "madvise" and args[2] in EFFECTS:
        return lambda page: _advised(page, args[2])
    if kind == "uffd_register":
        return lambda page: registered(page, args[2])
    if kind == "uffd_unregister":
        return lambda page: page._replace(flags=page.flags & ~VM_UFFD_FLAGS)
    return None


def _advised(page: Page, advice: int) -> Page:
    after = EFFECTS[advice](page)
    return page if isinstance(after, int) else after


def _mremap_groups(spec: Specification, pages: Pages, op: Op, outcome: Outcome) -> list[Group]:
    """For each page of the source, with its page of the destination, what may be left."""
    addr, old, new, flags, new_addr = op.args
    ret = outcome.ret
    several = moves_several(spec, op)
    target = ret if ret >= 0 else new_addr if flags & MREMAP_FIXED else None
    if target == addr:  # shrunk or grown where it stands
        return []
    groups: list[Group] = []
    moved = min(old, new)
    for i in range(moved):
        page = pages.get(addr + i)
        if page is not None:
            place = None if target is None else target + i
            groups.append(_pair(spec, op, addr + i, place, outcome, several=several))
    if target is not None and not several:
        for i in range(moved, new):
            if ret >= 0:
                groups.append([{target + i: carried(spec, op.proc, next_page(pages[addr], i))}])
            else:
                groups.append([{target + i: pages.get(target + i)}, {target + i: None}])
    for number in range(addr + moved, addr + old):
        if number in pages and ret >= 0:
            groups.append([{number: None}])
        elif number in pages and flags & MREMAP_FIXED:
            groups.append([{number: pages[number]}, {number: None}])
    # of several VMAs those before the one that failed have been moved, and the first of them may have begun before addr
    if flags & MREMAP_DONTUNMAP and target is not None and addr in pages and (ret >= 0 or several):
        _open_locks(groups, pages, same_vma_beside(pages, addr, moved, target))
    return groups


def _open_locks(groups: list[Group], pages: Pages, numbers: list[int]) -> None:
    """These pages may have lost their lock, whatever else became of them."""
    for number in numbers:
        group = next((group for group in groups if number in group[0]), None)
        if group is not None:
            group += [{**left, number: unlocked(page)} for left in group if (page := left[number]) is not None]
        elif number in pages:
            groups.append([{number: pages[number]}, {number: unlocked(pages[number])}])


def _pair(
    spec: Specification, op: Op, source: int, target: int | None, outcome: Outcome, *, several: bool
) -> Group:
    """One page of the source and its place in the destination (None: not known, as the call failed)."""
    pages = spec.procs[op.proc]
    page = pages[source]
    there = carried(spec, op.proc, page)
    if target is None:
        return [{source: page}]
    group: Group = []
    failed = outcome.ret < 0
    if failed:
        group = [{source: page, target: pages.get(target)}, {source: page, target: None}]
    if several or not failed:
        left = fresh(page)
        if op.args[3] & MREMAP_DONTUNMAP:
            group.append({source: unlocked(left), target: there})
        else:
            group.append({source: None, target: there})
            if outcome.injected:  # the source could not be cut for its unmapping, and stays, empty
                group.append({source: left, target: there})
    return group


def absorbed(spec: Specification, op: Op, ret: int) -> bool:
    """Is the outcome one that needs no failure to be explained, so that the ordinary rules judge it?"""
    pages = spec.procs.get(op.proc)
    if pages is None:
        return True
    if met_seal(spec, op, ret) is not None:
        return False
    if op.kind == "mremap":
        failed = ret in FAILURES or refused_to_relocate(spec, op, ret) or ended_at_registered(spec, op, ret)
        return not failed and not _really_moved(spec, pages, op, ret)
    if op.kind in ACCESSES and ret in _NOT_GROWN:
        return op.args[0] in pages or growth(spec, pages, op.args[0]) is None
    if op.kind == "brk":
        return ret != brk_of(spec, op.proc)
    return ret not in FAILURES and (ret != 0 or op.kind not in _LOCK_ALL)


def impossible(spec: Specification, op: Op, ret: int) -> Refusal | None:
    """A result that no failure explains."""
    if op.kind in _CANNOT_FAIL:
        return wrong_result(op, ret, "success")
    if op.kind == "mremap" and ret >= 0 and not op.args[3] & MREMAP_FIXED:
        return check_place(spec, spec.procs[op.proc], op, ret, op.args[2], None, replace=False)
    return None


def settle(spec: Specification, op: Op, outcome: Outcome, token: int, shows: Shows) -> Refusal | None:
    """Do ``op``, which may have been left in part, as the machine shows that it was done. None: allowed."""
    ret = outcome.ret
    spec.note_collapse(op)
    if op.kind == "process_madvise":
        return process_madvise.process_madvise(
            spec, op, ret, lambda to, call, got: settle(to, call, got._replace(injected=True), token, shows)
        )
    if absorbed(spec, op, ret):
        return spec.apply(op, outcome, token)
    refusal = impossible(spec, op, ret)
    if refusal is not None:
        return refusal
    chosen: list[dict[int, Page | None]] = []
    for group in groups_after_failure(spec, op, outcome):
        for alternative in group:
            if all(shows(op.proc, number, page) for number, page in alternative.items()):
                chosen.append(alternative)
                break
        else:
            numbers = sorted(group[0])
            detail = f"{op.kind} of process {op.proc} failed half-way and left pages {numbers} in a state not allowed"
            return Refusal(AFTER_FAILURE, op.kind, detail)
    _take(spec, op, ret, chosen)
    return None


def alternatives(spec: Specification, op: Op, outcome: Outcome, token: int) -> Iterator[Specification]:
    """The states that ``op`` may have left.

    For collisions, where another operation may have come after this one on the same pages, so that the machine
    does not show any more what this one left.
    """
    ret = outcome.ret
    spec.note_collapse(op)
    if op.kind == "process_madvise" and op.proc in spec.procs:
        yield from process_madvise.alternatives(spec, op, ret, lambda to, call, got: alternatives(to, call, got, token))
        return
    if absorbed(spec, op, ret):
        after = spec.copy()
        if after.apply(op, outcome, token) is None:
            yield after
        return
    if impossible(spec, op, ret) is not None:
        return
    for chosen in _choices(groups_after_failure(spec, op, outcome)):
        after = spec.copy()
        _take(after, op, ret, chosen)
        yield after


def _choices(groups: list[Group]) -> Iterator[list[dict[int, Page | None]]]:
    """Choices of one alternative for each group that change nowhere, once, or (few groups) twice along the way.

    A call in part done is a stretch that is done, one that failed, and one that was not reached.
    """
    count = len(groups)
    widths = [len(group) - 1 for group in groups]
    most = max(widths, default=0) + 1
    for changes in range(3 if count <= _GROUPS_MANY else 2):
        for cuts in combinations(range(1, count), changes):
            bounds = (0, *cuts, count)
            for picks in product(range(most), repeat=changes + 1):
                if any(a == b for a, b in pairwise(picks)):
                    continue
                stretches = zip(pairwise(bounds), picks, strict=True)
                yield [
                    groups[i][min(pick, widths[i])] for (start, end), pick in stretches for i in range(start, end)
                ]


def _take(spec: Specification, op: Op, ret: int, chosen: list[dict[int, Page | None]]) -> None:
    if op.kind in _LOCK_ALL and not ret:
        set_future(spec, op)
    pages = spec.procs[op.proc]
    for alternative in chosen:
        for number, page in alternative.items():
            if page is None:
                pages.pop(number, None)
            else:
                pages[number] = page
    leave_open(spec, op, ret)


def _really_moved(spec: Specification, pages: Pages, op: Op, ret: int) -> bool:
    """Did a call with this (good) result move pages, so that the source may be left over?"""
    addr, old, new, flags, new_addr = op.args
    if ret < 0 or ret == addr or bad_parameters(spec, op) or addr not in pages:
        return False
    if flags & MREMAP_FIXED and ret != new_addr:
        return False
    return moves_several(spec, op) or one_mapping(pages, addr, min(old, new))
