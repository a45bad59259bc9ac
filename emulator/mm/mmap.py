"""Mapping memory: choosing an address, mmap (mm/mmap.c, and mmap_region of mm/vma.c).

Limits and accounting that the system calls share stand here too.
"""

from __future__ import annotations

from emulator.fs_types import File, VmOps
from emulator.geometry import PAGE_MASK, PAGE_SHIFT, page_align
from emulator.mm import gup_populate, ksm, mlock, munmap, shmem, sys, util, vma, vma_link
from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
    MmStruct,
    VmAreaStruct,
)
from emulator.uapi import (
    EACCES,
    EAGAIN,
    EEXIST,
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    MAP_TYPE,
    OVERCOMMIT_NEVER,
)
from emulator.workload import RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK

GENERIC_FILE_VM_OPS = VmOps("generic_file")
MAX_LFS_FILESIZE = (1 << 63) - 1  # bytes
# The flags as old as mmap itself: all that MAP_SHARED_VALIDATE takes, but for MAP_SYNC, which our files do not have.
LEGACY_MAP_MASK = (
    MAP_SHARED
    | MAP_PRIVATE
    | MAP_FIXED
    | MAP_ANONYMOUS
    | MAP_GROWSDOWN
    | MAP_LOCKED
    | MAP_NORESERVE
    | MAP_POPULATE
    | MAP_STACK
)


# ---- limits and accounting


def vm_stat_account(mm: MmStruct, flags: int, pages: int) -> None:
    """Count ``pages`` (may be negative) in total_vm and in one of exec_vm, stack_vm, data_vm."""
    mm.total_vm += pages
    if flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN) == VM_EXEC:
        mm.exec_vm += pages
    elif flags & VM_GROWSDOWN:
        mm.stack_vm += pages
    elif is_data_mapping(flags):
        mm.data_vm += pages


def is_data_mapping(flags: int) -> bool:
    """Private memory that can be written, and is no stack."""
    return flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE


def may_expand_vm(mm: MmStruct, flags: int, pages: int) -> bool:
    """Do RLIMIT_AS, RLIMIT_DATA (where it would be data) and the address space itself leave room for ``pages`` more?

    Linux lets a process with RLIMIT_DATA 0 have data up to the hard limit; here 0 is what it has without the workload.
    """
    total = mm.total_vm + pages
    if total > mm.machine.geometry.task_size >> PAGE_SHIFT or not sys.within(mm, RLIMIT_AS, total):
        return False
    return not is_data_mapping(flags) or sys.within(mm, RLIMIT_DATA, mm.data_vm + pages)


def mlock_future_ok(mm: MmStruct, locked: bool, length: int) -> bool:
    """Does RLIMIT_MEMLOCK, if it binds, leave room for ``length`` bytes that are to be ``locked``?"""
    return not locked or sys.within(mm, RLIMIT_MEMLOCK, mm.locked_vm + (length >> PAGE_SHIFT))


def accountable_mapping(file: File | None, flags: int) -> bool:
    """Private writable memory is charged, unless NORESERVE."""
    return flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE


def security_vm_enough_memory(mm: MmStruct, pages: int) -> int:
    """Charge ``pages`` to Committed_AS. 0, or -ENOMEM with nothing charged."""
    return -ENOMEM if mm.machine.should_fail("vm_enough_memory") else util.vm_enough_memory(mm.machine, mm, pages)


# ---- choosing an address


def vm_start_gap(area: VmAreaStruct) -> int:
    """Where the space that belongs to the VMA begins: its stack guard gap counts."""
    if area.vm_flags & VM_GROWSDOWN:
        return max(0, area.vm_start - (area.vm_mm.machine.stack_guard_gap << PAGE_SHIFT))
    return area.vm_start


def low_limit(mm: MmStruct) -> int:
    """The lowest address that is chosen: mmap_min_addr, in a small world the arena's start."""
    g = mm.machine.geometry
    return mm.machine.profile.mmap_min_addr if g.bits == 9 else g.arena_start


