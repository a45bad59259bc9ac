"""Faults in file mappings where nothing is mapped: do_fault and finish_fault of mm/memory.c."""

from __future__ import annotations

from emulator.geometry import PAGE_SHIFT
from emulator.hw.pte import ACCESSED, DIRTY, RW, UFFD_WP, mk_pte
from emulator.mm import (
    filemap,
    huge_memory_fault,
    memory,
    mlock_folio,
    rmap,
    rmap_counts,
    shmem,
    swap,
    userfaultfd_k,
    vma_exec,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import VM_SHARED, VM_WRITE, Folio


def pages_around(vmf: memory.VmFault, folio: Folio, page: int) -> tuple[int, int]:
    """(first, number) of a file folio's pages to map where ``page`` is missing: all, if VMA and table hold them all.

    With userfaultfd each page has a fault of its own.
    """
    armed = userfaultfd_k.userfaultfd_armed(vmf.vma)
    return (0, folio.nr_pages) if not armed and folio_fits(vmf, folio, page) else (page, 1)


def folio_fits(vmf: memory.VmFault, folio: Folio, page: int) -> bool:
    """Do VMA and table hold all of a file's folio, whose page ``page`` is where the fault is?"""
    nr = folio.nr_pages
    before = (vmf.address - vmf.vma.vm_start) >> PAGE_SHIFT
    after = (vmf.vma.vm_end - vmf.address) >> PAGE_SHIFT
    return page <= min(before, vmf.slot) and nr - page <= min(after, vmf.m.geometry.ptrs_per_table - vmf.slot)


def lock_for_mapping(vmf: memory.VmFault, folio: Folio, page: int) -> tuple[int, int] | None:
    """Lock the table of PTEs; (first, number) of the folio's pages to map. None: somebody was faster."""
    first, nr = pages_around(vmf, folio, page)
    if nr > 1:
        if memory.pte_lock_none(vmf, vmf.slot - page, nr):
            return first, nr
        first, nr = page, 1
    return (first, nr) if memory.pte_lock_same(vmf) else None


def finish_fault(vmf: memory.VmFault, folio: Folio, page: int, cow: bool) -> int:
    """Map page ``page`` of the folio, a file's, perhaps with its others, or (``cow``) a private copy. 0 or VM_FAULT_*.

    The caller's reference becomes the entry's. The file's folio is locked.
    """
    vma = vmf.vma
    huge = not cow and folio.order and not vmf.pmd.entries.get(vmf.pmd_slot, 0)
    if huge and huge_memory_fault.do_set_pmd(vmf, folio):
        return 0
    result = memory.pte_alloc(vmf)
    if result:
        return result
    locked = lock_for_mapping(vmf, folio, page)
    if locked is None:
        return memory.VM_FAULT_NOPAGE
    first, nr = locked
    flags = vma_ops.vm_page_prot(vma.vm_flags) | ACCESSED
    if vmf.flags & memory.FAULT_FLAG_WRITE:
        flags |= DIRTY | (RW if vma.vm_flags & VM_WRITE else 0)
    if memory.vmf_orig_pte_uffd_wp(vmf):
        flags = flags & ~RW | UFFD_WP
    swap.folio_ref_add(folio, nr - 1)
    if cow:
        rmap_counts.folio_add_new_anon_rmap(folio, vma, vmf.address, True)
        mlock_folio.folio_add_lru_vma(folio, vma)
    else:
        rmap_counts.folio_add_file_rmap_ptes(folio, first, nr, vma)
    slot = vmf.slot - page + first
    for i in range(nr):
        vmf.table.set(slot + i, mk_pte(folio.pfn + first + i, flags))
    vmf.table.ptl.unlock()
    return 0


def file_fault(vmf: memory.VmFault) -> Folio | int:
    """__do_fault: the page of the file, locked, with a reference; else a VM_FAULT_* code."""
    vma = vmf.vma
    assert vma.vm_file is not None
    if vma.vm_file.f_mapping.shmem:
        return shmem.shmem_fault(vmf)
    return filemap.filemap_fault(vma, vma_ops.linear_page_index(vma, vmf.address))


def index_in(folio: Folio, vmf: memory.VmFault) -> int:
    """Which page of a file's folio the fault wants (folio_file_page)."""
    return vma_ops.linear_page_index(vmf.vma, vmf.address) - folio.index


def do_cow_fault(vmf: memory.VmFault) -> int:
    """A write to a private file mapping where nothing is mapped: map a copy at once."""
    vma, m = vmf.vma, vmf.m
    if rmap.anon_vma_prepare(vma):
        return memory.VM_FAULT_OOM
    copy = memory.folio_prealloc(vmf)
    if copy is None:
        return memory.VM_FAULT_OOM
    found = file_fault(vmf)
    if isinstance(found, int):
        swap.folio_put(m, copy)
        return found
    copy.content[0] = dict(found.content[index_in(found, vmf)])
    m.sched.point("fault.copied")
    result = finish_fault(vmf, copy, 0, True)
    found.lock.unlock()
    swap.folio_put(m, found)
    if result:
        swap.folio_put(m, copy)
    return result


def do_fault(vmf: memory.VmFault) -> int:
    """Nothing is mapped in a file mapping (do_read_fault, do_shared_fault, do_cow_fault)."""
    vma = vmf.vma
    if vma.vm_file is None:
        return vma_exec.special_mapping_fault(vmf)
    shared = vma.vm_flags & VM_SHARED
    write = vmf.flags & memory.FAULT_FLAG_WRITE
    if write and not shared:
        return do_cow_fault(vmf)
    if not write and filemap.has_large_folios(vma) and not userfaultfd_k.uffd_disable_fault_around(vma):
        result = filemap.do_fault_around(vmf)
        if result:
            return result & ~memory.VM_FAULT_NOPAGE
    found = file_fault(vmf)
    if isinstance(found, int):
        return found
    result = finish_fault(vmf, found, index_in(found, vmf), False)
    if write and not result:
        found.dirty = True
    found.lock.unlock()
    if result:
        swap.folio_put(vmf.m, found)
    return result
