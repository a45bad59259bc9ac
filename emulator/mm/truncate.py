"""Punching holes into files (mm/truncate.c, shmem_fallocate of mm/shmem.c, unmap_mapping_range of mm/memory.c).

Files do not change their length. What is punched out holds zeros, and is unmapped everywhere; private copies stay.
Page numbers are of the file, ranges without the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.fs_types import AddressSpace
from emulator.geometry import LEVEL_PTE, PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PRESENT, is_migration, softleaf_value
from emulator.mm import (
    huge_memory,
    huge_memory_split,
    memory,
    memory_zap,
    mmu_gather,
    pagewalk,
    pgtable_generic,
    shmem,
    swap,
    userfaultfd_k,
    vma,
)
from emulator.mm_types import Folio, VmAreaStruct

if TYPE_CHECKING:
    from emulator.machine import Machine


def punch_hole(m: Machine, mapping: AddressSpace, first: int, last: int) -> None:
    """fallocate(FALLOC_FL_PUNCH_HOLE) of pages [first, last); of what lies behind the end nothing is there."""
    unmap_mapping_pages(m, mapping, first, last)
    m.sched.point("truncate.unmapped")
    if mapping.shmem:
        shmem.shmem_undo_range(m, mapping, first, last)
        return
    for index in range(first, min(last, mapping.size >> PAGE_SHIFT)):
        mapping.holes[index] = None
    for index in sorted(index for index in mapping.pages if first <= index < last):
        truncate_page(m, mapping, index)


def truncate_page(m: Machine, mapping: AddressSpace, index: int) -> None:
    """Take one page of a file on a disk out of the page cache."""
    while (folio := mapping.pages.get(index)) is not None:
        swap.folio_get(folio)
        folio.lock.lock()
        if folio.mapping is mapping:  # else it was migrated meanwhile
            truncate_inode_folio(m, mapping, folio)
        folio.lock.unlock()
        swap.folio_put(m, folio)


def truncate_inode_folio(m: Machine, mapping: AddressSpace, folio: Folio) -> None:
    """Take a locked folio out of the page cache; who mapped it since the range was unmapped loses it again."""
    if folio.mapped():
        unmap_mapping_pages(m, mapping, folio.index, folio.index + folio.nr_pages)
    shmem.remove_folio(m, mapping, folio)
    if mapping.shmem:
        shmem.shmem_unacct_blocks(m, mapping, folio.nr_pages)


def truncate_inode_partial_folio(m: Machine, mapping: AddressSpace, folio: Folio, pages: range) -> bool:
    """These pages of a locked folio are to go. False: they are zeros now, and stay, as the folio cannot be split.

    What a split has made of the folio has to be looked at again; its first page has the caller's lock and reference.
    """
    first, end = pages.start - folio.index, folio.index + folio.nr_pages
    if len(pages) == folio.nr_pages:
        truncate_inode_folio(m, mapping, folio)
        return True
    for i in range(first, first + len(pages)):
        folio.content[i] = {}
    folio.dirty = True
    if huge_memory_split.try_folio_split(m, folio, first):
        return False
    if pages.stop < end:
        split_tail(m, mapping, pages.stop)
    return True


def split_tail(m: Machine, mapping: AddressSpace, index: int) -> None:
    """Split the folio so that one begins with page ``index``, the first behind a hole, if nobody else has it.

    Also where one does already: then it is needless, but done.
    """
    folio = mapping.pages.get(index)
    if folio is None or not folio.order or not folio.lock.trylock():
        return
    swap.folio_get(folio)
    if folio.mapping is mapping:
        huge_memory_split.try_folio_split(m, folio, index - folio.index)
    folio = m.phys.frames[folio.pfn]
    folio.lock.unlock()
    swap.folio_put(m, folio)


def unmap_mapping_pages(m: Machine, mapping: AddressSpace, first: int, last: int) -> None:
    """Unmap pages [first, last) of a file in every process; private copies stay (even_cows=0)."""
    mapping.i_mmap_rwsem.down_read()
    for area in list(mapping.i_mmap):
        low = max(first, area.vm_pgoff)
        high = min(last, area.vm_pgoff + vma.vma_pages(area))
        if low < high:
            start = area.vm_start + ((low - area.vm_pgoff) << PAGE_SHIFT)
            zap_file_pages(area, start, start + ((high - low) << PAGE_SHIFT))
            m.sched.point("truncate.vma_unmapped")
    mapping.i_mmap_rwsem.up_read()


def zap_file_pages(area: VmAreaStruct, start: int, end: int) -> None:
    """Clear the entries of [start, end) (bytes) that map the file's own pages, or are to map them again (migration)."""
    mm = area.vm_mm
    gather = mmu_gather.MmuGather(mm)
    for pmd, slot, addr, stop in pagewalk.pmd_ranges(mm, start, end):
        if not isinstance(pmd.entries[slot], PageTable):
            if stop - addr == mm.machine.geometry.pmd_size:
                huge_memory.zap_huge_pmd(gather, area, pmd, slot, addr)
            else:
                huge_memory.split_huge_pmd(area, pmd, slot, addr)
        table = pagewalk.pte_offset_map_lock(pmd, slot)
        if table is None:
            continue
        first = pgtable_generic.slot_of(mm, addr, LEVEL_PTE)
        for i in range((stop - addr) >> PAGE_SHIFT):
            zap_file_page(gather, area, table, first + i, addr + i * PAGE_SIZE)
        table.ptl.unlock()
    mmu_gather.tlb_flush_mmu(gather)


def zap_file_page(
    gather: mmu_gather.MmuGather, area: VmAreaStruct, table: PageTable, slot: int, addr: int
) -> None:
    """should_zap_folio: not what is anonymous; guard regions stay. The page of zeros (UFFDIO_ZEROPAGE) is nobody's."""
    pte: int = table.entries.get(slot, 0)  # type: ignore[assignment]
    if pte & PRESENT:
        folio = memory.vm_normal_folio(area, addr, pte)
        if folio is None or not folio.anon:
            memory_zap.zap_present_pte(gather, area, table, slot, addr, pte, False)
    elif pte and is_migration(pte) and not area.vm_mm.machine.phys.frames[softleaf_value(pte)].anon:
        table.set(slot, 0)
        userfaultfd_k.pte_install_uffd_wp_if_needed(area, table, slot, pte)
