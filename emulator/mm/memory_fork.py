"""Copying page tables at fork: copy_page_range of mm/memory.c. Both mmap_locks are held for writing.

The caller flushes the parent's TLBs when all of its VMAs are copied.
"""

from __future__ import annotations

from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_SHIFT
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import (
    ACCESSED,
    DIRTY,
    FLAGS_MASK,
    MARKER_GUARD,
    MARKER_POISON,
    MARKER_UFFD_WP,
    PRESENT,
    RW,
    SOFTLEAF_MARKER,
    SOFTLEAF_MIGRATION_READ,
    SOFTLEAF_SWAP,
    SWP_EXCLUSIVE,
    UFFD_WP,
    is_migration,
    mk_pte,
    mk_softleaf,
    softleaf_type,
    softleaf_value,
)
from emulator.mm import huge_memory, memory, pagewalk, pgtable_generic, rmap_counts, swap, userfaultfd_k
from emulator.mm import vma as vma_ops
from emulator.mm_types import (
    VM_MAYBE_GUARD,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_SHARED,
    VM_UFFD_WP,
    VM_WRITE,
    Folio,
    VmAreaStruct,
)
from emulator.uapi import EAGAIN, ENOMEM

VM_COPY_ON_FORK = VM_PFNMAP | VM_MIXEDMAP | VM_UFFD_WP | VM_MAYBE_GUARD

_KIND_BITS = 7 << 3  # of a softleaf


class PteCopy:
    """A copy of entries of one table to another under way; both tables are locked."""

    __slots__ = ("cow", "dropped", "dst", "dst_vma", "prealloc", "src", "src_vma")

    def __init__(self, dst_vma: VmAreaStruct, src_vma: VmAreaStruct, dst: PageTable, src: PageTable) -> None:
        self.dst_vma = dst_vma
        self.src_vma = src_vma
        self.dst = dst
        self.src = src
        self.cow = memory.is_cow_mapping(src_vma.vm_flags)
        self.dropped = 0 if userfaultfd_k.userfaultfd_wp(dst_vma) else UFFD_WP  # what the child does not get
        self.prealloc: Folio | None = None  # for a page that has to be copied at once


def copy_nonpresent_pte(copy: PteCopy, slot: int, pte: int) -> None:
    """Swap: one more user of the slot. Migration: both read-only. Neither is exclusive from now on."""
    kind = softleaf_type(pte)
    if kind == SOFTLEAF_MARKER:
        kept = MARKER_GUARD | MARKER_POISON | (0 if copy.dropped else MARKER_UFFD_WP)
        marker = softleaf_value(pte) & kept
        if marker:
            copy.dst.set(slot, mk_softleaf(SOFTLEAF_MARKER, marker))
        return
    if kind == SOFTLEAF_SWAP:
        copy.src_vma.vm_mm.machine.swap.get(softleaf_value(pte))
        if pte & SWP_EXCLUSIVE:
            pte &= ~SWP_EXCLUSIVE
            copy.src.set(slot, pte)
    elif is_migration(pte) and kind != SOFTLEAF_MIGRATION_READ and copy.cow:
        pte = mk_softleaf(SOFTLEAF_MIGRATION_READ, softleaf_value(pte), pte & FLAGS_MASK & ~_KIND_BITS)
        copy.src.set(slot, pte)
    copy.dst.set(slot, pte & ~copy.dropped)


def copy_present_page(copy: PteCopy, slot: int, addr: int, pte: int, folio: Folio, page: int) -> int:
    """The child gets its own copy of a page that may be pinned. -EAGAIN: a folio must be allocated first."""
    new = copy.prealloc
    if new is None:
        return -EAGAIN
    copy.prealloc = None
    vma = copy.dst_vma
    new.content[0] = dict(folio.content[page])
    rmap_counts.folio_add_new_anon_rmap(new, vma, addr, True)
    flags = vma_ops.vm_page_prot(vma.vm_flags) | ACCESSED | DIRTY
    if userfaultfd_k.userfaultfd_pte_wp(vma, pte):
        flags |= UFFD_WP
    elif vma.vm_flags & VM_WRITE:
        flags |= RW
    copy.dst.set(slot, mk_pte(new.pfn, flags))
    vma.vm_mm.machine.sched.point("fork.page_copied")
    return 0


