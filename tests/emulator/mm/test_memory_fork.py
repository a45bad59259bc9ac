"""copy_page_range: what a child gets of each kind of entry, pages that may be pinned, failures half-way."""

from __future__ import annotations

import pytest

from emulator.hw.pte import (
    ACCESSED,
    DIRTY,
    MARKER_GUARD,
    MARKER_UFFD_WP,
    PRESENT,
    SOFTLEAF_MARKER,
    SOFTLEAF_MIGRATION_READ,
    SPECIAL,
    SWP_EXCLUSIVE,
    is_guard,
    is_swap,
    mk_softleaf,
    softleaf_type,
)
from emulator.hw.pte import RW as PTE_RW
from emulator.mm_types import VM_MAYBE_GUARD
from emulator.uapi import ENOMEM, MAP_FIXED, MAP_SHARED, PROT_READ
from emulator.workload import Op
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World
from tests.emulator.mm.world import PIN_RW, anon_vma_of, faulted, huge, isolated
from tests.emulator.references import check_all, every_cut

pytestmark = pytest.mark.live


def test_pages_become_read_only_on_both_sides() -> None:
    """Shared, not exclusive, counted twice; the child's entry is old."""
    world = faulted()
    world.fork()
    folio = world.folio(0)
    assert folio.anon_exclusive == 0
    assert (folio.refcount, folio.mapcounts) == (2, [2])
    for proc in (0, 1):
        assert world.pte(0, proc) & (PRESENT | PTE_RW | DIRTY) == PRESENT | DIRTY
    assert not world.pte(0, 1) & ACCESSED
    check_all(world)


def test_the_zero_page_is_copied_uncounted() -> None:
    """As an entry like any other, without references."""
    world = faulted()
    assert world.do("read", 1) == 0
    world.fork()
    assert world.pte(1, 1) & SPECIAL
    check_all(world)


def test_a_swap_entry_has_one_more_user() -> None:
    """Neither side is exclusive from now on."""
    world = faulted()
    assert world.do("reclaim", 0) == 1
    assert world.pte(0) & SWP_EXCLUSIVE
    world.fork()
    for proc in (0, 1):
        assert is_swap(world.pte(0, proc))
        assert not world.pte(0, proc) & SWP_EXCLUSIVE
    assert world.machine.swap.count == {1: 2}
    check_all(world)


def test_a_migration_entry_becomes_readable() -> None:
    """On both sides: when it is a page again, writing to it must fault."""
    world = faulted()
    folio = isolated(world, 0)
    world.image.rmap_unmap.try_to_migrate(folio)
    world.fork()
    assert [softleaf_type(world.pte(0, proc)) for proc in (0, 1)] == [SOFTLEAF_MIGRATION_READ] * 2
    world.image.migrate.remove_migration_ptes(folio, folio)
    assert folio.mapcounts == [2]
    assert folio.anon_exclusive == 0
    assert not world.pte(0) & PTE_RW


def test_guards_are_copied_and_other_markers_not() -> None:
    """A guard region guards the child too; userfaultfd marks mean nothing there."""
    world = faulted()
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(0), 0)
    table.set(1, mk_softleaf(SOFTLEAF_MARKER, MARKER_GUARD))
    table.set(2, mk_softleaf(SOFTLEAF_MARKER, MARKER_UFFD_WP))
    world.fork()
    assert is_guard(world.pte(1, 1))
    assert world.pte(2, 1) == 0


@pytest.mark.parametrize("flag", [0, VM_MAYBE_GUARD])
def test_what_faults_can_find_again_is_not_copied(flag: int) -> None:
    """An unfaulted mapping has nothing that the file has not; with guards in it it must be copied all the same."""
    world = World()
    world.mmap(0, 2, RW, MAP_SHARED | MAP_FIXED, 1)
    world.write(0)
    world.vma(0).vm_flags |= flag
    world.fork()
    assert bool(world.pte(0, 1) & PRESENT) is bool(flag)
    if flag:
        assert world.pte(0, 1) & PTE_RW  # a shared page stays writable, and is clean in the child
        assert not world.pte(0, 1) & DIRTY
        assert world.pte(0) & DIRTY
    check_all(world)


def test_file_pages_of_a_faulted_mapping_are_copied() -> None:
    """Because some of its pages are private copies, all entries are copied; the file's are counted."""
    world = World()
    world.mmap(0, 2, RW, PRIVATE_FIXED, 1)
    world.write(0)
    assert world.do("read", 1) == 0
    world.fork()
    assert world.folio(1, 1) is world.folio(1)
    assert world.folio(1).mapcounts == [2]
    check_all(world)


# ---- pages that may be pinned


