"""New VMAs merged by expansion of their neighbours, as first posted, and the position of the iterator asserted.

Source: L. Stoakes, "mm: abstract vma_expand() to use vma_merge_struct" and "mm: avoid using vma_merge() for new VMAs",
5 August 2024 (cover.1722849859.git.lorenzo.stoakes@oracle.com), with what the review of 8 August asked for (V. Babka:
"should we add it to the ASSUMPTIONS and assert it", L. Howlett: which assertions). Later versions are what Linux does.

One function serves mmap, brk, mremap's copy and growth in place: it looks at next, then at prev, moves an iterator
along, and lets ``vma_expand`` do the rest. A write begins at the range that the iterator stands at, and that must hold
the lowest address that is written (L. Howlett). The tree of the machine needs no iterator, so it is modelled here.

Left open, and chosen here: the callers' iterators stand at the VMA before the hole, as the patch's comment has it, and
where there is none have yet to walk, so they cannot stand wrong. Rules that have changed since for other reasons (of
anon_vmas) are today's. Whether growth in place still named the growing VMA as the new one, against which the function
warns, is not to be seen from the patch: it is taken not to.
"""

from __future__ import annotations

from emulator.designs.base import Design
from emulator.geometry import PAGE_SHIFT
from emulator.mm import vma
from emulator.mm_types import VM_SPECIAL, MmStruct, VmAreaStruct


class VmaIterator:
    """struct vma_iterator: it stands at a range of the tree, a VMA or a gap: [``addr``, ``end``), bytes."""

    __slots__ = ("addr", "end", "mm")

    def __init__(self, mm: MmStruct, addr: int) -> None:
        self.mm = mm
        self.walk_to(addr)

    def walk_to(self, addr: int) -> None:
        """Stand at the range that holds ``addr``."""
        here = self.mm.mm_mt.find(addr)
        before = self.mm.mm_mt.prev_of(addr + 1)
        if here is not None and here is before:
            self.addr, self.end = here.vm_start, here.vm_end
        else:
            self.addr = before.vm_end if before is not None else 0
            self.end = here.vm_start if here is not None else self.mm.machine.geometry.task_size

    def next_range(self) -> None:
        self.walk_to(self.end)

    def check(self, holds: bool, rule: str, what: str) -> None:
        """VM_WARN_ON, which L. Stoakes preferred to VM_BUG_ON."""
        if not holds:
            self.mm.machine.warn(rule, f"the iterator stands at {self.addr:#x}-{self.end:#x}, {what}")

    def check_write(self, addr: int) -> None:
        self.check(self.addr <= addr < self.end, "iterator-not-at-write", f"and a write begins at {addr:#x}")


def vma_merge_new_vma(vmg: vma.VmaMergeStruct) -> VmAreaStruct | None:
    """Grow next down, prev up, or prev over next: the VMA that holds the range then."""
    prev, following, start, end, pgoff = vmg.prev, vmg.next, vmg.start, vmg.end, vmg.pgoff
    vmi = VmaIterator(vmg.mm, prev.vm_start if prev is not None else start)
    vmi.check(prev is None or vmi.end <= start, "iterator-beyond-hole", f"not before the hole at {start:#x}")
    vmi.check(
        following is None or following.vm_start >= end, "next-in-hole", f"and the hole up to {end:#x} is none"
    )
    if vmg.vm_flags & VM_SPECIAL or (prev is None and following is None):
        if prev is not None:
            vmi.next_range()
        not_merged(vmg, vmi)
        return None
    if following is not None and following.vm_start == end and not vma.has_close(following):
        if vma.can_vma_merge_before(vmg):
            vmg.end = following.vm_end
            vmg.target = following
            vmg.pgoff = following.vm_pgoff - ((end - start) >> PAGE_SHIFT)
            vmg.anon_vma = following.anon_vma
    if prev is not None and prev.vm_end == start and vma.can_vma_merge_after(vmg):
        vmg.start = prev.vm_start
        vmg.target = prev
        vmg.pgoff = prev.vm_pgoff
    elif prev is not None:
        vmi.next_range()
    if vmg.target is not None:
        vmi.check_write(vmg.start)
        if not vma.vma_expand(vmg):
            vmg.state = vma.VMA_MERGE_SUCCESS
            return vmg.target
    vmg.target = None
    vmg.anon_vma = None
    vmg.start, vmg.end, vmg.pgoff = start, end, pgoff
    if vmg.target is prev:  # never so where it is needed: ``target`` was forgotten two lines ago
        vmi.walk_to(start)
    not_merged(vmg, vmi)
    return None


def not_merged(vmg: vma.VmaMergeStruct, vmi: VmaIterator) -> None:
    """The caller puts a new VMA there, with the same iterator."""
    if vmg.state != vma.VMA_MERGE_ERROR_NOMEM:
        vmg.state = vma.VMA_MERGE_NOMERGE
    vmi.check_write(vmg.start)


def vma_merge_extend(area: VmAreaStruct, delta: int) -> VmAreaStruct | None:
    """Growth in place: the VMA is prev, and next is not given, so it is taken for missing."""
    vmg = vma.vmg_of_vma(area, area, area.vm_end, area.vm_end + delta)
    vmg.middle = None
    return vma.vma_merge_new_range(vmg)


class MergeNew2024(Design):
    """One function for all new VMAs."""

    name = "merge-new-2024"
    summary = "new VMAs merged by expansion, as first posted in August 2024, the iterator's position asserted"
    source = "cover.1722849859.git.lorenzo.stoakes@oracle.com"
    replaces = {
        "vma.vma_merge_new_range": vma_merge_new_vma,
        "vma.vma_merge_extend": vma_merge_extend,
    }
