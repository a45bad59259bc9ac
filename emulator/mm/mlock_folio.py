"""Which folios are locked in memory: PG_mlocked, and how often (the half of mm/mlock.c that knows folios).

The mark is an estimate from above. It is set when a folio is mapped in a VM_LOCKED VMA or when its VMA becomes one,
and taken away when the last such mapping goes or when its VMA is unlocked. Where a VMA loses VM_LOCKED without a
walk (MREMAP_DONTUNMAP) the mark stays, and reclaim passes over the folio until it is unmapped or mapped anew.

``mlock_count`` is kept while the folio is on the unevictable list; isolation forgets it, so that it may be too low
afterwards: the first munlock then takes the mark, and reclaim sets it again when it meets the VMA that is locked.

The mark is set at once, the rest waits in a batch (``Machine.mlock_fbatch``), which holds a reference on each folio:
one that was unmapped in locked memory looks as if somebody used it until the batch is emptied. Linux has a batch for
each CPU, which stays when a call ends; here it is emptied then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.mm import swap
from emulator.mm_types import VM_LOCKED, VM_SPECIAL, Folio, VmAreaStruct

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.machine import Machine

PAGEVEC_SIZE: Final = 31  # folios in a batch


def folio_evictable(folio: Folio) -> bool:
    """May reclaim look at the folio? Not while it is mlocked."""
    return not folio.mlocked


# ---- the batch


def add_to_batch(m: Machine, folio: Folio, change: Callable[[Folio], None]) -> None:
    """A large folio, or one that makes the batch full, empties it."""
    swap.folio_get(folio)
    m.mlock_fbatch.append((folio, change))
    if folio.order or len(m.mlock_fbatch) >= PAGEVEC_SIZE:
        mlock_drain_local(m)


def mlock_drain_local(m: Machine) -> None:
    """Do what waits, in the order in which it came; then the references go."""
    batch, m.mlock_fbatch = m.mlock_fbatch, []
    for folio, change in batch:
        change(folio)
    for folio, _ in batch:
        swap.folio_put(m, folio)


def count_mlock(folio: Folio) -> None:
    """__mlock_folio: one that is isolated is left as it is; so is one whose mark has gone meanwhile."""
    if not folio.lru or not folio.mlocked:
        return
    if folio.unevictable:
        folio.mlock_count += 1
    else:
        folio.unevictable = True
        folio.mlock_count = 1


def count_new(folio: Folio) -> None:
    """__mlock_new_folio."""
    if folio.mlocked:
        folio.unevictable = True
        folio.mlock_count = 1


def count_munlock(folio: Folio) -> None:
    """__munlock_folio: with the last mapping that is known of, the mark goes."""
    if folio.lru and folio.unevictable:
        if folio.mlock_count:
            folio.mlock_count -= 1
        if folio.mlock_count:
            return
    folio.mlocked = False
    if folio.lru:
        folio.unevictable = False


# ---- one mapping more, or fewer


def mlock_folio(m: Machine, folio: Folio) -> None:
    """One more locked mapping of a folio that has been on the LRU."""
    folio.mlocked = True
    add_to_batch(m, folio, count_mlock)


def mlock_new_folio(m: Machine, folio: Folio) -> None:
    """A new folio goes straight to the unevictable list."""
    folio.mlocked = True
    add_to_batch(m, folio, count_new)


def munlock_folio(m: Machine, folio: Folio) -> None:
    """One locked mapping fewer."""
    add_to_batch(m, folio, count_munlock)


def mlock_vma_folio(folio: Folio, area: VmAreaStruct) -> None:
    """The whole folio is mapped in ``area``. VM_IO: mlock(2) is walking there at this moment, and counts it itself."""
    if area.vm_flags & (VM_LOCKED | VM_SPECIAL) == VM_LOCKED:
        mlock_folio(area.vm_mm.machine, folio)


def munlock_vma_folio(folio: Folio, area: VmAreaStruct) -> None:
    """Some of the folio is not mapped in ``area`` any more."""
    if area.vm_flags & VM_LOCKED:
        munlock_folio(area.vm_mm.machine, folio)


def folio_add_lru_vma(folio: Folio, area: VmAreaStruct) -> None:
    """A new anonymous folio, mapped in ``area``, comes on the LRU (mm/swap.c)."""
    if area.vm_flags & (VM_LOCKED | VM_SPECIAL) == VM_LOCKED:
        mlock_new_folio(area.vm_mm.machine, folio)


def lru_add(folio: Folio) -> None:
    """After an isolation, back on the list where it belongs; how often it is locked is forgotten (mm/swap.c)."""
    folio.lru = True
    folio.unevictable = folio.mlocked
    folio.mlock_count = 0
