"""UFFDIO_COPY, ZEROPAGE, CONTINUE and POISON: filling empty pages (the mfill half of mm/userfaultfd.c).

Anonymous memory and private mappings of files of memory get pages of their own; what a shared mapping gets goes into
the page cache too (``shmem_userfaultfd.py``). Addresses and lengths are bytes. Where Linux may take a VMA's own lock,
mmap_lock is held for reading.
"""

from __future__ import annotations

from typing import Final

from emulator.fs_types import AddressSpace
from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import (
    ACCESSED,
    DIRTY,
    MARKER_POISON,
    PFN_SHIFT,
    RW,
    SOFTLEAF_MARKER,
    SPECIAL,
    UFFD_WP,
    USER,
    is_guard,
    mk_pte,
    mk_softleaf,
    softleaf_type,
)
from emulator.mm import (
    fault,
    memory,
    mlock_folio,
    pagewalk,
    pgtable_generic,
    rmap_counts,
    shmem,
    shmem_userfaultfd,
    swap,
    userfaultfd,
    userfaultfd_k,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import (
    VM_SHARED,
    VM_UFFD_WP,
    VM_WRITE,
    Folio,
    MmStruct,
    PageContent,
    UserfaultfdCtx,
    VmAreaStruct,
)
from emulator.uapi import EAGAIN, EEXIST, EFAULT, EINVAL, ENOMEM

MFILL_ATOMIC_COPY: Final = 0
MFILL_ATOMIC_ZEROPAGE: Final = 1
MFILL_ATOMIC_POISON: Final = 2
MFILL_ATOMIC_CONTINUE: Final = 3

OUTSIDE: Final = "outside"  # the source cannot be read without a fault: drop the lock first


class Fill:
    """One call that fills [start, end) of the address space, where it stands, and the page it is about."""

    __slots__ = ("addr", "end", "mm", "mode", "prepared", "src", "start", "wp")

    def __init__(self, mm: MmStruct, start: int, length: int, mode: int, src: int, wp: bool) -> None:
        self.mm = mm
        self.start = start
        self.end = start + length
        self.addr = start
        self.mode = mode  # MFILL_ATOMIC_*
        self.src = src  # COPY: what is to be at ``start``
        self.wp = wp  # COPY, CONTINUE: protected from the beginning
        self.prepared: Folio | None = None  # read from the source outside of the lock

    def source(self) -> int:
        """The address of the page that is to be copied next."""
        return self.src + self.addr - self.start


# ---- what to fill with


def copy_from_user_nofault(fill: Fill) -> PageContent | None:
    """The source page as the page tables have it now; None where a fault would be needed."""
    mm = fill.mm
    entry = fault.hardware_walk(mm, fill.source(), USER)
    if not entry:
        return None
    pfn = entry >> PFN_SHIFT
    folio = mm.machine.phys.frames[pfn]
    return dict(folio.content[pfn - folio.pfn])


def copy_from_user(fill: Fill, folio: Folio) -> int:
    """Read the source page into ``folio``, faulting it in. No lock is held. 0 or -EFAULT, whatever the reason."""
    got = fault.access(fill.mm, fill.source(), 0)
    if isinstance(got, int):
        return -EFAULT
    source, page = got
    folio.content[0] = dict(source.content[page])
    return 0


def filled_folio(fill: Fill) -> Folio | int | str:
    """A new folio with what is to be at the next page. -ENOMEM; OUTSIDE: it waits in ``fill`` for its contents."""
    m = fill.mm.machine
    folio = fill.prepared
    fill.prepared = None
    if folio is not None:
        return folio
    if m.should_fail("folio_alloc"):
        return -ENOMEM
    folio = m.phys.alloc(0)
    m.sched.point("uffd.folio_allocated")
    if fill.mode == MFILL_ATOMIC_COPY:
        content = copy_from_user_nofault(fill)
        if content is None:
            fill.prepared = folio
            return OUTSIDE
        folio.content[0] = content
    return folio


# ---- entries


def mfill_file_over_size(area: VmAreaStruct, addr: int) -> bool:
    """Does the address lie behind the end of the VMA's file?"""
    file = area.vm_file
    return file is not None and vma_ops.linear_page_index(area, addr) << PAGE_SHIFT >= file.f_mapping.size


def may_be_filled(area: VmAreaStruct, entry: int) -> bool:
    """Is there nothing but a marker? Before 7.0 the marker of a guard region is no obstacle either."""
    if not entry:
        return True
    if softleaf_type(entry) != SOFTLEAF_MARKER:
        return False
    return area.vm_mm.machine.profile.uffd_copy_fills_guards or not is_guard(entry)


def mfill_atomic_install_pte(
    pmd: PageTable, area: VmAreaStruct, addr: int, folio: Folio, page: int, wp: bool
) -> int:
    """Map page number ``page`` of a folio, new or of the page cache, where nothing is, a marker at most.

    0; -EAGAIN (no table any more), -EFAULT (behind the end of the file), -EEXIST.
    """
    m = area.vm_mm.machine
    cached = isinstance(folio.mapping, AddressSpace)
    flags = vma_ops.vm_page_prot(area.vm_flags) | ACCESSED | DIRTY
    if area.vm_flags & VM_WRITE and not (cached and not area.vm_flags & VM_SHARED):
        flags |= RW
    if wp:
        flags = flags & ~RW | UFFD_WP
    table = pagewalk.pte_offset_map_lock(pmd, pgtable_generic.slot_of(area.vm_mm, addr, LEVEL_PMD))
    if table is None:
        return -EAGAIN
    slot = pgtable_generic.slot_of(area.vm_mm, addr, LEVEL_PTE)
    entry: int = table.entries.get(slot, 0)  # type: ignore[assignment]
    error = -EFAULT if mfill_file_over_size(area, addr) else 0 if may_be_filled(area, entry) else -EEXIST
    if not error:
        m.sched.point("uffd.pte_locked")
        if cached:
            rmap_counts.folio_add_file_rmap_pte(folio, page, area)
        else:
            rmap_counts.folio_add_new_anon_rmap(folio, area, addr, True)
            mlock_folio.folio_add_lru_vma(folio, area)
        table.set(slot, mk_pte(folio.pfn + page, flags))
    table.ptl.unlock()
    return error


# ---- one page each: 0, -errno, or OUTSIDE


def mfill_atomic_pte_copy(fill: Fill, pmd: PageTable, area: VmAreaStruct) -> int | str:
    """Fill one page with a copy that is the process's own."""
    m = fill.mm.machine
    folio = filled_folio(fill)
    if not isinstance(folio, Folio):
        return folio
    m.sched.point("uffd.copied")
    error = mfill_atomic_install_pte(pmd, area, fill.addr, folio, 0, fill.wp)
    if error:
        swap.folio_put(m, folio)
    return error


def mfill_atomic_pte_entry(fill: Fill, pmd: PageTable, area: VmAreaStruct, entry: int) -> int:
    """Put an entry without a page of its own where there is none, not even a marker."""
    table = pagewalk.pte_offset_map_lock(pmd, pgtable_generic.slot_of(fill.mm, fill.addr, LEVEL_PMD))
    if table is None:
        return -EAGAIN
    slot = pgtable_generic.slot_of(fill.mm, fill.addr, LEVEL_PTE)
    error = -EFAULT if mfill_file_over_size(area, fill.addr) else -EEXIST if table.entries.get(slot, 0) else 0
    if not error:
        fill.mm.machine.sched.point("uffd.pte_locked")
        table.set(slot, entry)
    table.ptl.unlock()
    return error


def mfill_atomic_pte_continue(fill: Fill, pmd: PageTable, area: VmAreaStruct) -> int:
    """Map what the file has there. -EINVAL behind its end; -EFAULT where it has nothing."""
    m = fill.mm.machine
    assert area.vm_file is not None
    mapping = area.vm_file.f_mapping
    index = vma_ops.linear_page_index(area, fill.addr)
    if index << PAGE_SHIFT >= mapping.size:
        return -EINVAL
    found = shmem.shmem_get_folio(m, mapping, index, allocate=False)
    if isinstance(found, int):
        return -ENOMEM if found == memory.VM_FAULT_OOM else -EFAULT
    m.sched.point("uffd.folio_locked")
    error = mfill_atomic_install_pte(pmd, area, fill.addr, found, index - found.index, fill.wp)
    found.lock.unlock()
    if error:
        swap.folio_put(m, found)
    return error


def mfill_atomic_pte(fill: Fill, pmd: PageTable, area: VmAreaStruct) -> int | str:
    """One page, in the way of the call. A private mapping of a file gets pages of its own at once."""
    if fill.mode == MFILL_ATOMIC_CONTINUE:
        return mfill_atomic_pte_continue(fill, pmd, area)
    if fill.mode == MFILL_ATOMIC_POISON:
        return mfill_atomic_pte_entry(fill, pmd, area, mk_softleaf(SOFTLEAF_MARKER, MARKER_POISON))
    if area.vm_flags & VM_SHARED:
        return shmem_userfaultfd.shmem_mfill_atomic_pte(fill, pmd, area)
    if fill.mode == MFILL_ATOMIC_COPY:
        return mfill_atomic_pte_copy(fill, pmd, area)
    prot = vma_ops.vm_page_prot(area.vm_flags) | ACCESSED | SPECIAL
    return mfill_atomic_pte_entry(fill, pmd, area, mk_pte(fill.mm.machine.phys.zero_folio.pfn, prot))


# ---- the call


def mfill_pmd(fill: Fill) -> PageTable | int:
    """The PMD table for the next page, with a PTE table below. -EEXIST: a huge page is there; -ENOMEM."""
    mm = fill.mm
    pmd = pgtable_generic.alloc_table(mm, fill.addr, LEVEL_PMD)
    if pmd is None:
        return -ENOMEM
    if pgtable_generic.alloc_table(mm, fill.addr, LEVEL_PTE) is not None:
        return pmd
    entry = pmd.entries.get(pgtable_generic.slot_of(mm, fill.addr, LEVEL_PMD), 0)
    return -EEXIST if entry else -ENOMEM


def mfill_pages(fill: Fill, area: VmAreaStruct) -> int | str:
    """Fill one page after the other under the lock. 0: all are done; the errno of the first that cannot be; OUTSIDE."""
    if fill.wp and not area.vm_flags & VM_UFFD_WP:
        return -EINVAL
    if not userfaultfd_k.vma_is_shmem(area):
        if not vma_ops.vma_is_anonymous(area) or fill.mode == MFILL_ATOMIC_CONTINUE:
            return -EINVAL
    while fill.addr < fill.end:
        pmd = mfill_pmd(fill)
        error = pmd if isinstance(pmd, int) else mfill_atomic_pte(fill, pmd, area)
        if error:
            return error
        fill.addr += PAGE_SIZE
    return 0


def mfill_atomic(fill: Fill) -> int:
    """Fill the range. The bytes filled, or the errno of the first page.

    A source page that has to be faulted in is read without the lock, and the destination looked up anew.
    """
    m = fill.mm.machine
    while True:
        area = userfaultfd.uffd_mfill_lock(fill.mm, fill.start, fill.end - fill.start)
        if isinstance(area, int):
            error: int | str = area
            break
        error = mfill_pages(fill, area)
        fill.mm.mmap_lock.up_read()
        if error != OUTSIDE:
            break
        folio = fill.prepared
        assert folio is not None
        m.sched.point("uffd.source_missing")
        error = copy_from_user(fill, folio)
        if error:
            break
    if fill.prepared is not None:
        swap.folio_put(m, fill.prepared)
    assert isinstance(error, int)
    return fill.addr - fill.start or error


def mfill_atomic_copy(ctx: UserfaultfdCtx, dst: int, src: int, length: int, wp: bool) -> int:
    return mfill_atomic(Fill(ctx.mm, dst, length, MFILL_ATOMIC_COPY, src, wp))


def mfill_atomic_zeropage(ctx: UserfaultfdCtx, start: int, length: int) -> int:
    return mfill_atomic(Fill(ctx.mm, start, length, MFILL_ATOMIC_ZEROPAGE, 0, False))


def mfill_atomic_continue(ctx: UserfaultfdCtx, start: int, length: int, wp: bool) -> int:
    return mfill_atomic(Fill(ctx.mm, start, length, MFILL_ATOMIC_CONTINUE, 0, wp))


def mfill_atomic_poison(ctx: UserfaultfdCtx, start: int, length: int) -> int:
    return mfill_atomic(Fill(ctx.mm, start, length, MFILL_ATOMIC_POISON, 0, False))
