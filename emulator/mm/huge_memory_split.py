"""Splitting large folios into small ones: the folio half of splitting in mm/huge_memory.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.mm import migrate, rmap, rmap_unmap, swap, swap_state, vmscan
from emulator.mm_types import Folio
from emulator.uapi import EAGAIN, EBUSY, EINVAL

if TYPE_CHECKING:
    from emulator.machine import Machine


def split_folio(folio: Folio, lock_at: int = 0) -> int:
    """Split a locked, referenced, anonymous large folio into small ones on the same frames.

    ``m.phys.frames[folio.pfn + lock_at]`` is page ``lock_at``'s folio afterwards: it has the caller's lock and
    reference. 0; -EBUSY: not mapped; -EAGAIN: somebody else has a reference (a pin); on an error the folio is as
    before, but mapped by PTEs.
    """
    if folio.order == 0 or not folio.anon:
        return -EINVAL
    if folio.writeback:
        return -EBUSY
    anon_vma = rmap.folio_get_anon_vma(folio)
    if anon_vma is None:
        return -EBUSY
    m = anon_vma.machine
    rmap.anon_vma_lock_write(anon_vma)
    error = -EAGAIN
    if vmscan.folio_expected_ref_count(folio) == folio.refcount - 1:
        m.sched.point("thp.split_begin")
        rmap_unmap.try_to_migrate(folio, locked=True)
        m.sched.point("thp.folio_unmapped")
        if folio.refcount == 1 + (folio.nr_pages if folio.swapcache else 0):
            split_unmapped_folio(m, folio, lock_at)
            error = 0
        else:
            migrate.remove_migration_ptes(folio, folio, locked=True)
    rmap.anon_vma_unlock_write(anon_vma)
    rmap.put_anon_vma(anon_vma)
    return error


def split_unmapped_folio(m: Machine, folio: Folio, lock_at: int) -> None:
    """The split itself, when migration entries hold every place: nobody but the caller has a reference.

    Pages of zeros are given back, and the zero page is mapped in their place.
    """
    to_zeropage = m.profile.split_maps_zero_page
    swapcache, slot, owner = folio.swapcache, folio.swap, folio.lock.owner
    small = m.phys.split(folio)
    for i, page in enumerate(small):
        page.refcount = 1
        page.mapping = folio.mapping
        page.anon = True
        page.index = folio.index + i
        page.dirty = folio.dirty
        page.uptodate = folio.uptodate
        page.swapbacked = folio.swapbacked
        page.lock.owner = owner
        page.lru = i > 0 or folio.lru
        page.mlocked, page.unevictable = folio.mlocked, folio.unevictable
        if swapcache:
            page.refcount += 1
            page.swapcache = True
            page.swap = slot + i
            swap_state.replace_in_swap_cache(m, folio, page)
    small[0].mlock_count = folio.mlock_count  # the others begin anew
    folio.refcount = 0
    folio.swapcache = False
    folio.lock.owner = None
    for page in small:
        migrate.remove_migration_ptes(page, page, locked=True, unused_to_zeropage=to_zeropage)
    m.sched.point("thp.folio_split")
    for i, page in enumerate(small):
        if i != lock_at:
            page.lock.unlock()
            swap_state.free_swap_cache(m, page)
            swap.folio_put(m, page)
