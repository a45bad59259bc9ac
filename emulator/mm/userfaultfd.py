"""Filling, write-protecting, registering: what userfaultfd does to pages and VMAs (mm/userfaultfd.c).

Moving pages, which mm/userfaultfd.c does too, stands in ``userfaultfd_pages.py``; contexts and the checks of the ioctls
in ``fs_userfaultfd.py``. Addresses and lengths are bytes. Where Linux may take a VMA's own lock, mmap_lock is held for
reading.
"""

from __future__ import annotations

from typing import Final

from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_SIZE
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
    mlock_folio,
    mprotect,
    pagewalk,
    pgtable_generic,
    rmap,
    rmap_counts,
    swap,
    userfaultfd_k,
    vma_modify,
)
from emulator.mm import vma as vma_ops
from emulator.mm_types import (
    VM_SHARED,
    VM_UFFD_FLAGS,
    VM_UFFD_WP,
    VM_WRITE,
    Folio,
    MmStruct,
    PageContent,
    UserfaultfdCtx,
    VmAreaStruct,
)
from emulator.uapi import EAGAIN, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM

MFILL_ATOMIC_COPY: Final = 0
MFILL_ATOMIC_ZEROPAGE: Final = 1
MFILL_ATOMIC_POISON: Final = 2

OUTSIDE: Final = "outside"  # the source cannot be read without a fault: drop the lock first


# ---- finding VMAs


def find_vma_and_prepare_anon(mm: MmStruct, addr: int) -> VmAreaStruct | int:
    """The VMA at ``addr``, which becomes faulted, whatever it is used for then. -ENOENT, -ENOMEM."""
    area = mm.mm_mt.lookup(addr)
    if area is None:
        return -ENOENT
    if not area.vm_flags & VM_SHARED and rmap.anon_vma_prepare(area):
        return -ENOMEM
    return area


def uffd_mfill_lock(mm: MmStruct, start: int, length: int) -> VmAreaStruct | int:
    """Lock the one registered VMA that holds the whole destination. With an error nothing is locked."""
    mm.mmap_lock.down_read()
    mm.machine.sched.point("uffd.locked")
    area = find_vma_and_prepare_anon(mm, start)
    if not isinstance(area, int) and (start + length > area.vm_end or area.uffd_ctx is None):
        area = -ENOENT
    if isinstance(area, int):
        mm.mmap_lock.up_read()
    return area


# ---- filling empty pages


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
        self.wp = wp  # COPY: protected from the beginning
        self.prepared: Folio | None = None  # read from the source outside of the lock

    def source(self) -> int:
        """The address of the page that is to be copied next."""
        return self.src + self.addr - self.start


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


def may_be_filled(area: VmAreaStruct, entry: int) -> bool:
    """Is there nothing but a marker? Before 7.0 the marker of a guard region is no obstacle either."""
    if not entry:
        return True
    if softleaf_type(entry) != SOFTLEAF_MARKER:
        return False
    return area.vm_mm.machine.profile.uffd_copy_fills_guards or not is_guard(entry)


def mfill_atomic_install_pte(
    pmd: PageTable, area: VmAreaStruct, addr: int, folio: Folio, wp: bool
) -> int:
    """Map a new page where nothing is, a marker at most. 0, -EEXIST, -EAGAIN (no table any more)."""
    m = area.vm_mm.machine
    flags = vma_ops.vm_page_prot(area.vm_flags) | ACCESSED | DIRTY
    if wp:
        flags |= UFFD_WP
    elif area.vm_flags & VM_WRITE:
        flags |= RW
    table = pagewalk.pte_offset_map_lock(pmd, pgtable_generic.slot_of(area.vm_mm, addr, LEVEL_PMD))
    if table is None:
        return -EAGAIN
    slot = pgtable_generic.slot_of(area.vm_mm, addr, LEVEL_PTE)
    entry: int = table.entries.get(slot, 0)  # type: ignore[assignment]
    error = 0 if may_be_filled(area, entry) else -EEXIST
    if not error:
        m.sched.point("uffd.pte_locked")
        rmap_counts.folio_add_new_anon_rmap(folio, area, addr, True)
        mlock_folio.folio_add_lru_vma(folio, area)
        table.set(slot, mk_pte(folio.pfn, flags))
    table.ptl.unlock()
    return error


def mfill_atomic_pte_copy(fill: Fill, pmd: PageTable, area: VmAreaStruct) -> int | str:
    """Fill one page with a copy. OUTSIDE: the new page waits in ``fill`` for its contents; else 0 or -errno."""
    m = fill.mm.machine
    folio = fill.prepared
    fill.prepared = None
    if folio is None:
        if m.should_fail("folio_alloc"):
            return -ENOMEM
        folio = m.phys.alloc(0)
        m.sched.point("uffd.folio_allocated")
        content = copy_from_user_nofault(fill)
        if content is None:
            fill.prepared = folio
            return OUTSIDE
        folio.content[0] = content
    m.sched.point("uffd.copied")
    error = mfill_atomic_install_pte(pmd, area, fill.addr, folio, fill.wp)
    if error:
        swap.folio_put(m, folio)
    return error


def mfill_atomic_pte_entry(fill: Fill, pmd: PageTable, area: VmAreaStruct, entry: int) -> int:
    """Put an entry without a page of its own where there is none, not even a marker. 0, -EEXIST, -EAGAIN."""
    table = pagewalk.pte_offset_map_lock(pmd, pgtable_generic.slot_of(fill.mm, fill.addr, LEVEL_PMD))
    if table is None:
        return -EAGAIN
    slot = pgtable_generic.slot_of(fill.mm, fill.addr, LEVEL_PTE)
    error = -EEXIST if table.entries.get(slot, 0) else 0
    if not error:
        fill.mm.machine.sched.point("uffd.pte_locked")
        table.set(slot, entry)
    table.ptl.unlock()
    return error


