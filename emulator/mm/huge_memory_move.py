"""Moving a huge page for UFFDIO_MOVE (move_pages_huge_pmd of mm/huge_memory.c)."""

from __future__ import annotations

from emulator.geometry import LEVEL_PMD
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import ACCESSED, DIRTY, PFN_SHIFT, PSE, RW, SPECIAL, UFFD_WP, mk_pte
from emulator.mm import pgtable_generic, rmap_counts, swap
from emulator.mm import vma as vma_ops
from emulator.mm_types import Folio, VmAreaStruct
from emulator.uapi import EAGAIN, EBUSY


def move_pages_huge_pmd(
    dst_vma: VmAreaStruct,
    src_vma: VmAreaStruct,
    dst_pmd: PageTable,
    src_pmd: PageTable,
    dst_addr: int,
    src_addr: int,
) -> int:
    """Move the huge page at ``src_addr`` to ``dst_addr``, where nothing is, not even a table.

    The lock of ``src_pmd`` is held, and given back. The bytes moved, -EBUSY (shared or pinned), or -EAGAIN (another one
    was faster).
    """
    mm = src_vma.vm_mm
    m = mm.machine
    entry: int = src_pmd.entries[pgtable_generic.slot_of(mm, src_addr, LEVEL_PMD)]  # type: ignore[assignment]
    folio = None if entry & SPECIAL else m.phys.frames[entry >> PFN_SHIFT]
    if folio is not None:
        if not folio.anon_exclusive & 1:
            src_pmd.ptl.unlock()
            return -EBUSY
        swap.folio_get(folio)
    src_pmd.ptl.unlock()
    if folio is not None:
        folio.lock.lock()
        m.sched.point("uffd_move.folio_locked")
    first, second = (src_pmd, dst_pmd) if src_addr < dst_addr else (dst_pmd, src_pmd)
    first.ptl.lock()
    if second is not first:
        second.ptl.lock()
    m.sched.point("uffd_move.ptes_locked")
    moved = move_locked_pmd(dst_vma, src_vma, dst_pmd, src_pmd, dst_addr, src_addr, entry, folio)
    first.ptl.unlock()
    if second is not first:
        second.ptl.unlock()
    if folio is not None:
        folio.lock.unlock()
        swap.folio_put(m, folio)
    return moved


def move_locked_pmd(
    dst_vma: VmAreaStruct,
    src_vma: VmAreaStruct,
    dst_pmd: PageTable,
    src_pmd: PageTable,
    dst_addr: int,
    src_addr: int,
    entry: int,
    folio: Folio | None,
) -> int:
    """The move itself: the folio is locked, and both tables are. ``entry`` is what the source was before.

    ``folio`` None: it is the huge page of zeros, whose entry moves as it is.
    """
    mm = src_vma.vm_mm
    m = mm.machine
    size = m.geometry.pmd_size
    src_slot = pgtable_generic.slot_of(mm, src_addr, LEVEL_PMD)
    dst_slot = pgtable_generic.slot_of(mm, dst_addr, LEVEL_PMD)
    if src_pmd.entries.get(src_slot, 0) != entry or dst_pmd.entries.get(dst_slot, 0):
        return -EAGAIN
    if folio is not None and (folio.maybe_dma_pinned() or not folio.anon_exclusive & 1):
        return -EBUSY
    entry = src_pmd.entries[src_slot]  # type: ignore[assignment]
    src_pmd.set(src_slot, 0)
    m.flush_tlb_range(mm, src_addr, src_addr + size)
    m.sched.point("uffd_move.pte_cleared")
    if folio is None:
        dst_pmd.set(dst_slot, entry & ~UFFD_WP)
        return size
    if folio.maybe_dma_pinned():
        src_pmd.set(src_slot, entry)
        return -EBUSY
    rmap_counts.folio_move_anon_rmap(folio, dst_vma)
    folio.index = vma_ops.linear_page_index(dst_vma, dst_addr)
    m.sched.point("uffd_move.folio_moved")
    flags = vma_ops.vm_page_prot(dst_vma.vm_flags) | PSE | ACCESSED | DIRTY | RW
    dst_pmd.set(dst_slot, mk_pte(folio.pfn, flags))
    return size
