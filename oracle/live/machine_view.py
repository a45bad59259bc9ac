"""The machine's side of the live oracle: its processes in the form of ``view``, read from data only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from emulator import mm_types
from emulator.geometry import PAGE_SHIFT
from emulator.hw.pte import PRESENT, SPECIAL, UFFD_WP, is_guard, is_uffd_wp_marker
from emulator.machine import Machine
from emulator.mm_types import VM_ACCESS_FLAGS, VM_MAYSHARE, Folio, MmStruct, VmAreaStruct
from oracle.leaves import KIND_MARKER, leaf_key
from oracle.live.rmap_view import machine_rmap
from oracle.live.view import Counters, Depth, PageView, ProcessView, VmaView

# Which two letters /proc/PID/smaps shows for a flag (fs/proc/task_mmu.c).
FLAGS: Final = {
    mm_types.VM_GROWSDOWN: "gd",
    mm_types.VM_PFNMAP: "pf",
    mm_types.VM_MAYBE_GUARD: "gu",
    mm_types.VM_LOCKED: "lo",
    mm_types.VM_IO: "io",
    mm_types.VM_SEQ_READ: "sr",
    mm_types.VM_RAND_READ: "rr",
    mm_types.VM_DONTCOPY: "dc",
    mm_types.VM_DONTEXPAND: "de",
    mm_types.VM_LOCKONFAULT: "lf",
    mm_types.VM_ACCOUNT: "ac",
    mm_types.VM_NORESERVE: "nr",
    mm_types.VM_HUGETLB: "ht",
    mm_types.VM_WIPEONFORK: "wf",
    mm_types.VM_DONTDUMP: "dd",
    mm_types.VM_MIXEDMAP: "mm",
    mm_types.VM_HUGEPAGE: "hg",
    mm_types.VM_NOHUGEPAGE: "nh",
    mm_types.VM_MERGEABLE: "mg",
    mm_types.VM_DROPPABLE: "dp",
    mm_types.VM_SEALED: "sl",
    mm_types.VM_UFFD_MISSING: "um",
    mm_types.VM_UFFD_WP: "uw",
    mm_types.VM_UFFD_MINOR: "ui",
}

NO_FLAGS: Final[frozenset[str]] = frozenset()
_PROTECTED: Final = frozenset(("wp",))  # by userfaultfd
_HUGE: Final = frozenset(("thp",))  # a huge page that is mapped as a whole

Numbers = dict[tuple[str, int], int]
"""(what, frame or slot) to its number in the views of a step."""


def view(machine: Machine, depth: Depth) -> dict[int, ProcessView]:
    """Every living process by label."""
    numbers: Numbers = {}
    found = {label: _process(mm, depth, numbers) for label, mm in sorted(machine.procs.items())}
    if depth >= Depth.RMAP:
        for label, (anon_vmas, folios) in machine_rmap(machine).items():
            found[label] = found[label]._replace(anon_vmas=anon_vmas, folios=folios)
    return found


def _process(mm: MmStruct, depth: Depth, numbers: Numbers) -> ProcessView:
    counters = Counters(mm.total_vm, mm.locked_vm, mm.data_vm, mm.stack_vm)
    pages = tuple(_pages(mm, numbers)) if depth >= Depth.PAGES else ()
    return ProcessView(tuple(_vma(mm, area) for area in mm.mm_mt), counters, pages)


def _vma(mm: MmStruct, area: VmAreaStruct) -> VmaView:
    first = mm.machine.geometry.arena_start
    flags = area.vm_flags
    file = area.vm_file
    return VmaView(
        area.vm_start - first >> PAGE_SHIFT,
        area.vm_end - first >> PAGE_SHIFT,
        flags & VM_ACCESS_FLAGS,
        bool(flags & VM_MAYSHARE),
        file.label + 1 if file is not None else 0,
        area.vm_pgoff if file is not None else 0,
        frozenset(name for bit, name in FLAGS.items() if flags & bit),
    )


# ---- pages


def _pages(mm: MmStruct, numbers: Numbers) -> Iterator[PageView]:
    """The pages that have an entry, in order; present small pages of the page cache left out."""
    geometry = mm.machine.geometry
    for address, level, entry in mm.pgd.leaves(geometry):
        page = address - geometry.arena_start >> PAGE_SHIFT
        if not entry & PRESENT:
            shown = _absent(page, entry, numbers)
            if shown is not None:
                yield shown
            continue
        size = 1 << geometry.shifts[level] - PAGE_SHIFT  # pages; more than one where it is huge
        if entry & SPECIAL:
            flags = _protection(entry) | (_HUGE if level else NO_FLAGS)
            yield from (PageView(page + i, "zero", False, -1, -1, flags) for i in range(size))
        else:
            yield from _present(mm.machine, page, entry, size, numbers)


def _absent(page: int, entry: int, numbers: Numbers) -> PageView | None:
    if leaf_key(entry) & 7 == KIND_MARKER:
        state = "guard" if is_guard(entry) else "marker" if is_uffd_wp_marker(entry) else "poison"
        return PageView(page, state, False, -1, -1, NO_FLAGS)
    number = numbers.setdefault(("swap", entry >> PAGE_SHIFT), len(numbers))
    return PageView(page, "swap", False, number, -1, _protection(entry))


def _protection(entry: int) -> frozenset[str]:
    return _PROTECTED if entry & UFFD_WP else NO_FLAGS


def _present(machine: Machine, page: int, entry: int, size: int, numbers: Numbers) -> Iterator[PageView]:
    """``size`` pages that one entry maps.

    Linux 6.15 to 7.0 tell of all the pages of a huge page whether the *first* is mapped exclusively
    (pagemap_pmd_range_thp hands the same page in for each; docs/mainline-findings.md).
    """
    pfn = entry >> PAGE_SHIFT
    folio = machine.phys.frames[pfn]
    first = pfn - folio.pfn
    if not folio.anon:
        if size > 1:
            flags = _HUGE | _protection(entry)
            for i in range(size):
                yield PageView(page + i, "file", False, numbers.setdefault(("frame", pfn + i), len(numbers)), -1, flags)
        return
    exclusive = folio.mapcounts[first] + folio.entire_mapcount == 1
    for i in range(size):
        number = numbers.setdefault(("frame", pfn + i), len(numbers))
        mapcount = folio.mapcounts[first + i] + folio.entire_mapcount
        flags = _folio_flags(folio, first + i) | _protection(entry)
        yield PageView(page + i, "present", exclusive, number, mapcount, flags)


def _folio_flags(folio: Folio, i: int) -> frozenset[str]:
    """What /proc/kpageflags says of page ``i``."""
    names = ["anon"]
    if folio.swapcache:
        names.append("swapcache")
    if folio.ksm:
        names.append("ksm")
    if folio.mlocked:
        names.append("mlocked")
    if folio.order:
        names += ["thp", "tail" if i else "head"]
    return frozenset(names)
