"""TLBs: what is flushed is gone, what is not stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.hw.tlb import Tlb
from emulator.workload import Op, Switch
from tests.emulator.kernel_world import World

KEYS = st.dictionaries(st.tuples(st.integers(1, 3), st.integers(0, 40)), st.integers(1, 9), max_size=30)


@given(KEYS, st.integers(1, 3), st.integers(0, 40), st.integers(0, 40))
def test_flush_range(entries: dict[tuple[int, int], int], asid: int, first: int, last: int) -> None:
    """Exactly the pages of the range in that address space go, few or many."""
    tlb = Tlb()
    tlb.entries = dict(entries)
    tlb.flush_range(asid, first << 12, last << 12)
    assert tlb.entries == {
        (a, page): e for (a, page), e in entries.items() if not (a == asid and first <= page < last)
    }


@given(KEYS, st.integers(1, 3), st.integers(0, 40))
def test_flush_page_and_mm(entries: dict[tuple[int, int], int], asid: int, page: int) -> None:
    """One page; one address space."""
    tlb = Tlb()
    tlb.entries = dict(entries)
    tlb.flush_page(asid, (page << 12) + 123)
    assert tlb.entries == {key: e for key, e in entries.items() if key != (asid, page)}
    tlb.flush_mm(asid)
    assert tlb.entries == {key: e for key, e in entries.items() if key != (asid, page) and key[0] != asid}


def test_flush_reaches_every_cpu() -> None:
    """An unmap on one CPU leaves no translation on another."""
    world = World()
    world.mmap(0, 2)
    world.write(0)
    world.write(1)
    asid = world.mm().asid
    # two accesses of one process at the same time run on two CPUs
    world.collide([Op("read", 0, (0,)), Op("read", 0, (1,))], [Switch(0, "", 1)])
    assert any((asid, (world.address(1)) >> 12) in tlb.entries for tlb in world.machine.tlbs[1:])
    assert world.do("munmap", 0, 2) == 0
    assert not any(tlb.entries for tlb in world.machine.tlbs)