def mfill_atomic_pte(fill: Fill, pmd: PageTable, area: VmAreaStruct) -> int | str:
    """One page, in the way of the call."""
    if fill.mode == MFILL_ATOMIC_COPY:
        return mfill_atomic_pte_copy(fill, pmd, area)
    if fill.mode == MFILL_ATOMIC_POISON:
        return mfill_atomic_pte_entry(fill, pmd, area, mk_softleaf(SOFTLEAF_MARKER, MARKER_POISON))
    prot = vma_ops.vm_page_prot(area.vm_flags) | ACCESSED | SPECIAL
    return mfill_atomic_pte_entry(fill, pmd, area, mk_pte(fill.mm.machine.phys.zero_folio.pfn, prot))


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
    if not vma_ops.vma_is_anonymous(area):
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
        area = uffd_mfill_lock(fill.mm, fill.start, fill.end - fill.start)
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


def mfill_atomic_poison(ctx: UserfaultfdCtx, start: int, length: int) -> int:
    return mfill_atomic(Fill(ctx.mm, start, length, MFILL_ATOMIC_POISON, 0, False))


# ---- write protection


def uffd_wp_range(area: VmAreaStruct, start: int, length: int, enable_wp: bool) -> int:
    """Protect what is mapped in part of a VMA, or allow writes again. 0 or -ENOMEM (no table for markers)."""
    if enable_wp:
        flags = mprotect.MM_CP_UFFD_WP
    else:
        flags = mprotect.MM_CP_UFFD_WP_RESOLVE
        if area.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
            flags |= mprotect.MM_CP_TRY_CHANGE_WRITABLE
    return mprotect.change_protection(area, start, start + length, flags)


def mwriteprotect_range(ctx: UserfaultfdCtx, start: int, length: int, enable_wp: bool) -> int:
    """Every VMA in the range, holes left out. -ENOENT at the first one that is not registered for it, or for none."""
    mm = ctx.mm
    mm.mmap_lock.down_read()
    mm.machine.sched.point("uffd.locked")
    end = start + length
    error = -ENOENT
    for area in mm.mm_mt.overlapping(start, end):
        if not userfaultfd_k.userfaultfd_wp(area):
            error = -ENOENT
            break
        first, last = max(area.vm_start, start), min(area.vm_end, end)
        error = uffd_wp_range(area, first, last - first, enable_wp)
        if error:
            break
    mm.mmap_lock.up_read()
    return error


# ---- registering VMAs


def userfaultfd_set_ctx(area: VmAreaStruct, ctx: UserfaultfdCtx | None, vm_flags: int) -> None:
    """Register a VMA in the modes of ``vm_flags``, and no other."""
    area.uffd_ctx = ctx
    area.vm_flags = area.vm_flags & ~VM_UFFD_FLAGS | vm_flags


def userfaultfd_reset_ctx(area: VmAreaStruct) -> None:
    """The VMA is registered no longer. What is protected in its page tables stays so, without meaning."""
    userfaultfd_set_ctx(area, None, 0)


def userfaultfd_clear_vma(
    prev: VmAreaStruct | None, area: VmAreaStruct, start: int, end: int
) -> VmAreaStruct | int:
    """End the registration of [start, end) of one VMA: the VMA that holds it afterwards, or -ENOMEM."""
    if userfaultfd_k.userfaultfd_wp(area):
        uffd_wp_range(area, start, end - start, False)
    whole = start == area.vm_start and end == area.vm_end
    changed = vma_modify.vma_modify_flags_uffd(
        prev, area, start, end, area.vm_flags & ~VM_UFFD_FLAGS, None, give_up_on_oom=whole
    )
    if not isinstance(changed, int):
        userfaultfd_reset_ctx(changed)
    return changed


def userfaultfd_register_range(
    ctx: UserfaultfdCtx, area: VmAreaStruct, vm_flags: int, start: int, end: int
) -> int:
    """Register every VMA from ``area`` on in [start, end). mmap_lock is held for writing. 0 or -ENOMEM."""
    mm = ctx.mm
    prev = area if area.vm_start < start else vma_ops.vma_prev(area)
    following: VmAreaStruct | None = area
    while following is not None and following.vm_start < end:
        if following.uffd_ctx is not ctx or following.vm_flags & vm_flags != vm_flags:
            start = max(start, following.vm_start)
            new_flags = following.vm_flags & ~VM_UFFD_FLAGS | vm_flags
            changed = vma_modify.vma_modify_flags_uffd(
                prev, following, start, min(end, following.vm_end), new_flags, ctx, give_up_on_oom=False
            )
            if isinstance(changed, int):
                return changed
            userfaultfd_set_ctx(changed, ctx, vm_flags)
            following = changed
        prev = following
        start = following.vm_end
        following = mm.mm_mt.find(start)
    return 0


def userfaultfd_release_all(mm: MmStruct, ctx: UserfaultfdCtx) -> None:
    """The context is closed: no VMA is registered with it any more."""
    mm.mmap_lock.down_write()
    mm.machine.sched.point("uffd.locked")
    prev: VmAreaStruct | None = None
    area = mm.mm_mt.find(0)
    while area is not None:
        if area.uffd_ctx is ctx:
            changed = userfaultfd_clear_vma(prev, area, area.vm_start, area.vm_end)
            assert not isinstance(changed, int)  # a whole VMA needs no split
            area = changed
        prev = area
        area = mm.mm_mt.find(area.vm_end)
    mm.mmap_lock.up_write()
