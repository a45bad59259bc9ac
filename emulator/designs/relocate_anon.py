"""MREMAP_RELOCATE_ANON, patch 01/11 of 9 June 2025 exactly as posted, its flaws included.

Source: "mm/mremap: introduce more mergeable mremap via MREMAP_RELOCATE_ANON", L. Stoakes, message id
22a80f22ba2082b28ee0b0a925eb3dbb37c2a786.1749473726.git.lorenzo.stoakes@oracle.com; its review in docs/threads.md.

With the flag, mremap gives the destination VMA the page offset of its new place and an anon_vma of its own,
and rewrites ``mapping`` and ``index`` of every folio, so that the VMA can merge with its new neighbours. When a folio
cannot be relocated, everything is undone and the move is done the ordinary way. This patch gives up at
large folios; the rest of the series lifts that.
"""

from __future__ import annotations

from collections.abc import Callable

from emulator.designs.base import Design
from emulator.geometry import LEVEL_PMD, LEVEL_PTE, LEVEL_PUD, PAGE_SHIFT
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PRESENT
from emulator.mm import (
    memory,
    mremap,
    mremap_tables,
    munmap,
    pgtable_generic,
    rmap,
    rmap_counts,
    vma,
    vma_link,
    vma_modify,
)
from emulator.mm_types import VM_HUGETLB, VM_SPECIAL, Folio, VmAreaStruct
from emulator.uapi import EINVAL, ENOMEM, MREMAP_MAYMOVE, MREMAP_RELOCATE_ANON


def vma_maybe_has_shared_anon_folios(area: VmAreaStruct) -> bool:
    """May folios of the VMA be mapped by a parent or child process, now or left from a past fork?"""
    anon_vma = area.anon_vma
    if anon_vma is None:
        return False
    if vma.vma_is_fork_child(area):
        return True
    return anon_vma.num_children > (1 if anon_vma is anon_vma.root else 0)


def can_relocate_anon(old: VmAreaStruct) -> bool:
    """Is the VMA of a kind that can be relocated, and surely not shared with a parent or child?"""
    return (
        not old.vm_flags & (VM_SPECIAL | VM_HUGETLB)
        and vma.vma_is_anonymous(old)
        and not vma_maybe_has_shared_anon_folios(old)
    )


def should_relocate_anon(vrm: mremap.VmaRemapStruct) -> bool:
    """Asked once, before the copy of the VMA."""
    old = vrm.source()
    return bool(vrm.flags & MREMAP_RELOCATE_ANON) and old.anon_vma is not None and can_relocate_anon(old)


def copy_vma(
    source: VmAreaStruct, addr: int, length: int, pgoff: int, relocate: bool
) -> tuple[VmAreaStruct, VmAreaStruct, bool, bool] | None:
    """As mainline's, and with ``relocate`` an unmerged destination gets the page offset of its place.

    It gets an anon_vma of its own too (or shares a neighbour's). The last of the four says whether to relocate:
    not when the move merges as it is.
    """
    mm = source.vm_mm
    if source.anon_vma is None and vma.vma_is_anonymous(source):
        pgoff = addr >> PAGE_SHIFT
    if mm.mm_mt.overlapping(addr, addr + length):
        return None
    vmg = vma.vmg_of_vma(mm.mm_mt.prev_of(addr), source, addr, addr + length)
    vmg.pgoff = pgoff
    vmg.next = mm.mm_mt.find(addr)
    new = vma.vma_merge_copied_range(vmg)
    if new is not None:
        if new.vm_start <= source.vm_start < new.vm_end:
            source = new
        return source, new, new.vm_pgoff <= source.vm_pgoff, False
    if relocate:
        pgoff = addr >> PAGE_SHIFT
    new = vma_modify.vm_area_dup(source)
    if new is None:
        return None
    new.vm_start, new.vm_end, new.vm_pgoff = addr, addr + length, pgoff
    if relocate:
        new.anon_vma = None
    elif rmap.anon_vma_clone(new, source, rmap.VMA_OP_REMAP):
        return None
    if vma_link.vma_link(new):
        rmap.unlink_anon_vmas(new)
        return None
    if relocate and rmap._anon_vma_prepare(new):
        # linked already, so it is unmapped again; what it had never charged is uncharged by that
        munmap.do_munmap(mm, addr, length)
        return None
    return source, new, False, relocate


def relocate_folio(
    pmc: mremap_tables.PagetableMoveControl, folio: Folio, old_addr: int, new_addr: int, undo: bool
) -> None:
    """Give a locked folio the mapping and index of the destination (``undo``: of the source) VMA."""
    area, address = (pmc.old, old_addr) if undo else (pmc.new, new_addr)
    rmap_counts.folio_move_anon_rmap(folio, area)
    folio.index = vma.linear_page_index(area, address)
    point = "relocate.folio_undone" if undo else "relocate.folio_relocated"
    area.vm_mm.machine.sched.point(point)


