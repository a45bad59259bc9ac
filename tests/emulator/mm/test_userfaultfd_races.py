"""userfaultfd beside everything else: wherever one is cut by the other, an order of the two gives the state."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.geometry import PAGE_SHIFT
from emulator.sched.points import POINTS
from emulator.uapi import EBUSY, EEXIST, ENOENT, MADV_DONTNEED, MADV_PAGEOUT, SIGBUS
from emulator.workload import FOLL_PIN, FOLL_WRITE, Op, Switch
from tests.emulator.kernel_world import World
from tests.emulator.mm.uffd_world import ON, entries, run
from tests.emulator.mm.world import PIN_RW
from tests.emulator.references import TO_THE_END, check_all, every_cut, every_two_cuts


def moving() -> World:
    """The destination at page 0, registered, the source at page 20, two pages of it written."""
    world = World()
    world.mmap(0, 4)
    world.mmap(20, 4)
    for page in (20, 21):
        world.write(page)
    run(world, "uffd_register 0 4 missing")
    return world


def shared() -> World:
    """As ``moving``, the source shared with a child until it was written again."""
    world = moving()
    world.fork()
    for page in (20, 21):
        world.write(page)
    return world


def swapped() -> World:
    """As ``moving``, the source swapped out."""
    world = moving()
    run(world, "madvise 20 2 pageout")
    return world


def huge() -> World:
    """A huge page at page 32, written, and a registered place for it at page 0."""
    world = World()
    world.mmap(0, 16)
    world.mmap(32, 16)
    run(world, "madvise 32 16 hugepage")
    for page in range(32, 40):
        world.write(page)
    run(world, "uffd_register 0 16 missing")
    return world


def split() -> World:
    """As ``huge``, mapped by PTEs."""
    world = huge()
    world.image.huge_memory.split_huge_pmd_address(world.vma(32), world.address(32))
    return world


def tokens_of(world: World) -> list[int]:
    """What every page of the process holds, as one sorted list: nothing may get lost or be there twice."""
    return sorted(token for content in world.contents().values() for token in content.values())


MOVE = Op("uffd_move", 0, (0, 20, 2, 0))
MOVE_HUGE = Op("uffd_move", 0, (0, 32, 8, 0))
MOVE_PART = Op("uffd_move", 0, (1, 34, 2, 0))


@pytest.mark.parametrize(
    ("make", "move", "beside"),
    [
        (moving, MOVE, Op("gup_fast", 0, (20, PIN_RW, 0))),
        (moving, MOVE, Op("gup_fast", 0, (21, FOLL_PIN, 0))),
        (moving, MOVE, Op("gup_fast", 0, (20, 0, 0))),
        (moving, MOVE, Op("gup_slow", 0, (21, PIN_RW, 0))),
        (moving, MOVE, Op("reclaim", 0, (20,))),
        (moving, MOVE, Op("reclaim", 0, (21,))),
        (moving, MOVE, Op("migrate", 0, (20,))),
        (moving, MOVE, Op("migrate", 0, (21,))),
        (moving, MOVE, Op("fork", 0, (1,))),
        (moving, MOVE, Op("uffd_move", 0, (2, 20, 2, 0))),
        (moving, MOVE, Op("uffd_move", 0, (0, 20, 2, 0))),
        (moving, MOVE, Op("madvise", 0, (20, 2, MADV_PAGEOUT))),
        (moving, MOVE, Op("read", 0, (21,))),
        (moving, MOVE, Op("read", 0, (0,))),
        (shared, MOVE, Op("exit", 1, ())),
        (shared, MOVE, Op("migrate", 0, (21,))),
        (swapped, MOVE, Op("read", 0, (20,))),
        (swapped, MOVE, Op("swap_readahead", 0, (20,))),
        (swapped, MOVE, Op("swap_readahead", 0, (21,))),
        (swapped, MOVE, Op("gup_slow", 0, (21, PIN_RW, 0))),
        (swapped, MOVE, Op("fork", 0, (1,))),
        (huge, MOVE_HUGE, Op("gup_fast", 0, (35, PIN_RW, 0))),
        (huge, MOVE_HUGE, Op("migrate", 0, (35,))),
        (huge, MOVE_HUGE, Op("reclaim", 0, (35,))),
        (huge, MOVE_HUGE, Op("fork", 0, (1,))),
        (huge, MOVE_HUGE, Op("uffd_move", 0, (3, 33, 2, 0))),
        (huge, MOVE_PART, Op("gup_fast", 0, (34, PIN_RW, 0))),
        (huge, MOVE_PART, Op("migrate", 0, (35,))),
        (huge, MOVE_PART, Op("uffd_move", 0, (5, 35, 2, 0))),
        (split, MOVE_PART, Op("reclaim", 0, (35,))),
        (split, MOVE_PART, Op("migrate", 0, (35,))),
        (split, MOVE_PART, Op("uffd_move", 0, (5, 35, 2, 0))),
    ],
    ids=lambda value: f"{value.kind}-{value.args}" if isinstance(value, Op) else value.__name__,
)
def test_moving_beside(make: Callable[[], World], move: Op, beside: Op) -> None:
    """No page is lost, doubled or left where the rmap does not look for it; a pin stays with its page."""
    before = tokens_of(make())
    for world, outcomes, where in every_cut(make, (move, beside)):
        moved = outcomes[0].ret
        other = beside.kind == "uffd_move"
        length = move.args[2]
        allowed = (*range(1, length + 1), -EBUSY, -ENOENT, -EEXIST) if other else (length, 1, -EBUSY)
        assert moved in allowed, f"{where}: the move gave {moved}"
        assert tokens_of(world) == before, where
        check_all(world)
        if 0 in world.machine.pins:
            pin = world.machine.pins[0]
            holders = [
                page
                for page in world.contents()
                if world.pte(page) and frame(world, page) == pin_frame(world)
            ]
            if pin.flags & FOLL_PIN:
                assert holders == [beside.args[0]], f"{where}: the pinned page is at {holders}"


def frame(world: World, page: int) -> int:
    """The frame that is mapped at a page, 0 for none."""
    try:
        folio = world.folio(page)
    except AssertionError:
        return 0
    pte = world.pte(page) >> 12
    return pte if folio.order == 0 else pte + (0 if pte != folio.pfn else page % 8)


def pin_frame(world: World) -> int:
    pin = world.machine.pins[0]
    return pin.folio.pfn + pin.page


@pytest.mark.parametrize(
    "beside", [Op("gup_fast", 0, (20, PIN_RW, 0)), Op("migrate", 0, (20,)), Op("uffd_move", 0, (2, 20, 2, 0))]
)
def test_moving_beside_interrupted(beside: Op) -> None:
    """The same with both interrupted."""
    before = tokens_of(moving())
    for world, _, where in every_two_cuts(moving, (MOVE, beside), step=3):
        assert tokens_of(world) == before, where
        check_all(world)


@pytest.mark.parametrize(
    "beside", [Op("write", 0, (20, 1)), Op("write", 0, (21, 1))], ids=["first", "second"]
)
def test_moving_what_is_written(beside: Op) -> None:
    """A write to the old place is in the page that moves, or in a new page that stands there then."""
    for world, outcomes, where in every_cut(moving, (MOVE, beside)):
        assert outcomes[1].ret == 0
        places = [page for page in world.contents() if 1 in world.contents()[page]]
        assert places in ([beside.args[0]], [beside.args[0] - 20]), where
        check_all(world)


def filling() -> World:
    """Pages 0 and 1 are written, 4 to 7 registered and empty."""
    world = World()
    world.mmap(0, 8)
    for page in (0, 1):
        world.write(page)
    run(world, "uffd_register 4 4 missing")
    return world


COPY = Op("uffd_copy", 0, (4, 0, 2, 0))


@pytest.mark.parametrize(
    ("beside", "allowed"),
    [
        (Op("uffd_copy", 0, (4, 1, 2, 0)), {(2, -EEXIST), (-EEXIST, 1), (1, 1), (-EEXIST, 2), (2, 1)}),
        (Op("uffd_zeropage", 0, (5, 1)), {(1, 1), (2, -EEXIST)}),
        (Op("read", 0, (5,)), {(2, 0), (2, SIGBUS)}),
        (Op("write", 0, (4, 0)), {(2, 0), (2, SIGBUS)}),
        (Op("munmap", 0, (4, 4)), {(2, 0), (-ENOENT, 0), (1, 0)}),
        (Op("uffd_unregister", 0, (4, 4)), {(2, 0), (-ENOENT, 0)}),
        (Op("madvise", 0, (0, 1, MADV_DONTNEED)), {(2, 0)}),
        (Op("madvise", 0, (0, 2, MADV_PAGEOUT)), {(2, 0)}),
        (Op("migrate", 0, (0,)), {(2, 1), (2, 0)}),
        (Op("fork", 0, (1,)), {(2, 0)}),
    ],
    ids=lambda value: value.kind if isinstance(value, Op) else "",
)
def test_filling_beside(beside: Op, allowed: set[tuple[int, int]]) -> None:
    """Pages are filled once, whoever comes first; the source may go away meanwhile."""
    for world, outcomes, where in every_cut(filling, (COPY, beside)):
        assert (outcomes[0].ret, outcomes[1].ret) in allowed, where
        check_all(world)


def protecting() -> World:
    """Four written pages, shared with a child, registered for write protection."""
    world = World()
    world.mmap(0, 4)
    for page in range(4):
        world.write(page)
    run(world, "uffd_register 0 4 wp")
    return world


@pytest.mark.parametrize("page", [0, 3])
def test_protecting_beside_a_write(page: int) -> None:
    """After the call returned no write gets through; one that did has been before it."""
    for world, outcomes, where in every_cut(
        protecting, (Op("uffd_wp", 0, (0, 4, ON)), Op("write", 0, (page, 1)))
    ):
        assert outcomes[0].ret == 0
        assert outcomes[1].ret in (0, SIGBUS)
        content = world.content(page)
        assert content is not None
        assert (1 in content) is (outcomes[1].ret == 0), where
        assert entries(world, 0, 4) == "page+ page+ page+ page+", where
        run(world, f"write {page} 2 = SIGBUS")
        check_all(world)


def test_a_copy_is_made_only_when_no_cpu_can_write_the_original() -> None:
    """Protection is lifted, not flushed yet, and a page that is shared with a child is copied: a write is not lost.

    mm->tlb_flush_pending: CPU 1 still has the page as writable when CPU 2 copies it.
    """
    world = protecting()
    mm = world.mm()
    write = Op("write", 0, (0, 1))
    assert world.do("write", 0, 0) == 0
    key = (mm.asid, world.address(0) >> 12)
    writable = world.machine.tlbs[0].entries[key]
    world.fork()
    world.machine.tlbs[1].entries[key] = (
        writable  # protected without a flush, as uffd_wp has it before its end
    )
    mm.tlb_flush_pending = 1
    assert world.do(*write[:1], *write.args) == 0
    assert key not in world.machine.tlbs[1].entries
    mm.tlb_flush_pending = 0


@pytest.mark.parametrize(
    "beside",
    [
        Op("fork", 0, (1,)),
        Op("gup_fast", 0, (1, FOLL_WRITE, 0)),
        Op("gup_fast", 0, (1, PIN_RW, 0)),
        Op("reclaim", 0, (1,)),
        Op("migrate", 0, (1,)),
        Op("uffd_unregister", 0, (0, 4)),
        Op("mremap", 0, (0, 4, 4, 3, 32)),
        Op("madvise", 0, (0, 4, MADV_DONTNEED)),
    ],
    ids=lambda op: op.kind,
)
def test_protecting_beside(beside: Op) -> None:
    """The state is sound, and what is protected afterwards traps."""
    for world, outcomes, _ in every_cut(protecting, (Op("uffd_wp", 0, (0, 4, ON)), beside)):
        assert outcomes[0].ret in (0, -ENOENT)
        check_all(world)


@pytest.mark.parametrize(
    "points",
    [
        ("uffd.locked", "uffd.folio_allocated", "uffd.copied", "uffd.pte_locked"),
        ("uffd.source_missing",),
        ("uffd.fault",),
        ("uffd_move.entries_read", "uffd_move.folio_locked", "uffd_move.ptes_locked", "uffd_move.pte_cleared",
         "uffd_move.folio_moved", "uffd_move.pte_moved"),
        ("uffd_move.swap_folio_found",),
    ],
)  # fmt: skip
def test_points_are_passed(points: tuple[str, ...]) -> None:
    """Every preemption point of userfaultfd is one that a call passes."""
    world = moving()
    seen: set[str] = set()

    def collide(*ops: Op) -> None:
        world.collide(ops)
        seen.update(point for _, point in world.machine.sched.trace)

    collide(Op("uffd_copy", 0, (2, 20, 1, 0)), Op("read", 0, (3,)))
    collide(Op("uffd_copy", 0, (3, 23, 1, 0)), Op("read", 0, (20,)))
    collide(MOVE, Op("read", 0, (23,)))
    run(world, "write 20 0; madvise 0 4 dontneed; madvise 20 1 pageout; swap_readahead 20 = 1")
    collide(MOVE, Op("read", 0, (23,)))
    assert set(points) <= seen
    assert set(points) <= POINTS.keys()


def test_somebody_has_the_lock() -> None:
    """The move waits for the folio lock, with a reference, and looks again."""
    waited = 0
    for world, outcomes, where in every_cut(moving, (Op("migrate", 0, (20,)), MOVE), both=False):
        waited += "uffd_move.folio_found" in {point for _, point in world.machine.sched.trace}
        assert outcomes[1].ret == 2, where
        check_all(world)
    assert waited


@pytest.mark.parametrize(
    "call",
    [Op("uffd_register", 0, (0, 4, 1)), Op("uffd_wp", 0, (20, 4, ON)), Op("uffd_copy", 0, (20, 30, 2, 0))],
    ids=lambda call: call.kind,
)
def test_a_close_beside_a_call(call: Op) -> None:
    """The call holds the file: what is registered is so until it is done, and then nobody's that was closed."""

    def make() -> World:
        world = World()
        world.mmap(0, 4)
        world.mmap(20, 4)
        world.mmap(30, 4)
        run(world, "uffd_register 20 4 missing|wp")
        return world

    for world, _, where in every_cut(make, (call, Op("uffd_close", 0, ()))):
        for page in (0, 20):
            ctx = world.vma(page).uffd_ctx
            assert ctx is None or ctx is world.mm().userfaultfd, where
        run(world, "uffd_unregister 0 24")
        check_all(world)


def test_a_source_that_goes_before_its_folio_is_moved() -> None:
    """The entries are compared again once both tables are locked: what was dropped meanwhile does not come back."""
    drop = Op("madvise", 0, (20, 2, MADV_DONTNEED))
    world = moving()
    outcomes = world.collide((MOVE, drop), (Switch(0, "uffd_move.folio_locked", 1), Switch(1, "", TO_THE_END)))
    assert [outcome.ret for outcome in outcomes] == [-ENOENT, 0]
    assert entries(world, 0, 2) == entries(world, 20, 2) == "none none"
    check_all(world)


def test_a_zero_page_that_has_moved_is_nowhere_cached() -> None:
    """Who reads the source afterwards looks for it."""
    world = moving()
    run(world, "read 22; uffd_move 2 22 1 none = 1")
    key = world.mm().asid, world.address(22) >> PAGE_SHIFT
    assert not any(key in tlb.entries for tlb in world.machine.tlbs)
