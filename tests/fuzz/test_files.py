"""Nobody ever sees half of a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from emulator.errors import UsageError
from fuzz import files


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half-way must not cost what was there, nor leave a torn file."""
    place = tmp_path / "x"
    files.write_atomic(place, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"x: cannot be written: No space left on device"):
        files.write_atomic(place, b"new")
    assert place.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_devices_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    """``--json /dev/stdout`` must not rename a file over the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_atomic(pipe, b"hello")
    assert os.read(reader, 100) == b"hello"
    os.close(reader)
    assert pipe.is_fifo()


def test_of_two_that_create_a_folder_one_wins(tmp_path: Path) -> None:
    """Two workers that meet the same flaw at once make one bucket, whole."""
    assert files.create_folder(tmp_path / "bucket", {"raw": b"1", "json": b"2"})
    assert not files.create_folder(tmp_path / "bucket", {"raw": b"3", "json": b"4"})
    assert (tmp_path / "bucket" / "raw").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]


def test_oversized_and_missing_files_are_usage_errors(tmp_path: Path) -> None:
    """What a user hands in is read within a limit, and told off in one line."""
    place = tmp_path / "big"
    place.write_bytes(b"x" * 11)
    assert files.read_bytes(place, 11) == b"x" * 11
    with pytest.raises(UsageError, match="big: longer than 10 bytes"):
        files.read_bytes(place, 10)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        files.read_bytes(tmp_path / "none", 10)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        files.read_bytes(tmp_path, 10)


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    """An --out that is a file is a usage error."""
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="out: cannot be written"):
        files.make_folder(tmp_path / "out")
