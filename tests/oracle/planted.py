"""Designs with one bug each, planted so that the oracles have something to say. The right code is the mainline's.

The functions run inside a kernel image: ``original`` is the function that they replace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from emulator.designs.base import Design
from emulator.errors import KernelBug
from emulator.geometry import PAGE_SHIFT, PAGE_SIZE
from emulator.mm import brk, mmap, munmap, rmap
from emulator.mm_types import VM_DONTCOPY, VM_WIPEONFORK, Folio, MmStruct, VmAreaStruct
from emulator.uapi import EFAULT, EINVAL, MAP_FIXED

Original = Callable[..., Any]


def change_without_flush(original: Original, area: VmAreaStruct, start: int, end: int, cp_flags: int) -> int:
    """Changes entries and leaves the TLBs as they were."""
    tlbs = area.vm_mm.machine.tlbs
    before = [dict(tlb.entries) for tlb in tlbs]
    result: int = original(area, start, end, cp_flags)
    for tlb, entries in zip(tlbs, before, strict=True):
        tlb.entries.update(entries)
    return result


def dup_that_stays_exclusive(original: Original, folio: Folio, page: int, *vmas: VmAreaStruct) -> int:
    """fork forgets that the page is shared now."""
    result: int = original(folio, page, *vmas)
    folio.anon_exclusive |= 1 << page
    return result


def dup_that_ignores_pins(folio: Folio, page: int, dst: VmAreaStruct, src: VmAreaStruct) -> int:
    """fork shares pages though they are pinned."""
    folio.anon_exclusive &= ~(1 << page)
    folio.mapcounts[page] += 1
    return 0


def dup_never(folio: Folio, page: int, dst: VmAreaStruct, src: VmAreaStruct) -> int:
    """fork copies every page at once."""
    return -16  # -EBUSY


def dup_without_limits(original: Original, mm: MmStruct, oldmm: MmStruct) -> int:
    """fork gives the child none of its parent's limits."""
    result: int = original(mm, oldmm)
    mm.rlim = {}
    return result


def write_zeros_out(original: Original, m: Any, folio: Folio, mapping: Any) -> bool:
    """A page of shared memory is zeros in swap."""
    index = folio.index
    result: bool = original(m, folio, mapping)
    if index in mapping.swapped:
        m.swap.content[mapping.swapped[index]] = {}
    return result


def forget_anon_vma(*args: object) -> int:
    """A merge does not take over the neighbour's anon_vma."""
    return 0


def nonsense_anon_vma(vmg: Any, dst: VmAreaStruct, src: VmAreaStruct) -> int:
    """A merge takes over something that is no anon_vma; other code of the kernel stumbles over it."""
    if src.anon_vma is not None and dst.anon_vma is None:
        vars_of: Any = dst
        vars_of.anon_vma = "nonsense"
    return 0


def leave_migration_entries(*args: object, **kwargs: object) -> None:
    """The entries of the migrated folio are never turned back."""


def write_nothing_out(m: Any, folio: Folio) -> None:
    """The swap device is told nothing, and reads zeros."""
    for i in range(folio.nr_pages):
        m.swap.content[folio.swap + i] = {}


def do_nothing(*args: object) -> int:
    """Says that all went well."""
    return 0


def keep_folio(m: Any, folio: Folio) -> None:
    """A folio without references is not given back."""


def never_merge(vmg: object) -> None:
    """New mappings stay by themselves."""


def refuse(*args: object) -> int:
    return -EINVAL


def move_refused(original: Original, vrm: Any) -> int:
    """Growing moves of more than one page never find their VMA."""
    if vrm.old_len > PAGE_SIZE and vrm.new_len > vrm.old_len:
        return -EFAULT
    result: int = original(vrm)
    return result


def low_places(original: Original, mm: MmStruct, file: Any, addr: int, length: int, pgoff: int, flags: int) -> int:
    """The lowest free place in place of the highest."""
    if flags & MAP_FIXED:
        result: int = original(mm, file, addr, length, pgoff, flags)
        return result
    return mmap.vm_unmapped_area_bottomup(mm, length, mm.machine.geometry.arena_start)


def discard_anyway(folio: Folio, vma: VmAreaStruct) -> bool:
    """Lazily freed pages are thrown away though they were written to again."""
    return True


def fork_all_alike(original: Original, mm: MmStruct, oldmm: MmStruct) -> int:
    """fork does not look at DONTFORK and WIPEONFORK."""
    flags = {area: area.vm_flags for area in oldmm.mm_mt}
    for area in oldmm.mm_mt:
        area.vm_flags &= ~(VM_DONTCOPY | VM_WIPEONFORK)
    error: int = original(mm, oldmm)
    for area, before in flags.items():
        area.vm_flags = before
    for area in mm.mm_mt:
        old = oldmm.mm_mt.lookup(area.vm_start)
        if old is not None:
            area.vm_flags |= old.vm_flags & VM_WIPEONFORK
    return error


