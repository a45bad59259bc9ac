"""Memory accesses by the CPU, and what happens when they fault (arch/x86/mm/fault.c).

Not a file of the kernel's mm/, but part of the image: it is what calls ``memory.handle_mm_fault``.
"""

from __future__ import annotations

from emulator.errors import KernelBug
from emulator.geometry import LEVEL_PTE, PAGE_MASK, PAGE_SHIFT
from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import ACCESSED, DIRTY, EXEC, PFN_SHIFT, PRESENT, PSE, RW, USER, is_migration
from emulator.mm import brk, memory, pgtable_generic
from emulator.mm_types import VM_ACCESS_FLAGS, VM_GROWSDOWN, VM_WRITE, Folio, MmStruct, VmAreaStruct
from emulator.uapi import OOM_KILLED, SIGBUS, SIGSEGV

FAULTS_PER_ACCESS_MAX = 64  # a bound on faults that make no progress


def access(mm: MmStruct, addr: int, flags: int) -> tuple[Folio, int] | int:
    """Translate ``addr`` for an access (FAULT_FLAG_WRITE, FAULT_FLAG_INSTRUCTION or 0 for a load).

    Through the TLB of the current CPU, the page tables, or a fault. Returns (folio, page in it), or SIGSEGV,
    SIGBUS, OOM_KILLED. Translation and access are one: no preemption comes between.
    """
    m = mm.machine
    key = (mm.asid, addr >> PAGE_SHIFT)
    permission = USER
    if flags & memory.FAULT_FLAG_WRITE:
        permission |= RW
    elif flags & memory.FAULT_FLAG_INSTRUCTION:
        permission |= EXEC
    cached = permission | DIRTY if permission & RW else permission
    for _ in range(FAULTS_PER_ACCESS_MAX):
        tlb = m.tlbs[m.sched.current.cpu].entries
        pte = tlb.get(key, 0)
        if pte & cached != cached:
            pte = hardware_walk(mm, addr, permission)
            if not pte:
                tlb.pop(key, None)
                signal = do_user_addr_fault(mm, addr, flags, is_translated(mm, addr))
                if signal:
                    return signal
                continue
            tlb[key] = pte
        folio = m.phys.frames[pte >> PFN_SHIFT]
        if folio.freed:
            raise KernelBug("use-after-free", "a translation leads to a frame that has been freed", folio)
        return folio, (pte >> PFN_SHIFT) - folio.pfn
    raise KernelBug("livelock", "a fault is handled again and again without progress", mm.mm_mt.lookup(addr))


def hardware_walk(mm: MmStruct, addr: int, permission: int) -> int:
    """The page-table walker: the leaf for one 4 KiB page with accessed (and dirty) set, or 0 for a fault."""
    g = mm.machine.geometry
    table, slot, entry = walk_slot(mm, g, addr)
    if entry & (PRESENT | permission) != PRESENT | permission:
        return 0
    marked = entry | ACCESSED | (DIRTY if permission & RW else 0)
    if marked != entry:
        table.set(slot, marked)
    if table.level != LEVEL_PTE:
        inside = (addr & ((1 << g.shifts[table.level]) - 1)) >> PAGE_SHIFT
        marked = (marked & ~PSE) + (inside << PFN_SHIFT)
    return marked


def is_translated(mm: MmStruct, addr: int) -> bool:
    """X86_PF_PROT of the error code: there is a translation, and it forbids the access."""
    entry = walk_slot(mm, mm.machine.geometry, addr)[2]
    return entry & (PRESENT | USER) == PRESENT | USER


def do_user_addr_fault(mm: MmStruct, addr: int, flags: int, present: bool) -> int:
    """Handle the fault. 0 when the access shall be tried again, else the signal."""
    m = mm.machine
    m.sched.point("fault.begin")
    mm.mmap_lock.down_read()
    area = mm.mm_mt.find(addr)
    if area is None or (area.vm_start > addr and not area.vm_flags & VM_GROWSDOWN):
        mm.mmap_lock.up_read()
        return SIGSEGV
    if area.vm_start > addr:
        area = grow_stack(mm, area, addr)
        if area is None:
            mm.mmap_lock.up_read()
            return SIGSEGV
    if access_error(area.vm_flags, flags, present):
        mm.mmap_lock.up_read()
        return SIGSEGV
    result = memory.handle_mm_fault(area, addr & PAGE_MASK, flags)
    mm.mmap_lock.up_read()
    m.sched.point("fault.end")
    if not result:
        return 0
    if result & memory.VM_FAULT_OOM:
        return OOM_KILLED
    if result & (memory.VM_FAULT_SIGBUS | memory.VM_FAULT_HWPOISON):
        return SIGBUS
    if result & memory.VM_FAULT_SIGSEGV:
        return SIGSEGV
    wait_for_migration(mm, addr)
    return 0


def grow_stack(mm: MmStruct, area: VmAreaStruct, addr: int) -> VmAreaStruct | None:
    """Let the stack VMA ``area`` reach down to ``addr``: the VMA that holds it then, None where it must not grow.

    mmap_lock is held for reading, before and after; in between, since 6.5, for writing.
    """
    if mm.machine.profile.stack_grows_under_read_lock:
        return None if brk.expand_downwards(area, addr) else area
    mm.mmap_lock.up_read()
    mm.mmap_lock.down_write()
    found = mm.mm_mt.find(addr)  # what was seen without the lock is looked at again
    failed = found is None or (found.vm_start > addr and brk.expand_downwards(found, addr) != 0)
    mm.mmap_lock.downgrade()
    return None if failed else found


def access_error(vm_flags: int, flags: int, present: bool) -> bool:
    """Does the VMA forbid the access? x86 reads whatever is mapped with any permission.

    An instruction fetch is a read: from memory that is not executable it brings the page in, and only the fetch
    after that, which finds the page present, is refused.
    """
    if flags & memory.FAULT_FLAG_WRITE:
        return not vm_flags & VM_WRITE
    return present or not vm_flags & VM_ACCESS_FLAGS


def wait_for_migration(mm: MmStruct, addr: int) -> None:
    """The fault met a migration entry: wait, without the lock, until it is gone."""
    table = pgtable_generic.find_table(mm, addr, LEVEL_PTE)
    if table is None:
        return
    slot = pgtable_generic.slot_of(mm, addr, LEVEL_PTE)
    entry = table.get(slot)
    if isinstance(entry, int) and is_migration(entry):
        memory.migration_entry_wait(mm, table, slot, entry)
