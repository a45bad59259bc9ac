"""Faults on entries that are not present: swap, migration, markers (the do_swap_page part of mm/memory.c).

A page of an ordinary disk stays in the swap cache after a read fault until somebody wants to write it. A device that
is memory itself (zram) is read past the cache.
"""

from __future__ import annotations

from emulator.errors import KernelBug
from emulator.geometry import PAGE_SHIFT
from emulator.hw.pte import (
    ACCESSED,
    DIRTY,
    MARKER_GUARD,
    MARKER_POISON,
    MARKER_UFFD_WP,
    PFN_SHIFT,
    RW,
    SOFT_DIRTY,
    SOFTLEAF_MARKER,
    SOFTLEAF_SWAP,
    SWP_EXCLUSIVE,
    UFFD_WP,
    is_migration,
    mk_pte,
    softleaf_type,
    softleaf_value,
)
from emulator.mm import ksm, memory, memory_wp, rmap_counts, swap, swap_state, userfaultfd_k
from emulator.mm import vma as vma_ops
from emulator.mm_types import VM_LOCKED, VM_WRITE, Folio


def handle_pte_marker(vmf: memory.VmFault) -> int:
    """Poison and guard regions are fatal; write protection by userfaultfd is not: the page is just not there."""
    marker = softleaf_value(vmf.orig_pte)
    if marker & MARKER_POISON:
        return memory.VM_FAULT_HWPOISON
    if marker & MARKER_GUARD:
        return memory.VM_FAULT_SIGSEGV
    if marker != MARKER_UFFD_WP:
        return memory.VM_FAULT_SIGBUS
    if userfaultfd_k.userfaultfd_wp(vmf.vma):
        return memory.do_pte_missing(vmf)
    if memory.pte_lock_same(vmf):  # left over: the next fault finds nothing
        vmf.table.set(vmf.slot, 0)
        vmf.table.ptl.unlock()
    return 0


def swapin_batch(vmf: memory.VmFault, folio: Folio, page: int) -> int:
    """How many pages to map: all of a large folio, if the entries of this table and VMA want them all; else 1."""
    nr = folio.nr_pages
    if nr == 1:
        return 1
    first = vmf.slot - page
    start = vmf.address - (page << PAGE_SHIFT)
    if first < 0 or first + nr > vmf.m.geometry.ptrs_per_table:
        return 1
    if start < vmf.vma.vm_start or start + (nr << PAGE_SHIFT) > vmf.vma.vm_end:
        return 1
    expected = vmf.orig_pte - (page << PFN_SHIFT)
    entries = vmf.table.entries
    same = all(entries.get(first + i, 0) == expected + (i << PFN_SHIFT) for i in range(nr))
    return nr if same else 1


def should_try_to_free_swap(vmf: memory.VmFault, folio: Folio, references: int) -> bool:
    """Is the copy in the swap cache in the way of the write that is to come, or of locked memory?

    ``references``: those of the fault, beside which only the cache may have any.
    """
    if not folio.swapcache:
        return False
    if vmf.vma.vm_flags & VM_LOCKED or folio.mlocked:
        return True
    if folio.ksm or not vmf.flags & memory.FAULT_FLAG_WRITE:
        return False
    return folio.refcount == references + folio.nr_pages


def map_swapped_pages(vmf: memory.VmFault, folio: Folio, page: int, *, fresh: bool = False) -> int:
    """Map the folio in place of the swap entry; folio and table are locked. The caller's reference is used up.

    ``fresh``: nobody but the caller has ever seen the folio, so it is exclusive whatever the entry says.

    Returns how many pages were mapped.
    """
    vma, m = vmf.vma, vmf.m
    orig = vmf.orig_pte
    if folio.anon and folio.anon_exclusive >> page & 1:
        raise KernelBug("swap-entry-exclusive-page", f"a swap entry points to page {page} of {folio}", folio)
    nr = swapin_batch(vmf, folio, page)
    first = 0 if nr > 1 else page
    exclusive = bool(orig & SWP_EXCLUSIVE)
    swap_slot = folio.swap + first
    if exclusive and any(m.swap.count.get(swap_slot + i) != 1 for i in range(nr)):
        m.warn("swap-exclusive-shared", f"slot {swap_slot} is exclusive, and other entries hold it", folio)
    for i in range(nr):
        m.swap.put(swap_slot + i)
    if m.profile.swap_freed_before_mapping and should_try_to_free_swap(vmf, folio, 1):
        swap_state.folio_free_swap(m, folio)
    flags = vma_ops.vm_page_prot(vma.vm_flags) | ACCESSED | orig & (SOFT_DIRTY | UFFD_WP)
    exclusive = not folio.ksm and (fresh or exclusive or folio.refcount == 1)
    if exclusive and vma.vm_flags & VM_WRITE and not userfaultfd_k.userfaultfd_pte_wp(vma, flags):
        flags |= RW
        if vmf.flags & memory.FAULT_FLAG_WRITE:
            flags |= DIRTY
            vmf.flags &= ~memory.FAULT_FLAG_WRITE
    swap.folio_ref_add(folio, nr - 1)
    slot, address = vmf.slot - (page - first), vmf.address - ((page - first) << PAGE_SHIFT)
    if folio.anon:
        rmap_counts.folio_add_anon_rmap_ptes(folio, first, nr, vma, address, exclusive)
    else:
        rmap_counts.folio_add_new_anon_rmap(folio, vma, address, exclusive)
    for i in range(nr):
        vmf.table.set(slot + i, mk_pte(folio.pfn + first + i, flags))
    vmf.orig_pte = mk_pte(folio.pfn + page, flags)
    return nr


