"""Moving page tables for mremap: the page-table half of mm/mremap.c.

Data, exclusive bits, swap entries, mapcounts and folio index never change in a move; the rmap stays right because
the destination VMA keeps the page offset. Write protection by userfaultfd does not move along, but with EVENT_REMAP.
"""

from __future__ import annotations

from emulator.geometry import LEVEL_PMD, LEVEL_PTE, LEVEL_PUD, PAGE_SHIFT
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PRESENT, UFFD_WP, is_uffd_wp_marker
from emulator.mm import huge_memory, pgtable_generic, rmap, userfaultfd_k
from emulator.mm_types import MmStruct, VmAreaStruct


class PagetableMoveControl:
    """struct pagetable_move_control (pmc): where a move of page tables stands. Bytes."""

    __slots__ = (
        "for_stack",
        "len_in",
        "need_rmap_locks",
        "new",
        "new_addr",
        "old",
        "old_addr",
        "old_end",
        "relocate_locked",
    )

    def __init__(
        self, old: VmAreaStruct, new: VmAreaStruct, old_addr: int, new_addr: int, length: int
    ) -> None:
        self.old = old
        self.new = new
        self.old_addr = old_addr
        self.old_end = old_addr + length
        self.new_addr = new_addr
        self.len_in = length
        self.need_rmap_locks = False
        self.for_stack = False
        self.relocate_locked: VmAreaStruct | None = None  # for designs: whose anon_vma root is locked already


def take_rmap_locks(pmc: PagetableMoveControl) -> None:
    """So that a walker of the rmap sees the entries in the old or in the new place."""
    vma = pmc.old
    if vma.vm_file is not None:
        vma.vm_file.f_mapping.i_mmap_rwsem.down_write()
    if vma.anon_vma is not None:
        rmap.anon_vma_lock_write(vma.anon_vma)


def drop_rmap_locks(pmc: PagetableMoveControl) -> None:
    vma = pmc.old
    if vma.anon_vma is not None:
        rmap.anon_vma_unlock_write(vma.anon_vma)
    if vma.vm_file is not None:
        vma.vm_file.f_mapping.i_mmap_rwsem.up_write()


def get_extent(level: int, pmc: PagetableMoveControl) -> int:
    """Bytes to the next boundary of an entry of ``level``, in source and destination, or to the end."""
    size = 1 << pmc.old.vm_mm.machine.geometry.shifts[level]
    mask = ~(size - 1)
    extent = ((pmc.old_addr + size) & mask) - pmc.old_addr
    extent = min(extent, pmc.old_end - pmc.old_addr)
    return min(extent, ((pmc.new_addr + size) & mask) - pmc.new_addr)


def can_align_down(pmc: PagetableMoveControl, vma: VmAreaStruct, address: int, mask: int) -> bool:
    """May the move begin at the table boundary below ``address``: is nothing mapped in between?"""
    masked = address & mask
    if not pmc.for_stack and vma.vm_start != address:
        return False
    if pmc.for_stack and masked >= vma.vm_start:
        return True
    return not vma.vm_mm.mm_mt.overlapping(masked, vma.vm_start)


def try_realign_addr(pmc: PagetableMoveControl, mask: int) -> None:
    """Begin at the table boundary below where that lets whole tables move. Never changes where it ends."""
    old_align = pmc.old_addr & ~mask
    if old_align == 0 or old_align != pmc.new_addr & ~mask:
        return
    if pmc.len_in < (~mask + 1) - old_align:
        return  # does not reach the next boundary: no table would move whole
    if can_align_down(pmc, pmc.old, pmc.old_addr, mask) and can_align_down(pmc, pmc.new, pmc.new_addr, mask):
        pmc.old_addr &= mask
        pmc.new_addr &= mask


def move_ptes(pmc: PagetableMoveControl, extent: int, old_table: PageTable, new_table: PageTable) -> None:
    """Move the entries of ``extent`` bytes; none, present, swap, migration and marker entries alike."""
    vma = pmc.old
    mm = vma.vm_mm
    m = mm.machine
    locks = pmc.need_rmap_locks
    if locks:
        take_rmap_locks(pmc)
    m.sched.point("mremap.before_ptes")
    old_table.ptl.lock()
    if new_table is not old_table:
        new_table.ptl.lock()
    old_slot = pgtable_generic.slot_of(mm, pmc.old_addr, LEVEL_PTE)
    new_slot = pgtable_generic.slot_of(mm, pmc.new_addr, LEVEL_PTE)
    need_clear_uffd_wp = userfaultfd_k.vma_has_uffd_without_event_remap(vma)
    flush = False
    for i in range(extent >> PAGE_SHIFT):
        pte = old_table.entries.get(old_slot + i, 0)
        if not pte:
            continue
        assert isinstance(pte, int)
        if pte & PRESENT:
            flush = True
        old_table.set(old_slot + i, 0)
        m.sched.point("mremap.pte_cleared")
        if need_clear_uffd_wp:
            pte = 0 if is_uffd_wp_marker(pte) else pte & ~UFFD_WP
        new_table.set(new_slot + i, pte)
        m.sched.point("mremap.pte_moved")
    if flush:
        m.flush_tlb_range(mm, pmc.old_addr, pmc.old_addr + extent)
    if new_table is not old_table:
        new_table.ptl.unlock()
    old_table.ptl.unlock()
    if locks:
        drop_rmap_locks(pmc)
    m.sched.point("mremap.after_ptes")


