"""Changing permissions (mm/mprotect.c), of userfaultfd's write protection too."""

from __future__ import annotations

from typing import Final

from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, page_align
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import (
    DIRTY,
    FLAGS_MASK,
    MARKER_UFFD_WP,
    PRESENT,
    PROT_BITS,
    RW,
    SOFTLEAF_MARKER,
    SOFTLEAF_MIGRATION_READ,
    SOFTLEAF_MIGRATION_READ_EXCLUSIVE,
    SOFTLEAF_MIGRATION_WRITE,
    UFFD_WP,
    USER,
    is_uffd_wp_marker,
    mk_softleaf,
    softleaf_type,
    softleaf_value,
)
from emulator.mm import (
    gup_populate,
    huge_memory,
    memory,
    mmap,
    pgtable_generic,
    userfaultfd_k,
    vma,
    vma_modify,
)
from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_NORESERVE,
    VM_SEALED,
    VM_SHARED,
    VM_WRITE,
    MmStruct,
    VmAreaStruct,
)
from emulator.uapi import (
    EACCES,
    EINVAL,
    ENOMEM,
    EPERM,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_READ,
    PROT_SEM,
    PROT_WRITE,
)

# Why entries change, and what they may become (include/linux/mm.h)
MM_CP_TRY_CHANGE_WRITABLE: Final = 1  # what is exclusively ours may become writable at once
MM_CP_UFFD_WP: Final = 4
MM_CP_UFFD_WP_RESOLVE: Final = 8


def vma_wants_manual_pte_write_upgrade(area: VmAreaStruct) -> bool:
    """May entries be writable that a new permission does not make so by itself? (include/linux/mm.h)"""
    if area.vm_flags & VM_SHARED:
        return bool(area.vm_flags & VM_WRITE) and userfaultfd_k.userfaultfd_wp(area)
    return bool(area.vm_flags & VM_WRITE)


def can_change_pte_writable(area: VmAreaStruct, addr: int, pte: int) -> bool:
    """May a page be written without a fault: ours alone, or shared and dirty, and nobody wants to know?"""
    if not pte & USER or userfaultfd_k.userfaultfd_pte_wp(area, pte):
        return False
    if area.vm_flags & VM_SHARED:
        return bool(pte & DIRTY)
    folio = memory.vm_normal_folio(area, addr, pte)
    return folio is not None and folio.anon and bool(folio.anon_exclusive >> memory.page_of(folio, pte) & 1)


def change_uffd_wp(pte: int, cp_flags: int) -> int:
    """An entry that is not empty, protected or not as ``cp_flags`` say."""
    if cp_flags & MM_CP_UFFD_WP:
        return pte & ~RW | UFFD_WP if pte & PRESENT else pte | UFFD_WP
    return pte & ~UFFD_WP if cp_flags & MM_CP_UFFD_WP_RESOLVE else pte


def change_pte(area: VmAreaStruct, addr: int, pte: int, prot: int, cp_flags: int) -> int:
    """A present entry, or a swap or migration entry, with the VMA's permissions and other protection."""
    if pte & PRESENT:
        pte = change_uffd_wp(pte & ~PROT_BITS | prot, cp_flags)
        if cp_flags & MM_CP_TRY_CHANGE_WRITABLE and can_change_pte_writable(area, addr, pte):
            pte |= RW
        return pte
    if softleaf_type(pte) == SOFTLEAF_MIGRATION_WRITE:
        # write faults must come back: a page that was writable is exclusive if it is anonymous
        folio = area.vm_mm.machine.phys.frames[softleaf_value(pte)]
        kind = SOFTLEAF_MIGRATION_READ_EXCLUSIVE if folio.anon else SOFTLEAF_MIGRATION_READ
        flags = pte & FLAGS_MASK & ~(7 << 3)
        pte = mk_softleaf(kind, softleaf_value(pte), flags)
    return change_uffd_wp(pte, cp_flags)