def swap_in_past_the_cache(vmf: memory.VmFault, swap_slot: int) -> int:
    """Read from a device that is memory (SWP_SYNCHRONOUS_IO) what no other entry holds: straight to a page of ours."""
    m = vmf.m
    folio = swap_state.alloc_swap_folio(m, swap_slot)
    same = memory.pte_lock_same(vmf)
    if folio is None:
        if same:
            vmf.table.ptl.unlock()
        return memory.VM_FAULT_OOM if same else 0
    if same:
        map_swapped_pages(vmf, folio, 0, fresh=True)
        m.sched.point("fault.swap_mapped")
    folio.swap = 0
    folio.lock.unlock()
    if not same:  # somebody else brought it back
        swap.folio_put(m, folio)
        return 0
    if vmf.flags & memory.FAULT_FLAG_WRITE:
        return memory_wp.do_wp_page(vmf)
    vmf.table.ptl.unlock()
    return 0


def folio_lock_or_retry(vmf: memory.VmFault, folio: Folio) -> bool:
    """Lock the folio. False, only with ALLOW_RETRY: somebody had it, and was waited for without mmap_lock."""
    if not vmf.flags & memory.FAULT_FLAG_ALLOW_RETRY:
        folio.lock.lock()
        return True
    if folio.lock.trylock():
        return True
    vmf.vma.vm_mm.mmap_lock.up_read()
    folio.lock.lock()
    folio.lock.unlock()
    return False


def map_found_page(vmf: memory.VmFault, folio: Folio, mapped: Folio, swap_slot: int) -> None:
    """Map the swap cache's folio, or a copy of it, and unlock it. The table is locked, and stays so."""
    m = vmf.m
    if mapped is not folio:
        mapped.swap = swap_slot
        map_swapped_pages(vmf, mapped, 0, fresh=True)
        mapped.swap = 0
        mapped.lock.unlock()
        m.sched.point("fault.swap_mapped")
        folio.lock.unlock()
        swap.folio_put(m, folio)
        return
    nr = map_swapped_pages(vmf, folio, swap_slot - folio.swap)
    m.sched.point("fault.swap_mapped")
    if not m.profile.swap_freed_before_mapping and should_try_to_free_swap(vmf, folio, nr):
        swap_state.folio_free_swap(m, folio)
    folio.lock.unlock()


def do_swap_page(vmf: memory.VmFault) -> int:
    """The entry was not present when it was read. Bring a swapped-out page back; VM_FAULT_RETRY for migration."""
    orig = vmf.orig_pte
    kind = softleaf_type(orig)
    if kind != SOFTLEAF_SWAP:
        if is_migration(orig):
            return memory.VM_FAULT_RETRY
        if kind == SOFTLEAF_MARKER:
            return handle_pte_marker(vmf)
        raise KernelBug("bad-entry", f"the entry at {vmf.address:#x} is of no known kind", vmf.vma)
    m = vmf.m
    swap_slot = softleaf_value(orig)
    folio = swap_state.swap_cache_get_folio(m, swap_slot)
    if folio is None and m.profile.swap_synchronous and m.swap.count.get(swap_slot) == 1:
        return swap_in_past_the_cache(vmf, swap_slot)
    if folio is None:
        folio = swap_state.swapin_folio(vmf.vma, swap_slot)
    if folio is None:
        if not memory.pte_lock_same(vmf):
            return 0  # somebody else brought it back
        vmf.table.ptl.unlock()
        return memory.VM_FAULT_OOM
    m.sched.point("fault.swap_folio_found")
    if not folio_lock_or_retry(vmf, folio):
        swap.folio_put(m, folio)
        return memory.VM_FAULT_RETRY
    m.sched.point("fault.folio_locked")
    mapped = folio if swap_state.folio_matches_swap_entry(folio, swap_slot) else None
    if mapped is not None:
        mapped = ksm.ksm_might_need_to_copy(folio, vmf.vma, vmf.address)
        if mapped is None:
            folio.lock.unlock()
            swap.folio_put(m, folio)
            return memory.VM_FAULT_OOM
    if mapped is None or not memory.pte_lock_same(vmf):
        if mapped is not None and mapped is not folio:
            mapped.lock.unlock()
            swap.folio_put(m, mapped)
        elif folio.swapcache:
            swap_state.folio_free_swap(m, folio)
        folio.lock.unlock()
        swap.folio_put(m, folio)
        return 0
    map_found_page(vmf, folio, mapped, swap_slot)
    if vmf.flags & memory.FAULT_FLAG_WRITE:
        return memory_wp.do_wp_page(vmf)
    vmf.table.ptl.unlock()
    return 0
