"""The digest of a run: the same for the same workload and design in every process."""

from __future__ import annotations

import marshal
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

from emulator.geometry import PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pte import PRESENT
from oracle.leaves import leaves_between

if TYPE_CHECKING:
    from emulator.machine import Machine
    from emulator.mm_types import MmStruct, VmAreaStruct
    from emulator.workload import Outcome
    from oracle.visible import Visible


def digest(machine: Machine, outcomes: Iterable[tuple[Outcome, ...]], view: Visible) -> str:
    """blake2b over results and what the processes see: nothing that hangs on addresses of ours or hash order.

    marshal's version 2 writes numbers, tuples and lists in one way only (later ones note shared objects).
    """
    seen: list[object] = [[(one.ret, one.data, one.injected) for one in step] for step in outcomes]
    for label in sorted(machine.procs):
        mm = machine.procs[label]
        layout = []
        for vma in mm.mm_mt:
            file = None if vma.vm_file is None else vma.vm_file.label
            layout.append((vma.vm_start, vma.vm_end, vma.vm_pgoff, vma.vm_flags, file, *_named(vma)))
        seen.append((label, layout, _contents(machine, mm, view)))
    return blake2b(marshal.dumps(seen, 2), digest_size=16).hexdigest()


def _contents(machine: Machine, mm: MmStruct, view: Visible) -> list[tuple[int, int]]:
    """(address, packed contents) of the populated pages that do not hold zeros, in address order."""
    geometry = machine.geometry
    lookup = mm.mm_mt.lookup
    contents = []
    for table, _, start, entry in leaves_between(mm, geometry, 0, 1 << 64):
        vma = lookup(start)
        if vma is not None:
            pages = 1 << geometry.shifts[table.level] - PAGE_SHIFT if table.level and entry & PRESENT else 1
            for offset in range(0, pages << PAGE_SHIFT, PAGE_SIZE):
                packed = view.content(vma, start + offset, entry + offset)
                if packed:
                    contents.append((start + offset, packed))
    contents.sort()
    return contents


def _named(vma: VmAreaStruct) -> tuple[str, ...]:
    """Name and memory policy of a VMA that has any."""
    if vma.anon_name is None and vma.vm_policy is None:
        return ()
    return (str(vma.anon_name), str(vma.vm_policy))
