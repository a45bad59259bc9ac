"""madvise: order and kind of errors, what each advice does, and what it leaves alone."""

from __future__ import annotations

import pytest

from emulator.geometry import PAGE_SIZE
from emulator.mm_types import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_IO,
    VM_LOCKED,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_SEALED,
    VM_SEQ_READ,
    VM_WIPEONFORK,
)
from emulator.uapi import (
    EACCES,
    EAGAIN,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_COLD,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
)
from tests.emulator.kernel_world import World
from tests.emulator.populated import written
from tests.emulator.references import check_all

SHARED = MAP_SHARED | MAP_FIXED
FLAG_ADVICE = (
    MADV_NORMAL,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_DONTFORK,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DODUMP,
)
WALKS = (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_COLD,
    MADV_PAGEOUT,
    MADV_WILLNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
)


def advise(world: World, start: int, length: int, advice: int) -> int:
    """In bytes, from the beginning of the arena."""
    return int(world.image.madvise.do_madvise(world.mm(), world.address(0) + start, length, advice))


# ---- errors


@pytest.mark.parametrize("advice", [5, 26, 99, -1])
def test_unknown_advice(advice: int) -> None:
    """Refused before anything else is looked at, even for nothing at an odd address."""
    world = written()
    assert advise(world, 1, 0, advice) == -EINVAL
    assert advise(world, 0, PAGE_SIZE, advice) == -EINVAL


def test_ranges() -> None:
    """An unaligned start or a range that wraps: -EINVAL; nothing: 0; a length is rounded up to pages."""
    world = written(2)
    assert advise(world, 1, 0, MADV_DONTNEED) == -EINVAL
    assert advise(world, 50 * PAGE_SIZE, 0, MADV_DONTNEED) == 0
    assert advise(world, 0, (1 << 64) - PAGE_SIZE, MADV_DONTNEED) == -EINVAL
    assert advise(world, 0, (1 << 64) - 1, MADV_DONTNEED) == -EINVAL
    assert advise(world, 0, 1, MADV_DONTNEED) == 0
    assert world.content(0) == {}
    assert world.content(1) != {}
    assert advise(world, 0, PAGE_SIZE + 1, MADV_DONTNEED) == 0
    assert world.content(1) == {}


@pytest.mark.parametrize("advice", [*FLAG_ADVICE, *WALKS])
def test_holes(advice: int) -> None:
    """-ENOMEM at the end; what is mapped in the range is advised all the same."""
    world = World()
    world.mmap(0, 2)
    world.mmap(4, 2)
    world.write(5)
    assert world.do("madvise", 0, 6, advice) == -ENOMEM
    assert world.do("madvise", 4, 4, advice) == -ENOMEM
    assert world.do("madvise", 2, 2, advice) == -ENOMEM
    assert world.do("madvise", 30, 2, advice) == -ENOMEM
    if advice == MADV_DONTNEED:
        assert world.content(5) == {}
    if advice == MADV_RANDOM:
        assert world.vma(5).vm_flags & VM_RAND_READ


def test_an_error_ends_the_walk() -> None:
    """VMAs before the refused one stay advised, those after it are not touched."""
    world = written(6)
    world.do("mprotect", 2, 2, PROT_READ)
    world.vma(2).vm_flags |= VM_LOCKED
    assert world.do("madvise", 0, 6, MADV_DONTNEED) == -EINVAL
    assert [world.content(page) == {} for page in range(6)] == [True, True, False, False, False, False]
    check_all(world)


@pytest.mark.parametrize(
    ("advice", "flags"),
    [
        (MADV_DONTNEED, VM_LOCKED),
        (MADV_DONTNEED, VM_PFNMAP),
        (MADV_FREE, VM_LOCKED),
        (MADV_PAGEOUT, VM_LOCKED),
        (MADV_COLD, VM_PFNMAP),
        (MADV_DOFORK, VM_IO),
        (MADV_DODUMP, VM_PFNMAP),
        (MADV_REMOVE, VM_LOCKED),
        (MADV_REMOVE, 0),
        (MADV_GUARD_INSTALL, VM_LOCKED),
        (MADV_GUARD_INSTALL, VM_PFNMAP),
        (MADV_GUARD_REMOVE, VM_IO),
    ],
)
def test_wrong_kind_of_memory(advice: int, flags: int) -> None:
    """-EINVAL, and the page stays."""
    world = written(1)
    world.vma(0).vm_flags |= flags
    assert world.do("madvise", 0, 1, advice) == -EINVAL
    assert world.content(0) != {}