def change_entry(area: VmAreaStruct, addr: int, pte: int, prot: int, cp_flags: int) -> int:
    """What becomes of any entry: empty ones and markers matter to userfaultfd only."""
    if not pte:
        if cp_flags & MM_CP_UFFD_WP and userfaultfd_k.userfaultfd_wp_use_markers(area):
            return mk_softleaf(SOFTLEAF_MARKER, MARKER_UFFD_WP)
        return 0
    if softleaf_type(pte) == SOFTLEAF_MARKER:
        return 0 if cp_flags & MM_CP_UFFD_WP_RESOLVE and is_uffd_wp_marker(pte) else pte
    return change_pte(area, addr, pte, prot, cp_flags)


def change_pte_range(
    area: VmAreaStruct, table: PageTable, start: int, end: int, prot: int, cp_flags: int
) -> None:
    """The entries of one PTE table."""
    mm = area.vm_mm
    table.ptl.lock()
    slot = pgtable_generic.slot_of(mm, start, LEVEL_PTE)
    for addr in range(start, end, PAGE_SIZE):
        pte: int = table.entries.get(slot, 0)  # type: ignore[assignment]
        new = change_entry(area, addr, pte, prot, cp_flags)
        if new != pte:
            table.set(slot, new)
            mm.machine.sched.point("mprotect.pte_changed")
        slot += 1
    table.ptl.unlock()


def pgtable_split_needed(area: VmAreaStruct, cp_flags: int) -> bool:
    """Must huge pages be cut whatever the range is? Protection of a file's pages needs entries for markers."""
    return bool(cp_flags & MM_CP_UFFD_WP) and not vma.vma_is_anonymous(area)


def change_pmd(area: VmAreaStruct, addr: int, end: int, prot: int, cp_flags: int) -> int:
    """What one PMD entry maps of [addr, end). 0 or -ENOMEM: there is no table for markers.

    Of a file's huge page the entry is just cleared: its table comes when it is looked at again.
    """
    mm = area.vm_mm
    slot = pgtable_generic.slot_of(mm, addr, LEVEL_PMD)
    populate = cp_flags & MM_CP_UFFD_WP and userfaultfd_k.userfaultfd_wp_use_markers(area)
    whole = end - addr == mm.machine.geometry.pmd_size and not pgtable_split_needed(area, cp_flags)
    while True:
        none = populate and pgtable_generic.alloc_table(mm, addr, LEVEL_PTE) is None
        pmd = pgtable_generic.find_table(mm, addr, LEVEL_PMD)
        entry = pmd.get(slot) if pmd is not None else 0
        if isinstance(entry, PageTable):
            change_pte_range(area, entry, addr, end, prot, cp_flags)
            return 0
        if pmd is None or not entry:
            return -ENOMEM if none else 0
        if not whole:
            huge_memory.split_huge_pmd(area, pmd, slot, addr)
            continue
        huge_memory.change_huge_pmd(area, pmd, slot, addr, prot, cp_flags)
        if not isinstance(pmd.get(slot), PageTable):
            return 0  # else it was split, perhaps by somebody else


def change_protection(area: VmAreaStruct, start: int, end: int, cp_flags: int) -> int:
    """Give the entries of [start, end) the permissions that the VMA has now, and flush. MM_CP_*.

    Marking empty entries as protected needs page tables: 0 or -ENOMEM, which leaves the rest as it was.
    """
    mm = area.vm_mm
    g = mm.machine.geometry
    prot = vma.vm_page_prot(area.vm_flags)
    mm.tlb_flush_pending += 1
    error = 0
    addr = start
    while addr < end and not error:
        stop = min(end, (addr & g.pmd_mask) + g.pmd_size)
        error = change_pmd(area, addr, stop, prot, cp_flags)
        addr = stop
    mm.machine.sched.point("mprotect.before_flush")
    mm.machine.flush_tlb_range(mm, start, end)
    mm.tlb_flush_pending -= 1
    return error


