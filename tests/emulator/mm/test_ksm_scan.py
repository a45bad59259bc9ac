"""The same-page scanner: which pages it merges, when, and what it remembers.

What the tables say was seen on Linux 6.18 (ranges of 512 pages for our 8), with one scan at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.hw.pte import DIRTY, SPECIAL
from emulator.hw.pte import RW as PTE_RW
from emulator.uapi import (
    EAGAIN,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_UNMERGEABLE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
)
from emulator.workload import FOLL_PIN, FOLL_WRITE
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World, ksm_nodes
from tests.emulator.mm.equal_pages import advise, equal, fill, items, listed, merged, node_of, scan
from tests.emulator.mm.world import PIN_RW, fail_next, is_huge
from tests.emulator.references import check_all

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


# ---- merging

pytestmark = pytest.mark.live


def test_equal_pages_become_one() -> None:
    """The second scan merges what the first one has seen unchanged: one page, read-only and clean, nobody's own."""
    world = equal(0, 1, 5)
    fill(world, 3, pattern=2)
    before = world.contents()
    last = world.folio(1)
    assert scan(world) == 0
    assert not any(world.folio(page).ksm for page in (0, 1, 5))
    assert scan(world) == 3
    folio = world.folio(0)
    assert folio is world.folio(1) is world.folio(5) is last  # the one met second stays
    assert (folio.ksm, folio.anon, folio.anon_exclusive, folio.dirty) == (True, True, 0, True)
    assert (folio.refcount, folio.mapcounts) == (3, [3])
    assert not any(world.pte(page) & (PTE_RW | DIRTY) for page in (0, 1, 5))
    assert listed(world, node_of(world, 0)) == [(0, 0), (0, 1), (0, 5)]
    assert not world.folio(3).ksm
    assert world.pte(3) & PTE_RW
    assert world.contents() == before
    assert scan(world) == 0
    check_all(world)


def test_a_page_that_comes_later() -> None:
    """It joins the KSM page as soon as it was seen unchanged."""
    world = merged(0, 1)
    folio = world.folio(0)
    fill(world, 7)
    assert [scan(world), scan(world)] == [0, 1]
    assert world.folio(7) is folio
    assert listed(world, node_of(world, 7)) == [(0, 0), (0, 1), (0, 7)]
    check_all(world)


def test_pages_of_zeros() -> None:
    """They are merged like others; the zero page, which a read maps, is no page of theirs."""
    world = equal()
    fill(world, 0, 1, pattern=0)
    world.do("read", 2)
    assert scan(world, 2) == 2
    assert world.folio(0) is world.folio(1)
    assert world.pte(2) & SPECIAL
    check_all(world)


def test_a_page_that_changes() -> None:
    """Between two scans: it is left alone until it rests. A page that is written after the merge has its own."""
    world = equal(0, 1)
    scan(world)
    fill(world, 0, pattern=2)
    assert scan(world) == 0
    fill(world, 0)
    assert [scan(world), scan(world)] == [0, 2]
    world.write(0, 1)
    assert world.folio(1).ksm
    assert not world.folio(0).ksm
    assert world.folio(0).anon_exclusive
    check_all(world)


def unfaulted(world: World) -> None:
    world.do("read", 0)


def two_processes(world: World) -> None:
    world.fork()
    fill(world, 0, 1, pattern=1)
    fill(world, 0, 1, pattern=1, proc=1)


def not_mergeable(world: World) -> None:
    fill(world, 0, 1)
    advise(world, 1, 1, MADV_UNMERGEABLE)


def read_only(world: World) -> None:
    fill(world, 0, 1)
    assert world.do("mprotect", 0, 2, PROT_READ) == 0


def forbidden(world: World) -> None:
    fill(world, 0, 1)
    assert world.do("mprotect", 0, 2, PROT_NONE) == 0


