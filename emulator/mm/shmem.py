"""Files of memory (mm/shmem.c): what stands behind shared anonymous memory, and behind memfds.

A page is in the page cache, or in swap, of which its file keeps the slot (page tables say nothing of it), or nowhere:
then it holds zeros. Faults bring small folios only, as with shmem_enabled=never; a collapse makes huge ones, and
holes in these leave folios of sizes between. No quotas, no seals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.fs_types import AddressSpace, File, VmOps
from emulator.geometry import PAGE_SHIFT
from emulator.mm import fs_userfaultfd, memory, mmap, swap, swap_state, truncate, userfaultfd_k, util
from emulator.mm import vma as vma_ops
from emulator.mm_types import VM_NORESERVE, Folio, MmStruct, VmAreaStruct
from emulator.uapi import ENOMEM
from emulator.workload import shared_memory, token

if TYPE_CHECKING:

    from emulator.machine import Machine

SHMEM_VM_OPS: Final = VmOps("shmem")
SHMEM_ANON_VM_OPS: Final = VmOps("shmem_anon")


def shmem_mapping(folio: Folio) -> AddressSpace | None:
    """The file of memory whose page cache holds the folio; None: it is in none."""
    mapping = folio.mapping
    return mapping if isinstance(mapping, AddressSpace) and mapping.shmem else None


def vma_is_anon_shmem(area: VmAreaStruct) -> bool:
    """Is it a mapping of a file of memory that is in no folder: shared anonymous memory, or a memfd?"""
    return area.vm_ops is SHMEM_ANON_VM_OPS


def shmem_mmap(area: VmAreaStruct, mapping: AddressSpace) -> None:
    """A file of memory is mapped by what ``area`` is to be."""
    area.vm_ops = SHMEM_ANON_VM_OPS if mapping.unlinked else SHMEM_VM_OPS


# ---- accounting (pages)


def shmem_acct_size(mm: MmStruct, mapping: AddressSpace) -> bool:
    """Charge a new file as a whole, unless its pages are charged one by one. False: more than may be committed."""
    return mapping.noreserve or not mmap.security_vm_enough_memory(mm, mapping.size >> PAGE_SHIFT)


def shmem_acct_blocks(m: Machine, mapping: AddressSpace) -> bool:
    """Charge one more page, if they are charged one by one. False: more than may be committed.

    To nobody: whoever touches the page first, its size does not count here.
    """
    return not mapping.noreserve or not util.vm_enough_memory(m, None, 1)


def shmem_unacct_blocks(m: Machine, mapping: AddressSpace, pages: int) -> None:
    """So many pages fewer. Of a clean page that reclaim drops Linux learns later, when it looks at the file again."""
    if mapping.noreserve:
        m.committed -= pages


# ---- files


def shmem_zero_setup(area: VmAreaStruct) -> int:
    """Give a VMA of shared anonymous memory its file, which is as long as it is. 0 or -ENOMEM.

    The file comes with a reference for the caller.
    """
    mm = area.vm_mm
    m = mm.machine
    label = shared_memory(token(m.step_index, m.sched.current.index))
    mapping = AddressSpace(
        label,
        area.vm_end - area.vm_start,
        m.sched.rwsem("i_mmap_rwsem", m.sched),
        shmem=True,
        noreserve=bool(area.vm_flags & VM_NORESERVE),
        unlinked=True,
    )
    if not shmem_acct_size(mm, mapping):
        return -ENOMEM
    if m.should_fail("shmem_inode_alloc"):
        if not mapping.noreserve:
            m.committed -= mapping.size >> PAGE_SHIFT
        return -ENOMEM
    m.shared_memory[label] = mapping
    area.vm_file = File(label, mapping, "/dev/zero")
    area.vm_ops = SHMEM_ANON_VM_OPS
    return 0


def shmem_put_file(m: Machine, file: File) -> None:
    """After a user of the file has gone: with the last one shared memory goes (fput)."""
    if file.f_mapping.shmem and not file.f_mapping.i_mmap and not file.f_count:
        shmem_evict_inode(m, file.f_mapping)


def shmem_evict_inode(m: Machine, mapping: AddressSpace) -> None:
    """Nobody can reach the file any more."""
    del m.shared_memory[mapping.label]
    if not mapping.noreserve:
        m.committed -= mapping.size >> PAGE_SHIFT
    shmem_undo_range(m, mapping, 0, 1 + max([*mapping.pages, *mapping.swapped], default=0))


def shmem_has_pages(mapping: AddressSpace, first: int, last: int) -> bool:
    """Has the file any of pages [first, last), in the page cache or in swap?"""
    return any(index in mapping.pages or index in mapping.swapped for index in range(first, last))


def shmem_undo_range(m: Machine, mapping: AddressSpace, first: int, last: int) -> None:
    """Throw pages [first, last) away, wherever they are; a large folio that cannot be split keeps them, as zeros."""
    kept: dict[int, None] = {}  # that are zeros now
    for index in sorted(index for index in {**mapping.pages, **mapping.swapped} if first <= index < last):
        while index not in kept and (index in mapping.pages or index in mapping.swapped):
            folio = mapping.pages.get(index)
            if folio is None:
                shmem_free_swap(m, mapping, index, first, last)
                continue
            swap.folio_get(folio)
            folio.lock.lock()
            if folio.mapping is mapping:  # else it was swapped out, split or migrated meanwhile
                pages = range(max(first, folio.index), min(last, folio.index + folio.nr_pages))
                if not truncate.truncate_inode_partial_folio(m, mapping, folio, pages):
                    kept.update(dict.fromkeys(pages))
            folio = m.phys.frames[folio.pfn]
            folio.lock.unlock()
            swap.folio_put(m, folio)


def shmem_free_swap(m: Machine, mapping: AddressSpace, index: int, first: int, last: int) -> None:
    """Give the swap slot of a page back. One of a large folio that the range has a part of is read first, and stays."""
    head = shmem_swap_head(mapping, index)
    order = mapping.swapped_large.get(head, 0)
    if order and (head < first or head + (1 << order) > last):
        got = shmem_get_folio(m, mapping, index)
        if isinstance(got, Folio):
            got.lock.unlock()
            swap.folio_put(m, got)
            return
        mapping.swapped_large.pop(head, None)  # no memory: page by page
        return
    mapping.swapped_large.pop(head, None)
    for i in range(head, head + (1 << order)):
        slot = mapping.swapped.pop(i)
        shmem_unacct_blocks(m, mapping, 1)
        swap_state.swap_put_entries_direct(m, slot)


def shmem_swap_head(mapping: AddressSpace, index: int) -> int:
    """The first page of the large folio that was swapped out as a whole with this page; the page itself if none was."""
    for head, order in mapping.swapped_large.items():
        if head <= index < head + (1 << order):
            return head
    return index


def remove_folio(m: Machine, mapping: AddressSpace, folio: Folio) -> None:
    """filemap_remove_folio: a locked folio leaves the page cache, whose references go."""
    for index in range(folio.index, folio.index + folio.nr_pages):
        del mapping.pages[index]
    folio.mapping = None
    swap.folio_put_refs(m, folio, folio.nr_pages)


def add_folio(mapping: AddressSpace, folio: Folio, index: int) -> None:
    """shmem_add_to_page_cache: a locked folio stands for the pages from ``index`` on, with a reference for each."""
    folio.mapping = mapping
    folio.index = index
    for i in range(index, index + folio.nr_pages):
        mapping.pages[i] = folio
    swap.folio_ref_add(folio, folio.nr_pages)


# ---- pages


def shmem_fault(vmf: memory.VmFault) -> Folio | int:
    """The page of the VMA's file that a fault is about, locked, with a reference. Else a VM_FAULT_* code."""
    area = vmf.vma
    assert area.vm_file is not None
    index = vma_ops.linear_page_index(area, vmf.address)
    return shmem_get_folio(vmf.m, area.vm_file.f_mapping, index, vmf=vmf)


