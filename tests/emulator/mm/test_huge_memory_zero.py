"""The huge page of zeros: what maps it, what takes its place, and that nobody counts or writes it."""

from __future__ import annotations

import pytest

from emulator.geometry import LEVEL_PMD
from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import PRESENT, RW, SPECIAL, UFFD_WP, is_guard
from emulator.profile import PROFILES
from emulator.uapi import MADV_HUGEPAGE, OOM_KILLED
from emulator.workload import FOLL_PIN, FOLL_WRITE
from tests.emulator.kernel_world import World
from tests.emulator.mm.uffd_world import run
from tests.emulator.references import check_all


def only_read(world: World | None = None) -> World:
    """Sixteen pages that want huge pages; page 3 was read."""
    world = world or World()
    world.mmap(0, 16)
    assert world.do("madvise", 0, 16, MADV_HUGEPAGE) == 0
    assert world.do("read", 3) == 0
    return world


def shown(world: World, first: int, pages: int = 8, proc: int = 0) -> str:
    """A letter a page: H huge, Z the huge page of zeros, p, z small ones, g a guard, - nothing; ! protected."""
    text = ""
    for page in range(first, first + pages):
        table, _, entry = walk_slot(world.mm(proc), world.machine.geometry, world.address(page))
        letter = "-"
        if entry & PRESENT:
            letter = "z" if entry & SPECIAL else "p"
            letter = letter.upper().replace("P", "H") if table.level == LEVEL_PMD else letter
            assert not entry & SPECIAL or not entry & RW
            letter += "!" if entry & UFFD_WP else ""
        elif is_guard(entry):
            letter = "g"
        text += letter
    return text


@pytest.mark.parametrize(
    ("script", "first", "becomes"),
    [
        ("read 0; read 7; exec 1 = SIGSEGV", 0, "ZZZZZZZZ"),
        ("write 5 0", 0, "HHHHHHHH"),
        ("fill 5 0", 0, "HHHHHHHH"),
        # permissions
        ("mprotect 0 8 r", 0, "ZZZZZZZZ"),
        ("mprotect 0 16 r; mprotect 0 16 rw", 0, "ZZZZZZZZ"),
        ("mprotect 0 16 none; mprotect 0 16 rw; write 0 0", 0, "HHHHHHHH"),
        ("mprotect 0 4 r", 0, "zzzzzzzz"),
        ("mprotect 5 11 r; write 2 0", 0, "zzpzzzzz"),
        # unmapping
        ("munmap 0 2", 0, "--zzzzzz"),
        ("munmap 5 11", 0, "zzzzz---"),
        ("munmap 0 8", 0, "--------"),
        ("madvise 0 16 dontneed", 0, "--------"),
        ("madvise 2 2 dontneed", 0, "zz--zzzz"),
        ("madvise 2 2 dontneed; read 2", 0, "zzz-zzzz"),
        # moving
        ("mremap 0 8 8 maymove|fixed 16 = 16", 16, "ZZZZZZZZ"),
        ("mremap 0 8 8 maymove|fixed 16 = 16", 0, "--------"),
        ("mremap 0 8 8 maymove|fixed 17 = 17", 17, "zzzzzzzz"),
        ("mremap 0 4 4 maymove|fixed 16 = 16", 16, "zzzz----"),
        ("mremap 0 4 4 maymove|fixed 16 = 16", 0, "----zzzz"),
        ("mremap 0 8 8 maymove|dontunmap 16 = 16; read 3", 0, "ZZZZZZZZ"),
        # advice
        ("madvise 0 8 collapse", 0, "ZZZZZZZZ"),
        ("munmap 16 8; madvise 0 2 dontneed; madvise 0 8 collapse", 0, "HHHHHHHH"),
        ("madvise 0 8 free", 0, "ZZZZZZZZ"),
        ("madvise 0 4 free", 0, "ZZZZZZZZ"),
        ("madvise 0 4 cold; madvise 0 4 pageout", 0, "ZZZZZZZZ"),
        ("madvise 0 8 populate_read", 0, "ZZZZZZZZ"),
        ("madvise 2 1 populate_write", 0, "HHHHHHHH"),
        ("madvise 2 1 guard_install", 0, "zzgzzzzz"),
        ("madvise 0 8 mergeable; ksm_scan 16; ksm_scan 16", 0, "ZZZZZZZZ"),
        ("mlock 2 1", 0, "zzpzzzzz"),  # the boundaries of the locked VMA come first
        ("mlock 0 8", 0, "HHHHHHHH"),
        # the kernel's own
        ("reclaim 3; migrate 3", 0, "ZZZZZZZZ"),
        ("gup_slow 3 none 0; gup_slow 4 pin 1; gup_fast 5 none 2; unpin 0; unpin 1", 0, "ZZZZZZZZ"),
        ("gup_slow 3 pin|longterm 0", 0, "HHHHHHHH"),  # a page that stays the same must be our own
        ("gup_fast 3 pin|write 0", 0, "HHHHHHHH"),
        # userfaultfd
        ("uffd_register 0 16 wp; uffd_wp 0 8 wp", 0, "Z!Z!Z!Z!Z!Z!Z!Z!"),
        ("uffd_register 0 16 wp; uffd_wp 0 8 wp; write 3 0 = SIGBUS; uffd_wp 0 8 none", 0, "ZZZZZZZZ"),
        ("uffd_register 0 16 wp; uffd_wp 0 8 wp; uffd_wp 0 8 none; write 3 0", 0, "HHHHHHHH"),
        ("uffd_register 0 16 wp; uffd_wp 0 8 wp; uffd_wp 2 1 none", 0, "z!z!zz!z!z!z!z!"),
        (
            "mmap 16 8 rw private|fixed 0 0 = 16; uffd_register 16 8 missing; uffd_move 16 0 8 none = 8",
            16,
            "ZZZZZZZZ",
        ),
        (
            "mmap 16 8 rw private|fixed 0 0 = 16; uffd_register 16 8 missing; uffd_move 16 0 8 none = 8",
            0,
            "--------",
        ),
        (
            "mmap 16 8 rw private|fixed 0 0 = 16; uffd_register 16 8 missing; uffd_move 16 0 2 none = 2",
            0,
            "--zzzzzz",
        ),
        ("uffd_register 0 16 missing; uffd_copy 1 3 1 none = EEXIST", 0, "ZZZZZZZZ"),
        ("uffd_register 8 8 missing; read 9 = SIGBUS", 8, "--------"),
    ],
)
def test_what_becomes_of_it(script: str, first: int, becomes: str) -> None:
    """It stays, moves and goes as a whole where it can; else small pages of zeros take its place."""
    world = only_read()
    assert shown(world, 0) == "ZZZZZZZZ"
    assert shown(world, 8) == "--------"
    run(world, script)
    assert shown(world, first) == becomes
    check_all(world)


