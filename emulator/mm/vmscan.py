"""Reclaim (mm/vmscan.c): taking one folio away from its users, into swap.

A folio is found as kswapd finds it, without any lock of the processes that map it: an address only says which one.
Whoever isolates it from the LRU has it to himself there, with a reference of his own.

The page cache has no backing store in the model, so a file folio is always dirty to reclaim: it is unmapped and
kept, unless its file is one of memory. No folio counts as recently used (``ignore_references``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.fs_types import AddressSpace
from emulator.geometry import LEVEL_PTE, PAGE_SHIFT
from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import PRESENT, SPECIAL, pte_pfn
from emulator.mm import huge_memory_split, mlock_folio, rmap_unmap, shmem, swap, swap_state
from emulator.mm_types import Folio, MmStruct

if TYPE_CHECKING:
    from emulator.machine import Machine

PAGE_KEEP: Final = 0  # somebody else uses it: not written
PAGE_ACTIVATE: Final = 1  # cannot be written from here
PAGE_SUCCESS: Final = 2  # written, and unlocked
PAGE_CLEAN: Final = 3  # nothing to write


# ---- isolation


def folio_isolate_lru(folio: Folio) -> bool:
    """Take the folio off the LRU, with a reference; False when somebody else has, or it is free or frozen."""
    if not folio.lru or folio.refcount <= 0:
        return False
    folio.lru = False
    swap.folio_get(folio)
    return True


def folio_putback_lru(m: Machine, folio: Folio) -> None:
    """Back to the LRU; the reference of the isolation goes."""
    mlock_folio.lru_add(folio)
    swap.folio_put(m, folio)


def folio_at(mm: MmStruct, addr: int) -> Folio | None:
    """The folio that the page tables map at ``addr`` at this moment, without locks or references; no zero page."""
    m = mm.machine
    table, _, entry = walk_slot(mm, m.geometry, addr)
    if entry & (PRESENT | SPECIAL) != PRESENT:
        return None
    pfn = pte_pfn(entry)
    if table.level != LEVEL_PTE:
        pfn += (addr & ((1 << m.geometry.shifts[table.level]) - 1)) >> PAGE_SHIFT
    return m.phys.frames[pfn]


def folio_expected_ref_count(folio: Folio) -> int:
    """References that the caches and mappings of a folio account for (include/linux/mm.h)."""
    count = folio.nr_pages if folio.swapcache else 0
    if not folio.anon and folio.mapping is not None:
        count += folio.nr_pages
    return count + folio.mapcount()


# ---- shrinking


def pageout(m: Machine, folio: Folio, folio_list: list[Folio]) -> tuple[Folio, int]:
    """Write a dirty folio to its slots. PAGE_SUCCESS leaves it unlocked, as when the write ends.

    The folio comes back, or, where it had to be split, that of its first page; the others go to ``folio_list``.
    """
    if folio.refcount != 1 + folio.nr_pages:
        return folio, PAGE_KEEP
    mapping = shmem.shmem_mapping(folio)
    if not folio.anon and mapping is None and not folio.swapcache:
        return folio, PAGE_ACTIVATE
    if not folio.dirty:
        return folio, PAGE_CLEAN
    if mapping is None:
        folio.dirty = False
        swap_state.swap_writeout(m, folio)
    else:
        folio, written = write_to_swap(m, folio, mapping, folio_list)
        if not written:
            folio.dirty = True
            return folio, PAGE_ACTIVATE
    folio.lock.unlock()
    return folio, PAGE_SUCCESS


def write_to_swap(
    m: Machine, folio: Folio, mapping: AddressSpace, folio_list: list[Folio]
) -> tuple[Folio, bool]:
    """Move a folio of a file of memory to swap: (the folio or what it became by a split, is it there?).

    A large one goes as a whole, unless the file ends in it or there is no such room.
    """
    if folio.order and shmem.shmem_crosses_end(folio, mapping):
        folio = split_folio_to_list(m, folio, folio_list)
        if folio.order:
            return folio, False
    folio.dirty = False
    written = shmem.shmem_writeout(m, folio, mapping)
    if not written and folio.order:
        folio.dirty = True
        folio = split_folio_to_list(m, folio, folio_list)
        if not folio.order:
            folio.dirty = False
            written = shmem.shmem_writeout(m, folio, mapping)
    return folio, written


def remove_mapping(m: Machine, folio: Folio) -> bool:
    """__remove_mapping: out of the swap cache or shmem's, if nobody but the cache and the caller has a reference.

    The folio is frozen (no references) when this says True. References are looked at before the dirty flag: who
    had one may have written through it and set the flag before giving it back.
    """
    if folio.refcount != 1 + folio.nr_pages or folio.dirty:
        return False
    mapping = shmem.shmem_mapping(folio)
    if mapping is not None:
        shmem.remove_folio(m, mapping, folio)  # zeros, and they will be zeros again
        shmem.shmem_unacct_blocks(m, mapping, folio.nr_pages)
        return True
    swap_state.remove_from_swap_cache(m, folio)
    swap.folio_put_refs(m, folio, folio.nr_pages)
    return True


def split_folio_to_list(m: Machine, folio: Folio, folio_list: list[Folio]) -> Folio:
    """Split a locked, isolated large folio. Returns the head page's folio, locked and isolated likewise.

    The other pages go to ``folio_list``, isolated. Where the split fails, the folio itself comes back, large.
    """
    first, nr = folio.pfn, folio.nr_pages
    if huge_memory_split.split_folio(m, folio):
        return folio
    frames = m.phys.frames
    head = frames[first]
    head.lru = False
    folio_list.extend(tail for tail in (frames[first + i] for i in range(1, nr)) if folio_isolate_lru(tail))
    return head


def add_folio_to_swap(m: Machine, folio: Folio, folio_list: list[Folio]) -> tuple[Folio, bool]:
    """Give a locked anonymous folio swap space: (the folio to go on with, whether it has some now).

    A large folio that is partly mapped is split first, and one that finds no room as a whole: its head page is
    gone on with, the other pages are appended to ``folio_list``.
    """
    if folio.maybe_dma_pinned():
        return folio, False
    if folio.order:
        if folio_expected_ref_count(folio) != folio.refcount - 1:
            return folio, False
        if folio.partially_mapped:
            folio = split_folio_to_list(m, folio, folio_list)
            if folio.order:
                return folio, False
    added = swap_state.add_to_swap(m, folio)
    if not added and folio.order:
        folio = split_folio_to_list(m, folio, folio_list)
        added = not folio.order and swap_state.add_to_swap(m, folio)
    if added:
        folio.dirty = True
    return folio, added


def activate_locked(m: Machine, folio: Folio) -> Folio:
    """The folio stays. One that is mlocked needs no space in swap."""
    if folio.swapcache and folio.mlocked:
        swap_state.folio_free_swap(m, folio)
    return folio


def shrink_locked_folio(m: Machine, folio: Folio, folio_list: list[Folio]) -> tuple[Folio, bool]:
    """Reclaim one isolated, locked folio: (the folio it became by a split, whether it is free to go).

    Free to go: frozen out of every mapping and cache, the caller's reference is the last. The lock may be lost
    on the way, when the folio has been written and somebody else locked it first.
    """
    point = m.sched.point
    if not mlock_folio.folio_evictable(folio):
        return activate_locked(m, folio), False
    if folio.writeback:
        return folio, False
    if folio.anon and folio.swapbacked and not folio.swapcache:
        folio, added = add_folio_to_swap(m, folio, folio_list)
        if not added:
            return folio, False
        point("reclaim.added_to_swap")
    if folio.mapped():
        rmap_unmap.try_to_unmap(folio)
        if folio.mapped():
            return activate_locked(m, folio), False
    point("reclaim.unmapped")
    # unmapped: no new pin can come now
    if folio.anon and not folio.swapbacked:
        return folio, folio.refcount == 1  # thrown away, if nobody else has it
    if folio.maybe_dma_pinned() or not (folio.swapcache or shmem.shmem_mapping(folio)):
        return folio, False
    if folio.dirty:
        folio, written = pageout(m, folio, folio_list)
        if written == PAGE_SUCCESS:
            point("reclaim.written")
            if not folio.lock.trylock() or folio.dirty or folio.writeback:
                return folio, False
        elif written != PAGE_CLEAN:
            return folio, False
    point("reclaim.before_free")
    return folio, remove_mapping(m, folio)


def shrink_folio_list(m: Machine, folio_list: list[Folio]) -> int:
    """Try to reclaim isolated folios, each with the caller's reference; all are gone or back on the LRU afterwards.

    Returns the number of pages reclaimed.
    """
    reclaimed = 0
    while folio_list:
        folio = folio_list.pop(0)
        if not folio.lock.trylock():
            folio_putback_lru(m, folio)
            continue
        m.sched.point("reclaim.folio_locked")
        folio, gone = shrink_locked_folio(m, folio, folio_list)
        if folio.lock.owner is m.sched.current:
            folio.lock.unlock()
        if gone:
            reclaimed += folio.nr_pages
            swap.folio_put(m, folio)
        else:
            folio_putback_lru(m, folio)
    return reclaimed


def reclaim_folio(mm: MmStruct, addr: int) -> int:
    """Kernel activity: try to reclaim the folio mapped at ``addr`` (bytes). 1 when pages were reclaimed, else 0."""
    m = mm.machine
    folio = folio_at(mm, addr)
    if folio is None or not folio_isolate_lru(folio):
        return 0
    m.sched.point("reclaim.isolated")
    return 1 if shrink_folio_list(m, [folio]) else 0
