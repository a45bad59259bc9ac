"""userfaultfd on files of memory: shared anonymous memory, and memfds mapped shared and private.

Scripts as in ``uffd_world``. The running kernel is asked the same.
"""

from __future__ import annotations

import pytest

from emulator.designs.mainline_fixed import MainlineFixed
from emulator.errors import KernelBug
from emulator.hw.pte import PRESENT
from emulator.hw.pte import RW as PTE_RW
from emulator.profile import PROFILES
from emulator.uapi import ENOMEM, OVERCOMMIT_NEVER
from emulator.workload import FOLL_PIN, FOLL_WRITE
from tests.emulator.kernel_world import World
from tests.emulator.mm.uffd_world import entries, entry, modes, run
from tests.emulator.mm.world import warnings
from tests.emulator.references import check_all

SHARED = "mmap 0 8 rw shared|fixed anon 0 = 0"
FILE = "mmap 0 8 rw shared|fixed memfd 0 = 0"
PRIVATE = "mmap 0 8 rw private|fixed memfd 0 = 0"
TWICE = FILE + "; mmap 20 8 rw shared|fixed memfd 0 = 20"  # each page of the file at two places
BOTH = PRIVATE + "; mmap 20 8 rw shared|fixed memfd 0 = 20"


def played(*scripts: str) -> World:
    world = World()
    for script in scripts:
        run(world, script)
    check_all(world)
    assert not warnings(world)
    return world


def pages_of(world: World, first: int = 0) -> list[int]:
    """Which pages are in the page cache of the file that is mapped there."""
    file = world.vma(first).vm_file
    assert file is not None
    return sorted(file.f_mapping.pages)


# ---- registering


@pytest.mark.live
@pytest.mark.parametrize("mapped", [SHARED, FILE, PRIVATE])
@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("uffd_register 0 8 missing", [(0, 8, "m")]),
        ("uffd_register 2 3 wp", [(0, 2, "-"), (2, 3, "w"), (5, 3, "-")]),
        ("uffd_register 0 8 minor", [(0, 8, "i")]),
        ("uffd_register 0 8 missing|wp|minor", [(0, 8, "mwi")]),
        ("uffd_register 0 4 minor; uffd_register 4 4 minor", [(0, 8, "i")]),
        ("uffd_register 0 8 missing; uffd_register 4 2 minor", [(0, 4, "m"), (4, 2, "i"), (6, 2, "m")]),
        ("uffd_register 0 8 missing; uffd_unregister 3 2", [(0, 3, "m"), (3, 2, "-"), (5, 3, "m")]),
        ("uffd_register 0 8 wp; uffd_wp 0 8 wp; uffd_close; write 1 0", [(0, 8, "-")]),
        ("uffd_register 0 4 wp; mremap 0 4 4 maymove|fixed 40 = 40", [(4, 4, "-"), (40, 4, "-")]),
        ("uffd_register 0 8 missing; mremap 0 8 4 none 0", [(0, 4, "m")]),
        ("uffd_register 0 8 missing; mprotect 2 2 r", [(0, 2, "m"), (2, 2, "m"), (4, 4, "m")]),
    ],
)
def test_register(mapped: str, calls: str, expected: list[tuple[int, int, str]]) -> None:
    """Every kind of mapping of a file of memory, in every mode; VMAs are cut and merged as anonymous ones are."""
    assert modes(played(mapped, calls)) == expected


@pytest.mark.live
@pytest.mark.parametrize(
    "calls",
    [
        "mmap 0 8 rw private|fixed anon 0 = 0; uffd_register 0 8 minor = EINVAL",
        "mmap 0 8 rw shared|fixed file0 0 = 0; uffd_register 0 8 missing = EINVAL; uffd_unregister 0 8 = EINVAL",
        SHARED + "; mmap 8 4 rw private|fixed file0 0 = 8; uffd_register 0 12 wp = EINVAL",
        SHARED + "; mmap 8 4 rw private|fixed anon 0 = 8; uffd_register 0 12 missing|wp",
        SHARED + "; mmap 8 4 rw private|fixed anon 0 = 8; uffd_register 0 12 minor = EINVAL",
        SHARED + "; mmap 20 8 rw private|fixed anon 0 = 20; write 20 0; uffd_register 0 8 missing; "
        "uffd_move 0 20 1 none = EINVAL; uffd_register 20 4 missing; uffd_move 22 0 1 holes = EINVAL",
        PRIVATE + "; uffd_register 0 8 missing; uffd_move 0 4 1 holes = EINVAL",
    ],
)
def test_not_registered(calls: str) -> None:
    """Minor faults are of files; files on disks are not registered; nothing of a file is moved."""
    played(calls)