def grow_anyway(area: VmAreaStruct, address: int) -> int:
    """A stack grows without a look at what is below."""
    error: int = rmap.anon_vma_prepare(area)
    return error or brk.grow_downwards(area, address & -PAGE_SIZE)


def say_it_has_moved(mm: MmStruct, end: int) -> bool:
    return True


def munmap_by_halves(mm: MmStruct, start: int, length: int) -> int:
    """munmap that lets go of the lock in the middle."""
    half = length // 2 & -PAGE_SIZE
    for addr, size in ((start, half), (start + half, length - half)):
        mm.mmap_lock.down_write()
        if size:
            munmap.do_munmap(mm, addr, size)
        mm.mmap_lock.up_write()
        mm.machine.sched.point("planted.half")
    return 0


def stop_where_nothing_is_mapped(mm: MmStruct, start: int, length: int, advice: int) -> int:
    """A BUG_ON that only a certain order meets."""
    if mm.mm_mt.lookup(start) is None:
        raise KernelBug("planted-bug", "the kernel cannot go on", mm.machine.phys.zero_folio)
    return 0


def keep_the_lock(mm: MmStruct, start: int, length: int) -> int:
    """munmap that never lets go of mmap_lock."""
    mm.mmap_lock.down_write()
    return munmap.do_munmap(mm, start, length)


def keep_the_slot(original: Original, m: Any, mapping: Any, index: int, slot: int, *, whole: bool) -> Any:
    """A page of shared memory comes back from swap, and the file still says that it is there."""
    found = original(m, mapping, index, slot, whole=whole)
    mapping.swapped[index] = slot
    return found


def charge_nothing(*args: object) -> bool:
    """Shared memory is mapped and not charged."""
    return True


def complain(mm: MmStruct, start: int, length: int, advice: int) -> int:
    """A WARN_ON, after which the kernel goes on."""
    mm.machine.warn("planted-warning", "this should not happen", mm.mm_mt.lookup(start))
    return 0


def stop(mm: MmStruct, start: int, length: int, advice: int) -> int:
    """A BUG_ON about a folio."""
    raise KernelBug("planted-bug", "the kernel cannot go on", mm.machine.phys.zero_folio)


def our_own_mistake(mm: MmStruct, start: int, length: int, advice: int) -> int:
    raise ZeroDivisionError("a mistake of ours")


def copy_nothing(original: Original, vmf: Any) -> int:
    """A write to a private file page gets a page of zeros in place of a copy."""
    result: int = original(vmf)
    if not result:
        folio = vmf.m.phys.frames[vmf.table.entries[vmf.slot] >> PAGE_SHIFT]
        folio.content[0] = {}
    return result


class NoFlush(Design):
    name = "no-flush"
    replaces: ClassVar = {"mprotect.change_protection": change_without_flush}


class StaysExclusive(Design):
    name = "stays-exclusive"
    replaces: ClassVar = {"rmap_counts.folio_try_dup_anon_rmap_pte": dup_that_stays_exclusive}


class IgnoresPins(Design):
    name = "ignores-pins"
    replaces: ClassVar = {"rmap_counts.folio_try_dup_anon_rmap_pte": dup_that_ignores_pins}


class CopiesAtFork(Design):
    name = "copies-at-fork"
    replaces: ClassVar = {"rmap_counts.folio_try_dup_anon_rmap_pte": dup_never}


class ForgetsAnonVma(Design):
    name = "forgets-anon-vma"
    replaces: ClassVar = {"vma.dup_anon_vma": forget_anon_vma}


class LeavesMigrationEntries(Design):
    name = "leaves-migration-entries"
    replaces: ClassVar = {"migrate.remove_migration_ptes": leave_migration_entries}


class WritesNothingOut(Design):
    name = "writes-nothing-out"
    replaces: ClassVar = {"swap_state.swap_writeout": write_nothing_out}


class MprotectLies(Design):
    name = "mprotect-lies"
    replaces: ClassVar = {"mprotect.do_mprotect": do_nothing}


class WritesZerosOut(Design):
    name = "writes-zeros-out"
    replaces: ClassVar = {"shmem.shmem_writeout": write_zeros_out}


class ForgetsLimits(Design):
    name = "forgets-limits"
    replaces: ClassVar = {"fork.dup_mmap": dup_without_limits}


