"""VM_MAYBE_GUARD, which fork copies and which sticks in a merge, as first posted.

Source: L. Stoakes, "[PATCH 0/3] introduce VM_MAYBE_GUARD and make it sticky", 29 October 2025
(cover.1761756437.git.lorenzo.stoakes@oracle.com). Version 4 landed: mainline of the profiles that have the flag.

A VMA in which a guard region is installed gets the flag; fork copies its page tables; a merge ignores the flag and
gives it to the merged VMA if one of the parts had it. What version 1 does otherwise than what landed:

* MADV_GUARD_INSTALL takes mmap_lock for writing. (P. Falcato and V. Babka, 30 October: an atomic flag would do.)
* When there is no memory for the anon_vma of anonymous memory, the call goes on without.
* The callers of vma_modify_flags put the flags that they have computed over those of the merged VMA. (Version 3:
  "update vma_modify_flags() to handle residual flags".)

Not expressed: khugepaged, which throws the page tables of a file mapping away that has guards and no anon_vma (later
versions look for the flag there). The machine has no huge pages of files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emulator.designs.base import Design
from emulator.mm import rmap, vma
from emulator.mm_types import VM_MAYBE_GUARD, VmAreaStruct
from emulator.uapi import MADV_GUARD_INSTALL

Original = Callable[..., Any]  # what mainline does


def takes_write_lock(original: Original, advice: int) -> bool:
    return advice == MADV_GUARD_INSTALL or original(advice)


def prepare_guards(area: VmAreaStruct) -> int:
    """Fork copies because of the flag, so a lack of memory for the anon_vma does not matter."""
    if vma.vma_is_anonymous(area):
        rmap.anon_vma_prepare(area)
    area.vm_flags |= VM_MAYBE_GUARD
    return 0


def reset_flags(
    original: Original, prev: VmAreaStruct | None, area: VmAreaStruct, start: int, end: int, change: int
) -> VmAreaStruct | int:
    """The VMA that holds the range has the flag afterwards if ``area`` had it: that a merge set it is forgotten."""
    kept = ~VM_MAYBE_GUARD | area.vm_flags
    changed: VmAreaStruct | int = original(prev, area, start, end, change)
    if isinstance(changed, VmAreaStruct):
        changed.vm_flags &= kept
    return changed


class StickyFlag2025(Design):
    """VM_MAYBE_GUARD, version 1."""

    name = "sticky-flag-2025"
    summary = "VM_MAYBE_GUARD as posted in October 2025: sticky in merges, until mprotect, mlock or madvise reset it"
    source = "cover.1761756437.git.lorenzo.stoakes@oracle.com"
    replaces = {
        "madvise.takes_write_lock": takes_write_lock,
        "madvise.prepare_guards": prepare_guards,
        "madvise.madvise_update_vma": reset_flags,
        "mprotect.mprotect_fixup": reset_flags,
        "mlock.mlock_fixup": reset_flags,
    }