# ---- missing pages


@pytest.mark.live
@pytest.mark.parametrize(
    "calls",
    [
        SHARED + "; write 1 0; uffd_register 0 8 missing; read 1; write 1 1; read 0 = SIGBUS; write 0 0 = SIGBUS",
        SHARED + "; uffd_register 0 8 missing; madvise 0 2 populate_read = EFAULT; mlock 0 2 = ENOMEM; exec 3 = SIGBUS",
        SHARED + "; write 1 0; uffd_register 0 8 missing; madvise 1 1 dontneed; read 1; madvise 1 1 remove; "
        "read 1 = SIGBUS",
        SHARED + "; read 1; uffd_register 0 8 missing; madvise 1 1 dontneed; read 1; write 1 0",
        TWICE + "; uffd_register 0 8 missing; read 3 = SIGBUS; write 23 0; read 3; read 24; write 4 0",
        FILE + "; write 1 0; uffd_register 0 8 missing; madvise 0 8 pageout; read 1; read 2 = SIGBUS",
        BOTH + "; uffd_register 0 8 missing; write 3 0 = SIGBUS; write 23 0; write 3 0; madvise 3 1 dontneed; read 3",
        BOTH + "; uffd_register 0 8 missing; read 23; read 3; madvise 20 8 remove; read 3 = SIGBUS",
        BOTH + "; write 3 0; uffd_register 0 8 missing; madvise 20 8 remove; read 3; madvise 3 1 dontneed; "
        "read 3 = SIGBUS",
        SHARED + "; uffd_register 0 8 missing; uffd_unregister 0 8; read 1; write 2 0",
    ],
)
def test_missing(calls: str) -> None:
    """Missing is what the file has nowhere, not in swap either; whoever brings it, it is there then for all."""
    played(calls)


@pytest.mark.live
def test_child_fills_what_its_parent_misses() -> None:
    """The child is not registered: it brings the page that the parent finds then."""
    world = played(SHARED, "uffd_register 0 8 missing; read 1 = SIGBUS; fork 1")
    run(world, "write 1 0", proc=1)
    run(world, "read 1; read 2 = SIGBUS")
    assert modes(world, 1) == [(0, 8, "-")]


# ---- minor faults


@pytest.mark.live
@pytest.mark.parametrize(
    "calls",
    [
        SHARED + "; write 1 0; uffd_register 0 8 minor; read 1; madvise 1 1 dontneed; read 1 = SIGBUS; "
        "write 1 0 = SIGBUS",
        SHARED + "; uffd_register 0 8 minor; write 2 0; read 3; madvise 3 1 dontneed; read 3 = SIGBUS",
        TWICE + "; uffd_register 0 8 minor; write 21 0; read 1 = SIGBUS; uffd_continue 1 1 none = 1; read 1; write 1 1",
        TWICE + "; uffd_register 0 8 missing|minor; read 1 = SIGBUS; write 21 0; read 1 = SIGBUS; "
        "uffd_continue 0 2 none = EFAULT; uffd_continue 1 2 none = 1; read 1",
        FILE + "; write 1 0; uffd_register 0 8 minor; madvise 0 8 pageout; read 1 = SIGBUS; "
        "uffd_continue 1 1 none = 1; read 1; uffd_continue 1 1 none = EEXIST",
        BOTH + "; write 21 0; uffd_register 0 8 minor; read 1 = SIGBUS; uffd_continue 1 1 none = 1; read 1; write 1 1; "
        "read 21; madvise 1 1 dontneed; write 1 0 = SIGBUS",
        TWICE + "; write 21 0; uffd_register 0 8 minor|wp; uffd_continue 1 1 wp = 1; read 1; write 1 0 = SIGBUS; "
        "uffd_wp 1 1 none; write 1 0",
        TWICE + "; write 21 0; uffd_register 0 8 missing; uffd_continue 1 1 none = 1; uffd_continue 1 1 wp = EINVAL",
        TWICE + "; uffd_continue 1 1 none = ENOENT; uffd_register 0 8 minor; uffd_continue 4 6 none = ENOENT",
        "mmap 0 4 rw private|fixed anon 0 = 0; uffd_register 0 4 missing; uffd_continue 0 1 none = EINVAL",
        "mmap 0 20 rw shared|fixed memfd 0 = 0; uffd_register 0 20 minor; uffd_continue 18 1 none = EINVAL; "
        "read 18 = SIGBUS",
        FILE + "; read 1; madvise 1 1 dontneed; uffd_register 0 8 minor; madvise 1 2 guard_install; "
        "uffd_continue 1 2 none = 1; read 1; read 2 = SIGSEGV",
        FILE + "; read 1; madvise 1 1 dontneed; uffd_register 0 8 minor; uffd_poison 1 1 = 1; "
        "uffd_continue 1 1 none = 1; read 1",
    ],
)
def test_minor(calls: str) -> None:
    """A page that the file has and the page table has not; UFFDIO_CONTINUE maps it, and nothing else."""
    played(calls)


