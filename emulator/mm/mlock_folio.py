"""Which folios are locked in memory: PG_mlocked, and how often (the half of mm/mlock.c that knows folios).

The mark is an estimate from above. It is set when a folio is mapped in a VM_LOCKED VMA or when its VMA becomes one,
and taken away when the last such mapping goes or when its VMA is unlocked. Where a VMA loses VM_LOCKED without a
walk (MREMAP_DONTUNMAP) the mark stays, and reclaim passes over the folio until it is unmapped or mapped anew.

``mlock_count`` is kept while the folio is on the unevictable list; isolation forgets it, so that it may be too low
afterwards: the first munlock then takes the mark, and reclaim sets it again when it meets the VMA that is locked.
Linux does this in batches of a CPU (mlock_fbatch) that every system call on locking empties; here it is done at once.
"""

from __future__ import annotations

from emulator.mm_types import VM_LOCKED, VM_SPECIAL, Folio, VmAreaStruct


def folio_evictable(folio: Folio) -> bool:
    """May reclaim look at the folio? Not while it is mlocked."""
    return not folio.mlocked


def mlock_folio(folio: Folio) -> None:
    """One more locked mapping of a folio that has been on the LRU."""
    folio.mlocked = True
    if not folio.lru:
        return
    if folio.unevictable:
        folio.mlock_count += 1
    else:
        folio.unevictable = True
        folio.mlock_count = 1


def mlock_new_folio(folio: Folio) -> None:
    """A new folio goes straight to the unevictable list."""
    folio.mlocked = folio.unevictable = True
    folio.mlock_count = 1


def munlock_folio(folio: Folio) -> None:
    """One locked mapping fewer; with the last that is known of, the mark goes."""
    if folio.lru and folio.unevictable:
        if folio.mlock_count:
            folio.mlock_count -= 1
        if folio.mlock_count:
            return
    folio.mlocked = False
    if folio.lru:
        folio.unevictable = False


def mlock_vma_folio(folio: Folio, area: VmAreaStruct) -> None:
    """The whole folio is mapped in ``area``. VM_IO: mlock(2) is walking there at this moment, and counts it itself."""
    if area.vm_flags & (VM_LOCKED | VM_SPECIAL) == VM_LOCKED:
        mlock_folio(folio)


def munlock_vma_folio(folio: Folio, area: VmAreaStruct) -> None:
    """Some of the folio is not mapped in ``area`` any more."""
    if area.vm_flags & VM_LOCKED:
        munlock_folio(folio)


def folio_add_lru_vma(folio: Folio, area: VmAreaStruct) -> None:
    """A new anonymous folio, mapped in ``area``, comes on the LRU (mm/swap.c)."""
    if area.vm_flags & (VM_LOCKED | VM_SPECIAL) == VM_LOCKED:
        mlock_new_folio(folio)


def lru_add(folio: Folio) -> None:
    """After an isolation, back on the list where it belongs; how often it is locked is forgotten (mm/swap.c)."""
    folio.lru = True
    folio.unevictable = folio.mlocked
    folio.mlock_count = 0
