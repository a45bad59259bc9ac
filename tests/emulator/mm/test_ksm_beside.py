"""Same-page merging while others use, move, unmap or migrate the same pages."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.mm_types import VM_MERGEABLE
from emulator.uapi import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_PAGEOUT,
    MADV_UNMERGEABLE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from emulator.workload import FOLL_PIN, Op, Switch
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World
from tests.emulator.mm.equal_pages import advise, equal, fill, merged, scan
from tests.emulator.mm.world import PIN_RW
from tests.emulator.references import TO_THE_END, check_all, every_cut

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
SCAN = Op("ksm_scan", 0, (0,))


def about_to_merge() -> World:
    """Equal pages that have been seen once, shared with a child."""
    world = equal(0, 1, 9)
    world.fork()
    scan(world)
    return world


def nobody_else() -> World:
    """Equal pages that have been seen once, and no child."""
    world = equal(0, 1, 9)
    scan(world)
    return world


def merged_before() -> World:
    """Merged pages, shared with a child, and one that comes to them."""
    world = merged(0, 1)
    world.fork()
    fill(world, 9)
    scan(world)
    return world


def in_a_huge_page() -> World:
    """Equal pages of a huge page and beside it."""
    world = World()
    world.mmap(0, 16)
    advise(world, 0, 8, MADV_HUGEPAGE)
    fill(world, 0, 1, 9)
    advise(world, 0, 16, MADV_MERGEABLE)
    world.fork()
    scan(world)
    return world


HARMLESS = {
    "pin": Op("gup_fast", 0, (0, PIN_RW, 1)),
    "read pin": Op("gup_fast", 0, (1, FOLL_PIN, 1)),
    "get": Op("gup_fast", 0, (0, 0, 1)),
    "read": Op("read", 0, (1,)),
    "reclaim": Op("reclaim", 0, (0,)),
    "migrate": Op("migrate", 0, (0,)),
    "migrate of the newcomer": Op("migrate", 0, (9,)),
    "pageout": Op("madvise", 0, (0, 16, MADV_PAGEOUT)),
    "collapse": Op("madvise", 0, (0, 16, MADV_COLLAPSE)),
    "unmerge": Op("madvise", 0, (0, 1, MADV_UNMERGEABLE)),
    "unmerge in the child": Op("madvise", 1, (0, 16, MADV_UNMERGEABLE)),
    "another scan": SCAN,
    "fork": Op("fork", 0, (2,)),
    "exit of the child": Op("exit", 1, ()),
    "mprotect": Op("mprotect", 0, (0, 2, PROT_READ)),
}
CHANGES = {
    "write": Op("write", 0, (0, 1)),
    "write of the newcomer": Op("write", 0, (9, 1)),
    "write in the child": Op("write", 1, (1, 1)),
    "munmap": Op("munmap", 0, (0, 1)),
    "dontneed": Op("madvise", 0, (9, 1, MADV_DONTNEED)),
    "mremap": Op("mremap", 0, (0, 8, 8, MOVE, 32)),
    "mremap of the newcomer": Op("mremap", 0, (9, 1, 1, MOVE, 33)),
    "mremap in the child": Op("mremap", 1, (0, 8, 8, MOVE, 32)),
}


def beside_each(ops: dict[str, Op]) -> list[tuple[Callable[[], World], str]]:
    """Every world with every op that has its process there."""
    families = (about_to_merge, merged_before, in_a_huge_page)
    alone = [(nobody_else, name) for name, op in ops.items() if op.proc == 0]
    return [*alone, *((make, name) for make in families for name in ops)]


@pytest.mark.parametrize(("make", "beside"), beside_each(HARMLESS))
def test_beside_what_changes_no_contents(make: Callable[[], World], beside: str) -> None:
    """Cut anywhere: the state is sound, no page of any process is lost, a pin stays what the process sees."""
    op = HARMLESS[beside]
    before = make()
    for world, _, where in every_cut(make, (SCAN, op)):
        for proc in world.machine.procs:
            assert world.contents(proc) == before.contents(0 if proc == 2 else proc), where
        check_all(world)
        if world.machine.pins and world.machine.pins[1].flags & FOLL_PIN:
            pin = world.machine.pins[1]
            token = world.write(op.args[0], 3)
            assert pin.folio.content[pin.page].get(3) == token, where
            check_all(world)


@pytest.mark.parametrize("proc", [0, 1])
def test_no_longer_mergeable(proc: int) -> None:
    """Whenever the advice comes, nothing is merged there once it has been taken.

    (But a page that such memory shares with a process that goes on may become a KSM page there.)
    """
    for world, _, where in every_cut(merged_before, (SCAN, Op("madvise", proc, (0, 16, MADV_UNMERGEABLE)))):
        assert not world.vma(0, proc).vm_flags & VM_MERGEABLE
        pages = (0, 1, 9) if proc == 0 else (0, 1)  # the newcomer is the parent's
        assert not any(world.folio(page, proc).ksm for page in pages), where
        check_all(world)


@pytest.mark.parametrize(("make", "beside"), beside_each(CHANGES))
def test_beside_what_changes_contents(make: Callable[[], World], beside: str) -> None:
    """Cut anywhere: the state is sound, contents are what the other op alone leaves, and later scans keep them."""
    op = CHANGES[beside]
    for world, _, where in every_cut(make, (SCAN, op)):
        alone = make()
        alone.collide((Op("exec", 3, (0,)), op))  # op number 1 of its step, as beside the scan
        for _ in range(2):
            for proc in world.machine.procs:
                assert world.contents(proc) == alone.contents(proc), where
            check_all(world)
            scan(world, 2)


@pytest.mark.parametrize("beside", ["migrate", "reclaim", "mremap", "fork", "unmerge"])
def test_merged_pages_in_use_twice(beside: str) -> None:
    """What walks the places of a KSM page, and what changes them."""
    op = {**HARMLESS, **CHANGES}[beside]
    for other in (Op("migrate", 1, (1,)), Op("reclaim", 0, (1,)), Op("write", 1, (0, 1)), Op("exit", 1, ())):
        for world, outcomes, where in every_cut(merged_before, (op, other)):
            assert all(outcome.ret >= 0 for outcome in outcomes), where
            check_all(world)


@pytest.mark.parametrize("other", [Op("migrate", 1, (1,)), Op("write", 1, (0, 1)), Op("fork", 1, (2,))])
def test_unmerged_for_good(other: Op) -> None:
    """Whatever has hold of the page: when unmerging is over it is not mapped there, and comes back from nowhere.

    (Reclaim is another matter: a page that is in the swap cache at that moment comes back as the KSM page it was.)
    """
    unmerge = Op("madvise", 0, (0, 1, MADV_UNMERGEABLE))
    for world, outcomes, where in every_cut(merged_before, (unmerge, other)):
        assert [outcome.ret >= 0 for outcome in outcomes] == [True, True], where
        assert not world.folio(0).ksm, where
        check_all(world)


def test_a_page_written_since_it_was_met() -> None:
    """It stands in the tree under what it held then; the page that looks for that is left as it is."""
    world = equal(0, 1)
    scan(world)
    folio = world.folio(1)
    schedule = (Switch(0, "ksm.page_found", 2), Switch(1, "", TO_THE_END))
    outcomes = world.collide((SCAN, Op("write", 0, (0, 1))), schedule)
    assert [outcome.ret for outcome in outcomes] == [0, 0]
    assert world.folio(1) is folio
    assert not folio.ksm


def test_a_page_that_is_being_migrated() -> None:
    """Nothing is merged with it now: the reference would be in the way, or come too late."""
    world = merged(0, 1)
    fill(world, 8, 9)
    scan(world)
    schedule = (Switch(1, "migrate.folio_locked", 1), Switch(0, "", TO_THE_END))
    outcomes = world.collide((SCAN, Op("migrate", 0, (0,))), schedule)
    assert [outcome.ret for outcome in outcomes] == [0, 1]
    assert not world.folio(8).ksm
    assert not world.folio(9).ksm
    assert scan(world) > 0
    check_all(world)


def test_a_page_that_somebody_has_locked() -> None:
    """It is left for another time, not waited for."""
    world = equal(0, 1)
    scan(world)
    schedule = (Switch(1, "reclaim.folio_locked", 1), Switch(0, "", TO_THE_END))
    outcomes = world.collide((SCAN, Op("reclaim", 0, (1,))), schedule)
    assert [outcome.ret for outcome in outcomes] == [0, 1]
    assert world.machine.completed == [0, 1]


def test_an_access_since_the_entry_is_read_only() -> None:
    """No TLB knows the old page any more when another one is mapped in its place."""
    world = equal(0, 1)
    scan(world)
    old = world.folio(0).pfn
    schedule = (Switch(0, "ksm.write_protected", 2), Switch(1, "", TO_THE_END))
    outcomes = world.collide((SCAN, Op("read", 0, (0,))), schedule)
    assert [outcome.ret for outcome in outcomes] == [2, 0]
    assert "fault.end" not in [point for _, point in world.machine.sched.trace]
    assert old not in [entry >> 12 for tlb in world.machine.tlbs for entry in tlb.entries.values()]


def test_another_mapping_where_the_page_was_found() -> None:
    """The VMA is looked up again before anything is merged; one that nobody has written to has nothing."""
    world = merged(0, 1)
    world.fork()
    ops = (
        SCAN,
        Op("mmap", 1, (0, 16, RW, PRIVATE_FIXED, 0, 0)),
        Op("madvise", 1, (0, 16, MADV_MERGEABLE)),
    )
    schedule = (Switch(0, "ksm.page_found", 3), *(Switch(i, "", TO_THE_END) for i in (1, 2)))
    outcomes = world.collide(ops, schedule)
    assert [outcome.ret for outcome in outcomes] == [0, 0, 0]
    assert world.vma(0, 1).anon_vma is None
    check_all(world)


def test_a_pin_since_the_entry_was_read() -> None:
    """GUP-fast has taken the page, and looks at the entry again when it is cleared: it lets go, the merge goes on."""
    world = equal(0, 1)
    scan(world)
    ops = (SCAN, Op("gup_fast", 0, (0, PIN_RW, 1)))
    schedule = (
        Switch(1, "gup_fast.folio_grabbed", 1),
        Switch(0, "", TO_THE_END),
        Switch(1, "", TO_THE_END),
    )
    outcomes = world.collide(ops, schedule)
    assert outcomes[1].ret == 0
    pin = world.machine.pins[1]
    token = world.write(0, 2)
    assert pin.folio.content[pin.page][2] == token
    check_all(world)
