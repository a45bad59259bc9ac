"""Write protection by userfaultfd: what is protected, how a write ends, and what becomes of it in all the rest."""

from __future__ import annotations

import pytest

from emulator.geometry import LEVEL_PMD
from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import RW as PTE_RW
from emulator.hw.pte import UFFD_WP
from emulator.uapi import (
    EFAULT,
    ENOMEM,
    SIGBUS,
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
    UFFD_FEATURE_WP_UNPOPULATED,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE
from tests.emulator.kernel_world import World
from tests.emulator.mm.uffd_world import (
    ON,
    WP,
    entries,
    entry,
    modes,
    registered,
    run,
    written,
)
from tests.emulator.mm.world import PIN_RW, is_huge
from tests.emulator.references import check_all

pytestmark = pytest.mark.live

MOVE, DONTUNMAP = 3, 7  # MREMAP_MAYMOVE | MREMAP_FIXED, and | MREMAP_DONTUNMAP
UNPOPULATED = UFFD_FEATURE_WP_UNPOPULATED


# ---- protecting


@pytest.mark.parametrize(
    ("calls", "after"),
    [
        ("uffd_wp 0 4 wp", "page+ zero+ none none"),
        ("uffd_wp 0 4 wp; uffd_wp 0 4 none", "page zero none none"),
        ("uffd_wp 0 1 wp; uffd_wp 1 1 none", "page+ zero none none"),
        ("uffd_wp 0 4 wp; write 0 0 = SIGBUS; read 0", "page+ zero+ none none"),
        ("uffd_wp 0 4 wp; write 1 0 = SIGBUS; read 1", "page+ zero+ none none"),
        ("uffd_wp 0 4 wp; write 2 0", "page+ zero+ page none"),
        ("uffd_wp 0 4 wp; uffd_wp 0 4 none; write 0 0; write 1 0", "page page none none"),
        ("uffd_wp 0 4 wp; madvise 0 2 dontneed; write 0 0", "page none none none"),
        ("uffd_wp 0 1 wp; mprotect 0 4 r; mprotect 0 4 rw; write 0 0 = SIGBUS", "page+ zero none none"),
        ("mprotect 0 4 r; uffd_wp 0 4 wp; mprotect 0 4 rw; write 0 0 = SIGBUS", "page+ zero+ none none"),
        (
            "mprotect 0 4 r; uffd_wp 0 4 wp; uffd_wp 0 4 none; mprotect 0 4 rw; write 0 0",
            "page zero none none",
        ),
        ("uffd_wp 0 4 wp; uffd_unregister 0 4; write 0 0; write 1 0", "page page none none"),
        ("uffd_wp 0 4 wp; uffd_close; write 0 0", "page zero none none"),
        ("uffd_wp 0 4 wp; uffd_register 0 8 missing; write 0 0", "page+ zero+ none none"),
        ("uffd_wp 0 4 wp; madvise 0 1 pageout", "swap+ zero+ none none"),
        ("uffd_wp 0 4 wp; madvise 0 1 pageout; write 0 0 = SIGBUS", "page+ zero+ none none"),
        ("uffd_wp 0 4 wp; madvise 0 1 pageout; read 0; write 0 0 = SIGBUS", "page+ zero+ none none"),
        ("madvise 0 1 pageout; uffd_wp 0 4 wp; write 0 0 = SIGBUS", "page+ zero+ none none"),
        ("uffd_wp 0 4 wp; madvise 0 1 pageout; uffd_wp 0 4 none; write 0 0", "page zero none none"),
        ("uffd_wp 0 4 wp; migrate 0 = 1; write 0 0 = SIGBUS", "page+ zero+ none none"),
        ("uffd_wp 0 4 wp; uffd_poison 2 1 = 1; uffd_wp 2 1 wp", "page+ zero+ poison none"),
    ],
    ids=[
        "on",
        "off",
        "off_elsewhere",
        "write",
        "write_zero",
        "empty_pages_are_not",
        "write_after_off",
        "dontneed_forgets",
        "mprotect_keeps",
        "protected_while_read_only",
        "released_while_read_only",
        "unregister_releases",
        "close_releases",
        "without_effect_in_another_mode",
        "pageout_keeps",
        "swapped_in_by_a_write",
        "swapped_in_by_a_read",
        "a_swapped_page_is_protected",
        "a_swapped_page_is_released",
        "migration_keeps",
        "poison_stays",
    ],
)
def test_protection(calls: str, after: str) -> None:
    """Page 0 is written, page 1 the zero page, the others are empty; all registered for write protection."""
    world = registered(WP, 0)
    run(world, f"read 1; {calls}")
    assert entries(world, 0, 4) == after
    check_all(world)


@pytest.mark.parametrize(
    ("calls", "after"),
    [
        ("uffd_wp 0 4 wp", "page+ marker marker marker"),
        ("uffd_wp 0 4 wp; uffd_wp 1 2 none", "page+ none none marker"),
        ("uffd_wp 0 4 wp; read 1; write 1 0 = SIGBUS", "page+ zero+ marker marker"),
        ("uffd_wp 0 4 wp; write 2 0 = SIGBUS; write 2 0 = SIGBUS", "page+ marker page+ marker"),
        ("uffd_wp 0 4 wp; write 2 0 = SIGBUS; uffd_wp 2 1 none; write 2 0", "page+ marker page marker"),
        ("uffd_wp 0 4 wp; madvise 0 4 dontneed", "none none none none"),
        ("uffd_wp 0 4 wp; mprotect 0 4 r; mprotect 0 4 rw", "page+ marker marker marker"),
        ("uffd_wp 0 4 wp; uffd_unregister 0 2", "page none marker marker"),
        (
            "uffd_wp 0 4 wp; uffd_register 0 8 missing|wp; read 1 = SIGBUS; write 1 0 = SIGBUS",
            "page+ marker marker marker",
        ),
        ("uffd_wp 0 4 wp; uffd_copy 1 0 1 none = 1; write 1 0", "page+ page marker marker"),
        ("uffd_wp 0 4 wp; uffd_copy 1 0 1 wp = 1; write 1 0 = SIGBUS", "page+ page+ marker marker"),
        ("uffd_wp 0 4 wp; uffd_zeropage 1 1 = EEXIST", "page+ marker marker marker"),
        ("uffd_wp 0 4 wp; uffd_poison 1 1 = EEXIST", "page+ marker marker marker"),
        ("uffd_wp 0 4 wp; uffd_register 0 8 missing; write 1 0 = SIGBUS", "page+ none marker marker"),
        (
            "uffd_wp 0 4 wp; uffd_register 0 8 missing; uffd_unregister 0 8; read 1; write 1 0",
            "page+ page marker marker",
        ),
    ],
    ids=[
        "on",
        "off",
        "read",
        "write_brings_the_page",
        "released",
        "dontneed_forgets",
        "mprotect_keeps",
        "unregister_releases",
        "missing_comes_first",
        "copy_releases",
        "copy_protects",
        "no_zeropage",
        "no_poison",
        "another_mode",
        "left_over",
    ],
)
def test_protection_of_empty_pages(calls: str, after: str) -> None:
    """With WP_UNPOPULATED a marker stands where nothing is mapped. Page 0 is written, the others are empty."""
    world = registered(WP, 0, features=UNPOPULATED)
    run(world, calls)
    assert entries(world, 0, 4) == after
    check_all(world)


@pytest.mark.parametrize(
    ("calls", "after"),
    [
        ("uffd_wp 0 8 wp = ENOENT", "page+ page+ page page"),
        ("uffd_wp 4 2 wp = ENOENT", "page page page page"),
        ("uffd_wp 20 2 wp = ENOENT", "page page page page"),
        ("munmap 2 1; uffd_register 3 1 wp; uffd_wp 0 4 wp", "page+ page+ none page+"),
        ("uffd_register 2 2 missing; uffd_wp 0 4 wp = ENOENT", "page+ page+ page page"),
    ],
    ids=["up_to_what_is_not", "not_registered", "not_mapped", "holes", "other_mode"],
)
def test_range(calls: str, after: str) -> None:
    """Pages 0 to 3 are written, 0 and 1 registered: the call goes as far as VMAs are registered, and over holes."""
    world = written(0, 1, 2, 3)
    run(world, f"uffd_register 0 2 wp; {calls}")
    assert entries(world, 0, 4) == after


def test_released_pages_become_writable_at_once() -> None:
    """No further fault for a page that is ours alone; one for the zero page."""
    world = registered(WP, 0)
    run(world, "read 1; uffd_wp 0 2 wp; uffd_wp 0 2 none")
    assert world.pte(0) & PTE_RW
    assert not world.pte(1) & PTE_RW


def test_no_tlb_lets_a_write_through() -> None:
    """The CPU had the page writable; its TLB is flushed before the call returns."""
    world = registered(WP, 0)
    world.write(0)
    run(world, "uffd_wp 0 1 wp; write 0 0 = SIGBUS")


def test_protecting_without_memory_for_tables() -> None:
    """Markers need page tables: what came before the failure is protected."""
    world = World()
    world.mmap(0, 64)
    world.write(0)
    run(world, "userfaultfd wp_unpopulated; uffd_register 0 64 wp")
    assert world.do("uffd_wp", 0, 64, ON, fail_nth=2) == -ENOMEM
    assert entries(world, 0, 2) == "page+ marker"
    assert entry(world, 63) == "none"
    assert world.mm().tlb_flush_pending == 0
    check_all(world)


# ---- the kernel's own accesses


@pytest.mark.parametrize("kind", ["gup_fast", "gup_slow"])
@pytest.mark.parametrize(
    ("flags", "result"), [(0, 0), (FOLL_PIN, 0), (FOLL_WRITE, -EFAULT), (PIN_RW, -EFAULT)]
)
def test_gup(kind: str, flags: int, result: int) -> None:
    """A page that is protected is not given out for writing; the lockless walk sees it by the write bit."""
    world = registered(WP, 0)
    run(world, f"uffd_wp 0 1 wp; {kind} 0 {flags} 0 = {result}")
    assert entry(world, 0) == "page+"
    check_all(world)


def test_gup_that_unshares_is_no_write() -> None:
    """A pin for reading copies a page that is shared with a child: nobody is told, and the copy is protected too."""
    world = registered(WP, 0)
    run(world, "uffd_wp 0 1 wp")
    world.fork()
    shared = world.folio(0)
    run(world, "gup_slow 0 pin 0; write 0 0 = SIGBUS")
    assert world.folio(0) is not shared
    assert entry(world, 0) == "page+"
    check_all(world)


# ---- huge pages


def huge(features: int = 0) -> World:
    """A huge page at page 0 that is registered for write protection."""
    world = World()
    world.mmap(0, 16)
    run(
        world,
        f"madvise 0 16 hugepage; write 3 0; userfaultfd {features}; uffd_register 0 16 wp",
    )
    assert is_huge(world, 0)
    return world


@pytest.mark.parametrize(
    ("calls", "still_huge"),
    [
        ("uffd_wp 0 8 wp; write 3 0 = SIGBUS; read 3", True),
        ("uffd_wp 0 8 wp; uffd_wp 0 8 none; write 3 0", True),
        ("uffd_wp 0 8 wp; uffd_unregister 0 16; write 3 0", True),
        ("uffd_wp 2 2 wp; write 3 0 = SIGBUS; write 4 0", False),
        ("uffd_wp 0 8 wp; uffd_wp 4 1 none; write 3 0 = SIGBUS; write 4 0", False),
        ("uffd_wp 0 8 wp; mprotect 0 16 r; mprotect 0 16 rw; write 3 0 = SIGBUS", True),
        ("uffd_wp 0 8 wp; gup_slow 3 write 0 = EFAULT; gup_fast 3 pin|write 0 = EFAULT", True),
        ("uffd_wp 0 8 wp; mprotect 0 1 r; write 3 0 = SIGBUS", False),
        ("uffd_wp 0 8 wp; reclaim 3 = 1; write 3 0 = SIGBUS", False),
        ("uffd_wp 0 8 wp; migrate 3 = 1; write 3 0 = SIGBUS", False),
    ],
    ids=[
        "whole",
        "released",
        "unregistered",
        "part",
        "part_released",
        "mprotect_keeps",
        "gup",
        "split_keeps",
        "swap_keeps",
        "migration_keeps",
    ],
)
def test_huge_pages(calls: str, still_huge: bool) -> None:
    """One is protected as a whole, or split where a part of it is."""
    world = huge()
    run(world, calls)
    assert is_huge(world, 0) is still_huge
    check_all(world)


def test_markers_keep_huge_pages_away() -> None:
    """Where empty pages are protected there is a page table, and a huge page cannot come."""
    world = World()
    world.mmap(0, 8)
    run(
        world,
        "madvise 0 8 hugepage; userfaultfd wp_unpopulated; uffd_register 0 8 wp; "
        "uffd_wp 0 8 wp; write 0 0 = SIGBUS; read 1",
    )
    assert entries(world, 0, 3) == "page+ zero+ marker"
    check_all(world)


# ---- fork


@pytest.mark.parametrize("shared", [False, True], ids=["page", "huge"])
@pytest.mark.parametrize(("features", "result"), [(0, 0), (UFFD_FEATURE_EVENT_FORK, SIGBUS)])
def test_fork(shared: bool, features: int, result: int) -> None:
    """The child's pages are protected with EVENT_FORK only; the parent's stay so."""
    world = huge(features) if shared else registered(WP, 3, features=features)
    run(world, "uffd_wp 0 8 wp")
    world.fork()
    run(world, f"write 3 0 = {result}", proc=1)
    run(world, "write 3 0 = SIGBUS")
    check_all(world)


@pytest.mark.parametrize(("features", "result"), [(0, 0), (UFFD_FEATURE_EVENT_FORK, SIGBUS)])
def test_fork_of_a_pinned_page(features: int, result: int) -> None:
    """The child's copy is protected like the original."""
    world = registered(WP, 0, features=features)
    run(world, "gup_fast 0 pin|write 0; uffd_wp 0 1 wp")
    world.fork()
    assert world.folio(0, 1) is not world.folio(0)
    run(world, f"write 0 0 = {result}", proc=1)
    check_all(world)


@pytest.mark.parametrize(
    ("features", "after"), [(0, "swap none none"), (UFFD_FEATURE_EVENT_FORK, "swap+ marker none")]
)
def test_fork_of_what_is_not_present(features: int, after: str) -> None:
    """Swap entries lose their protection, markers are not copied; but with EVENT_FORK they do and are."""
    world = registered(WP, 0, features=features | UNPOPULATED)
    run(world, "uffd_wp 0 2 wp; madvise 0 1 pageout")
    world.fork()
    assert entries(world, 0, 3, 1) == after
    assert entries(world, 0, 3) == "swap+ marker none"
    check_all(world)


def test_page_tables_of_an_unfaulted_vma_are_copied() -> None:
    """Markers alone are worth it: the pages would not be protected otherwise (VM_COPY_ON_FORK)."""
    world = registered(WP, features=UFFD_FEATURE_EVENT_FORK | UNPOPULATED)
    run(world, "uffd_wp 0 2 wp")
    assert world.vma(0).anon_vma is None
    world.fork()
    assert entries(world, 0, 3, 1) == "marker marker none"


# ---- mremap


@pytest.mark.parametrize(
    ("features", "before", "after"),
    [
        (0, "page+ zero+ none swap+", "page zero none swap"),
        (UNPOPULATED, "page+ zero+ marker swap+", "page zero none swap"),
        (UFFD_FEATURE_EVENT_REMAP | UNPOPULATED, "page+ zero+ marker swap+", "page+ zero+ marker swap+"),
    ],
    ids=["no_event", "no_event_markers", "event"],
)
@pytest.mark.parametrize("flags", [MOVE, DONTUNMAP])
@pytest.mark.parametrize("target", [16, 21])
def test_mremap(features: int, before: str, after: str, flags: int, target: int) -> None:
    """Without EVENT_REMAP a move takes the protection off, entry by entry: no page table moves as a whole."""
    world = registered(WP, 0, 3, features=features)
    run(world, "read 1; uffd_wp 0 4 wp; madvise 3 1 pageout")
    assert entries(world, 0, 4) == before
    run(world, f"mremap 0 8 8 {flags} {target} = {target}")
    assert entries(world, target, 4) == after
    run(world, f"write {target} 0 = {SIGBUS if '+' in after else 0}")
    if flags == DONTUNMAP:
        assert entries(world, 0, 4) == "none none none none"
        assert modes(world)[0] == (0, 8, "w")
    check_all(world)


@pytest.mark.parametrize(("features", "result"), [(0, 0), (UFFD_FEATURE_EVENT_REMAP, SIGBUS)])
def test_mremap_of_a_huge_page(features: int, result: int) -> None:
    """A huge page moves by its entry, without its protection or with it."""
    world = huge(features)
    run(world, "uffd_wp 0 8 wp; mremap 0 8 8 maymove|fixed 32 = 32")
    assert is_huge(world, 32)
    table, _, pmd = walk_slot(world.mm(), world.machine.geometry, world.address(32))
    assert table.level == LEVEL_PMD
    assert bool(pmd & UFFD_WP) is bool(features)
    run(world, f"write 35 0 = {result}")
    check_all(world)


def test_a_failed_move_moves_back_entry_by_entry() -> None:
    """On the way back no page table moves whole either: the old ones are still there."""
    world = registered(WP, *range(8), size=32)
    run(world, "uffd_wp 0 8 wp")
    tokens = world.contents()
    for nth in range(1, 16):
        if world.do("mremap", 0, 32, 32, MOVE, 64, fail_nth=nth) == 64:
            break
        assert world.contents() == tokens
        check_all(world)
    assert nth > 3


# ---- the kernel's own tests (tools/testing/selftests/mm/uffd-wp-mremap.c)


@pytest.mark.parametrize("size", ["page", "huge", "ptes_of_a_huge_page"])
@pytest.mark.parametrize("swapped", [False, True], ids=["present", "swapped"])
@pytest.mark.parametrize("event", [False, True], ids=["no_event", "event"])
@pytest.mark.parametrize("whole", [True, False], ids=["all", "half"])
def test_uffd_wp_mremap(size: str, swapped: bool, event: bool, whole: bool) -> None:
    """All pages or half of them are protected, paged out or not, and moved: protected after it with EVENT_REMAP only.

    The rows of the selftest for anonymous memory: small pages, a huge page, a huge page that is mapped by PTEs.
    """
    world = (
        huge(UFFD_FEATURE_EVENT_REMAP if event else 0)
        if size != "page"
        else registered(WP, *range(8), size=16, features=UFFD_FEATURE_EVENT_REMAP if event else 0)
    )
    if size == "ptes_of_a_huge_page":
        run(world, "mprotect 0 1 r; mprotect 0 1 rw")
    first = 0 if whole else 4
    run(world, f"uffd_wp {first} {8 - first} wp")
    if swapped:
        run(world, "madvise 0 8 pageout")
    run(world, "mremap 0 8 8 maymove|fixed 40 = 40")
    for page in range(8):
        armed = event and page >= first
        run(world, f"read {40 + page}; write {40 + page} 0 = {SIGBUS if armed else 0}")
    check_all(world)