def relocate_large_folio(
    pmc: mremap_tables.PagetableMoveControl,
    table: PageTable,
    folio: Folio,
    old_addr: int,
    new_addr: int,
    undo: bool,
) -> int:
    """A large folio that PTEs map, locked (it is unlocked here): give up. As ``relocate_anon_pte``."""
    folio.lock.unlock()
    return 0


def relocate_anon_pte(
    pmc: mremap_tables.PagetableMoveControl, table: PageTable, old_addr: int, new_addr: int, undo: bool
) -> int:
    """Relocate the folio that a present entry of ``table``, which is locked, maps at ``old_addr``.

    Returns the pages that are done with; also where the folio is passed over: not anonymous, perhaps shared,
    perhaps pinned. 0: give up.
    """
    old = pmc.old
    m = old.vm_mm.machine
    pte = table.entries[pgtable_generic.slot_of(old.vm_mm, old_addr, LEVEL_PTE)]
    assert isinstance(pte, int)
    folio = memory.vm_normal_folio(old, old_addr, pte)
    if folio is None:
        return 1
    folio.lock.lock()
    m.sched.point("relocate.folio_locked")
    if not folio.anon or folio.ksm:
        pass
    elif rmap_counts.folio_maybe_mapped_shared(folio):
        m.warn("relocate-shared-folio", "a folio that is mapped twice was to be relocated", folio)
    else:
        if not folio.anon_exclusive & 1:
            m.warn("relocate-not-exclusive", "a folio that is not exclusive was to be relocated", folio)
        if folio.maybe_dma_pinned():
            m.sched.point("relocate.pinned_skipped")
        elif folio.large:
            return relocate_large_folio(pmc, table, folio, old_addr, new_addr, undo)
        else:
            relocate_folio(pmc, folio, old_addr, new_addr, undo)
    folio.lock.unlock()
    return 1


def relocate_anon_ptes(
    pmc: mremap_tables.PagetableMoveControl, table: PageTable, extent: int, undo: bool
) -> int:
    """The folios that one PTE table maps, under its lock. Entries that are not present are passed over.

    Returns the old address reached: the end of the extent, or where a folio could not be relocated.
    """
    mm = pmc.old.vm_mm
    addr, end = pmc.old_addr, pmc.old_addr + extent
    distance = pmc.new_addr - pmc.old_addr
    table.ptl.lock()
    while addr < end:
        pte = table.entries.get(pgtable_generic.slot_of(mm, addr, LEVEL_PTE), 0)
        assert isinstance(pte, int)
        pages = relocate_anon_pte(pmc, table, addr, addr + distance, undo) if pte & PRESENT else 1
        if not pages:
            break
        addr += pages << PAGE_SHIFT
    table.ptl.unlock()
    return min(addr, end)


def walk_old_tables(pmc: mremap_tables.PagetableMoveControl, undo: bool) -> int:
    """Every table of the source range. Returns the old address reached: the end, a huge page, or a folio."""
    mm = pmc.old.vm_mm
    while pmc.old_addr < pmc.old_end:
        extent = mremap_tables.get_extent(LEVEL_PUD, pmc)
        pud = pgtable_generic.find_table(mm, pmc.old_addr, LEVEL_PUD)
        if pud is not None and pud.get(pgtable_generic.slot_of(mm, pmc.old_addr, LEVEL_PUD)) != 0:
            extent = mremap_tables.get_extent(LEVEL_PMD, pmc)
            pmd = pgtable_generic.find_table(mm, pmc.old_addr, LEVEL_PMD)
            entry = pmd.get(pgtable_generic.slot_of(mm, pmc.old_addr, LEVEL_PMD)) if pmd else 0
            if isinstance(entry, PageTable):
                reached = relocate_anon_ptes(pmc, entry, extent, undo)
                if reached < pmc.old_addr + extent:
                    return reached
            elif entry:
                break  # a huge page
        pmc.old_addr += extent
        pmc.new_addr += extent
    return pmc.old_addr


def relocate_anon_folios(pmc: mremap_tables.PagetableMoveControl, undo: bool) -> int:
    """Walk from where ``pmc`` stands, and leave it standing there. Returns the old address reached."""
    old_addr, new_addr = pmc.old_addr, pmc.new_addr
    pmc.old.vm_mm.machine.sched.point("relocate.undo_begin" if undo else "relocate.begin")
    reached = walk_old_tables(pmc, undo)
    pmc.old_addr, pmc.new_addr = old_addr, new_addr
    return reached


def give_up(
    vrm: mremap.VmaRemapStruct, pmc: mremap_tables.PagetableMoveControl, reached: int
) -> tuple[int, bool]:
    """The folio at the old address ``reached`` could not be relocated: undo and unmap the destination.

    Returns the error with which the call is to end, or 0, and whether to go on with what is relocated now: here not,
    the move starts anew, the ordinary way.
    """
    new = pmc.new
    start, length = new.vm_start, new.vm_end - new.vm_start
    relocate_anon_folios(pmc, undo=True)
    mremap.vrm_stat_account(vrm, vrm.new_len)  # the unmap counts it down
    assert new.anon_vma is not None
    rmap.anon_vma_unlock_write(new.anon_vma)
    pmc.relocate_locked = None
    munmap.do_munmap(vrm.mm, start, length)
    return 0, False