def uffd_supports_page_table_move(pmc: PagetableMoveControl) -> bool:
    """May whole tables move? Not where every entry has to be looked at, nor on the way back of such a move."""
    return not (
        userfaultfd_k.vma_has_uffd_without_event_remap(pmc.old)
        or userfaultfd_k.vma_has_uffd_without_event_remap(pmc.new)
    )


def move_normal_table(
    pmc: PagetableMoveControl, level: int, old_table: PageTable, new_table: PageTable
) -> bool:
    """Move one whole lower table (move_normal_pmd, move_normal_pud); no when the destination is in use."""
    mm = pmc.old.vm_mm
    m = mm.machine
    if not uffd_supports_page_table_move(pmc):
        return False
    old_slot = pgtable_generic.slot_of(mm, pmc.old_addr, level)
    new_slot = pgtable_generic.slot_of(mm, pmc.new_addr, level)
    if new_table.get(new_slot) != 0:
        return False
    old_table.ptl.lock()
    if new_table is not old_table:
        new_table.ptl.lock()
    entry = old_table.get(old_slot)
    old_table.set(old_slot, 0)
    new_table.set(new_slot, entry)
    m.flush_tlb_range(mm, pmc.old_addr, pmc.old_addr + (1 << m.geometry.shifts[level]))
    if new_table is not old_table:
        new_table.ptl.unlock()
    old_table.ptl.unlock()
    return True


def move_pgt_entry(
    pmc: PagetableMoveControl, normal: bool, level: int, old_table: PageTable, new_table: PageTable
) -> bool:
    """Move one upper entry: a ``normal`` one with its table, or a huge page that a PMD maps.

    Normal ones always under the rmap locks: the lock of a table that moves keeps no walker out.
    """
    mm = pmc.old.vm_mm
    locks = normal or pmc.need_rmap_locks
    if locks:
        take_rmap_locks(pmc)
    mm.machine.sched.point("mremap.before_table")
    moved = move_entry(pmc, normal, level, old_table, new_table)
    if locks:
        drop_rmap_locks(pmc)
    mm.machine.sched.point("mremap.after_table")
    return moved


def move_entry(
    pmc: PagetableMoveControl, normal: bool, level: int, old_table: PageTable, new_table: PageTable
) -> bool:
    """The move itself, under whatever locks."""
    if normal:
        return move_normal_table(pmc, level, old_table, new_table)
    mm = pmc.old.vm_mm
    old_slot = pgtable_generic.slot_of(mm, pmc.old_addr, level)
    new_slot = pgtable_generic.slot_of(mm, pmc.new_addr, level)
    return huge_memory.move_huge_pmd(
        pmc.old, pmc.old_addr, pmc.new_addr, old_table, old_slot, new_table, new_slot
    )


def move_pud(pmc: PagetableMoveControl, mm: MmStruct) -> int | None:
    """The PUD-level part of a round: bytes done, 0 to go on at the PMD level, None when out of memory."""
    extent = get_extent(LEVEL_PUD, pmc)
    old_pud = pgtable_generic.find_table(mm, pmc.old_addr, LEVEL_PUD)
    if old_pud is None:
        return extent
    slot = pgtable_generic.slot_of(mm, pmc.old_addr, LEVEL_PUD)
    if old_pud.get(slot) == 0:
        return extent
    new_pud = pgtable_generic.alloc_table(mm, pmc.new_addr, LEVEL_PUD)
    if new_pud is None:
        return None
    whole = extent == mm.machine.geometry.pud_size
    if whole and move_pgt_entry(pmc, True, LEVEL_PUD, old_pud, new_pud):
        return extent
    return 0


def move_pmd(pmc: PagetableMoveControl, mm: MmStruct) -> int | None:
    """The PMD- and PTE-level part of a round: bytes done, None when out of memory."""
    extent = get_extent(LEVEL_PMD, pmc)
    old_pmd = pgtable_generic.find_table(mm, pmc.old_addr, LEVEL_PMD)
    slot = pgtable_generic.slot_of(mm, pmc.old_addr, LEVEL_PMD)
    if old_pmd is None or old_pmd.get(slot) == 0:
        return extent
    new_pmd = pgtable_generic.alloc_table(mm, pmc.new_addr, LEVEL_PMD)
    if new_pmd is None:
        return None
    whole = extent == mm.machine.geometry.pmd_size
    if isinstance(old_pmd.get(slot), int):
        if whole and move_pgt_entry(pmc, False, LEVEL_PMD, old_pmd, new_pmd):
            return extent
        huge_memory.split_huge_pmd(pmc.old, old_pmd, slot, pmc.old_addr)
    elif whole and move_pgt_entry(pmc, True, LEVEL_PMD, old_pmd, new_pmd):
        return extent
    old_table = old_pmd.get(slot)
    if old_table == 0:
        return extent
    new_table = pgtable_generic.alloc_table(mm, pmc.new_addr, LEVEL_PTE)
    if new_table is None:
        return None
    assert isinstance(old_table, PageTable)
    move_ptes(pmc, extent, old_table, new_table)
    return extent


def move_page_tables(pmc: PagetableMoveControl) -> int:
    """Move everything that ``pmc`` says. Returns the bytes moved: fewer than asked when out of memory."""
    if not pmc.len_in:
        return 0
    mm = pmc.old.vm_mm
    start = pmc.old_addr
    if mm.machine.profile.mremap_realigns:
        try_realign_addr(pmc, mm.machine.geometry.pmd_mask)
    while pmc.old_addr < pmc.old_end:
        extent = move_pud(pmc, mm)
        if extent == 0:
            extent = move_pmd(pmc, mm)
        if extent is None:
            break
        pmc.old_addr += extent
        pmc.new_addr += extent
    return max(0, pmc.old_addr - start)
