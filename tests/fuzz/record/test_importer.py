"""Finding out what a file is, and reading it."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from emulator.errors import UsageError
from fuzz.record import storage
from fuzz.record.events import Call
from fuzz.record.importer import import_file
from tests.fuzz.record.perf_text import Script

PERF = "".join(Script().call(39, result=100).lines).encode()
STRACE = b'[pid 10] 12:00:01 openat(AT_FDCWD, "x", O_RDONLY) = 3\n10 <... read resumed>) = 4\n'
RECORDINGS = Path(__file__).parents[3] / "corpus" / "recordings"


@pytest.mark.parametrize("pack", [bytes, lzma.compress, gzip.compress])
@pytest.mark.parametrize(("text", "source"), [(PERF, "perf"), (STRACE, "strace")])
def test_text_is_recognized(
    tmp_path: Path, text: bytes, source: str, pack: Callable[[bytes], bytes]
) -> None:
    """Both tools' texts, plain or compressed, whatever the file is called."""
    path = tmp_path / "recording.txt"
    path.write_bytes(pack(text))
    recording = import_file(path)
    assert recording.header.source == source
    assert isinstance(recording.events[0], Call)


def test_our_own_form_is_recognized(tmp_path: Path) -> None:
    """Commands take a recording in any form."""
    recording = Script().call(39, result=100).recording()
    path = tmp_path / "x"
    storage.save(recording, path)
    assert import_file(path) == recording


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither text of"),
        (b"hello\nworld\n", "neither text of"),
        (b"\x7fELF\0\0\0", "line 1 is no text"),
        (b"x" * (1 << 20), "longer than"),
        (b"PERFILE2" + bytes(100), "print it first: perf script --show-mmap-events"),
        (lzma.compress(PERF)[:-10], "damaged"),
        (b"\xfd7zXZ\0 and rubbish", "damaged"),
        (gzip.compress(PERF, mtime=0)[:-10], "damaged"),
        (b"\x1f\x8b and rubbish", "damaged|cannot read"),
        (PERF + b"p 1/1 [000] 1.0: raw_syscalls:sys_enter: NR 9 (\n", "line 3: raw_syscalls:sys_enter"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_files_name(
    tmp_path: Path, data: bytes, message: str
) -> None:
    """Hostile or damaged input: one line that names the file, never a traceback."""
    path = tmp_path / "input"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        import_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    """No traceback for a wrong path."""
    with pytest.raises(UsageError, match="cannot read"):
        import_file(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "events", "processes"),
    [("merge", 2913, 53), ("mremap_dontunmap", 235, 1), ("guard-regions", 17416, 186)],
)
def test_the_kernels_selftests_are_read_whole(name: str, events: int, processes: int) -> None:
    """Real recordings: every line becomes an event, none is skipped, no call half."""
    recording = import_file(RECORDINGS / f"kselftest-{name}.perf.txt.xz")
    assert recording.header.skipped == {}
    assert len(recording.events) == events
    assert len(recording.processes()) == processes
