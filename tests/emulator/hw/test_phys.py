"""Physical frames."""

from __future__ import annotations

import pytest

from emulator.errors import KernelBug
from emulator.hw.phys import PhysicalMemory
from emulator.sched.scheduler import Scheduler


def memory() -> PhysicalMemory:
    return PhysicalMemory(Scheduler())


def test_alignment() -> None:
    """A folio's first frame is a multiple of its size; every frame leads to it."""
    phys = memory()
    for order in (0, 3, 0, 2, 9):
        folio = phys.alloc(order)
        assert folio.pfn % (1 << order) == 0
        assert folio.nr_pages == 1 << order
        assert all(phys.frames[folio.pfn + i] is folio for i in range(folio.nr_pages))
        assert (folio.refcount, folio.content) == (1, [{}] * folio.nr_pages)


def test_frames_are_never_used_twice() -> None:
    """A stale frame number leads to the freed folio for ever."""
    phys = memory()
    first = phys.alloc(0)
    phys.free(first)
    second = phys.alloc(0)
    assert second.pfn != first.pfn
    assert phys.frames[first.pfn] is first
    assert first.freed
    assert list(phys.live.values()) == [phys.zero_folio, second]


def test_double_free() -> None:
    """Freeing twice is a bug of the kernel."""
    phys = memory()
    folio = phys.alloc(0)
    phys.free(folio)
    with pytest.raises(KernelBug, match="double-free"):
        phys.free(folio)


def test_split() -> None:
    """The small folios stand on the same frames and have their contents; the large one is gone."""
    phys = memory()
    large = phys.alloc(2)
    large.content[2][0] = 77
    small = phys.split(large, [0] * 4)
    assert [folio.pfn for folio in small] == list(range(large.pfn, large.pfn + 4))
    assert [folio.content for folio in small] == [[{}], [{}], [{0: 77}], [{}]]
    assert all(phys.frames[folio.pfn] is folio and phys.live[folio.pfn] is folio for folio in small)
    assert large.freed


def test_maybe_pinned() -> None:
    """A small folio looks pinned from 1024 references on; a large one counts its pins."""
    phys = memory()
    small, large = phys.alloc(0), phys.alloc(1)
    small.refcount = 1023
    assert not small.maybe_dma_pinned()
    small.refcount = 1024
    assert small.maybe_dma_pinned()
    large.refcount = 5000
    assert not large.maybe_dma_pinned()
    large.pincount = 1
    assert large.maybe_dma_pinned()


def test_mapcount() -> None:
    """PTE mappings of all pages and PMD mappings of the whole."""
    folio = memory().alloc(1)
    assert not folio.mapped()
    folio.mapcounts = [1, 2]
    folio.entire_mapcount = 1
    assert folio.mapcount() == 4
    assert folio.mapped()
