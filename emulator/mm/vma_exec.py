"""What exec does to a new address space (mm/vma_exec.c, the stack part of fs/exec.c, special mappings of mm/mmap.c).

Bytes. The functions of the kernel's loader: a recorded exec is replayed with them.
"""

from __future__ import annotations

from emulator.fs_types import VmOps
from emulator.geometry import PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pte import ACCESSED, SPECIAL, mk_pte
from emulator.mm import brk, huge_memory, memory, memory_zap, mmap, mremap_tables, rmap, vma, vma_link
from emulator.mm_types import (
    VM_ACCOUNT,
    VM_DATA_DEFAULT_FLAGS,
    VM_DONTEXPAND,
    VM_LOCKED_MASK,
    VM_STACK,
    MmStruct,
    VmAreaStruct,
)
from emulator.uapi import EFAULT, ENOMEM

VM_STACK_FLAGS = VM_STACK | VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT
STACK_EXPAND = 131072  # exec gives the stack so much room below the arguments, bytes

SPECIAL_MAPPING_VMOPS = VmOps("special_mapping", close=True, may_split=False)


def create_init_stack_vma(mm: MmStruct) -> VmAreaStruct | None:
    """One page of stack at the top of user space, where the arguments are put; moved down later."""
    m = mm.machine
    top = m.geometry.task_size
    area = VmAreaStruct(mm, top - PAGE_SIZE, top, (top - PAGE_SIZE) >> PAGE_SHIFT, VM_STACK_FLAGS)
    mm.mmap_lock.down_write()
    failed = m.should_fail("vm_area_alloc") or mmap.security_vm_enough_memory(mm, 1) or vma_link.vma_link(area)
    if not failed:
        mm.stack_vm = mm.total_vm = 1
    mm.mmap_lock.up_write()
    return None if failed else area


def put_arguments(area: VmAreaStruct, pages: int) -> int:
    """get_arg_page: the arguments fill ``pages`` pages from the top down; the stack grows for them."""
    mm = area.vm_mm
    for number in range(1, pages + 1):
        address = area.vm_end - number * PAGE_SIZE
        if address < area.vm_start:
            mm.mmap_lock.down_write()
            error = brk.expand_downwards(area, address)
            mm.mmap_lock.up_write()
            if error:
                return error
        mm.mmap_lock.down_read()
        fault = memory.handle_mm_fault(area, address, memory.FAULT_FLAG_WRITE)
        mm.mmap_lock.up_read()
        if fault:
            return -ENOMEM
    return 0


def vma_shrink(area: VmAreaStruct, start: int, end: int, pgoff: int) -> int:
    """Cut ``area`` to [start, end) without unmapping anything (mm/vma.c; exec alone uses it)."""
    mm = area.vm_mm
    if vma.vma_tree_fails(mm.machine, "vma_tree_prealloc"):
        return -ENOMEM
    huge_memory.vma_adjust_trans_huge(area, start, end, None)
    anon_vma = area.anon_vma
    if anon_vma is not None:
        rmap.anon_vma_lock_write(anon_vma)
        rmap.anon_vma_interval_tree_pre_update_vma(area)
    mm.mm_mt.move(area, start, end)
    area.vm_pgoff = pgoff
    if anon_vma is not None:
        rmap.anon_vma_interval_tree_post_update_vma(area)
        rmap.anon_vma_unlock_write(anon_vma)
    return 0


def relocate_vma_down(area: VmAreaStruct, shift: int) -> int:
    """Move a VMA and its page tables ``shift`` bytes down; nothing may be mapped in between. pgoff stays."""
    mm = area.vm_mm
    old_start, old_end = area.vm_start, area.vm_end
    new_start, new_end = old_start - shift, old_end - shift
    length = old_end - old_start
    if mm.mm_mt.find(new_start) is not area:
        return -EFAULT
    vmg = vma.VmaMergeStruct(mm, new_start, old_end, 0, area.vm_pgoff)
    vmg.target = area
    if vma.vma_expand(vmg):
        return -ENOMEM
    pmc = mremap_tables.PagetableMoveControl(area, area, old_start, new_start, length)
    pmc.for_stack = True
    if mremap_tables.move_page_tables(pmc) != length:
        return -ENOMEM
    following = mm.mm_mt.find(old_end)
    ceiling = following.vm_start if following is not None else mm.machine.geometry.task_size
    memory_zap.free_pgtables(mm, max(new_end, old_start), old_end, new_end, ceiling)
    return vma_shrink(area, new_start, new_end, area.vm_pgoff)


def setup_arg_pages(area: VmAreaStruct, stack_top: int, vm_flags: int) -> int:
    """Bring the stack down to ``stack_top`` with its final flags, and give it room to grow (fs/exec.c)."""
    mm = area.vm_mm
    mm.mmap_lock.down_write()
    area.vm_flags = vm_flags | mm.def_flags
    shift = area.vm_end - stack_top
    error = relocate_vma_down(area, shift) if shift else 0
    if not error:
        size = area.vm_end - area.vm_start
        expand = min(mm.machine.profile.rlimit_stack, size + STACK_EXPAND)
        error = brk.expand_downwards(area, area.vm_end - expand) and -EFAULT
    mm.mmap_lock.up_write()
    return error


def install_special_mapping(mm: MmStruct, addr: int, length: int, vm_flags: int) -> VmAreaStruct | None:
    """Map pages that the kernel itself provides (vdso, vvar); such a VMA cannot be split or resized."""
    vm_flags = (vm_flags | mm.def_flags | VM_DONTEXPAND) & ~VM_LOCKED_MASK
    area = VmAreaStruct(mm, addr, addr + length, 0, vm_flags)
    area.vm_ops = SPECIAL_MAPPING_VMOPS
    if mm.machine.should_fail("vm_area_alloc") or vma_link.vma_link(area):
        return None
    mmap.vm_stat_account(mm, vm_flags, length >> PAGE_SHIFT)
    return area


def special_mapping_fault(vmf: memory.VmFault) -> int:
    """Map a page of the kernel's own: no folio is accounted, as for the zero page. A write to it then copies it."""
    result = memory.pte_alloc(vmf)
    if result:
        return result
    if not memory.pte_lock_same(vmf):
        return memory.VM_FAULT_NOPAGE
    flags = vma.vm_page_prot(vmf.vma.vm_flags) | ACCESSED | SPECIAL
    vmf.table.set(vmf.slot, mk_pte(vmf.m.phys.zero_folio.pfn, flags))
    vmf.table.ptl.unlock()
    return 0
