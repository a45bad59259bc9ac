"""The same-page scanner: how the daemon of mm/ksm.c goes through memory.

A scan goes through the mergeable memory of all processes. A page whose contents have not changed since the last scan
is looked up among the KSM pages, then among the pages met in this scan (``ksm_tree.py``); where its equal is found,
both places map one write-protected page from then on (``ksm_merge.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.geometry import PAGE_SIZE
from emulator.ksm_types import KsmMmSlot, KsmRmapItem
from emulator.mm import ksm_merge, ksm_tree
from emulator.mm_types import VM_MERGEABLE, Folio, MmStruct
from emulator.rbtree import RbTree

if TYPE_CHECKING:
    from emulator.machine import Machine

AGE_MAX: Final = 255


def ksm_test_exit(mm: MmStruct) -> bool:
    """Has the last user gone? Then its page tables are no longer to be looked at."""
    return mm.mm_users == 0


def get_next_rmap_item(m: Machine, slot: KsmMmSlot, addr: int) -> KsmRmapItem | None:
    """The item for the address that the cursor has come to; those passed over go. None: no memory for a new one."""
    cursor = m.ksm
    items = slot.rmap_list
    while cursor.position < len(items):
        item = items[cursor.position]
        if item.address == addr:
            return item
        if item.address > addr:
            break
        del items[cursor.position]
        ksm_tree.remove_rmap_item_from_tree(m, item)
    if m.should_fail("ksm_rmap_item"):
        return None
    item = KsmRmapItem(slot.mm, addr)
    items.insert(cursor.position, item)
    return item


def skip_age(age: int) -> int:
    return 1 if age <= 3 else 2 if age <= 5 else 4 if age <= 8 else 8


def should_skip_rmap_item(m: Machine, folio: Folio, item: KsmRmapItem) -> bool:
    """A page that could not be merged in several scans is passed over more and more often (smart_scan)."""
    if folio.ksm:
        return False
    age = item.age
    item.age = min(age + 1, AGE_MAX)
    if age < 3:
        return False
    if not item.remaining_skips:
        item.remaining_skips = skip_age(age)
        return False
    item.remaining_skips -= 1
    ksm_tree.remove_rmap_item_from_tree(m, item)
    return True


def remove_trailing_rmap_items(m: Machine, slot: KsmMmSlot) -> None:
    """Nothing mergeable was found from the cursor on: the items there go."""
    while len(slot.rmap_list) > m.ksm.position:
        ksm_tree.remove_rmap_item_from_tree(m, slot.rmap_list.pop(m.ksm.position))


def scan_mm(m: Machine, slot: KsmMmSlot) -> tuple[KsmRmapItem | None, int] | None:
    """Go on in one process: the next page to look at, (item, frame) with a reference. None: this process is done.

    The item is None when memory was lacking for one; then there is no reference.
    """
    mm, cursor = slot.mm, m.ksm
    mm.mmap_lock.down_read()
    for area in [] if ksm_test_exit(mm) else mm.mm_mt.overlapping(cursor.address, m.geometry.task_size):
        if not area.vm_flags & VM_MERGEABLE:
            continue
        cursor.address = max(cursor.address, area.vm_start)
        if area.anon_vma is None:
            cursor.address = area.vm_end
        while cursor.address < area.vm_end:
            found = ksm_tree.next_page(area, cursor.address, area.vm_end)
            if found is None:
                cursor.address = area.vm_end
                break
            pfn, cursor.address = found
            item = get_next_rmap_item(m, slot, cursor.address)
            if item is None:
                ksm_tree.put_page(m, pfn)
                mm.mmap_lock.up_read()
                return None, 0
            cursor.position += 1
            skipped = should_skip_rmap_item(m, m.phys.frames[pfn], item)
            cursor.address += PAGE_SIZE
            if skipped:
                ksm_tree.put_page(m, pfn)
                continue
            mm.mmap_lock.up_read()
            m.sched.point("ksm.page_found")
            return item, pfn
    if ksm_test_exit(mm):
        cursor.address = cursor.position = 0
    remove_trailing_rmap_items(m, slot)
    leave_mm(m, slot)
    mm.mmap_lock.up_read()
    return None


def leave_mm(m: Machine, slot: KsmMmSlot) -> None:
    """Move the cursor to the next process. One that has gone, or has nothing mergeable, is forgotten."""
    cursor = m.ksm
    at = cursor.mm_slots.index(slot)
    cursor.slot = cursor.mm_slots[at + 1] if at + 1 < len(cursor.mm_slots) else None
    if cursor.address == 0:
        del cursor.mm_slots[at]
    cursor.address = cursor.position = 0


def scan_get_next_rmap_item(m: Machine) -> tuple[KsmRmapItem | None, int] | None:
    """The next page to look at, as ``scan_mm``. None: the scan has been through all processes."""
    cursor = m.ksm
    if not cursor.mm_slots:
        return None
    if cursor.slot is None:
        cursor.unstable_tree = RbTree()
        cursor.seqnr += 1
        cursor.slot = cursor.mm_slots[0]
        cursor.address = cursor.position = 0
    while cursor.slot is not None:
        found = scan_mm(m, cursor.slot)
        if found is not None:
            return found
    return None


def ksm_do_scan(m: Machine, npages: int) -> int:
    """Kernel activity: look at ``npages`` pages, 0: to the end of the scan. How many pages were merged."""
    merged = 0
    m.ksm.thread_mutex.down_write()
    looked_at = 0
    while not npages or looked_at < npages:
        found = scan_get_next_rmap_item(m)
        if found is None:
            break
        item, pfn = found
        if item is None:
            break
        looked_at += 1
        merged += ksm_merge.cmp_and_merge_page(m, pfn, item)
        ksm_tree.put_page(m, pfn)
    m.ksm.thread_mutex.up_write()
    return merged
