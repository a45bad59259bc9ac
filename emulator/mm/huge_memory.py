"""Transparent huge pages: folios of PMD size, anonymous or of files of memory, mapped by a PMD (mm/huge_memory.c).

Faults stand in ``huge_memory_fault.py``, splitting the folio itself in ``huge_memory_split.py``, the huge page of zeros
in ``huge_memory_zero.py``. An entry that maps a huge page of a file is not split but cleared, wherever one that maps
anonymous memory is: faults find the page again.

PTE tables are not deposited beforehand, but counted as allocations where the kernel deposits one, so that a split
never fails for want of memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import KernelBug
from emulator.geometry import LEVEL_PMD, LEVEL_PTE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import (
    ACCESSED,
    DIRTY,
    PFN_SHIFT,
    PRESENT,
    PROT_BITS,
    PSE,
    RW,
    SOFT_DIRTY,
    SPECIAL,
    UFFD_WP,
    USER,
    mk_softleaf,
)
from emulator.mm import (
    huge_memory_zero,
    mprotect,
    pgtable_generic,
    rmap_counts,
    rmap_unmap,
    swap,
    userfaultfd_k,
)
from emulator.mm_types import (
    VM_DROPPABLE,
    Folio,
    VmAreaStruct,
)
from emulator.uapi import EAGAIN, ENOENT, ENOMEM

if TYPE_CHECKING:
    from emulator.machine import Machine
    from emulator.mm import mmu_gather

# An entry that pmdp_invalidate has made not present while its lock is held: no softleaf has this type.
INVALID = PSE | ACCESSED | DIRTY


def anon_enabled_store(m: Machine, orders: int) -> int:
    """sysfs hugepages-*kB/enabled: "madvise" for these orders (bit n: 2**n pages), "never" for the others."""
    if not m.profile.anon_folio_sizes:
        return -ENOENT
    m.huge_anon_orders_madvise = orders
    return 0


# ---- whole-entry operations


def pmd_trans_huge_lock(pmd: PageTable, slot: int) -> int:
    """Lock the table if the entry maps a huge page: the entry then, else 0 and unlocked."""
    entry = pmd.entries.get(slot, 0)
    if not entry or isinstance(entry, PageTable):
        return 0
    pmd.ptl.lock()
    entry = pmd.entries.get(slot, 0)
    if not isinstance(entry, PageTable) and entry & PRESENT:
        return entry
    pmd.ptl.unlock()
    return 0


def zap_huge_pmd(
    gather: mmu_gather.MmuGather, vma: VmAreaStruct, pmd: PageTable, slot: int, addr: int
) -> bool:
    """Unmap a huge page; it is freed when the gather has flushed. False: it is none any more."""
    entry = pmd_trans_huge_lock(pmd, slot)
    if not entry:
        return False
    m = vma.vm_mm.machine
    pmd.set(slot, 0)
    m.sched.point("zap.pmd_cleared")
    gather.remove_range(addr, addr + m.geometry.pmd_size)
    if not entry & SPECIAL:
        folio = m.phys.frames[entry >> PFN_SHIFT]
        if entry & DIRTY and not folio.anon:
            folio.dirty = True
        rmap_counts.folio_remove_rmap_pmd(folio, vma)
        gather.remove_folio(folio)
    pmd.ptl.unlock()
    return True


def unmap_huge_pmd_locked(vma: VmAreaStruct, addr: int, pmd: PageTable, slot: int, folio: Folio) -> bool:
    """Throw a lazily freed huge page away, if it was not written to and nobody else has it; ``pmd`` is locked."""
    m = vma.vm_mm.machine
    entry: int = pmd.entries[slot]  # type: ignore[assignment]
    if entry & DIRTY:
        folio.dirty = True
    if folio.dirty and not vma.vm_flags & VM_DROPPABLE:
        folio.swapbacked = True
        return False
    pmd.set(slot, 0)
    m.flush_tlb_range(vma.vm_mm, addr, addr + m.geometry.pmd_size)
    m.sched.point("unmap.pte_cleared")
    if not rmap_unmap.may_discard(folio, vma):
        pmd.set(slot, entry)
        return False
    rmap_counts.folio_remove_rmap_pmd(folio, vma)
    swap.folio_put(m, folio)
    m.sched.point("unmap.page_unmapped")
    return True


def change_huge_pmd(
    vma: VmAreaStruct, pmd: PageTable, slot: int, addr: int, newprot: int, cp_flags: int
) -> bool:
    """mprotect: give the entry the permission bits ``newprot`` (MM_CP_*). False: it is no huge page any more.

    One that is exclusively ours may become writable at once. The caller flushes.
    """
    entry = pmd_trans_huge_lock(pmd, slot)
    if not entry:
        return False
    m = vma.vm_mm.machine
    entry = mprotect.change_uffd_wp(entry & ~PROT_BITS | newprot, cp_flags)
    if cp_flags & mprotect.MM_CP_TRY_CHANGE_WRITABLE and entry & (USER | SPECIAL) == USER:
        exclusive = m.phys.frames[entry >> PFN_SHIFT].anon_exclusive & 1
        if exclusive and not userfaultfd_k.userfaultfd_pte_wp(vma, entry):
            entry |= RW
    pmd.set(slot, entry)
    m.sched.point("mprotect.pmd_changed")
    pmd.ptl.unlock()
    return True


def move_huge_pmd(
    vma: VmAreaStruct,
    old_addr: int,
    new_addr: int,
    old_table: PageTable,
    old_slot: int,
    new_table: PageTable,
    new_slot: int,
) -> bool:
    """mremap: move a huge page by its entry. False when the destination is in use, or it is no huge page any more."""
    there = new_table.entries.get(new_slot, 0)
    if there:
        if not isinstance(there, PageTable):
            raise KernelBug("move-onto-huge-page", f"a huge page is mapped at {new_addr:#x} already", vma)
        return False
    entry = pmd_trans_huge_lock(old_table, old_slot)
    if not entry:
        return False
    m = vma.vm_mm.machine
    if new_table is not old_table:
        new_table.ptl.lock()
    old_table.set(old_slot, 0)
    m.sched.point("mremap.pmd_cleared")
    if userfaultfd_k.vma_has_uffd_without_event_remap(vma):
        entry &= ~UFFD_WP
    new_table.set(new_slot, entry)
    m.flush_tlb_range(vma.vm_mm, old_addr, old_addr + m.geometry.pmd_size)
    if new_table is not old_table:
        new_table.ptl.unlock()
    old_table.ptl.unlock()
    return True


def copy_huge_pmd(
    dst_vma: VmAreaStruct, src_vma: VmAreaStruct, dst_pmd: PageTable, src_pmd: PageTable, slot: int, addr: int
) -> int:
    """fork: share a huge page. -ENOMEM; -EAGAIN: it was split, as it may be pinned; copy its PTEs.

    A file's is left to the child's faults.
    """
    m = src_vma.vm_mm.machine
    if dst_vma.vm_ops is not None:
        return 0
    if m.should_fail("pte_alloc"):
        return -ENOMEM
    dst_pmd.ptl.lock()
    src_pmd.ptl.lock()
    entry = src_pmd.entries.get(slot, 0)
    if isinstance(entry, PageTable) or not entry & PRESENT:
        src_pmd.ptl.unlock()
        dst_pmd.ptl.unlock()
        return -EAGAIN
    if not entry & SPECIAL:
        folio = m.phys.frames[entry >> PFN_SHIFT]
        swap.folio_get(folio)
        if rmap_counts.folio_try_dup_anon_rmap_pmd(folio, dst_vma, src_vma):
            swap.folio_put(m, folio)
            src_pmd.ptl.unlock()
            dst_pmd.ptl.unlock()
            split_huge_pmd(src_vma, src_pmd, slot, addr)
            return -EAGAIN
    m.sched.point("fork.pmd_shared")
    entry &= ~RW
    src_pmd.set(slot, entry)
    m.sched.point("fork.pmd_write_protected")
    if not userfaultfd_k.userfaultfd_wp(dst_vma):
        entry &= ~UFFD_WP
    dst_pmd.set(slot, entry & ~ACCESSED)
    m.sched.point("fork.pmd_copied")
    src_pmd.ptl.unlock()
    dst_pmd.ptl.unlock()
    return 0


# ---- splitting the PMD


def split_huge_pmd_locked(vma: VmAreaStruct, pmd: PageTable, slot: int, addr: int, *, freeze: bool) -> None:
    """Replace the entry of a huge page by a table of PTEs that map its pages; the folio stays large.

    That of a file's page is just cleared. ``freeze``: by migration entries, unless the folio may be pinned. The lock of
    ``pmd`` is held.
    """
    entry = pmd.entries.get(slot, 0)
    if not entry or isinstance(entry, PageTable):
        return
    mm = vma.vm_mm
    m = mm.machine
    g = m.geometry
    haddr = addr & g.pmd_mask
    if haddr < vma.vm_start or haddr + g.pmd_size > vma.vm_end:
        raise KernelBug("huge-page-outside-vma", f"the huge page at {haddr:#x} is not inside {vma}", vma)
    if vma.vm_ops is not None:
        unmap_file_pmd_locked(vma, pmd, slot, haddr)
        return
    if entry & SPECIAL:
        huge_memory_zero.split_huge_zero_page_pmd(vma, pmd, slot, haddr)
        return
    # not present and flushed before small entries appear: no TLB may hold both
    pmd.set(slot, entry & ~PRESENT | INVALID)
    m.flush_tlb_range(mm, haddr, haddr + g.pmd_size)
    m.sched.point("thp.pmd_invalidated")
    folio = m.phys.frames[entry >> PFN_SHIFT]
    nr = folio.nr_pages
    if entry & DIRTY:
        folio.dirty = True
    exclusive = bool(folio.anon_exclusive & 1)
    if freeze and exclusive and rmap_counts.folio_try_share_anon_rmap_pmd(folio):
        freeze = False
    table = pgtable_generic.new_table(mm, LEVEL_PTE)
    if freeze:
        kind = rmap_unmap.migration_kind(bool(entry & RW), exclusive)
        kept = entry & (SOFT_DIRTY | UFFD_WP)
        for i in range(nr):
            table.set(i, mk_softleaf(kind, folio.pfn + i, kept))
        rmap_counts.folio_remove_rmap_pmd(folio, vma)
        swap.folio_put(m, folio)
    else:
        swap.folio_ref_add(folio, nr - 1)
        check = m.profile.split_checks_rmap
        rmap_counts.folio_add_anon_rmap_ptes(folio, 0, nr, vma, haddr, exclusive, check=check)
        pte = entry & ~PSE
        for i in range(nr):
            table.set(i, pte + (i << PFN_SHIFT))
        rmap_counts.folio_remove_rmap_pmd(folio, vma)
    pmd.set(slot, table)
    m.sched.point("thp.pmd_split")


def unmap_file_pmd_locked(vma: VmAreaStruct, pmd: PageTable, slot: int, haddr: int) -> None:
    """__split_huge_pmd_locked, of a file's huge page: clear the entry, and let go of the page."""
    m = vma.vm_mm.machine
    entry: int = pmd.entries[slot]  # type: ignore[assignment]
    pmd.set(slot, 0)
    m.flush_tlb_range(vma.vm_mm, haddr, haddr + m.geometry.pmd_size)
    m.sched.point("thp.pmd_cleared")
    folio = m.phys.frames[entry >> PFN_SHIFT]
    if entry & DIRTY:
        folio.dirty = True
    rmap_counts.folio_remove_rmap_pmd(folio, vma)
    swap.folio_put(m, folio)