def shmem_get_folio(
    m: Machine, mapping: AddressSpace, index: int, *, vmf: memory.VmFault | None = None, allocate: bool = True
) -> Folio | int:
    """shmem_get_folio_gfp: as ``shmem_fault``; a page that is nowhere is made, or (not ``allocate``) is SIGBUS.

    ``vmf``: the fault that asks; userfaultfd may have to be told instead.
    """
    while True:
        if index << PAGE_SHIFT >= mapping.size:
            return memory.VM_FAULT_SIGBUS
        folio = mapping.pages.get(index)
        slot = mapping.swapped.get(index)
        if vmf is not None and userfaultfd_k.userfaultfd_minor(vmf.vma) and (folio or slot is not None):
            return fs_userfaultfd.handle_userfault(vmf)
        if folio is None:
            if slot is None and not allocate:
                return memory.VM_FAULT_SIGBUS
            if slot is None and vmf is not None and userfaultfd_k.userfaultfd_missing(vmf.vma):
                return fs_userfaultfd.handle_userfault(vmf)
            if slot is None:
                made = shmem_alloc_and_add_folio(m, mapping, index)
            else:
                whole = vmf is None or not userfaultfd_k.userfaultfd_armed(vmf.vma)
                made = shmem_swapin_folio(m, mapping, index, slot, whole=whole)
            if made is not None:
                return made
            continue
        swap.folio_get(folio)
        m.sched.point("fault.file_folio_found")
        folio.lock.lock()
        if folio.mapping is mapping:
            return folio
        # swapped out, migrated or thrown away meanwhile
        folio.lock.unlock()
        swap.folio_put(m, folio)


