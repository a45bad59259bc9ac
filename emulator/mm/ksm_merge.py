"""Merging equal pages: the page-table half of mm/ksm.c, for the scanner.

The page that becomes a KSM page, and the one that it takes the place of, are write-protected first, and only if
nobody uses them but their mappings; then they are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_SIZE
from emulator.hw.pte import ACCESSED, DIRTY, RW, mk_pte
from emulator.ksm_types import KsmRmapItem
from emulator.mm import (
    huge_memory_split,
    ksm,
    ksm_tree,
    page_vma_mapped,
    pagewalk,
    pgtable_generic,
    rmap,
    rmap_counts,
    swap,
    swap_state,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import Folio, VmAreaStruct

if TYPE_CHECKING:
    from emulator.machine import Machine


def page_address_in_vma(folio: Folio, page: int, area: VmAreaStruct) -> int | None:
    """Where the VMA has that page of an anonymous folio, by the reverse map; a KSM folio has no such place."""
    anon_vma = rmap.folio_anon_vma(folio)
    own = area.anon_vma
    if anon_vma is None or own is None or anon_vma.root is not own.root:
        return None
    return vma_ops.vma_address(area, folio.index + page, 1)


def write_protect_page(area: VmAreaStruct, folio: Folio) -> int:
    """Make the entry that maps a small, locked folio read-only and clean: the entry then, 0 if that must not be.

    The entry is cleared and flushed before references are counted: who writes without the entry (a pin) is seen.
    """
    mm = area.vm_mm
    m = mm.machine
    addr = page_address_in_vma(folio, 0, area)
    if addr is None:
        return 0
    for table, slot, _, pte in page_vma_mapped.page_vma_mapped_walk(folio, area, addr):
        if not pte & (RW | DIRTY) and not folio.anon_exclusive:
            table.ptl.unlock()
            return pte
        table.set(slot, 0)
        m.flush_tlb_range(mm, addr, addr + PAGE_SIZE)
        m.sched.point("ksm.pte_cleared")
        shared = folio.mapcount() + 1 + folio.swapcache == folio.refcount
        if not shared or (folio.anon_exclusive and rmap_counts.folio_try_share_anon_rmap_pte(folio, 0)):
            table.set(slot, pte)
            table.ptl.unlock()
            return 0
        if pte & DIRTY:
            folio.dirty = True
        pte &= ~(RW | DIRTY)
        table.set(slot, pte)
        table.ptl.unlock()
        return pte
    return 0


def replace_page(area: VmAreaStruct, folio: Folio, kfolio: Folio, orig: int) -> bool:
    """Map the KSM folio in place of ``folio``, if the entry is still ``orig``. Their contents are equal."""
    mm = area.vm_mm
    m = mm.machine
    addr = page_address_in_vma(folio, 0, area)
    if addr is None:
        return False
    pmd = pgtable_generic.find_table(mm, addr, LEVEL_PMD)
    if pmd is None:
        return False
    table = pagewalk.pte_offset_map_lock(pmd, pgtable_generic.slot_of(mm, addr, LEVEL_PMD))
    slot = pgtable_generic.slot_of(mm, addr, LEVEL_PTE)
    if table is None:
        return False
    if table.entries.get(slot, 0) != orig:
        table.ptl.unlock()
        return False
    swap.folio_get(kfolio)
    rmap_counts.folio_add_anon_rmap_ptes(kfolio, 0, 1, area, addr, False)
    table.set(slot, 0)
    m.flush_tlb_range(mm, addr, addr + PAGE_SIZE)
    table.set(slot, mk_pte(kfolio.pfn, vma_ops.vm_page_prot(area.vm_flags) | ACCESSED))
    rmap_counts.folio_remove_rmap_ptes(folio, 0, 1, area)
    if not folio.mapped():
        swap_state.folio_free_swap(m, folio)
    swap.folio_put(m, folio)
    table.ptl.unlock()
    return True


def try_to_merge_one_page(area: VmAreaStruct, pfn: int, kfolio: Folio | None) -> bool:
    """Map ``kfolio`` in place of the page; None: make a KSM page of this one. False: not now, or not possible."""
    m = area.vm_mm.machine
    folio = m.phys.frames[pfn]
    if folio is kfolio:
        return True
    if not folio.lock.trylock():
        return False
    if folio.order:
        if huge_memory_split.split_folio(m, folio, pfn - folio.pfn):
            folio.lock.unlock()
            return False
        folio = m.phys.frames[pfn]
    merged = False
    orig = write_protect_page(area, folio)
    if orig:
        m.sched.point("ksm.write_protected")
        if kfolio is None:
            folio.ksm = True
            folio.mapping = None  # the node comes later
            folio.dirty = True
            merged = True
        elif ksm_tree.contents_of(m, pfn) == ksm_tree.contents_of(m, kfolio.pfn):
            merged = replace_page(area, folio, kfolio, orig)
    folio.lock.unlock()
    return merged


def try_to_merge_with_ksm_page(m: Machine, item: KsmRmapItem, pfn: int, kfolio: Folio | None) -> bool:
    """Merge the page at the item's place. Then the item is in no tree, and has a reference on the anon_vma."""
    mm = item.mm
    mm.mmap_lock.down_read()
    area = ksm_tree.find_mergeable_vma(mm, item.address)
    merged = area is not None and try_to_merge_one_page(area, pfn, kfolio)
    if merged and area is not None:
        ksm_tree.remove_rmap_item_from_tree(m, item)
        item.anon_vma = area.anon_vma
        assert item.anon_vma is not None
        rmap.get_anon_vma(item.anon_vma)
    mm.mmap_lock.up_read()
    if merged:
        m.sched.point("ksm.merged")
    return merged


