"""The structs of include/linux/rmap.h, and the tree of an anon_vma (mm/interval_tree.c). Pages."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from emulator.geometry import PAGE_SHIFT

if TYPE_CHECKING:
    from emulator.machine import Machine
    from emulator.mm_types import VmAreaStruct
    from emulator.sched.locks import RwSem


class AnonVma:
    """struct anon_vma: what the rmap of anonymous folios starts from.

    ``rwsem`` exists in the root only. The interval tree is protected by ``root.rwsem``, the counters by it too.
    """

    __slots__ = (
        "entered",
        "freed",
        "machine",
        "num_active_vmas",
        "num_children",
        "parent",
        "rb_root",
        "refcount",
        "root",
        "rwsem",
        "serial",
    )

    def __init__(self, machine: Machine, serial: int, rwsem: RwSem) -> None:
        self.machine = machine
        self.serial = serial  # creation number; names it in reports, never compared by the kernel code
        self.root: AnonVma = self  # immutable after creation
        self.parent: AnonVma = self
        self.num_children = 0  # anon_vmas whose parent is this one; a root counts itself
        self.num_active_vmas = 0  # VMAs whose anon_vma is this one
        self.refcount = 1
        self.rwsem = rwsem
        self.rb_root: list[AvcKey] = []  # sorted
        self.entered = 0  # how often an AVC was entered there
        self.freed = False

    def __repr__(self) -> str:
        return f"anon_vma#{self.serial}{' freed' if self.freed else ''}"


class AnonVmaChain:
    """struct anon_vma_chain: one (VMA, anon_vma) edge, in the VMA's chain and in the anon_vma's tree."""

    __slots__ = ("anon_vma", "key", "serial", "vma")

    def __init__(self, serial: int, vma: VmAreaStruct, anon_vma: AnonVma) -> None:
        self.serial = serial
        self.vma = vma
        self.anon_vma = anon_vma
        self.key: AvcKey | None = None  # where it stands in the tree, None: not in it


class AvcKey(NamedTuple):
    """Where an AVC stands in the tree of its anon_vma: by the first page, of equals who was entered last comes last.

    Page offsets, ``last`` included, as they were when it was entered.
    """

    first: int
    entered: int
    last: int
    avc: AnonVmaChain


def avc_insert(avc: AnonVmaChain) -> None:
    """anon_vma_interval_tree_insert: under the range that the VMA has *now*."""
    vma, anon_vma = avc.vma, avc.anon_vma
    first = vma.vm_pgoff
    anon_vma.entered += 1
    avc.key = AvcKey(first, anon_vma.entered, first + ((vma.vm_end - vma.vm_start) >> PAGE_SHIFT) - 1, avc)
    insort(anon_vma.rb_root, avc.key)


def avc_remove(avc: AnonVmaChain) -> None:
    """anon_vma_interval_tree_remove."""
    key = avc.key
    assert key is not None
    tree = avc.anon_vma.rb_root
    del tree[bisect_left(tree, key)]
    avc.key = None


def avc_overlapping(anon_vma: AnonVma, first: int, last: int) -> Iterator[AnonVmaChain]:
    """anon_vma_interval_tree_foreach: AVCs whose inserted range meets pages [first, last], in tree order.

    Looks the tree up anew after each one, as the walker holds the lock but may be preempted.
    """
    for key in anon_vma.rb_root:
        if key.first > last:
            break
        if key.last >= first:
            yield key.avc
