"""The VMA tree against a naive model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.mm_types import VmAreaStruct, VmaTree
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