def copies_of_a_file(world: World) -> None:
    world.mmap(0, 2, RW, PRIVATE_FIXED, 1)
    advise(world, 0, 2, MADV_MERGEABLE)
    fill(world, 0, 1)


def pages_of_a_file(world: World) -> None:
    world.mmap(0, 2, RW, PRIVATE_FIXED, 1)
    advise(world, 0, 2, MADV_MERGEABLE)
    world.do("read", 0)
    world.do("read", 1)


def swapped_out(world: World) -> None:
    fill(world, 0, 1)
    assert world.do("reclaim", 0) == 1


def swapped_in(world: World) -> None:
    swapped_out(world)
    world.do("read", 0)
    assert world.folio(0).swapcache


def used(flags: int) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        fill(world, 0, 1)
        assert world.do("gup_fast", 0, flags, 1) == 0

    return prepare


@pytest.mark.parametrize(
    ("prepare", "merges"),
    [
        (unfaulted, 0),
        (two_processes, 4),
        (not_mergeable, 0),
        (read_only, 2),
        (forbidden, 2),
        (copies_of_a_file, 2),
        (pages_of_a_file, 0),
        (swapped_out, 0),
        (swapped_in, 2),
        (used(0), 0),
        (used(FOLL_WRITE), 0),
        (used(FOLL_PIN), 0),
        (used(PIN_RW), 0),
    ],
)
def test_which_pages(prepare: Callable[[World], None], merges: int) -> None:
    """Anonymous pages, present, in mergeable VMAs; nobody uses them but who maps them."""
    world = equal()
    prepare(world)
    before = world.contents()
    assert scan(world, 2) == merges
    assert world.contents() == before
    assert not world.machine.swap.count or prepare is swapped_out
    check_all(world)


def test_a_clean_page() -> None:
    """It was read from swap, and has no need to be written there: as a KSM page it has."""
    world = equal(0, 1)
    assert world.do("reclaim", 1) == 1
    world.do("read", 1)
    folio = world.folio(1)
    assert not folio.dirty
    assert scan(world, 2) == 2
    assert world.folio(0) is folio
    assert folio.dirty
    check_all(world)


def test_a_reference_that_cannot_write() -> None:
    """A clean page that is shared anyway is replaced, whoever has a reference: he sees what he saw before."""
    world = equal(0, 1)
    world.fork()
    assert world.do("reclaim", 0) == 1
    for proc in (0, 1):
        world.do("read", 0, proc=proc)
    assert world.do("gup_fast", 0, 0, 1) == 0
    folio = world.folio(0)
    assert scan(world, 2) == 4
    assert world.folio(0) is world.folio(1) is not folio
    assert world.machine.pins[1].folio is folio
    check_all(world)


def test_where_a_page_may_be() -> None:
    """By its index, in a VMA of its family; a KSM page may be anywhere."""
    world = equal()
    world.fork()
    for proc in (0, 1):
        fill(world, 3, proc=proc)
    where = world.image.ksm_merge.page_address_in_vma
    assert where(world.folio(3), 0, world.vma(3)) == world.address(3)
    assert where(world.folio(3), 0, world.vma(3, 1)) is None
    scan(world, 2)
    assert where(world.folio(3), 0, world.vma(3)) is None


def test_a_pin_that_goes() -> None:
    """The page is merged once it is given back."""
    world = equal(0, 1)
    assert world.do("gup_fast", 0, PIN_RW, 1) == 0
    assert scan(world, 3) == 0
    assert world.do("unpin", 1) == 0
    assert scan(world) == 2
    check_all(world)


def test_a_forked_page_is_not_its_own_equal() -> None:
    """Parent and child share it: that is as good as merged, and it stays an ordinary page."""
    world = equal(0)
    world.fork()
    assert scan(world, 3) == 0
    assert not world.folio(0).ksm
    assert len(items(world)) == len(items(world, 1)) == 1


