"""Reading and writing files so that nobody ever sees half of one.

A file is written beside its place under a name that begins with ``.tmp-``, flushed to the disk, and renamed.
What goes wrong at the user's end (no space, no permission, no such file) is a ``UsageError`` of one line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from emulator.errors import UsageError

TEMPORARY: Final = ".tmp-"

# What a user can put right: space, permissions, wrong paths. Anything else is a mistake of ours.
USERS_ERRNOS: Final = frozenset(
    (
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EFBIG,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENFILE,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    )
)


def usage_error(path: Path | str, verb: str, error: OSError) -> UsageError:
    """``out/x: cannot be written: No space left on device``."""
    return UsageError(f"{path}: cannot be {verb}: {error.strerror or error}")


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Put ``data`` at ``path``, all of it or none; ``sync``: it also survives a power cut.

    A device or pipe is written to as it is. Raises ``UsageError`` when the place cannot be written; what stood
    there before still stands then.
    """
    if path.is_dir():
        raise UsageError(f"{path}: cannot be written: it is a folder")
    if path.exists() and not path.is_file():
        try:
            path.write_bytes(data)
        except OSError as error:
            raise usage_error(path, "written", error) from None
        return
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise usage_error(path, "written", error) from None


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """``write_atomic`` of indented JSON."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode(), sync=sync)


def create_folder(path: Path, contents: Mapping[str, bytes]) -> bool:
    """Make a new folder with these files in one move; False when there is one already.

    Several processes may try for the same folder: exactly one succeeds.
    """
    temporary = _temporary(path)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, data in contents.items():
            with open(temporary / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise usage_error(path, "written", error) from None
    return True


def make_folder(path: Path) -> Path:
    """The folder, made when it is not there and tried for writing. Raises ``UsageError``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = _temporary(path / "probe")
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise usage_error(path, "written", error) from None
    return path


def read_bytes(path: Path, size_max: int) -> bytes:
    """The whole file. Raises ``UsageError`` when it cannot be read or is longer than ``size_max`` bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read(size_max + 1)
    except OSError as error:
        raise usage_error(path, "read", error) from None
    if len(data) > size_max:
        raise UsageError(f"{path}: longer than {size_max} bytes")
    return data


def read_json(path: Path) -> Any:
    """The JSON value in the file, None when there is no such file or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
