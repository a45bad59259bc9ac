"""Red-black trees: in order, balanced, with nothing lost, whatever is entered and erased."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.rbtree import RbNode, RbTree

Tree = RbTree[int]


def enter(tree: Tree, number: int) -> RbNode[int]:
    """Enter it in order."""
    parent, left, place = None, False, tree.root
    while place is not None:
        parent, left = place, number < place.item
        place = place.child(left)
    return tree.insert(number, parent, left)


def black_height(node: RbNode[int] | None) -> int:
    """Black nodes on each way down, which must be equal; no red node has a red child, and parents are right."""
    if node is None:
        return 1
    children = [child for child in (node.left, node.right) if child is not None]
    assert all(child.parent is node for child in children)
    assert not node.red or not any(child.red for child in children)
    left, right = black_height(node.left), black_height(node.right)
    assert left == right
    return left + (not node.red)


def check(tree: Tree, numbers: list[int]) -> None:
    assert list(tree) == sorted(numbers)
    assert tree.root is None or (not tree.root.red and tree.root.parent is None)
    black_height(tree.root)


@given(st.lists(st.integers(0, 40), max_size=40, unique=True), st.lists(st.integers(0, 39), max_size=40))
def test_entering_and_erasing(numbers: list[int], erased: list[int]) -> None:
    tree: Tree = RbTree()
    nodes: dict[int, RbNode[int]] = {}
    for number in numbers:
        nodes[number] = enter(tree, number)
        check(tree, list(nodes))
    for at in erased:
        if nodes:
            number = list(nodes)[at % len(nodes)]
            tree.erase(nodes.pop(number))
            check(tree, list(nodes))


def shape(node: RbNode[int] | None) -> object:
    """(item, left, right); ``item`` alone where there are no children."""
    if node is None or (node.left is None and node.right is None):
        return node and node.item
    return node.item, shape(node.left), shape(node.right)


def test_shape() -> None:
    """Worked by hand: ascending numbers; then the root goes, 3 takes its place, and 4, the poorer one, is rotated."""
    tree: Tree = RbTree()
    nodes = {number: enter(tree, number) for number in range(1, 8)}
    assert shape(tree.root) == (2, 1, (4, 3, (6, 5, 7)))
    tree.erase(nodes[2])
    assert shape(tree.root) == (3, 1, (6, (4, None, 5), 7))
