"""userfaultfd: which VMAs can be registered, how they are cut and merged, what a missing page does, filling them."""

from __future__ import annotations

import pytest

from emulator.hw.pte import RW as PTE_RW
from emulator.mm_types import VM_UFFD_FLAGS, VM_UFFD_MISSING
from emulator.uapi import (
    EBUSY,
    EINVAL,
    ENOMEM,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
    UFFD_FEATURE_WP_UNPOPULATED,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE
from tests.emulator.kernel_world import RW, World
from tests.emulator.mm.uffd_world import (
    MISSING,
    WP,
    entries,
    entry,
    modes,
    registered,
    run,
    trapped,
    written,
)
from tests.emulator.mm.world import anon_vma_of, is_huge, warnings
from tests.emulator.references import check_all

pytestmark = pytest.mark.live

PRIVATE, SHARED = MAP_PRIVATE | MAP_FIXED, MAP_SHARED | MAP_FIXED
MOVE = 3  # MREMAP_MAYMOVE | MREMAP_FIXED


# ---- contexts


@pytest.mark.parametrize(
    "calls",
    [
        "userfaultfd none; userfaultfd none = EBUSY",
        "userfaultfd wp_unpopulated; uffd_close; userfaultfd none",
        "uffd_close = EBADF",
        "uffd_register 0 8 missing; userfaultfd none = EBUSY",
    ],
    ids=["one_a_process", "another_after_the_first", "none_to_close", "made_by_the_first_use"],
)
def test_contexts(calls: str) -> None:
    """A process has one userfaultfd at most: the first use makes it, closing it makes room."""
    run(written(), calls)


def test_unknown_features() -> None:
    """They are refused, and no context is made."""
    world = written()
    assert world.do("userfaultfd", 1 << 30) == -EINVAL
    assert world.mm().userfaultfd is None


def test_close_ends_every_registration() -> None:
    """What is registered and protected is neither any more, and neighbours merge again."""
    world = written(0)
    run(
        world,
        "uffd_register 0 2 wp; uffd_register 4 2 missing; uffd_wp 0 2 wp; uffd_close; write 0 0; write 5 0",
    )
    assert modes(world) == [(0, 8, "-")]
    check_all(world)


# ---- registering


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("uffd_register 2 3 missing", [(0, 2, "-"), (2, 3, "m"), (5, 3, "-")]),
        ("uffd_register 0 8 missing|wp", [(0, 8, "mw")]),
        (
            "uffd_register 0 4 missing; uffd_register 2 6 missing",
            [(0, 8, "m")],
        ),
        (
            "uffd_register 0 8 missing; uffd_register 4 2 wp",
            [(0, 4, "m"), (4, 2, "w"), (6, 2, "m")],
        ),
        (
            "uffd_register 0 8 missing|wp; uffd_register 4 2 wp",
            [(0, 8, "mw")],
        ),
        (
            "uffd_register 0 2 missing; uffd_register 4 2 missing; uffd_register 2 2 missing",
            [(0, 6, "m"), (6, 2, "-")],
        ),
        ("munmap 3 2; uffd_register 2 4 missing", [(0, 2, "-"), (2, 1, "m"), (5, 1, "m"), (6, 2, "-")]),
        (
            "uffd_register 0 8 missing; uffd_unregister 3 2",
            [(0, 3, "m"), (3, 2, "-"), (5, 3, "m")],
        ),
        (
            "uffd_register 2 4 missing; uffd_unregister 0 8",
            [(0, 8, "-")],
        ),
        ("uffd_unregister 0 8", [(0, 8, "-")]),
        (
            "uffd_register 0 4 missing; munmap 4 4; mmap 4 4 rw private|fixed anon 0 = 4",
            [(0, 4, "m"), (4, 4, "-")],
        ),
        (
            "uffd_register 0 8 missing; mprotect 2 2 r; mprotect 2 2 rw",
            [(0, 8, "m")],
        ),
        (
            "uffd_register 0 4 missing; mprotect 0 8 r",
            [(0, 4, "m"), (4, 4, "-")],
        ),
        ("uffd_register 0 8 missing; mremap 0 8 12 none 0", [(0, 12, "m")]),
        ("uffd_register 0 8 missing; mremap 0 8 4 none 0", [(0, 4, "m")]),
    ],
    ids=[
        "cuts",
        "whole",
        "extends",
        "another_mode_replaces",
        "modes_that_are_there",
        "joins_three",
        "holes",
        "unregister_cuts",
        "unregister_joins",
        "unregister_nothing",
        "new_neighbour",
        "mprotect_keeps",
        "not_mergeable",
        "grows",
        "shrinks",
    ],
)
def test_layout(calls: str, expected: list[tuple[int, int, str]]) -> None:
    """A registration is an attribute of VMAs: cut out of them, and merged like any other."""
    world = written()
    run(world, calls)
    assert modes(world) == expected
    check_all(world)


