"""The trees of the same-page scanner: what pages it knows, by their contents (mm/ksm.c).

The stable tree holds the KSM pages, with the places that map each; the unstable tree the other pages met in this
scan, whose contents may have changed since. No node keeps a page alive.

The unstable tree is a red-black tree as in the kernel, as it shows which nodes a search passes. Of the stable tree it
does not: there every look-up drops every stale node, not those on the way only. Where a node would have too many
places, there are several of the same contents (the kernel's chains), without the kernel's timing of when a chain is
tidied up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.geometry import LEVEL_PTE, PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PRESENT, SPECIAL, pte_pfn
from emulator.ksm_types import MAX_PAGE_SHARING, Contents, KsmRmapItem, KsmStableNode
from emulator.mm import ksm, memory, pagewalk, pgtable_generic, rmap, swap
from emulator.mm_types import VM_MERGEABLE, Folio, MmStruct, VmAreaStruct
from emulator.workload import OFFSETS_MAX

if TYPE_CHECKING:
    from emulator.machine import Machine

WORD: Final = 8  # bytes of a token in a page

# Pages are named by their frame, as a folio may be split while the scanner has a reference on one of its pages.


def contents_of(m: Machine, pfn: int) -> Contents:
    folio = m.phys.frames[pfn]
    return tuple(sorted(folio.content[pfn - folio.pfn].items()))


def bytes_of(m: Machine, pfn: int) -> bytes:
    """The page as memcmp goes through it: its places, a token being a little-endian word; between them are zeros."""
    page = bytearray(WORD * OFFSETS_MAX)
    for place, token in contents_of(m, pfn):
        page[place * WORD : (place + 1) * WORD] = token.to_bytes(WORD, "little")
    return bytes(page)


def put_page(m: Machine, pfn: int) -> None:
    swap.folio_put(m, m.phys.frames[pfn])


def find_mergeable_vma(mm: MmStruct, addr: int) -> VmAreaStruct | None:
    area = mm.mm_mt.lookup(addr)
    if area is None or not area.vm_flags & VM_MERGEABLE or area.anon_vma is None:
        return None
    return area


def next_page(area: VmAreaStruct, start: int, end: int) -> tuple[int, int] | None:
    """The first anonymous page in [start, end) of the VMA: (frame, address), with a reference on its folio."""
    m = area.vm_mm.machine
    for pmd, pmd_slot, addr, stop in pagewalk.pmd_ranges(area.vm_mm, start, end):
        entry = pmd.entries.get(pmd_slot, 0)
        if not isinstance(entry, PageTable):
            pmd.ptl.lock()
            entry = pmd.entries.get(pmd_slot, 0)
            if not isinstance(entry, PageTable):
                huge = entry & (PRESENT | SPECIAL) == PRESENT
                if huge:
                    swap.folio_get(m.phys.frames[pte_pfn(entry)])
                pmd.ptl.unlock()
                if huge:
                    return pte_pfn(entry) + ((addr & (m.geometry.pmd_size - 1)) >> PAGE_SHIFT), addr
                continue
            pmd.ptl.unlock()
        table = pagewalk.pte_offset_map_lock(pmd, pmd_slot)
        if table is None:
            continue
        first = pgtable_generic.slot_of(area.vm_mm, addr, LEVEL_PTE)
        for i in range((stop - addr) >> PAGE_SHIFT):
            pte: int = table.entries.get(first + i, 0)  # type: ignore[assignment]
            folio = memory.vm_normal_folio(area, addr, pte) if pte & PRESENT else None
            if folio is not None and folio.anon:
                swap.folio_get(folio)
                table.ptl.unlock()
                return pte_pfn(pte), addr + (i << PAGE_SHIFT)
        table.ptl.unlock()
    return None


# ---- stable nodes


def remove_node_from_stable_tree(m: Machine, node: KsmStableNode) -> None:
    """The node's page is gone: its items are listed nowhere now."""
    for item in node.hlist:
        assert item.anon_vma is not None
        item.head = None
        rmap.put_anon_vma(item.anon_vma)
    node.hlist.clear()
    nodes = m.ksm.stable_tree[node.contents]
    nodes.remove(node)
    if not nodes:
        del m.ksm.stable_tree[node.contents]


def ksm_get_folio(m: Machine, node: KsmStableNode) -> Folio | None:
    """The node's folio with a reference, not locked. None: the page is gone, and the node with it.

    The kernel asks the frame whether it still names the node, as it may have been used again; ours are not.
    """
    folio = node.folio
    if folio.freed:
        remove_node_from_stable_tree(m, node)
        return None
    swap.folio_get(folio)
    return folio