# ---- filling


@pytest.mark.live
@pytest.mark.parametrize(
    "calls",
    [
        SHARED + "; mmap 20 8 rw private|fixed anon 0 = 20; write 20 0; uffd_register 0 8 missing; "
        "uffd_copy 0 20 2 none = 2; read 0; read 1; read 2 = SIGBUS; write 0 1; read 20",
        TWICE + "; mmap 40 8 rw private|fixed anon 0 = 40; write 40 0; uffd_register 0 8 missing; "
        "uffd_copy 0 40 1 none = 1; read 20; write 20 1; read 0",
        TWICE + "; mmap 40 8 rw private|fixed anon 0 = 40; write 21 0; uffd_register 0 8 missing; "
        "uffd_copy 0 40 4 none = 1; uffd_copy 1 40 1 none = EEXIST",
        FILE + "; mmap 40 8 rw private|fixed anon 0 = 40; write 1 0; uffd_register 0 8 missing; "
        "madvise 0 8 pageout; uffd_copy 1 40 1 none = EEXIST; uffd_zeropage 1 1 = EEXIST",
        TWICE + "; uffd_register 0 8 missing; uffd_copy 1 21 1 none = EEXIST; uffd_copy 2 21 1 none = 1",
        SHARED + "; uffd_register 0 8 missing; uffd_copy 1 1 1 none = EFAULT; uffd_copy 1 2 1 none = EFAULT",
        SHARED + "; uffd_register 0 8 missing; uffd_zeropage 0 8 = 8; read 1; write 1 0; uffd_zeropage 1 1 = EEXIST",
        BOTH + "; uffd_register 20 8 missing; uffd_zeropage 20 2 = 2; read 0; write 0 0; read 20; write 20 1; read 0",
        BOTH + "; uffd_register 0 8 missing; uffd_zeropage 0 2 = 2; read 0; write 20 0; read 0; write 0 1; "
        "madvise 0 2 dontneed; read 0; read 1 = SIGBUS",
        BOTH + "; mmap 40 8 rw private|fixed anon 0 = 40; write 40 0; uffd_register 0 8 missing; "
        "uffd_copy 0 40 2 none = 2; read 20; write 20 1; read 0; uffd_copy 0 40 1 none = EEXIST; "
        "madvise 0 1 dontneed; read 0",
        BOTH + "; uffd_register 0 8 missing; uffd_zeropage 0 2 = 2; madvise 20 8 remove; read 0 = SIGBUS",
        "mmap 0 20 rw shared|fixed memfd 0 = 0; mmap 40 8 rw private|fixed anon 0 = 40; uffd_register 0 20 missing; "
        "uffd_copy 15 40 3 none = 1; uffd_copy 16 40 1 none = EFAULT; uffd_zeropage 16 1 = EFAULT; "
        "uffd_poison 16 1 = EFAULT",
        "mmap 0 20 rw private|fixed memfd 0 = 0; mmap 40 8 rw private|fixed anon 0 = 40; uffd_register 0 20 missing; "
        "uffd_copy 15 40 3 none = 1; uffd_zeropage 16 1 = EFAULT; uffd_poison 16 1 = EFAULT",
        SHARED + "; write 1 0; uffd_register 0 8 missing|wp; uffd_poison 0 2 = 1; read 0 = SIGBUS; "
        "madvise 1 1 dontneed; uffd_poison 1 1 = 1; read 1 = SIGBUS; madvise 0 2 dontneed; read 1; read 0 = SIGBUS",
        SHARED + "; uffd_register 0 8 missing; uffd_poison 0 1 = 1; uffd_zeropage 0 1 = 1; read 0",
        SHARED + "; mmap 40 8 rw private|fixed anon 0 = 40; uffd_register 0 8 missing|wp; uffd_wp 0 2 wp; "
        "uffd_copy 0 40 1 none = 1; write 0 0; uffd_zeropage 1 1 = 1; write 1 0; uffd_copy 2 40 1 wp = 1; "
        "read 2; write 2 0 = SIGBUS",
        SHARED + "; uffd_register 0 8 missing; uffd_copy 0 0 1 wp = EINVAL; uffd_zeropage 6 4 = ENOENT",
        SHARED + "; mmap 40 8 rw private|fixed anon 0 = 40; mprotect 0 8 r; uffd_register 0 8 missing; "
        "uffd_copy 0 40 1 none = 1; read 0; write 0 0 = SIGSEGV",
    ],
)
def test_fill(calls: str) -> None:
    """A shared mapping gets its page by way of the file, which must not have it; a private one a page of its own."""
    played(calls)