def test_nothing_counts_it() -> None:
    """The VMA is faulted all the same; the page has no mapcount, no mapping, no reference more."""
    world = only_read()
    zero = world.machine.phys.huge_zero_folio
    assert zero is not None
    assert world.vma(3).anon_vma is not None
    assert (zero.refcount, zero.mapcount(), zero.anon, zero.mapping) == (1, 0, False, None)
    assert world.do("gup_slow", 3, FOLL_PIN, 0) == 0
    assert (zero.refcount, zero.pincount) == (2, 1)  # unlike the small one
    assert world.do("unpin", 0) == 0
    assert zero.refcount == 1


def test_all_share_it() -> None:
    """Two ranges, and a child: the same frame; a child's write leaves the parent its own."""
    world = only_read()
    world.do("read", 8)
    zero = world.machine.phys.huge_zero_folio
    world.fork()
    assert [world.folio(page, proc) for page in (0, 8) for proc in (0, 1)] == [zero] * 4
    world.write(2, proc=1)
    assert (shown(world, 0), shown(world, 0, proc=1)) == ("ZZZZZZZZ", "HHHHHHHH")
    assert world.content(2) == {}
    for proc in (0, 1):
        world.do("exit", proc=proc)
    assert zero is not None
    assert zero.refcount == 1


def test_no_huge_page_for_a_write() -> None:
    """Without memory for one the small pages of zeros come, and the write copies one of them."""
    world = only_read()
    assert world.do("write", 5, 0, fail_nth=1) == 0
    assert shown(world, 0) == "zzzzzpzz"
    check_all(world)


@pytest.mark.parametrize(
    ("nth", "result", "becomes"),
    [(1, OOM_KILLED, ""), (2, 0, "---z----"), (3, 0, "ZZZZZZZZ")],
    ids=["table", "page", "nothing"],
)
def test_no_memory_for_it(nth: int, result: int, becomes: str) -> None:
    """Who needs it first allocates it; without memory there is a small page. The table to be deposited is a must."""
    world = World()
    world.mmap(0, 16)
    assert world.do("madvise", 0, 16, MADV_HUGEPAGE) == 0
    world.write(8)  # the anon_vma and the tables above are there
    assert world.do("read", 3, fail_nth=nth) == result
    if becomes:
        assert shown(world, 0) == becomes
        check_all(world)


def test_switched_off() -> None:
    """use_zero_page=0: a read gets a huge page of its own."""
    world = only_read(World(profile=PROFILES["6.18"]._replace(use_zero_page=False)))
    assert shown(world, 0) == "HHHHHHHH"
    assert world.do("gup_fast", 0, FOLL_PIN | FOLL_WRITE, 0) == 0
    assert world.machine.phys.huge_zero_folio is None