def shmem_alloc_and_add_folio(m: Machine, mapping: AddressSpace, index: int) -> Folio | int | None:
    """A folio of zeros in the page cache, locked, with a reference for the caller; it is not dirty.

    A VM_FAULT_* code: no memory, or no more may be committed. None: somebody else was faster.
    """
    if m.should_fail("folio_alloc"):
        return memory.VM_FAULT_OOM
    folio = m.phys.alloc(0)
    folio.lock.lock()
    m.sched.point("shmem.folio_allocated")
    faster = index in mapping.pages or index in mapping.swapped
    if not faster and shmem_acct_blocks(m, mapping):
        add_folio(mapping, folio, index)
        return folio
    folio.lock.unlock()
    swap.folio_put(m, folio)
    return None if faster else memory.VM_FAULT_SIGBUS


# ---- swapping


def shmem_crosses_end(folio: Folio, mapping: AddressSpace) -> bool:
    """Does a folio begin in the file and end behind it? Then it is swapped out in small pages."""
    return folio.index << PAGE_SHIFT < mapping.size < (folio.index + folio.nr_pages) << PAGE_SHIFT


def shmem_writeout(m: Machine, folio: Folio, mapping: AddressSpace) -> bool:
    """Move a locked folio that nothing maps from the page cache to swap, and write it. False: there is no room."""
    if not swap_state.add_to_swap(m, folio):
        return False
    for i in range(folio.nr_pages):
        m.swap.get(folio.swap + i)
        mapping.swapped[folio.index + i] = folio.swap + i
    if folio.order:
        mapping.swapped_large[folio.index] = folio.order
    remove_folio(m, mapping, folio)
    m.sched.point("shmem.in_swap")
    swap_state.swap_writeout(m, folio)
    return True


def shmem_swap_alloc_folio(m: Machine, mapping: AddressSpace, index: int, slot: int, *, whole: bool) -> Folio | None:
    """Read a page that is swapped out. From a device that is memory itself with all that was swapped out with it.

    Not for who wants each page to have a fault of its own (not ``whole``). With a reference. None: no memory, or it is
    not there any more.
    """
    head = shmem_swap_head(mapping, index)
    order = mapping.swapped_large.get(head, 0)
    if order and whole and m.profile.swap_synchronous:
        folio = swap_state.read_large_folio(m, slot - (index - head), order)
        if folio is not None:
            return folio
    return swap_state.read_swap_cache_async(m, slot)


def shmem_swapin_folio(
    m: Machine, mapping: AddressSpace, index: int, slot: int, *, whole: bool
) -> Folio | int | None:
    """Page ``index`` comes back from swap: locked, with a reference. VM_FAULT_OOM; None: look again.

    A folio that is smaller than what was swapped out leaves the other pages to come back one by one.
    """
    folio = shmem_swap_alloc_folio(m, mapping, index, slot, whole=whole)
    if folio is None:
        return memory.VM_FAULT_OOM if mapping.swapped.get(index) == slot else None
    head = shmem_swap_head(mapping, index)
    if folio.order < mapping.swapped_large.get(head, 0):
        del mapping.swapped_large[head]
    m.sched.point("shmem.swapin_found")
    folio.lock.lock()
    if not swap_state.folio_matches_swap_entry(folio, slot) or mapping.swapped.get(index) != slot:
        folio.lock.unlock()
        swap.folio_put(m, folio)
        return None
    first = index - (slot - folio.swap)
    mapping.swapped_large.pop(first, None)
    for i in range(folio.nr_pages):
        m.swap.put(mapping.swapped.pop(first + i))
    add_folio(mapping, folio, first)
    swap_state.delete_from_swap_cache(m, folio)
    folio.dirty = True
    return folio


def shmem_swapin_range(m: Machine, mapping: AddressSpace, first: int, last: int) -> None:
    """MADV_WILLNEED: read pages [first, last) that are swapped out into the swap cache, and leave them there."""
    for index in sorted(index for index in mapping.swapped if first <= index < last):
        slot = mapping.swapped.get(index)
        folio = swap_state.read_swap_cache_async(m, slot) if slot is not None else None
        if folio is not None:
            swap.folio_put(m, folio)
