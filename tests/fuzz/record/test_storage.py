"""The file form: what goes in comes out, and damage of any kind is one line."""

from __future__ import annotations

import lzma
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.errors import UsageError
from fuzz.record import storage
from fuzz.record.events import (
    NEVER,
    Call,
    Exec,
    Exit,
    Fault,
    Fork,
    Header,
    Layout,
    Mapping,
    MapsLine,
    Recording,
    Signal,
)

RECORDING = Recording(
    Header(("ls", "-l"), "perf", "6.18.44", 1, 0, 2, {"odd": 3}, {"fe:00": "ext4"}, {"thp_enabled": "madvise"}),
    [
        Call(0, 1, 1, 3, "mmap", (0, 1 << 63, (1 << 64) - 1), -12),
        Mapping(1, 1, 1, 0x1000, 0x2000, 0, "fe:00", 5, 7, "r-xp", "/bin/ä \udc80".replace("\udc80", "")),
        Fault(2, 1, 1, 0xFFFF_FFFF_FF60_0000, 20, False),
        Call(4, 1, 2, NEVER, "exit_group", (), None, False),
        Fork(5, 1, 1, 2, 3, None),
        Exec(6, 1, 1, 9, "/bin/ls"),
        Signal(7, 1, 1, 11, -6, True),
        Exit(8, 1, 1, None),
    ],
    [Layout(1, 1, "exit", 0, (MapsLine(0x1000, 0x2000, "rw-p", 0, "00:00", 0, ""),))],
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Every field of every kind of event survives."""
    path = tmp_path / "x.rec"
    storage.save(RECORDING, path)
    loaded = storage.load(path)
    assert loaded == RECORDING
    assert [type(event) for event in loaded.events] == [type(event) for event in RECORDING.events]
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_recording_gives_the_same_bytes() -> None:
    """Recordings are kept in version control: no time stamps or random names in them."""
    assert storage.dumps(RECORDING) == storage.dumps(storage.loads(storage.dumps(RECORDING)))


def packed(change: object, **fields: object) -> bytes:
    """A file of ``RECORDING`` with fields of its body replaced (``change``: the whole body)."""
    body = msgpack.unpackb(lzma.decompress(storage.dumps(RECORDING)[len(storage.MAGIC) :]))
    body = change if change is not None else {**body, **fields}
    return storage.MAGIC + lzma.compress(msgpack.packb(body))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a recording"),
        (b"#!/bin/sh\n", "not a recording"),
        (storage.MAGIC, "cut short"),
        (storage.MAGIC + b"rubbish that is no lzma", "damaged"),
        (storage.dumps(RECORDING)[:-20], "damaged|cut short"),
        (packed([1, 2]), "version None"),
        (packed({}), "version None"),
        (packed(None, version=99), "version 99"),
        (packed(None, events=[[0, 1]]), "event 0 is no Call"),
        (packed(None, events=[[77, 1]]), "event 0 is of no known kind"),
        (packed(None, events=[[2, 0, 1, 1, "x", 20, False]]), "event 0 is no Fault"),
        (packed(None, events=[[2, 0, 1, 1, True, 20, False]]), "event 0 is no Fault"),
        (packed(None, events=["x"]), "event 0 is of no known kind"),
        (packed(None, events=[[5, 9, 1, 1, None], [5, 3, 1, 1, None]]), "out of order"),
        (packed(None, events=7), "damaged"),
        (packed(None, header={}), "damaged"),
        (packed(None, header=[]), "damaged"),
        (packed(None, layouts=[[1, 1, "exit", 0, [[1]]]]), "layout is malformed"),
        (packed(None, layouts=[[1, 1, 5, 0, []]]), "layout is malformed"),
        (packed(None, layouts=[[1]]), "damaged"),
    ],
)
def test_damage_is_one_line(data: bytes, message: str) -> None:
    """Whatever is wrong with a file, the user reads a sentence and no traceback."""
    with pytest.raises(UsageError, match=message) as caught:
        storage.loads(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["program", "source", "exit_status", "lost", "skipped", "filesystems"])
def test_a_header_with_a_wrong_value_is_refused(field: str) -> None:
    """A hostile header must not reach code that trusts its types."""
    header = {name: getattr(RECORDING.header, name) for name in storage._HEADER}
    header[field] = {"x": [1]} if field in ("skipped", "filesystems") else [[]]
    with pytest.raises(UsageError, match=f"its header says {field}"):
        storage.loads(packed(None, header=header))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_never_escapes_as_another_error(position: int, flip: int) -> None:
    """lzma and msgpack raise many exceptions on rubbish; all of them become a UsageError."""
    data = bytearray(storage.dumps(RECORDING))
    data[position % len(data)] ^= flip
    try:
        storage.loads(bytes(data))
    except UsageError:
        return


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that unpacks to gigabytes must not fill the memory."""
    monkeypatch.setattr(storage, "UNPACKED_MAX", 1000)
    with pytest.raises(UsageError, match="unpacks to more than"):
        storage.loads(storage.MAGIC + lzma.compress(bytes(100_000)))


def test_deep_nesting_is_refused() -> None:
    """msgpack nested a thousand deep raises its own error; the user must see ours."""
    deep = storage.MAGIC + lzma.compress(b"\x91" * 100_000 + b"\x00")
    with pytest.raises(UsageError, match="damaged"):
        storage.loads(deep)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    """A wrong path is the most common mistake of all."""
    with pytest.raises(UsageError, match="cannot be read"):
        storage.load(tmp_path / "none.rec")


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """A recording that cannot be written must not end in a traceback, nor leave a piece behind."""
    with pytest.raises(UsageError, match="cannot be written"):
        storage.save(RECORDING, tmp_path / "none" / "x.rec")
    assert list(tmp_path.iterdir()) == []