@pytest.mark.parametrize(
    "call",
    [
        "uffd_register 0 0 missing = EINVAL",
        "uffd_register 0 8 none = EINVAL",
        "uffd_register 0 8 0x8 = EINVAL",
        "uffd_register 0 8 minor = EINVAL",
        "uffd_register 20 2 missing = EINVAL",
        "uffd_unregister 0 0 = EINVAL",
        "uffd_unregister 20 2 = EINVAL",
        "uffd_copy 2 0 0 none = EINVAL",
        "uffd_copy 2 0 1 0x4 = EINVAL",
        "uffd_zeropage 2 0 = EINVAL",
        "uffd_poison 2 0 = EINVAL",
        "uffd_wp 0 0 wp = EINVAL",
        "uffd_wp 0 1 wp|dontwake = EINVAL",
        "uffd_wp 0 1 0x4 = EINVAL",
        "uffd_move 2 0 0 none = EINVAL",
        "uffd_move 2 0 1 0x4 = EINVAL",
    ],
)
def test_bad_parameters(call: str) -> None:
    """Empty ranges, unknown modes, and ranges where nothing is mapped are refused."""
    world = written(0)
    run(world, call)
    assert modes(world) == [(0, 8, "-")]


@pytest.mark.parametrize(
    "call",
    [
        "uffd_register BEYOND 1 missing = EINVAL",
        "uffd_unregister BEYOND 1 = EINVAL",
        "uffd_copy BEYOND 0 1 none = EINVAL",
        "uffd_copy 0 BEYOND 1 none = EINVAL",
        "uffd_zeropage BEYOND 1 = EINVAL",
        "uffd_poison BEYOND 1 = EINVAL",
        "uffd_wp BEYOND 1 wp = EINVAL",
        "uffd_move BEYOND 0 1 none = EINVAL",
        "uffd_move 0 BEYOND 1 none = EINVAL",
    ],
    ids=lambda call: call.split()[0],
)
def test_ranges_beyond_user_space(call: str) -> None:
    """They are refused before anything is looked at."""
    run(written(0), call.replace("BEYOND", "0xffffffff"))


@pytest.mark.parametrize("flags", [PRIVATE, SHARED], ids=["private", "shared"])
def test_files_cannot_be_registered(flags: int) -> None:
    """Only anonymous memory can; one VMA of another kind in the range, and none is."""
    world = written()
    world.mmap(3, 2, RW, flags, file=1)
    run(
        world,
        "uffd_register 0 8 missing = EINVAL; uffd_register 3 1 wp = EINVAL; uffd_unregister 0 8 = EINVAL",
    )
    assert modes(world) == [(0, 3, "-"), (3, 2, "-"), (5, 3, "-")]


def test_another_context_owns_it() -> None:
    """A VMA that is registered with another userfaultfd can be registered, or unregistered, with that one only."""
    world = written()
    other = World()
    assert other.do("userfaultfd", 0) == 0
    vma = world.vma(0)
    world.image.userfaultfd.userfaultfd_set_ctx(vma, other.mm().userfaultfd, VM_UFFD_MISSING)
    assert world.do("uffd_register", 0, 1, MISSING) == -EBUSY
    assert world.do("uffd_unregister", 0, 1) == -EINVAL
    assert vma.vm_flags & VM_UFFD_FLAGS == VM_UFFD_MISSING