def test_where_filled_pages_are() -> None:
    """In the page cache for a shared mapping, zeros too; of a private one the file knows nothing."""
    world = played(SHARED, "mmap 20 8 rw private|fixed anon 0 = 20; uffd_register 0 8 missing; uffd_zeropage 1 2 = 2")
    run(world, "uffd_copy 3 20 1 none = 1")
    assert pages_of(world) == [1, 2, 3]
    assert entries(world, 0, 5) == "none page page page none"
    world = played(PRIVATE, "mmap 20 8 rw private|fixed anon 0 = 20; uffd_register 0 8 missing; uffd_zeropage 1 2 = 2")
    run(world, "uffd_copy 3 20 1 none = 1")
    assert pages_of(world) == []
    assert entries(world, 0, 5) == "none zero zero page none"


@pytest.mark.parametrize("call", ["uffd_copy 1 20 2 none", "uffd_zeropage 1 2"])
@pytest.mark.parametrize("nth", range(1, 8))
def test_no_memory_to_fill(call: str, nth: int) -> None:
    """What cannot be had leaves no page in the cache and no charge; what was filled before stays."""
    world = played(SHARED, "mmap 20 8 rw private|fixed anon 0 = 20; write 20 0; write 21 0; uffd_register 0 8 missing")
    committed = world.machine.committed
    kind, *words = call.split()
    result = world.do(kind, *(0 if word == "none" else int(word) for word in words), fail_nth=nth)
    assert result in (2, 1, -ENOMEM)
    assert len(pages_of(world)) == max(result, 0)
    assert world.machine.committed == committed
    check_all(world)


def test_charged_page_by_page() -> None:
    """A memfd charges each page that fills it, and gives back what it could not put there."""
    world = played(TWICE, "mmap 40 8 rw private|fixed anon 0 = 40; write 22 0; uffd_register 0 8 missing")
    committed = world.machine.committed
    run(world, "uffd_copy 0 40 4 none = 2; uffd_copy 2 40 1 none = EEXIST; uffd_zeropage 3 2 = 2")
    assert world.machine.committed == committed + 4


def test_no_more_may_be_committed() -> None:
    """ENOMEM, and nothing is there."""
    world = World(profile=PROFILES["6.18"]._replace(overcommit_memory=OVERCOMMIT_NEVER, commit_limit=10))
    run(world, FILE + "; mmap 40 8 rw private|fixed anon 0 = 40; uffd_register 0 8 missing")
    run(world, "uffd_copy 0 40 4 none = 1; uffd_zeropage 1 1 = ENOMEM")
    assert pages_of(world) == [0]


# ---- protection


