"""What can be seen of an address space from outside, in one form for the running kernel and for the machine.

Both sides fill these values: ``machine_view`` from the machine's data, the live runner from ``/proc`` and BPF.
Where they differ, one of the two is wrong. Names that each side chooses for itself (frames, anon_vmas) are
numbered in the order in which a walk over the view meets them, so equal sharing gives equal numbers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from emulator.workload import Outcome


class Depth(IntEnum):
    """How much is compared; each depth includes those before."""

    MAPS = 1  # results, layout, contents that are read, counters
    PAGES = 2  # what each page is, which frames are shared
    RMAP = 3  # anon_vmas of VMAs, mapping and index of folios


class VmaView(NamedTuple):
    """One VMA. ``start`` and ``end`` are arena pages, ``end`` past the last."""

    start: int
    end: int
    prot: int  # PROT_* bits
    shared: bool  # VM_MAYSHARE: the ``s`` of /proc/PID/maps
    file: int  # as in the mmap op: 0 anonymous, n file n-1
    pgoff: int  # pages; 0 for anonymous memory, where /proc does not show it
    flags: frozenset[str]  # two-letter names of /proc/PID/smaps VmFlags, those of rwx and sharing left out


class PageView(NamedTuple):
    """One page of which /proc/PID/pagemap tells more than that nothing is there.

    Present pages of the page cache are left out: the kernel maps as many around the one that was touched as it likes.
    Not so huge ones that are mapped as a whole.
    """

    page: int  # arena page
    state: str  # present, file, zero (the page of zeros), swap, guard, marker (protected by userfaultfd), poison
    exclusive: bool  # present and mapped nowhere else (bit 56 of pagemap; not PageAnonExclusive)
    frame: int  # number of the frame or swap slot by first appearance in the step's views, -1 where there is none
    mapcount: int  # /proc/kpagecount; -1 where it cannot be known
    # of /proc/kpageflags, those that the machine models: anon swapcache head tail ksm thp mlocked
    flags: frozenset[str]


class AnonView(NamedTuple):
    """The anon_vma of a VMA; numbers by first appearance, -1 for none."""

    start: int  # arena page where the VMA starts
    pgoff: int  # vm_pgoff, pages, of anonymous memory too, relative to the arena's first page
    anon_vma: int
    root: int
    parent: int
    num_children: int
    num_active_vmas: int
    chain: tuple[int, ...]  # anon_vmas of its AVCs, from the head of the chain


class FolioView(NamedTuple):
    """folio->mapping and ->index of a present anonymous page; ``mapping`` numbered as anon_vmas are."""

    page: int
    mapping: int
    pgoff: int  # folio->index of this very page, less the page offset of the arena's first page


class Counters(NamedTuple):
    """Pages, as differences to an empty arena: what /proc/PID/status shows in kB."""

    total_vm: int  # VmSize
    locked_vm: int  # VmLck
    data_vm: int  # VmData
    stack_vm: int  # VmStk


class ProcessView(NamedTuple):
    """One process. What is deeper than the run's depth is empty."""

    vmas: tuple[VmaView, ...]
    counters: Counters
    pages: tuple[PageView, ...] = ()
    anon_vmas: tuple[AnonView, ...] = ()
    folios: tuple[FolioView, ...] = ()


class StepView(NamedTuple):
    """What one step gave, and the processes (by label) as they are after it: every living one."""

    outcomes: tuple[Outcome, ...]
    processes: dict[int, ProcessView]
