"""Every VMA that becomes faulted gets an anon_vma of its own: Linux without what rmap 40 brought.

Source: the state before H. Dickins, "[PATCH] rmap 40 better anon_vma sharing", 18 May 2004, which says what it costs:
"different anon_vma heads, and from that point on be unmergeable". It shows what sharing gains.
"""

from __future__ import annotations

from emulator.designs.base import Design
from emulator.mm_types import VmAreaStruct
from emulator.rmap_types import AnonVma


def find_mergeable_anon_vma(area: VmAreaStruct) -> AnonVma | None:
    """No neighbour is asked."""
    return None


class NoAnonVmaSharing(Design):
    """A new anon_vma at each first write fault."""

    name = "no-anon-vma-sharing"
    summary = "no neighbour's anon_vma is shared at the first write fault: the opposite of rmap 40 of 2004"
    source = "what H. Dickins, [PATCH] rmap 40 better anon_vma sharing, 18 May 2004, was to improve"
    replaces = {"vma.find_mergeable_anon_vma": find_mergeable_anon_vma}
