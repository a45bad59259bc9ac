"""Contents of pages, packed into one number."""

from __future__ import annotations

from oracle.contents import pack_data, unpack


def test_packing() -> None:
    """Contents survive packing, sorted."""
    data = ((0, 3), (3, 1 << 30))
    assert unpack(pack_data(data)) == data
    assert unpack(0) == ()
