"""The huge page of zeros: what a read fault maps where a huge page fits (mm/huge_memory.c).

There is one for all (``PhysicalMemory.huge_zero_folio``); an entry that maps it is SPECIAL and never writable, and no
mapcount knows of it. Unlike the small one it is counted by GUP. It is allocated when it is needed first, and stays;
Linux gives it back under memory pressure once no process uses it (its shrinker), which nobody can tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import LEVEL_PTE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import ACCESSED, PSE, SPECIAL, UFFD_WP, mk_pte
from emulator.mm import fs_userfaultfd, huge_memory_fault, memory, pgtable_generic, swap, userfaultfd_k
from emulator.mm import vma as vma_ops
from emulator.mm_types import Folio, VmAreaStruct

if TYPE_CHECKING:
    from emulator.machine import Machine


def mm_get_huge_zero_folio(m: Machine) -> Folio | None:
    """The huge page of zeros; None: there is none yet, and no memory for it (a fault point)."""
    phys = m.phys
    if phys.huge_zero_folio is None and not m.should_fail("folio_alloc_huge"):
        phys.huge_zero_folio = phys.alloc(m.geometry.hpage_pmd_order)
    return phys.huge_zero_folio


def do_huge_zero_page(vmf: memory.VmFault) -> int:
    """The first fault in a range is a read: map the huge page of zeros (the half of do_huge_pmd_anonymous_page)."""
    vma, m = vmf.vma, vmf.m
    if m.should_fail("pte_alloc"):
        return memory.VM_FAULT_OOM
    folio = mm_get_huge_zero_folio(m)
    if folio is None:
        return memory.VM_FAULT_FALLBACK
    m.sched.point("fault.folio_allocated")
    pmd = vmf.pmd
    pmd.ptl.lock()
    if pmd.entries.get(vmf.pmd_slot, 0):
        pmd.ptl.unlock()
        return 0
    if userfaultfd_k.userfaultfd_missing(vma):
        pmd.ptl.unlock()
        return fs_userfaultfd.handle_userfault(vmf)
    m.sched.point("fault.pmd_locked")
    pmd.set(vmf.pmd_slot, mk_pte(folio.pfn, vma_ops.vm_page_prot(vma.vm_flags) | ACCESSED | PSE | SPECIAL))
    pmd.ptl.unlock()
    return 0


def do_huge_zero_wp_pmd(vmf: memory.VmFault, orig: int) -> int:
    """A write (or UNSHARE) fault on the huge page of zeros: a huge page of its own. VM_FAULT_FALLBACK: no memory."""
    vma, m, pmd, slot = vmf.vma, vmf.m, vmf.pmd, vmf.pmd_slot
    if m.should_fail("folio_alloc_huge"):
        return memory.VM_FAULT_FALLBACK
    folio = m.phys.alloc(m.geometry.hpage_pmd_order)
    m.sched.point("fault.folio_allocated")
    pmd.ptl.lock()
    if pmd.entries.get(slot, 0) != orig:
        pmd.ptl.unlock()
        swap.folio_put(m, folio)
        return 0
    m.sched.point("fault.pmd_locked")
    haddr = vmf.address & m.geometry.pmd_mask
    pmd.set(slot, 0)
    m.flush_tlb_range(vma.vm_mm, haddr, haddr + m.geometry.pmd_size)
    huge_memory_fault.map_anon_folio_pmd(folio, pmd, slot, vma, haddr)
    pmd.ptl.unlock()
    return 0


def split_huge_zero_page_pmd(vma: VmAreaStruct, pmd: PageTable, slot: int, haddr: int) -> None:
    """Small pages of zeros take the place of the huge one; no memory is needed. The lock of ``pmd`` is held."""
    mm = vma.vm_mm
    m = mm.machine
    entry: int = pmd.entries[slot]  # type: ignore[assignment]
    pmd.set(slot, 0)
    m.flush_tlb_range(mm, haddr, haddr + m.geometry.pmd_size)
    m.sched.point("thp.pmd_invalidated")
    table = pgtable_generic.new_table(mm, LEVEL_PTE)
    pte = mk_pte(
        m.phys.zero_folio.pfn, vma_ops.vm_page_prot(vma.vm_flags) | ACCESSED | SPECIAL | entry & UFFD_WP
    )
    for i in range(m.geometry.hpage_pmd_nr):
        table.set(i, pte)
    pmd.set(slot, table)
    m.sched.point("thp.pmd_split")
