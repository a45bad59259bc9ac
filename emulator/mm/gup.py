"""get_user_pages: taking pages of a process for the kernel or a device (mm/gup.c).

GUP-fast walks the page tables with interrupts off and no lock: it reads an entry, takes the folio, and reads the
entry again; whoever unmaps clears the entry first and looks at the references afterwards. Where it cannot be
sure it falls back to GUP-slow, which takes mmap_lock and faults pages in. The walk stands in ``gup_lockless.py``.

One page a call. FOLL_FORCE, FOLL_REMOTE, gate pages and memory that cannot be pinned for long (ZONE_MOVABLE, CMA)
are not modelled. Addresses are bytes; functions give a ``Pin`` or -errno.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.errors import KernelBug
from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import DIRTY, PRESENT, PSE, RW, USER, pte_pfn
from emulator.mm import brk, fault, gup_lockless, memory, pagewalk, pgtable_generic, swap
from emulator.mm import vma as vma_ops
from emulator.mm_types import (
    GUP_PIN_COUNTING_BIAS,
    VM_IO,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Folio,
    MmStruct,
    Pin,
    VmAreaStruct,
)
from emulator.uapi import EFAULT, EHWPOISON, EINVAL, ENOMEM
from emulator.workload import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE

if TYPE_CHECKING:
    from emulator.machine import Machine

FOLL_GET: Final = 0x100  # internal: take a reference
FOLL_TOUCH: Final = 0x200  # internal: mark the page accessed, and dirty when for write
FOLL_MADV_POPULATE: Final = 0x400  # internal: errors as MADV_POPULATE_* reports them

EMLINK: Final = 31  # internal: the page must be unshared first
UNSHARE_MAX: Final = 16  # so often in vain: it never will be, whatever others do meanwhile
RETRY: Final = "retry"  # drop mmap_lock, wait for the migration of the page, look everything up again


# ---- references


def try_grab_folio(m: Machine, folio: Folio, flags: int) -> int:
    """Take one page of a folio that is stable (page-table lock held): 0 or -ENOMEM. Neither GET nor PIN: nothing."""
    if folio.refcount <= 0:
        m.warn("grab-of-free-folio", f"GUP grabs {folio}, whose reference count is {folio.refcount}", folio)
        return -ENOMEM
    if flags & FOLL_GET:
        swap.folio_ref_add(folio, 1)
    elif flags & FOLL_PIN and folio is not m.phys.zero_folio:
        if folio.order:
            swap.folio_ref_add(folio, 1)
            folio.pincount += 1
        else:
            swap.folio_ref_add(folio, GUP_PIN_COUNTING_BIAS)
    return 0


def gup_put_folio(m: Machine, folio: Folio, flags: int) -> None:
    """Give one page back that was taken with these flags."""
    refs = 1
    if flags & FOLL_PIN:
        if folio is m.phys.zero_folio:
            return
        if folio.order:
            if folio.pincount <= 0:
                raise KernelBug("pincount-underflow", f"{folio} unpinned more often than pinned", folio)
            folio.pincount -= 1
        else:
            refs = GUP_PIN_COUNTING_BIAS
    swap.folio_put_refs(m, folio, refs)


def gup_must_unshare(vma: VmAreaStruct | None, flags: int, folio: Folio, page: int) -> bool:
    """Must sharing of a page that is mapped read-only be broken before it may be pinned for reading?

    ``vma`` is None in GUP-fast, which then says yes where only the VMA could tell.
    """
    if flags & (FOLL_WRITE | FOLL_PIN) != FOLL_PIN:
        return False
    if not folio.anon:
        if not flags & FOLL_LONGTERM:
            return False
        return vma is None or is_cow_mapping(vma)
    return not folio.anon_exclusive >> page & 1


def is_cow_mapping(vma: VmAreaStruct) -> bool:
    return vma.vm_flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE


def sanity_check_pinned_page(m: Machine, folio: Folio, page: int) -> None:
    """A pinned anonymous page stays exclusive; the kernel with CONFIG_DEBUG_VM warns.

    A huge page that is mapped by a PMD has the mark on its first page for all of them.
    """
    if folio.anon and not folio.anon_exclusive & (1 | 1 << page):
        m.warn("pinned-not-exclusive", f"page {page} of {folio} is pinned and not exclusive", folio)


# ---- GUP-slow


def follow_page_pte(
    vma: VmAreaStruct, pmd: PageTable, pmd_slot: int, addr: int, flags: int
) -> Pin | int | None:
    """The page that a PTE maps at ``addr``. None: a fault is needed; -EMLINK: one that unshares."""
    pte = pagewalk.pte_offset_map_lock(pmd, pmd_slot)
    if pte is None:
        return None
    entry: int = pte.entries.get(pgtable_generic.slot_of(vma.vm_mm, addr, LEVEL_PTE), 0)  # type: ignore[assignment]
    got: Pin | int | None = None
    if entry & PRESENT and entry & USER and (not flags & FOLL_WRITE or entry & RW):
        got = grab_page(vma, entry, pte_pfn(entry), flags)
    pte.ptl.unlock()
    return got


def follow_huge_pmd(vma: VmAreaStruct, pmd: PageTable, slot: int, addr: int, flags: int) -> Pin | int | None:
    """As ``follow_page_pte`` for a huge page; the caller holds the lock of ``pmd``."""
    m = vma.vm_mm.machine
    entry: int = pmd.entries.get(slot, 0)  # type: ignore[assignment]
    if not entry & USER or (flags & FOLL_WRITE and not entry & RW):
        return None
    pfn = pte_pfn(entry) + ((addr & (m.geometry.pmd_size - 1)) >> PAGE_SHIFT)
    got = grab_page(vma, entry, pfn, flags)
    if isinstance(got, Pin) and flags & FOLL_TOUCH and flags & FOLL_WRITE and not entry & DIRTY:
        pmd.set(slot, entry | DIRTY)
    return got


def grab_page(vma: VmAreaStruct, entry: int, pfn: int, flags: int) -> Pin | int:
    """Take frame ``pfn``, which a suitable entry maps; page-table lock held."""
    m = vma.vm_mm.machine
    folio = m.phys.frames[pfn]
    page = pfn - folio.pfn
    if not entry & RW and gup_must_unshare(vma, flags, folio, 0 if entry & PSE else page):
        return -EMLINK
    if flags & FOLL_PIN:
        sanity_check_pinned_page(m, folio, page)
    error = try_grab_folio(m, folio, flags)
    if error:
        return error
    if flags & FOLL_TOUCH and flags & FOLL_WRITE and not entry & DIRTY:
        folio.dirty = True
    return Pin(folio, page, flags)


def follow_page_mask(vma: VmAreaStruct, addr: int, flags: int) -> Pin | int | None:
    """The page mapped at ``addr``, taken. None: a fault is needed; -EMLINK: one that unshares."""
    mm = vma.vm_mm
    pmd = pgtable_generic.find_table(mm, addr, LEVEL_PMD)
    if pmd is None:
        return None
    slot = pgtable_generic.slot_of(mm, addr, LEVEL_PMD)
    entry = pmd.entries.get(slot, 0)
    if not isinstance(entry, PageTable):
        if not entry & PRESENT:
            return None
        pmd.ptl.lock()
        entry = pmd.entries.get(slot, 0)
        if not isinstance(entry, PageTable):
            got = follow_huge_pmd(vma, pmd, slot, addr, flags) if entry & PRESENT else None
            pmd.ptl.unlock()
            return got
        pmd.ptl.unlock()
    return follow_page_pte(vma, pmd, slot, addr, flags)


def check_vma_flags(vma: VmAreaStruct, flags: int) -> int:
    """May the page be taken from this VMA in this way? 0 or -EFAULT."""
    vm_flags = vma.vm_flags
    if vm_flags & (VM_IO | VM_PFNMAP):
        return -EFAULT
    if not flags & FOLL_WRITE:
        return 0 if vm_flags & VM_READ else -EFAULT
    if not vma_ops.vma_is_anonymous(vma) and not writable_file_mapping_allowed(vma, flags):
        return -EFAULT
    return 0 if vm_flags & VM_WRITE else -EFAULT


def writable_file_mapping_allowed(vma: VmAreaStruct, flags: int) -> bool:
    """Not a long-term pin for writing on a shared file mapping whose file system tracks dirty pages."""
    if flags & (FOLL_PIN | FOLL_LONGTERM) != FOLL_PIN | FOLL_LONGTERM:
        return True
    shared_writable = vma.vm_flags & (VM_SHARED | VM_WRITE) == VM_SHARED | VM_WRITE
    return not shared_writable or vma.vm_file is None or vma.vm_file.f_mapping.shmem


def faultin_page(vma: VmAreaStruct, addr: int, flags: int, unshare: bool) -> int | str:
    """Fault the page in: 0, an errno, or RETRY."""
    fault_flags = memory.FAULT_FLAG_WRITE if flags & FOLL_WRITE else 0
    if unshare:
        fault_flags |= memory.FAULT_FLAG_UNSHARE
    result = memory.handle_mm_fault(vma, addr, fault_flags)
    if result & memory.VM_FAULT_OOM:
        return -ENOMEM
    if result & memory.VM_FAULT_HWPOISON:
        return -EHWPOISON if flags & FOLL_MADV_POPULATE else -EFAULT
    if result & (memory.VM_FAULT_SIGBUS | memory.VM_FAULT_SIGSEGV):
        return -EFAULT
    return RETRY if result & memory.VM_FAULT_RETRY else 0


def get_user_page(mm: MmStruct, addr: int, flags: int) -> Pin | int | str:
    """__get_user_pages for one page, under mmap_lock."""
    vma = mm.mm_mt.lookup(addr)
    if flags & FOLL_MADV_POPULATE:
        if vma is None:
            return -ENOMEM
        if check_vma_flags(vma, flags):
            return -EINVAL
    else:
        if vma is None and mm.machine.profile.gup_grows_stack:
            vma = brk.find_extend_vma(mm, addr)
        if vma is None:
            return -EFAULT
        error = check_vma_flags(vma, flags)
        if error:
            return error
    unshared = 0
    while True:
        got = follow_page_mask(vma, addr, flags)
        if got is not None and got != -EMLINK:
            return got
        unshared += got == -EMLINK
        if unshared > UNSHARE_MAX:
            detail = f"faults that unshare the page at {addr:#x} in {vma} succeed, and it is shared still"
            raise KernelBug("gup-livelock", detail, vma)
        mm.machine.sched.point("gup_slow.faulting")
        result = faultin_page(vma, addr, flags, got == -EMLINK)
        if result != 0:
            return result


def get_user_pages_unlocked(mm: MmStruct, start: int, end: int, flags: int) -> Pin | int:
    """__get_user_pages_locked: every page of [start, end) (bytes), the first error ends it. Gives the last page.

    mmap_lock is held for reading throughout, save while a migration is waited for.
    """
    point = mm.machine.sched.point
    got: Pin | int | str = -EFAULT
    mm.mmap_lock.down_read()
    point("gup_slow.locked")
    addr = start
    while addr < end:
        got = get_user_page(mm, addr, flags)
        if isinstance(got, int):
            break
        if isinstance(got, Pin):
            addr += PAGE_SIZE
            continue
        mm.mmap_lock.up_read()
        fault.wait_for_migration(mm, addr)
        mm.mmap_lock.down_read()
        point("gup_slow.locked")
    mm.mmap_lock.up_read()
    assert not isinstance(got, str)
    return got


def faultin_page_range(mm: MmStruct, start: int, end: int, write: bool) -> int:
    """Fault [start, end) (bytes) in for MADV_POPULATE_*: 0, or the errno of the first page that cannot be."""
    flags = FOLL_TOUCH | FOLL_MADV_POPULATE | (FOLL_WRITE if write else 0)
    got = get_user_pages_unlocked(mm, start, end, flags)
    return got if isinstance(got, int) else 0


# ---- what callers use


def valid_gup_flags(foll_flags: int) -> int:
    """The internal flags, or 0 where the combination is not allowed: LONGTERM needs PIN."""
    if foll_flags & FOLL_LONGTERM and not foll_flags & FOLL_PIN:
        return 0
    return foll_flags if foll_flags & FOLL_PIN else foll_flags | FOLL_GET


def gup_fast(mm: MmStruct, addr: int, foll_flags: int) -> Pin | int:
    """get_user_pages_fast / pin_user_pages_fast for one page: lockless, else the slow path."""
    flags = valid_gup_flags(foll_flags)
    if not flags:
        return -EINVAL
    addr &= PAGE_MASK
    if addr + PAGE_SIZE > mm.machine.geometry.task_size:
        return -EFAULT
    pin = gup_lockless.gup_fast_only(mm, addr, flags)
    mm.machine.sched.point("gup_fast.done")
    if pin is not None:
        pin.flags = foll_flags
        return pin
    return gup_slow(mm, addr, foll_flags)


def gup_slow(mm: MmStruct, addr: int, foll_flags: int) -> Pin | int:
    """get_user_pages_unlocked / pin_user_pages_unlocked for one page."""
    flags = valid_gup_flags(foll_flags)
    if not flags:
        return -EINVAL
    addr &= PAGE_MASK
    got = get_user_pages_unlocked(mm, addr, addr + PAGE_SIZE, flags | FOLL_TOUCH)
    if isinstance(got, Pin):
        got.flags = foll_flags
    return got


def unpin(m: Machine, pin: Pin) -> None:
    """Give a pin or reference back; one for writing makes the folio dirty first (unpin_user_pages_dirty_lock)."""
    folio = pin.folio
    if pin.flags & FOLL_PIN:
        sanity_check_pinned_page(m, folio, pin.page)
    if pin.flags & FOLL_WRITE and not folio.dirty:
        folio.lock.lock()
        folio.dirty = True
        folio.lock.unlock()
    m.sched.point("unpin.dirtied")
    gup_put_folio(m, folio, pin.flags if pin.flags & FOLL_PIN else 0)