def test_a_pinned_page_is_copied_at_once() -> None:
    """The parent keeps the page that the device writes to, writable and exclusive; the child has a copy of its own."""
    world = faulted()
    assert world.do("gup_slow", 0, PIN_RW, 0) == 0
    folio = world.folio(0)
    world.fork()
    assert world.folio(0) is folio
    assert folio.anon_exclusive == 1
    assert world.pte(0) & PTE_RW
    copy = world.folio(0, 1)
    assert copy is not folio
    assert copy.content == folio.content
    assert copy.mapping is anon_vma_of(world, 0, 1)
    assert world.pte(0, 1) & PTE_RW
    world.do("pin_write", 0, 2)
    assert world.content(0, 1) != world.content(0)
    check_all(world)


def test_a_pinned_page_among_others() -> None:
    """Only the pinned one is copied; the walk goes on where it stopped."""
    world = World()
    world.mmap(0, 4)
    for page in range(4):
        world.write(page)
    for label, page in enumerate((1, 2)):
        assert world.do("gup_slow", page, PIN_RW, label) == 0
    world.fork()
    assert [world.folio(page, 1) is world.folio(page) for page in range(4)] == [True, False, False, True]
    assert world.contents(1) == world.contents()
    check_all(world)


def test_a_huge_page_that_is_pinned_is_split() -> None:
    """Its pages may be exclusive or shared one by one only when PTEs map them; all of them are copied."""
    world = huge()
    assert world.do("gup_slow", 2, PIN_RW, 0) == 0
    folio = world.folio(0)
    world.fork()
    assert folio.mapcounts == [1] * 8
    assert folio.entire_mapcount == 0
    assert all(world.folio(page, 1).order == 0 for page in range(8))
    assert world.contents(1) == world.contents()
    check_all(world)


def test_no_memory_for_the_copy() -> None:
    """fork fails; the parent is as before, pin and all."""
    for nth in range(1, 30):
        world = faulted()
        assert world.do("gup_slow", 0, PIN_RW, 0) == 0
        ret = world.do("fork", 1, fail_nth=nth)
        check_all(world)
        assert world.mm().write_protect_seq % 2 == 0
        assert world.folio(0).anon_exclusive == 1
        if not world.last.injected:
            assert ret == 0
            break
        assert ret == -ENOMEM
        assert list(world.machine.procs) == [0]
        world.write(0, 1)
    assert nth > 8


@pytest.mark.parametrize("nth", range(1, 16))
def test_no_memory_for_tables_of_a_huge_page(nth: int) -> None:
    """Tables on the way to the PMD, and the one to be deposited for it."""
    world = huge()
    ret = world.do("fork", 1, fail_nth=nth)
    assert ret == (-ENOMEM if world.last.injected else 0)
    check_all(world)


def test_write_protect_seq_is_odd_while_copying() -> None:
    """GUP-fast pins fail while entries lose their write permission; a shared mapping has nothing to protect."""
    world = faulted()
    world.mmap(8, 1, PROT_READ, MAP_SHARED | MAP_FIXED, 1)
    seen: list[tuple[str, int]] = []
    world.machine.sched.point = lambda name: seen.append((name, world.mm().write_protect_seq))
    world.fork()
    inside = [seq for name, seq in seen if name in ("fork.pte_copied", "fork.pte_write_protected")]
    assert inside
    assert all(seq % 2 for seq in inside)
    assert world.mm().write_protect_seq == 2


RACES = {
    "reclaim": Op("reclaim", 0, (0,)),
    "migrate": Op("migrate", 0, (0,)),
    "pin_fast": Op("gup_fast", 0, (0, PIN_RW, 1)),
    "pin_slow": Op("gup_slow", 0, (0, PIN_RW, 1)),
    "read_fast": Op("gup_fast", 0, (0, 2, 1)),
    "unpin": Op("unpin", 0, (0,)),
    "write": Op("write", 0, (0, 1)),
    "dontneed": Op("madvise", 0, (0, 2, 4)),
}


def plain() -> World:
    return faulted(2)


def pinned() -> World:
    world = faulted(2)
    assert world.do("gup_slow", 0, PIN_RW, 0) == 0
    return world


def pinned_huge() -> World:
    world = huge()
    assert world.do("gup_slow", 0, PIN_RW, 0) == 0
    return world


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("make", [plain, pinned, huge, pinned_huge])
def test_fork_beside(make: object, race: str) -> None:
    """A fork interrupted anywhere: counts right, and whoever is pinned afterwards is exclusive to the parent."""
    assert callable(make)
    for world, outcomes, where in every_cut(make, (Op("fork", 0, (2,)), RACES[race])):
        assert outcomes[0].ret == 0, where
        check_all(world)
        for pin in world.machine.pins.values():
            if pin.flags & 2 and race != "dontneed":
                folio = pin.folio
                assert folio.anon_exclusive & (1 | 1 << pin.page), where
                assert folio.mapcounts[pin.page] + folio.entire_mapcount == 1, where
