"""The swap cache (mm/swap_state.c) and the slot side of swapping that works on folios (mm/swapfile.c).

A folio is in the swap cache under ``folio.nr_pages`` consecutive slots that start at ``folio.swap``; the cache
holds one reference for each page. Page-table entries that hold a slot are counted by the device
(``m.swap.get``/``put``). A slot is free when neither an entry nor the cache needs it.

The device answers at once: writing and reading are done when the call returns, as on a RAM disk.
Whoever adds a folio to the cache or takes it out holds the folio lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import LEVEL_PTE, PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pte import is_swap, softleaf_value
from emulator.mm import pagewalk, pgtable_generic, swap
from emulator.mm_types import Folio, MmStruct, VmAreaStruct

if TYPE_CHECKING:
    from emulator.machine import Machine


# ---- folios and their slots


def swap_cache_add_folio(m: Machine, folio: Folio, slot: int) -> None:
    """Put ``folio`` into the cache under ``slot`` and the slots after it."""
    cache = m.swap.cache
    for i in range(folio.nr_pages):
        cache[slot + i] = folio
    swap.folio_ref_add(folio, folio.nr_pages)
    folio.swapcache = True
    folio.swap = slot


def add_to_swap(m: Machine, folio: Folio) -> bool:
    """folio_alloc_swap: give the locked folio slots and put it into the cache. False: no room (a fault point)."""
    if m.should_fail("swap_alloc"):
        return False
    swap_cache_add_folio(m, folio, m.swap.alloc(folio.nr_pages))
    return True


def remove_from_swap_cache(m: Machine, folio: Folio) -> None:
    """__swap_cache_del_folio: out of the cache; slots that no entry uses are freed. References stay."""
    slot = folio.swap
    device = m.swap
    folio.swapcache = False
    folio.swap = 0
    for i in range(slot, slot + folio.nr_pages):
        del device.cache[i]
        device.drop_if_unused(i)


def delete_from_swap_cache(m: Machine, folio: Folio) -> None:
    """swap_cache_del_folio: out of the cache, whose references go. The caller has one of its own."""
    remove_from_swap_cache(m, folio)
    swap.folio_put_refs(m, folio, folio.nr_pages)


def replace_in_swap_cache(m: Machine, old: Folio, new: Folio) -> None:
    """__swap_cache_replace_folio: ``new``, whose ``swap`` is set, takes the place of ``old``; references stay."""
    for slot in range(new.swap, new.swap + new.nr_pages):
        assert m.swap.cache[slot] is old
        m.swap.cache[slot] = new


def swap_cache_get_folio(m: Machine, slot: int) -> Folio | None:
    """The folio cached for ``slot``, with a reference, unlocked; check ``folio_matches_swap_entry`` once locked."""
    folio = m.swap.cache.get(slot)
    if folio is not None:
        swap.folio_get(folio)
    return folio


def folio_matches_swap_entry(folio: Folio, slot: int) -> bool:
    """Is the locked folio (still) what the cache holds for ``slot``?"""
    return folio.swapcache and folio.swap <= slot < folio.swap + folio.nr_pages


def folio_swapped(m: Machine, folio: Folio) -> bool:
    """Does any page-table entry hold one of the folio's slots?"""
    count = m.swap.count
    return any(count[slot] for slot in range(folio.swap, folio.swap + folio.nr_pages))


def folio_free_swap(m: Machine, folio: Folio) -> bool:
    """Give back the swap space of a locked folio when no entry needs it: memory is the only copy from now on."""
    if not folio.swapcache or folio.writeback or folio_swapped(m, folio):
        return False
    delete_from_swap_cache(m, folio)
    folio.dirty = True
    return True


def free_swap_cache(m: Machine, folio: Folio) -> None:
    """After an unmapping: drop the cache's copy too when nobody else needs it. Never waits for the folio lock."""
    if folio.swapcache and not folio.mapped() and folio.lock.trylock():
        folio_free_swap(m, folio)
        folio.lock.unlock()


def swap_put_entries_direct(m: Machine, slot: int) -> None:
    """A page-table entry that held ``slot`` is gone (zap): count it, and drop a cached folio nobody needs.

    Where the folio lock cannot be had, the folio stays in the cache, as the kernel leaves it to reclaim.
    """
    m.swap.put(slot)
    if m.swap.count.get(slot):
        return
    folio = swap_cache_get_folio(m, slot)
    if folio is None:
        return
    if folio.lock.trylock():
        if folio_matches_swap_entry(folio, slot) and not folio.mapped():
            folio_free_swap(m, folio)
        folio.lock.unlock()
    swap.folio_put(m, folio)


