"""Numbers of the user-space interface: protections, flags, advice, errno (source: include/uapi)."""

from __future__ import annotations

import errno as _errno
from typing import Final

PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_WRITE: Final = 2
PROT_EXEC: Final = 4
PROT_SEM: Final = 8  # accepted, without meaning on x86
PROT_GROWSDOWN: Final = 0x01000000
PROT_GROWSUP: Final = 0x02000000

MAP_SHARED: Final = 0x01
MAP_PRIVATE: Final = 0x02
MAP_SHARED_VALIDATE: Final = 0x03
MAP_DROPPABLE: Final = 0x08
MAP_TYPE: Final = 0x0F
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MAP_GROWSDOWN: Final = 0x0100
MAP_LOCKED: Final = 0x2000
MAP_NORESERVE: Final = 0x4000
MAP_POPULATE: Final = 0x8000
MAP_STACK: Final = 0x20000
MAP_FIXED_NOREPLACE: Final = 0x100000

OVERCOMMIT_GUESS: Final = 0
OVERCOMMIT_ALWAYS: Final = 1
OVERCOMMIT_NEVER: Final = 2

MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
MREMAP_DONTUNMAP: Final = 4
MREMAP_RELOCATE_ANON: Final = 8  # proposed (June 2025), refused by mainline
MREMAP_MUST_RELOCATE_ANON: Final = 16  # likewise

MLOCK_ONFAULT: Final = 1
MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4

MADV_NORMAL: Final = 0
MADV_RANDOM: Final = 1
MADV_SEQUENTIAL: Final = 2
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_FREE: Final = 8
MADV_REMOVE: Final = 9
MADV_DONTFORK: Final = 10
MADV_DOFORK: Final = 11
MADV_MERGEABLE: Final = 12
MADV_UNMERGEABLE: Final = 13
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_DONTDUMP: Final = 16
MADV_DODUMP: Final = 17
MADV_WIPEONFORK: Final = 18
MADV_KEEPONFORK: Final = 19
MADV_COLD: Final = 20
MADV_PAGEOUT: Final = 21
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
MADV_DONTNEED_LOCKED: Final = 24
MADV_COLLAPSE: Final = 25
MADV_GUARD_INSTALL: Final = 102
MADV_GUARD_REMOVE: Final = 103

PR_SET_MM: Final = 35
PR_SET_MM_MAP: Final = 14
PR_SET_MEMORY_MERGE: Final = 67
PR_SET_VMA: Final = 0x53564D41
PR_SET_VMA_ANON_NAME: Final = 0

UFFD_FEATURE_EVENT_FORK: Final = 1 << 1
UFFD_FEATURE_EVENT_REMAP: Final = 1 << 2
UFFD_FEATURE_SIGBUS: Final = 1 << 7
UFFD_FEATURE_WP_UNPOPULATED: Final = 1 << 13
UFFD_FEATURE_POISON: Final = 1 << 14
UFFD_FEATURE_MOVE: Final = 1 << 16

UFFDIO_REGISTER_MODE_MISSING: Final = 1
UFFDIO_REGISTER_MODE_WP: Final = 2
UFFDIO_REGISTER_MODE_MINOR: Final = 4
UFFDIO_COPY_MODE_DONTWAKE: Final = 1
UFFDIO_COPY_MODE_WP: Final = 2
UFFDIO_WRITEPROTECT_MODE_WP: Final = 1
UFFDIO_WRITEPROTECT_MODE_DONTWAKE: Final = 2
UFFDIO_CONTINUE_MODE_DONTWAKE: Final = 1
UFFDIO_CONTINUE_MODE_WP: Final = 2
UFFDIO_MOVE_MODE_DONTWAKE: Final = 1
UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: Final = 2

EPERM: Final = _errno.EPERM
ENOENT: Final = _errno.ENOENT
ESRCH: Final = _errno.ESRCH
EINTR: Final = _errno.EINTR
EBADF: Final = _errno.EBADF
EAGAIN: Final = _errno.EAGAIN
ENOMEM: Final = _errno.ENOMEM
EACCES: Final = _errno.EACCES
EFAULT: Final = _errno.EFAULT
EBUSY: Final = _errno.EBUSY
EEXIST: Final = _errno.EEXIST
ENODEV: Final = _errno.ENODEV
EINVAL: Final = _errno.EINVAL
EOVERFLOW: Final = _errno.EOVERFLOW
EOPNOTSUPP: Final = _errno.EOPNOTSUPP
ENOSYS: Final = _errno.ENOSYS
EHWPOISON: Final = 133  # Python's errno has no name for it

# What a memory access ends with when it does not end with data. Values no system call returns.
SIGSEGV: Final = -1011
SIGBUS: Final = -1007
OOM_KILLED: Final = -1009


def result_name(result: int) -> str:
    """A result as people write it: ``0``, ``0x40000``, ``-ENOMEM``, ``SIGSEGV``."""
    named = {SIGSEGV: "SIGSEGV", SIGBUS: "SIGBUS", OOM_KILLED: "OOM", -EHWPOISON: "-EHWPOISON"}
    if result in named:
        return named[result]
    if result < 0:
        return "-" + _errno.errorcode.get(-result, str(-result))
    return str(result) if result < 4096 else hex(result)
