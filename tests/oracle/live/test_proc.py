"""Captured text of /proc gives the views that a reader would write down."""

from __future__ import annotations

import pytest

from emulator.workload import shared_memory, token
from oracle.live.pages import PM_EXCLUSIVE, PM_GUARD, PM_PRESENT, PM_SWAP, frame_numbers
from oracle.live.parse import VmaParser, counters, parse_pages, parse_vma
from oracle.live.proc import cut_smaps, cut_status
from oracle.live.view import Counters, PageView, VmaView

MIDDLE = """Size:                 20 kB
KernelPageSize:        4 kB
Rss:                   4 kB
THPeligible:           0
"""
SMAPS = (
    f"100000004000-100000009000 rw-p 00000000 00:00 0 \n{MIDDLE}VmFlags: rd wr mr mw me ac \n"
    f"10000000f000-100000010000 r-xs 0000e000 fe:00 1234                       /var/tmp/#1234 (deleted)\n"
    f"{MIDDLE}VmFlags: rd ex sh mr mw me ms nh \n"
    f"100040000000-100040001000 ---p 00000000 00:01 77                       /memfd:vmafuzz-fill (deleted)\n"
    f"{MIDDLE}VmFlags: mr mw me nr \n"
    f"100040001000-100040002000 ---p 00000000 00:01 77                       /memfd:vmafuzz-fill (deleted)\n"
    f"{MIDDLE}VmFlags: mr mw me nr \n"
).encode()
STATUS = b"""Name:\tpython
State:\tS (sleeping)
VmPeak:\t 2000 kB
VmSize:\t 1000 kB
VmLck:\t  8 kB
VmPin:\t 0 kB
VmRSS:\t 9 kB
VmData:\t 400 kB
VmStk:\t 132 kB
VmExe:\t 4 kB
"""


def test_smaps_is_cut_at_the_end_of_the_arena() -> None:
    """A record for each VMA of the arena and none of the filling behind it."""
    records = cut_smaps(SMAPS)
    assert records == [
        b"100000004000-100000009000 rw-p 00000000 00:00 0 \nrd wr mr mw me ac ",
        b"10000000f000-100000010000 r-xs 0000e000 fe:00 1234                       /var/tmp/#1234 (deleted)"
        b"\nrd ex sh mr mw me ms nh ",
    ]


@pytest.mark.parametrize("data", [b"", SMAPS[SMAPS.index(b"100040000000") :]])
def test_an_empty_arena_has_no_records(data: bytes) -> None:
    assert cut_smaps(data) == []


@pytest.mark.parametrize(
    ("record", "want"),
    [
        (
            b"100000004000-100000009000 rw-p 00000000 00:00 0 \nrd wr mr mw me ac ",
            VmaView(4, 9, 3, False, 0, 0, frozenset({"ac"})),
        ),
        (
            b"10000000f000-100000010000 r-xs 0000e000 fe:00 1234   /x (deleted)\nrd ex sh mr mw me ms nh lo sl ",
            VmaView(15, 16, 5, True, 2, 14, frozenset({"nh", "lo", "sl"})),
        ),
        (
            b"100000000000-100000001000 ---p 00000000 fe:00 99   /a b\nmr mw me nr gu ?? sd ",
            VmaView(0, 1, 0, False, 0, 0, frozenset({"nr", "gu"})),
        ),
        (
            b"0ffffffff000-100000001000 -w-p 00000000 00:00 0 \nwr ",
            VmaView(-1, 1, 2, False, 0, 0, frozenset()),
        ),
    ],
)
def test_a_record_becomes_a_vma(record: bytes, want: VmaView) -> None:
    """Arena pages, protection, sharing, which file, offset in pages, and only the flags that are compared."""
    files = {1234: 1, 5: 0}
    assert parse_vma(record, files) == want
    parser = VmaParser(files)
    if want.file or want.start < 0:
        assert parser(record, 0) == parser(record, 1) == want


def test_a_file_that_nobody_knows_is_shared_memory_of_the_step_that_shows_it() -> None:
    """Its label says which step made it, however often it is seen, and another workload has another."""
    parser = VmaParser({1234: 1})
    first = b"10000000f000-100000010000 rw-s 00000000 00:01 77 /dev/zero (deleted)\nrd wr sh mr mw me ms "
    again = b"10000000f000-100000011000 rw-s 00001000 00:01 77 /dev/zero (deleted)\nrd wr sh mr mw me ms "
    assert parser(first, 3).file == parser(again, 5).file == shared_memory(token(3, 0)) + 1
    parser.forget_shared()
    assert parser(again.replace(b" 77 ", b" 78 "), 4).file == shared_memory(token(4, 0)) + 1


def test_counters_are_pages_more_than_before() -> None:
    counts = cut_status(STATUS)
    assert counts == (1000, 8, 400, 132)
    assert counters(counts, (920, 0, 400, 128)) == Counters(20, 2, 0, 1)


def test_a_process_without_memory_has_no_counters() -> None:
    with pytest.raises(ValueError, match="VmSize"):
        cut_status(b"Name:\tpython\nState:\tZ (zombie)\n")


ANON, ZERO, THP, HEAD, TAIL, UPTODATE = (1 << bit for bit in (12, 24, 22, 15, 16, 3))


def test_pages_are_named_by_what_they_are() -> None:
    """States, and the same number for the same frame or swap slot in every process, by first appearance."""
    entries = {
        1: [(7, PM_PRESENT | 500), (9, PM_SWAP | 500)],
        0: [
            (3, PM_PRESENT | 900),
            (4, PM_PRESENT | PM_EXCLUSIVE | 901),
            (5, PM_PRESENT | 12),
            (6, PM_SWAP | PM_GUARD | 1),
            (7, PM_PRESENT | 500),
            (8, PM_SWAP | 500),
        ],
    }
    frames = {
        900: (2, ANON | THP | HEAD | UPTODATE),
        901: (1, ANON | THP | TAIL),
        12: (0, ZERO),
        500: (2, ANON),
    }
    assert frame_numbers(entries[0]) == frames.keys()
    none: frozenset[str] = frozenset()
    assert parse_pages(entries, frames) == {
        0: (
            PageView(3, "present", False, 0, 2, frozenset({"anon", "thp", "head"})),
            PageView(4, "present", True, 1, 1, frozenset({"anon", "thp", "tail"})),
            PageView(5, "zero", False, -1, -1, none),
            PageView(6, "guard", False, -1, -1, none),
            PageView(7, "present", False, 2, 2, frozenset({"anon"})),
            PageView(8, "swap", False, 3, -1, none),
        ),
        1: (
            PageView(7, "present", False, 2, 2, frozenset({"anon"})),
            PageView(9, "swap", False, 3, -1, none),
        ),
    }
