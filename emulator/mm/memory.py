"""Page faults (mm/memory.c): the way down to the entry, missing pages of anonymous memory.

mm/memory.c is cut by concept: missing pages of files stand in ``memory_file.py``, write faults on present pages in
``memory_wp.py``, swap entries in ``memory_swap.py``, fork in ``memory_fork.py``, unmapping in ``memory_zap.py``. No
file system wants to be told before a page is written (page_mkwrite).
"""

from __future__ import annotations

from typing import Final

from emulator.errors import KernelBug
from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_SHIFT
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import (
    ACCESSED,
    DIRTY,
    PFN_SHIFT,
    PRESENT,
    RW,
    SPECIAL,
    UFFD_WP,
    is_uffd_wp_marker,
    mk_pte,
    pte_pfn,
)
from emulator.mm import (
    fs_userfaultfd,
    huge_memory,
    huge_memory_fault,
    memory_file,
    memory_swap,
    memory_wp,
    mlock_folio,
    pagewalk,
    pgtable_generic,
    rmap,
    rmap_counts,
    swap,
    userfaultfd_k,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import VM_MAYWRITE, VM_SHARED, VM_WRITE, Folio, MmStruct, VmAreaStruct

FAULT_FLAG_WRITE: Final = 1
FAULT_FLAG_INSTRUCTION: Final = 2
FAULT_FLAG_UNSHARE: Final = 4  # break the sharing of a page without making it writable (GUP)
FAULT_FLAG_ALLOW_RETRY: Final = 8  # rather drop mmap_lock and give up than wait for a folio lock under it

VM_FAULT_OOM: Final = 1
VM_FAULT_SIGBUS: Final = 2
VM_FAULT_SIGSEGV: Final = 4
VM_FAULT_RETRY: Final = 8  # a migration entry: drop mmap_lock, then migration_entry_wait (see also ALLOW_RETRY)
VM_FAULT_FALLBACK: Final = 16  # internal: no huge page, go on with small ones
VM_FAULT_NOPAGE: Final = 32  # internal: somebody else was faster, the access is tried again
VM_FAULT_HWPOISON: Final = 64  # the page is lost
_PUBLIC: Final = VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV | VM_FAULT_RETRY | VM_FAULT_HWPOISON


class VmFault:
    """struct vm_fault (vmf): one fault. ``address`` in bytes, page aligned.

    ``orig_pte`` is the entry as it was read without a lock, 0 for none; ``table`` its table, once locked.
    """

    __slots__ = ("address", "flags", "m", "orig_pte", "pmd", "pmd_slot", "slot", "table", "vma")

    table: PageTable

    def __init__(self, vma: VmAreaStruct, address: int, flags: int, pmd: PageTable) -> None:
        self.vma = vma
        self.m = vma.vm_mm.machine
        self.address = address
        self.flags = flags
        g = self.m.geometry
        self.pmd = pmd
        self.pmd_slot = (address >> g.pmd_shift) & g.index_mask
        self.slot = pgtable_generic.slot_of(vma.vm_mm, address, LEVEL_PTE)
        self.orig_pte = 0


# ---- helpers


def vm_normal_folio(vma: VmAreaStruct, addr: int, pte: int) -> Folio | None:
    """The folio that a present entry maps; None for the zero page."""
    if pte & SPECIAL:
        return None
    folio = vma.vm_mm.machine.phys.frames[pte >> PFN_SHIFT]
    if folio.freed:
        raise KernelBug("use-after-free", f"the entry at {addr:#x} maps a frame that has been freed", folio)
    return folio


def folio_pte_batch(folio: Folio, table: PageTable, slot: int, pte: int, most: int) -> int:
    """How many entries from ``slot`` on map consecutive pages of the folio, at least 1 and at most ``most``.

    Whether they are young, dirty or writable does not count.
    """
    ignored = ACCESSED | DIRTY | RW
    most = min(most, folio.pfn + folio.nr_pages - pte_pfn(pte))
    expected = pte | ignored
    entries = table.entries
    nr = 1
    while nr < most:
        expected += 1 << PFN_SHIFT
        entry: int = entries.get(slot + nr, 0)  # type: ignore[assignment]
        if entry | ignored != expected or not entry & PRESENT:
            break
        nr += 1
    return nr


def page_of(folio: Folio, pte: int) -> int:
    """Which page of the folio a present entry maps."""
    return (pte >> PFN_SHIFT) - folio.pfn


def is_cow_mapping(vm_flags: int) -> bool:
    """Private, and may be written: pages are copied before they are."""
    return vm_flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE


def vmf_orig_pte_uffd_wp(vmf: VmFault) -> bool:
    """Was the page protected before it is there: did the fault begin with a marker that counts?"""
    return userfaultfd_k.userfaultfd_wp(vmf.vma) and is_uffd_wp_marker(vmf.orig_pte)


def folio_prealloc(vmf: VmFault) -> Folio | None:
    """A small folio of zeros for the faulting page; None: out of memory (a fault point)."""
    m = vmf.m
    if m.should_fail("folio_alloc"):
        return None
    folio = m.phys.alloc(0)
    m.sched.point("fault.folio_allocated")
    return folio


def pte_range_none(table: PageTable, first: int, nr: int) -> bool:
    """Is there nothing in ``nr`` slots from ``first`` on, not even a marker?"""
    entries = table.entries
    return not any(entries.get(slot, 0) for slot in range(first, first + nr))


def alloc_anon_folio(vmf: VmFault) -> Folio | int:
    """The largest folio that is wanted here, has room between what is mapped, and can be had; else VM_FAULT_OOM or 0.

    0: the table has gone, the fault is tried again. With userfaultfd each page has a fault of its own.
    """
    m = vmf.m
    if not m.huge_anon_orders_madvise or userfaultfd_k.userfaultfd_armed(vmf.vma):
        return folio_prealloc(vmf) or VM_FAULT_OOM
    orders = huge_memory_fault.thp_vma_allowable_orders(vmf.vma, vmf.address)
    if orders:
        table = vmf.pmd.entries.get(vmf.pmd_slot, 0)
        if not isinstance(table, PageTable):
            return 0
        while orders and not pte_range_none(table, vmf.slot & -(1 << orders[0]), 1 << orders[0]):
            del orders[0]
    for order in orders:
        if not m.should_fail("folio_alloc"):
            folio = m.phys.alloc(order)
            m.sched.point("fault.folio_allocated")
            return folio
    return folio_prealloc(vmf) or VM_FAULT_OOM


def pte_alloc(vmf: VmFault) -> int:
    """See to it that there is a PTE table: 0, VM_FAULT_OOM, or VM_FAULT_NOPAGE where a huge page came first."""
    if isinstance(vmf.pmd.entries.get(vmf.pmd_slot, 0), PageTable):
        return 0
    if pgtable_generic.alloc_table(vmf.vma.vm_mm, vmf.address, LEVEL_PTE) is not None:
        return 0
    return VM_FAULT_NOPAGE if vmf.pmd.entries.get(vmf.pmd_slot, 0) else VM_FAULT_OOM


def pte_lock_same(vmf: VmFault) -> bool:
    """Lock the table; is the entry still the one that the fault began with? If not, nothing is locked."""
    table = pagewalk.pte_offset_map_lock(vmf.pmd, vmf.pmd_slot)
    if table is None:
        return False
    if table.entries.get(vmf.slot, 0) != vmf.orig_pte:
        table.ptl.unlock()
        return False
    vmf.table = table
    vmf.m.sched.point("fault.pte_locked")
    return True


def pte_lock_none(vmf: VmFault, first: int, nr: int) -> bool:
    """Lock the table; is there still nothing in these slots? If not, nothing is locked."""
    table = pagewalk.pte_offset_map_lock(vmf.pmd, vmf.pmd_slot)
    if table is None:
        return False
    if not pte_range_none(table, first, nr):
        table.ptl.unlock()
        return False
    vmf.table = table
    vmf.m.sched.point("fault.pte_locked")
    return True


def migration_entry_wait(mm: MmStruct, table: PageTable, slot: int, entry: int) -> None:
    """Wait until the slot no longer holds that migration entry. Called without mmap_lock.

    With nobody left who could end the migration this is a deadlock.
    """
    mm.machine.sched.wait_for(lambda: table.entries.get(slot, 0) != entry, "a migration entry")


# ---- missing pages


def do_anonymous_page(vmf: VmFault) -> int:
    """Nothing is mapped in anonymous memory: the zero page for a read, a new page for a write."""
    vma, m = vmf.vma, vmf.m
    if vma.vm_flags & VM_SHARED:
        return VM_FAULT_SIGBUS
    result = pte_alloc(vmf)
    if result:
        return result
    prot = vma_ops.vm_page_prot(vma.vm_flags) | ACCESSED
    if vmf_orig_pte_uffd_wp(vmf):
        prot |= UFFD_WP
    if not vmf.flags & FAULT_FLAG_WRITE:
        if pte_lock_same(vmf):
            if userfaultfd_k.userfaultfd_missing(vma):
                vmf.table.ptl.unlock()
                return fs_userfaultfd.handle_userfault(vmf)
            vmf.table.set(vmf.slot, mk_pte(m.phys.zero_folio.pfn, prot | SPECIAL))
            vmf.table.ptl.unlock()
        return 0
    if vma.anon_vma is None and rmap._anon_vma_prepare(vma):
        return VM_FAULT_OOM
    folio = alloc_anon_folio(vmf)
    if isinstance(folio, int):
        return folio
    nr = folio.nr_pages
    first = vmf.slot & -nr
    if not (pte_lock_same(vmf) if nr == 1 else pte_lock_none(vmf, first, nr)):
        swap.folio_put(m, folio)
        return 0
    if userfaultfd_k.userfaultfd_missing(vma):
        vmf.table.ptl.unlock()
        swap.folio_put(m, folio)
        return fs_userfaultfd.handle_userfault(vmf)
    swap.folio_ref_add(folio, nr - 1)
    rmap_counts.folio_add_new_anon_rmap(folio, vma, vmf.address & -(nr << PAGE_SHIFT), True)
    mlock_folio.folio_add_lru_vma(folio, vma)
    prot |= DIRTY | (RW if vma.vm_flags & VM_WRITE and not prot & UFFD_WP else 0)
    for i in range(nr):
        vmf.table.set(first + i, mk_pte(folio.pfn + i, prot))
    vmf.table.ptl.unlock()
    return 0


def do_pte_missing(vmf: VmFault) -> int:
    """Nothing is mapped there, a marker of userfaultfd at most."""
    return do_anonymous_page(vmf) if vmf.vma.vm_ops is None else memory_file.do_fault(vmf)


# ---- the way down


def handle_pte_fault(vmf: VmFault) -> int:
    """The PTE level: missing, not present, write-protected, or nothing wrong any more."""
    table = vmf.pmd.entries.get(vmf.pmd_slot, 0)
    if isinstance(table, PageTable):
        orig: int = table.entries.get(vmf.slot, 0)  # type: ignore[assignment]
        vmf.orig_pte = orig
        vmf.m.sched.point("fault.pte_read")
    elif table:
        return 0  # a huge page came first
    else:
        orig = 0
    if not orig:
        return do_pte_missing(vmf)
    if not orig & PRESENT:
        return memory_swap.do_swap_page(vmf)
    if not pte_lock_same(vmf):
        return 0
    flags = vmf.flags
    if flags & (FAULT_FLAG_WRITE | FAULT_FLAG_UNSHARE):
        if not orig & RW:
            return memory_wp.do_wp_page(vmf)
        if flags & FAULT_FLAG_WRITE:
            orig |= DIRTY
    orig |= ACCESSED
    if orig != vmf.orig_pte:
        vmf.table.set(vmf.slot, orig)
    elif flags & FAULT_FLAG_WRITE:
        # spurious: this CPU's TLB still had what the page table no longer says
        vmf.m.tlbs[vmf.m.sched.current.cpu].flush_page(vmf.vma.vm_mm.asid, vmf.address)
    vmf.table.ptl.unlock()
    return 0


def sanitize_fault_flags(vma: VmAreaStruct, flags: int) -> int:
    """The flags with UNSHARE dropped where nothing is shared; -1 for faults that no VMA should let through."""
    if flags & FAULT_FLAG_UNSHARE:
        if flags & FAULT_FLAG_WRITE:
            vma.vm_mm.machine.warn("fault-flags", "a fault asks for both UNSHARE and WRITE", vma)
            return -1
        if not is_cow_mapping(vma.vm_flags):
            flags &= ~FAULT_FLAG_UNSHARE
    elif flags & FAULT_FLAG_WRITE and not vma.vm_flags & VM_MAYWRITE:
        vma.vm_mm.machine.warn("fault-flags", f"a write fault in {vma}, which can never be written", vma)
        return -1
    return flags


def handle_mm_fault(vma: VmAreaStruct, address: int, flags: int) -> int:
    """Handle a fault at ``address`` (bytes, page aligned) under mmap_lock. 0 or VM_FAULT_* bits.

    0 says: try the access again. It may fault again, if somebody else changed the entry meanwhile.
    """
    if flags & (FAULT_FLAG_UNSHARE | FAULT_FLAG_WRITE):
        flags = sanitize_fault_flags(vma, flags)
        if flags < 0:
            return VM_FAULT_SIGSEGV
    pmd = pgtable_generic.alloc_table(vma.vm_mm, address, LEVEL_PMD)
    if pmd is None:
        return VM_FAULT_OOM
    vmf = VmFault(vma, address, flags, pmd)
    entry = pmd.entries.get(vmf.pmd_slot, 0)
    if not isinstance(entry, PageTable):
        if entry:
            result = handle_huge_pmd(vmf, entry)
        elif huge_memory_fault.thp_vma_allowable_pmd(vma, address):
            result = huge_memory_fault.do_huge_pmd_anonymous_page(vmf)
        else:
            result = VM_FAULT_FALLBACK
        if not result & VM_FAULT_FALLBACK:
            return result & _PUBLIC
    return handle_pte_fault(vmf) & _PUBLIC


def handle_huge_pmd(vmf: VmFault, entry: int) -> int:
    """A huge page is mapped by ``entry``. VM_FAULT_FALLBACK: no longer, go on with PTEs."""
    if entry & (PRESENT | RW) == PRESENT and vmf.flags & (FAULT_FLAG_WRITE | FAULT_FLAG_UNSHARE):
        if vmf.vma.vm_ops is not None:  # copied page by page
            huge_memory.split_huge_pmd(vmf.vma, vmf.pmd, vmf.pmd_slot, vmf.address)
            return VM_FAULT_FALLBACK
        if vmf.flags & FAULT_FLAG_WRITE and userfaultfd_k.userfaultfd_pte_wp(vmf.vma, entry):
            return fs_userfaultfd.handle_userfault(vmf)
        return huge_memory_fault.do_huge_pmd_wp_page(vmf, entry)
    huge_memory_fault.huge_pmd_set_accessed(vmf, entry)
    return 0
