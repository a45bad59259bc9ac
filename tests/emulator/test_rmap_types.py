"""The interval tree of an anon_vma against a naive model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.mm_types import VmAreaStruct
from emulator.rmap_types import AnonVma, AnonVmaChain, avc_insert, avc_overlapping, avc_remove
from emulator.sched.locks import RwSem
from emulator.sched.scheduler import Scheduler
from tests.emulator.kernel_world import World

MM = World().mm()
SPAN = st.tuples(st.integers(0, 23), st.integers(1, 8))


@given(st.lists(st.tuples(SPAN, st.booleans()), max_size=20), SPAN)
def test_interval_tree(spans: list[tuple[tuple[int, int], bool]], query: tuple[int, int]) -> None:
    """Overlapping entries in the order of their first pages, of equals as they were entered; removed ones are gone."""
    anon_vma = AnonVma(MM.machine, 1, RwSem("anon_vma", Scheduler()))
    kept = []
    for serial, ((first, length), keep) in enumerate(spans):
        vma = VmAreaStruct(MM, 0, length << 12, first, 0)
        avc = AnonVmaChain(serial, vma, anon_vma)
        avc_insert(avc)
        if keep:
            kept.append((first, first + length - 1, serial, avc))
        else:
            avc_remove(avc)
            assert avc.key is None
    first, last = query[0], query[0] + query[1] - 1
    expected = [avc for a, b, _, avc in sorted(kept, key=lambda k: (k[0], k[2])) if a <= last and b >= first]
    assert list(avc_overlapping(anon_vma, first, last)) == expected


def test_interval_tree_keeps_the_range_of_insertion() -> None:
    """A VMA that changes must be taken out first and put back: until then the old range stands."""
    anon_vma = AnonVma(MM.machine, 1, RwSem("anon_vma", Scheduler()))
    vma = VmAreaStruct(MM, 0, 4 << 12, 10, 0)
    avc = AnonVmaChain(1, vma, anon_vma)
    avc_insert(avc)
    vma.vm_pgoff = 20
    assert list(avc_overlapping(anon_vma, 10, 13)) == [avc]
    avc_remove(avc)
    avc_insert(avc)
    assert list(avc_overlapping(anon_vma, 10, 13)) == []
    assert list(avc_overlapping(anon_vma, 23, 30)) == [avc]
