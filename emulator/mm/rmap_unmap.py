"""Unmapping a folio everywhere, for reclaim and for migration: try_to_unmap and try_to_migrate of mm/rmap.c.

TLBs are flushed at each entry; the kernel may put that off until before the folio is written or freed.
"""

from __future__ import annotations

from emulator.geometry import PAGE_SIZE
from emulator.hw.pte import (
    DIRTY,
    PFN_SHIFT,
    RW,
    SOFT_DIRTY,
    SOFTLEAF_MIGRATION_READ,
    SOFTLEAF_MIGRATION_READ_EXCLUSIVE,
    SOFTLEAF_MIGRATION_WRITE,
    SOFTLEAF_SWAP,
    SWP_EXCLUSIVE,
    UFFD_WP,
    mk_softleaf,
)
from emulator.mm import (
    huge_memory,
    mlock_folio,
    page_vma_mapped,
    rmap,
    rmap_counts,
    swap,
    userfaultfd_k,
)
from emulator.mm_types import VM_DROPPABLE, VM_LOCKED, Folio, VmAreaStruct


def try_to_unmap_one(folio: Folio, vma: VmAreaStruct, address: int, *, ignore_mlock: bool) -> bool:
    """Replace the entries of one VMA by swap entries; a file's pages are just unmapped. False ends the walk.

    A page that may be pinned stays mapped, as do those of locked memory (not with ``ignore_mlock``), where the folio is
    marked as mlocked, if it was missed.
    """
    mm = vma.vm_mm
    m = mm.machine
    stays, first, crossed = 0, None, False
    for table, slot, addr, entry in page_vma_mapped.page_vma_mapped_walk(
        folio, vma, address, sync=folio.order > 0
    ):
        if vma.vm_flags & VM_LOCKED and not ignore_mlock:
            stays += folio.nr_pages if table.level else 1
            crossed = crossed or table is not (first or table)
            first = table
            if stays == folio.nr_pages and not crossed:  # all of it under one page-table lock
                mlock_folio.mlock_vma_folio(folio, vma)
            continue
        if table.level and folio.anon and not folio.swapbacked:
            if not huge_memory.unmap_huge_pmd_locked(vma, addr, table, slot, folio):
                table.ptl.unlock()
                return False
            continue
        if table.level:
            huge_memory.split_huge_pmd_locked(vma, table, slot, addr, freeze=False)
            continue
        page = (entry >> PFN_SHIFT) - folio.pfn
        table.set(slot, 0)
        m.flush_tlb_range(mm, addr, addr + PAGE_SIZE)
        m.sched.point("unmap.pte_cleared")
        if entry & DIRTY:
            folio.dirty = True
        if folio.anon and not folio.swapbacked:
            if not may_discard(folio, vma):
                table.set(slot, entry)
                table.ptl.unlock()
                return False
        elif folio.anon:
            swap_entry = make_swap_entry(folio, page, entry, vma)
            if not swap_entry:
                table.set(slot, entry)
                table.ptl.unlock()
                return False
            table.set(slot, swap_entry)
        else:
            userfaultfd_k.pte_install_uffd_wp_if_needed(vma, table, slot, entry)
        rmap_counts.folio_remove_rmap_ptes(folio, page, 1, vma)
        if vma.vm_flags & VM_LOCKED:
            mlock_folio.mlock_drain_local(m)
        swap.folio_put(m, folio)
        m.sched.point("unmap.page_unmapped")
    return not stays


def may_discard(folio: Folio, vma: VmAreaStruct) -> bool:
    """May a page that swap does not back, whose entry is cleared, be thrown away?

    One that was lazily freed and then written to is backed by swap again; droppable memory never is. Whoever holds a
    reference may have written through it, and will only then mark the folio dirty.
    """
    if folio.dirty and not vma.vm_flags & VM_DROPPABLE:
        folio.swapbacked = True
        return False
    return folio.refcount == 1 + folio.mapcount()


