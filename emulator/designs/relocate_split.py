"""Relocation without an undo: the destination VMA is split where a folio cannot be relocated.

Source: H. Yoo on patch 01/11 of MREMAP_RELOCATE_ANON, 17 June 2025, in full: "Maybe split the VMA at the point where it
fails, instead of undo?" So it stands on ``relocate_anon.py``, and differs only where that gives up.

The part of the destination before that point is relocated, and may merge with what stands before it. The rest keeps the
page offsets and the anon_vma of the source, as an ordinary move leaves them. Left open, and chosen here:

* One split: nothing behind the first folio that cannot be relocated is relocated, though it could be.
* Where not even the first page can be relocated, and where there is no memory for the second VMA, the patch's
  undo stays. So it does where page tables cannot be moved: the sentence speaks of relocation only.
* What the patch passes over (pinned pages, swap entries) is passed over: it is no failure to the patch.
* The page tables of the rest move first, so that a failure there finds nothing moved that was relocated.
"""

from __future__ import annotations

from collections.abc import Callable

from emulator.designs.relocate_anon import RelocateAnon
from emulator.mm import mremap, mremap_tables, rmap, vma, vma_modify
from emulator.mm_types import VM_ACCOUNT, VmAreaStruct
from emulator.rmap_types import avc_insert
from emulator.uapi import MREMAP_DONTUNMAP

GiveUp = Callable[[mremap.VmaRemapStruct, mremap_tables.PagetableMoveControl, int], tuple[int, bool]]


def make_tail(pmc: mremap_tables.PagetableMoveControl, reached: int) -> VmAreaStruct | None:
    """The VMA for what is not relocated, linked to the source's anon_vma, in no tree of VMAs yet. None: no memory.

    The source has one AVC: what a fork child has is not relocated.
    """
    old, new = pmc.old, pmc.new
    m = old.vm_mm.machine
    tail = vma_modify.vm_area_dup(old)
    if tail is None or vma.vma_tree_fails(m, "vma_tree_prealloc"):
        return None
    assert old.anon_vma is not None
    avc = rmap.anon_vma_chain_alloc(m, tail, old.anon_vma)
    if avc is None:
        return None
    tail.vm_start, tail.vm_end = pmc.new_addr + reached - pmc.old_addr, new.vm_end
    tail.vm_pgoff = vma.linear_page_index(old, reached)
    mremap_tables.take_rmap_locks(pmc)
    tail.anon_vma_chain.append(avc)
    avc_insert(avc)
    old.anon_vma.num_active_vmas += 1
    mremap_tables.drop_rmap_locks(pmc)
    return tail


def split_instead(
    original: GiveUp, vrm: mremap.VmaRemapStruct, pmc: mremap_tables.PagetableMoveControl, reached: int
) -> tuple[int, bool]:
    """Cut the destination at the folio that cannot be relocated, and go on with what is before it."""
    tail = make_tail(pmc, reached) if reached > pmc.old_addr else None
    if tail is None:
        return original(vrm, pmc, reached)
    mm, new = vrm.mm, pmc.new
    rmap.anon_vma_interval_tree_pre_update_vma(new)  # under the lock that the relocation holds
    mm.mm_mt.move(new, new.vm_start, tail.vm_start)
    rmap.anon_vma_interval_tree_post_update_vma(new)
    mm.mm_mt.insert(tail)
    mm.map_count += 1
    pmc.old_end = reached
    pmc.len_in = reached - pmc.old_addr
    mm.machine.sched.point("relocate.vma_split")
    return 0, True


def move_tables(vrm: mremap.VmaRemapStruct, pmc: mremap_tables.PagetableMoveControl) -> int:
    """The rest first. Where not everything can be moved, it is moved back: the bytes of the relocated part, at most."""
    end = vrm.addr + vrm.old_len
    rest = end - pmc.old_end
    if not rest:
        return mremap_tables.move_page_tables(pmc)
    tail = vma.vma_next(pmc.new)
    assert tail is not None
    forth = mremap_tables.PagetableMoveControl(pmc.old, tail, pmc.old_end, tail.vm_start, rest)
    forth.relocate_locked = pmc.relocate_locked
    moved_rest = mremap_tables.move_page_tables(forth)
    moved = mremap_tables.move_page_tables(pmc) if moved_rest == rest else 0
    if moved == end - rest - vrm.addr:
        return moved + rest
    back = mremap_tables.PagetableMoveControl(tail, pmc.old, tail.vm_start, pmc.old_end, moved_rest)
    back.relocate_locked = pmc.relocate_locked
    back.need_rmap_locks = True
    mremap_tables.move_page_tables(back)
    if not vrm.flags & MREMAP_DONTUNMAP:
        tail.vm_flags &= (
            ~VM_ACCOUNT
        )  # as of the other part: the unmap must not uncharge what the source keeps
    return moved


class RelocateSplit(RelocateAnon):
    """Relocate folios at mremap; cut the VMA at the first that cannot be relocated."""

    name = "relocate-split"
    summary = "MREMAP_RELOCATE_ANON as H. Yoo would have it: split the VMA where relocation fails, no undo"
    source = (
        "H. Yoo, 17 June 2025, on 22a80f22ba2082b28ee0b0a925eb3dbb37c2a786.1749473726.git.lorenzo.stoakes@…"
    )
    replaces = {
        "relocate_anon.give_up": split_instead,
        "relocate_anon.move_tables": move_tables,
    }
