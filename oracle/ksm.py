"""KSM pages: what the scanner remembers of them, and where they are mapped.

* The contents of a KSM page never change. Its stable node names it, and it names the node.
* An item is listed at the node that it names, in the list of its process, in order of address; it has a reference on
  an anon_vma that is alive.
* A place that maps a KSM page is found by the reverse map: its own item leads there, or one of the same address in a
  process that it was forked from, through an anon_vma that both VMAs stand in.

The reverse map of KSM pages is not complete in Linux either. Places are missed until the scanner comes by: where the
page was shared by a fork already when it became a KSM page; where it was inherited and the items of the ancestor have
gone since; where it was swapped in from the swap cache; in memory that is no longer mergeable, and shares a page with
a process where it is; and everywhere when no node could be allocated. So a place is judged when a KSM page turns up
there: it must be found then, or excused. A KSM page that was moved along with its mapping is what this is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.hw.pte import PFN_SHIFT, PRESENT, SPECIAL, is_swap, softleaf_value
from emulator.ksm_types import KsmStableNode
from emulator.mm_types import VM_MERGEABLE
from oracle.finding import Finding, Subject, finding
from oracle.observation import Observer

if TYPE_CHECKING:
    from emulator.hw.pgtable import PageTable
    from emulator.ksm_types import KsmMmSlot, KsmRmapItem
    from emulator.mm_types import Folio, VmAreaStruct
    from emulator.rmap_types import AnonVma
    from oracle.leaves import Leaf


def stands_in(vma: VmAreaStruct, anon_vma: AnonVma) -> bool:
    """Does a walk of the whole tree of ``anon_vma`` meet the VMA?"""
    return any(avc.anon_vma is anon_vma and avc.key in anon_vma.rb_root for avc in vma.anon_vma_chain)


def leads_to(item: KsmRmapItem, vma: VmAreaStruct, address: int) -> bool:
    """Does a walk of the item meet that place, its own or that of a fork?"""
    return item.address == address and item.anon_vma is not None and stands_in(vma, item.anon_vma)


class KsmPlaces:
    """Remembers where KSM pages were mapped rightly, and which swap slots hold what was one."""

    __slots__ = ("_known", "_met", "_observer", "_slots")

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._met: set[Folio] = set()  # KSM pages
        self._known: dict[tuple[int, int], Folio] = {}  # (asid, address): the KSM page that was there last
        self._slots: set[int] = set()

    def lost(self, leaf: Leaf, folio: Folio) -> bool:
        """Does the reverse map not lead to this place, which maps the KSM page, though it should?"""
        if folio not in self._met:
            self._met.add(folio)
            for place in self._observer.mappings(folio.pfn):
                other = self._observer.leaf_at(place)
                if other is not None and other.vma is not None and self._may_be(other, folio, new=True):
                    self._known[other.mm.asid, other.address] = folio
        place_of = (leaf.mm.asid, leaf.address)
        if self._known.get(place_of) is folio:
            return False
        if not self._may_be(leaf, folio, new=False) and not self._inherited(leaf, folio):
            return True
        self._known[place_of] = folio
        return False

    def _inherited(self, leaf: Leaf, folio: Folio) -> bool:
        """Is it at this address in a relative too, where it was found or excused before a fork copied it?"""
        vma = leaf.vma
        assert vma is not None
        if vma.anon_vma is None:
            return False
        for mm in self._observer.machine.procs.values():
            if mm is not leaf.mm and self._known.get((mm.asid, leaf.address)) is folio:
                other = mm.mm_mt.lookup(leaf.address)
                if other is not None and other.anon_vma is not None and other.anon_vma.root is vma.anon_vma.root:
                    return True
        return False

    def _may_be(self, leaf: Leaf, folio: Folio, *, new: bool) -> bool:
        """Is it found there, or excused? ``new``: the page has become a KSM page in this step, with all its sharers."""
        node = folio.mapping
        vma = leaf.vma
        assert vma is not None
        if not isinstance(node, KsmStableNode) or folio.swapcache or not vma.vm_flags & VM_MERGEABLE:
            return True
        for item in node.hlist:
            if leads_to(item, vma, leaf.address):
                return True
            if new and item.anon_vma is not None and vma.anon_vma is not None:
                if item.anon_vma.root is vma.anon_vma.root:
                    return True
        return False

    def note_swapped_out(self) -> None:
        """Slots that took the place of a KSM page in the last step: if the entry was moved on, nothing else tells."""
        frames = self._observer.machine.phys.frames
        cleared: dict[tuple[PageTable, int], Folio] = {}  # an entry is cleared before the slot takes its place
        for table, slot, old, new in self._observer.machine.store_log:
            if isinstance(old, int) and old & (PRESENT | SPECIAL) == PRESENT:
                cleared[table, slot] = frames[old >> PFN_SHIFT]
            if isinstance(new, int) and is_swap(new):
                folio = cleared.get((table, slot))
                if folio is not None and (folio.ksm or folio in self._met):  # freed, it is no KSM page any more
                    self._slots.add(softleaf_value(new))

    def was_ksm(self, leaf: Leaf) -> bool:
        """Does the swap entry lead to what was a KSM page? Where the page read back does not fit, it is copied."""
        slot = leaf.entry >> 12
        cached = self._observer.machine.swap.cache.get(slot)
        if slot in self._slots:
            return True
        if (cached is not None and cached.ksm) or (leaf.mm.asid, leaf.address) in self._known or self._listed(leaf):
            self._slots.add(slot)
            return True
        return False

    def _listed(self, leaf: Leaf) -> bool:
        """Is there an item of the place: merged and swapped out in one step?"""
        slot = next((slot for slot in self._observer.machine.ksm.mm_slots if slot.mm is leaf.mm), None)
        return slot is not None and any(item.head and item.address == leaf.address for item in slot.rmap_list)


class KsmOracle:
    """Judges what the scanner remembers. Costs nothing while there is nothing."""

    __slots__ = ("_observer",)

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def check(self, step: int) -> list[Finding]:
        found: list[Finding] = []
        ksm = self._observer.machine.ksm
        if not ksm.mm_slots and not ksm.stable_tree:
            return found
        listed: dict[KsmRmapItem, None] = {}
        for slot in ksm.mm_slots:
            listed.update(dict.fromkeys(slot.rmap_list))
            self._check_slot(slot, step, found)
        for contents, nodes in ksm.stable_tree.items():
            for node in nodes:
                self._check_node(node, step, found)
                if node.contents != contents:
                    found.append(finding("ksm", "stable-tree", f"{node} is filed under other contents", step))
                lost = [item for item in node.hlist if item not in listed]
                if lost:
                    detail = f"{node} lists {lost[0]}, which its process does not know"
                    found.append(finding("ksm", "item-lost", detail, step))
        for folio in self._observer.machine.phys.live.values():
            if folio.ksm and isinstance(folio.mapping, KsmStableNode):
                if folio.mapping not in ksm.stable_tree.get(folio.mapping.contents, ()):
                    detail = f"{folio} is mapped, and its node has left the stable tree"
                    found.append(finding("ksm", "node-lost", detail, step, subjects=(("folio", folio.pfn),)))
        return found

    def _check_slot(self, slot: KsmMmSlot, step: int, found: list[Finding]) -> None:
        addresses = [item.address for item in slot.rmap_list]
        if addresses != sorted(set(addresses)) or any(item.mm is not slot.mm for item in slot.rmap_list):
            detail = f"the items of process {slot.mm.label} are out of order"
            found.append(finding("ksm", "item-order", detail, step))
        for item in slot.rmap_list:
            if item.head is not None and item not in item.head.hlist:
                found.append(finding("ksm", "item-lost", f"{item} is not listed at {item.head}", step))

    def _check_node(self, node: KsmStableNode, step: int, found: list[Finding]) -> None:
        folio = node.folio
        subjects: tuple[Subject, ...] = (("folio", folio.pfn),)
        for item in node.hlist:
            if item.head is not node:
                found.append(finding("ksm", "item-lost", f"{item} is listed at {node}, and names {item.head}", step))
            elif item.anon_vma is None or item.anon_vma.freed:
                detail = f"{item} leads to {item.anon_vma}"
                found.append(finding("ksm", "use-after-free: anon_vma", detail, step))
        if folio.freed or folio.mapping is not node:
            return  # stale: the scanner drops it when it comes by
        if tuple(sorted(folio.content[0].items())) != node.contents:
            detail = f"{folio} is a KSM page, and holds {folio.content[0]} instead of {dict(node.contents)}"
            found.append(finding("ksm", "contents", detail, step, subjects=subjects))
        elif not folio.ksm or folio.order or folio.anon_exclusive:
            detail = f"{folio} is the page of a stable node, and not a small shared KSM page"
            found.append(finding("ksm", "state", detail, step, subjects=subjects))
