"""Two proposals that make fork copy guard regions: what they save, and where a child loses a guard region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.sticky_flag_2025 import StickyFlag2025
from emulator.designs.unfaulted_flag_2025 import ANON_VMA_UNFAULTED, UnfaultedFlag2025
from emulator.hw.pte import is_guard
from emulator.mm_types import VM_MAYBE_GUARD
from emulator.uapi import (
    EINVAL,
    ENOMEM,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_KEEPONFORK,
    MADV_NORMAL,
    MADV_SEQUENTIAL,
    MADV_WIPEONFORK,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MLOCK_ONFAULT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from emulator.workload import Op, Switch
from tests.emulator.guard_script import ANON, FILE, GuardScript
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World
from tests.emulator.mm.test_guard_selftests import OF_ANONYMOUS, OF_FILES, ROWS

PAGES: Final = 12
MOVE: Final = MREMAP_MAYMOVE | MREMAP_FIXED
Call = tuple[str | int, ...]
"""An op: its kind and its arguments, in arena pages."""


def anon(page: int, pages: int, *, prot: int = RW) -> Call:
    return ("mmap", page, pages, prot, PRIVATE_FIXED, 0, 0)


def file(page: int, pages: int, *, prot: int = RW, flags: int = MAP_PRIVATE) -> Call:
    return ("mmap", page, pages, prot, flags | MAP_FIXED, 1, page)


def guard(page: int, pages: int = 1) -> Call:
    return ("madvise", page, pages, MADV_GUARD_INSTALL)


def unguard(page: int, pages: int = 1) -> Call:
    return ("madvise", page, pages, MADV_GUARD_REMOVE)


def run(world: World, *calls: Call) -> World:
    for kind, *args in calls:
        world.do(str(kind), *(int(arg) for arg in args))
    return world


def guards(world: World, proc: int = 0) -> list[int]:
    """The pages with a guard marker."""
    return [page for page in range(PAGES) if is_guard(world.pte(page, proc))]


def lost(world: World) -> list[int]:
    """Guards of the parent that a child forked now does not have."""
    world.fork()
    return [page for page in guards(world) if page not in guards(world, 1)]


# ---- what both, and mainline, promise


@pytest.mark.parametrize("design", [UnfaultedFlag2025, StickyFlag2025])
@pytest.mark.parametrize("geometry", ["x86-64", "small4"])
@pytest.mark.parametrize(
    ("kind", "name", "script"),
    [
        pytest.param(kind, name, script, id=f"{kind}-{name}")
        for kind, rows in ((ANON, ROWS + OF_ANONYMOUS), (FILE, ROWS + OF_FILES))
        for name, script in rows
    ],
)
def test_selftests(kind: str, name: str, script: str, geometry: str, design: type[Design]) -> None:
    """The kernel's guard-region tests; without a VMA flag there is none to see, and one counts x86-64's table."""
    if not (name == "smaps" and design is UnfaultedFlag2025) and not (name == "collapse" and geometry == "small4"):
        GuardScript(kind, design, geometry).run(script)


ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 4)).map(lambda r: (r[0], min(r[1], PAGES - r[0])))
calls = st.one_of(
    st.builds(lambda r, prot: anon(*r, prot=prot), ranges, st.sampled_from((RW, RW, PROT_READ))),
    st.builds(lambda r, flags: file(*r, flags=flags), ranges, st.sampled_from((MAP_PRIVATE, MAP_SHARED))),
    ranges.map(lambda r: guard(*r)),
    ranges.map(lambda r: guard(*r)),
    ranges.map(lambda r: unguard(*r)),
    st.builds(lambda r, prot: ("mprotect", *r, prot), ranges, st.sampled_from((RW, PROT_READ))),
    st.builds(lambda r, kind: (kind, *r), ranges, st.sampled_from(("mlock", "munlock", "munmap"))),
    ranges.map(lambda r: ("madvise", *r, MADV_DONTNEED)),
    st.builds(lambda r, to: ("mremap", r[0], r[1], r[1], MOVE, to), ranges, st.integers(0, PAGES)),
    st.integers(0, PAGES - 1).map(lambda page: ("write", page, 0)),
)


@pytest.mark.parametrize("profile", ["6.18", "7.0"])
@settings(max_examples=150, deadline=None)
@given(script=st.lists(calls, max_size=12))
def test_mainline_loses_no_guard(script: list[Call], profile: str) -> None:
    """What landed keeps every guard region over fork, whatever was merged, split and moved before."""
    assert lost(run(World("small4", Mainline, profile), *script)) == []


# ---- a flag beside the anon_vma


@pytest.mark.parametrize(("design", "layout"), [(UnfaultedFlag2025, [(0, 6)]), (Mainline, [(0, 3), (3, 3)])])
def test_unfaulted_vma_merges_where_it_moves(design: type[Design], layout: list[tuple[int, int]]) -> None:
    """Guards alone fault nothing: the VMA takes the page offset of its new place."""
    world = run(World("small8", design), anon(0, 3), anon(8, 3), guard(9), ("mremap", 8, 3, 3, MOVE, 3))
    assert world.layout() == layout
    assert guards(world) == [4]
    world.check()


def flags_of(world: World, page: int, proc: int = 0) -> int:
    found: int = world.vma(page, proc).anon_vma_flags
    return found


# what is done with pages 0-3, of which 1 is guarded, and does the flag stay
FLAG = [
    ("installed", [], True),
    ("split", [("munmap", 2, 1)], True),
    ("faulted", [("write", 2, 0)], False),
    ("faulted, another guard", [("write", 2, 0), guard(3)], False),
    ("all removed", [unguard(0, 4)], False),
    ("a part removed", [unguard(0, 3)], True),
    ("all removed, one installed", [unguard(0, 4), guard(1)], True),
    ("locked, cannot install", [unguard(0, 4), ("mlock2", 0, 4, MLOCK_ONFAULT), guard(0)], False),
    ("removed after a fault", [("write", 2, 0), unguard(0, 4)], False),
    ("moved and back", [("mremap", 0, 4, 4, MOVE, 6), ("mremap", 6, 4, 4, MOVE, 0)], True),
]


@pytest.mark.parametrize("mapping", [anon, file])
@pytest.mark.parametrize(("script", "stays"), [pytest.param(*row[1:], id=row[0]) for row in FLAG])
def test_unfaulted_flag(script: list[Call], stays: bool, mapping: Callable[[int, int], Call]) -> None:
    """Set by a guard, cleared by an anon_vma, and by a removal over all of the VMA."""
    world = run(World("small8", UnfaultedFlag2025), mapping(0, 4), guard(1), *script)
    assert flags_of(world, 0) == (ANON_VMA_UNFAULTED if stays else 0)
    assert (world.vma(0).anon_vma is None) == (("write", 2, 0) not in script)
    assert not world.vma(0).vm_flags & VM_MAYBE_GUARD
    assert lost(world) == []
    assert flags_of(world, 0, 1) == flags_of(world, 0)
    world.check()


def test_no_memory_for_a_table() -> None:
    """Nothing is installed, so there is nothing to copy; a part that is installed counts."""
    for pages, flag in ((2, 0), (8, ANON_VMA_UNFAULTED)):
        world = run(World("small4", UnfaultedFlag2025), anon(0, 8))
        for nth in range(1, 9):
            if world.do("madvise", 0, pages, MADV_GUARD_INSTALL, fail_nth=nth) < 0 and (pages == 2 or guards(world)):
                break
        assert world.last.ret < 0
        assert bool(guards(world)) == bool(flag)
        assert flags_of(world, 0) == flag
        assert lost(world) == []


def test_wiped_child() -> None:
    """It has no page tables of its parent, and no flag."""
    world = run(World("small8", UnfaultedFlag2025), anon(0, 4), guard(1), ("madvise", 0, 4, MADV_WIPEONFORK))
    world.fork()
    assert flags_of(world, 0) == ANON_VMA_UNFAULTED
    assert flags_of(world, 0, 1) == 0
    run(world, ("madvise", 0, 4, MADV_KEEPONFORK))
    world.fork(2)
    assert flags_of(world, 0, 2) == ANON_VMA_UNFAULTED


# flaws, kept: a VMA with the flag is swallowed by one without
SWALLOWED = {
    "the gap before it is filled": [anon(0, 2), anon(4, 2), guard(4), anon(2, 2)],
    "of a file": [file(0, 2), file(4, 2), guard(4), file(2, 2)],
    "moved beside another": [anon(0, 2), anon(8, 2), guard(8), ("mremap", 8, 2, 2, MOVE, 2)],
    "mprotect": [anon(0, 2), anon(2, 2, prot=PROT_READ), guard(3), ("mprotect", 2, 2, RW)],
    "mprotect of a part": [file(0, 4), ("mprotect", 2, 2, PROT_READ), guard(2), ("mprotect", 2, 1, RW)],
}


@pytest.mark.parametrize("design", [UnfaultedFlag2025, Mainline])
@pytest.mark.parametrize("script", SWALLOWED.values(), ids=SWALLOWED.keys())
def test_swallowed_flag(script: list[Call], design: type[Design]) -> None:
    """L. Stoakes said on the day of the RFC that the flags are propagated on split and merge: not on merge."""
    world = run(World("small8", design), *script)
    assert len(guards(world)) == 1
    assert lost(world) == (guards(world) if design is UnfaultedFlag2025 else [])


def test_refused_guard_sets_no_flag() -> None:
    """Locked memory gets no guards, and so no flag, though there is one already."""
    world = run(World("small8", UnfaultedFlag2025), *SWALLOWED["mprotect"], ("mlock2", 3, 1, MLOCK_ONFAULT))
    assert world.do("madvise", 3, 1, MADV_GUARD_INSTALL) == -EINVAL
    assert lost(world) == [3]


@pytest.mark.parametrize(("design", "flagged"), [(UnfaultedFlag2025, False), (Mainline, True)])
@pytest.mark.parametrize("nth", [2, 3], ids=["clone", "tree"])
def test_failed_merge_clears_the_flag(nth: int, design: type[Design], flagged: bool) -> None:
    """A flaw, kept: a target that was lent an anon_vma is left with neither."""
    world = run(World("small8", design), file(0, 2), guard(0), file(4, 2), ("write", 4, 0))
    world.do("mmap", 2, 2, RW, PRIVATE_FIXED, 1, 2, fail_nth=nth)
    assert world.last.injected
    assert guards(world) == [0]
    assert (lost(world) == []) == flagged


@pytest.mark.parametrize(("design", "missing"), [(UnfaultedFlag2025, [1]), (Mainline, [])])
def test_remove_beside_install(design: type[Design], missing: list[int]) -> None:
    """A flaw, kept: page_table_lock, which is to exclude this, is taken between the walk and the flag only."""
    world = run(World("small8", design), anon(0, 4), guard(0))
    point = "madvise.guards_removed" if design is UnfaultedFlag2025 else "madvise.locked"
    remove = Op("madvise", 0, (0, 4, MADV_GUARD_REMOVE))
    install = Op("madvise", 0, (1, 1, MADV_GUARD_INSTALL))
    outcomes = world.collide([remove, install], (Switch(0, point, 1), Switch(1, "end", 0)))
    assert [outcome.ret for outcome in outcomes] == [0, 0]
    assert guards(world) == ([1] if design is UnfaultedFlag2025 else [])
    assert lost(world) == missing


# ---- a VMA flag that sticks


def test_sticky_flag_takes_the_lock_for_writing() -> None:
    """What P. Falcato and V. Babka asked to do without."""
    for design, for_write in ((StickyFlag2025, True), (Mainline, False)):
        madvise = World("small8", design).image.madvise
        assert madvise.takes_write_lock(MADV_GUARD_INSTALL) is for_write
        assert madvise.takes_write_lock(MADV_SEQUENTIAL)
        assert not madvise.takes_write_lock(MADV_DONTNEED)


@pytest.mark.parametrize("script", SWALLOWED.values(), ids=SWALLOWED.keys())
def test_sticky_flag_is_not_swallowed(script: list[Call]) -> None:
    """A merge that swallows a VMA with the flag sets it, whoever merges."""
    world = run(World("small8", StickyFlag2025), *script)
    assert world.vma(guards(world)[0]).vm_flags & VM_MAYBE_GUARD
    assert lost(world) == []


# a part of a file mapping becomes different, and then again like the rest
BACK: Final = {
    "mprotect": (("mprotect", 4, 4, PROT_READ), ("mprotect", 4, 4, RW)),
    "mlock": (("mlock2", 4, 4, MLOCK_ONFAULT), ("munlock", 4, 4)),
    "madvise": (("madvise", 4, 4, MADV_SEQUENTIAL), ("madvise", 4, 4, MADV_NORMAL)),
}


@pytest.mark.parametrize("design", [StickyFlag2025, Mainline])
@pytest.mark.parametrize("page", [1, 5])
@pytest.mark.parametrize(("change", "back"), BACK.values(), ids=BACK.keys())
def test_residual_flag(change: Call, back: Call, page: int, design: type[Design]) -> None:
    """A flaw, kept: when what changes is merged into a VMA that has the flag, its own flags are put over that."""
    world = run(World("small8", design), file(0, 8))
    run(world, change, guard(1), back) if page == 1 else run(world, guard(5), change, back)
    assert world.layout() == [(0, 8)]
    assert guards(world) == [page]
    assert lost(world) == ([1] if design is StickyFlag2025 and page == 1 else [])


def test_no_memory_for_the_anon_vma() -> None:
    """The guard is installed all the same: the flag is enough for fork."""
    for design, ret in ((StickyFlag2025, 0), (Mainline, -ENOMEM)):
        world = run(World("small8", design), anon(0, 4))
        assert world.do("madvise", 1, 1, MADV_GUARD_INSTALL, fail_nth=1) == ret
        assert world.last.injected
        assert guards(world) == ([] if ret else [1])
        assert lost(world) == []
