"""Red-black trees whose shape is that of Linux's (lib/rbtree.c): who searches one sees which nodes lie on his way.

Where a node is entered the caller decides, who walks down from ``root`` and compares as he likes; the tree may well not
be in order any more when he comes back. The algorithms are those of Cormen, Leiserson, Rivest and Stein, chapter 13.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RbNode(Generic[Item]):
    """A node, red when it is new."""

    __slots__ = ("item", "left", "parent", "red", "right")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.parent: RbNode[Item] | None = None
        self.left: RbNode[Item] | None = None
        self.right: RbNode[Item] | None = None
        self.red = True

    def child(self, left: bool) -> RbNode[Item] | None:
        return self.left if left else self.right

    def set_child(self, left: bool, child: RbNode[Item] | None) -> None:
        if left:
            self.left = child
        else:
            self.right = child
        if child is not None:
            child.parent = self


class RbTree(Generic[Item]):
    """A tree of items."""

    __slots__ = ("root",)

    def __init__(self) -> None:
        self.root: RbNode[Item] | None = None

    def __iter__(self) -> Iterator[Item]:
        """From left to right."""
        node = self.root
        above: list[RbNode[Item]] = []
        while node is not None or above:
            while node is not None:
                above.append(node)
                node = node.left
            last = above.pop()
            yield last.item
            node = last.right

    def insert(self, item: Item, parent: RbNode[Item] | None, left: bool) -> RbNode[Item]:
        """Enter an item as the ``left`` or right child of ``parent``, which has none there; None: as the root."""
        node = RbNode(item)
        if parent is None:
            self.root = node
        else:
            parent.set_child(left, node)
        self._insert_color(node)
        return node

    def _insert_color(self, node: RbNode[Item]) -> None:
        """A red node may have got a red parent."""
        while (parent := node.parent) is not None and parent.red:
            above = parent.parent
            assert above is not None  # a red node is not the root
            left = parent is above.left
            uncle = above.child(not left)
            if uncle is not None and uncle.red:
                parent.red = uncle.red = False
                above.red = True
                node = above
                continue
            if node is parent.child(not left):
                self._rotate(parent, left)
                parent = node
            self._rotate(above, not left)
            parent.red, above.red = False, True
            break
        if self.root is not None:
            self.root.red = False

    def erase(self, node: RbNode[Item]) -> None:
        """Take a node out. If it has two children, its successor takes its place and colour."""
        child, parent, black = self._take_out(node)
        if not black:
            return
        if child is not None:
            child.red = False
        elif parent is not None:
            self._erase_color(parent)

    def _take_out(self, node: RbNode[Item]) -> tuple[RbNode[Item] | None, RbNode[Item] | None, bool]:
        """(who stands where a node is missing now, his parent, was the missing node black)."""
        if node.left is None or node.right is None:
            only = node.left or node.right
            self._put_in_place(node, only)
            return only, node.parent, not node.red
        heir = node.right
        while heir.left is not None:
            heir = heir.left
        child, parent, black = heir.right, heir.parent, not heir.red
        if parent is node:
            parent = heir
        else:
            assert parent is not None
            parent.set_child(True, child)
            heir.set_child(False, node.right)
        self._put_in_place(node, heir)
        heir.set_child(True, node.left)
        heir.red = node.red
        return child, parent, black

    def _put_in_place(self, node: RbNode[Item], other: RbNode[Item] | None) -> None:
        """The parent of ``node`` gets ``other`` as its child."""
        parent = node.parent
        if parent is not None:
            parent.set_child(parent.left is node, other)
            return
        self.root = other
        if other is not None:
            other.parent = None

    def _erase_color(self, parent: RbNode[Item]) -> None:
        """On one side of ``parent``, where nothing stands at first, each path has a black node less."""
        node: RbNode[Item] | None = None
        while True:
            left = parent.left is node
            sibling = parent.child(not left)
            assert sibling is not None  # there are two black nodes on his side at least
            if sibling.red:
                self._rotate(parent, left)
                parent.red, sibling.red = True, False
                sibling = parent.child(not left)
                assert sibling is not None
            far, near = sibling.child(not left), sibling.child(left)
            if (far is None or not far.red) and (near is None or not near.red):
                sibling.red = True
                above = parent.parent
                if parent.red or above is None:
                    parent.red = False
                    return
                node, parent = parent, above
                continue
            if far is None or not far.red:
                assert near is not None
                self._rotate(sibling, not left)
                near.red, sibling.red = False, True
                sibling, far = near, sibling
            self._rotate(parent, left)
            sibling.red, parent.red, far.red = parent.red, False, False
            return

    def _rotate(self, node: RbNode[Item], left: bool) -> None:
        """The child on the other side goes up, and ``node`` down to the ``left`` or right."""
        child = node.child(not left)
        assert child is not None
        node.set_child(not left, child.child(left))
        self._put_in_place(node, child)
        child.set_child(left, node)
