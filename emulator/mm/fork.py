"""Making and ending processes, as far as memory sees it (kernel/fork.c, kernel/exit.c, mm/mmap.c).

Not a file of the kernel's mm/, but part of the image: dup_mmap and exit_mmap, and who calls them.
"""

from __future__ import annotations

from emulator.mm import fs_userfaultfd, ksm, memory_fork, mmap, munmap, rmap, vma, vma_link, vma_modify
from emulator.mm_types import VM_ACCOUNT, VM_DONTCOPY, VM_LOCKED_MASK, VM_WIPEONFORK, MmStruct, VmAreaStruct
from emulator.uapi import EBUSY, ENOMEM


def exit_mmap(mm: MmStruct) -> None:
    """The end of an address space: everything is unmapped and given back."""
    vms = munmap.VmaMunmapStruct(mm, 0, mm.machine.geometry.task_size)
    vms.vmas = list(mm.mm_mt)
    for area in vms.vmas:
        if area.vm_flags & VM_ACCOUNT:
            vms.nr_accounted += vma.vma_pages(area)
    munmap.vms_detach(vms)
    munmap.vms_clear_ptes(vms)
    munmap.vms_account(vms)
    mm.dead = True


def dup_one_vma(mm: MmStruct, old: VmAreaStruct) -> int:
    """Copy one VMA and its pages to the child. What fails leaves the child without this VMA, or with it."""
    m = mm.machine
    charge = vma.vma_pages(old) if old.vm_flags & VM_ACCOUNT else 0
    if charge and mmap.security_vm_enough_memory(old.vm_mm, charge):
        return -ENOMEM
    new = vma_modify.vm_area_dup(old)
    if new is None:
        m.committed -= charge
        return -ENOMEM
    new.vm_mm = mm
    if fs_userfaultfd.dup_userfaultfd(new, old.uffd_ctx):
        m.committed -= charge
        return -ENOMEM
    if old.vm_flags & VM_WIPEONFORK:
        new.anon_vma = None
    else:
        new.anon_vma = None
        if rmap.anon_vma_fork(new, old):
            m.committed -= charge
            return -ENOMEM
    new.vm_flags &= ~VM_LOCKED_MASK
    mm.mm_mt.insert(new)
    mm.map_count += 1
    vma_link.vma_link_file_after(new, old)
    mmap.vm_stat_account(mm, new.vm_flags, vma.vma_pages(new))
    if new.vm_flags & VM_WIPEONFORK:
        return 0
    return memory_fork.copy_page_range(new, old)


def dup_mmap(mm: MmStruct, oldmm: MmStruct) -> int:
    """Fill the child's empty ``mm`` from its parent's. On failure the child is torn down again: -ENOMEM."""
    oldmm.mmap_lock.down_write()
    mm.mmap_lock.down_write()
    m = mm.machine
    error = 0
    if vma.vma_tree_fails(m, "vma_tree_dup"):
        error = -ENOMEM
    for old in list(oldmm.mm_mt):
        if error:
            break
        m.sched.point("fork.vma")
        if not old.vm_flags & VM_DONTCOPY:
            error = dup_one_vma(mm, old)
    if not error:
        ksm.ksm_fork(mm, oldmm)
    mm.rlim, mm.max_map_count = oldmm.rlim, oldmm.max_map_count
    mm.mmap_base, mm.start_brk, mm.brk = oldmm.mmap_base, oldmm.start_brk, oldmm.brk
    mm.merge_any = oldmm.merge_any
    mm.mmap_lock.up_write()
    m.sched.point("fork.before_flush")
    m.flush_tlb_range(oldmm, 0, m.geometry.task_size)
    oldmm.mmap_lock.up_write()
    if error:
        exit_mmap(mm)
    return error


def mmput(mm: MmStruct) -> None:
    """A user of the address space goes; with the last it ends."""
    m = mm.machine
    mm.mm_users -= 1
    if mm.mm_users == 0:
        ksm.ksm_exit(mm)
        mm.mmap_lock.down_write()
        exit_mmap(mm)
        mm.mmap_lock.up_write()
        m.flush_tlb_range(mm, 0, m.geometry.task_size)


def sys_fork(mm: MmStruct, label: int) -> int:
    """fork(2): the child gets ``label`` and a copy-on-write copy of ``mm``. 0, -ENOMEM, -EBUSY (label taken)."""
    m = mm.machine
    if label in m.procs:
        return -EBUSY
    child = m.new_mm(label)
    error = dup_mmap(child, mm)
    if error:
        return error
    if label in m.procs:  # taken meanwhile, by another op of the same collision
        mmput(child)
        return -EBUSY
    m.procs[label] = child
    return 0


def sys_exit(mm: MmStruct) -> int:
    """The process ends; its address space goes with its last user."""
    m = mm.machine
    if m.procs.get(mm.label) is mm:
        del m.procs[mm.label]
    mmput(mm)
    return 0
