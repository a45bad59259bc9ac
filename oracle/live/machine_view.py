"""The machine's side of the live oracle: its processes in the form of ``view``, read from data only."""

from __future__ import annotations

from typing import Final

from emulator import mm_types
from emulator.geometry import PAGE_SHIFT
from emulator.machine import Machine
from emulator.mm_types import VM_ACCESS_FLAGS, VM_MAYSHARE, MmStruct, VmAreaStruct
from oracle.live.view import Counters, Depth, ProcessView, VmaView

# Which two letters /proc/PID/smaps shows for a flag (fs/proc/task_mmu.c).
FLAGS: Final = {
    mm_types.VM_GROWSDOWN: "gd",
    mm_types.VM_PFNMAP: "pf",
    mm_types.VM_MAYBE_GUARD: "gu",
    mm_types.VM_LOCKED: "lo",
    mm_types.VM_IO: "io",
    mm_types.VM_SEQ_READ: "sr",
    mm_types.VM_RAND_READ: "rr",
    mm_types.VM_DONTCOPY: "dc",
    mm_types.VM_DONTEXPAND: "de",
    mm_types.VM_LOCKONFAULT: "lf",
    mm_types.VM_ACCOUNT: "ac",
    mm_types.VM_NORESERVE: "nr",
    mm_types.VM_HUGETLB: "ht",
    mm_types.VM_WIPEONFORK: "wf",
    mm_types.VM_DONTDUMP: "dd",
    mm_types.VM_MIXEDMAP: "mm",
    mm_types.VM_HUGEPAGE: "hg",
    mm_types.VM_NOHUGEPAGE: "nh",
    mm_types.VM_MERGEABLE: "mg",
    mm_types.VM_SEALED: "sl",
}


def view(machine: Machine, depth: Depth) -> dict[int, ProcessView]:
    """Every living process by label."""
    return {label: _process(mm) for label, mm in sorted(machine.procs.items())}


def _process(mm: MmStruct) -> ProcessView:
    counters = Counters(mm.total_vm, mm.locked_vm, mm.data_vm, mm.stack_vm)
    return ProcessView(tuple(_vma(mm, area) for area in mm.mm_mt), counters)


def _vma(mm: MmStruct, area: VmAreaStruct) -> VmaView:
    first = mm.machine.geometry.arena_start
    flags = area.vm_flags
    file = area.vm_file
    return VmaView(
        area.vm_start - first >> PAGE_SHIFT,
        area.vm_end - first >> PAGE_SHIFT,
        flags & VM_ACCESS_FLAGS,
        bool(flags & VM_MAYSHARE),
        file.label + 1 if file is not None else 0,
        area.vm_pgoff if file is not None else 0,
        frozenset(name for bit, name in FLAGS.items() if flags & bit),
    )