def move_tables(vrm: mremap.VmaRemapStruct, pmc: mremap_tables.PagetableMoveControl) -> int:
    """The page tables follow. Returns the bytes that were moved."""
    return mremap_tables.move_page_tables(pmc)


def merge_relocated(new: VmAreaStruct) -> VmAreaStruct:
    """All is in place: now the destination may merge with its neighbours."""
    vmg = vma.vmg_of_vma(vma.vma_prev(new), new, new.vm_start, new.vm_end)
    return vma.vma_merge_existing_range(vmg) or new


LockFunction = Callable[[mremap_tables.PagetableMoveControl], None]


def has_shared_anon_vma(pmc: mremap_tables.PagetableMoveControl) -> bool:
    """Is the root of the source's anon_vma the one that the relocation has locked already?"""
    locked, old = pmc.relocate_locked, pmc.old.anon_vma
    if locked is None:
        return False
    assert locked.anon_vma is not None
    assert old is not None
    return old.root is locked.anon_vma.root


def check_mremap_params(original: Callable[[mremap.VmaRemapStruct], int], vrm: mremap.VmaRemapStruct) -> int:
    """A flag that the design adds needs MAYMOVE."""
    if vrm.flags & vrm.mm.machine.image.design.mremap_flags and not vrm.flags & MREMAP_MAYMOVE:
        return -EINVAL
    return original(vrm)


def take_rmap_locks(original: LockFunction, pmc: mremap_tables.PagetableMoveControl) -> None:
    """Not a second time when the root is the one that the relocation has locked."""
    if not has_shared_anon_vma(pmc):
        original(pmc)


def drop_rmap_locks(original: LockFunction, pmc: mremap_tables.PagetableMoveControl) -> None:
    if not has_shared_anon_vma(pmc):
        original(pmc)


def move_pgt_entry(
    pmc: mremap_tables.PagetableMoveControl,
    normal: bool,
    level: int,
    old_table: PageTable,
    new_table: PageTable,
) -> bool:
    """Takes the locks only when ``need_rmap_locks`` is not set yet, but drops them whenever it is."""
    overridden = normal and not pmc.need_rmap_locks
    if overridden:
        pmc.need_rmap_locks = True
        mremap_tables.take_rmap_locks(pmc)
    moved = mremap_tables.move_entry(pmc, normal, level, old_table, new_table)
    if pmc.need_rmap_locks:
        mremap_tables.drop_rmap_locks(pmc)
    if overridden:
        pmc.need_rmap_locks = False
    return moved


def copy_vma_and_data(vrm: mremap.VmaRemapStruct) -> tuple[int, VmAreaStruct | None]:
    """Mainline's, with a relocation of the folios before the page tables move."""
    m = vrm.mm.machine
    source = vrm.source()
    pgoff = vma.linear_page_index(source, vrm.addr)
    relocate = should_relocate_anon(vrm)
    while True:
        copied = copy_vma(source, vrm.new_addr, vrm.new_len, pgoff, relocate)
        if copied is None:
            mremap.vrm_uncharge(vrm)
            return -ENOMEM, None
        source, new, need_rmap_locks, relocate = copied
        vrm.vma = source
        pmc = mremap_tables.PagetableMoveControl(source, new, vrm.addr, vrm.new_addr, vrm.old_len)
        pmc.need_rmap_locks = need_rmap_locks
        m.sched.point("mremap.vma_copied")
        if not relocate:
            break
        assert new.anon_vma is not None
        rmap.anon_vma_lock_write(new.anon_vma)
        pmc.relocate_locked = new
        reached = relocate_anon_folios(pmc, undo=False)
        if reached == pmc.old_end:
            break
        error, relocate = give_up(vrm, pmc, reached)
        if error:
            return error, None
        if relocate:
            break
    moved = move_tables(vrm, pmc)
    error = mremap.mremap_error(vrm, moved)
    if relocate:
        if error:
            relocate_anon_folios(pmc, undo=True)
        assert new.anon_vma is not None
        rmap.anon_vma_unlock_write(new.anon_vma)
        pmc.relocate_locked = None
        if not error:
            new = merge_relocated(new)
    if error:
        mremap.move_back(vrm, source, new, moved)
    return error, new


class RelocateAnon(Design):
    """Relocate folios at mremap; undo and fall back when one cannot be relocated."""

    name = "relocate-anon"
    summary = "MREMAP_RELOCATE_ANON, patch 01/11 of June 2025 as posted: relocate folios, undo on failure"
    source = "22a80f22ba2082b28ee0b0a925eb3dbb37c2a786.1749473726.git.lorenzo.stoakes@oracle.com"
    mremap_flags = MREMAP_RELOCATE_ANON
    replaces = {
        "mremap.check_mremap_params": check_mremap_params,
        "mremap.copy_vma_and_data": copy_vma_and_data,
        "mremap_tables.take_rmap_locks": take_rmap_locks,
        "mremap_tables.drop_rmap_locks": drop_rmap_locks,
        "mremap_tables.move_pgt_entry": move_pgt_entry,
    }
