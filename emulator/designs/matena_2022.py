"""Page offsets updated in mremap, VMAs of different anon_vmas merged: J. Matena's RFC as first posted, flaws included.

Source: "[RFC PATCH 0/4] Removing limitations of merging anonymous VMAs", 18 February 2022, on 5.17-rc4: 2/4 "mm:
adjust page offset in mremap", 3/4 "mm: enable merging of VMAs with different anon_vmas", and the tracepoints of 4/4,
on top of 1/4, which is ``eight_case_refactored.py``. Run it with ``--profile 5.17``.

2/4: when a faulted VMA moves, and neither its anon_vma nor any of its pages is shared with another process, each page
gets the index, and the new VMA the page offset, of the new place. 3/4: a range whose anon_vma is nobody else's may
merge with a neighbour that has another; the pages of a VMA that vanishes in the merge get the other's anon_vma.
4/4 adds tracepoints, which every design has here: ``emulator/tracepoints.py``.

Left open, and chosen here: the index of a page that is part of a huge page lies, in the third page, where the list of
huge pages that wait to be split has a link. The machine has no such field, and complains in place of the crash.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from emulator.designs.eight_case import area_and_next, is_mergeable_vma, merge_into_next, vma_adjust
from emulator.designs.eight_case_refactored import EightCaseRefactored
from emulator.errors import KernelBug
from emulator.geometry import LEVEL_PMD, LEVEL_PTE, PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import PFN_SHIFT, PRESENT
from emulator.mm import pgtable_generic, rmap, rmap_counts, swap, vma
from emulator.mm_types import VM_SPECIAL, Folio, VmAreaStruct
from emulator.rmap_types import AnonVma

CopyVma = Callable[[VmAreaStruct, int, int, int], tuple[VmAreaStruct, VmAreaStruct, bool] | None]


class VmaMergeRes(IntEnum):
    """enum vma_merge_res: why a merge failed or what it is. From ``AV_MERGE_SAME`` on it may go ahead (MERGE_OK)."""

    MERGE_FAILED = 0
    AV_MERGE_FAILED = 1
    AV_MERGE_SAME = 2
    AV_MERGE_DIFFERENT = 3


MERGE_OK = VmaMergeRes.AV_MERGE_SAME


# ---- pages and who has them


def rbt_no_children(anon_vma: AnonVma) -> bool:
    """Does every VMA of its tree call this anon_vma its own? (A child's does not.) No lock is held."""
    degree = anon_vma.num_children + anon_vma.num_active_vmas
    return degree <= 1 or all(key.avc.vma.anon_vma is anon_vma for key in anon_vma.rb_root)


def follow_page(area: VmAreaStruct, addr: int) -> tuple[Folio, int] | None:
    """follow_page(FOLL_GET): what is present at ``addr``, the zero page too: folio, referenced, and page of it."""
    mm = area.vm_mm
    table = pgtable_generic.find_table(mm, addr, LEVEL_PMD)
    if table is None:
        return None
    slot = pgtable_generic.slot_of(mm, addr, LEVEL_PMD)
    entry = table.entries.get(slot, 0)
    offset = (addr & (mm.machine.geometry.pmd_size - 1)) >> PAGE_SHIFT
    if isinstance(entry, PageTable):
        table, slot, offset = entry, pgtable_generic.slot_of(mm, addr, LEVEL_PTE), 0
    table.ptl.lock()
    entry = table.entries.get(slot, 0)
    found = None
    if isinstance(entry, int) and entry & PRESENT:
        pfn = (entry >> PFN_SHIFT) + offset
        folio = mm.machine.phys.frames[pfn]
        swap.folio_get(folio)
        found = folio, pfn - folio.pfn
    table.ptl.unlock()
    return found


def pages_of(area: VmAreaStruct) -> range:
    """The addresses of its pages."""
    return range(area.vm_start, area.vm_end, PAGE_SIZE)


# ---- 2/4: page offsets


def is_shared(area: VmAreaStruct) -> bool:
    """May another process have pages of the VMA: by its anon_vma, or by the mapcount of one of them?"""
    m = area.vm_mm.machine
    anon_vma = area.anon_vma
    assert anon_vma is not None
    if anon_vma.root is not anon_vma or not rbt_no_children(anon_vma):
        return True
    for addr in pages_of(area):
        page = follow_page(area, addr)
        if page is not None:
            folio, number = page
            mapcount = folio.mapcounts[number] + folio.entire_mapcount
            swap.folio_put(m, folio)
            if mapcount > 1:
                return True
    return False


def update_faulted_pgoff(area: VmAreaStruct, addr: int) -> int | None:
    """Give every page of the VMA, also those that do not move, the index that it has when the VMA begins at ``addr``.

    Returns the page offset of ``addr``; None, and nothing done, when something is shared. The rmap locks are not taken.
    """
    if is_shared(area):
        return None
    m = area.vm_mm.machine
    pgoff = addr >> PAGE_SHIFT
    for number, where in enumerate(pages_of(area)):
        page = follow_page(area, where)
        if page is not None:
            folio, of_folio = page
            folio.lock.lock()
            set_page_index(folio, of_folio, pgoff + number)
            m.sched.point("relocate.index_updated")
            folio.lock.unlock()
            swap.folio_put(m, folio)
    return pgoff


def set_page_index(folio: Folio, page: int, index: int) -> None:
    """``page->index = index``, whatever the page is."""
    if page == 0:
        folio.index = index
    elif page == 2 and isinstance(folio.mapping, AnonVma):
        m = folio.mapping.machine
        m.warn(
            "tail-page-index",
            "the index of a tail page was written: it is a link of a list of huge pages",
            folio,
        )


def copy_vma(
    original: CopyVma, area: VmAreaStruct, addr: int, length: int, pgoff: int
) -> tuple[VmAreaStruct, VmAreaStruct, bool] | None:
    """The destination gets the page offset of its place, if the pages could be given theirs."""
    if area.anon_vma is not None and vma.vma_is_anonymous(area):
        there = update_faulted_pgoff(area, addr)
        pgoff = pgoff if there is None else there
    return original(area, addr, length, pgoff)


# ---- 3/4: anon_vmas


def is_mergeable_anon_vma(
    one: AnonVma | None, other: AnonVma | None, area: VmAreaStruct | None
) -> VmaMergeRes:
    """May what hangs at ``one`` merge with what hangs at ``other``? Only ``one`` is looked at for children."""
    if (one is None or other is None) and (area is None or len(area.anon_vma_chain) == 1):
        return VmaMergeRes.AV_MERGE_SAME
    if one is other:
        return VmaMergeRes.AV_MERGE_SAME
    if one is not None and other is not None and one.root is one and rbt_no_children(one):
        return VmaMergeRes.AV_MERGE_DIFFERENT
    return VmaMergeRes.AV_MERGE_FAILED


def reconnect_pages(area: VmAreaStruct, old: VmAreaStruct) -> None:
    """The pages of ``old``, which is part of ``area`` now, get its anon_vma."""
    if old.anon_vma is area.anon_vma or area.anon_vma is None or old.anon_vma is None:
        return
    m = area.vm_mm.machine
    for addr in pages_of(old):
        page = follow_page(old, addr)
        if page is None:
            continue
        folio, number = page
        folio.lock.lock()
        # page_get_anon_vma: of a tail page nothing; the reference that it takes is not given back
        anon_vma = rmap.folio_get_anon_vma(folio) if number == 0 else None
        if anon_vma is not None:
            if anon_vma is not old.anon_vma:
                raise KernelBug("reconnect-anon-vma", f"{folio} in {old} hangs at another anon_vma", folio)
            rmap_counts.folio_move_anon_rmap(folio, area)
            m.sched.point("merge.page_reconnected")
        folio.lock.unlock()
        swap.folio_put(m, folio)


def anon_vma_merge(area: VmAreaStruct, removed: VmAreaStruct) -> None:
    """``removed`` is part of ``area`` now: its pages get the other's anon_vma, and it leaves the rmap."""
    one, other = area.anon_vma, removed.anon_vma
    if one is not None and other is not None and one is not other:
        if other.root is not other or not rbt_no_children(other):
            raise KernelBug(
                "anon-vma-merge", f"{removed} vanishes in a merge, and its pages may be shared", other
            )
    reconnect_pages(area, removed)
    rmap.unlink_anon_vmas(removed)


# ---- 1/4 with more than two answers


def can_vma_merge_before(vmg: vma.VmaMergeStruct, following: VmAreaStruct | None) -> VmaMergeRes:
    """Does the range end where ``following`` begins, and fit it?"""
    pages = (vmg.end - vmg.start) >> PAGE_SHIFT
    if following is not None and vmg.end == following.vm_start and following.vm_policy == vmg.policy:
        if is_mergeable_vma(vmg, following) and following.vm_pgoff == vmg.pgoff + pages:
            return is_mergeable_anon_vma(vmg.anon_vma, following.anon_vma, following)
    return VmaMergeRes.MERGE_FAILED


def can_vma_merge_after(vmg: vma.VmaMergeStruct) -> VmaMergeRes:
    """Does the range begin where ``prev`` ends, and fit it?"""
    prev = vmg.prev
    if prev is not None and prev.vm_end == vmg.start and prev.vm_policy == vmg.policy:
        if is_mergeable_vma(vmg, prev) and prev.vm_pgoff + vma.vma_pages(prev) == vmg.pgoff:
            return is_mergeable_anon_vma(vmg.anon_vma, prev.anon_vma, prev)
    return VmaMergeRes.MERGE_FAILED


def vma_merge(vmg: vma.VmaMergeStruct) -> VmAreaStruct | None:
    """As 1/4 has it, with the reasons kept."""
    if vmg.vm_flags & VM_SPECIAL:
        return None
    area, following = area_and_next(vmg)
    prev = vmg.prev
    merge_prev = can_vma_merge_after(vmg)
    merge_next = can_vma_merge_before(vmg, following)
    merge_both = VmaMergeRes.MERGE_FAILED
    if merge_prev >= MERGE_OK and merge_next >= MERGE_OK:
        assert prev is not None
        assert following is not None
        merge_both = is_mergeable_anon_vma(prev.anon_vma, following.anon_vma, None)
    merged, error = None, -1
    if merge_prev >= MERGE_OK:
        assert prev is not None
        end = following.vm_end if merge_both >= MERGE_OK and following is not None else vmg.end
        merged, error = prev, vma_adjust(prev, prev.vm_start, end, prev.vm_pgoff, expand=prev)
    elif merge_next >= MERGE_OK:
        assert following is not None
        merged, error = following, merge_into_next(vmg, area, following)
    return None if error else merged


class Matena2022(EightCaseRefactored):
    """Page offsets follow a move, and anon_vmas need not be the same."""

    name = "matena-2022"
    summary = "the 2022 RFC: page offsets updated in mremap, VMAs of different anon_vmas merged (for --profile 5.17)"
    source = "J. Matena, [RFC PATCH 0/4] Removing limitations of merging anonymous VMAs, 18 February 2022"
    replaces = {
        "eight_case.anon_vma_merge": anon_vma_merge,
        "eight_case_refactored.vma_merge": vma_merge,
        "vma_link.copy_vma": copy_vma,
    }
