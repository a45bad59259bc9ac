"""Splitting large folios: the folio half of splitting in mm/huge_memory.c.

An anonymous folio is mapped by migration entries meanwhile, a file's is unmapped, and faults bring its pages back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.fs_types import AddressSpace
from emulator.geometry import PAGE_SHIFT
from emulator.mm import migrate, rmap, rmap_unmap, shmem, swap, swap_state, vmscan
from emulator.mm_types import Folio
from emulator.uapi import EAGAIN, EBUSY, EINVAL

if TYPE_CHECKING:
    from emulator.machine import Machine


def split_folio(m: Machine, folio: Folio, lock_at: int = 0) -> int:
    """Split a locked, referenced large folio into small ones on the same frames.

    ``m.phys.frames[folio.pfn + lock_at]`` is page ``lock_at``'s folio afterwards: it has the caller's lock and
    reference. 0; -EBUSY: not mapped (anonymous), or thrown away; -EAGAIN: somebody else has a reference (a pin); on an
    error the folio is as before, but mapped by PTEs (a file's: not mapped at all).
    """
    return split_to_orders(m, folio, [0] * folio.nr_pages, lock_at)


def try_folio_split(m: Machine, folio: Folio, at: int) -> int:
    """As ``split_folio``, of a file's folio, but only page ``at`` becomes small, and the others as large as may be.

    (try_folio_split_to_order, non-uniform.) Page 0's folio has lock and reference afterwards.
    """
    orders: list[int] = []
    first, order = 0, folio.order
    behind: list[int] = []
    while order:  # halve what holds the page, until only the page is left
        order -= 1
        if at - first < 1 << order:
            behind.append(order)
        else:
            orders.append(order)
            first += 1 << order
    return split_to_orders(m, folio, [*orders, 0, *reversed(behind)], 0)


def split_to_orders(m: Machine, folio: Folio, orders: list[int], lock_at: int) -> int:
    """__folio_split: into folios of these orders, first to last."""
    if folio.order == 0:
        return -EINVAL
    if folio.writeback:
        return -EBUSY
    if folio.anon:
        return split_anon_folio(m, folio, orders, lock_at)
    mapping = folio.mapping
    if not isinstance(mapping, AddressSpace):
        return -EBUSY
    error = -EAGAIN
    mapping.i_mmap_rwsem.down_read()
    if vmscan.folio_expected_ref_count(folio) == folio.refcount - 1:
        m.sched.point("thp.split_begin")
        rmap_unmap.try_to_unmap(folio, locked=True, ignore_mlock=True)
        m.sched.point("thp.folio_unmapped")
        if folio.refcount == 1 + folio.nr_pages:
            split_unmapped_folio(m, folio, orders, lock_at)
            error = 0
    mapping.i_mmap_rwsem.up_read()
    return error


def split_anon_folio(m: Machine, folio: Folio, orders: list[int], lock_at: int) -> int:
    anon_vma = rmap.folio_get_anon_vma(folio)
    if anon_vma is None:
        return -EBUSY
    rmap.anon_vma_lock_write(anon_vma)
    error = -EAGAIN
    if vmscan.folio_expected_ref_count(folio) == folio.refcount - 1:
        m.sched.point("thp.split_begin")
        rmap_unmap.try_to_migrate(folio, locked=True)
        m.sched.point("thp.folio_unmapped")
        if folio.refcount == 1 + (folio.nr_pages if folio.swapcache else 0):
            split_unmapped_folio(m, folio, orders, lock_at)
            error = 0
        else:
            migrate.remove_migration_ptes(folio, folio, locked=True)
    rmap.anon_vma_unlock_write(anon_vma)
    rmap.put_anon_vma(anon_vma)
    return error


def split_unmapped_folio(m: Machine, folio: Folio, orders: list[int], lock_at: int) -> None:
    """The split itself, when nothing maps the folio any more: nobody but the caller and caches has a reference.

    Anonymous pages of zeros are given back, and the zero page is mapped in their place; what a file has behind its end
    is thrown away.
    """
    owner = folio.lock.owner
    pieces = m.phys.split(folio, orders)
    for piece in pieces:
        first = piece.pfn - folio.pfn
        piece.refcount = 1
        piece.mapping = folio.mapping
        piece.anon = folio.anon
        piece.index = folio.index + first
        piece.dirty = folio.dirty
        piece.uptodate = folio.uptodate
        piece.swapbacked = folio.swapbacked
        piece.lock.owner = owner
        piece.lru = first > 0 or folio.lru
        piece.mlocked, piece.unevictable = folio.mlocked, folio.unevictable
        if folio.swapcache:
            piece.refcount += piece.nr_pages
            piece.swapcache = True
            piece.swap = folio.swap + first
            swap_state.replace_in_swap_cache(m, folio, piece)
        elif isinstance(folio.mapping, AddressSpace):
            replace_in_page_cache(m, folio.mapping, piece, first > 0)
    pieces[0].mlock_count = folio.mlock_count  # the others begin anew
    folio.refcount = 0
    folio.swapcache = False
    folio.lock.owner = None
    if folio.anon:
        for piece in pieces:
            zeros = m.profile.split_maps_zero_page
            migrate.remove_migration_ptes(piece, piece, locked=True, unused_to_zeropage=zeros)
    else:
        folio.mapping = None
    m.sched.point("thp.folio_split")
    kept = m.phys.frames[folio.pfn + lock_at]
    for piece in pieces:
        if piece is not kept:
            piece.lock.unlock()
            swap_state.free_swap_cache(m, piece)
            swap.folio_put(m, piece)


def replace_in_page_cache(m: Machine, mapping: AddressSpace, piece: Folio, droppable: bool) -> None:
    """A piece of a file's folio takes its place. One that begins behind the end of the file (not the first) goes."""
    if droppable and piece.index << PAGE_SHIFT >= mapping.size:
        for index in range(piece.index, piece.index + piece.nr_pages):
            del mapping.pages[index]
        piece.mapping = None
        shmem.shmem_unacct_blocks(m, mapping, piece.nr_pages)
        return
    piece.refcount += piece.nr_pages
    for index in range(piece.index, piece.index + piece.nr_pages):
        mapping.pages[index] = piece