def make_swap_entry(folio: Folio, page: int, entry: int, vma: VmAreaStruct) -> int:
    """The swap entry that takes the place of ``entry``, which is cleared by now. 0: the page has to stay."""
    m = vma.vm_mm.machine
    if not folio.swapcache:
        m.warn("unmap-without-swap", f"{folio} is unmapped and has no swap space", folio)
        return 0
    swap_slot = folio.swap + page
    m.swap.get(swap_slot)
    flags = entry & (SOFT_DIRTY | UFFD_WP)
    if folio.anon_exclusive >> page & 1:
        if rmap_counts.folio_try_share_anon_rmap_pte(folio, page):
            m.swap.put(swap_slot)
            return 0
        flags |= SWP_EXCLUSIVE
    return mk_softleaf(SOFTLEAF_SWAP, swap_slot, flags)


def try_to_unmap(folio: Folio, *, locked: bool = False, ignore_mlock: bool = False) -> None:
    """Unmap the locked folio wherever that is possible; ``folio.mapped()`` tells whether it was everywhere.

    An anonymous folio is in the swap cache. ``locked``: the caller holds the rmap lock. ``ignore_mlock``: of locked
    memory too (TTU_IGNORE_MLOCK), where faults bring it back at once.
    """

    def visit(folio: Folio, vma: VmAreaStruct, address: int) -> bool:
        return try_to_unmap_one(folio, vma, address, ignore_mlock=ignore_mlock) and folio.mapped()

    if locked:
        rmap.rmap_walk_locked(folio, visit)
    else:
        rmap.rmap_walk(folio, visit, mapped_only=True)


def migration_kind(writable: bool, exclusive: bool) -> int:
    """SOFTLEAF_MIGRATION_*: what an entry was, so that it can become that again."""
    if writable:
        return SOFTLEAF_MIGRATION_WRITE
    return SOFTLEAF_MIGRATION_READ_EXCLUSIVE if exclusive else SOFTLEAF_MIGRATION_READ


def try_to_migrate_one(folio: Folio, vma: VmAreaStruct, address: int) -> bool:
    """Replace the entries of one VMA by migration entries. False ends the walk: a page may be pinned."""
    mm = vma.vm_mm
    m = mm.machine
    for table, slot, addr, entry in page_vma_mapped.page_vma_mapped_walk(
        folio, vma, address, sync=folio.order > 0
    ):
        if table.level:
            huge_memory.split_huge_pmd_locked(vma, table, slot, addr, freeze=True)
            continue
        page = (entry >> PFN_SHIFT) - folio.pfn
        exclusive = bool(folio.anon and folio.anon_exclusive >> page & 1)
        table.set(slot, 0)
        m.flush_tlb_range(mm, addr, addr + PAGE_SIZE)
        m.sched.point("migrate.pte_cleared")
        if entry & DIRTY:
            folio.dirty = True
        if entry & RW and folio.anon and not exclusive:
            m.warn("writable-not-exclusive", f"page {page} of {folio} was mapped writable", folio)
        if exclusive and rmap_counts.folio_try_share_anon_rmap_pte(folio, page):
            table.set(slot, entry)
            table.ptl.unlock()
            return False
        kind = migration_kind(bool(entry & RW), exclusive)
        table.set(slot, mk_softleaf(kind, entry >> PFN_SHIFT, entry & (SOFT_DIRTY | UFFD_WP)))
        rmap_counts.folio_remove_rmap_ptes(folio, page, 1, vma)
        if vma.vm_flags & VM_LOCKED:
            mlock_folio.mlock_drain_local(m)
        swap.folio_put(m, folio)
        m.sched.point("migrate.entry_set")
    return True


def try_to_migrate(folio: Folio, *, locked: bool = False) -> None:
    """Replace every mapping of the locked folio by a migration entry; ``folio.mapped()`` tells whether all went.

    ``locked``: the caller holds the rmap lock.
    """

    def visit(folio: Folio, vma: VmAreaStruct, address: int) -> bool:
        return try_to_migrate_one(folio, vma, address) and folio.mapped()

    if locked:
        rmap.rmap_walk_locked(folio, visit)
    else:
        rmap.rmap_walk(folio, visit, mapped_only=True)
