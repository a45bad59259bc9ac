"""The reverse map of anonymous memory as views: what the kernel and the machine call their objects, numbered alike.

Addresses of anon_vmas in a running kernel and creation numbers in the machine tell objects apart, and mean nothing
else. A walk over the processes by label, their VMAs by address, then their pages, numbers each by first appearance;
so equal graphs give equal views.

Source of the rules: mm/rmap.c, include/linux/rmap.h, include/linux/page-flags.h (low bits of folio->mapping).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.geometry import PAGE_SHIFT
from emulator.hw.pte import PRESENT, SPECIAL, pte_pfn
from emulator.rmap_types import AnonVma
from oracle.leaves import leaves_between
from oracle.live.view import AnonView, FolioView

if TYPE_CHECKING:
    from emulator.machine import Machine
    from emulator.mm_types import MmStruct, VmAreaStruct

NONE: Final = 0  # no anon_vma, in raw data

_MAPPING_ANON: Final = 1
_MAPPING_KSM: Final = 3  # both low bits: the rest is a node of the stable tree, no anon_vma
_MAPPING_BITS: Final = 3


class RawVma(NamedTuple):
    """One VMA. Anon_vmas are named by any numbers that tell them apart, ``NONE`` for none."""

    start: int  # bytes
    end: int  # bytes
    pgoff: int  # vm_pgoff: pages
    file: bool  # it maps a file, so pgoff counts from the file's start
    anon_vma: int
    root: int
    parent: int
    num_children: int  # live anon_vmas whose parent this one is; a root counts itself
    num_active_vmas: int  # VMAs whose anon_vma this one is
    chain: tuple[int, ...]  # anon_vmas of the VMA's AVCs, from the head of the chain


class RawFolio(NamedTuple):
    """What an anonymous page says where it belongs."""

    anon_vma: int  # folio->mapping; NONE for a KSM page
    pgoff: int  # folio->index, of this very page; 0 for a KSM page, whose index means nothing here


class RawProcess(NamedTuple):
    """One process: VMAs in address order, anonymous pages by address (bytes)."""

    vmas: Sequence[RawVma]
    pages: Mapping[int, RawFolio]


RmapView = tuple[tuple[AnonView, ...], tuple[FolioView, ...]]


def decode_folio(mapping: int, index: int) -> RawFolio | None:
    """The kernel's two fields of an anonymous page (``index`` of that very page); None: the page is not anonymous."""
    if not mapping & _MAPPING_ANON:
        return None
    if mapping & _MAPPING_BITS == _MAPPING_KSM:
        return RawFolio(NONE, 0)
    return RawFolio(mapping & ~_MAPPING_BITS, index)


def rmap_views(processes: Mapping[int, RawProcess], arena_start: int) -> dict[int, RmapView]:
    """Views of all processes (by label); ``arena_start`` in bytes."""
    numbers: dict[int, int] = {}

    def number(anon_vma: int) -> int:
        return -1 if anon_vma == NONE else numbers.setdefault(anon_vma, len(numbers))

    views = {}
    first = arena_start >> PAGE_SHIFT
    for label, (vmas, pages) in sorted(processes.items()):
        anon_vmas = tuple(
            AnonView(
                (vma.start >> PAGE_SHIFT) - first,
                vma.pgoff if vma.file else vma.pgoff - first,
                number(vma.anon_vma),
                number(vma.root),
                number(vma.parent),
                vma.num_children,
                vma.num_active_vmas,
                tuple(map(number, vma.chain)),
            )
            for vma in vmas
        )
        starts = [vma.start for vma in vmas]
        folios = []
        for address, folio in sorted(pages.items()):
            pgoff = folio.pgoff
            if folio.anon_vma != NONE:
                place = bisect_right(starts, address) - 1
                if place < 0 or not vmas[place].file:
                    pgoff -= first
            folios.append(FolioView((address >> PAGE_SHIFT) - first, number(folio.anon_vma), pgoff))
        views[label] = anon_vmas, tuple(folios)
    return views


def live_rmap(
    vmas: Mapping[int, Sequence[RawVma]],
    frames: Mapping[int, Mapping[int, int]],
    folios: Mapping[int, RawFolio],
    arena_start: int,
) -> dict[int, RmapView]:
    """Views of a running kernel's processes.

    ``vmas``: by label, those of the arena. ``frames``: by label, arena page to frame number of every present page.
    ``folios``: frame number to what the probe says; pages whose frame it leaves out are not anonymous.
    ``arena_start`` in bytes.
    """
    processes = {}
    for label, of_process in vmas.items():
        pages = {
            arena_start + (page << PAGE_SHIFT): folios[pfn]
            for page, pfn in frames.get(label, {}).items()
            if pfn in folios
        }
        processes[label] = RawProcess(of_process, pages)
    return rmap_views(processes, arena_start)


def machine_rmap(machine: Machine) -> dict[int, RmapView]:
    """Views of the machine's processes."""
    geometry = machine.geometry
    low, high = geometry.arena_start, geometry.arena_end
    processes = {
        label: RawProcess([_raw_vma(vma) for vma in mm.mm_mt.overlapping(low, high)], _raw_pages(machine, mm))
        for label, mm in machine.procs.items()
    }
    return rmap_views(processes, low)


def _raw_vma(vma: VmAreaStruct) -> RawVma:
    chain = tuple(avc.anon_vma.serial for avc in vma.anon_vma_chain)
    file = vma.vm_file is not None
    anon_vma = vma.anon_vma
    if anon_vma is None:
        return RawVma(vma.vm_start, vma.vm_end, vma.vm_pgoff, file, NONE, NONE, NONE, 0, 0, chain)
    return RawVma(
        vma.vm_start,
        vma.vm_end,
        vma.vm_pgoff,
        file,
        anon_vma.serial,
        anon_vma.root.serial,
        anon_vma.parent.serial,
        anon_vma.num_children,
        anon_vma.num_active_vmas,
        chain,
    )


def _raw_pages(machine: Machine, mm: MmStruct) -> dict[int, RawFolio]:
    """Present anonymous pages of the arena, those of huge pages one by one."""
    geometry = machine.geometry
    pages = {}
    for table, _, address, entry in leaves_between(mm, geometry, geometry.arena_start, geometry.arena_end):
        if not entry & PRESENT or entry & SPECIAL:
            continue
        folio = machine.phys.frames[pte_pfn(entry)]
        if not folio.anon:
            continue
        first = pte_pfn(entry) - folio.pfn
        for i in range(1 << table.level * geometry.bits):
            raw = RawFolio(NONE, 0)
            if not folio.ksm and isinstance(folio.mapping, AnonVma):
                raw = RawFolio(folio.mapping.serial, folio.index + first + i)
            pages[address + (i << PAGE_SHIFT)] = raw
    return pages
