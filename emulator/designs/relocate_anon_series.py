"""MREMAP_RELOCATE_ANON and MREMAP_MUST_RELOCATE_ANON: all patches of 9 June 2025 as posted, flaws included.

Source: 02/11 "mm/mremap: add MREMAP_MUST_RELOCATE_ANON" (message id
d770c484f643c77ca11191eec63073457ce03d63.1749473726.git.lorenzo.stoakes@oracle.com) and 03/11 "mm/mremap: add
MREMAP[_MUST]_RELOCATE_ANON support for large folios" (43175a21c9e93bc4eb51d73190226411e6b9a7b8.…), L. Stoakes, on
top of 01/11, which is ``relocate_anon.py``; 04/11 to 11/11 are tests.

02/11: with the flag MUST the call fails, -EFAULT, where the other flag falls back to an ordinary move. 03/11: a large
folio inside the range is relocated as a whole, by its PMD or by its PTEs; one that the range cuts is split first.

Left open, and chosen here: where the VMA cannot be relocated, 02/11 returns before it has set its caller's pointer to
the destination VMA. Kernels fill their stack with zeros (CONFIG_INIT_STACK_ALL_ZERO), so it is taken to be NULL:
the call fails, and what it was charged is not given back. The machine has no huge pages of PUD size: that part
is left out.
"""

from __future__ import annotations

from collections.abc import Callable

from emulator.designs.relocate_anon import (
    RelocateAnon,
    can_relocate_anon,
    copy_vma_and_data,
    relocate_anon_pte,
    relocate_anon_ptes,
    relocate_folio,
)
from emulator.geometry import LEVEL_PMD, LEVEL_PTE, LEVEL_PUD, PAGE_SHIFT
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PFN_SHIFT, PRESENT, SPECIAL
from emulator.mm import (
    huge_memory,
    huge_memory_split,
    mremap,
    mremap_tables,
    pgtable_generic,
    rmap_counts,
    swap,
)
from emulator.mm_types import Folio, VmAreaStruct
from emulator.rmap_types import AnonVma
from emulator.uapi import EFAULT, MREMAP_MUST_RELOCATE_ANON, MREMAP_RELOCATE_ANON

RELOCATE = MREMAP_RELOCATE_ANON | MREMAP_MUST_RELOCATE_ANON

GiveUp = Callable[[mremap.VmaRemapStruct, mremap_tables.PagetableMoveControl, int], tuple[int, bool]]


# ---- 02/11: MREMAP_MUST_RELOCATE_ANON


def should_relocate_anon(vrm: mremap.VmaRemapStruct) -> bool:
    """As patch 01's, for either flag."""
    old = vrm.source()
    return bool(vrm.flags & RELOCATE) and old.anon_vma is not None and can_relocate_anon(old)


def copy_or_refuse(vrm: mremap.VmaRemapStruct) -> tuple[int, VmAreaStruct | None]:
    """Patch 01's, but with MUST a VMA that cannot be relocated is an error. Its charge stays behind."""
    if vrm.flags & MREMAP_MUST_RELOCATE_ANON and not can_relocate_anon(vrm.source()):
        return -EFAULT, None
    return copy_vma_and_data(vrm)


def give_up(
    original: GiveUp, vrm: mremap.VmaRemapStruct, pmc: mremap_tables.PagetableMoveControl, reached: int
) -> tuple[int, bool]:
    """With MUST the call ends here."""
    original(vrm, pmc, reached)
    if not vrm.flags & MREMAP_MUST_RELOCATE_ANON:
        return 0, False
    mremap.vrm_uncharge(vrm)
    return -EFAULT, False


# ---- 03/11: large folios


def is_thp_fully_spanned(pmc: mremap_tables.PagetableMoveControl, old_addr: int, size: int) -> bool:
    """Does the range that is moved hold the whole folio? It is taken to be mapped at a multiple of its size."""
    start = old_addr & -size
    return start >= pmc.old_end - pmc.len_in and start + size <= pmc.old_end


def relocate_large_folio(
    pmc: mremap_tables.PagetableMoveControl,
    table: PageTable,
    folio: Folio,
    old_addr: int,
    new_addr: int,
    undo: bool,
) -> int:
    """A large folio, locked, of which a PTE maps a page, taken for the first, at ``old_addr``: relocate or split it.

    Unlocks it. Returns the pages that are done with, 0 to give up.
    """
    m = pmc.old.vm_mm.machine
    size = folio.nr_pages << PAGE_SHIFT
    if is_thp_fully_spanned(pmc, old_addr, size):
        relocate_folio(pmc, folio, old_addr, new_addr, undo)
        if old_addr & (size - 1):
            m.warn(
                "relocate-large-misaligned", "a large folio is mapped where its size does not divide", folio
            )
        folio.lock.unlock()
        return folio.nr_pages
    assert pmc.relocate_locked is not None
    locked = pmc.relocate_locked.anon_vma
    assert isinstance(folio.mapping, AnonVma)
    assert locked is not None
    if folio.mapping.root is locked.root:  # the split would lock it a second time
        folio.lock.unlock()
        return 0
    swap.folio_get(folio)
    table.ptl.unlock()
    error = huge_memory_split.split_folio(m, folio)
    m.sched.point("relocate.folio_split")
    table.ptl.lock()
    head = m.phys.frames[folio.pfn]
    head.lock.unlock()
    swap.folio_put(m, head)
    return 0 if error else retry_anon_pte(pmc, table, old_addr, new_addr, undo)


