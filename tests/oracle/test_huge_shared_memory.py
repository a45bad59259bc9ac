"""Huge pages of files of memory: the lifetime and structure oracles speak when one of them is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.fs_types import AddressSpace
from emulator.hw.pte import RW
from emulator.image import KernelImage
from emulator.machine import Machine
from emulator.mm_types import Folio
from emulator.workload import Workload
from fuzz.workload.text import from_text
from oracle import shared_memory
from oracle.judge import Judge

COLLAPSED = """
world small8
mmap     addr=0 len=16 prot=rw flags=shared|fixed
write    addr=1 at=0
madvise  addr=0 len=8 advice=collapse
"""
PRIVATE = """
world small8
mmap     addr=0 len=8 prot=rw flags=private|fixed file=memfd
read     addr=1
madvise  addr=0 len=8 advice=collapse
"""
SWAPPED = COLLAPSED + "madvise  addr=0 len=8 advice=pageout\n"


def run(text: str) -> tuple[Machine, AddressSpace]:
    """A machine after the workload, and the file of its shared memory."""
    machine = Machine(KernelImage(Mainline), "small8")
    for step in from_text(text).steps:
        machine.run_step(step)
    return machine, next(mapping for label, mapping in machine.shared_memory.items() if label > 2)


def lose_page(mapping: AddressSpace) -> None:
    del mapping.pages[3]


def misplace(mapping: AddressSpace) -> None:
    mapping.pages[1].index = 8


def stale(mapping: AddressSpace) -> None:
    mapping.pages[1].freed = True


def tear(mapping: AddressSpace) -> None:
    mapping.swapped[3], mapping.swapped[4] = mapping.swapped[4], mapping.swapped[3]


def forget(mapping: AddressSpace) -> None:
    del mapping.swapped[3]


@pytest.mark.parametrize(
    ("text", "breaks", "rule"),
    [
        (COLLAPSED, lose_page, "file-page-lost"),
        (COLLAPSED, misplace, "file-page-lost"),
        (COLLAPSED, stale, "file-page-lost"),
        (SWAPPED, tear, "file-swap-torn"),
        (SWAPPED, forget, "file-swap-torn"),
    ],
)
def test_a_large_folio_is_whole(text: str, breaks: Callable[[AddressSpace], None], rule: str) -> None:
    """Under each of its numbers in the page cache; in swap, in slots in a row."""
    machine, mapping = run(text)
    assert shared_memory.check_pages(machine, 3) == []
    breaks(mapping)
    assert [found.signature for found in shared_memory.check_pages(machine, 3)] == [f"lifetime/{rule}"]


def folio_put_one(original: Callable[..., None], m: Machine, mapping: AddressSpace, folio: Folio) -> None:
    """A folio leaves the page cache with one reference, not with one for each page."""
    folio.refcount += folio.nr_pages - 1
    original(m, mapping, folio)


def map_next_page(original: Callable[..., bool], vmf: object, folio: Folio) -> bool:
    """The huge page is thought to begin one page further on."""
    done = original(vmf, folio)
    folio.index += done
    return done


def map_writable(original: Callable[..., bool], vmf: Any, folio: Folio) -> bool:
    """A huge page of a file can be written in a private mapping."""
    done = original(vmf, folio)
    if done:
        vmf.pmd.set(vmf.pmd_slot, vmf.pmd.entries[vmf.pmd_slot] | RW)
    return done


def unmapped_but_counted(original: Callable[..., None], folio: Folio, vma: object) -> None:
    """A PMD that is cleared is counted still."""


class PutOne(Design):
    name = "put-one"
    replaces = {"shmem.remove_folio": folio_put_one}


class NextPage(Design):
    name = "next-page"
    replaces = {"huge_memory_fault.do_set_pmd": map_next_page}


class Writable(Design):
    name = "writable"
    replaces = {"huge_memory_fault.do_set_pmd": map_writable}


class Counted(Design):
    name = "counted"
    replaces = {"rmap_counts.folio_remove_rmap_pmd": unmapped_but_counted}


@pytest.mark.parametrize(
    ("design", "text", "signature"),
    [
        (PutOne, COLLAPSED + "munmap addr=0 len=16\n", "lifetime/"),
        (NextPage, COLLAPSED, "lifetime/refcount"),
        (Writable, PRIVATE, "structure/file-page-writable"),
        (Counted, COLLAPSED + "munmap addr=4 len=12\n", "lifetime/mapcount"),
    ],
)
def test_broken_kernels(design: type[Design], text: str, signature: str) -> None:
    """What a wrong machine does with huge pages of files is found; the right one is clean."""
    workload: Workload = from_text(text)
    assert Judge(KernelImage(Mainline)).run(workload).findings == ()
    found = Judge(KernelImage(design)).run(workload).findings
    assert any(finding.signature.startswith(signature) for finding in found), found


def test_what_is_behind_the_end_of_a_file() -> None:
    """It may be read and written once a huge page reaches there, and be gone when that is split."""
    text = """
    world x86-64
    mmap     addr=0 len=512 prot=rw flags=shared|fixed file=memfd
    write    addr=3 at=0
    read     addr=100
    madvise  addr=0 len=512 advice=collapse
    write    addr=100 at=1
    read     addr=100
    madvise  addr=3 len=1 advice=cold
    read     addr=3
    read     addr=100
    madvise  addr=0 len=512 advice=collapse
    read     addr=100
    """
    verdict = Judge(KernelImage(Mainline)).run(from_text(text))
    assert verdict.findings == ()
