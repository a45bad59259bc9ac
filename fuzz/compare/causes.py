"""Why two VMAs that touch are not one, found from the VMAs alone.

No rule of any design or profile is asked, but for the flags that a merge ignores: so the answer means the same for all
of them, and what a design never tries is seen too.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final

from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import VM_SPECIAL, MmStruct, VmAreaStruct


class Cause(Enum):
    """The first difference, in this order, that no merge of anonymous VMAs could overcome; then what one could."""

    FILE = "file"  # other files, other places of one file, or a special mapping
    FLAGS = "flags"  # permissions and other flags, name, memory policy, userfaultfd
    SHARED_PAGES = (
        "shared pages"  # page offset or anon_vma, and both have pages that another process may have too
    )
    PAGE_OFFSET = "page offset"  # one of the two has all its pages for itself, and could be given the other's
    ANON_VMA = "anon_vma"  # likewise; or one has none, and the other's is that of a forked child
    NOTHING = "nothing"  # they could be one


CURABLE: Final = (Cause.SHARED_PAGES, Cause.PAGE_OFFSET, Cause.ANON_VMA)
"""What the 2022 RFC set out to overcome: the first of them it could not."""


def cause(below: VmAreaStruct, above: VmAreaStruct, ignored: int) -> Cause:
    """Why ``below``, which ends where ``above`` begins, is another VMA. ``ignored``: flags that need not be equal."""
    if below.vm_file is not above.vm_file or below.vm_ops is not above.vm_ops:
        return Cause.FILE
    linear = above.vm_pgoff == below.vm_pgoff + ((below.vm_end - below.vm_start) >> PAGE_SHIFT)
    if not linear and below.vm_ops is not None:
        return Cause.FILE
    if (
        (below.vm_flags ^ above.vm_flags) & ~ignored
        or (below.vm_flags | above.vm_flags) & VM_SPECIAL
        or below.anon_name != above.anon_name
        or below.vm_policy != above.vm_policy
        or below.uffd_ctx is not above.uffd_ctx
    ):
        return Cause.FLAGS
    one, other = below.anon_vma, above.anon_vma
    if linear and one is other:
        return Cause.NOTHING
    if one is None or other is None:
        if not linear:
            return Cause.PAGE_OFFSET  # the one without has no page that would have to change
        inherits = len(below.anon_vma_chain) > 1 or len(above.anon_vma_chain) > 1
        return Cause.ANON_VMA if inherits else Cause.NOTHING
    if may_be_shared(below) and may_be_shared(above):
        return Cause.SHARED_PAGES
    return Cause.ANON_VMA if linear else Cause.PAGE_OFFSET


def may_be_shared(vma: VmAreaStruct) -> bool:
    """Hangs a VMA of another process at one of its anon_vmas, so that its pages may be that one's too?"""
    mm = vma.vm_mm
    return any(key[3].vma.vm_mm is not mm for avc in vma.anon_vma_chain for key in avc.anon_vma.rb_root)


def pairs(mm: MmStruct, start: int, end: int) -> Iterator[tuple[VmAreaStruct, VmAreaStruct]]:
    """Neighbours that touch at an address of [start, end] (bytes, both included), in address order."""
    below: VmAreaStruct | None = None
    for vma in mm.mm_mt.overlapping(max(start - 1, 0), end + 1):
        if below is not None and below.vm_end == vma.vm_start:
            yield below, vma
        below = vma
