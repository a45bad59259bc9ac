"""One TLB per CPU, with explicit flushes: a missed flush is visible."""

from __future__ import annotations

from emulator.geometry import PAGE_SHIFT


class Tlb:
    """Cached 4 KiB translations: (address-space number, virtual page) to the leaf entry as it was loaded.

    A huge page is cached page by page (entries hold the frame of their own page).
    """

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: dict[tuple[int, int], int] = {}

    def flush_page(self, asid: int, address: int) -> None:
        self.entries.pop((asid, address >> PAGE_SHIFT), None)

    def flush_range(self, asid: int, start: int, end: int) -> None:
        """Drop [start, end) (bytes). Costs the smaller of the range and what is cached."""
        entries = self.entries
        first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        if last - first < len(entries):
            for page in range(first, last):
                entries.pop((asid, page), None)
        else:
            for key in [k for k in entries if k[0] == asid and first <= k[1] < last]:
                del entries[key]

    def flush_mm(self, asid: int) -> None:
        for key in [k for k in self.entries if k[0] == asid]:
            del self.entries[key]
