"""The file form of a recording: a magic line, then lzma-compressed msgpack.

The bytes are a function of the recording alone. Reading never trusts them: every size has a limit, every value is
checked, and damage of any kind is one UsageError.
"""

from __future__ import annotations

import itertools
import lzma
import os
from pathlib import Path
from typing import Any, Final

import msgpack

from emulator.errors import UsageError
from fuzz import files
from fuzz.record.events import (
    Call,
    Event,
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

MAGIC: Final = b"vmafuzz recording\n"
VERSION: Final = 1
FILE_MAX: Final = 1 << 28  # bytes
UNPACKED_MAX: Final = 1 << 30  # bytes
MEMORY_MAX: Final = 1 << 28  # bytes that the decompressor may take
EVENTS_MAX: Final = 10_000_000
_CODES: Final[tuple[type[Event], ...]] = (Call, Mapping, Fault, Fork, Exec, Exit, Signal)  # the order is the code
_HEADER: Final = (
    "program", "source", "kernel", "exit_status", "running", "lost", "skipped", "filesystems", "settings",
)  # fmt: skip

# What each field may be; ``n`` a whole number, ``s`` text, ``b`` true or false, ``t`` numbers, capital: or nothing.
_FORMS: Final[dict[type[Event], str]] = {
    Call: "nnnnstNb",
    Mapping: "nnnnnnsnnss",
    Fault: "nnnnnb",
    Fork: "nnnnnN",
    Exec: "nnnns",
    Exit: "nnnB",
    Signal: "nnnnnb",
}
_MAPS_LINE: Final = "nnsnsns"


def save(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write ``path`` at once or not at all. Raises UsageError when it cannot be written."""
    files.write_atomic(Path(path), dumps(recording))


def dumps(recording: Recording) -> bytes:
    """The file's bytes."""
    header = {name: getattr(recording.header, name) for name in _HEADER}
    codes = {kind: code for code, kind in enumerate(_CODES)}
    body = {
        "version": VERSION,
        "header": header,
        "events": [(codes[type(event)], *event) for event in recording.events],
        "layouts": [tuple(layout) for layout in recording.layouts],
    }
    return MAGIC + lzma.compress(msgpack.packb(body), preset=6)


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording. Raises UsageError, one line, when the file is missing, damaged or of another version."""
    data = files.read_bytes(Path(path), FILE_MAX)
    try:
        return loads(data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def loads(data: bytes) -> Recording:
    """Recording of a file's bytes. Raises UsageError."""
    if not data.startswith(MAGIC):
        raise UsageError("not a recording of vmafuzz (import perf or strace text with `vmafuzz import`)")
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_MAX)
        packed = unpacker.decompress(data[len(MAGIC) :], UNPACKED_MAX)
        if not unpacker.eof:
            raise UsageError(f"the recording is cut short, or unpacks to more than {UNPACKED_MAX >> 20} MiB")
        body = msgpack.unpackb(packed, max_array_len=EVENTS_MAX, max_map_len=10_000)
    except (lzma.LZMAError, EOFError, ValueError, msgpack.UnpackException, RecursionError) as error:
        raise UsageError(f"the recording is damaged: {str(error) or type(error).__name__}") from None
    if not isinstance(body, dict) or body.get("version") != VERSION:
        found = body.get("version") if isinstance(body, dict) else None
        raise UsageError(f"the recording has version {found!r}, this vmafuzz reads {VERSION}")
    try:
        return _recording(body)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the recording is damaged: {error}") from None


def _recording(body: dict[str, Any]) -> Recording:
    events = [_event(number, item) for number, item in enumerate(body["events"])]
    if any(later.at <= earlier.at for earlier, later in itertools.pairwise(events)):
        raise ValueError("its events are out of order")
    return Recording(_header(body["header"]), events, [_layout(item) for item in body["layouts"]])


def _header(item: Any) -> Header:
    numbers = {"exit_status": True, "running": False, "lost": False}
    for name in _HEADER:
        value = item[name]
        if name in numbers:
            good = _whole(value) or (numbers[name] and value is None)
        elif name == "program":
            good = isinstance(value, list) and all(isinstance(word, str) for word in value)
        elif name in ("source", "kernel"):
            good = isinstance(value, str)
        else:
            kind = int if name == "skipped" else str
            good = isinstance(value, dict) and all(
                isinstance(key, str) and isinstance(entry, kind) for key, entry in value.items()
            )
        if not good:
            raise ValueError(f"its header says {name} {value!r}")
    fields: dict[str, Any] = {name: item[name] for name in _HEADER}
    fields["program"] = tuple(fields["program"])
    return Header(**fields)


def _event(number: int, item: Any) -> Event:
    if not isinstance(item, list) or not item or not _whole(item[0]) or not 0 <= item[0] < len(_CODES):
        raise ValueError(f"event {number} is of no known kind")
    kind = _CODES[item[0]]
    fields = item[1:]
    if not _fits(fields, _FORMS[kind]):
        raise ValueError(f"event {number} is no {kind.__name__}")
    if kind is Call:
        fields[5] = tuple(fields[5])
    event: Event = kind(*fields)
    return event


def _layout(item: Any) -> Layout:
    pid, tid, when, nth, lines = item
    if not (_fits([pid, tid, when, nth], "nnsn") and isinstance(lines, list)):
        raise ValueError("a layout is malformed")
    if not all(isinstance(line, list) and _fits(line, _MAPS_LINE) for line in lines):
        raise ValueError("a line of a layout is malformed")
    return Layout(pid, tid, when, nth, tuple(MapsLine(*line) for line in lines))


def _fits(fields: list[Any], form: str) -> bool:
    if len(fields) != len(form):
        return False
    for value, letter in zip(fields, form, strict=True):
        if value is None and letter.isupper():
            continue
        wanted = letter.lower()
        if wanted == "n":
            good = _whole(value)
        elif wanted == "s":
            good = isinstance(value, str)
        elif wanted == "b":
            good = isinstance(value, bool)
        else:
            good = isinstance(value, list) and all(_whole(entry) for entry in value)
        if not good:
            return False
    return True


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
