"""Cutting and changing VMAs (the splitting half of mm/vma.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.mm import huge_memory, rmap, sys
from emulator.mm import vma as vma_ops
from emulator.mm_types import VmAreaStruct
from emulator.uapi import EINVAL, ENOMEM

if TYPE_CHECKING:
    from emulator.mm_types import UserfaultfdCtx


def vm_area_dup(vma: VmAreaStruct) -> VmAreaStruct | None:
    """A copy that is in no tree yet and has no AVCs (anon_vma is still the original's, as the kernel's is)."""
    if vma.vm_mm.machine.should_fail("vm_area_alloc"):
        return None
    new = VmAreaStruct(vma.vm_mm, vma.vm_start, vma.vm_end, vma.vm_pgoff, vma.vm_flags)
    new.vm_file = vma.vm_file
    new.vm_ops = vma.vm_ops
    new.vm_policy = vma.vm_policy
    new.anon_name = vma.anon_name
    new.uffd_ctx = vma.uffd_ctx
    new.anon_vma = vma.anon_vma
    return new


def _split_vma(vma: VmAreaStruct, addr: int, new_below: bool) -> int:
    """Split at ``addr``; the new VMA is the lower part if ``new_below``. Does not look at map_count."""
    mm = vma.vm_mm
    m = mm.machine
    if vma.vm_ops is not None and not vma.vm_ops.may_split:
        return -EINVAL
    new = vm_area_dup(vma)
    if new is None:
        return -ENOMEM
    if new_below:
        new.vm_end = addr
    else:
        new.vm_start = addr
        new.vm_pgoff = vma_ops.linear_page_index(vma, addr)
    if vma_ops.vma_tree_fails(m, "vma_tree_prealloc"):
        return -ENOMEM
    if rmap.anon_vma_clone(new, vma, rmap.VMA_OP_SPLIT):
        return -ENOMEM
    huge_memory.vma_adjust_trans_huge(vma, *((addr, vma.vm_end) if new_below else (vma.vm_start, addr)), None)
    anon_vma = vma.anon_vma
    mapping = vma.vm_file.f_mapping if vma.vm_file else None
    if mapping:
        mapping.i_mmap_rwsem.down_write()
        mapping.i_mmap.insert(new)
    if anon_vma:
        rmap.anon_vma_lock_write(anon_vma)
        rmap.anon_vma_interval_tree_pre_update_vma(vma)
    if mapping:
        mapping.i_mmap.remove(vma)
    if new_below:
        pgoff = vma_ops.linear_page_index(vma, addr)
        mm.mm_mt.move(vma, addr, vma.vm_end)
        vma.vm_pgoff = pgoff
    else:
        mm.mm_mt.move(vma, vma.vm_start, addr)
    if mapping:
        mapping.i_mmap.insert(vma)
    mm.mm_mt.insert(new)
    mm.map_count += 1
    if anon_vma:
        rmap.anon_vma_interval_tree_post_update_vma(vma)
        rmap.anon_vma_unlock_write(anon_vma)
    if mapping:
        mapping.i_mmap_rwsem.up_write()
    return 0


def split_vma(vma: VmAreaStruct, addr: int, new_below: bool) -> int:
    """As ``_split_vma``, ENOMEM at max_map_count."""
    mm = vma.vm_mm
    if mm.map_count >= sys.sysctl_max_map_count(mm):
        return -ENOMEM
    return _split_vma(vma, addr, new_below)


def vma_modify(vmg: vma_ops.VmaMergeStruct) -> VmAreaStruct | int:
    """Merge the range with its neighbours, else cut it out of ``middle``. The caller sets the attributes.

    A tail split that fails leaves the front split in place: harmless, but user space can see it.
    """
    merged = vma_ops.vma_merge_existing_range(vmg)
    if merged is not None:
        return merged
    if vmg.state == vma_ops.VMA_MERGE_ERROR_NOMEM:
        return -ENOMEM
    vma = vmg.middle
    assert vma is not None
    if vma.vm_start < vmg.start:
        error = split_vma(vma, vmg.start, True)
        if error:
            return error
    if vma.vm_end > vmg.end:
        error = split_vma(vma, vmg.end, False)
        if error:
            return error
    return vma


def vma_modify_flags(
    prev: VmAreaStruct | None, vma: VmAreaStruct, start: int, end: int, vm_flags: int
) -> VmAreaStruct | int:
    """[start, end) of ``vma`` is to get ``vm_flags``: the VMA to set them on, or -ENOMEM."""
    vmg = vma_ops.vmg_of_vma(prev, vma, start, end)
    vmg.vm_flags = vm_flags
    return vma_modify(vmg)


def vma_modify_name(
    prev: VmAreaStruct | None, vma: VmAreaStruct, start: int, end: int, name: str | None
) -> VmAreaStruct | int:
    """As ``vma_modify_flags``, for another name."""
    vmg = vma_ops.vmg_of_vma(prev, vma, start, end)
    vmg.anon_name = name
    return vma_modify(vmg)


def vma_modify_policy(
    prev: VmAreaStruct | None, vma: VmAreaStruct, start: int, end: int, policy: object
) -> VmAreaStruct | int:
    """As ``vma_modify_flags``, for another memory policy."""
    vmg = vma_ops.vmg_of_vma(prev, vma, start, end)
    vmg.policy = policy
    return vma_modify(vmg)


def vma_modify_flags_uffd(
    prev: VmAreaStruct | None,
    vma: VmAreaStruct,
    start: int,
    end: int,
    vm_flags: int,
    ctx: UserfaultfdCtx | None,
    give_up_on_oom: bool,
) -> VmAreaStruct | int:
    """As ``vma_modify_flags``, with another userfaultfd context. ``give_up_on_oom``: rather no merge than -ENOMEM."""
    vmg = vma_ops.vmg_of_vma(prev, vma, start, end)
    vmg.vm_flags = vm_flags
    vmg.uffd_ctx = ctx
    vmg.give_up_on_oom = give_up_on_oom
    return vma_modify(vmg)