def break_cow(item: KsmRmapItem) -> None:
    """Undo the merge at the item's place, which is in no tree."""
    assert item.anon_vma is not None
    rmap.put_anon_vma(item.anon_vma)
    mm = item.mm
    mm.mmap_lock.down_read()
    area = ksm_tree.find_mergeable_vma(mm, item.address)
    if area is not None:
        ksm.break_ksm(area, item.address)
    mm.mmap_lock.up_read()


def try_to_merge_two_pages(
    m: Machine, item: KsmRmapItem, pfn: int, other: KsmRmapItem, other_pfn: int
) -> Folio | None:
    """Make a KSM page of the first, and map it in place of the second."""
    if not try_to_merge_with_ksm_page(m, item, pfn, None):
        return None
    folio = m.phys.frames[pfn]
    if not try_to_merge_with_ksm_page(m, other, other_pfn, folio):
        break_cow(item)
        return None
    return folio


def merge_into_stable(m: Machine, item: KsmRmapItem, pfn: int, kfolio: Folio) -> int:
    """Merge the page with a KSM folio; the reference on that is given back. 1 if merged."""
    merged = try_to_merge_with_ksm_page(m, item, pfn, kfolio)
    if merged:
        kfolio.lock.lock()
        node = ksm.folio_stable_node(kfolio)
        assert node is not None  # our reference keeps the folio where it is
        ksm_tree.stable_tree_append(item, node)
        kfolio.lock.unlock()
    swap.folio_put(m, kfolio)
    return int(merged)


def merge_two(m: Machine, item: KsmRmapItem, pfn: int, other: KsmRmapItem, other_pfn: int) -> int:
    """Make one KSM page of two equal pages; the reference on the second is given back. How many were merged."""
    kfolio = try_to_merge_two_pages(m, item, pfn, other, other_pfn)
    folio = m.phys.frames[pfn]
    same = folio.order > 0 and m.phys.frames[other_pfn] is folio
    ksm_tree.put_page(m, other_pfn)
    if kfolio is None:
        # two pages of one large folio: with one reference only it can be split, for the next scan
        if same and folio.lock.trylock():
            huge_memory_split.split_folio(m, folio, pfn - folio.pfn)
            m.phys.frames[pfn].lock.unlock()
        return 0
    kfolio.lock.lock()
    node = ksm_tree.stable_tree_insert(m, kfolio)
    if node is not None:
        ksm_tree.stable_tree_append(other, node)
        ksm_tree.stable_tree_append(item, node)
    kfolio.lock.unlock()
    if node is None:
        break_cow(other)
        break_cow(item)
        return 0
    return 2


def cmp_and_merge_page(m: Machine, pfn: int, item: KsmRmapItem) -> int:
    """What is to be done with a page that the scan has come to. How many pages were merged."""
    node = ksm.folio_stable_node(m.phys.frames[pfn])
    if node is not None:
        if item.head is node:
            return 0
    else:
        ksm_tree.remove_rmap_item_from_tree(m, item)
        contents = ksm_tree.contents_of(m, pfn)
        if item.oldchecksum != contents:
            item.oldchecksum = contents
            return 0
    kfolio, busy = ksm_tree.stable_tree_search(m, pfn)
    ksm_tree.remove_rmap_item_from_tree(m, item)
    if busy:
        return 0
    if kfolio is not None:
        return merge_into_stable(m, item, pfn, kfolio)
    found = ksm_tree.unstable_tree_search_insert(m, item, pfn)
    return 0 if found is None else merge_two(m, item, pfn, *found)