def retry_anon_pte(
    pmc: mremap_tables.PagetableMoveControl, table: PageTable, old_addr: int, new_addr: int, undo: bool
) -> int:
    """After a split, for which the lock was dropped: the entry is read again, and taken to be present still."""
    mm = pmc.old.vm_mm
    pte = table.entries.get(pgtable_generic.slot_of(mm, old_addr, LEVEL_PTE), 0)
    assert isinstance(pte, int)
    if not pte & PRESENT:  # vm_normal_page finds no page behind it, and complains
        mm.machine.warn(
            "bad-page-map", f"an entry that is not present was taken for a page at {old_addr:#x}", pmc.old
        )
        return 1
    return relocate_anon_pte(pmc, table, old_addr, new_addr, undo)


def relocate_anon_pmd(pmc: mremap_tables.PagetableMoveControl, pmd: PageTable, slot: int, undo: bool) -> bool:
    """Relocate the huge page that a PMD maps. Here one that may be pinned or shared is a reason to give up."""
    entry = huge_memory.pmd_trans_huge_lock(pmd, slot)
    if not entry:
        return False
    m = pmc.old.vm_mm.machine
    if entry & SPECIAL:  # the huge page of zeros is passed over
        pmd.ptl.unlock()
        return True
    folio = m.phys.frames[entry >> PFN_SHIFT]
    folio.lock.lock()
    m.sched.point("relocate.folio_locked")
    done = False
    if rmap_counts.folio_maybe_mapped_shared(folio):
        m.warn("relocate-shared-folio", "a folio that is mapped twice was to be relocated", folio)
    elif folio.maybe_dma_pinned():
        m.sched.point("relocate.pinned_skipped")
    else:
        relocate_folio(pmc, folio, pmc.old_addr, pmc.new_addr, undo)
        done = True
    folio.lock.unlock()
    pmd.ptl.unlock()
    return done


def get_old_extent(level: int, pmc: mremap_tables.PagetableMoveControl) -> int:
    """Bytes to the next boundary of an entry of ``level`` in the source, or to the end."""
    size = 1 << pmc.old.vm_mm.machine.geometry.shifts[level]
    return min(size - (pmc.old_addr & (size - 1)), pmc.old_end - pmc.old_addr)


def relocate_pmd_range(pmc: mremap_tables.PagetableMoveControl, extent: int, undo: bool) -> int:
    """What one PMD maps of the range. Returns the old address reached; a huge page in part is a reason to give up."""
    mm = pmc.old.vm_mm
    start, end = pmc.old_addr, pmc.old_addr + extent
    pmd = pgtable_generic.find_table(mm, start, LEVEL_PMD)
    slot = pgtable_generic.slot_of(mm, start, LEVEL_PMD)
    entry = pmd.get(slot) if pmd is not None else 0
    if pmd is None or not entry:
        return end
    if not isinstance(entry, PageTable):
        size = mm.machine.geometry.pmd_size
        if extent != size:
            return start
        if not pmc.new_addr & (size - 1):
            return end if relocate_anon_pmd(pmc, pmd, slot, undo) else start
        huge_memory.split_huge_pmd(pmc.old, pmd, slot, start)
        entry = pmd.get(slot)
    return relocate_anon_ptes(pmc, entry, extent, undo) if isinstance(entry, PageTable) else start


def walk_old_tables(pmc: mremap_tables.PagetableMoveControl, undo: bool) -> int:
    """Every table of the source range. Returns the old address reached: the end, or where to give up."""
    mm = pmc.old.vm_mm
    while pmc.old_addr < pmc.old_end:
        extent = get_old_extent(LEVEL_PUD, pmc)
        pud = pgtable_generic.find_table(mm, pmc.old_addr, LEVEL_PUD)
        if pud is not None and pud.get(pgtable_generic.slot_of(mm, pmc.old_addr, LEVEL_PUD)) != 0:
            extent = get_old_extent(LEVEL_PMD, pmc)
            reached = relocate_pmd_range(pmc, extent, undo)
            if reached < pmc.old_addr + extent:
                return reached
        pmc.old_addr += extent
        pmc.new_addr += extent
    return pmc.old_addr


class RelocateAnonSeries(RelocateAnon):
    """Relocate folios of every size; fail or fall back when one cannot be relocated."""

    name = "relocate-anon-series"
    summary = "MREMAP_[MUST_]RELOCATE_ANON, all patches of June 2025 as posted: large folios, the MUST flag"
    source = "cover.1749473726.git.lorenzo.stoakes@oracle.com"
    mremap_flags = RELOCATE
    replaces = {
        "mremap.copy_vma_and_data": copy_or_refuse,
        "relocate_anon.should_relocate_anon": should_relocate_anon,
        "relocate_anon.give_up": give_up,
        "relocate_anon.relocate_large_folio": relocate_large_folio,
        "relocate_anon.walk_old_tables": walk_old_tables,
    }