def test_files_have_pages_that_are_not_looked_at() -> None:
    """Of a private file mapping only the copies."""
    world = World()
    world.mmap(0, 2, RW, PRIVATE_FIXED, 1)
    advise(world, 0, 2, MADV_MERGEABLE)
    world.do("read", 0)
    fill(world, 1)
    scan(world)
    assert [world.page(item.address) for item in items(world)] == [1]


def test_forked_pages() -> None:
    """A page that parent and child share already is merged once; the child, which maps it still, is listed in turn."""
    world = equal(0, 1)
    world.fork()
    assert scan(world, 2) == 4
    node = node_of(world, 0)
    assert world.folio(0) is world.folio(1) is world.folio(0, 1) is world.folio(1, 1)
    assert listed(world, node) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    check_all(world)


def test_a_child_of_merged_pages() -> None:
    """It maps the same pages and is listed by the next scan; until then its parent's items lead to it."""
    world = merged(0, 1)
    world.fork()
    assert world.folio(0, 1) is world.folio(0)
    assert listed(world, node_of(world, 0)) == [(0, 0), (0, 1)]
    assert scan(world) == 2
    assert listed(world, node_of(world, 0)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    check_all(world)


# ---- huge pages


def test_pages_of_huge_pages() -> None:
    """A huge page is split when one of its pages finds its equal; two equal pages of one cannot split it at once."""
    world = World()
    world.mmap(0, 24)
    advise(world, 0, 8, MADV_HUGEPAGE)
    fill(world, 0, 1, 2, 3)
    fill(world, 12)
    advise(world, 0, 24, MADV_MERGEABLE)
    assert is_huge(world, 0)
    before = world.contents()
    assert scan(world) == 0
    assert is_huge(world, 0)
    assert scan(world) == 4
    assert [world.folio(page).ksm for page in (0, 1, 2, 3, 12)] == [True, False, True, True, True]
    assert all(world.pte(page) & SPECIAL for page in range(4, 8))  # the split gives pages of zeros back
    assert scan(world) == 1
    assert world.folio(1) is world.folio(0)
    assert world.contents() == before
    check_all(world)


def test_a_huge_page_in_use() -> None:
    """It cannot be split, so it stays whole."""
    world = World()
    world.mmap(0, 16)
    advise(world, 0, 8, MADV_HUGEPAGE)
    fill(world, 0, 12)
    advise(world, 0, 16, MADV_MERGEABLE)
    assert world.do("gup_fast", 5, PIN_RW, 1) == 0
    assert scan(world, 3) == 0
    assert world.folio(0).order
    check_all(world)


def test_collapse_of_merged_pages() -> None:
    """A KSM page is copied like any other; one that the range maps twice is locked when its turn comes again."""
    world = merged(0, 12)
    fill(world, 1, pattern=2)
    assert world.do("madvise", 0, 8, MADV_COLLAPSE) == 0
    assert is_huge(world, 0)
    assert world.folio(12).ksm
    assert scan(world) == 1  # its contents are known: split, and merged again
    assert world.folio(0) is world.folio(12)
    check_all(world)
    twice = merged(0, 1)
    assert twice.do("madvise", 0, 8, MADV_COLLAPSE) == -EAGAIN
    assert twice.folio(0).ksm
    check_all(twice)


# ---- what is remembered


def test_items_of_what_is_gone() -> None:
    """Unmapped, dropped, no longer mergeable: the scanner finds out when it comes by."""
    world = merged(0, 1, 2, 9)
    assert world.do("munmap", 0, 1) == 0
    advise(world, 1, 1, MADV_DONTNEED)
    advise(world, 2, 1, MADV_UNMERGEABLE)
    node = node_of(world, 9)
    assert listed(world, node) == [(0, 0), (0, 1), (0, 2), (0, 9)]
    scan(world)
    assert listed(world, node) == [(0, 9)]
    assert [world.page(item.address) for item in items(world)] == [9]
    check_all(world)


def test_items_behind_the_last_page() -> None:
    """They go as well, with the VMA that they were in."""
    world = merged(0, 9)
    assert world.do("munmap", 8, 8) == 0
    scan(world)
    assert listed(world, node_of(world, 0)) == [(0, 0)]


def test_a_stale_node() -> None:
    """Its page is gone: it is dropped, with its items, by the next look-up; equal pages begin anew."""
    world = merged(0, 1)
    node = node_of(world, 0)
    anon_vma = world.vma(0).anon_vma
    assert anon_vma is not None
    fill(world, 0, 1, pattern=2)
    assert node.folio.freed
    assert ksm_nodes(world) == [node]
    assert scan(world, 2) == 2
    assert node not in ksm_nodes(world)
    assert not node.hlist
    assert node_of(world, 0).contents != node.contents
    assert anon_vma.refcount == 3  # its own, and two of the new items
    check_all(world)


def test_a_node_that_is_about_to_go() -> None:
    """Nobody is listed there any more: it takes no new place, though a child maps its page still."""
    world = merged(1, 2)
    fill(world, 9)
    scan(world)
    world.fork()
    assert world.do("munmap", 1, 2) == 0
    folio = world.folio(1, 1)
    assert scan(world) == 2  # the child's places; the page that wanted to join came too early
    assert not world.folio(9).ksm
    assert scan(world) == 2
    assert world.folio(9) is folio
    check_all(world)


def test_an_anon_vma_that_only_an_item_keeps() -> None:
    """Items have a reference, so that a walk can begin there; the VMA may be gone."""
    world = merged(0, 1)
    anon_vma = world.vma(0).anon_vma
    assert anon_vma is not None
    assert anon_vma.refcount == 3
    world.mmap(20, 1)
    advise(world, 20, 1, MADV_MERGEABLE)
    fill(world, 20)
    scan(world, 2)
    assert world.do("munmap", 0, 16) == 0
    assert not anon_vma.freed
    assert not anon_vma.rb_root
    scan(world)
    assert anon_vma.freed
    check_all(world)


def test_a_process_that_ends() -> None:
    """The scanner gives up what it has of it; with nothing mergeable left it forgets a process that lives, too."""
    world = merged(0, 1)
    world.fork()
    scan(world)
    node = node_of(world, 0)
    assert world.do("exit", proc=1) == 0
    assert [slot.mm.label for slot in world.machine.ksm.mm_slots] == [1, 0]  # next in turn
    assert len(node.hlist) == 4
    scan(world)
    assert listed(world, node) == [(0, 0), (0, 1)]
    assert [slot.mm.label for slot in world.machine.ksm.mm_slots] == [0]
    advise(world, 0, 16, MADV_UNMERGEABLE)
    scan(world)
    assert world.machine.ksm.mm_slots == []
    check_all(world)


def test_a_process_that_ends_before_it_was_scanned() -> None:
    """There is nothing to give up."""
    world = equal(0, 1)
    world.fork()
    assert world.do("exit", proc=1) == 0
    assert [slot.mm.label for slot in world.machine.ksm.mm_slots] == [0]


def test_a_page_that_nobody_else_has() -> None:
    """After some scans in vain it is looked at less often (smart_scan): 1, 2, 4, then 8 scans are left out between."""
    world = equal(0)
    scan(world)
    (item,) = items(world)
    looked_at = [1]
    for _ in range(19):
        item.oldchecksum = None  # set when it is looked at
        scan(world)
        looked_at.append(int(item.oldchecksum is not None))
    assert looked_at == [1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_many_pages_of_the_same_contents() -> None:
    """A node takes 256 places; then there is a second page of the same contents."""
    world = World("x86-64")
    world.mmap(0, 300)
    fill(world, *range(300))
    advise(world, 0, 300, MADV_MERGEABLE)
    scan(world, 2)
    nodes = ksm_nodes(world)
    assert sorted(len(node.hlist) for node in nodes) == [44, 256]
    assert len({node.contents for node in nodes}) == 1
    assert {world.folio(page) for page in range(300)} == {node.folio for node in nodes}
    check_all(world)


# ---- a scan in pieces


def test_a_few_pages_at_a_time() -> None:
    """The cursor goes on where it stood; a process that comes meanwhile waits for the next scan."""
    world = equal(0, 1, 2)
    cursor = world.machine.ksm
    assert world.do("ksm_scan", 2) == 0
    assert (cursor.slot, cursor.position, world.page(cursor.address)) == (cursor.mm_slots[0], 2, 2)
    world.fork()
    assert [slot.mm.label for slot in cursor.mm_slots] == [1, 0]
    assert world.do("ksm_scan", 5) == 0  # to the end of the scan, and not into the next
    assert cursor.slot is None
    assert len(items(world)) == 3
    assert items(world, 1) == []
    scan(world)
    assert len(items(world, 1)) == 3
    check_all(world)


def test_the_process_under_the_cursor_ends() -> None:
    """It is left to the scanner."""
    world = equal(0, 1)
    world.fork()
    world.do("ksm_scan", 1)
    slot = world.machine.ksm.slot
    assert slot is not None
    assert slot.mm.label == 0
    assert world.do("exit") == 0
    assert world.machine.ksm.slot is slot
    scan(world, 3, proc=1)
    assert [s.mm.label for s in world.machine.ksm.mm_slots] == [1]
    assert [proc for proc, _ in listed(world, node_of(world, 0, 1))] == [1, 1]
    check_all(world)


# ---- out of memory


@pytest.mark.parametrize("nth", range(1, 8))
@pytest.mark.parametrize("scans", [0, 1])
def test_out_of_memory(scans: int, nth: int) -> None:
    """No item: the scan ends there. No node: both pages are unmerged. Nothing is lost, and later it works."""
    world = equal(0, 1, 2)
    before = world.contents()
    scan(world, scans)
    world.do("ksm_scan", 0, fail_nth=nth)
    failed = world.machine.sched.current.failed
    assert failed in ("", "ksm_rmap_item", "ksm_stable_node", "folio_alloc")
    assert world.contents() == before
    check_all(world)
    scan(world, 3)
    assert len({world.folio(page).pfn for page in (0, 1, 2)}) == 1
    assert world.contents() == before
    check_all(world)


def test_no_memory_for_a_node_of_shared_pages() -> None:
    """A page that a child shares stays a KSM page there, without a node: it is as good as any until it is written."""
    world = equal(0, 1)
    world.fork()
    scan(world)
    fail_next(world, 1)
    assert world.image.ksm_scan.ksm_do_scan(world.machine, 3) == 0
    assert world.machine.sched.current.failed == "ksm_stable_node"
    assert not world.folio(0).ksm
    assert world.folio(1, 1).ksm
    assert world.folio(1, 1).mapping is None
    before = world.contents(1)
    assert world.do("migrate", 1, proc=1) == 0  # nothing leads to it
    world.write(1, 3, proc=1)
    assert not world.folio(1, 1).ksm
    assert world.content(0, 1) == before[0]
    check_all(world)


def test_a_search_ends_at_a_page_that_is_gone() -> None:
    """On its way down the unstable tree (unstable_tree_search_insert): who meets it waits for the next scan."""
    world = World("x86-64")
    world.mmap(0, 512)
    assert world.do("madvise", 0, 512, MADV_HUGEPAGE) == 0
    world.write(300)
    assert world.do("madvise", 0, 3, MADV_MERGEABLE) == 0
    world.mmap(1000, 2)
    assert world.do("madvise", 1000, 2, MADV_MERGEABLE) == 0
    for page in (1000, 1001):
        assert world.do("fill", page, 1) == 0
    for result in (0, 0, 2):
        # two zero pages of one huge page: the second scan splits it, and zeros are not mapped any more
        assert world.do("ksm_scan", 0) == result
    check_all(world)