def split_huge_pmd(vma: VmAreaStruct, table: PageTable, slot: int, addr: int) -> None:
    """As ``split_huge_pmd_locked`` without freezing; takes the lock."""
    table.ptl.lock()
    split_huge_pmd_locked(vma, table, slot, addr, freeze=False)
    table.ptl.unlock()


def split_huge_pmd_address(vma: VmAreaStruct, addr: int) -> None:
    """Split the huge page that is mapped by a PMD at ``addr``, if there is one."""
    pmd = pgtable_generic.find_table(vma.vm_mm, addr, LEVEL_PMD)
    if pmd is not None:
        split_huge_pmd(vma, pmd, pgtable_generic.slot_of(vma.vm_mm, addr, LEVEL_PMD), addr)


def split_huge_pmd_if_needed(vma: VmAreaStruct, addr: int) -> None:
    """A VMA boundary is to come to ``addr``: split the huge page that it would cut."""
    mm = vma.vm_mm
    g = mm.machine.geometry
    haddr = addr & g.pmd_mask
    if haddr != addr:
        # the boundary may lie in a neighbour that gives or takes memory
        inside = vma if vma.vm_start <= addr < vma.vm_end else mm.mm_mt.lookup(addr)
        if inside is not None and inside.vm_start <= haddr and haddr + g.pmd_size <= inside.vm_end:
            split_huge_pmd_address(inside, addr)


def vma_adjust_trans_huge(vma: VmAreaStruct, start: int, end: int, next_start: int | None) -> None:
    """The VMA is to become [start, end), and a neighbour to begin at ``next_start``: no huge page may be cut."""
    split_huge_pmd_if_needed(vma, start)
    split_huge_pmd_if_needed(vma, end)
    if next_start is not None:
        split_huge_pmd_if_needed(vma, next_start)
