"""The preemption points: what has just happened, or is about to, where a task may lose the CPU.

Schedules in workloads name them, so a name never changes its meaning. Sorted by area.
"""

from __future__ import annotations

from typing import Final

POINTS: Final[dict[str, str]] = {
    # anon_vmas
    "anon_vma.clone_allocated": "the chain of a VMA is copied, not yet in the trees",
    "anon_vma.forked": "a child's VMA has its own anon_vma, not yet in its tree",
    "anon_vma.found": "a VMA is to become faulted: an anon_vma is chosen, its lock not taken",
    "anon_vma.prepared": "a VMA has become faulted",
    "anon_vma.unlinked": "a VMA has left the rmap; anon_vmas that nobody needs are not freed yet",
    # collapsing small pages into a huge one
    "collapse.before_write_lock": "the range may still be collapsed; mmap_lock is to be taken for writing",
    "collapse.copied": "the contents are in the huge page, the old pages still isolated; mmap_lock is held for writing",
    "collapse.file_collapsed": "the page cache has a huge page in the place of all; mmap_lock is to be taken again",
    "collapse.file_unlocked": "the range of a file is to be collapsed; mmap_lock is dropped, no page looked at",
    "collapse.isolated": "every page is locked and off the LRU, nothing is mapped; the anon_vma lock is dropped",
    "collapse.next_range": "one range is done with, mmap_lock dropped; the next is to be looked at",
    "collapse.page_isolated": "one page is locked and off the LRU, under the lock of the table that is to go",
    "collapse.page_released": "an old page is unlocked and on the LRU again; its mapping is still counted",
    "collapse.pmd_cleared": "the table of the small pages is out of reach and flushed, no page looked at",
    "collapse.table_found": "a table of PTEs is to go, so that a file's huge page can be mapped; it is not locked",
    "collapse.swapped_in": "what was swapped out in the range is mapped again, mmap_lock held for reading",
    "collapse.unlocked": "the range may be collapsed; mmap_lock is dropped, no huge page allocated yet",
    # the heap
    "brk.locked": "mmap_lock is held for writing, nothing done yet",
    # page faults
    "fault.begin": "an access has faulted, mmap_lock is not taken",
    "fault.end": "the fault is handled and mmap_lock dropped; the access is tried again",
    "fault.copied": "the old contents are in the new page, which is not mapped yet",
    "fault.file_folio_found": "the page-cache folio is referenced, not locked",
    "fault.folio_allocated": "a new folio is allocated, no page-table lock held",
    "fault.folio_locked": "the folio lock is held, no page-table lock",
    "fault.old_unmapped": "the copy is mapped; the old page is unmapped, its reference not given back",
    "fault.pmd_locked": "the PMD lock is held, the entry still empty",
    "fault.pte_cleared": "the entry of a page that is being copied is cleared and flushed, under the lock",
    "fault.pte_locked": "the page-table lock is held, the entry unchanged",
    "fault.pte_read": "the entry has been read without its lock",
    "fault.swap_folio_found": "the swapped-out page is in the swap cache, referenced, not locked",
    "fault.swap_mapped": "a swapped-out page is mapped again, under folio and page-table lock",
    # fork
    "fork.before_flush": "the child is complete, the parent's TLBs are not flushed",
    "fork.folio_allocated": "a page for a pinned page's copy is allocated, no lock held",
    "fork.page_copied": "a page that may be pinned is copied for the child, under both page-table locks",
    "fork.pmd_copied": "the child shares a huge page, under both PMD locks",
    "fork.pmd_shared": "a huge page is not exclusive any more, the entry still as it was",
    "fork.pmd_write_protected": "a huge page is read-only in the parent, the child has no entry yet",
    "fork.pte_copied": "one entry is copied, under both page-table locks",
    "fork.pte_shared": "a page is mapped once more and not exclusive, the entry still as it was",
    "fork.pte_write_protected": "an entry is read-only in the parent, the child has none yet",
    "fork.ptes_locked": "the page-table locks of parent and child are held",
    "fork.vma": "the next VMA is about to be copied",
    "fork.write_protect_begin": "write_protect_seq of the parent is odd",
    # GUP
    "gup_fast.done": "the fast path is over, with the page or without",
    "gup_fast.folio_grabbed": "the reference or pin is taken, the entry not read again yet; interrupts are off",
    "gup_fast.pmd_read": "the PMD entry has been read; interrupts are off",
    "gup_fast.pte_read": "the PTE has been read, no reference taken; interrupts are off",
    "gup_fast.walked": "the walk is over, interrupts are on; write_protect_seq is not looked at again yet",
    "gup_slow.faulting": "nothing suitable is mapped: a fault is about to be handled, under mmap_lock",
    "gup_slow.locked": "mmap_lock is held for reading",
    # same-page merging
    "ksm.break": "a place maps a KSM page that is to be replaced by one of its own, under mmap_lock",
    "ksm.merged": "a page is mapped read-only as a KSM page; it is not listed at a stable node yet, no lock is held",
    "ksm.page_found": "the scanner has a reference on a page, and no lock",
    "ksm.pte_cleared": "an entry is cleared and flushed, the references of its page not counted yet",
    "ksm.write_protected": "a page is mapped read-only and clean, and is not merged yet; it is locked",
    # madvise
    "madvise.guard_zap": "pages stand where a guard region is to be installed; they are not zapped yet",
    "madvise.guards_removed": "guard markers are gone, and what the VMA says of them has not changed yet (a design's)",
    "madvise.locked": "mmap_lock is held, for reading or writing as the advice needs",
    # merging
    "merge.rmap_locked": "VMAs are about to get other ranges, under the rmap locks",
    "merge.page_reconnected": "a page of a VMA that a merge swallowed has the other's anon_vma (a design's)",
    # memory policies
    "mbind.locked": "mmap_lock is held for writing, nothing done yet",
    # migration
    "migrate.copied": "the contents are in the new folio, which has not taken the old one's place yet",
    "migrate.entries_removed": "no migration entry is left; old and new folio are still locked",
    "migrate.entry_set": "a migration entry has taken the place of a page, under the lock",
    "migrate.folio_locked": "the folio to migrate and the one it goes to are locked, nothing is unmapped",
    "migrate.isolated": "the folio to migrate is off the LRU, not locked",
    "migrate.pte_cleared": "an entry is cleared and flushed, the exclusive mark not looked at yet",
    "migrate.unmapped": "every mapping has become a migration entry, nothing is copied",
    # mlock
    "mlock.locked": "mmap_lock is held for writing, nothing done yet",
    # mmap
    "mmap.locked": "mmap_lock is held for writing, nothing done yet",
    # mprotect
    "mprotect.before_flush": "entries have other permissions, and TLBs are about to be flushed",
    "mprotect.locked": "mmap_lock is held for writing, nothing done yet",
    "mprotect.pmd_changed": "the entry of a huge page has other permissions, not flushed",
    "mprotect.pte_changed": "an entry has other permissions, not flushed",
    # mremap
    "mremap.after_ptes": "the entries of one table are moved and flushed, no page-table lock held",
    "mremap.after_table": "an upper entry was to be moved, the rmap locks are dropped",
    "mremap.before_ptes": "the entries of one table are about to be moved, its lock not taken",
    "mremap.before_table": "an upper entry is about to be moved, under the rmap locks if any",
    "mremap.locked": "mmap_lock is held for writing, nothing done yet",
    "mremap.pmd_cleared": "a huge page's entry is cleared in the old place and not yet in the new",
    "mremap.pte_cleared": "an entry is cleared in the old place and not yet in the new, not flushed",
    "mremap.pte_moved": "an entry is in its new place, the old one not flushed",
    "mremap.vma_copied": "the destination VMA is there, no page table moved",
    # sealing
    "mseal.locked": "mmap_lock is held for writing, nothing done yet",
    # munmap
    "munmap.locked": "mmap_lock is held for writing, nothing done yet",
    # populating, after mlock or mmap
    "populate.page": "a page is about to be faulted in ahead of its use, under mmap_lock",
    # reclaim
    "reclaim.added_to_swap": "the folio is in the swap cache, and still mapped",
    "reclaim.before_free": "the folio is unmapped and clean; its references are about to be counted",
    "reclaim.folio_locked": "the folio to reclaim is locked, nothing done to it",
    "reclaim.isolated": "the folio to reclaim is off the LRU, not locked",
    "reclaim.unmapped": "every mapping has become a swap entry that could",
    "reclaim.written": "the folio is written out and unlocked",
    # relocation, in the designs that have it
    "relocate.begin": "the destination's anon_vma is locked, no folio relocated",
    "relocate.folio_locked": "a folio is locked, nothing looked at yet",
    "relocate.folio_relocated": "a folio has the destination's mapping and index, still mapped in the old place",
    "relocate.folio_split": "a large folio is split, to be relocated page by page; no page-table lock held",
    "relocate.folio_undone": "a folio has the source's mapping and index again",
    "relocate.index_updated": "a page has the index of its new place, and no VMA is there yet",
    "relocate.pinned_skipped": "a folio that may be pinned is passed over",
    "relocate.undo_begin": "relocation is about to be undone, nothing undone yet",
    "relocate.vma_split": "the destination is cut where relocation stopped, no page table moved",
    # remapping pages of files
    "remap_file_pages.seen": "the VMA is known, the lock for reading dropped, that for writing not taken",
    # rmap walks
    "rmap.walk_next": "the next VMA of an rmap walk is about to be visited",
    # swap
    "swapin.allocated": "a folio for a swapped-out page is allocated, not in the swap cache, no lock held",
    # huge pages
    "thp.folio_split": "a large folio has become small ones, all mapped again",
    "thp.folio_unmapped": "a large folio that is to be split has migration entries, its references not looked at",
    "thp.pmd_cleared": "the entry of a file's huge page is cleared and flushed; the page is still counted as mapped",
    "thp.pmd_invalidated": "the entry of a huge page is not present any more, and flushed; not replaced yet",
    "thp.pmd_split": "a table of PTEs has taken the place of a huge page's entry",
    "thp.split_begin": "a large folio is to be split; it has no unexpected references, and is still mapped",
    # userfaultfd
    "uffd.copied": "a new page has the source's contents, and is not mapped yet",
    "uffd.fault": "an access meets what a userfaultfd is told of, no page-table lock held",
    "uffd.file_held": "a call on a userfaultfd holds its file, which may be closed, and no lock",
    "uffd.folio_allocated": "a page that is to be filled is allocated, under mmap_lock, the source not read",
    "uffd.folio_locked": "a page of the page cache that is to be mapped is locked and referenced",
    "uffd.in_page_cache": "a new page of a file of memory is in its page cache, locked, and mapped nowhere yet",
    "uffd.locked": "mmap_lock is held, for reading or writing as the call needs, nothing done yet",
    "uffd.pte_locked": "the entry to fill is empty, under the page-table lock",
    "uffd.source_missing": "the source of a copy has to be faulted in: mmap_lock is dropped",
    "uffd_move.entries_read": "the entries of source and destination have been read, no lock held but mmap_lock",
    "uffd_move.folio_found": "the page to move is referenced, and not locked: somebody else has the lock",
    "uffd_move.folio_locked": "the page to move is locked and referenced, no page-table lock held",
    "uffd_move.folio_moved": "a page has the destination's mapping and index, mapped neither there nor here",
    "uffd_move.ptes_locked": "both page-table locks are held, the entries unchanged",
    "uffd_move.pte_cleared": "the entry of the page to move is cleared, not flushed; its pins not looked at again",
    "uffd_move.pte_moved": "an entry is in its new place, the old one not flushed",
    "uffd_move.swap_folio_found": "the page to move is in the swap cache, referenced, not locked",
    # unmapping for reclaim
    "unmap.page_unmapped": "a swap entry has taken the place of a page (a file's page: nothing has)",
    "unmap.pte_cleared": "an entry is cleared and flushed, the exclusive mark not looked at yet",
    # giving back what GUP took
    "unpin.dirtied": "the folio is dirty if it was pinned for writing; it is not unpinned yet",
    # zapping
    "zap.before_flush": "entries are cleared, TLBs not flushed",
    "zap.flushed": "TLBs are flushed, the pages not freed",
    "zap.pmd_cleared": "the entry of a huge page is cleared, its mapping still counted",
    "zap.pte_cleared": "an entry is cleared, its mapping still counted",
    "zap.pte_locked": "the page-table lock is held",
    "zap.table_empty": "a table has no entry left and may be freed; no lock is held",
}