def ksm_get_folio_locked(m: Machine, node: KsmStableNode) -> Folio | None:
    """As ``ksm_get_folio``, and locked."""
    while True:
        folio = ksm_get_folio(m, node)
        if folio is None:
            return None
        folio.lock.lock()
        if node.folio is folio:  # else it has been migrated
            return folio
        folio.lock.unlock()
        swap.folio_put(m, folio)


def remove_rmap_item_from_tree(m: Machine, item: KsmRmapItem) -> None:
    """Take the item out of the tree that it is in, if any; the reference on its anon_vma goes."""
    node = item.head
    if node is not None:
        folio = ksm_get_folio_locked(m, node)
        if folio is None:
            return
        node.hlist.remove(item)
        folio.lock.unlock()
        swap.folio_put(m, folio)
        assert item.anon_vma is not None
        item.head = None
        rmap.put_anon_vma(item.anon_vma)
    elif item.node is not None:
        if item.seqnr == m.ksm.seqnr:  # else it stands in the tree of an earlier scan
            m.ksm.unstable_tree.erase(item.node)
        item.node = None


def is_page_sharing_candidate(node: KsmStableNode) -> bool:
    """May one more place come? A node without any is about to go."""
    return 0 < len(node.hlist) < MAX_PAGE_SHARING


def stable_tree_search(m: Machine, pfn: int) -> tuple[Folio | None, bool]:
    """The KSM folio of the same contents, with a reference, or None; and whether one is busy (locked)."""
    folio = m.phys.frames[pfn]
    if ksm.folio_stable_node(folio) is not None:  # a KSM page that was forked
        swap.folio_get(folio)
        return folio, False
    wanted = contents_of(m, pfn)
    found: KsmStableNode | None = None
    for node in [node for nodes in m.ksm.stable_tree.values() for node in nodes]:
        tree_folio = ksm_get_folio(m, node)
        if tree_folio is None:
            continue
        swap.folio_put(m, tree_folio)
        if node.contents == wanted and is_page_sharing_candidate(node):
            if found is None or len(node.hlist) > len(found.hlist):
                found = node
    if found is None:
        return None, False
    tree_folio = ksm_get_folio(m, found)
    assert tree_folio is not None
    # Whoever migrates the page looks at its references under its lock: he notices ours, or we him.
    if not tree_folio.lock.trylock():
        swap.folio_put(m, tree_folio)
        return None, True
    tree_folio.lock.unlock()
    return tree_folio, False


def stable_tree_insert(m: Machine, folio: Folio) -> KsmStableNode | None:
    """A node for a new KSM folio, which is locked. None: out of memory."""
    contents = contents_of(m, folio.pfn)
    nodes = m.ksm.stable_tree.get(contents, [])
    if m.should_fail("ksm_stable_node"):
        return None
    node = KsmStableNode(folio, contents)
    m.ksm.stable_tree[contents] = [*nodes, node]
    folio.mapping = node
    return node


def stable_tree_append(item: KsmRmapItem, node: KsmStableNode) -> None:
    """One more place that maps the node's folio, which is locked."""
    item.head = node
    node.hlist.insert(0, item)


# ---- the unstable tree


def get_mergeable_page(item: KsmRmapItem) -> int | None:
    """The frame of the anonymous page that is mapped at the item's place now, with a reference."""
    mm = item.mm
    mm.mmap_lock.down_read()
    area = find_mergeable_vma(mm, item.address)
    found = None if area is None else next_page(area, item.address, item.address + PAGE_SIZE)
    mm.mmap_lock.up_read()
    return None if found is None else found[0]


def unstable_tree_search_insert(
    m: Machine, item: KsmRmapItem, pfn: int
) -> tuple[KsmRmapItem, int] | None:
    """The item of an equal page met in this scan, and its frame with a reference; else ``item`` is put there.

    The way down leads past pages of other contents, which may have changed since they were entered. Where one of
    them is gone the search ends, and the item stays outside until the next scan.
    """
    tree = m.ksm.unstable_tree
    wanted = bytes_of(m, pfn)
    parent, left = None, False
    place = tree.root
    while place is not None:
        tree_pfn = get_mergeable_page(place.item)
        if tree_pfn is None:
            return None
        if tree_pfn == pfn:  # shared by a fork: that is as good as merged
            put_page(m, tree_pfn)
            return None
        there = bytes_of(m, tree_pfn)
        if there == wanted:
            return place.item, tree_pfn
        put_page(m, tree_pfn)
        parent, left = place, wanted < there
        place = place.child(left)
    item.node = tree.insert(item, parent, left)
    item.seqnr = m.ksm.seqnr
    return None
