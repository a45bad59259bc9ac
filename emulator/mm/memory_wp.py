"""Write faults on pages that are mapped read-only: reuse or copy (the do_wp_page part of mm/memory.c)."""

from __future__ import annotations

from emulator.geometry import PAGE_SIZE
from emulator.hw.pte import ACCESSED, DIRTY, RW, SOFT_DIRTY, UFFD_WP, mk_pte
from emulator.mm import (
    fs_userfaultfd,
    memory,
    mlock_folio,
    rmap,
    rmap_counts,
    swap,
    swap_state,
    userfaultfd_k,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import VM_MAYSHARE, VM_SHARED, VM_WRITE, Folio, VmAreaStruct


def wp_page_reuse(vmf: memory.VmFault) -> int:
    """Make the entry writable and unlock. More is allowed than before, so no other TLB needs a flush."""
    entry = vmf.orig_pte | ACCESSED | DIRTY
    if vmf.vma.vm_flags & VM_WRITE:
        entry |= RW
    vmf.table.set(vmf.slot, entry)
    vmf.table.ptl.unlock()
    return 0


def wp_can_reuse_large_anon_folio(folio: Folio, vma: VmAreaStruct) -> bool:
    """Are all references to the large folio mappings of one process? (Its rmap is not moved then.)"""
    if folio.mapcount() <= 1 or folio.mm_ids_shared:
        return False  # with one page mapped, rather let the large folio go
    if folio.swapcache:
        if not folio.lock.trylock():
            return False
        swap_state.folio_free_swap(vma.vm_mm.machine, folio)
        folio.lock.unlock()
    return folio.mapcount() == folio.refcount


def wp_can_reuse_anon_folio(folio: Folio, vma: VmAreaStruct) -> bool:
    """Is the anonymous folio ours alone, though not marked so? A small one then hangs at our own anon_vma."""
    if folio.order:
        return wp_can_reuse_large_anon_folio(folio, vma)
    if folio.ksm or folio.refcount > 1 + folio.swapcache or not folio.lock.trylock():
        return False
    if folio.swapcache:
        swap_state.folio_free_swap(vma.vm_mm.machine, folio)
    reuse = folio.refcount == 1
    if reuse:
        rmap_counts.folio_move_anon_rmap(folio, vma)
    folio.lock.unlock()
    return reuse


def wp_page_copy(vmf: memory.VmFault, old: Folio | None, page: int) -> int:
    """Replace the page by a copy that is ours alone. ``old`` None: the zero page; else with a reference for us."""
    vma, m = vmf.vma, vmf.m
    new = None if rmap.anon_vma_prepare(vma) else memory.folio_prealloc(vmf)
    if new is None:
        if old is not None:
            swap.folio_put(m, old)
        return memory.VM_FAULT_OOM
    if old is not None:
        new.content[0] = dict(old.content[page])
        m.sched.point("fault.copied")
    if not memory.pte_lock_same(vmf):
        swap.folio_put(m, new)
        if old is not None:
            swap.folio_put(m, old)
        return 0
    flags = vma_ops.vm_page_prot(vma.vm_flags) | ACCESSED
    if vmf.flags & memory.FAULT_FLAG_UNSHARE:
        flags |= vmf.orig_pte & (SOFT_DIRTY | UFFD_WP)
    else:
        flags |= DIRTY | (RW if vma.vm_flags & VM_WRITE else 0)
    # cleared and flushed first: no two CPUs may see two different pages here
    vmf.table.set(vmf.slot, 0)
    m.flush_tlb_range(vma.vm_mm, vmf.address, vmf.address + PAGE_SIZE)
    m.sched.point("fault.pte_cleared")
    rmap_counts.folio_add_new_anon_rmap(new, vma, vmf.address, True)
    mlock_folio.folio_add_lru_vma(new, vma)
    vmf.table.set(vmf.slot, mk_pte(new.pfn, flags))
    if old is not None:
        # only now: who finds the old page unmapped here may reuse it
        rmap_counts.folio_remove_rmap_ptes(old, page, 1, vma)
    vmf.table.ptl.unlock()
    if old is not None:
        m.sched.point("fault.old_unmapped")
        swap.folio_put(m, old)  # the entry's reference
        swap_state.free_swap_cache(m, old)
        swap.folio_put(m, old)
    return 0


def do_wp_page(vmf: memory.VmFault) -> int:
    """A write (or UNSHARE) fault on a present page that is not writable. The table is locked; unlocks it."""
    vma = vmf.vma
    if vmf.flags & memory.FAULT_FLAG_WRITE and userfaultfd_k.userfaultfd_wp(vma):
        if vmf.orig_pte & UFFD_WP:
            vmf.table.ptl.unlock()
            return fs_userfaultfd.handle_userfault(vmf)
        if vma.vm_mm.tlb_flush_pending:
            # write-protected under the lock for reading: another CPU may still write to what is copied now
            vmf.m.flush_tlb_range(vma.vm_mm, vmf.address, vmf.address + PAGE_SIZE)
    folio = memory.vm_normal_folio(vma, vmf.address, vmf.orig_pte)
    if vma.vm_flags & (VM_SHARED | VM_MAYSHARE):
        if folio is not None:
            folio.dirty = True
        return wp_page_reuse(vmf)
    if folio is None:
        vmf.table.ptl.unlock()
        return wp_page_copy(vmf, None, 0)
    page = memory.page_of(folio, vmf.orig_pte)
    if folio.anon and (folio.anon_exclusive >> page & 1 or wp_can_reuse_anon_folio(folio, vma)):
        folio.anon_exclusive |= 1 << page
        if vmf.flags & memory.FAULT_FLAG_UNSHARE:
            vmf.table.ptl.unlock()
            return 0
        return wp_page_reuse(vmf)
    swap.folio_get(folio)
    vmf.table.ptl.unlock()
    return wp_page_copy(vmf, folio, page)
