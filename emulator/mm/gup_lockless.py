"""GUP-fast: the walk of the page tables without locks (mm/gup.c).

What may happen meanwhile: the entry changes (looked at again once the folio is taken), its table is moved or freed
(the PMD entry is looked at again; the memory of a table stays readable while interrupts are off), the folio is
freed or split (no reference can be had), a fork write-protects the tables (write_protect_seq).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.fs_types import AddressSpace
from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_SHIFT
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PRESENT, RW, SPECIAL, USER, pte_pfn
from emulator.mm import gup, pgtable_generic, swap
from emulator.mm_types import GUP_PIN_COUNTING_BIAS, Folio, MmStruct, Pin
from emulator.workload import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE

if TYPE_CHECKING:
    from emulator.machine import Machine


def try_get_folio(m: Machine, pfn: int, refs: int) -> Folio | None:
    """A reference to whatever folio holds the frame, unless it is free or frozen."""
    folio = m.phys.frames[pfn]
    if folio.refcount <= 0:
        return None
    swap.folio_ref_add(folio, refs)
    return folio


def try_grab_folio_fast(m: Machine, pfn: int, flags: int) -> Folio | None:
    """Take one page of a folio that nobody keeps alive for us; None: gone. For GUP-fast."""
    if flags & FOLL_PIN and m.phys.frames[pfn] is m.phys.zero_folio:
        return m.phys.zero_folio  # it goes nowhere, and is not counted
    folio = try_get_folio(m, pfn, 1)
    if folio is not None and flags & FOLL_PIN:
        if folio.order:
            folio.pincount += 1
        else:
            swap.folio_ref_add(folio, GUP_PIN_COUNTING_BIAS - 1)
    return folio


def gup_fast_folio_allowed(folio: Folio, flags: int) -> bool:
    """Long-term pins for writing only on memory without dirty tracking: anonymous or shmem."""
    wanted = FOLL_PIN | FOLL_LONGTERM | FOLL_WRITE
    if flags & wanted != wanted or folio.anon:
        return True
    mapping = folio.mapping
    return isinstance(mapping, AddressSpace) and mapping.shmem


def gup_fast_pte_range(
    m: Machine, pmd: PageTable, pmd_slot: int, pte: PageTable, addr: int, flags: int
) -> Pin | None:
    """The page at ``addr`` by the PTE table that ``pmd`` had in ``pmd_slot`` a moment ago."""
    slot = pgtable_generic.slot_of(pte.mm, addr, LEVEL_PTE)
    entry: int = pte.entries.get(slot, 0)  # type: ignore[assignment]
    m.sched.point("gup_fast.pte_read")
    if entry & (PRESENT | USER | SPECIAL) != PRESENT | USER or (flags & FOLL_WRITE and not entry & RW):
        return None
    folio = try_grab_folio_fast(m, pte_pfn(entry), flags)
    if folio is None:
        return None
    m.sched.point("gup_fast.folio_grabbed")
    page = pte_pfn(entry) - folio.pfn
    if (
        pmd.entries.get(pmd_slot) is not pte  # the table was moved or freed
        or pte.entries.get(slot, 0) != entry
        or not gup_fast_folio_allowed(folio, flags)
        or (not entry & RW and gup.gup_must_unshare(None, flags, folio, page))
    ):
        gup.gup_put_folio(m, folio, flags)
        return None
    return Pin(folio, page, flags)


def gup_fast_pmd_leaf(
    m: Machine, pmd: PageTable, pmd_slot: int, orig: int, addr: int, flags: int
) -> Pin | None:
    """The page at ``addr`` of the huge page that ``pmd`` maps by ``orig``."""
    if orig & (PRESENT | USER | SPECIAL) != PRESENT | USER or (flags & FOLL_WRITE and not orig & RW):
        return None
    pfn = pte_pfn(orig) + ((addr & (m.geometry.pmd_size - 1)) >> PAGE_SHIFT)
    folio = try_grab_folio_fast(m, pfn, flags)
    if folio is None:
        return None
    m.sched.point("gup_fast.folio_grabbed")
    if (
        pmd.entries.get(pmd_slot, 0) != orig
        or not gup_fast_folio_allowed(folio, flags)
        or (not orig & RW and gup.gup_must_unshare(None, flags, folio, 0))
    ):
        gup.gup_put_folio(m, folio, flags)
        return None
    return Pin(folio, pfn - folio.pfn, flags)


def gup_fast_pgd_range(m: Machine, mm: MmStruct, addr: int, flags: int) -> Pin | None:
    """Walk down from the root without locks. None: nothing there that may be taken this way."""
    g = m.geometry
    table = mm.pgd
    while table.level != LEVEL_PMD:
        lower = table.entries.get((addr >> g.shifts[table.level]) & g.index_mask)
        if not isinstance(lower, PageTable):
            return None
        table = lower
    slot = (addr >> g.pmd_shift) & g.index_mask
    entry = table.entries.get(slot, 0)
    m.sched.point("gup_fast.pmd_read")
    if isinstance(entry, PageTable):
        return gup_fast_pte_range(m, table, slot, entry, addr, flags)
    return gup_fast_pmd_leaf(m, table, slot, entry, addr, flags)


def gup_fast_only(mm: MmStruct, addr: int, flags: int) -> Pin | None:
    """get_user_pages_fast_only: the lockless walk and nothing else.

    A fork that write-protects the tables meanwhile (write_protect_seq) makes a pin fail.
    """
    m = mm.machine
    seq = mm.write_protect_seq
    if flags & FOLL_PIN and seq & 1:
        return None
    task = m.sched.current
    task.irqs_off = True
    pin = gup_fast_pgd_range(m, mm, addr, flags)
    task.irqs_off = False
    m.sched.point("gup_fast.walked")
    if pin is not None and flags & FOLL_PIN:
        if mm.write_protect_seq != seq:
            gup.gup_put_folio(m, pin.folio, flags)
            return None
        gup.sanity_check_pinned_page(m, pin.folio, pin.page)
    return pin
