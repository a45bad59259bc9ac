"""Reads a recording that was taken elsewhere, whichever tool printed it."""

from __future__ import annotations

import gzip
import itertools
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from emulator.errors import UsageError
from fuzz.record import perf_script, storage, strace_text
from fuzz.record.events import Recording

_XZ_MAGIC: Final = b"\xfd7zXZ\0"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_PERF_DATA_MAGIC: Final = b"PERFILE2"
_LOOK_LINES: Final = 200  # so many lines decide what the text is
_LINE_MAX: Final = 1 << 20  # bytes
_PERF_LINE: Final = re.compile(r".*\d+/\d+ +\[-?\d+\] +\d+\.\d+: +\w+")
_STRACE_LINE: Final = re.compile(r"(?:\[pid +\d+\] +|\d+ +)?(?:[\d:.]+ +)?(?:\w+\(.*|<\.\.\. \w+ resumed>.*)")


def import_file(path: str | Path) -> Recording:
    """The recording in ``path``: our own form, ``perf script`` or ``strace -f`` text, plain, .xz or .gz.

    Raises UsageError, one line that names the file and where possible the line, when it is none of these.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(len(storage.MAGIC))
        if head == storage.MAGIC:
            return storage.load(path)
        if head.startswith(_PERF_DATA_MAGIC):
            raise UsageError(f"{path} is raw perf data; print it first: perf script {perf_script.OPTIONS} -i {path}")
        with _open(path, head) as stream:
            return _parse(_text_lines(stream))
    except UsageError as error:
        text = str(error)
        raise UsageError(text if str(path) in text else f"{path}: {text}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (lzma.LZMAError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is damaged: {error}") from None


def _open(path: Path, head: bytes) -> IO[bytes]:
    if head.startswith(_XZ_MAGIC):
        return lzma.open(path)
    if head.startswith(_GZIP_MAGIC):
        return gzip.open(path)  # type: ignore[return-value]
    return path.open("rb")


def _text_lines(stream: IO[bytes]) -> Iterator[str]:
    for number in itertools.count(1):
        line = stream.readline(_LINE_MAX)
        if not line:
            return
        if len(line) == _LINE_MAX:
            raise UsageError(f"line {number} is longer than {_LINE_MAX} bytes")
        if b"\0" in line:
            raise UsageError(f"line {number} is no text")
        yield line.decode("utf-8", "backslashreplace")


def _parse(lines: Iterable[str]) -> Recording:
    iterator = iter(lines)
    first = list(itertools.islice(iterator, _LOOK_LINES))
    perf = sum(_PERF_LINE.match(line) is not None for line in first)
    strace = sum(_STRACE_LINE.match(line) is not None for line in first)
    if not perf and not strace:
        raise UsageError("neither text of `perf script` nor of `strace -f`")
    parse = perf_script.parse if perf >= strace else strace_text.parse
    recording = parse(itertools.chain(first, iterator))
    if not recording.events:
        raise UsageError("the text has no event in it")
    return recording