def swap_writeout(m: Machine, folio: Folio) -> None:
    """Write every page of a folio in the cache to its slot."""
    content = m.swap.content
    for i, page in enumerate(folio.content):
        content[folio.swap + i] = dict(page)


# ---- reading in


def read_swap_cache_async(m: Machine, slot: int) -> Folio | None:
    """The folio of ``slot``, read from the device into the cache if it is not there.

    It comes unlocked with a reference for the caller. None: out of memory (fault point), or the slot is free
    by now, as the caller holds no lock that keeps the entry.
    """
    folio = swap_cache_get_folio(m, slot)
    if folio is not None:
        return folio
    if m.should_fail("swapin_folio"):
        return None
    folio = m.phys.alloc(0)
    m.sched.point("swapin.allocated")
    cached = swap_cache_get_folio(m, slot)
    if cached is not None or not m.swap.count.get(slot):
        swap.folio_put(m, folio)
        return cached
    folio.content[0] = dict(m.swap.content.get(slot, {}))
    swap_cache_add_folio(m, folio, slot)
    return folio


def read_large_folio(m: Machine, slot: int, order: int) -> Folio | None:
    """A folio for all the slots from ``slot`` on, read into the cache, unlocked, with a reference.

    None: no memory, or the cache has one of the slots already.
    """
    slots = range(slot, slot + (1 << order))
    if any(i in m.swap.cache for i in slots) or m.should_fail("swapin_folio"):
        return None
    folio = m.phys.alloc(order)
    m.sched.point("swapin.allocated")
    if any(i in m.swap.cache or not m.swap.count.get(i) for i in slots):
        swap.folio_put(m, folio)
        return None
    for i in slots:
        folio.content[i - slot] = dict(m.swap.content.get(i, {}))
    swap_cache_add_folio(m, folio, slot)
    return folio


def alloc_swap_folio(m: Machine, slot: int) -> Folio | None:
    """A page with the contents of ``slot``, for a device that is memory itself: the swap cache does not get it.

    It comes locked with the caller's reference, ``swap`` set. None: out of memory (fault point).
    """
    if m.should_fail("swapin_folio"):
        return None
    folio = m.phys.alloc(0)
    folio.lock.lock()
    folio.content[0] = dict(m.swap.content.get(slot, {}))
    folio.swap = slot
    m.sched.point("swapin.allocated")
    return folio


def swapin_folio(vma: VmAreaStruct, slot: int) -> Folio | None:
    """What a fault on a swap entry reads: ``read_swap_cache_async`` without readahead around it."""
    return read_swap_cache_async(vma.vm_mm.machine, slot)


def swapin_walk_range(vma: VmAreaStruct, start: int, end: int) -> int:
    """Read every swapped-out page of [start, end) (bytes) into the cache, unmapped; returns how many were read.

    The page-table lock is dropped for each read. mmap_lock is held by the caller.
    """
    mm = vma.vm_mm
    m = mm.machine
    read = 0
    for pmd, slot, addr, stop in pagewalk.pmd_ranges(mm, start, end):
        first = pgtable_generic.slot_of(mm, addr, LEVEL_PTE)
        for pte_slot in range(first, first + ((stop - addr) >> PAGE_SHIFT)):
            table = pagewalk.pte_offset_map_lock(pmd, slot)
            if table is None:
                break
            entry: int = table.entries.get(pte_slot, 0)  # type: ignore[assignment]
            table.ptl.unlock()
            if not is_swap(entry):
                continue
            cached = softleaf_value(entry) in m.swap.cache
            folio = read_swap_cache_async(m, softleaf_value(entry))
            if folio is not None:
                swap.folio_put(m, folio)
                read += not cached
    return read


def swap_readahead(mm: MmStruct, addr: int) -> int:
    """Kernel activity: the page that is swapped out at ``addr`` comes into the cache, unmapped. 1 if read, else 0."""
    mm.mmap_lock.down_read()
    vma = mm.mm_mt.lookup(addr)
    read = swapin_walk_range(vma, addr, addr + PAGE_SIZE) if vma is not None else 0
    mm.mmap_lock.up_read()
    return read