@pytest.mark.live
@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (SHARED + "; write 0 0; read 1; uffd_register 0 8 wp; uffd_wp 0 3 wp", "page+ page+ marker none"),
        (SHARED + "; uffd_register 0 8 wp; uffd_wp 0 2 wp; read 0; write 1 0 = SIGBUS", "page+ page+ none none"),
        (FILE + "; write 0 0; uffd_register 0 8 wp; uffd_wp 0 2 wp; madvise 0 2 dontneed", "marker marker none none"),
        (FILE + "; write 0 0; write 1 0; uffd_register 0 8 wp; uffd_wp 0 1 wp; madvise 0 8 pageout; write 0 1 = SIGBUS",
         "page+ none none none"),
        (FILE + "; write 0 0; write 1 0; uffd_register 0 8 wp; uffd_wp 0 1 wp; madvise 0 2 remove",
         "marker none none none"),
        (FILE + "; write 0 0; uffd_register 0 8 wp; uffd_wp 0 2 wp; uffd_wp 0 4 none; write 0 1; write 1 0",
         "page page none none"),
        (FILE + "; write 0 0; uffd_register 0 8 wp; uffd_wp 0 2 wp; uffd_unregister 0 8; write 0 1",
         "page none none none"),
        (PRIVATE + "; write 0 0; read 1; uffd_register 0 8 wp; uffd_wp 0 3 wp", "page+ page+ marker none"),
        (PRIVATE + "; uffd_register 0 8 wp; uffd_wp 0 2 wp; write 0 0 = SIGBUS; read 1; write 1 0 = SIGBUS",
         "page+ page+ none none"),
        (PRIVATE + "; write 0 0; read 1; uffd_register 0 8 wp; uffd_wp 0 2 wp; madvise 0 2 dontneed; "
         "write 0 1 = SIGBUS", "page+ marker none none"),
        (PRIVATE + "; write 0 0; uffd_register 0 8 wp; uffd_wp 0 1 wp; madvise 0 8 pageout; madvise 0 1 dontneed",
         "marker none none none"),
        (PRIVATE + "; uffd_register 0 8 missing|wp; uffd_zeropage 0 2 = 2; uffd_wp 0 1 wp; madvise 0 2 dontneed",
         "marker none none none"),
        (SHARED + "; uffd_register 0 8 wp; uffd_wp 0 2 wp; mremap 0 4 4 maymove|fixed 40 = 40; write 40 0; write 0 0 = "
         "SIGSEGV", "none none none none"),
        (SHARED + "; uffd_register 0 8 wp; uffd_wp 0 2 wp; uffd_register 0 8 missing; write 0 0 = SIGBUS",
         "none marker none none"),
        (SHARED + "; write 0 0; uffd_register 0 8 missing|wp; uffd_wp 0 2 wp; read 1 = SIGBUS; write 1 0 = SIGBUS; "
         "read 0; write 0 0 = SIGBUS", "page+ marker none none"),
        (SHARED + "; uffd_register 0 8 wp; uffd_wp 0 2 wp; mlock 0 2", "page+ page+ none none"),
    ],
)
def test_protection(calls: str, expected: str) -> None:
    """A marker keeps the protection of what is not there, and of what has gone, until somebody ends it."""
    assert entries(played(calls), 0, 4) == expected


@pytest.mark.parametrize(
    ("calls", "writable"),
    [
        ("write 0 0; uffd_register 0 8 wp", True),
        ("uffd_register 0 8 wp; read 0", False),
        ("write 0 0; uffd_register 0 8 wp; uffd_wp 0 1 wp; uffd_wp 0 1 none", True),
        ("read 0; uffd_register 0 8 wp; uffd_wp 0 1 wp; uffd_wp 0 1 none", False),
        ("write 0 0; uffd_register 0 8 wp; uffd_wp 0 1 wp; mprotect 0 8 r; mprotect 0 8 rw", False),
        ("write 0 0; uffd_register 0 8 wp; mprotect 0 8 r; mprotect 0 8 rw", True),
        ("uffd_register 0 8 missing; uffd_zeropage 0 1 = 1", True),
        ("uffd_register 0 8 missing|wp; uffd_zeropage 0 1 = 1", True),
    ],
)
def test_writable(calls: str, writable: bool) -> None:
    """Where protection is asked for nothing becomes writable by itself but what was written before."""
    world = played(SHARED, calls)
    assert world.pte(0) & PRESENT
    assert bool(world.pte(0) & PTE_RW) == writable


