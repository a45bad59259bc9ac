"""The tracepoints of J. Matena's RFC 4/4 ("mm: add tracing for VMA merges", 18 February 2022), for every design.

``vm_av_merge`` tells of each try to merge a range with its neighbours, ``vm_pgoff_merge`` of each move of anonymous
memory. Outcomes are names, as S. Rostedt asked in the review. They are found from the VMAs alone, before the design
decides: so they mean the same for each design, ``merged`` says what this one did with them, and no design, a
user's neither, has to do anything for it.

A ``Tracer`` attaches itself to a kernel image as ftrace does to a kernel: unheard, a tracepoint is not even a test.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import VM_SPECIAL, MmStruct, VmAreaStruct
from emulator.rmap_types import AnonVma

if TYPE_CHECKING:
    from emulator.image import KernelImage
    from emulator.machine import Machine


class VmaMergeRes(Enum):
    """enum vma_merge_res: could the range merge with that neighbour, by the rules of the RFC?"""

    MERGE_FAILED = 0  # there is no neighbour, or something else than the anon_vma differs
    AV_MERGE_FAILED = 1  # nothing but the anon_vma differs, and its pages may be shared with another process
    MERGE_OK = 2
    AV_MERGE_DIFFERENT = 3  # nothing but the anon_vma differs, and nobody else has its pages


_FAILED: Final = VmaMergeRes.MERGE_FAILED
_SHARED: Final = VmaMergeRes.AV_MERGE_FAILED
_OK: Final = VmaMergeRes.MERGE_OK
_DIFFERENT: Final = VmaMergeRes.AV_MERGE_DIFFERENT


class VmAvMerge(NamedTuple):
    """A try to merge has ended. ``neighbours`` is ours: how many VMAs touch the range, 0 to 2."""

    merged: bool
    predecessor: VmaMergeRes
    successor: VmaMergeRes
    predecessor_with_successor: VmaMergeRes
    neighbours: int

    @property
    def name(self) -> str:
        return "vm_av_merge"

    def args(self) -> dict[str, int | str]:
        """What the kernel would print, in order."""
        sides = (self.predecessor, self.successor, self.predecessor_with_successor)
        return {
            "merged": int(self.merged),
            "predecessor": self.predecessor.name,
            "successor": self.successor.name,
            "predecessor_with_successor": self.predecessor_with_successor.name,
            "diff_count": sides.count(_DIFFERENT),
            "failed_count": sides.count(_SHARED),
            "neighbours": self.neighbours,
        }


class VmPgoffMerge(NamedTuple):
    """Anonymous memory has moved. ``updated``: its page offset is that of the new place. ``merged`` is ours."""

    faulted: bool
    updated: bool
    merged: bool  # it is part of a larger VMA there

    @property
    def name(self) -> str:
        return "vm_pgoff_merge"

    def args(self) -> dict[str, int | str]:
        """What the kernel would print, in order."""
        return {"faulted": int(self.faulted), "updated": int(self.updated), "merged": int(self.merged)}


TraceEvent = VmAvMerge | VmPgoffMerge


def show(event: TraceEvent) -> str:
    """``merged=1 predecessor=MERGE_OK …``."""
    return " ".join(f"{name}={value}" for name, value in event.args().items())


class Tracer:
    """Calls ``hear(machine, event)`` for every event of any machine that runs this image, until ``close``."""

    def __init__(self, image: KernelImage, hear: Callable[[Machine, TraceEvent], None]) -> None:
        self._hear = hear
        self._detach = [
            image.attach("vma.vma_merge_existing_range", self._merge),
            image.attach("vma.vma_merge_new_range", self._merge),
            image.attach("mremap.move_vma", self._move),
        ]

    def close(self) -> None:
        """Listen no longer."""
        while self._detach:
            self._detach.pop()()

    def _merge(self, original: Callable[[Any], VmAreaStruct | None], vmg: Any) -> VmAreaStruct | None:
        if vmg.vm_flags & VM_SPECIAL:  # never tried
            return original(vmg)
        tree = vmg.mm.mm_mt
        before, after = tree.prev_of(vmg.start), tree.lookup(vmg.end)
        if before is not None and before.vm_end != vmg.start:
            before = None
        if after is not None and after.vm_start != vmg.end:
            after = None
        predecessor = successor = both = _FAILED
        if before is not None and before.vm_pgoff + _pages(before.vm_start, before.vm_end) == vmg.pgoff:
            predecessor = _beside(vmg, before)
        if after is not None and after.vm_pgoff == vmg.pgoff + _pages(vmg.start, vmg.end):
            successor = _beside(vmg, after)
        if predecessor in (_OK, _DIFFERENT) and successor in (_OK, _DIFFERENT):
            assert before is not None
            assert after is not None
            both = _of_anon_vmas(vmg.mm, before.anon_vma, after.anon_vma, True)
        neighbours = (before is not None) + (after is not None)
        merged = original(vmg)
        self._hear(vmg.mm.machine, VmAvMerge(merged is not None, predecessor, successor, both, neighbours))
        return merged

    def _move(self, original: Callable[[Any], int], vrm: Any) -> int:
        source = vrm.vma
        anonymous, faulted = source.vm_ops is None, source.anon_vma is not None
        there, end = vrm.new_addr, vrm.new_addr + vrm.new_len
        result = original(vrm)
        area = vrm.mm.mm_mt.lookup(there) if anonymous and result == there else None
        if area is not None:
            updated = area.vm_pgoff + _pages(area.vm_start, there) == there >> PAGE_SHIFT
            merged = area.vm_start < there or area.vm_end > end
            self._hear(vrm.mm.machine, VmPgoffMerge(faulted, updated, merged))
        return result


def _pages(start: int, end: int) -> int:
    return (end - start) >> PAGE_SHIFT


def _beside(vmg: Any, near: VmAreaStruct) -> VmaMergeRes:
    """Could the range and its neighbour, whose page offset fits, be one VMA?"""
    profile = vmg.mm.machine.profile
    if (
        (near.vm_flags ^ vmg.vm_flags) & ~profile.vm_ignore_merge
        or near.vm_file is not vmg.file
        or near.vm_policy != vmg.policy
        or near.uffd_ctx is not vmg.uffd_ctx
        or near.anon_name != vmg.anon_name
        or (profile.close_forbids_merge and near.vm_ops is not None and near.vm_ops.close)
    ):
        return _FAILED
    if near.anon_vma is None and vmg.anon_vma is not None:
        source = vmg.middle if vmg.middle is not None else vmg.copied_from
        inherits = source is not None and len(source.anon_vma_chain) != 1
        return _of_anon_vmas(vmg.mm, vmg.anon_vma, None, profile.merges_with_unfaulted and not inherits)
    return _of_anon_vmas(vmg.mm, vmg.anon_vma, near.anon_vma, len(near.anon_vma_chain) == 1)


def _of_anon_vmas(mm: MmStruct, one: AnonVma | None, other: AnonVma | None, adopts: bool) -> VmaMergeRes:
    """``adopts``: where one is not there, the other may take its place (whose chain is that one anon_vma)."""
    if one is other:
        return _OK
    if one is None or other is None:
        return _OK if adopts else _SHARED
    return _DIFFERENT if is_private(one, mm) else _SHARED


def is_private(anon_vma: AnonVma, mm: MmStruct) -> bool:
    """No other process can have pages of it: it is no child's, and no VMA of a child hangs at it."""
    return anon_vma.root is anon_vma and all(key.avc.vma.vm_mm is mm for key in anon_vma.rb_root)
