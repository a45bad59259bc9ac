"""What the review of MREMAP_RELOCATE_ANON proposed or took for granted, tried on the patch as posted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.relocate_anon import RelocateAnon, relocate_folio
from emulator.geometry import LEVEL_PTE
from emulator.hw.pgtable import PageTable
from emulator.image import KernelImage
from emulator.mm import memory, pgtable_generic, rmap_counts
from emulator.uapi import MADV_MERGEABLE, MADV_UNMERGEABLE, MREMAP_FIXED, MREMAP_MAYMOVE, MREMAP_RELOCATE_ANON
from emulator.workload import Workload
from fuzz.workload.text import from_text
from fuzz.workload.wire import decode
from oracle.judge import Judge
from tests.emulator.kernel_world import World

CORPUS = Path(__file__).parents[3] / "corpus" / "regressions" / "relocate-anon"
RELOCATE = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_RELOCATE_ANON


def relocate_pte(pmc: Any, table: PageTable, old_addr: int, new_addr: int, undo: bool, *, trylock: bool) -> int:
    """``relocate_anon_pte`` with folio_trylock, or with an undo that does not ask whether the folio is pinned."""
    old = pmc.old
    entry = table.entries[pgtable_generic.slot_of(old.vm_mm, old_addr, LEVEL_PTE)]
    assert isinstance(entry, int)
    folio = memory.vm_normal_folio(old, old_addr, entry)
    if folio is None:
        return 1
    if not trylock:
        folio.lock.lock()
    elif not folio.lock.trylock():
        return 0
    old.vm_mm.machine.sched.point("relocate.folio_locked")
    done = 1
    passed_over = folio.ksm or not folio.anon or rmap_counts.folio_maybe_mapped_shared(folio)
    if passed_over or (folio.maybe_dma_pinned() and (trylock or not undo)):
        pass
    elif folio.large:
        done = 0
    else:
        relocate_folio(pmc, folio, old_addr, new_addr, undo)
    folio.lock.unlock()
    return done


class Trylock(RelocateAnon):
    name = "trylock"
    replaces: ClassVar = {
        "relocate_anon.relocate_anon_pte": lambda *args: relocate_pte(*args, trylock=True),
    }


class CertainUndo(RelocateAnon):
    name = "certain-undo"
    replaces: ClassVar = {
        "relocate_anon.relocate_anon_pte": lambda *args: relocate_pte(*args, trylock=False),
    }


def signatures(design: type[Design], workload: Workload) -> list[str]:
    found = Judge(KernelImage(design), KernelImage(Mainline)).run(workload).findings
    return [one.signature for one in found if one.signature != "kernel/sleep-in-atomic:folio lock"]


def kept(name: str) -> Workload:
    return decode((CORPUS / f"{name}.msgpack").read_bytes())


@pytest.mark.parametrize(
    "name", ["folio-lock-under-spinlock", "folio-lock-against-page-table-lock", "anon-vma-lock-against-folio-lock"]
)
def test_trylock_mends_the_deadlocks(name: str) -> None:
    """H. Yoo's proposal: nobody sleeps for a folio lock, so nobody deadlocks over one."""
    workload = kept(name)
    found = Judge(KernelImage(Trylock), KernelImage(Mainline)).run(workload).findings
    assert not any(one.rule in ("deadlock", "sleep-in-atomic") for one in found)


def test_trylock() -> None:
    """But the undo tries too: a folio that reclaim has locked keeps the destination's anon_vma, which is freed."""
    workload = from_text(
        """
        world small4
        mmap addr=3 len=5 prot=rw flags=private|fixed
        write addr=3 at=0
        madvise addr=3 len=5 advice=hugepage
        write addr=4 at=0
        together
          reclaim addr=3
          mremap addr=3 old_len=2 new_len=2 flags=maymove|fixed|relocate new_addr=0
          schedule 1 until relocate.undo_begin, 0 until reclaim.folio_locked, 1 until end
        end
        """
    )
    assert signatures(Trylock, workload) == ["kernel/use-after-free:Folio"]


@pytest.mark.parametrize(
    ("name", "mended"),
    [("undo-beside-gup-fast", True), ("pinned-folio-left-behind", False), ("gup-fast-in-passing", False)],
)
def test_undo_that_does_not_ask_for_pins(name: str, mended: bool) -> None:
    """An undo that is certain mends the undo; a folio that is pinned on the way there is still passed over."""
    found = signatures(CertainUndo, kept(name))
    assert any(one.startswith(("undo/", "rmap/")) for one in found) != mended


def test_ksm_page_that_came_back() -> None:
    """mremap unmerges what is mergeable: a KSM page that the swap cache gives back later is not, and is moved."""
    world = World("small4", RelocateAnon)
    world.mmap(0, 2)
    for page in (0, 1):
        world.do("fill", page, 1)
    world.do("madvise", 0, 2, MADV_MERGEABLE)
    for _ in range(2):
        world.do("ksm_scan", 0)
    world.do("gup_slow", 0, 0, 0)
    world.do("reclaim", 0)
    world.do("madvise", 0, 2, MADV_UNMERGEABLE)
    world.do("read", 0)
    assert world.folio(0).ksm
    assert world.do("mremap", 0, 2, 2, RELOCATE, 4) == 4
    assert world.folio(4).ksm
    world.check(committed=False)
