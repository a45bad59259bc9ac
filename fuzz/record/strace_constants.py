"""Numbers for the names that ``strace`` prints (source: include/uapi, x86-64), as far as a replay needs them."""

from __future__ import annotations

import signal
from typing import Final

from emulator import uapi

_OTHERS: Final = {
    "NULL": 0,
    "AT_FDCWD": -100,
    # mmap
    "MAP_FILE": 0,
    "MAP_DENYWRITE": 0x800,
    "MAP_EXECUTABLE": 0x1000,
    "MAP_NONBLOCK": 0x10000,
    "MAP_HUGETLB": 0x40000,
    "MAP_SYNC": 0x80000,
    "MAP_32BIT": 0x40,
    "MAP_UNINITIALIZED": 0x4000000,
    "MAP_DROPPABLE": 0x08,
    "MAP_HUGE_2MB": 21 << 26,
    "MAP_HUGE_1GB": 30 << 26,
    "PROT_SEM": 8,
    # madvise
    "MADV_DONTNEED_LOCKED": 24,
    "MADV_COLLAPSE": 25,
    "MADV_MERGEABLE": 12,
    "MADV_UNMERGEABLE": 13,
    "MADV_HWPOISON": 100,
    "MADV_SOFT_OFFLINE": 101,
    # mlock, msync
    "MCL_CURRENT": 1,
    "MCL_FUTURE": 2,
    "MCL_ONFAULT": 4,
    "MLOCK_ONFAULT": 1,
    "MS_ASYNC": 1,
    "MS_INVALIDATE": 2,
    "MS_SYNC": 4,
    # clone
    "CLONE_VM": 0x100,
    "CLONE_FS": 0x200,
    "CLONE_FILES": 0x400,
    "CLONE_SIGHAND": 0x800,
    "CLONE_PIDFD": 0x1000,
    "CLONE_PTRACE": 0x2000,
    "CLONE_VFORK": 0x4000,
    "CLONE_PARENT": 0x8000,
    "CLONE_THREAD": 0x10000,
    "CLONE_NEWNS": 0x20000,
    "CLONE_SYSVSEM": 0x40000,
    "CLONE_SETTLS": 0x80000,
    "CLONE_PARENT_SETTID": 0x100000,
    "CLONE_CHILD_CLEARTID": 0x200000,
    "CLONE_DETACHED": 0x400000,
    "CLONE_UNTRACED": 0x800000,
    "CLONE_CHILD_SETTID": 0x1000000,
    "CLONE_NEWCGROUP": 0x2000000,
    "CLONE_NEWUTS": 0x4000000,
    "CLONE_NEWIPC": 0x8000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
    "CLONE_IO": 0x80000000,
    "CLONE_CLEAR_SIGHAND": 0x100000000,
    # open, fcntl
    "O_RDONLY": 0,
    "O_WRONLY": 1,
    "O_RDWR": 2,
    "O_CREAT": 0o100,
    "O_EXCL": 0o200,
    "O_NOCTTY": 0o400,
    "O_TRUNC": 0o1000,
    "O_APPEND": 0o2000,
    "O_NONBLOCK": 0o4000,
    "O_DIRECTORY": 0o200000,
    "O_NOFOLLOW": 0o400000,
    "O_CLOEXEC": 0o2000000,
    "O_PATH": 0o10000000,
    "F_DUPFD": 0,
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_SETFL": 4,
    "F_DUPFD_CLOEXEC": 1030,
    "FD_CLOEXEC": 1,
    "MFD_CLOEXEC": 1,
    # prctl
    "PR_SET_VMA": 0x53564D41,
    "PR_SET_VMA_ANON_NAME": 0,
    "PR_SET_MEMORY_MERGE": 67,
    "PR_GET_MEMORY_MERGE": 68,
    "PR_SET_THP_DISABLE": 41,
    "PR_SET_NAME": 15,
    "PR_CAPBSET_READ": 23,
}

SIGNALS: Final[dict[str, int]] = {name.name: int(name) for name in signal.Signals}

CONSTANTS: Final[dict[str, int]] = {
    **{
        name: value
        for name, value in vars(uapi).items()
        if name.startswith(("PROT_", "MAP_", "MREMAP_", "MADV_")) and isinstance(value, int)
    },
    **_OTHERS,
    **SIGNALS,
}
