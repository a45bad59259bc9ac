"""Open files and file descriptors of recorded processes, as far as mapping them needs.

Two VMAs merge only if they map the same *open* file, so it matters which ``open`` a descriptor came from. Which inode
it is, perf tells when the file is mapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from emulator.fs_types import AddressSpace, File
from emulator.geometry import page_align
from emulator.machine import Machine
from fuzz.record.events import Call

SIZE_UNKNOWN: Final = 1 << 60  # bytes; recordings do not tell how long a file is
_AT_CALLS: Final = frozenset(("openat", "openat2"))
_OPENERS: Final = frozenset(
    (
        "open openat openat2 creat memfd_create memfd_secret socket accept accept4 eventfd eventfd2 epoll_create "
        "epoll_create1 inotify_init inotify_init1 signalfd signalfd4 timerfd_create userfaultfd perf_event_open "
        "pidfd_open pidfd_getfd io_uring_setup fanotify_init bpf open_by_handle_at"
    ).split()
)
_LEARNT_HUGE: Final = "one that places for huge pages"
_LEARNT_PLAIN: Final = "one that places anywhere"
_PLACING_HUGE: Final = ("ext4", "xfs", "btrfs", "bcachefs", "ext2", "f2fs", _LEARNT_HUGE)
_WRITERS: Final = frozenset("write pwrite64 writev pwritev pwritev2 fallocate sendfile copy_file_range".split())
_F_DUPFD: Final = (0, 1030)  # F_DUPFD, F_DUPFD_CLOEXEC
_O_ACCMODE: Final = 3
_CLOSE_RANGE_MAX: Final = 1 << 20

InodeKey = tuple[str, int, int]
"""Device ("fe:00"), inode number, generation."""


class OpenFile:
    """What one ``open`` made. ``file`` comes with the first mapping that tells which inode it is."""

    __slots__ = ("file", "readable", "size", "writable")

    def __init__(self, access: int = 2, size: int = SIZE_UNKNOWN) -> None:
        self.file: File | None = None
        self.size = size  # bytes, as far as this open file's calls tell
        self.readable = access in (0, 2)
        self.writable = access in (1, 2)

    def resize(self, size: int) -> None:
        """The file has another size now; a write makes it unknown."""
        self.size = size
        if self.file is not None:
            self.file.f_mapping.size = size


class FdTable:
    """Descriptors of a process; threads share one, fork copies it."""

    def __init__(self, entries: dict[int, OpenFile] | None = None) -> None:
        self.entries = entries if entries is not None else {}

    def copy(self) -> FdTable:
        return FdTable(dict(self.entries))

    def get(self, fd: int) -> OpenFile:
        """What ``fd`` is; one whose opening was not seen (inherited, received) becomes known now."""
        return self.entries.setdefault(fd, OpenFile())

    def follow(self, call: Call) -> None:
        """Keep up with a call that returned."""
        result = call.result
        if result is None or result < 0:
            return
        name = call.name
        if name in _OPENERS:
            self.entries[result] = OpenFile(_access_mode(call))
        elif name == "close":
            self.entries.pop(call.arg(0), None)
        elif name in ("dup", "dup2", "dup3") or (name == "fcntl" and call.arg(1) in _F_DUPFD):
            self.entries[result] = self.get(call.arg(0))
        elif name == "ftruncate":
            self.get(call.arg(0)).resize(page_align(call.arg(1)))
        elif name in _WRITERS:
            self.get(call.arg(0)).resize(SIZE_UNKNOWN)
        elif name == "close_range":
            first, last = call.arg(0), min(call.arg(1), _CLOSE_RANGE_MAX)
            for fd in [fd for fd in self.entries if first <= fd <= last]:
                del self.entries[fd]


def _access_mode(call: Call) -> int:
    """O_ACCMODE of an open; what is no open can be read and written."""
    if call.name in ("open", "openat") and call.known:
        return call.arg(2 if call.name in _AT_CALLS else 1) & _O_ACCMODE
    return 1 if call.name == "creat" else 2


class Inodes:
    """The page caches of all files of a recording."""

    def __init__(self, machine: Machine, filesystems: dict[str, str]) -> None:
        self.machine = machine
        self.filesystems = dict(filesystems)
        self.keys: dict[int, InodeKey] = {}  # label of an address space to its inode
        self._spaces: dict[InodeKey, AddressSpace] = {}
        self._opened = 0

    def space(self, key: InodeKey) -> AddressSpace:
        """The page cache of one inode."""
        space = self._spaces.get(key)
        if space is None:
            space = self._new_space(huge=self._places_huge_pages(key[0]))
            self._spaces[key] = space
            self.keys[space.label] = key
        return space

    def open(self, key: InodeKey, name: str, opened: OpenFile | None = None) -> File:
        """A new open file of that inode."""
        self._opened += 1
        file = File(self._opened, self.space(key), name)
        if opened is not None:
            file.readable, file.writable = opened.readable, opened.writable
            if opened.size != SIZE_UNKNOWN:
                file.f_mapping.size = opened.size
        return file

    def unnamed(self, opened: OpenFile | None = None) -> File:
        """A file that no mapping names: what a failing mmap was given, or memory that strace saw mapped."""
        self._opened += 1
        file = File(self._opened, self._new_space(huge=False))
        if opened is not None:
            file.readable, file.writable = opened.readable, opened.writable
        return file

    def learn_placing(self, file: File, explains: Callable[[], bool]) -> None:
        """The kernel chose another address for ``file`` than expected: does the other rule explain it?

        Asked only where the kind of file system is not known. What is learnt holds for the whole device.
        """
        space = file.f_mapping
        device = self.keys[space.label][0]
        if device in self.filesystems or explains():
            return
        space.shmem = not space.shmem
        if not explains():
            space.shmem = not space.shmem
        elif device:
            self.filesystems[device] = _LEARNT_PLAIN if space.shmem else _LEARNT_HUGE
            for key, other in self._spaces.items():
                if key[0] == device:
                    other.shmem = space.shmem

    def _new_space(self, *, huge: bool) -> AddressSpace:
        label = len(self.keys) + 1
        self.keys[label] = ("", 0, 0)
        lock = self.machine.sched.rwsem("i_mmap_rwsem", self.machine.sched)
        return AddressSpace(label, SIZE_UNKNOWN, lock, shmem=not huge)

    def _places_huge_pages(self, device: str) -> bool:
        """Does the file system choose addresses that huge pages fit (thp_get_unmapped_area)?

        Those with large folios do; tmpfs does only when its huge pages are enabled. A device of unknown kind with
        a major number is a disk.
        """
        kind = self.filesystems.get(device)
        if kind is not None:
            return kind in _PLACING_HUGE
        return bool(device) and not device.startswith("00:")
