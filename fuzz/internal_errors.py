"""What happens when our own code breaks: the traceback and the input that caused it are kept.

An internal error is never a finding and never silent: it ends the command with exit status 3 and one line that
names the folder.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from emulator.errors import InternalError, UsageError, VmafuzzError
from fuzz import files
from fuzz.designs import one_line, raised_in_design

if TYPE_CHECKING:
    from emulator.designs.base import Design


class InternalErrorOn(InternalError):
    """An internal error and the bytes of the input that caused it; the cause is chained."""

    def __init__(self, data: bytes, cause: BaseException) -> None:
        super().__init__(one_line(cause))
        self.data = data


@contextlib.contextmanager
def kept(data: bytes, design: type[Design] | None = None, folder: Path | None = None) -> Iterator[None]:
    """Code that works on one input: whatever unexpected comes out carries the input with it.

    What comes out of the own file of a user's ``design`` is the user's mistake: a ``UsageError`` that names the
    folder (below ``folder``) with workload and traceback.
    """
    try:
        yield
    except (UsageError, InternalErrorOn):
        raise
    except Exception as error:
        kept_error = InternalErrorOn(data, error)
        kept_error.__cause__ = error
        if design is None or not raised_in_design(error, design):
            raise kept_error from error
        place = save(kept_error, folder)
        raise UsageError(
            f"the design's own code failed: {one_line(error)}; the workload and the traceback are in {place}"
        ) from error


def save(error: BaseException, folder: Path | None = None) -> Path:
    """Write traceback and input to a new folder below ``folder``; gives its path.

    Without ``folder``, or when it cannot be written: in the current folder, else where temporary files go.
    """
    contents = {"traceback.txt": "".join(traceback.format_exception(error)).encode()}
    if isinstance(error, InternalErrorOn):
        contents["input.msgpack"] = error.data
    name = f"vmafuzz-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    places = [Path.cwd(), Path(tempfile.gettempdir())]
    for place in places if folder is None else [folder, *places]:
        with contextlib.suppress(VmafuzzError):
            if files.create_folder(place / name, contents):
                return place / name
    raise error


def message(error: BaseException, folder: Path) -> str:
    """The one line that a user sees."""
    what = str(error) if isinstance(error, InternalErrorOn) else one_line(error)
    kept_what = "the input and the traceback are" if isinstance(error, InternalErrorOn) else "the traceback is"
    return f"internal error: {what}; {kept_what} in {folder}"