@pytest.mark.parametrize("nth", range(1, 8))
def test_registering_without_memory(nth: int) -> None:
    """What could not be cut stays as it was; a merge that cannot be made is an error, nothing half done."""
    world = registered(MISSING, size=4)
    world.mmap(4, 4)
    ret = world.do("uffd_register", 4, 2, MISSING, fail_nth=nth)
    failed = world.last.injected
    assert ret == (-ENOMEM if failed else 0)
    assert modes(world)[0] == (0, 4 if failed else 6, "m")
    check_all(world)


@pytest.mark.parametrize("nth", range(1, 6))
def test_unregistering_a_whole_vma_needs_no_memory(nth: int) -> None:
    """It merges with its neighbours if it can, and goes on without where it cannot."""
    world = written()
    run(world, "uffd_register 2 3 missing")
    assert world.do("uffd_unregister", 2, 3, fail_nth=nth) == 0
    assert {mode for _, _, mode in modes(world)} == {"-"}
    assert len(modes(world)) == (3 if world.last.injected else 1)
    check_all(world)


# ---- missing pages


def test_missing_pages_are_told() -> None:
    """With UFFD_FEATURE_SIGBUS any access to an empty page ends so; one to a page that is there works."""
    world = registered(MISSING, 1)
    trapped(world, 0, 2)
    run(world, "read 1; write 1 0; madvise 1 1 dontneed")
    trapped(world, 1)
    assert entries(world, 0, 3) == "none none none"
    check_all(world)


def test_no_permission_comes_first() -> None:
    """Where the VMA forbids the access, nobody is asked for the page."""
    world = registered(MISSING)
    run(
        world,
        "mprotect 0 1 none; mprotect 1 1 r; read 0 = SIGSEGV; "
        "write 1 0 = SIGSEGV; read 1 = SIGBUS; exec 1 = SIGBUS",
    )


def test_a_missing_write_makes_the_vma_faulted() -> None:
    """The anon_vma is prepared before the page turns out to be somebody else's to give; not for a read."""
    world = registered(MISSING)
    run(world, "read 0 = SIGBUS")
    assert world.vma(0).anon_vma is None
    run(world, "write 0 0 = SIGBUS")
    assert world.vma(0).anon_vma is not None


def test_missing_huge_pages_are_told() -> None:
    """No huge page comes where a userfaultfd is to be told of missing pages."""
    world = registered(MISSING)
    run(world, "madvise 0 8 hugepage")
    trapped(world, 3)
    assert world.vma(0).anon_vma is not None
    run(world, "uffd_unregister 0 8; write 3 0")
    assert is_huge(world, 0)
    check_all(world)


@pytest.mark.parametrize("kind", ["gup_fast", "gup_slow"])
@pytest.mark.parametrize("flags", [0, FOLL_WRITE, FOLL_PIN, FOLL_PIN | FOLL_WRITE])
def test_gup_of_a_missing_page(kind: str, flags: int) -> None:
    """The kernel gets no page either, and says EFAULT."""
    world = registered(MISSING)
    run(world, f"{kind} 0 {flags} 0 = EFAULT")
    check_all(world)


def test_a_page_that_is_swapped_out_is_not_missing() -> None:
    """It is brought back as ever."""
    world = registered(MISSING, 0)
    token = world.content(0)
    run(world, "madvise 0 1 pageout; read 0")
    assert world.content(0) == token


# ---- filling


