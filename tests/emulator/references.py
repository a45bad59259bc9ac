"""Recounts of references and swap slots, and sweeps over the interleavings of two operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from emulator.fs_types import AddressSpace
from emulator.hw.pte import PRESENT, SPECIAL, is_swap, pte_pfn, softleaf_value
from emulator.mm_types import GUP_PIN_COUNTING_BIAS
from emulator.workload import FOLL_PIN, Op, Outcome, Switch
from tests.emulator.kernel_world import World

TO_THE_END = 1 << 20


def check_references(world: World) -> None:
    """Every reference of every live folio is explained: entries, caches, pins. No folio is locked or isolated."""
    machine = world.machine
    expected: dict[int, int] = dict.fromkeys(machine.phys.live, 0)
    if machine.phys.huge_zero_folio is not None:
        expected[machine.phys.huge_zero_folio.pfn] = 1
    frames = machine.phys.frames
    for mm in machine.procs.values():
        for _, _, entry in mm.pgd.leaves(machine.geometry):
            if entry & PRESENT and not entry & SPECIAL:
                expected[frames[pte_pfn(entry)].pfn] += 1
    for folio in machine.swap.cache.values():
        expected[folio.pfn] += 1
    pincounts: dict[int, int] = {}
    for pin in machine.pins.values():
        if pin.folio is machine.phys.zero_folio:
            continue
        if pin.flags & FOLL_PIN and not pin.folio.order:
            expected[pin.folio.pfn] += GUP_PIN_COUNTING_BIAS
        else:
            expected[pin.folio.pfn] += 1
            if pin.flags & FOLL_PIN:
                pincounts[pin.folio.pfn] = pincounts.get(pin.folio.pfn, 0) + 1
    files = {file.label: file.f_mapping for file in machine.files} | machine.shared_memory
    for mapping in files.values():
        for folio in mapping.pages.values():
            expected[folio.pfn] += 1
    for pfn, folio in machine.phys.live.items():
        if folio is machine.phys.zero_folio:
            continue
        assert folio.refcount == expected[pfn], (
            f"{folio}: {folio.refcount} references, {expected[pfn]} explained"
        )
        assert folio.pincount == pincounts.get(pfn, 0), folio
        assert folio.lock.owner is None, folio
        assert folio.lru, folio


def check_swap(world: World) -> None:
    """Slot counts equal the entries that hold the slot; no slot is kept that nobody needs; nothing is lost."""
    machine = world.machine
    held: dict[int, int] = {}
    for mm in machine.procs.values():
        for _, level, entry in mm.pgd.leaves(machine.geometry):
            if not level and is_swap(entry):
                slot = softleaf_value(entry)
                held[slot] = held.get(slot, 0) + 1
    for mapping in machine.shared_memory.values():
        for slot in mapping.swapped.values():
            held[slot] = held.get(slot, 0) + 1
    for slot, count in machine.swap.count.items():
        assert count == held.get(slot, 0), f"slot {slot}: count {count}, {held.get(slot, 0)} entries"
        assert count or slot in machine.swap.cache, f"slot {slot} leaks"
        assert slot in machine.swap.cache or slot in machine.swap.content, f"slot {slot} has no content"
    assert set(held) <= set(machine.swap.count)
    for slot, folio in machine.swap.cache.items():
        assert isinstance(folio.mapping, AddressSpace) is False
        assert folio.swapcache
        assert folio.swap <= slot < folio.swap + folio.nr_pages


def check_all(world: World) -> None:
    """Structure, mapcounts, references, swap."""
    world.check()
    check_references(world)
    check_swap(world)


def assert_coherent(world: World, page: int, label: int = 0) -> None:
    """What the process stores to the page is seen through the pin."""
    pin = world.machine.pins[label]
    token = world.write(page, 1)
    assert pin.folio.content[pin.page][1] == token


def every_cut(
    make: Callable[[], World], ops: tuple[Op, Op], *, both: bool = True
) -> Iterator[tuple[World, list[Outcome], str]]:
    """Run two ops on a fresh world for each place where one can be interrupted by the whole of the other.

    Yields the world afterwards, the outcomes, and where the cut was. Ends after the last point of the
    interrupted op, so the last run of each half is a serial one.
    """
    for first in (0, 1) if both else (0,):
        cut = 1
        while True:
            world = make()
            outcomes = world.collide(ops, (Switch(first, "", cut), Switch(1 - first, "", TO_THE_END)))
            passed = [point for op, point in world.machine.sched.trace if op == first]
            where = passed[cut - 1] if cut <= len(passed) else "the end"
            yield world, outcomes, f"op {first} cut at {where} ({cut})"
            if cut > len(passed):
                break
            cut += 1


def every_two_cuts(
    make: Callable[[], World], ops: tuple[Op, Op], step: int = 1
) -> Iterator[tuple[World, list[Outcome], str]]:
    """As ``every_cut``; the interrupting op is itself interrupted, and finished after the first one."""
    for first in (0, 1):
        cut = 1
        while True:
            length = 0
            inner = 1
            while True:
                world = make()
                schedule = (
                    Switch(first, "", cut),
                    Switch(1 - first, "", inner),
                    Switch(first, "", TO_THE_END),
                )
                outcomes = world.collide(ops, schedule)
                trace = world.machine.sched.trace
                length = sum(op == first for op, _ in trace)
                yield world, outcomes, f"op {first} cut after {cut} points, the other after {inner}"
                if inner >= sum(op != first for op, _ in trace):
                    break
                inner += step
            if cut >= length:
                break
            cut += step
