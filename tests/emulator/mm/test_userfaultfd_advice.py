"""userfaultfd and what madvise does to pages: guard regions, MADV_POPULATE, MADV_FREE.

The results were seen on Linux 6.18 (that of the 7.0 profile is from its source).
"""

from __future__ import annotations

import pytest

from emulator.uapi import EEXIST
from tests.emulator.kernel_world import World
from tests.emulator.mm.uffd_world import MISSING, WP, entries, registered, run, written
from tests.emulator.references import check_all

pytestmark = pytest.mark.live


@pytest.mark.parametrize("advice", ["populate_read", "populate_write"])
def test_populating_missing_pages(advice: str) -> None:
    """It fails at the first of them."""
    world = registered(MISSING, 0)
    run(world, f"madvise 0 2 {advice} = EFAULT")
    assert entries(world, 0, 2) == "page none"


@pytest.mark.parametrize(("advice", "result"), [("populate_read", "0"), ("populate_write", "EFAULT")])
def test_populating_protected_pages(advice: str, result: str) -> None:
    """Populating for writing is a write."""
    world = registered(WP, 0)
    run(world, f"uffd_wp 0 1 wp; madvise 0 1 {advice} = {result}")


def test_populating_poison() -> None:
    """It is told what the page is."""
    world = registered(MISSING)
    run(world, "uffd_poison 0 1 = 1; madvise 0 1 populate_read = EHWPOISON; madvise 0 1 populate_write = EHWPOISON")


@pytest.mark.parametrize(
    ("calls", "after"),
    [
        ("madvise 1 1 guard_install; uffd_wp 0 3 wp; uffd_wp 0 3 none", "page guard none"),
        ("uffd_wp 0 3 wp; madvise 1 1 guard_install", "page+ guard marker"),
        ("uffd_wp 0 3 wp; madvise 1 1 guard_install; madvise 1 1 guard_remove", "page+ none marker"),
    ],
    ids=["stays", "replaces_a_marker", "forgets_a_marker"],
)
def test_protection(calls: str, after: str) -> None:
    """A guard is no page to protect, and takes the place of a marker of protection."""
    world = registered(WP, 0, features=1 << 13)
    run(world, calls)
    assert entries(world, 0, 3) == after
    check_all(world)


@pytest.mark.parametrize(
    ("calls", "dst", "src"),
    [
        ("madvise 0 1 guard_install; uffd_move 0 20 1 none = EEXIST", "guard", "page"),
        ("madvise 20 1 guard_install; uffd_move 0 20 1 holes = EFAULT", "none", "guard"),
    ],
    ids=["destination", "source"],
)
def test_move(calls: str, dst: str, src: str) -> None:
    """Neither onto a guard region, nor out of one."""
    world = written()
    world.mmap(20, 4)
    world.write(20)
    run(world, f"uffd_register 0 8 missing; {calls}")
    assert (entries(world, 0, 1), entries(world, 20, 1)) == (dst, src)
    check_all(world)


def test_a_guard_replaces_poison() -> None:
    """And does not bring it back."""
    world = registered(MISSING)
    run(world, "uffd_poison 0 1 = 1; uffd_unregister 0 8; madvise 0 1 guard_install; madvise 0 1 guard_remove; read 0")
    check_all(world)


@pytest.mark.parametrize(("profile", "filled"), [("6.18", 1), ("7.0", -EEXIST)])
def test_filling_a_guard_region(profile: str, filled: int) -> None:
    """Until 7.0 UFFDIO_COPY takes the marker of a guard region for an empty entry; ZEROPAGE and POISON never do."""
    world = World(profile=profile)
    world.mmap(0, 8)
    run(
        world,
        f"uffd_register 0 4 missing; madvise 0 3 guard_install; uffd_zeropage 1 1 = EEXIST; "
        f"uffd_poison 2 1 = EEXIST; uffd_copy 0 5 1 none = {filled}",
    )
    assert entries(world, 0, 3) == ("page guard guard" if filled > 0 else "guard guard guard")


def test_a_copy_replaces_other_markers() -> None:
    """On 7.0 too."""
    world = World(profile="7.0")
    world.mmap(0, 8)
    run(world, "uffd_register 0 4 missing; uffd_poison 0 1 = 1; uffd_copy 0 5 1 none = 1")
    assert entries(world, 0, 1) == "page"


@pytest.mark.parametrize(
    ("calls", "after"),
    [
        ("madvise 0 4 free; madvise 0 4 pageout", "none none none none"),
        ("uffd_wp 0 4 wp; madvise 0 4 free", "page+ page+ marker marker"),
        ("uffd_wp 0 4 wp; madvise 0 4 free; madvise 0 4 pageout", "none none marker marker"),
        ("uffd_poison 2 2 = 2; madvise 0 3 free", "page page none poison"),
    ],
    ids=["nothing_is_kept", "protection_stays", "until_the_page_goes", "poison_goes"],
)
def test_free(calls: str, after: str) -> None:
    """What may be thrown away takes its protection along; poison is thrown away at once. Pages 0 and 1 are written."""
    world = registered(MISSING | WP, 0, 1, features=1 << 13)
    run(world, calls)
    assert entries(world, 0, 4) == after
    check_all(world)


def test_what_was_moved_may_still_be_thrown_away() -> None:
    """UFFDIO_MOVE is no write."""
    world = written()
    world.mmap(20, 4)
    world.write(20)
    run(world, "uffd_register 0 4 missing; madvise 20 1 free; uffd_move 0 20 1 none = 1; read 0; madvise 0 1 pageout")
    run(world, "read 0 = SIGBUS")
    check_all(world)
