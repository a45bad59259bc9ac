"""The heap and the stack: brk (mm/mmap.c, mm/vma.c) and stack growth (mm/vma.c)."""

from __future__ import annotations

from emulator.geometry import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, page_align
from emulator.mm import gup_populate, ksm, mmap, munmap, rmap, sys, vma, vma_link
from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DATA_DEFAULT_FLAGS,
    VM_GROWSDOWN,
    VM_LOCKED,
    MmStruct,
    VmAreaStruct,
)
from emulator.uapi import EFAULT, ENOMEM, EPERM, MAP_FIXED
from emulator.workload import RLIMIT_STACK


def do_brk_flags(mm: MmStruct, prev: VmAreaStruct | None, addr: int, length: int) -> int:
    """Anonymous read-write memory at ``addr``; grows ``prev``, never merges with what follows."""
    vm_flags = ksm.ksm_vma_flags(mm, VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT | mm.def_flags)
    pages = length >> PAGE_SHIFT
    if not mmap.may_expand_vm(mm, vm_flags, pages) or mm.map_count > sys.sysctl_max_map_count(mm):
        return -ENOMEM
    if mmap.security_vm_enough_memory(mm, pages):
        return -ENOMEM
    area = None
    if prev is not None and prev.vm_end == addr:
        vmg = vma.VmaMergeStruct(mm, addr, addr + length, vm_flags, addr >> PAGE_SHIFT)
        vmg.prev = prev
        vmg.just_expand = True
        area = vma.vma_merge_new_range(vmg)
        if vmg.state == vma.VMA_MERGE_ERROR_NOMEM:
            mm.machine.committed -= pages
            return -ENOMEM
    if area is None:
        area = VmAreaStruct(mm, addr, addr + length, addr >> PAGE_SHIFT, vm_flags)
        if mm.machine.should_fail("vm_area_alloc") or vma_link.vma_link(area):
            mm.machine.committed -= pages
            return -ENOMEM
    mm.total_vm += pages
    mm.data_vm += pages
    if vm_flags & VM_LOCKED:
        mm.locked_vm += pages
    return 0


def sys_brk(mm: MmStruct, brk: int) -> int:
    """brk(2) as the kernel has it: returns the break afterwards, the old one when it could not be moved."""
    mm.mmap_lock.down_write()
    mm.machine.sched.point("brk.locked")
    old = page_align(mm.brk)
    if brk >= mm.start_brk and sys.check_data_rlimit(mm, brk) and move_brk(mm, brk):
        mm.brk = brk
    result = mm.brk
    mm.mmap_lock.up_write()
    if mm.def_flags & VM_LOCKED and page_align(result) > old:
        gup_populate.mm_populate(mm, old, page_align(result) - old)
    return result


def move_brk(mm: MmStruct, brk: int) -> bool:
    """Map or unmap what lies between the old and the new break."""
    new, old = page_align(brk), page_align(mm.brk)
    if new == old:
        return True
    if brk <= mm.brk:
        if mm.machine.profile.heap_must_be_there and not mm.mm_mt.overlapping(new, old):
            return False
        return munmap.do_munmap(mm, new, old - new) == 0
    if mmap.get_unmapped_area(mm, None, old, new - old, 0, MAP_FIXED) < 0:
        return False
    if not mmap.mlock_future_ok(mm, bool(mm.def_flags & VM_LOCKED), new - old):
        return False
    following = mm.mm_mt.find(old)
    if following is not None and new + PAGE_SIZE > mmap.vm_start_gap(following):
        return False
    prev = mm.mm_mt.prev_of(old)
    if prev is not None and prev.vm_end <= mm.start_brk and not mm.machine.profile.heap_joins_bss:
        prev = None
    return do_brk_flags(mm, prev, old, new - old) == 0


def expand_downwards(area: VmAreaStruct, address: int) -> int:
    """Grow a stack VMA down to the page of ``address``; the VMA becomes faulted, and never merges."""
    mm = area.vm_mm
    address &= PAGE_MASK
    if not area.vm_flags & VM_GROWSDOWN:
        return -EFAULT
    if address < mm.machine.profile.mmap_min_addr:
        return -EPERM
    below = mm.mm_mt.prev_of(area.vm_start)
    gap = mm.machine.stack_guard_gap << PAGE_SHIFT
    if below is not None and not below.vm_flags & VM_GROWSDOWN and below.vm_flags & VM_ACCESS_FLAGS:
        if address - below.vm_end < gap:
            return -ENOMEM
    if mm.machine.profile.maple_tree and mm.machine.should_fail("vma_tree_prealloc"):
        return -ENOMEM
    if rmap.anon_vma_prepare(area):
        return -ENOMEM
    assert area.anon_vma is not None
    rmap.anon_vma_lock_write(area.anon_vma)
    # somebody else may have been faster
    error = grow_downwards(area, address) if address < area.vm_start else 0
    rmap.anon_vma_unlock_write(area.anon_vma)
    return error


def grow_downwards(area: VmAreaStruct, address: int) -> int:
    """The growth itself, down to ``address``, if the limits allow it. The rmap lock is held."""
    mm = area.vm_mm
    grow = (area.vm_start - address) >> PAGE_SHIFT
    if not sys.within(mm, RLIMIT_STACK, (area.vm_end - address) >> PAGE_SHIFT) or grow > area.vm_pgoff:
        return -ENOMEM
    if not mmap.mlock_future_ok(mm, bool(area.vm_flags & VM_LOCKED), grow << PAGE_SHIFT):
        return -ENOMEM
    # Charged whether the VMA is accountable or not; where it is not, nobody ever gives that back (nor in Linux).
    if not mmap.may_expand_vm(mm, area.vm_flags, grow) or mmap.security_vm_enough_memory(mm, grow):
        return -ENOMEM
    rmap.anon_vma_interval_tree_pre_update_vma(area)
    mm.mm_mt.move(area, address, area.vm_end)
    area.vm_pgoff -= grow
    rmap.anon_vma_interval_tree_post_update_vma(area)
    mmap.vm_stat_account(mm, area.vm_flags, grow)
    if area.vm_flags & VM_LOCKED:
        mm.locked_vm += grow
    return 0


def find_extend_vma(mm: MmStruct, address: int) -> VmAreaStruct | None:
    """The VMA at ``address``; where a stack begins above it, the stack grown down to it."""
    area = mm.mm_mt.find(address)
    if area is None or area.vm_start <= address:
        return area
    start = area.vm_start
    if not area.vm_flags & VM_GROWSDOWN or expand_downwards(area, address):
        return None
    if area.vm_flags & VM_LOCKED:
        gup_populate.populate_vma_page_range(area, address & PAGE_MASK, start)
    return area
