"""UFFDIO_MOVE: pages change their address without a copy (the move_pages half of mm/userfaultfd.c).

No VMA is made or changed. A page that moves gets the destination VMA's anon_vma and index, under its folio lock, so
this must be the only mapping of the page (PageAnonExclusive), and nobody may have pinned it. As in 7.0 the folio lock
alone keeps walkers of the rmap out; 6.18 takes the lock of the anon_vma too, which makes no difference to walks that
all lock the folio. mmap_lock is held for reading throughout: faults and GUP go on beside. Huge pages move whole where
they can (``huge_memory_move.py``).
"""

from __future__ import annotations

from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import (
    ACCESSED,
    DIRTY,
    PRESENT,
    RW,
    SPECIAL,
    SWP_EXCLUSIVE,
    is_migration,
    is_swap,
    mk_pte,
    softleaf_value,
)
from emulator.mm import (
    huge_memory_split,
    memory,
    pgtable_generic,
    rmap_counts,
    swap,
    swap_state,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import (
    Folio,
    VmAreaStruct,
)
from emulator.uapi import EAGAIN, EBUSY, EEXIST, EFAULT, ENOENT


class PageMove:
    """The move of one or more pages from one address to another, each translated by one PTE table."""

    __slots__ = (
        "dst_addr",
        "dst_pmd",
        "dst_pmd_slot",
        "dst_slot",
        "dst_table",
        "dst_vma",
        "folio",
        "length",
        "m",
        "orig_dst",
        "orig_src",
        "src_addr",
        "src_slot",
        "src_table",
        "src_vma",
    )

    dst_table: PageTable
    src_table: PageTable

    def __init__(
        self, dst_vma: VmAreaStruct, src_vma: VmAreaStruct, dst_addr: int, src_addr: int, length: int
    ) -> None:
        mm = dst_vma.vm_mm
        self.m = mm.machine
        self.dst_vma = dst_vma
        self.src_vma = src_vma
        self.dst_addr = dst_addr
        self.src_addr = src_addr
        self.length = length  # bytes, at most; ``move_present_ptes`` may move fewer
        self.dst_slot = pgtable_generic.slot_of(mm, dst_addr, LEVEL_PTE)
        self.src_slot = pgtable_generic.slot_of(mm, src_addr, LEVEL_PTE)
        self.dst_pmd_slot = pgtable_generic.slot_of(mm, dst_addr, LEVEL_PMD)
        self.orig_dst = 0
        self.orig_src = 0
        self.folio: Folio | None = None  # the page that moves: referenced, and locked

    def find_tables(self) -> bool:
        """The PTE tables of both addresses; False where one is missing, or a huge page stands there."""
        mm = self.dst_vma.vm_mm
        dst = pgtable_generic.find_table(mm, self.dst_addr, LEVEL_PTE)
        src = pgtable_generic.find_table(mm, self.src_addr, LEVEL_PTE)
        if dst is None or src is None:
            return False
        self.dst_table, self.src_table = dst, src
        return True

    def dst(self) -> int:
        entry: int = self.dst_table.entries.get(self.dst_slot, 0)  # type: ignore[assignment]
        return entry

    def src(self) -> int:
        entry: int = self.src_table.entries.get(self.src_slot, 0)  # type: ignore[assignment]
        return entry


def read_locked(table: PageTable, slot: int) -> int:
    """An entry, read under its lock: not one that somebody has taken out for a moment."""
    table.ptl.lock()
    entry: int = table.entries.get(slot, 0)  # type: ignore[assignment]
    table.ptl.unlock()
    return entry


def let_go(move: PageMove) -> None:
    """Unlock the page that moves, and give its reference back."""
    folio = move.folio
    if folio is not None:
        move.folio = None
        folio.lock.unlock()
        swap.folio_put(move.m, folio)


# ---- both page-table locks


def double_pt_lock(move: PageMove) -> None:
    """Lock the tables of both addresses, the lower address first."""
    first, second = move.src_table, move.dst_table
    if move.dst_addr < move.src_addr:
        first, second = second, first
    first.ptl.lock()
    if second is not first:
        second.ptl.lock()
    move.m.sched.point("uffd_move.ptes_locked")


def double_pt_unlock(move: PageMove) -> None:
    move.src_table.ptl.unlock()
    if move.dst_table is not move.src_table:
        move.dst_table.ptl.unlock()


def is_pte_pages_stable(move: PageMove) -> bool:
    """Are both entries what they were, and the destination's table still in its place?"""
    if move.src() != move.orig_src or move.dst() != move.orig_dst:
        return False
    dst = pgtable_generic.find_table(move.dst_vma.vm_mm, move.dst_addr, LEVEL_PTE)
    return dst is move.dst_table


# ---- one kind of entry each: the bytes moved, or -errno


def move_zeropage_pte(move: PageMove) -> int:
    double_pt_lock(move)
    if not is_pte_pages_stable(move):
        double_pt_unlock(move)
        return -EAGAIN
    m = move.m
    move.src_table.set(move.src_slot, 0)
    m.flush_tlb_range(move.src_vma.vm_mm, move.src_addr, move.src_addr + PAGE_SIZE)
    prot = vma_ops.vm_page_prot(move.dst_vma.vm_flags) | ACCESSED | SPECIAL
    move.dst_table.set(move.dst_slot, mk_pte(m.phys.zero_folio.pfn, prot))
    double_pt_unlock(move)
    return PAGE_SIZE


def check_ptes_for_batched_move(move: PageMove) -> Folio | None:
    """The next page, locked, if it can move along at once: small, ours alone, and the place for it empty."""
    entry = move.src()
    if move.dst() or entry & (PRESENT | SPECIAL) != PRESENT:
        return None
    folio = memory.vm_normal_folio(move.src_vma, move.src_addr, entry)
    if folio is None or not folio.lock.trylock():
        return None
    if folio.order or not folio.anon_exclusive & 1:
        folio.lock.unlock()
        return None
    return folio


def move_one_present_pte(move: PageMove, folio: Folio) -> bool:
    """Move one page; both tables and the folio are locked. False: it was pinned meanwhile, and stays."""
    m = move.m
    entry = move.src()
    move.src_table.set(move.src_slot, 0)
    m.sched.point("uffd_move.pte_cleared")
    if folio.maybe_dma_pinned():
        # GUP-fast takes its pin first and looks at the entry afterwards: here it may have seen the entry
        move.src_table.set(move.src_slot, entry)
        return False
    rmap_counts.folio_move_anon_rmap(folio, move.dst_vma)
    folio.index = vma_ops.linear_page_index(move.dst_vma, move.dst_addr)
    m.sched.point("uffd_move.folio_moved")
    flags = vma_ops.vm_page_prot(move.dst_vma.vm_flags) | ACCESSED | RW | entry & DIRTY
    move.dst_table.set(move.dst_slot, mk_pte(folio.pfn, flags))
    m.sched.point("uffd_move.pte_moved")
    return True


def move_present_ptes(move: PageMove) -> int:
    """Move the page, and those after it that can move along; protection by userfaultfd does not move.

    Uses up ``move.folio``.
    """
    m = move.m
    folio = move.folio
    assert folio is not None
    pmd_size = m.geometry.pmd_size
    start = move.src_addr
    length = min(move.length, pmd_size - move.dst_addr % pmd_size, pmd_size - move.src_addr % pmd_size)
    double_pt_lock(move)
    error = 0
    if not is_pte_pages_stable(move):
        error = -EAGAIN
    elif folio.order or folio.maybe_dma_pinned() or not folio.anon_exclusive & 1:
        error = -EBUSY
    if error:
        double_pt_unlock(move)
        let_go(move)
        return error
    move.folio = None
    swap.folio_put(m, folio)  # the entry has one
    locked: Folio | None = folio
    while locked is not None:
        if not move_one_present_pte(move, locked):
            error = -EBUSY
            break
        move.src_addr += PAGE_SIZE
        if move.src_addr == start + length:
            break
        move.dst_addr += PAGE_SIZE
        move.dst_slot += 1
        move.src_slot += 1
        locked.lock.unlock()
        locked = check_ptes_for_batched_move(move)
    if move.src_addr > start:
        m.flush_tlb_range(move.src_vma.vm_mm, start, move.src_addr)
    if locked is not None:
        locked.lock.unlock()
    double_pt_unlock(move)
    return move.src_addr - start or error


def move_swap_pte(move: PageMove) -> int:
    """Move a swap entry; ``move.folio`` is what the swap cache has of it, if anything. Its protection moves along."""
    folio = move.folio
    slot = softleaf_value(move.orig_src)
    if folio is not None and not (folio.swapcache and folio.swap == slot):
        return -EAGAIN
    double_pt_lock(move)
    if not is_pte_pages_stable(move) or (folio is None and slot in move.m.swap.cache):
        double_pt_unlock(move)
        return -EAGAIN
    if folio is not None:
        rmap_counts.folio_move_anon_rmap(folio, move.dst_vma)
        folio.index = vma_ops.linear_page_index(move.dst_vma, move.dst_addr)
        move.m.sched.point("uffd_move.folio_moved")
    move.src_table.set(move.src_slot, 0)
    move.dst_table.set(move.dst_slot, move.orig_src)
    double_pt_unlock(move)
    return PAGE_SIZE


# ---- one page


def find_present_folio(move: PageMove) -> int:
    """Reference and lock the page that the source maps, waiting if need be. 0, -EBUSY (not ours alone), -EAGAIN."""
    table = move.src_table
    table.ptl.lock()
    if move.src() != move.orig_src:
        table.ptl.unlock()
        return -EAGAIN
    folio = memory.vm_normal_folio(move.src_vma, move.src_addr, move.orig_src)
    if folio is None or not folio.anon_exclusive >> memory.page_of(folio, move.orig_src) & 1:
        table.ptl.unlock()
        return -EBUSY
    locked = folio.lock.trylock()
    if not locked and folio.order:
        table.ptl.unlock()  # a reference of ours would keep others from splitting it
        move.m.sched.wait_for(lambda: folio.lock.owner is None, "folio lock")
        return -EAGAIN
    swap.folio_get(folio)
    table.ptl.unlock()
    if not locked:
        move.m.sched.point("uffd_move.folio_found")
        folio.lock.lock()
    move.folio = folio
    move.m.sched.point("uffd_move.folio_locked")
    return 0


def split_source(move: PageMove) -> int:
    """The page belongs to a large folio: split that, and let it go. -EAGAIN: look again; -EBUSY: it cannot be."""
    m = move.m
    folio = move.folio
    assert folio is not None
    first = folio.pfn
    error = huge_memory_split.split_folio(m, folio)
    move.folio = m.phys.frames[first]
    let_go(move)
    return -EBUSY if error else -EAGAIN


def move_present(move: PageMove) -> int:
    """The source maps a page, of its own or the zero page."""
    if move.orig_src & SPECIAL:
        return move_zeropage_pte(move)
    error = find_present_folio(move)
    if error:
        return error
    folio = move.folio
    assert folio is not None
    if read_locked(move.dst_table, move.dst_slot) or read_locked(move.src_table, move.src_slot) != move.orig_src:
        let_go(move)
        return -EAGAIN  # somebody else was faster while we waited for the lock
    if folio.order:
        return split_source(move)
    return move_present_ptes(move)


def move_swapped(move: PageMove) -> int:
    """The source is swapped out."""
    m = move.m
    if not move.orig_src & SWP_EXCLUSIVE:
        return -EBUSY
    folio = swap_state.swap_cache_get_folio(m, softleaf_value(move.orig_src))
    if folio is not None:
        if folio.order:
            swap.folio_put(m, folio)
            return -EBUSY
        m.sched.point("uffd_move.swap_folio_found")
        folio.lock.lock()
        move.folio = folio
    moved = move_swap_pte(move)
    let_go(move)
    return moved


def move_pages_ptes(move: PageMove, holes: bool) -> int:
    """Move at least one page: the bytes moved, -EAGAIN to look again, or another errno.

    ``holes``: nothing at the source counts as moved.
    """
    if not move.find_tables():
        return -EAGAIN
    move.orig_dst = read_locked(move.dst_table, move.dst_slot)
    move.orig_src = read_locked(move.src_table, move.src_slot)
    move.m.sched.point("uffd_move.entries_read")
    if move.orig_dst:
        return -EEXIST
    orig = move.orig_src
    if not orig:
        return PAGE_SIZE if holes else -ENOENT
    if orig & PRESENT:
        return move_present(move)
    if is_migration(orig):
        memory.migration_entry_wait(move.src_vma.vm_mm, move.src_table, move.src_slot, orig)
        return -EAGAIN
    return move_swapped(move) if is_swap(orig) else -EFAULT
