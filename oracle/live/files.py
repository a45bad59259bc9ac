"""The files of a live workload: on a disk or in memory, without a name, the same contents at every start."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Final

from emulator.geometry import PAGE_SHIFT, PAGE_SIZE
from emulator.workload import FILE_PAGES, FILES_MAX, file_token, is_memory
from oracle.live.processor import SYS_MMAP, SYS_MUNMAP, Processor
from oracle.live.surroundings import mappings

_MAP_PRIVATE: Final = 2
_PUNCH_HOLE: Final = 2 | 1  # FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE
_SIZE: Final = FILE_PAGES << PAGE_SHIFT


class Files:
    """The open files, by label. They have no name, so nothing is left of them however the process ends."""

    def __init__(self, processor: Processor, folder: str) -> None:
        """In ``folder``. Raises ``OSError``."""
        self.handles = [_open_memfd() if is_memory(label) else _open_unnamed(folder) for label in range(FILES_MAX)]
        self._contents = {label: _contents(label) for label in range(FILES_MAX) if not is_memory(label)}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.reset()
        self.inodes = {self._inode(processor, handle): label for label, handle in enumerate(self.handles)}

    def reset(self) -> None:
        """Give every file the contents that it has before a workload; one of memory has no pages at all."""
        for label, handle in enumerate(self.handles):
            if label in self._contents:
                os.pwrite(handle, self._contents[label], 0)
            elif self._libc.fallocate(handle, _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(_SIZE)):
                raise OSError(ctypes.get_errno(), "a memfd cannot be emptied")

    @staticmethod
    def _inode(processor: Processor, handle: int) -> int:
        """The file's inode as /proc/PID/maps shows it, which not on every file system is what fstat says."""
        address = processor.call(SYS_MMAP, 0, PAGE_SIZE, 0, _MAP_PRIVATE, handle, 0)
        found = next(mapping.inode for mapping in mappings() if mapping.start <= address < mapping.end)
        processor.call(SYS_MUNMAP, address, PAGE_SIZE)
        return found


def _contents(label: int) -> bytes:
    pages = (file_token(label, page).to_bytes(8, "little") for page in range(FILE_PAGES))
    return b"".join(token.ljust(1 << PAGE_SHIFT, b"\0") for token in pages)


def _open_memfd() -> int:
    handle = os.memfd_create("vmafuzz")
    os.ftruncate(handle, _SIZE)
    return handle


def _open_unnamed(folder: str) -> int:
    with contextlib.suppress(OSError):
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    # A file system without O_TMPFILE: the name is there for a moment only.
    path = os.path.join(folder, f".vmafuzz-{os.getpid()}-{os.urandom(8).hex()}")
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return handle
