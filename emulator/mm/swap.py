"""References to folios (mm/swap.c): the last one that goes frees the folio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import KernelBug
from emulator.fs_types import AddressSpace
from emulator.mm_types import Folio

if TYPE_CHECKING:
    from emulator.machine import Machine


def folio_ref_add(folio: Folio, nr: int) -> None:
    """``nr`` more references; somebody must hold one already."""
    if folio.refcount <= 0:
        raise KernelBug("use-after-free", "a reference was taken to a folio that has none", folio)
    folio.refcount += nr


def folio_get(folio: Folio) -> None:
    """One more reference."""
    folio_ref_add(folio, 1)


def folio_put(m: Machine, folio: Folio) -> None:
    """Give one reference back."""
    folio_put_refs(m, folio, 1)


def folio_put_refs(m: Machine, folio: Folio, nr: int) -> None:
    """Give ``nr`` references back; at 0 the folio is freed."""
    left = folio.refcount - nr
    if left > 0:
        folio.refcount = left
        return
    if folio.freed:
        raise KernelBug("use-after-free", "a reference to a freed folio was given back", folio)
    if left < 0:
        raise KernelBug("refcount-underflow", f"{folio} has {folio.refcount} references, {nr} go", folio)
    folio.refcount = 0
    free_folio(m, folio)


def free_folio(m: Machine, folio: Folio) -> None:
    """__folio_put: back to the page allocator, which finds what still uses it (bad_page).

    An anonymous folio keeps its ``mapping``: it holds no reference on the anon_vma.
    """
    if folio.mapped():
        reason = "still mapped"
    elif folio.swapcache:
        reason = "still in the swap cache"
    elif folio.mapping.__class__ is AddressSpace:
        reason = "still in the page cache"
    elif folio.pincount:
        reason = "still pinned"
    elif folio.lock.owner is not None:
        reason = "still locked"
    else:
        m.phys.free(folio)
        return
    raise KernelBug("bad-page-state", f"{folio} is freed and {reason}", folio)