class MlockLies(Design):
    name = "mlock-lies"
    replaces: ClassVar = {"mlock.apply_vma_lock_flags": do_nothing}


class MlockallLies(Design):
    name = "mlockall-lies"
    replaces: ClassVar = {"mlock.apply_mlockall_flags": do_nothing}


class DropsDirtyPages(Design):
    name = "drops-dirty-pages"
    replaces: ClassVar = {"rmap_unmap.may_discard": discard_anyway}


class ForkIgnoresAdvice(Design):
    name = "fork-ignores-advice"
    replaces: ClassVar = {"fork.dup_mmap": fork_all_alike}


class BreaksTheGap(Design):
    name = "breaks-the-gap"
    replaces: ClassVar = {"brk.expand_downwards": grow_anyway}


class HeapLies(Design):
    name = "heap-lies"
    replaces: ClassVar = {"brk.move_brk": say_it_has_moved}


class ForgetsNames(Design):
    name = "forgets-names"
    replaces: ClassVar = {"madvise.madvise_set_anon_name": do_nothing}


class ForgetsPolicies(Design):
    name = "forgets-policies"
    replaces: ClassVar = {"mempolicy.do_mbind": do_nothing}


class SealsNothing(Design):
    name = "seals-nothing"
    replaces: ClassVar = {"mseal.mseal_apply": do_nothing}


class CopiesNothing(Design):
    name = "copies-nothing"
    replaces: ClassVar = {"memory_file.do_cow_fault": copy_nothing}


class MunmapLies(Design):
    name = "munmap-lies"
    replaces: ClassVar = {"munmap.sys_munmap": do_nothing}


class ForkLies(Design):
    name = "fork-lies"
    replaces: ClassVar = {"fork.sys_fork": do_nothing}


class LeaksSlots(Design):
    name = "leaks-slots"
    replaces: ClassVar = {"swap_state.swap_put_entries_direct": do_nothing}


class LeaksPins(Design):
    name = "leaks-pins"
    replaces: ClassVar = {"gup.unpin": do_nothing}


class LeaksFolios(Design):
    name = "leaks-folios"
    replaces: ClassVar = {"swap.free_folio": keep_folio}


class ForgetsToUncharge(Design):
    name = "forgets-to-uncharge"
    replaces: ClassVar = {"munmap.vms_account": do_nothing}


class NeverMerges(Design):
    name = "never-merges"
    replaces: ClassVar = {"vma.vma_merge_new_range": never_merge}


class RefusesMremap(Design):
    name = "refuses-mremap"
    replaces: ClassVar = {"mremap.sys_mremap": refuse}


class RefusesToGrow(Design):
    name = "refuses-to-grow"
    replaces: ClassVar = {"mremap.do_mremap": move_refused}


class LowPlaces(Design):
    name = "low-places"
    replaces: ClassVar = {"mmap.get_unmapped_area": low_places}


class MunmapByHalvesAndStops(Design):
    name = "munmap-by-halves-and-stops"
    replaces: ClassVar = {
        "munmap.sys_munmap": munmap_by_halves,
        "madvise.do_madvise": stop_where_nothing_is_mapped,
    }


class MunmapByHalves(Design):
    name = "munmap-by-halves"
    replaces: ClassVar = {"munmap.sys_munmap": munmap_by_halves}


class KeepsTheLock(Design):
    name = "keeps-the-lock"
    replaces: ClassVar = {"munmap.sys_munmap": keep_the_lock}


class KeepsSharedMemory(Design):
    name = "keeps-shared-memory"
    replaces: ClassVar = {"shmem.shmem_put_file": do_nothing}


class LosesSharedMemory(Design):
    name = "loses-shared-memory"
    replaces: ClassVar = {"shmem.shmem_undo_range": do_nothing}


class KeepsSlotOfSharedMemory(Design):
    name = "keeps-slot-of-shared-memory"
    replaces: ClassVar = {"shmem.shmem_swapin_folio": keep_the_slot}


class SharedMemoryIsFree(Design):
    name = "shared-memory-is-free"
    replaces: ClassVar = {"shmem.shmem_acct_size": charge_nothing}


class Complains(Design):
    name = "complains"
    replaces: ClassVar = {"madvise.do_madvise": complain}


class Stops(Design):
    name = "stops"
    replaces: ClassVar = {"madvise.do_madvise": stop}


class OurOwnMistake(Design):
    name = "our-own-mistake"
    replaces: ClassVar = {"madvise.do_madvise": our_own_mistake}


class Oopses(Design):
    """The design's own code does not fail; mainline's does, for what it left behind."""

    name = "oopses"
    replaces: ClassVar = {"vma.dup_anon_vma": nonsense_anon_vma}
