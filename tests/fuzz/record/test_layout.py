"""/proc/PID/maps: reading, writing, comparing."""

from __future__ import annotations

import pytest

from emulator.errors import UsageError
from fuzz.record.events import MapsLine
from fuzz.record.layout import first_difference, format_line, parse_maps

TEXT = """\
55ee095a2000-55ee095d1000 r--p 00000000 fe:00 260104                     /usr/bin/my bash (deleted)
7ffe9b058000-7ffe9b079000 rw-p 00000000 00:00 0                          [stack]
7fff00000000-7fff00001000 ---s 00000000 00:00 0
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_lines_are_read_and_the_gate_page_left_out() -> None:
    """[vsyscall] is in every process's text and is no VMA; names may have spaces or be missing."""
    assert parse_maps(TEXT.splitlines(keepends=True)) == (
        MapsLine(
            0x55EE095A2000, 0x55EE095D1000, "r--p", 0, "fe:00", 260104, "/usr/bin/my bash (deleted)"
        ),
        MapsLine(0x7FFE9B058000, 0x7FFE9B079000, "rw-p", 0, "00:00", 0, "[stack]"),
        MapsLine(0x7FFF00000000, 0x7FFF00001000, "---s", 0, "00:00", 0, ""),
    )


def test_lines_are_written_as_they_were_read() -> None:
    """Reports show layouts as people know them from /proc."""
    lines = parse_maps(TEXT.splitlines())
    assert [format_line(line).split() for line in lines] == [
        line.split() for line in TEXT.splitlines()[:3]
    ]


def test_another_text_is_refused() -> None:
    """A format that changed must not be read as an empty layout."""
    with pytest.raises(UsageError, match=r"^line 2 "):
        parse_maps([TEXT.splitlines()[0], "55ee-55ef bogus"])


A = MapsLine(0x1000, 0x2000, "rw-p", 0, "00:00", 0, "[heap]")
B = MapsLine(0x3000, 0x4000, "r--p", 0x5000, "fe:00", 9, "/x")


def test_equal_layouts_have_no_difference_whatever_the_names() -> None:
    """The machine has no [heap], and does not know every inode."""
    ours = (A._replace(name=""), B._replace(name="", device="", inode=0))
    assert first_difference((A, B), ours) is None


@pytest.mark.parametrize(
    "change",
    [{"start": 0x2000}, {"end": 0x5000}, {"perms": "r-xp"}, {"offset": 0}, {"inode": 8}, {"device": "fe:01"}],
)
def test_each_field_counts(change: dict[str, int | str]) -> None:
    """A wrong range, permission, offset or file must show."""
    other = B._replace(**change)  # type: ignore[arg-type]
    assert first_difference((A, B), (A, other)) == (B, other)


def test_a_missing_or_extra_vma_counts() -> None:
    """zip() would compare only the common part."""
    assert first_difference((A, B), (A,)) == (B, None)
    assert first_difference((A,), (A, B)) == (None, B)
