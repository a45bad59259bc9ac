"""Guard regions that fork copies without an anon_vma: a flag in the bits that the pointer to it leaves free.

Source: L. Stoakes, "[RFC 0/2] mm: introduce anon_vma flags, reduce kernel allocs", 5 March 2025
(cover.1741185865.git.lorenzo.stoakes@oracle.com). Put on hold on the same day for a VMA flag (``sticky_flag_2025``).

Fork copies the page tables of faulted VMAs only, so installing a guard region gave the VMA an anon_vma. Here it gets
ANON_VMA_UNFAULTED in its place: "no anon_vma yet, but page tables". The VMA stays unfaulted, and when it moves it takes
the page offset of its new place, with which it merges. The first fault replaces the flag by an anon_vma.

The flag and the pointer are one word in the patch, and two fields here: who writes an anon_vma clears the flag.

Not expressed: khugepaged, which leaves the page tables of a flagged file mapping alone. The machine has no huge pages
of files.
Left open, and chosen here: rules that have changed since for other reasons are those of the profile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from emulator.designs.base import Design
from emulator.geometry import LEVEL_PTE
from emulator.hw.pte import is_guard
from emulator.mm import pgtable_generic
from emulator.mm_types import VM_WIPEONFORK, MmStruct, VmAreaStruct
from emulator.uapi import EINVAL

Original = Callable[..., Any]  # what mainline does

ANON_VMA_UNFAULTED: Final = 1


def prepare_guards(area: VmAreaStruct) -> int:
    """Nothing: the flag is set when markers are there."""
    return 0


def vma_set_anon_vma_if_unset(area: VmAreaStruct, flags: int) -> None:
    """An anon_vma has precedence. (The patch takes page_table_lock, as a fault does that sets one.)"""
    if area.anon_vma is None:
        area.anon_vma_flags = flags


def begins_guarded(area: VmAreaStruct, addr: int) -> bool:
    """Is there a guard marker at ``addr``? The walk counts from there, so it has counted none if not."""
    table = pgtable_generic.find_table(area.vm_mm, addr, LEVEL_PTE)
    entry = 0 if table is None else table.entries.get(pgtable_generic.slot_of(area.vm_mm, addr, LEVEL_PTE), 0)
    return is_guard(entry)  # type: ignore[arg-type]


def madvise_guard_install(original: Original, area: VmAreaStruct, start: int, end: int) -> int:
    """Also when it fails in the middle, and when pages were in the way too often: what is there must be copied."""
    result: int = original(area, start, end)
    if result != -EINVAL and begins_guarded(area, start):
        vma_set_anon_vma_if_unset(area, ANON_VMA_UNFAULTED)
    return result


def madvise_guard_remove(original: Original, area: VmAreaStruct, start: int, end: int) -> int:
    """Over all of the VMA: there are no guards any more, unless somebody has installed one since the walk."""
    error: int = original(area, start, end)
    area.vm_mm.machine.sched.point("madvise.guards_removed")
    if not error and start == area.vm_start and end == area.vm_end:
        vma_set_anon_vma_if_unset(area, 0)
    return error


def vma_needs_copy(original: Original, dst_vma: VmAreaStruct, src_vma: VmAreaStruct) -> bool:
    """vma_maybe_has_pagetables."""
    return bool(src_vma.anon_vma_flags) or original(dst_vma, src_vma)


def vm_area_dup(original: Original, area: VmAreaStruct) -> VmAreaStruct | None:
    """The word is copied: a split and a move keep the flag, and so does a child."""
    new: VmAreaStruct | None = original(area)
    if new is not None:
        new.anon_vma_flags = area.anon_vma_flags
    return new


def dup_one_vma(original: Original, mm: MmStruct, old: VmAreaStruct) -> int:
    """A child that is to see zeros has no page tables to pass on."""
    error: int = original(mm, old)
    if old.vm_flags & VM_WIPEONFORK and not error:
        new = mm.mm_mt.lookup(old.vm_start)
        assert new is not None
        new.anon_vma_flags = 0
    return error


def _anon_vma_prepare(original: Original, area: VmAreaStruct) -> int:
    error: int = original(area)
    if not error:
        area.anon_vma_flags = 0
    return error


def dup_anon_vma(original: Original, vmg: Any, dst: VmAreaStruct, src: VmAreaStruct) -> int:
    """A merge looks at anon_vmas alone: the flag of what it swallows is lost, and that of its target in a failure."""
    if src.anon_vma is not None and dst.anon_vma is None:
        dst.anon_vma_flags = 0
    error: int = original(vmg, dst, src)
    return error


class UnfaultedFlag2025(Design):
    """ANON_VMA_UNFAULTED."""

    name = "unfaulted-flag-2025"
    summary = "the RFC of March 2025: a flag beside the anon_vma pointer makes fork copy guard regions"
    source = "cover.1741185865.git.lorenzo.stoakes@oracle.com"
    replaces = {
        "madvise.prepare_guards": prepare_guards,
        "madvise.madvise_guard_install": madvise_guard_install,
        "madvise.madvise_guard_remove": madvise_guard_remove,
        "memory_fork.vma_needs_copy": vma_needs_copy,
        "vma_modify.vm_area_dup": vm_area_dup,
        "vma.dup_anon_vma": dup_anon_vma,
        "fork.dup_one_vma": dup_one_vma,
        "rmap._anon_vma_prepare": _anon_vma_prepare,
    }
