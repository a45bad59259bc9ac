"""From an op of a workload to what a process of the live workload does: one small function for each kind.

A function gets the process's ``Processor``, the file handles, the op's arguments as in ``OPS``, and the token that
a write stores; it returns (result, contents for a read). To add an op: write its function, put it in ``CALLS``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from emulator.geometry import GEOMETRIES, PAGE_SHIFT
from emulator.uapi import (
    MAP_ANONYMOUS,
    MCL_CURRENT,
    PR_SET_MEMORY_MERGE,
    PR_SET_MM,
    PR_SET_MM_MAP,
    PR_SET_VMA,
    PR_SET_VMA_ANON_NAME,
)
from emulator.workload import (
    OFFSETS_MAX,
    POLICIES,
    VMA_NAMES,
    pattern_token,
)
from oracle.live import limits, map_count, overcommit, thp_sizes
from oracle.live.processor import SYS_MMAP, SYS_MPROTECT, SYS_MUNLOCK, SYS_MUNMAP, SYS_PRCTL, Processor
from oracle.live.surroundings import Filling, unlock_surroundings
from oracle.live.userfault import Userfault

SYS_BRK: Final = 12
SYS_MREMAP: Final = 25
SYS_MADVISE: Final = 28
SYS_MLOCK: Final = 149
SYS_MLOCKALL: Final = 151
SYS_MUNLOCKALL: Final = 152
SYS_REMAP_FILE_PAGES: Final = 216
SYS_MBIND: Final = 237
SYS_MLOCK2: Final = 325
SYS_PKEY_MPROTECT: Final = 329
SYS_PROCESS_MADVISE: Final = 440
SYS_MSEAL: Final = 462

GEOMETRY: Final = "x86-64"
ARENA_START: Final = GEOMETRIES[GEOMETRY].arena_start
ARENA_PAGES: Final = GEOMETRIES[GEOMETRY].arena_pages

_CAP_SYS_NICE: Final = 23
_MPOL_MODES: Final = {"default": 0, "preferred": 1, "bind": 2, "interleave": 3}

Args = tuple[int, ...]
Data = tuple[tuple[int, int], ...] | None


class Context(NamedTuple):
    """What the ops of a process work with."""

    processor: Processor
    files: list[int]  # handles, by label
    userfault: Userfault
    before: limits.Before = limits.NOTHING
    filling: Filling = Filling(0, 0)  # of the address space above the arena


Run = Callable[[Context, Args, int], tuple[int, Data]]


def address(page: int) -> int:
    return ARENA_START + (page << PAGE_SHIFT)


def to_page(result: int) -> int:
    """An address as arena page; errors as they are."""
    return result if -4096 < result < 0 else (result - ARENA_START) >> PAGE_SHIFT


def _mmap(context: Context, args: Args, token: int) -> tuple[int, Data]:
    page, length, prot, flags, file, offset = args
    handle = context.files[file - 1] if file else -1
    if not file:
        flags |= MAP_ANONYMOUS
    result = context.processor.call(
        SYS_MMAP, address(page), length << PAGE_SHIFT, prot, flags, handle, offset << PAGE_SHIFT
    )
    return to_page(result), None


def _munmap(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.processor.call(SYS_MUNMAP, address(args[0]), args[1] << PAGE_SHIFT), None


def _mremap(context: Context, args: Args, token: int) -> tuple[int, Data]:
    page, old_len, new_len, flags, new_page = args
    result = context.processor.call(
        SYS_MREMAP, address(page), old_len << PAGE_SHIFT, new_len << PAGE_SHIFT, flags, address(new_page)
    )
    return to_page(result), None


def _mprotect(context: Context, args: Args, token: int) -> tuple[int, Data]:
    page, length, prot = args
    return context.processor.call(SYS_MPROTECT, address(page), length << PAGE_SHIFT, prot), None


def _madvise(context: Context, args: Args, token: int) -> tuple[int, Data]:
    page, length, advice = args
    return context.processor.call(SYS_MADVISE, address(page), length << PAGE_SHIFT, advice), None


def _process_madvise(context: Context, args: Args, token: int) -> tuple[int, Data]:
    """The target is a pid here: the server, which knows them all, has looked it up."""
    pid, *places, advice = args
    pairs = zip(places[::2], places[1::2], strict=True)
    words = [word for page, length in pairs for word in (address(page), length << PAGE_SHIFT)]
    vector = (ctypes.c_uint64 * len(words))(*words)
    pidfd = os.pidfd_open(pid)
    result = context.processor.call(
        SYS_PROCESS_MADVISE, pidfd, ctypes.addressof(vector), len(words) // 2, advice, 0
    )
    os.close(pidfd)
    return (result if result < 0 else result >> PAGE_SHIFT), None


def _mlock(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.processor.call(SYS_MLOCK, address(args[0]), args[1] << PAGE_SHIFT), None


def _mlock2(context: Context, args: Args, token: int) -> tuple[int, Data]:
    page, length, flags = args
    return context.processor.call(SYS_MLOCK2, address(page), length << PAGE_SHIFT, flags), None


def _munlock(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.processor.call(SYS_MUNLOCK, address(args[0]), args[1] << PAGE_SHIFT), None


def _mlockall(context: Context, args: Args, token: int) -> tuple[int, Data]:
    result = context.processor.call(SYS_MLOCKALL, args[0])
    if args[0] & MCL_CURRENT and result == 0:
        unlock_surroundings(context.processor)
    return result, None


def _munlockall(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.processor.call(SYS_MUNLOCKALL), None


def _brk(context: Context, args: Args, token: int) -> tuple[int, Data]:
    processor = context.processor
    if not ARENA_START <= processor.call(SYS_BRK, 0) <= address(ARENA_PAGES):
        _move_heap(processor, context.before.data)
    return to_page(processor.call(SYS_BRK, address(args[0]))), None


def _move_heap(processor: Processor, data: int) -> None:
    """Let the heap begin in the arena. The C library keeps what it has, and never asks for more (``surroundings``).

    struct prctl_mm_map: where code, data, heap, stack, arguments and environment are. All but the heap only serves
    /proc, and must be in order; and how much data the program has, ``data`` pages, counts where the heap is limited.
    """
    low, heap = 1 << 20, address(GEOMETRIES[GEOMETRY].heap_page)
    fields = (low, low + 1, low + 2, low + 2 + (data << PAGE_SHIFT), heap, heap, *[low + 4] * 5)
    words = (ctypes.c_uint64 * 13)(*fields, 0, 0xFFFF_FFFF << 32)  # no auxiliary vector, no file
    result = processor.call(
        SYS_PRCTL, PR_SET_MM, PR_SET_MM_MAP, ctypes.addressof(words), ctypes.sizeof(words)
    )
    if result < 0:
        raise OSError(-result, "the heap cannot be moved into the arena (prctl PR_SET_MM_MAP)")


def _mseal(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.processor.call(SYS_MSEAL, address(args[0]), args[1] << PAGE_SHIFT, 0), None


def _set_vma_name(context: Context, args: Args, token: int) -> tuple[int, Data]:
    page, length, number = args
    name = ctypes.create_string_buffer(VMA_NAMES[number - 1].encode()) if number else None
    place = ctypes.addressof(name) if name is not None else 0
    call = context.processor.call
    return call(SYS_PRCTL, PR_SET_VMA, PR_SET_VMA_ANON_NAME, address(page), length << PAGE_SHIFT, place), None


def _memory_merge(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.processor.call(SYS_PRCTL, PR_SET_MEMORY_MERGE, args[0]), None


def _setrlimit(context: Context, args: Args, token: int) -> tuple[int, Data]:
    which, pages = args
    limits.set_soft(context.processor, which, pages, context.before)
    return 0, None


def _thp_sizes(context: Context, args: Args, token: int) -> tuple[int, Data]:
    thp_sizes.store(args[0])
    return 0, None


def _max_map_count(context: Context, args: Args, token: int) -> tuple[int, Data]:
    map_count.leave(context.processor, args[0], context.filling)
    return 0, None


def _overcommit_memory(context: Context, args: Args, token: int) -> tuple[int, Data]:
    overcommit.store(args[0])
    return 0, None


def _mbind(context: Context, args: Args, token: int) -> tuple[int, Data]:
    page, length, policy = args
    nodes = (ctypes.c_uint64 * 1)(1 if policy else 0)  # node 0
    mode = _MPOL_MODES[POLICIES[policy]]
    call = context.processor.call
    return call(SYS_MBIND, address(page), length << PAGE_SHIFT, mode, ctypes.addressof(nodes), 64, 0), None


def _pkey_mprotect(context: Context, args: Args, token: int) -> tuple[int, Data]:
    page, length, prot, key = args
    return context.processor.call(SYS_PKEY_MPROTECT, address(page), length << PAGE_SHIFT, prot, key - 1), None


def _remap_file_pages(context: Context, args: Args, token: int) -> tuple[int, Data]:
    page, length, offset = args
    return context.processor.call(
        SYS_REMAP_FILE_PAGES, address(page), length << PAGE_SHIFT, 0, offset, 0
    ), None


def _read(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.processor.load(address(args[0]))


def _write(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.processor.store(address(args[0]), args[1], token), None


def _fill(context: Context, args: Args, token: int) -> tuple[int, Data]:
    words = [pattern_token(args[1]), *[0] * (OFFSETS_MAX - 1)]
    results = [context.processor.store(address(args[0]), at, word) for at, word in enumerate(words)]
    return results[0], None


def _exec(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.processor.fetch(address(args[0])), None


def _userfaultfd(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.userfault.open(args[0]), None


def _uffd_close(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.userfault.close(), None


def _uffd_register(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.userfault.register(*args), None


def _uffd_unregister(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.userfault.unregister(*args), None


def _uffd_copy(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.userfault.copy(*args), None


def _uffd_zeropage(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.userfault.zeropage(*args), None


def _uffd_wp(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.userfault.write_protect(*args), None


def _uffd_move(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.userfault.move(*args), None


def _uffd_continue(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.userfault.continue_(*args), None


def _uffd_poison(context: Context, args: Args, token: int) -> tuple[int, Data]:
    return context.userfault.poison(*args), None


CALLS: Final[dict[str, Run]] = {
    "mmap": _mmap,
    "munmap": _munmap,
    "mremap": _mremap,
    "mprotect": _mprotect,
    "madvise": _madvise,
    "process_madvise": _process_madvise,
    "mlock": _mlock,
    "mlock2": _mlock2,
    "munlock": _munlock,
    "mlockall": _mlockall,
    "munlockall": _munlockall,
    "brk": _brk,
    "mseal": _mseal,
    "set_vma_name": _set_vma_name,
    "memory_merge": _memory_merge,
    "setrlimit": _setrlimit,
    "thp_sizes": _thp_sizes,
    "max_map_count": _max_map_count,
    "overcommit_memory": _overcommit_memory,
    "mbind": _mbind,
    "pkey_mprotect": _pkey_mprotect,
    "remap_file_pages": _remap_file_pages,
    "read": _read,
    "write": _write,
    "fill": _fill,
    "exec": _exec,
    "userfaultfd": _userfaultfd,
    "uffd_close": _uffd_close,
    "uffd_register": _uffd_register,
    "uffd_unregister": _uffd_unregister,
    "uffd_copy": _uffd_copy,
    "uffd_zeropage": _uffd_zeropage,
    "uffd_wp": _uffd_wp,
    "uffd_move": _uffd_move,
    "uffd_poison": _uffd_poison,
    "uffd_continue": _uffd_continue,
}
PROCESS_OPS: Final = ("fork", "exit", "ksm_scan")  # the server takes part in these
