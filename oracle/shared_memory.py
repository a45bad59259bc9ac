"""Files of memory, for the lifetime oracle: each page in one place, and no file longer than somebody can reach it.

A page stands in the page cache, under its own number, or in swap, in a slot that no other page has; in both it would be
two pages. What is mapped shared and anonymous goes with its last mapping, a memfd stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.workload import SHARED_MEMORY
from oracle.finding import Finding, finding

if TYPE_CHECKING:
    from emulator.fs_types import AddressSpace
    from emulator.machine import Machine


def in_use(machine: Machine) -> bool:
    """Is there any but a memfd that nobody has touched?"""
    files = machine.shared_memory
    return len(files) > 1 or any(mapping.pages or mapping.swapped for mapping in files.values())


def uses_of_slot(machine: Machine, slot: int) -> int:
    """How many pages of files the swap slot holds."""
    return sum(list(mapping.swapped.values()).count(slot) for mapping in machine.shared_memory.values())


def check_pages(machine: Machine, step: int) -> list[Finding]:
    """Every page of every file."""
    found: list[Finding] = []
    for mapping in machine.shared_memory.values():
        wrong = _wrong_page(machine, mapping)
        if wrong:
            rule, detail = wrong
            found.append(finding("lifetime", rule, f"file of memory {mapping.label}: {detail}", step))
    return found


def _wrong_page(machine: Machine, mapping: AddressSpace) -> tuple[str, str] | None:
    for index, folio in mapping.pages.items():
        if folio.freed or folio.mapping is not mapping or not folio.index <= index < folio.index + folio.nr_pages:
            return "file-page-lost", f"its page {index} is {folio}, which does not know of it"
        if index in mapping.swapped:
            return "file-page-twice", f"page {index} is in the page cache and in swap slot {mapping.swapped[index]}"
    for index, slot in mapping.swapped.items():
        if slot not in machine.swap.count:
            return "swap-use-after-free", f"page {index} is in swap slot {slot}, which is free"
    return _wrong_large(mapping)


def _wrong_large(mapping: AddressSpace) -> tuple[str, str] | None:
    """A large folio has all its pages in the page cache; one that was swapped out as a whole, in slots in a row."""
    for folio in {folio.pfn: folio for folio in mapping.pages.values() if folio.order}.values():
        for index in range(folio.index, folio.index + folio.nr_pages):
            if mapping.pages.get(index) is not folio:
                return "file-page-lost", f"page {index} of {folio} is not in the page cache"
    for head, order in mapping.swapped_large.items():
        slots = [mapping.swapped.get(index) for index in range(head, head + (1 << order))]
        first = slots[0]
        if first is None or slots != list(range(first, first + (1 << order))):
            return "file-swap-torn", f"pages {head} to {head + len(slots) - 1} were swapped out as one, to {slots}"
    return None


def check_files(machine: Machine, step: int) -> list[Finding]:
    """Shared anonymous memory lives exactly as long as it is mapped somewhere."""
    mapped = {
        area.vm_file.label
        for mm in machine.procs.values()
        for area in mm.mm_mt
        if area.vm_file is not None and area.vm_file.label >= SHARED_MEMORY
    }
    living = {label for label in machine.shared_memory if label >= SHARED_MEMORY}
    found = []
    if living - mapped:
        detail = f"shared memory {sorted(living - mapped)} is mapped nowhere, and not free"
        found.append(finding("lifetime", "shared-memory-leaked", detail, step))
    if mapped - living:
        detail = f"shared memory {sorted(mapped - living)} has been freed and is still mapped"
        found.append(finding("lifetime", "use-after-free", detail, step, cause="shared memory"))
    return found