def mprotect_fixup(
    prev: VmAreaStruct | None, area: VmAreaStruct, start: int, end: int, newflags: int
) -> VmAreaStruct | int:
    """[start, end) of one VMA gets ``newflags``. The VMA that holds it afterwards, or -errno."""
    mm = area.vm_mm
    m = mm.machine
    oldflags = area.vm_flags
    pages = (end - start) >> PAGE_SHIFT
    if oldflags & VM_SEALED:
        return -EPERM
    if newflags == oldflags:
        return area  # not even a try to merge
    charged = 0
    if newflags & VM_WRITE:
        if not mmap.may_expand_vm(mm, newflags, pages) and mmap.may_expand_vm(mm, oldflags, pages):
            return -ENOMEM
        if not oldflags & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE):
            if mmap.security_vm_enough_memory(mm, pages):
                return -ENOMEM
            charged = pages
            newflags |= VM_ACCOUNT
    elif m.profile.mprotect_uncharges and oldflags & VM_ACCOUNT:
        if vma.vma_is_anonymous(area) and area.anon_vma is None:
            newflags &= ~VM_ACCOUNT  # never written: its charge can be given back
    changed = vma_modify.vma_modify_flags(prev, area, start, end, newflags)
    if isinstance(changed, int):
        m.committed -= charged
        return changed
    changed.vm_flags = newflags | changed.vm_flags & m.profile.vm_ignore_merge
    upgrade = vma_wants_manual_pte_write_upgrade(changed)
    change_protection(changed, start, end, MM_CP_TRY_CHANGE_WRITABLE if upgrade else 0)
    if oldflags & VM_ACCOUNT and not newflags & VM_ACCOUNT:
        m.committed -= pages
    if oldflags & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and newflags & VM_WRITE:
        gup_populate.populate_vma_page_range(changed, start, end)
    mmap.vm_stat_account(mm, oldflags, -pages)
    mmap.vm_stat_account(mm, newflags, pages)
    return changed


def do_mprotect(mm: MmStruct, start: int, end: int, prot: int) -> int:
    """Every VMA in [start, end); at a hole or an error the VMAs before it stay changed."""
    area = mm.mm_mt.find(start)
    if area is None:
        return -ENOMEM
    if prot & PROT_GROWSDOWN:
        if area.vm_start >= end:
            return -ENOMEM
        start = area.vm_start
        if not area.vm_flags & VM_GROWSDOWN:
            return -EINVAL
    elif area.vm_start > start:
        return -ENOMEM
    elif prot & PROT_GROWSUP:
        return -EINVAL  # no VMA grows up on x86-64
    prev = area if start > area.vm_start else vma.vma_prev(area)
    position = start
    while position < end:
        following = mm.mm_mt.lookup(position)
        if following is None:
            return -ENOMEM
        newflags = following.vm_flags & ~VM_ACCESS_FLAGS | mmap.calc_vm_prot_bits(prot)
        if newflags & ~(newflags >> 4) & VM_ACCESS_FLAGS:
            return -EACCES
        stop = min(following.vm_end, end)
        changed = mprotect_fixup(prev, following, position, stop, newflags)
        if isinstance(changed, int):
            return changed
        prev = changed
        position = stop
    return 0


def sys_mprotect(mm: MmStruct, start: int, length: int, prot: int) -> int:
    """mprotect(2). Bytes. 0, -EINVAL, -ENOMEM (hole), -EACCES, -EPERM."""
    return sys_pkey_mprotect(mm, start, length, prot, -1)


def sys_pkey_mprotect(mm: MmStruct, start: int, length: int, prot: int, pkey: int) -> int:
    """pkey_mprotect(2): mprotect with a protection key, -1 for none. -EINVAL where the CPU has no keys."""
    growth = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
    if growth == PROT_GROWSDOWN | PROT_GROWSUP or start & ~PAGE_MASK:
        return -EINVAL
    if not length:
        return 0
    end = start + page_align(length)
    if end <= start:
        return -ENOMEM
    if prot & ~(growth | PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM):
        return -EINVAL
    mm.mmap_lock.down_write()
    mm.machine.sched.point("mprotect.locked")
    result = -EINVAL if pkey != -1 else do_mprotect(mm, start, end, prot)
    mm.mmap_lock.up_write()
    return result
