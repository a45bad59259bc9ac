"""Ways to make a workload simpler, as pure functions; ``fuzz.minimize`` tries which of them keep the finding.

Results may be invalid in their use of labels: repair them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from emulator.geometry import GEOMETRIES
from emulator.uapi import (
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    PROT_READ,
    PROT_WRITE,
)
from emulator.workload import PINS_MAX, PROCS_MAX, Domain, Op, Step, Workload
from fuzz.workload.domains import FLAG_MASKS, OP_DOMAINS, all_ops, map_ops

# What people expect to read counts as plain: memory that can be used, at the address that the op says.
_USUAL: Final = {Domain.PROT: PROT_READ | PROT_WRITE, Domain.MAP_FLAGS: MAP_PRIVATE | MAP_FIXED}
_PLAINER_KIND: Final = dict.fromkeys(
    ("write", "fill", "exec", "reclaim", "migrate", "swap_readahead"), "read"
)
_TWO_PLACES: Final = ("uffd_copy", "uffd_move")  # (destination, source, length, mode)
# A length of 0 is an error in most calls: plain only when nothing else does it.
_EMPTY: Final = 1 << 20

_SMALLER: Final = (
    Domain.FILE,
    Domain.FILE_OFFSET,
    Domain.OFFSET,
    Domain.PATTERN,
    Domain.SCAN,
)


def complexity(workload: Workload) -> int:
    """A number that falls as arguments become plainer: fewer flags, lower pages, shorter ranges."""
    total = GEOMETRIES[workload.geometry].ptrs_per_table
    table = OP_DOMAINS[workload.geometry]
    for step in workload.steps:
        for op in step.ops:
            total += op.proc + op.fail_nth
            for value, domain in zip(op.args, table[op.kind].domains, strict=True):
                if domain in FLAG_MASKS:
                    total += (value ^ _USUAL.get(domain, 0)).bit_count()
                elif domain is Domain.LENGTH:
                    total += value or _EMPTY
                elif domain is not Domain.ADVICE:
                    total += value
        total += sum(switch.nth + switch.op for switch in step.schedule)
    return total


def simpler_numbers(value: int, least: int, huge: int) -> Iterator[int]:
    """Smaller numbers to try, the smallest first; ``huge``: a step that keeps alignment."""
    tried = {value}
    for smaller in (least, value - value % huge, value // 2, value - huge, value - 1):
        if least <= smaller < value and smaller not in tried:
            tried.add(smaller)
            yield smaller


def simpler_ops(op: Op, geometry: str) -> Iterator[Op]:
    """The op with one thing made simpler, each in turn."""
    huge = GEOMETRIES[geometry].hpage_pmd_nr
    spec = OP_DOMAINS[geometry][op.kind]
    for smaller in simpler_numbers(op.fail_nth, 0, op.fail_nth + 1):
        yield op._replace(fail_nth=smaller)
    plainer = _PLAINER_KIND.get(op.kind)
    if plainer is not None:
        yield Op(plainer, op.proc, op.args[:1], op.fail_nth)
    if op.proc:
        yield op._replace(proc=0)
    if op.kind == "mremap" and op.args[1] == op.args[2]:
        for smaller in simpler_numbers(op.args[1], 1, huge):
            yield op._replace(args=(op.args[0], smaller, smaller, *op.args[3:]))
    for at, (value, domain) in enumerate(zip(op.args, spec.domains, strict=True)):
        for simpler in _simpler_values(domain, value, huge):
            yield op._replace(args=(*op.args[:at], simpler, *op.args[at + 1 :]))


def _simpler_values(domain: Domain, value: int, huge: int) -> Iterator[int]:
    if domain in FLAG_MASKS:
        usual = _USUAL.get(domain, 0)
        odd = value ^ usual
        if odd:
            yield usual
        yield from (value ^ 1 << bit for bit in range(odd.bit_length()) if odd >> bit & 1)
    elif domain is Domain.PAGE:
        yield from simpler_numbers(value, 0, huge)
    elif domain is Domain.LENGTH:
        yield from simpler_numbers(value or 2, 1, huge)
    elif domain in _SMALLER:
        yield from simpler_numbers(value, 0, 1)


# ---- the address space


Interval = tuple[int, int]  # pages [low, high)


def boundaries(workload: Workload) -> list[int]:
    """Every page where a range of some op begins or ends, ascending, with 0."""
    found = {0}
    table = OP_DOMAINS[workload.geometry]
    for op in all_ops(workload):
        for low, high in _ranges(op, table[op.kind].domains):
            found |= {low, high}
    return sorted(found)


def _ranges(op: Op, domains: tuple[Domain, ...]) -> list[Interval]:
    args = op.args
    if op.kind == "mremap":
        start, old_len, new_len, _, target = args
        found = [(start, start + old_len), (start, start + new_len)]
        return [*found, (target, target + new_len)] if _has_target(op) else found
    if op.kind in _TWO_PLACES:
        return [(args[0], args[0] + args[2]), (args[1], args[1] + args[2])]
    if len(domains) > 1 and domains[0] is Domain.PAGE and domains[1] is Domain.LENGTH:
        return [(args[0], args[0] + args[1])]
    return [(value, value + 1) for value, domain in zip(args, domains, strict=True) if domain is Domain.PAGE]


def _has_target(op: Op) -> bool:
    return bool(op.args[3] & (MREMAP_FIXED | MREMAP_DONTUNMAP))


def cut_pages(workload: Workload, low: int, high: int) -> Workload:
    """The workload in an address space without pages [low, high): what lies above comes down.

    A page that moves is cut in every place that it comes to, so that moves stay moves of equal lengths.
    """
    cuts = _follow_moves(workload, low, high)
    table = OP_DOMAINS[workload.geometry]

    def place(page: int) -> int:
        return page - sum(min(page, end) - start for start, end in cuts if start < page)

    def cut(op: Op) -> Op:
        domains = table[op.kind].domains
        args = list(op.args)
        if op.kind == "mremap":
            start, old_len, new_len, _, target = op.args
            args[0] = place(start)
            args[1] = place(start + old_len) - args[0]
            if _has_target(op):
                args[4] = place(target)
                args[2] = place(target + new_len) - args[4]
            else:
                args[2] = place(start + new_len) - args[0]
        elif op.kind in _TWO_PLACES:
            args[0], args[1] = place(op.args[0]), place(op.args[1])
            args[2] = place(op.args[1] + op.args[2]) - args[1]
        elif len(domains) > 1 and domains[0] is Domain.PAGE and domains[1] is Domain.LENGTH:
            args[0] = place(op.args[0])
            args[1] = place(op.args[0] + op.args[1]) - args[0]
        else:
            args = [
                place(value) if domain is Domain.PAGE else value
                for value, domain in zip(args, domains, strict=True)
            ]
        return op._replace(args=tuple(args))

    return map_ops(workload, cut)


def swap_pages(workload: Workload, low: int, middle: int, high: int) -> Workload:
    """The workload with pages [low, middle) and [middle, high) in each other's place."""
    table = OP_DOMAINS[workload.geometry]

    def place(page: int) -> int:
        if low <= page < middle:
            return page + high - middle
        return page - middle + low if middle <= page < high else page

    def swap(op: Op) -> Op:
        domains = table[op.kind].domains
        args = [place(v) if domain is Domain.PAGE else v for v, domain in zip(op.args, domains, strict=True)]
        return op._replace(args=tuple(args))

    return map_ops(workload, swap)


