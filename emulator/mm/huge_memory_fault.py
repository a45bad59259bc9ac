"""Faults on huge pages, and where there may be some (the fault half of mm/huge_memory.c, do_set_pmd of mm/memory.c)."""

from __future__ import annotations

from emulator.geometry import PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import ACCESSED, DIRTY, PFN_SHIFT, PRESENT, PSE, RW, SPECIAL, mk_pte
from emulator.mm import (
    fs_userfaultfd,
    huge_memory,
    huge_memory_zero,
    memory,
    mlock_folio,
    rmap,
    rmap_counts,
    swap,
    swap_state,
    userfaultfd_k,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import (
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_NOHUGEPAGE,
    VM_SPECIAL,
    VM_WRITE,
    Folio,
    VmAreaStruct,
)

# ---- may there be a huge page


def thp_vma_suitable_pmd(vma: VmAreaStruct, addr: int) -> bool:
    """Does the huge page around ``addr`` lie in the VMA, and at such a place in its file? (thp_vma_suitable_order)"""
    g = vma.vm_mm.machine.geometry
    if vma.vm_ops is not None and ((vma.vm_start >> PAGE_SHIFT) - vma.vm_pgoff) % g.hpage_pmd_nr:
        return False
    haddr = addr & g.pmd_mask
    return vma.vm_start <= haddr and haddr + g.pmd_size <= vma.vm_end


def thp_vma_allowable_pmd(vma: VmAreaStruct, addr: int) -> bool:
    """May a fault at ``addr`` map a huge page: anonymous memory that wants them, and the range lies in the VMA."""
    flags = vma.vm_flags
    if vma.vm_ops is not None or flags & VM_NOHUGEPAGE:
        return False
    if not flags & VM_HUGEPAGE and not vma.vm_mm.machine.profile.thp_always:
        return False
    return thp_vma_suitable_pmd(vma, addr)


def thp_vma_allowable_orders(vma: VmAreaStruct, addr: int) -> list[int]:
    """Orders, highest first, of folios smaller than a huge page that a fault at ``addr`` may bring.

    They lie in the VMA, each aligned to its size (thp_vma_suitable_orders).
    """
    g = vma.vm_mm.machine.geometry
    orders = vma.vm_mm.machine.huge_anon_orders_madvise
    if not orders or vma.vm_ops is not None or vma.vm_flags & (VM_HUGEPAGE | VM_NOHUGEPAGE) != VM_HUGEPAGE:
        return []
    found = []
    for order in range(g.hpage_pmd_order - 1, 0, -1):
        start = addr & -(PAGE_SIZE << order)
        if orders >> order & 1 and vma.vm_start <= start and start + (PAGE_SIZE << order) <= vma.vm_end:
            found.append(order)
    return found


def thp_vma_allowable_collapse(vma: VmAreaStruct) -> bool:
    """thp_vma_allowable_order(TVA_FORCED_COLLAPSE): memory that holds a huge page somewhere.

    It is faulted and anonymous, or of a file of memory; other files cannot have huge pages
    (CONFIG_READ_ONLY_THP_FOR_FS is off). Whoever asks for a collapse wants huge pages, whatever the VMA and the system
    say (shmem_enabled too); not against NOHUGEPAGE.
    """
    if vma.vm_flags & (VM_NOHUGEPAGE | VM_SPECIAL | VM_HUGETLB):
        return False
    if not thp_vma_suitable_pmd(vma, vma.vm_end - vma.vm_mm.machine.geometry.pmd_size):
        return False
    if vma.vm_ops is None:
        return vma.anon_vma is not None
    return vma.vm_file is not None and vma.vm_file.f_mapping.shmem


# ---- faults


def map_anon_folio_pmd(folio: Folio, pmd: PageTable, slot: int, vma: VmAreaStruct, haddr: int) -> None:
    """Map a new huge page, exclusive, dirty and as writable as the VMA. The lock of ``pmd`` is held."""
    rmap_counts.folio_add_new_anon_rmap_pmd(folio, vma, haddr, True)
    mlock_folio.folio_add_lru_vma(folio, vma)
    flags = vma_ops.vm_page_prot(vma.vm_flags) | PSE | ACCESSED | DIRTY
    if vma.vm_flags & VM_WRITE:
        flags |= RW
    pmd.set(slot, mk_pte(folio.pfn, flags))


def do_huge_pmd_anonymous_page(vmf: memory.VmFault) -> int:
    """The first fault in a range: map a huge page. VM_FAULT_FALLBACK: there is none, use small ones.

    The VMA becomes faulted, also by a read, which gets the huge page of zeros.
    """
    vma, m = vmf.vma, vmf.m
    if rmap.anon_vma_prepare(vma):
        return memory.VM_FAULT_OOM
    if not vmf.flags & memory.FAULT_FLAG_WRITE and m.profile.use_zero_page:
        return huge_memory_zero.do_huge_zero_page(vmf)
    if m.should_fail("folio_alloc_huge"):
        return memory.VM_FAULT_FALLBACK
    folio = m.phys.alloc(m.geometry.hpage_pmd_order)
    if m.should_fail("pte_alloc"):
        swap.folio_put(m, folio)
        return memory.VM_FAULT_OOM
    m.sched.point("fault.folio_allocated")
    pmd = vmf.pmd
    pmd.ptl.lock()
    if pmd.entries.get(vmf.pmd_slot, 0):
        pmd.ptl.unlock()
        swap.folio_put(m, folio)
        return 0
    if userfaultfd_k.userfaultfd_missing(vma):
        pmd.ptl.unlock()
        swap.folio_put(m, folio)
        return fs_userfaultfd.handle_userfault(vmf)
    m.sched.point("fault.pmd_locked")
    map_anon_folio_pmd(folio, pmd, vmf.pmd_slot, vma, vmf.address & m.geometry.pmd_mask)
    pmd.ptl.unlock()
    return 0


def do_set_pmd(vmf: memory.VmFault, folio: Folio) -> bool:
    """Map a file's folio by a PMD, if it is huge and its place in the VMA is; its reference becomes the entry's.

    False: by PTEs, or not at all, as somebody else was faster. The folio is locked. (mm/memory.c)
    """
    vma, pmd = vmf.vma, vmf.pmd
    g = vmf.m.geometry
    if folio.order != g.hpage_pmd_order or vma.vm_flags & VM_NOHUGEPAGE or not thp_vma_suitable_pmd(vma, vmf.address):
        return False
    pmd.ptl.lock()
    free = not pmd.entries.get(vmf.pmd_slot, 0)
    if free:
        vmf.m.sched.point("fault.pmd_locked")
        flags = vma_ops.vm_page_prot(vma.vm_flags) | PSE | ACCESSED
        if vmf.flags & memory.FAULT_FLAG_WRITE:
            flags |= DIRTY | (RW if vma.vm_flags & VM_WRITE else 0)
        rmap_counts.folio_add_file_rmap_pmd(folio, vma)
        pmd.set(vmf.pmd_slot, mk_pte(folio.pfn, flags))
    pmd.ptl.unlock()
    return free


def reuse_huge_pmd(vmf: memory.VmFault, entry: int) -> int:
    """The huge page is ours alone: make the entry writable (not for UNSHARE) and unlock."""
    if vmf.flags & memory.FAULT_FLAG_WRITE:
        entry |= ACCESSED | DIRTY
        if vmf.vma.vm_flags & VM_WRITE:
            entry |= RW
        vmf.pmd.set(vmf.pmd_slot, entry)
    vmf.pmd.ptl.unlock()
    return 0


def do_huge_pmd_wp_page(vmf: memory.VmFault, orig: int) -> int:
    """A write (or UNSHARE) fault on a huge page that is mapped read-only by ``orig``.

    Reused when nobody else has a reference; else the PMD is split, and VM_FAULT_FALLBACK: copy a small page.
    """
    vma, m, pmd, slot = vmf.vma, vmf.m, vmf.pmd, vmf.pmd_slot
    if orig & SPECIAL:
        result = huge_memory_zero.do_huge_zero_wp_pmd(vmf, orig)
        if result & memory.VM_FAULT_FALLBACK:
            huge_memory.split_huge_pmd(vma, pmd, slot, vmf.address)
        return result
    pmd.ptl.lock()
    if pmd.entries.get(slot, 0) != orig:
        pmd.ptl.unlock()
        return 0
    folio = m.phys.frames[orig >> PFN_SHIFT]
    if folio.anon_exclusive & 1:
        return reuse_huge_pmd(vmf, orig)
    if not folio.lock.trylock():
        swap.folio_get(folio)
        pmd.ptl.unlock()
        folio.lock.lock()
        m.sched.point("fault.folio_locked")
        pmd.ptl.lock()
        if pmd.entries.get(slot, 0) != orig:
            pmd.ptl.unlock()
            folio.lock.unlock()
            swap.folio_put(m, folio)
            return 0
        swap.folio_put(m, folio)
        if folio.anon_exclusive & 1:
            folio.lock.unlock()
            return reuse_huge_pmd(vmf, orig)
    if folio.refcount <= 1 + (folio.nr_pages if folio.swapcache else 0):
        if folio.swapcache:
            swap_state.folio_free_swap(m, folio)
        if folio.refcount == 1:
            rmap_counts.folio_move_anon_rmap(folio, vma)
            folio.anon_exclusive |= 1
            folio.lock.unlock()
            return reuse_huge_pmd(vmf, orig)
    folio.lock.unlock()
    pmd.ptl.unlock()
    huge_memory.split_huge_pmd(vma, pmd, slot, vmf.address)
    return memory.VM_FAULT_FALLBACK


def huge_pmd_set_accessed(vmf: memory.VmFault, orig: int) -> None:
    """A fault that finds the huge page mapped as it should be. Waits for whoever is changing the entry."""
    pmd = vmf.pmd
    pmd.ptl.lock()
    if orig & PRESENT and pmd.entries.get(vmf.pmd_slot, 0) == orig:
        write = vmf.flags & memory.FAULT_FLAG_WRITE
        pmd.set(vmf.pmd_slot, orig | ACCESSED | (DIRTY if write else 0))
    pmd.ptl.unlock()
