"""The VMA tree and the anon_vma interval tree against naive models."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.mm_types import VmAreaStruct, VmaTree
from emulator.rmap_types import AnonVma, AnonVmaChain, avc_insert, avc_overlapping, avc_remove
from emulator.sched.locks import RwSem
from emulator.sched.scheduler import Scheduler
from tests.emulator.kernel_world import World

PAGES = 24
MM = World().mm()
SPAN = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8))
ACTIONS = st.lists(st.tuples(st.sampled_from(["insert", "erase", "move"]), SPAN), max_size=40)


def covers(vma: VmAreaStruct, page: int) -> bool:
    return vma.vm_start <= page < vma.vm_end


@given(ACTIONS)
def test_vma_tree(actions: list[tuple[str, tuple[int, int]]]) -> None:
    """Every look-up at every page gives what a search of a plain list gives, after each change."""
    tree = VmaTree()
    model: list[VmAreaStruct] = []
    for action, (start, length) in actions:
        end = min(PAGES, start + length)
        if action == "insert":
            if not any(v.vm_start < end and start < v.vm_end for v in model):
                vma = VmAreaStruct(MM, start, end, 0, 0)
                tree.insert(vma)
                assert not vma.detached
                model.append(vma)
        elif model:
            vma = model[start % len(model)]
            if action == "erase":
                tree.erase(vma)
                assert vma.detached
                model.remove(vma)
            else:
                low = max((v.vm_end for v in model if v.vm_end <= vma.vm_start), default=0)
                high = min((v.vm_start for v in model if v.vm_start >= vma.vm_end), default=PAGES)
                new = max(low, min(start, high - 1))
                tree.move(vma, new, max(new + 1, min(end, high)))
        model.sort(key=lambda v: v.vm_start)
        compare(tree, model)


def compare(tree: VmaTree, model: list[VmAreaStruct]) -> None:
    """All look-ups, everywhere."""
    assert list(tree) == model
    assert len(tree) == len(model)
    for page in range(PAGES + 1):
        assert tree.find(page) is next((v for v in model if v.vm_end > page), None)
        assert tree.lookup(page) is next((v for v in model if covers(v, page)), None)
        assert tree.prev_of(page) is next((v for v in reversed(model) if v.vm_start < page), None)
        for end in range(page + 1, PAGES + 1, 5):
            assert tree.overlapping(page, end) == [v for v in model if v.vm_start < end and v.vm_end > page]


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