def copy_present_pte(copy: PteCopy, slot: int, addr: int, pte: int) -> int:
    """Share the page, write-protected on both sides. -EAGAIN: it has to be copied, and nothing is allocated for it."""
    m = copy.src_vma.vm_mm.machine
    folio = memory.vm_normal_folio(copy.src_vma, addr, pte)
    if folio is not None:
        page = memory.page_of(folio, pte)
        swap.folio_get(folio)
        if not folio.anon:
            rmap_counts.folio_dup_file_rmap_pte(folio, page, copy.dst_vma)
        elif rmap_counts.folio_try_dup_anon_rmap_pte(folio, page, copy.dst_vma, copy.src_vma):
            swap.folio_put(m, folio)
            return copy_present_page(copy, slot, addr, pte, folio, page)
        m.sched.point("fork.pte_shared")
    if copy.cow and pte & RW:
        pte &= ~RW
        copy.src.set(slot, pte)
        m.sched.point("fork.pte_write_protected")
    if copy.src_vma.vm_flags & VM_SHARED:
        pte &= ~DIRTY
    copy.dst.set(slot, pte & ~(ACCESSED | copy.dropped))
    return 0


def copy_ptes(copy: PteCopy, addr: int, end: int) -> int:
    """Copy the entries of [addr, end) under both locks. Returns where it stopped: ``end``, or a page to copy."""
    m = copy.src_vma.vm_mm.machine
    copy.dst.ptl.lock()
    copy.src.ptl.lock()
    m.sched.point("fork.ptes_locked")
    first = pgtable_generic.slot_of(copy.src_vma.vm_mm, addr, LEVEL_PTE)
    entries = copy.src.entries
    for slot in range(first, first + ((end - addr) >> PAGE_SHIFT)):
        pte: int = entries.get(slot, 0)  # type: ignore[assignment]
        if pte & PRESENT:
            if copy_present_pte(copy, slot, addr, pte):
                break
            if copy.prealloc is not None:  # not pinned any more
                swap.folio_put(m, copy.prealloc)
                copy.prealloc = None
        elif pte:
            copy_nonpresent_pte(copy, slot, pte)
        if pte:
            m.sched.point("fork.pte_copied")
        addr += 1 << PAGE_SHIFT
    copy.src.ptl.unlock()
    copy.dst.ptl.unlock()
    return addr


def copy_pte_range(
    dst_vma: VmAreaStruct, src_vma: VmAreaStruct, src_pmd: PageTable, slot: int, addr: int, end: int
) -> int:
    """[addr, end), which one PTE table of the parent translates. 0 or -ENOMEM."""
    m = src_vma.vm_mm.machine
    dst = pgtable_generic.alloc_table(dst_vma.vm_mm, addr, LEVEL_PTE)
    if dst is None:
        return -ENOMEM
    src = src_pmd.entries.get(slot, 0)
    if not isinstance(src, PageTable):
        return 0
    copy = PteCopy(dst_vma, src_vma, dst, src)
    while True:
        addr = copy_ptes(copy, addr, end)
        if addr == end:
            break
        if m.should_fail("folio_alloc"):
            return -ENOMEM
        copy.prealloc = m.phys.alloc(0)
        m.sched.point("fork.folio_allocated")
    if copy.prealloc is not None:
        swap.folio_put(m, copy.prealloc)
    return 0


def copy_pmd_range(dst_vma: VmAreaStruct, src_vma: VmAreaStruct) -> int:
    """Every PMD entry of the parent's VMA. 0 or -ENOMEM."""
    for src_pmd, slot, addr, stop in pagewalk.pmd_ranges(src_vma.vm_mm, src_vma.vm_start, src_vma.vm_end):
        if not isinstance(src_pmd.entries[slot], PageTable):
            dst_pmd = pgtable_generic.alloc_table(dst_vma.vm_mm, addr, LEVEL_PMD)
            if dst_pmd is None:
                return -ENOMEM
            error = huge_memory.copy_huge_pmd(dst_vma, src_vma, dst_pmd, src_pmd, slot, addr)
            if error != -EAGAIN:
                if error:
                    return error
                continue
        if copy_pte_range(dst_vma, src_vma, src_pmd, slot, addr, stop):
            return -ENOMEM
    return 0


def vma_needs_copy(dst_vma: VmAreaStruct, src_vma: VmAreaStruct) -> bool:
    """Not where faults will find the same pages again."""
    return bool(dst_vma.vm_flags & VM_COPY_ON_FORK) or src_vma.anon_vma is not None


def copy_page_range(dst_vma: VmAreaStruct, src_vma: VmAreaStruct) -> int:
    """fork: give the child's VMA what the parent's maps, shared and write-protected. 0 or -ENOMEM.

    Pages that may be pinned are copied at once. While entries are write-protected, write_protect_seq of the parent
    is odd, so that GUP-fast pins fail.
    """
    if not vma_needs_copy(dst_vma, src_vma):
        return 0
    src_mm = src_vma.vm_mm
    cow = memory.is_cow_mapping(src_vma.vm_flags)
    if cow:
        src_mm.write_protect_seq += 1
        src_mm.machine.sched.point("fork.write_protect_begin")
    error = copy_pmd_range(dst_vma, src_vma)
    if cow:
        src_mm.write_protect_seq += 1
    return error
