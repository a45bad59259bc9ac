"""The contents of a page as one int, so that comparing and copying them costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from emulator.mm_types import PageContent

LANE: Final = 40  # bits that one write offset has in packed contents


def pack(content: PageContent) -> int:
    """The contents of a page as one int, ``LANE`` bits for each write offset; 0 is a page of zeros."""
    packed = 0
    for at, token in content.items():
        packed |= token << at * LANE
    return packed


def unpack(packed: int) -> tuple[tuple[int, int], ...]:
    """Packed contents as sorted (offset, token) pairs, the form of ``Outcome.data``."""
    pairs = []
    at = 0
    while packed:
        token = packed & ((1 << LANE) - 1)
        if token:
            pairs.append((at, token))
        packed >>= LANE
        at += 1
    return tuple(pairs)


def pack_data(data: tuple[tuple[int, int], ...]) -> int:
    """The inverse of ``unpack``."""
    packed = 0
    for at, token in data:
        packed |= token << at * LANE
    return packed
