"""A bench for mm/vma.c's functions: VMAs put up from text, without system calls (as tools/testing/vma does it).

``"0-3 3-7@1 7-9C"``: VMAs [0,3), [3,7) and [7,9) in pages. ``:5`` has page offset 5 (else it is the start page);
``@1`` is faulted, with the anon_vma named 1, ``@1F`` as a fork child; ``C`` has a close() hook, ``S`` a sticky flag.
"""

from __future__ import annotations

import re
from typing import Any, Final

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.fs_types import VmOps
from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import VM_MAYREAD, VM_MAYWRITE, VM_READ, VM_SOFTDIRTY, VM_WRITE, MmStruct, VmAreaStruct
from emulator.profile import Profile
from emulator.rmap_types import AnonVma
from tests.emulator.kernel_world import World, check_anon_vmas, check_vmas, profile_with

FLAGS: Final = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE
STICKY: Final = VM_SOFTDIRTY
STICKY_PROFILE: Final = profile_with(vm_ignore_merge=STICKY)
CLOSE: Final = VmOps("closing", close=True)
VMA = re.compile(r"([0-9a-f]+)-([0-9a-f]+)(?::([0-9a-f]+))?(?:@(\d)(F?))?(C?)(S?)$")


class Bench:
    """An address space whose VMAs are put there by hand. Page n is the machine's page n, from address 0 on."""

    def __init__(
        self,
        layout: str = "",
        profile: Profile | str = STICKY_PROFILE,
        design: type[Design] = Mainline,
    ) -> None:
        self.world = World("small8", design, profile)
        self.mm = self.world.mm()
        self.image: Any = self.world.image
        self.anon_vmas: dict[str, AnonVma] = {}
        self.by_start: dict[int, VmAreaStruct] = {}
        self.parents: list[MmStruct] = []  # of fork children
        for text in layout.split():
            self.put(text)

    def put(self, text: str) -> VmAreaStruct:
        """Add one VMA."""
        found = VMA.match(text)
        assert found is not None, text
        first, last, pgoff, anon_vma, forked, close, sticky = found.groups()
        start, end = int(first, 16), int(last, 16)
        vma = VmAreaStruct(
            self.mm, start << PAGE_SHIFT, end << PAGE_SHIFT, int(pgoff, 16) if pgoff else start, FLAGS
        )
        if close:
            vma.vm_ops = CLOSE
        if sticky:
            vma.vm_flags |= STICKY
        if anon_vma:
            self.fault(vma, anon_vma, bool(forked))
        assert self.image.vma_link.vma_link(vma) == 0
        self.by_start[start] = vma
        return vma

    def fault(self, vma: VmAreaStruct, name: str, forked: bool) -> None:
        """Give it the anon_vma of that name: shared with the VMA that has it, else a new one."""
        rmap = self.image.rmap
        sharer = next((v for v in self.by_start.values() if v.anon_vma is self.anon_vmas.get(name, 0)), None)
        if sharer is not None:
            vma.anon_vma = sharer.anon_vma
            assert rmap.anon_vma_clone(vma, sharer, rmap.VMA_OP_SPLIT) == 0
            return
        # alone in an address space, so that no neighbour's is shared
        elsewhere = self.world.machine.new_mm(1 + len(self.parents))
        if forked:
            self.parents.append(elsewhere)
            parent = VmAreaStruct(elsewhere, vma.vm_start, vma.vm_end, vma.vm_pgoff, vma.vm_flags)
            assert self.image.vma_link.vma_link(parent) == 0
            assert rmap._anon_vma_prepare(parent) == 0
            assert rmap.anon_vma_fork(vma, parent) == 0
        else:
            vma.vm_mm = elsewhere
            assert rmap._anon_vma_prepare(vma) == 0
            vma.vm_mm = self.mm
        assert vma.anon_vma is not None
        self.anon_vmas[name] = vma.anon_vma

    def __getitem__(self, start: int) -> VmAreaStruct:
        """The VMA object that was put up at that page."""
        return self.by_start[start]

    # ---- describing a merge

    def vmg(self, start: int, end: int, flags: int = FLAGS) -> Any:
        """A vmg for a new range."""
        return self.image.vma.VmaMergeStruct(self.mm, start << PAGE_SHIFT, end << PAGE_SHIFT, flags, start)

    def new(self, start: int, end: int, flags: int = FLAGS) -> tuple[VmAreaStruct | None, Any]:
        """vma_merge_new_range for the hole [start, end): (result, vmg)."""
        vmg = self.vmg(start, end, flags)
        vmg.prev = self.mm.mm_mt.prev_of(start << PAGE_SHIFT)
        vmg.next = self.mm.mm_mt.find(end << PAGE_SHIFT)
        return self.image.vma.vma_merge_new_range(vmg), vmg

    def modify(self, start: int, end: int, flags: int = FLAGS) -> tuple[VmAreaStruct | None, Any]:
        """vma_merge_existing_range: [start, end) of the VMA that holds it gets ``flags``: (result, vmg)."""
        middle = self.mm.mm_mt.lookup(start << PAGE_SHIFT)
        assert middle is not None
        inside = start << PAGE_SHIFT > middle.vm_start
        prev = middle if inside else self.mm.mm_mt.prev_of(middle.vm_start)
        vmg = self.image.vma.vmg_of_vma(prev, middle, start << PAGE_SHIFT, end << PAGE_SHIFT)
        vmg.vm_flags = flags
        return self.image.vma.vma_merge_existing_range(vmg), vmg

    # ---- looking

    def layout(self) -> str:
        """As the constructor takes it."""
        return " ".join(self.describe(vma) for vma in self.mm.mm_mt)

    def describe(self, vma: VmAreaStruct) -> str:
        start, end = vma.vm_start >> PAGE_SHIFT, vma.vm_end >> PAGE_SHIFT
        text = f"{start:x}-{end:x}"
        if vma.vm_pgoff != start:
            text += f":{vma.vm_pgoff:x}"
        if vma.anon_vma is not None:
            text += "@" + next(n for n, a in self.anon_vmas.items() if a is vma.anon_vma)
            text += "F" if len(vma.anon_vma_chain) > 1 else ""
        if vma.vm_ops is not None and vma.vm_ops.close:
            text += "C"
        if vma.vm_flags & STICKY:
            text += "S"
        return text

    def fail_next(self, point: int) -> None:
        """The fault point number ``point`` from here on fails (1 is the next)."""
        task = self.world.machine.sched.current
        task.fail_count, task.fail_nth = 0, point

    def check(self) -> None:
        """The VMAs and the anon_vma graph are sound."""
        check_vmas(self.mm)
        check_anon_vmas([self.mm, *self.parents])
        assert self.world.machine.sched.warnings == []