def _follow_moves(workload: Workload, low: int, high: int) -> list[Interval]:
    """[low, high) and all places that its pages are moved to or from; disjoint, ascending."""
    moves = [
        (op.args[0], op.args[4], min(op.args[1], op.args[2]))
        for op in all_ops(workload)
        if op.kind == "mremap" and _has_target(op)
    ]
    moves += [(op.args[1], op.args[0], op.args[2]) for op in all_ops(workload) if op.kind in _TWO_PLACES]
    found: list[Interval] = []
    todo = [(low, high)]
    while todo and len(found) < 64:
        interval = todo.pop()
        if any(start <= interval[0] and interval[1] <= end for start, end in found):
            continue
        found.append(interval)
        for source, target, length in moves:
            for here, there in ((source, target), (target, source)):
                start, end = max(interval[0], here), min(interval[1], here + length)
                if start < end:
                    todo.append((start - here + there, end - here + there))
    merged: list[Interval] = []
    for start, end in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def in_world(workload: Workload, geometry: str) -> Workload:
    """The workload in another geometry, every page in the same page table and about the same place in it."""
    old = GEOMETRIES[workload.geometry].ptrs_per_table
    new = GEOMETRIES[geometry].ptrs_per_table
    table = OP_DOMAINS[workload.geometry]

    def place(page: int) -> int:
        return page // old * new + min(page % old, new - 1)

    def change(op: Op) -> Op:
        args: list[int] = []
        page = 0
        for value, domain in zip(op.args, table[op.kind].domains, strict=True):
            if domain is Domain.PAGE:
                page = value
                args.append(place(value))
            elif domain is Domain.LENGTH:
                args.append(max(place(page + value) - place(page), min(value, 1)))
            else:
                args.append(value)
        return op._replace(args=tuple(args))

    return Workload(geometry, map_ops(workload, change).steps)


