"""The page cache, as far as faults see it (mm/filemap.c). Small folios only; reading a file never fails."""

from __future__ import annotations

from emulator.geometry import PAGE_SHIFT
from emulator.mm import memory, swap
from emulator.mm_types import AddressSpace, Folio, VmAreaStruct
from emulator.workload import file_token


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
