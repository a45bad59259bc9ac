"""Run by test_surroundings: fills the surroundings, then maps and unmaps a lot, with Python at work in between."""

from __future__ import annotations

import json

from oracle.live.processor import SYS_MMAP, SYS_MUNMAP, Processor
from oracle.live.surroundings import ARENA_END, ARENA_START, Mapping, fill, mappings

PAGE = 4096
SIZES = (1, 3, 1, 700, 2, 16, 600)


def outside(found: list[Mapping]) -> list[Mapping]:
    return [mapping for mapping in found if mapping.end <= ARENA_START or mapping.start >= ARENA_END]


def main() -> None:
    processor = Processor()
    processor.call(SYS_MUNMAP, processor.call(SYS_MMAP, 0, PAGE, 3, 0x22, -1, 0), PAGE)
    fill(processor)
    before = mappings()
    places = []
    top = ARENA_END
    for size in SIZES * 40:
        address = processor.call(SYS_MMAP, 0, size * PAGE, 3, 0x22, -1, 0)
        top -= size * PAGE
        places.append(address == top)
    prot_none = processor.call(
        SYS_MMAP, ARENA_END - PAGE, PAGE, 0, 0x4032, -1, 0
    )  # NORESERVE, as the filling is
    busy = [str(number) * 50 for number in range(20000)]  # Python needs some MiB
    del busy
    during = mappings()
    processor.call(SYS_MUNMAP, ARENA_START, ARENA_END - ARENA_START)
    facts = {
        "first place is the arena's end": places[0],
        "each place is below the last": all(places),
        "the filling does not merge": prot_none == ARENA_END - PAGE and outside(during) == outside(before),
        "nothing outside has changed": mappings() == before,
    }
    print(json.dumps(facts))


main()
