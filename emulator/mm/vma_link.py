"""Where VMAs come from and go to: their file, and a copy at another place (the linking part of mm/vma.c)."""

from __future__ import annotations

from emulator.geometry import PAGE_SHIFT
from emulator.mm import rmap, shmem, vma_modify
from emulator.mm import vma as vma_ops
from emulator.mm_types import VmAreaStruct
from emulator.uapi import ENOMEM


def vma_link_file(vma: VmAreaStruct) -> None:
    """Enter a new VMA into its file's i_mmap."""
    if vma.vm_file is not None:
        mapping = vma.vm_file.f_mapping
        mapping.i_mmap_rwsem.down_write()
        mapping.i_mmap.insert(vma)
        mapping.i_mmap_rwsem.up_write()


def vma_link_file_after(vma: VmAreaStruct, prev: VmAreaStruct) -> None:
    """Enter the copy that fork makes of ``prev`` right behind it (dup_mmap)."""
    if vma.vm_file is not None:
        mapping = vma.vm_file.f_mapping
        mapping.i_mmap_rwsem.down_write()
        mapping.i_mmap.insert_after(vma, prev)
        mapping.i_mmap_rwsem.up_write()


def vma_unlink_file(vma: VmAreaStruct) -> None:
    """Take a VMA that goes out of its file's i_mmap; with the last user shared memory goes."""
    if vma.vm_file is not None:
        mapping = vma.vm_file.f_mapping
        mapping.i_mmap_rwsem.down_write()
        mapping.i_mmap.remove(vma)
        mapping.i_mmap_rwsem.up_write()
        shmem.shmem_put_file(vma.vm_mm.machine, vma.vm_file)


def vma_link(vma: VmAreaStruct) -> int:
    """Put a new VMA into the tree and its file's i_mmap."""
    mm = vma.vm_mm
    if vma_ops.vma_tree_fails(mm.machine, "vma_tree_prealloc"):
        return -ENOMEM
    mm.mm_mt.insert(vma)
    vma_link_file(vma)
    mm.map_count += 1
    return 0


def copy_vma(
    vma: VmAreaStruct, addr: int, length: int, pgoff: int
) -> tuple[VmAreaStruct, VmAreaStruct, bool] | None:
    """The destination VMA of an mremap move of ``length`` bytes of ``vma`` to ``addr``, which is free.

    ``pgoff`` is that of the first moved page. Returns (source VMA, destination VMA, need_rmap_locks): the
    source is another object when it merged with its own copy. None: out of memory.
    """
    mm = vma.vm_mm
    faulted = vma.anon_vma is not None or not vma_ops.vma_is_anonymous(vma)
    if not faulted:
        pgoff = addr >> PAGE_SHIFT  # nothing is mapped yet, so it may take the place's own offset
    if mm.mm_mt.overlapping(addr, addr + length):
        return None
    vmg = vma_ops.vmg_of_vma(mm.mm_mt.prev_of(addr), vma, addr, addr + length)
    vmg.pgoff = pgoff
    vmg.next = mm.mm_mt.find(addr)
    new = vma_ops.vma_merge_copied_range(vmg)
    if new is not None:
        if new.vm_start <= vma.vm_start < new.vm_end:
            vma = new  # only an unfaulted source can have merged with its copy
        # the rmap walk may meet the destination before the source: it would miss entries in flight
        return vma, new, new.vm_pgoff <= vma.vm_pgoff
    new = vma_modify.vm_area_dup(vma)
    if new is None:
        return None
    new.vm_start, new.vm_end, new.vm_pgoff = addr, addr + length, pgoff
    if rmap.anon_vma_clone(new, vma, rmap.VMA_OP_REMAP):
        return None
    if vma_link(new):
        rmap.unlink_anon_vmas(new)
        return None
    return vma, new, False