@pytest.mark.parametrize(
    ("calls", "after"),
    [
        ("uffd_copy 4 0 2 none = 2", "page page none none"),
        ("uffd_copy 4 2 1 none = 1", "page none none none"),
        ("uffd_zeropage 4 3 = 3", "zero zero zero none"),
        ("uffd_zeropage 4 1 = 1; write 4 0", "page none none none"),
        ("uffd_poison 5 2 = 2", "none poison poison none"),
        ("uffd_copy 5 0 1 none = 1; uffd_copy 4 0 3 none = 1", "page page none none"),
        ("uffd_copy 4 0 1 none = 1; uffd_copy 4 1 1 none = EEXIST", "page none none none"),
        ("uffd_copy 4 0 1 none = 1; uffd_zeropage 4 1 = EEXIST", "page none none none"),
        ("uffd_copy 4 0 1 none = 1; uffd_poison 4 1 = EEXIST", "page none none none"),
        ("uffd_zeropage 4 1 = 1; uffd_zeropage 4 2 = EEXIST", "zero none none none"),
        (
            "uffd_copy 4 0 1 none = 1; madvise 4 1 pageout; uffd_copy 4 0 1 none = EEXIST",
            "swap none none none",
        ),
        ("uffd_copy 4 12 1 none = EFAULT", "none none none none"),
        ("uffd_copy 6 3 2 none = 1", "none none page none"),
        ("uffd_copy 4 6 1 none = EFAULT", "none none none none"),
        ("mprotect 0 1 none; uffd_copy 4 0 1 none = EFAULT", "none none none none"),
        ("uffd_copy 4 0 5 none = ENOENT", "none none none none"),
        ("uffd_zeropage 6 3 = ENOENT", "none none none none"),
        ("uffd_copy 0 1 1 none = ENOENT", "none none none none"),
        ("uffd_zeropage 20 1 = ENOENT", "none none none none"),
        ("uffd_copy 4 0 1 wp = EINVAL", "none none none none"),
        ("uffd_register 4 4 missing|wp; uffd_copy 4 0 1 wp = 1; write 4 0 = SIGBUS", "page+ none none none"),
        ("mprotect 4 4 none; uffd_copy 4 0 1 none = 1; mprotect 4 4 rw; write 4 0", "page none none none"),
    ],
    ids=[
        "copy",
        "copy_of_a_page_that_is_not_there",
        "zeropage",
        "zeropage_then_write",
        "poison",
        "copy_up_to_a_page",
        "copy_onto_a_page",
        "zeropage_onto_a_page",
        "poison_onto_a_page",
        "zeropage_onto_the_zero_page",
        "copy_onto_a_swapped_page",
        "no_source",
        "source_ends",
        "source_is_missing_itself",
        "source_without_permission",
        "longer_than_the_vma",
        "zeropage_longer_than_the_vma",
        "not_registered",
        "not_mapped",
        "protect_needs_registration",
        "copy_protected",
        "no_permission_needed",
    ],
)
def test_filling(calls: str, after: str) -> None:
    """Pages 0 and 1 are written, 4 to 7 are registered as missing: what fills them, and what does not."""
    world = written(0, 1)
    run(world, "uffd_register 4 4 missing")
    tokens = [world.content(0), world.content(1)]
    run(world, calls)
    assert entries(world, 4, 4) == after
    assert [world.content(0), world.content(1)] == tokens
    check_all(world)


def test_a_copy_is_what_the_source_holds() -> None:
    """And a page of its own, dirty and exclusive, mapped for writing at once."""
    world = written(0, 1)
    run(world, "uffd_register 4 4 missing; uffd_copy 4 0 2 none = 2")
    assert [world.content(4), world.content(5)] == [world.content(0), world.content(1)]
    assert world.folio(4) is not world.folio(0)
    assert world.folio(4).anon_exclusive == 1
    assert world.folio(4).mapping is anon_vma_of(world, 4)
    world.write(4, 1)
    assert world.content(0) != world.content(4)
    check_all(world)


@pytest.mark.parametrize(
    "call",
    [
        "uffd_copy 0 4 1 none = ENOENT",
        "uffd_zeropage 0 1 = ENOENT",
        "uffd_move 0 4 1 none = EINVAL",
    ],
    ids=lambda call: call.split()[0],
)
def test_a_destination_becomes_faulted_even_if_it_is_refused(call: str) -> None:
    """The anon_vma is prepared before it turns out that the VMA is not registered."""
    world = written()
    run(world, call)
    assert world.vma(0).anon_vma is not None


def test_a_source_that_is_swapped_out_is_read_in() -> None:
    """The copy waits for it, without mmap_lock."""
    world = written(0)
    run(
        world,
        "uffd_register 4 4 missing; madvise 0 1 pageout; uffd_copy 4 0 1 none = 1",
    )
    assert entry(world, 0) == "page"
    assert world.content(4) == world.content(0)
    check_all(world)


@pytest.mark.parametrize(("nth", "filled"), [(1, -ENOMEM), (2, 1), (3, 2)])
def test_filling_without_memory(nth: int, filled: int) -> None:
    """The page that finds no memory ends the call; nothing leaks."""
    world = written(0)
    run(world, "uffd_register 4 4 missing")
    assert world.do("uffd_copy", 4, 0, 2, 0, fail_nth=nth) == filled
    check_all(world)