@pytest.mark.parametrize(
    ("features", "child", "mode"),
    [("none", "none none none", "-"), ("event_fork", "page+ marker none", "w")],
)
def test_fork(features: str, child: str, mode: str) -> None:
    """With EVENT_FORK the child's page table is copied, markers and all; else nothing of it is."""
    world = played(f"userfaultfd {features}", SHARED, "write 0 0; uffd_register 0 8 wp; uffd_wp 0 2 wp; fork 1")
    assert entries(world, 0, 3, proc=1) == child
    assert modes(world, 1) == [(0, 8, mode)]
    check_all(world)


@pytest.mark.parametrize(
    ("features", "expected"), [("none", "page none none"), ("event_remap", "page+ marker none")]
)
def test_mremap(features: str, expected: str) -> None:
    """Protection moves along with EVENT_REMAP only."""
    world = played(f"userfaultfd {features}", SHARED, "write 0 0; uffd_register 0 8 wp; uffd_wp 0 2 wp")
    run(world, "mremap 0 4 4 maymove|fixed 40 = 40")
    assert entries(world, 40, 3) == expected


def test_protection_survives_migration() -> None:
    """A migration entry remembers it; punched meanwhile, a marker does."""
    world = played(SHARED, "write 0 0; uffd_register 0 8 wp; uffd_wp 0 1 wp; migrate 0 = 1")
    assert entry(world, 0) == "page+"
    run(world, "reclaim 0 = 1")
    assert entry(world, 0) == "marker"


# ---- guard regions over what is protected


LOOPS = [
    FILE + "; uffd_register 0 8 wp; uffd_wp 0 1 wp; madvise 0 2 guard_install",
    FILE + "; write 1 0; uffd_register 0 8 wp; uffd_wp 1 1 wp; madvise 0 2 guard_install",
    PRIVATE + "; write 1 0; uffd_register 0 8 wp; uffd_wp 1 1 wp; madvise 0 2 guard_install",
    SHARED + "; uffd_register 0 8 wp; uffd_wp 0 1 wp; uffd_register 0 8 missing; madvise 0 2 guard_install",
]


@pytest.mark.parametrize("calls", LOOPS)
def test_guard_over_a_marker_never_returns(calls: str) -> None:
    """Linux zaps and looks again, and a zap of a file's pages leaves the marker (docs/mainline-findings.md)."""
    with pytest.raises(KernelBug, match="never-returns"):
        played(calls)
    world = World(design=MainlineFixed)
    run(world, calls)
    assert entries(world, 0, 2) == "guard guard"


@pytest.mark.live
@pytest.mark.parametrize(
    "calls",
    [
        "mmap 0 8 rw private|fixed anon 0 = 0; userfaultfd wp_unpopulated; uffd_register 0 8 wp; uffd_wp 0 2 wp; "
        "madvise 0 2 guard_install; read 0 = SIGSEGV",
        FILE + "; write 0 0; uffd_register 0 8 missing; madvise 0 2 guard_install; madvise 0 2 guard_remove; read 0; "
        "read 1 = SIGBUS",
        FILE + "; uffd_register 0 8 wp; madvise 0 2 guard_install; uffd_wp 0 2 wp; read 0 = SIGSEGV; "
        "madvise 0 2 guard_remove; write 0 0",
    ],
)
def test_guard_beside_protection(calls: str) -> None:
    """Anonymous memory's markers go, and a guard takes no protection."""
    played(calls)


# ---- beside others


def test_pinned_pages_stay() -> None:
    """A pin on a page that userfaultfd has filled is one on the file's page."""
    world = played(SHARED, "uffd_register 0 8 missing; uffd_zeropage 0 1 = 1")
    assert world.do("gup_slow", 0, FOLL_PIN | FOLL_WRITE, 0) == 0
    assert world.do("gup_fast", 1, FOLL_PIN | FOLL_WRITE, 1) < 0
    run(world, "pin_write 0 1; unpin 0; read 0")
    assert world.last.data


@pytest.mark.parametrize(
    ("features", "expected"), [("7.0", "EEXIST"), ("6.18", "1")]
)
def test_guard_in_the_way(features: str, expected: str) -> None:
    """Before 7.0 what is filled takes the place of a guard."""
    world = World(profile=features)
    run(world, SHARED + "; uffd_register 0 8 missing; madvise 0 1 guard_install")
    run(world, f"uffd_zeropage 0 1 = {expected}")
    assert pages_of(world) == ([0] if expected == "1" else [])