def test_files() -> None:
    """FREE and WIPEONFORK are for private anonymous memory; REMOVE for shared files that can punch holes."""
    world = World()
    world.mmap(0, 2, flags=SHARED, file=1)
    world.mmap(4, 2, flags=MAP_PRIVATE | MAP_FIXED, file=1)
    for page in (0, 4):
        assert world.do("madvise", page, 1, MADV_FREE) == -EINVAL
        assert world.do("madvise", page, 1, MADV_WIPEONFORK) == -EINVAL
    assert world.do("madvise", 0, 1, MADV_REMOVE) == 0
    assert world.do("madvise", 4, 1, MADV_REMOVE) == -EACCES
    world.write(0, 3)
    before = world.content(0)
    assert world.do("madvise", 0, 1, MADV_DONTNEED) == 0
    assert world.do("read", 0) == 0
    assert world.content(0) == before
    check_all(world)


@pytest.mark.parametrize(
    "advice", [MADV_DONTNEED, MADV_FREE, MADV_WIPEONFORK, MADV_DONTFORK, MADV_GUARD_INSTALL]
)
def test_sealed(advice: int) -> None:
    """Sealed memory that cannot be written keeps its contents; what can be written can be discarded too."""
    world = written(2)
    world.do("mprotect", 1, 1, PROT_READ)
    for page in (0, 1):
        world.vma(page).vm_flags |= VM_SEALED
    assert world.do("madvise", 1, 1, advice) == -EPERM
    assert world.content(1) != {}
    assert world.do("madvise", 0, 1, advice) == 0
    assert world.do("madvise", 1, 1, MADV_PAGEOUT) == 0


def test_no_memory_for_vmas_is_eagain() -> None:
    """Splitting needs memory: -EAGAIN, as madvise reports it, and the layout is sound."""
    nth = 1
    while True:
        world = written(4)
        ret = world.do("madvise", 1, 2, MADV_RANDOM, fail_nth=nth)
        check_all(world)
        if not world.last.injected:
            break
        assert ret == -EAGAIN
        assert not world.vma(1).vm_flags & VM_RAND_READ
        nth += 1
    assert nth > 2
    assert world.layout() == [(0, 1), (1, 2), (3, 1)]


# ---- flags


@pytest.mark.parametrize(
    ("advice", "flag", "back"),
    [
        (MADV_HUGEPAGE, VM_HUGEPAGE, None),
        (MADV_NOHUGEPAGE, VM_NOHUGEPAGE, None),
        (MADV_RANDOM, VM_RAND_READ, MADV_NORMAL),
        (MADV_SEQUENTIAL, VM_SEQ_READ, MADV_NORMAL),
        (MADV_DONTFORK, VM_DONTCOPY, MADV_DOFORK),
        (MADV_WIPEONFORK, VM_WIPEONFORK, MADV_KEEPONFORK),
        (MADV_DONTDUMP, VM_DONTDUMP, MADV_DODUMP),
    ],
)
def test_advice_in_flags(advice: int, flag: int, back: int | None) -> None:
    """The range gets the flag and is split off; with the flag everywhere, or nowhere, it is one VMA again."""
    world = written(8)
    assert world.do("madvise", 2, 4, advice) == 0
    assert world.layout() == [(0, 2), (2, 4), (6, 2)]
    assert [bool(world.vma(page).vm_flags & flag) for page in (1, 2, 5, 6)] == [False, True, True, False]
    check_all(world)
    if back is not None:
        assert world.do("madvise", 2, 4, back) == 0
        assert world.layout() == [(0, 8)]
        assert not world.vma(0).vm_flags & flag
        assert world.do("madvise", 2, 4, advice) == 0
    assert world.do("madvise", 0, 8, advice) == 0
    assert world.layout() == [(0, 8)]
    assert world.vma(0).vm_flags & flag
    check_all(world)


def test_opposite_advice() -> None:
    """HUGEPAGE and NOHUGEPAGE exclude each other, RANDOM and SEQUENTIAL too."""
    world = written(1)
    for advice, is_set, is_clear in (
        (MADV_HUGEPAGE, VM_HUGEPAGE, VM_NOHUGEPAGE),
        (MADV_NOHUGEPAGE, VM_NOHUGEPAGE, VM_HUGEPAGE),
        (MADV_RANDOM, VM_RAND_READ, VM_SEQ_READ),
        (MADV_SEQUENTIAL, VM_SEQ_READ, VM_RAND_READ),
    ):
        assert world.do("madvise", 0, 1, advice) == 0
        assert world.vma(0).vm_flags & (is_set | is_clear) == is_set


def test_fork_advice() -> None:
    """DONTFORK: not in the child. WIPEONFORK: there, and empty."""
    world = written(6)
    assert world.do("madvise", 0, 2, MADV_DONTFORK) == 0
    assert world.do("madvise", 2, 2, MADV_WIPEONFORK) == 0
    world.fork(1)
    assert [world.content(page, proc=1) for page in range(4)] == [None, None, {}, {}]
    assert world.content(4, proc=1) == world.content(4)
    check_all(world)