def test_a_page_that_is_filled_is_as_writable_as_its_vma() -> None:
    """And no more, though it is the only one that has it."""
    world = registered(MISSING, 7)
    run(world, "mprotect 0 2 r; uffd_copy 1 7 2 none = ENOENT; uffd_copy 1 7 1 none = 1; uffd_copy 2 7 1 none = 1")
    assert [bool(world.pte(page) & PTE_RW) for page in (1, 2)] == [False, True]
    run(world, "write 1 0 = SIGSEGV; mprotect 0 8 rw; write 1 0")
    check_all(world)


def test_copy_does_not_replace_a_huge_page() -> None:
    """Nothing is filled where a huge page is mapped."""
    world = written()
    run(world, "madvise 0 8 hugepage; write 0 0; uffd_register 0 8 missing")
    world.mmap(8, 1)
    run(world, "uffd_copy 3 8 1 none = EEXIST; uffd_zeropage 3 1 = EEXIST; uffd_poison 3 1 = EEXIST")
    check_all(world)


# ---- poison


def test_poison_is_fatal() -> None:
    """Every access fails, until the page is dropped or a copy takes its place."""
    world = registered(MISSING, 7)
    run(
        world,
        "uffd_poison 0 3 = 3; read 0 = SIGBUS; write 0 0 = SIGBUS; "
        "gup_slow 0 none 0 = EFAULT; "
        "uffd_unregister 0 8; read 0 = SIGBUS; madvise 0 1 dontneed; read 0; "
        "uffd_register 2 1 missing; uffd_copy 2 7 1 none = 1; read 2",
    )
    check_all(world)


def test_poison_moves_and_is_inherited() -> None:
    """mremap carries it, fork copies it."""
    world = registered(MISSING)
    run(world, "uffd_poison 0 1 = 1; mremap 0 1 1 maymove|fixed 16 = 16; read 16 = SIGBUS")
    world.fork()
    run(world, "read 16 = SIGBUS; write 16 0 = SIGBUS", proc=1)
    check_all(world)


# ---- fork and mremap


@pytest.mark.parametrize("mode", [MISSING, WP, MISSING | WP])
def test_a_child_is_not_registered(mode: int) -> None:
    """Without EVENT_FORK its VMAs have no modes, no context, and nothing of them is protected."""
    world = registered(mode, 0, 1, features=UFFD_FEATURE_WP_UNPOPULATED)
    if mode & WP:
        run(world, "uffd_wp 0 4 wp")
    world.fork()
    assert modes(world, 1) == [(0, 8, "-")]
    assert world.mm(1).userfaultfd is None
    assert entries(world, 0, 4, 1) == "page page none none"
    run(world, "write 0 0; write 2 0", proc=1)
    assert modes(world)[0][2] == {MISSING: "m", WP: "w", MISSING | WP: "mw"}[mode]
    check_all(world)


def test_a_child_inherits_with_event_fork() -> None:
    """Its VMAs are registered with a context of its own, of the same features; what is protected stays so."""
    world = registered(MISSING | WP, 0, features=UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_WP_UNPOPULATED)
    world.mmap(20, 1)
    run(world, "uffd_register 20 1 wp; uffd_wp 0 2 wp")
    world.fork()
    context = world.mm(1).userfaultfd
    assert context is not None
    assert context is not world.mm().userfaultfd
    assert context.mm is world.mm(1)
    assert [world.vma(page, 1).uffd_ctx for page in (0, 20)] == [context, context]
    assert entries(world, 0, 3, 1) == "page+ marker none"
    run(world, "write 0 0 = SIGBUS; read 2 = SIGBUS; uffd_wp 0 2 none; write 0 0", proc=1)
    run(world, "write 0 0 = SIGBUS")
    check_all(world)


@pytest.mark.parametrize("nth", range(1, 12))
def test_fork_without_memory_for_a_context(nth: int) -> None:
    """The child is taken down again."""
    world = registered(MISSING, 0, features=UFFD_FEATURE_EVENT_FORK)
    world.do("fork", 1, fail_nth=nth)
    assert world.last.ret == (-ENOMEM if world.last.injected else 0)
    check_all(world)


