"""Filling pages of files of memory for userfaultfd (the userfaultfd part of mm/shmem.c).

A page goes into the page cache and into the page table of who asked, in one call, under its folio lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT
from emulator.mm import shmem, swap, userfaultfd_fill
from emulator.mm import vma as vma_ops
from emulator.mm_types import Folio
from emulator.uapi import EEXIST, EFAULT, ENOMEM

if TYPE_CHECKING:
    from emulator.fs_types import AddressSpace
    from emulator.hw.pgtable import PageTable
    from emulator.mm_types import VmAreaStruct


def shmem_mfill_atomic_pte(fill: userfaultfd_fill.Fill, pmd: PageTable, area: VmAreaStruct) -> int | str:
    """Give the file a page of its own there, a copy or one of zeros, and map it. The page is charged first.

    0; -ENOMEM, also for a page that may not be charged; -EFAULT behind the end; -EEXIST: the file has one, in swap
    perhaps, or the entry is not empty; -EAGAIN; OUTSIDE.
    """
    m = fill.mm.machine
    assert area.vm_file is not None
    mapping = area.vm_file.f_mapping
    if not shmem.shmem_acct_blocks(m, mapping):
        if fill.prepared is not None:
            swap.folio_put(m, fill.prepared)
            fill.prepared = None
        return -ENOMEM
    folio = userfaultfd_fill.filled_folio(fill)
    if not isinstance(folio, Folio):
        shmem.shmem_unacct_blocks(m, mapping, 1)
        return folio
    m.sched.point("uffd.copied")
    folio.lock.lock()
    error = add_and_map(fill, pmd, area, mapping, folio)
    folio.lock.unlock()
    if error:
        swap.folio_put(m, folio)
        shmem.shmem_unacct_blocks(m, mapping, 1)
    return error


def add_and_map(
    fill: userfaultfd_fill.Fill, pmd: PageTable, area: VmAreaStruct, mapping: AddressSpace, folio: Folio
) -> int:
    """Put a locked folio into the page cache, and map it; out again where that fails. 0 or -errno."""
    index = vma_ops.linear_page_index(area, fill.addr)
    if index << PAGE_SHIFT >= mapping.size:
        return -EFAULT
    if index in mapping.pages or index in mapping.swapped:
        return -EEXIST
    shmem.add_folio(mapping, folio, index)
    fill.mm.machine.sched.point("uffd.in_page_cache")
    error = userfaultfd_fill.mfill_atomic_install_pte(pmd, area, fill.addr, folio, 0, fill.wp)
    if error:
        shmem.remove_folio(fill.mm.machine, mapping, folio)
    return error
