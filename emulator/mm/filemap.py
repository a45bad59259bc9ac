"""The page cache, as far as faults see it (mm/filemap.c). Files on disks have small folios; reading never fails.

Linux maps what the page cache has around a page that is read. Of small folios nobody sees that, and the machine does
not do it; large ones come whole, also what of them lies behind the end of the file, where a fault of its own fails.
"""

from __future__ import annotations

from typing import Final

from emulator.fs_types import AddressSpace
from emulator.geometry import PAGE_SHIFT
from emulator.hw.pte import ACCESSED, mk_pte
from emulator.mm import huge_memory_fault, memory, memory_file, pagewalk, rmap_counts, swap
from emulator.mm import vma as vma_ops
from emulator.mm_types import Folio, VmAreaStruct
from emulator.workload import file_token

FAULT_AROUND_PAGES: Final = 16  # fault_around_bytes: 64 kB


def filemap_add_folio(vma: VmAreaStruct, mapping: AddressSpace, index: int) -> Folio | None:
    """A folio for page ``index``, read and put into the cache, with a reference for the caller. None: no memory."""
    m = vma.vm_mm.machine
    if m.should_fail("folio_alloc"):
        return None
    folio = m.phys.alloc(0)
    folio.mapping = mapping
    folio.index = index
    if index not in mapping.holes:
        folio.content[0][0] = file_token(mapping.label, index)
    mapping.pages[index] = folio
    swap.folio_get(folio)
    return folio


def filemap_fault(vma: VmAreaStruct, index: int) -> Folio | int:
    """The cache's folio for page ``index`` of the VMA's file, locked, with a reference. Else a VM_FAULT_* code."""
    assert vma.vm_file is not None
    mapping = vma.vm_file.f_mapping
    if index << PAGE_SHIFT >= mapping.size:
        return memory.VM_FAULT_SIGBUS
    m = vma.vm_mm.machine
    while True:
        folio = mapping.pages.get(index)
        if folio is None:
            folio = filemap_add_folio(vma, mapping, index)
            if folio is None:
                return memory.VM_FAULT_OOM
        else:
            swap.folio_get(folio)
        m.sched.point("fault.file_folio_found")
        folio.lock.lock()
        if folio.mapping is mapping:
            return folio
        # migrated meanwhile: another folio has its place
        folio.lock.unlock()
        swap.folio_put(m, folio)


# ---- what is mapped around a page that is read


def has_large_folios(vma: VmAreaStruct) -> bool:
    """May the file have any?"""
    return vma.vm_file is not None and vma.vm_file.f_mapping.large_folios


def do_fault_around(vmf: memory.VmFault) -> int:
    """Map the large folios around the page (mm/memory.c). VM_FAULT_NOPAGE: it is mapped now; VM_FAULT_OOM; 0: not."""
    vma = vmf.vma
    before = (vmf.address - vma.vm_start) >> PAGE_SHIFT
    after = (vma.vm_end - vmf.address) >> PAGE_SHIFT
    first = max(vmf.slot & -FAULT_AROUND_PAGES, vmf.slot - before)
    end = min(first + FAULT_AROUND_PAGES, vmf.m.geometry.ptrs_per_table, vmf.slot + after)
    return filemap_map_pages(vmf, first - vmf.slot, end - vmf.slot)


def filemap_map_pages(vmf: memory.VmFault, first: int, end: int) -> int:
    """``do_fault_around`` of the pages from ``first`` to before ``end``, counted from the one that is read."""
    assert vmf.vma.vm_file is not None
    mapping = vmf.vma.vm_file.f_mapping
    here = vma_ops.linear_page_index(vmf.vma, vmf.address)
    stop = min(here + end, (mapping.size + (1 << PAGE_SHIFT) - 1) >> PAGE_SHIFT)
    index = here + first
    result = 0
    prepared = False
    while index < stop:
        folio = mapping.pages.get(index)
        if folio is None or not folio.lock.trylock():
            index += 1
            continue
        if not prepared:
            swap.folio_get(folio)  # the entry's, if a PMD maps it
            if not vmf.pmd.entries.get(vmf.pmd_slot, 0) and huge_memory_fault.do_set_pmd(vmf, folio):
                folio.lock.unlock()
                return memory.VM_FAULT_NOPAGE
            folio.refcount -= 1
            result = memory.pte_alloc(vmf)
            prepared = not result
        if prepared and folio.order and map_folio_range(vmf, folio, index, min(stop, folio.index + folio.nr_pages)):
            result = memory.VM_FAULT_NOPAGE
        folio.lock.unlock()
        if not prepared:
            return result
        index = folio.index + folio.nr_pages
    return result


def map_folio_range(vmf: memory.VmFault, folio: Folio, first: int, end: int) -> bool:
    """filemap_map_folio_range: map pages [first, end) of the file, which the locked folio has, where nothing is mapped.

    All of the folio, where VMA and table hold it. Is the page that was read among what is mapped now?
    """
    vma = vmf.vma
    here = vma_ops.linear_page_index(vma, vmf.address)
    if memory_file.folio_fits(vmf, folio, here - folio.index):
        first, end = folio.index, folio.index + folio.nr_pages
    table = pagewalk.pte_offset_map_lock(vmf.pmd, vmf.pmd_slot)
    if table is None:
        return False
    prot = vma_ops.vm_page_prot(vma.vm_flags) | ACCESSED
    free = [i for i in range(first, end) if not table.entries.get(vmf.slot + i - here, 0)]
    for start in (i for i in free if i - 1 not in free):
        page, nr = start - folio.index, 1
        while start + nr in free:
            nr += 1
        swap.folio_ref_add(folio, nr)
        rmap_counts.folio_add_file_rmap_ptes(folio, page, nr, vma)
        for i in range(nr):
            table.set(vmf.slot + start + i - here, mk_pte(folio.pfn + page + i, prot))
    table.ptl.unlock()
    return here in free