def vm_unmapped_area_topdown(mm: MmStruct, length: int, high: int) -> int:
    """The highest free range of ``length`` bytes below ``high``, or -ENOMEM.

    The VMA above a hole may want a guard gap below it: then the hole ends where that gap begins.
    """
    low = low_limit(mm)
    ceiling = high
    while ceiling - length >= low:
        below = mm.mm_mt.prev_of(ceiling)
        floor = below.vm_end if below is not None else 0
        if floor > ceiling - length:
            assert below is not None
            ceiling = below.vm_start
            continue
        above = mm.mm_mt.find(floor)
        if above is None or vm_start_gap(above) >= ceiling:
            return ceiling - length
        ceiling = vm_start_gap(above)
    return -ENOMEM


def vm_unmapped_area_bottomup(mm: MmStruct, length: int, low: int) -> int:
    """The lowest free range of ``length`` bytes at or above ``low``, or -ENOMEM."""
    task_size = mm.machine.geometry.task_size
    floor = low
    while floor + length <= task_size:
        area = mm.mm_mt.find(floor)
        if area is None or floor + length <= vm_start_gap(area):
            return floor
        floor = area.vm_end
    return -ENOMEM


def mm_get_unmapped_area(mm: MmStruct, hint: int, length: int) -> int:
    """arch_get_unmapped_area_topdown: at the hint if that is free, else top-down from mmap_base."""
    g = mm.machine.geometry
    if length > g.task_size:
        return -ENOMEM
    if hint:
        addr = hint & PAGE_MASK
        if low_limit(mm) <= addr <= g.task_size - length:
            area = mm.mm_mt.find(addr)
            before = mm.mm_mt.prev_of(addr)
            if (area is None or addr + length <= vm_start_gap(area)) and (
                before is None or addr >= before.vm_end
            ):
                return addr
    found = vm_unmapped_area_topdown(mm, length, mm.mmap_base)
    if found < 0:
        # TASK_UNMAPPED_BASE is a third of user space
        base = page_align(g.task_size // 3) if g.bits == 9 else g.arena_start
        found = vm_unmapped_area_bottomup(mm, length, base)
    return found


def thp_get_unmapped_area(mm: MmStruct, hint: int, length: int, offset: int) -> int:
    """A place where huge pages fit, if the range is long enough for one; ``offset`` in bytes."""
    size = mm.machine.geometry.pmd_size
    aligned = (offset + size - 1) & -size
    if offset + length > aligned and offset + length - aligned >= size:
        found = mm_get_unmapped_area(mm, hint, length + size)
        if found >= 0:
            if found == hint:
                return hint
            shift = (offset - found) & (size - 1)
            return found + (shift or size)
    return mm_get_unmapped_area(mm, hint, length)


def thp_aligned(mm: MmStruct, file: File | None, hint: int, length: int, flags: int) -> bool:
    """Is the place to be chosen so that huge pages fit? (shmem sees to that itself, for huge pages of its own.)"""
    profile = mm.machine.profile
    if file is not None:
        return profile.thp_aligned_files and not file.f_mapping.shmem
    if flags & MAP_SHARED:
        return False
    return profile.thp_aligned_anon and not hint and length % mm.machine.geometry.pmd_size == 0


def get_unmapped_area(mm: MmStruct, file: File | None, addr: int, length: int, pgoff: int, flags: int) -> int:
    """Where to map ``length`` bytes: ``addr`` itself with MAP_FIXED, else a free place. Address or -errno."""
    task_size = mm.machine.geometry.task_size
    if length > task_size:
        return -ENOMEM
    if not flags & MAP_FIXED:
        if thp_aligned(mm, file, addr, length, flags):
            addr = thp_get_unmapped_area(mm, addr, length, 0 if file is None else pgoff << PAGE_SHIFT)
        else:
            addr = mm_get_unmapped_area(mm, addr, length)
        if addr < 0:
            return addr
    if addr > task_size - length:
        return -ENOMEM
    if addr & ~PAGE_MASK:
        return -EINVAL
    if addr < mm.machine.profile.mmap_min_addr and mm.machine.geometry.bits == 9:
        return -EPERM
    return addr


# ---- mmap


def munmap_vma_range(mm: MmStruct, addr: int, end: int, vm_flags: int) -> int:
    """Old kernels: unmap what a new mapping of [addr, end) replaces, before anything but its size is looked at.

    Its size is asked about once, with what goes still there: also what was no data counts against the limit of data.
    """
    replaced = mm.mm_mt.overlapping(addr, end)
    pages = sum(min(old.vm_end, end) - max(old.vm_start, addr) for old in replaced) >> PAGE_SHIFT
    if not may_expand_vm(mm, vm_flags, ((end - addr) >> PAGE_SHIFT) - pages):
        return -ENOMEM
    return -ENOMEM if replaced and munmap.do_munmap(mm, addr, end - addr) else 0


def mmap_region(mm: MmStruct, file: File | None, addr: int, length: int, vm_flags: int, pgoff: int) -> int:
    """Map [addr, addr+length), unmapping what is there. The new range merges with its neighbours if it can.

    A failure after the old mappings were emptied leaves a hole in their place.
    """
    m = mm.machine
    end = addr + length
    pages = length >> PAGE_SHIFT
    if not m.profile.mmap_takes_over_charge:
        error = munmap_vma_range(mm, addr, end, vm_flags)
        if error:
            return error
    vms = munmap.VmaMunmapStruct(mm, addr, end)
    error = munmap.vms_gather_munmap_vmas(vms)
    if error:
        return error
    if m.profile.mmap_takes_over_charge and not may_expand_vm(mm, vm_flags, pages - vms.nr_pages):
        return -ENOMEM
    charged = 0
    if accountable_mapping(file, vm_flags):
        charged = pages - vms.nr_accounted
        if charged and security_vm_enough_memory(mm, charged):
            return -ENOMEM
        vms.nr_accounted = 0  # the new mapping takes over their charge
        vm_flags |= VM_ACCOUNT
    vm_flags = ksm.ksm_vma_flags(mm, vm_flags)
    munmap.vms_detach(vms)
    munmap.vms_clear_ptes(vms)
    area = mmap_new_area(mm, vms, file, vm_flags, pgoff)
    munmap.vms_account(vms)
    if area is None:
        # What the old mappings had charged is not given back (nor in Linux 6.18): the oracle sees a leak.
        m.committed -= charged
        return -ENOMEM
    vm_stat_account(mm, area.vm_flags, pages)
    if area.vm_flags & VM_LOCKED:
        if area.vm_flags & (VM_SPECIAL | VM_DROPPABLE):  # DROPPABLE: not in 7.0-rc6, but in 6.18.44
            area.vm_flags &= ~VM_LOCKED_MASK
        else:
            mm.locked_vm += pages
    return addr


def mmap_new_area(
    mm: MmStruct, vms: munmap.VmaMunmapStruct, file: File | None, vm_flags: int, pgoff: int
) -> VmAreaStruct | None:
    """The VMA for a range that is empty by now: merged or new."""
    m = mm.machine
    vmg = vma.VmaMergeStruct(mm, vms.start, vms.end, vm_flags, pgoff)
    vmg.prev, vmg.next = vms.prev, vms.next
    vmg.file = file
    area = vma.vma_merge_new_range(vmg)
    if area is not None:
        return area
    if m.should_fail("vm_area_alloc"):
        return None
    area = VmAreaStruct(mm, vms.start, vms.end, pgoff, vm_flags)
    if file is not None:
        area.vm_file = file
        area.vm_ops = GENERIC_FILE_VM_OPS
        if file.f_mapping.shmem:
            shmem.shmem_mmap(area, file.f_mapping)
    elif vm_flags & VM_SHARED and shmem.shmem_zero_setup(area):
        return None
    linked = not vma_link.vma_link(area)
    if file is None and area.vm_file is not None:
        area.vm_file.f_count -= 1  # the VMA has it now
        if not linked:
            shmem.shmem_put_file(m, area.vm_file)
    return area if linked else None


def calc_vm_prot_bits(prot: int) -> int:
    """PROT_* and VM_READ/WRITE/EXEC have the same values."""
    return prot & VM_ACCESS_FLAGS


def file_flags(file: File, flags: int, prot: int) -> int:
    """The vm_flags that mapping ``file`` adds (bits to clear do not occur for our files), or -errno."""
    kind = flags & MAP_TYPE
    if kind == MAP_SHARED_VALIDATE and flags & ~LEGACY_MAP_MASK:
        return -EOPNOTSUPP
    if kind in (MAP_SHARED, MAP_SHARED_VALIDATE):
        if prot & VM_WRITE and not file.writable:
            return -EACCES
        return VM_SHARED | VM_MAYSHARE
    if kind == MAP_PRIVATE:
        return 0 if file.readable else -EACCES
    return -EINVAL


def do_mmap(
    mm: MmStruct, file: File | None, addr: int, length: int, prot: int, flags: int, pgoff: int
) -> int:
    """mmap under the lock. ``pgoff`` in pages; returns an address or -errno."""
    if not length:
        return -EINVAL
    fixed = bool(flags & (MAP_FIXED | MAP_FIXED_NOREPLACE))
    if not fixed:
        addr &= PAGE_MASK
        if addr:
            addr = max(addr, low_limit(mm))
    length = page_align(length)
    if mm.map_count > sys.sysctl_max_map_count(mm):
        return -ENOMEM
    vm_flags = calc_vm_prot_bits(prot) | mm.def_flags | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    if flags & MAP_GROWSDOWN:
        vm_flags |= VM_GROWSDOWN
    if flags & MAP_LOCKED:
        vm_flags |= VM_LOCKED
    if flags & MAP_STACK and mm.machine.profile.map_stack_nohugepage:
        vm_flags |= VM_NOHUGEPAGE
    area_flags = flags | MAP_FIXED if fixed else flags
    addr = get_unmapped_area(mm, file, addr, length, pgoff, area_flags)
    if addr < 0:
        return addr
    if flags & MAP_FIXED_NOREPLACE and mm.mm_mt.overlapping(addr, addr + length):
        return -EEXIST
    if flags & MAP_LOCKED and not mlock.can_do_mlock(mm):
        return -EPERM
    if not mlock_future_ok(mm, bool(vm_flags & VM_LOCKED), length):
        return -EAGAIN
    if file is not None:
        if pgoff > (MAX_LFS_FILESIZE - length) >> PAGE_SHIFT:
            return -EOVERFLOW
        more = file_flags(file, flags, prot)
        if more < 0:
            return more
        if vm_flags & VM_GROWSDOWN:
            return -EINVAL
        vm_flags |= more
        if more & VM_MAYSHARE and not file.writable:
            vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
    elif flags & MAP_TYPE == MAP_SHARED:
        if vm_flags & VM_GROWSDOWN:
            return -EINVAL
        pgoff = 0
        vm_flags |= VM_SHARED | VM_MAYSHARE
    elif flags & MAP_TYPE == MAP_PRIVATE:
        pgoff = addr >> PAGE_SHIFT
    elif flags & MAP_TYPE == MAP_DROPPABLE and mm.machine.profile.map_droppable:
        if flags & MAP_LOCKED or vm_flags & VM_GROWSDOWN:
            return -EINVAL  # memory that is not to be lost
        vm_flags |= VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP
        pgoff = addr >> PAGE_SHIFT
    else:
        return -EINVAL
    if flags & MAP_NORESERVE and mm.machine.overcommit_memory != OVERCOMMIT_NEVER:
        vm_flags |= VM_NORESERVE
    return mmap_region(mm, file, addr, length, vm_flags, pgoff)


def sys_mmap(
    mm: MmStruct, addr: int, length: int, prot: int, flags: int, file: File | None, offset: int
) -> int:
    """mmap(2). ``offset`` in bytes; ``file`` is None for MAP_ANONYMOUS."""
    if offset & ~PAGE_MASK:
        return -EINVAL
    if flags & MAP_ANONYMOUS:
        file = None
    mm.mmap_lock.down_write()
    mm.machine.sched.point("mmap.locked")
    result = do_mmap(mm, file, addr, length, prot, flags, offset >> PAGE_SHIFT)
    populate = result >= 0 and (flags & (MAP_POPULATE | MAP_LOCKED) or mm.def_flags & VM_LOCKED)
    mm.mmap_lock.up_write()
    if populate:
        gup_populate.mm_populate(mm, result, page_align(length))
    return result