def test_a_moved_vma_is_not_registered() -> None:
    """Without EVENT_REMAP the destination has no context; the source, if it stays, keeps its own."""
    world = registered(MISSING, 0)
    run(world, "mremap 0 4 4 maymove|fixed|dontunmap 16 = 16; read 17; read 0 = SIGBUS; read 1 = SIGBUS")
    assert modes(world) == [(0, 8, "m"), (16, 4, "-")]
    check_all(world)


def test_a_moved_vma_stays_registered_with_event_remap() -> None:
    """The destination has the same context."""
    world = registered(MISSING, 0, features=UFFD_FEATURE_EVENT_REMAP)
    run(world, "mremap 0 8 8 maymove|fixed 16 = 16; read 16; read 17 = SIGBUS")
    assert modes(world) == [(16, 8, "m")]
    check_all(world)


def test_a_move_beside_a_registered_vma_ends_that_ones_registration() -> None:
    """The two merge, then the context of the whole is dropped. So does Linux 6.18 (docs/mainline-findings.md)."""
    world = registered(MISSING, size=4)
    world.mmap(16, 2)
    run(world, "uffd_register 16 2 missing; read 0 = SIGBUS; mremap 16 2 2 maymove|fixed 4 = 4")
    assert modes(world) == [(0, 6, "-")]
    run(world, "read 0")
    check_all(world)


def test_a_failed_move_leaves_the_source_registered() -> None:
    """The context is dropped only when all is moved."""
    world = registered(MISSING, 0)
    failed = 0
    for nth in range(1, 20):
        if world.do("mremap", 0, 8, 8, MOVE, 64, fail_nth=nth) >= 0:
            break
        failed += 1
        assert modes(world) == [(0, 8, "m")]
        trapped(world, 3)
        check_all(world)
    assert failed > 2
    assert modes(world)[-1] == (64, 8, "-")


def test_no_complaints() -> None:
    """Nothing of all this makes the kernel warn."""
    world = registered(MISSING | WP, 0, 1, features=UFFD_FEATURE_WP_UNPOPULATED)
    run(world, "uffd_wp 0 8 wp; mremap 0 8 8 maymove|fixed 16 = 16; uffd_unregister 16 8")
    assert warnings(world) == []


# ---- memory of other kinds


def test_droppable_memory_cannot_be_registered() -> None:
    """Nor unregistered: it is none that a userfaultfd is for. Its pages can be moved away, though."""
    world = written(7)
    run(world, "mmap 20 2 rw droppable|fixed anon 0 = 20; write 20 0")
    run(world, "uffd_register 20 2 missing = EINVAL; uffd_register 0 22 wp = EINVAL; uffd_unregister 0 22 = EINVAL")
    run(world, "uffd_register 0 4 missing; uffd_move 0 20 1 none = 1; read 0")
    check_all(world)


@pytest.mark.parametrize(
    ("mode", "calls", "after"),
    [
        ("missing", "read 99 = SIGBUS; read 99 = SIGBUS; gup_slow 98 none 0 = EFAULT", [(99, 5, "m")]),
        ("missing", "write 98 0 = SIGBUS; uffd_unregister 98 6; read 99; read 97", [(97, 7, "-")]),
        ("wp", "write 99 0; read 98", [(98, 6, "w")]),
        ("missing", "uffd_copy 99 7 1 none = ENOENT", [(100, 4, "m")]),
        ("missing", "uffd_copy 100 98 1 none = EFAULT", [(98, 6, "m")]),
    ],
    ids=["trapped", "unregistered", "protection", "filled_too_early", "source"],
)
def test_stacks(mode: str, calls: str, after: list[tuple[int, int, str]]) -> None:
    """What a stack grows by is registered as the stack is, though the access fails."""
    world = World()
    run(world, f"mmap 100 4 rw private|fixed|growsdown anon 0 = 100; uffd_register 100 4 {mode}; {calls}")
    assert modes(world) == after
    check_all(world)


def test_a_source_below_a_stack() -> None:
    """UFFDIO_COPY reads as a user does."""
    world = written(size=2)
    run(world, "mmap 100 4 rw private|fixed|growsdown anon 0 = 100")
    run(world, "uffd_register 0 2 missing; uffd_copy 0 98 2 none = 2")
    assert world.layout() == [(0, 2), (98, 6)]
    check_all(world)