# ---- operations that belong together


def without_move(workload: Workload, number: int, position: int) -> Workload | None:
    """Without the move that is op ``position`` of step ``number``: later ops find the pages where they were.

    The two places change their roles, so that a later move back becomes a move there.
    """
    move = workload.steps[number].ops[position]
    if move.kind != "mremap" or not _has_target(move) or move.args[1] != move.args[2]:
        return None
    source, length, _, _, target = move.args
    table = OP_DOMAINS[workload.geometry]

    def place(page: int) -> int:
        if target <= page < target + length:
            return page - target + source
        if source <= page < source + length:
            return page - source + target
        return page

    def back(op: Op) -> Op:
        args = [
            place(value) if domain is Domain.PAGE else value
            for value, domain in zip(op.args, table[op.kind].domains, strict=True)
        ]
        return op._replace(args=tuple(args))

    later = map_ops(Workload(workload.geometry, workload.steps[number + 1 :]), back).steps
    return Workload(workload.geometry, workload.steps[:number] + _without(workload, number, position) + later)


def _without(workload: Workload, number: int, position: int) -> tuple[Step, ...]:
    step = workload.steps[number]
    return () if len(step.ops) == 1 else (step_without(step, position),)


def step_without(step: Step, position: int) -> Step:
    """A collision without one of its ops and the switches to it."""
    ops = step.ops[:position] + step.ops[position + 1 :]
    if len(ops) < 2:
        return Step(ops)
    kept = [switch for switch in step.schedule if switch.op != position]
    return Step(ops, tuple([s._replace(op=s.op - 1) if s.op > position else s for s in kept]))


def reordered(step: Step, order: tuple[int, ...]) -> Step:
    """A collision with its ops in another order, the schedule with them: ``order[new] == old``."""
    number = {old: new for new, old in enumerate(order)}
    return Step(
        tuple([step.ops[old] for old in order]),
        tuple([switch._replace(op=number[switch.op % len(order)]) for switch in step.schedule]),
    )


def without_child(workload: Workload, label: int) -> Workload:
    """Without all forks that make processes of this label, and all that these do."""
    return _keep(workload, lambda op: op.proc != label and not (op.kind == "fork" and op.args[0] == label))


def without_pin(workload: Workload, label: int) -> Workload:
    """Without all ops that make or use pins of this label."""
    table = OP_DOMAINS[workload.geometry]

    def keep(op: Op) -> bool:
        return not any(
            value == label and domain in (Domain.NEW_PIN, Domain.PIN)
            for value, domain in zip(op.args, table[op.kind].domains, strict=True)
        )

    return _keep(workload, keep)


def _keep(workload: Workload, wanted: Callable[[Op], bool]) -> Workload:
    steps: list[Step] = []
    for step in workload.steps:
        left = step
        for position in reversed(range(len(step.ops))):
            if not wanted(step.ops[position]):
                left = step_without(left, position) if len(left.ops) > 1 else Step(())
        if left.ops:
            steps.append(left)
    return Workload(workload.geometry, tuple(steps))


def renumbered(workload: Workload) -> Workload:
    """Process and pin labels as low as they can be, in the order in which they are made."""
    procs = {0: 0}
    pins: dict[int, int] = {}
    table = OP_DOMAINS[workload.geometry]
    steps: list[Step] = []
    for step in workload.steps:
        ops: list[Op] = []
        gone: list[int] = []
        for op in step.ops:
            args = list(op.args)
            for at, (value, domain) in enumerate(zip(op.args, table[op.kind].domains, strict=True)):
                if domain is Domain.NEW_PROC:
                    args[at] = procs[value] = _lowest(procs, range(1, PROCS_MAX))
                elif domain is Domain.NEW_PIN:
                    args[at] = pins[value] = _lowest(pins, range(PINS_MAX))
                elif domain is Domain.PIN:
                    args[at] = pins.get(value, value)
                    if op.kind == "unpin":
                        gone.append(value)
            ops.append(op._replace(proc=procs.get(op.proc, op.proc), args=tuple(args)))
            if op.kind == "exit":
                procs.pop(op.proc, None)
        for label in gone:
            pins.pop(label, None)
        steps.append(Step(tuple(ops), step.schedule))
    return Workload(workload.geometry, tuple(steps))


def _lowest(used: dict[int, int], labels: range) -> int:
    taken = used.values()
    return next((label for label in labels if label not in taken), labels[-1])
