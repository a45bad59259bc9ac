"""Runs recorded memory system calls in the machine.

Each function gets the machine's modules, the thread and the call, and returns the machine's result, or a sentence
that says why the call cannot be modelled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from emulator.fs_types import File
from emulator.geometry import PAGE_MASK, PAGE_SHIFT, page_align
from emulator.mm_types import MmStruct
from emulator.uapi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_TYPE,
    MREMAP_MAYMOVE,
)
from fuzz.record.events import Call, Mapping
from fuzz.record.threads import Thread

if TYPE_CHECKING:
    from fuzz.record.files import Inodes

_MAP_HUGETLB: Final = 0x40000
_MAP_32BIT: Final = 0x40
_MAP_SYNC: Final = 0x80000
_MAP_DROPPABLE: Final = 8
_UNKNOWN_FLAGS: Final = {
    _MAP_HUGETLB: "mmap MAP_HUGETLB",
    _MAP_32BIT: "mmap MAP_32BIT",
    _MAP_SYNC: "mmap MAP_SYNC",
}
_U32: Final = (1 << 32) - 1
_FILE_ERRORS: Final = (-9, -19)  # EBADF, ENODEV: what the descriptor is, the recording does not tell
_MADVISE_UNMODELLED: Final = {  # known to Linux, not to the machine
    12: "madvise MADV_MERGEABLE",
    13: "madvise MADV_UNMERGEABLE",
    25: "madvise MADV_COLLAPSE",
    100: "madvise MADV_HWPOISON",
    101: "madvise MADV_SOFT_OFFLINE",
}
PR_SET_VMA: Final = 0x53564D41
PR_SET_MEMORY_MERGE: Final = 67
PR_SET_THP_DISABLE: Final = 41
PRCTL_OF_MEMORY: Final = {
    PR_SET_VMA: "prctl PR_SET_VMA",
    PR_SET_MEMORY_MERGE: "prctl PR_SET_MEMORY_MERGE",
    PR_SET_THP_DISABLE: "prctl PR_SET_THP_DISABLE",
}

Result = int | str


class MemoryCalls:
    """The system calls that change an address space, for one replay."""

    def __init__(self, image: Any, inodes: Inodes, mremap_flags: int) -> None:
        self.image = image
        self.inodes = inodes
        self.mremap_flags = mremap_flags  # that every mremap which may move asks for besides
        self.handlers: dict[str, Callable[[MmStruct, Thread, Call, Mapping | None], Result]] = {
            "mmap": self._mmap,
            "munmap": self._munmap,
            "mremap": self._mremap,
            "mprotect": self._mprotect,
            "pkey_mprotect": self._pkey_mprotect,
            "madvise": self._madvise,
            "brk": self._brk,
            "mlock": self._mlock,
            "mlock2": self._mlock2,
            "munlock": self._munlock,
            "mlockall": self._mlockall,
            "munlockall": self._munlockall,
            "prctl": self._prctl,
        }

    def run(self, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        """The machine's result; ``mapping`` is what perf told inside the call, if it told anything."""
        handler = self.handlers.get(call.name)
        if handler is None:
            return call.name
        if thread.space is None:
            return f"{call.name} in an address space of which nothing is known"
        if not call.known:
            return f"{call.name} with unknown arguments"
        return handler(thread.space.mm, thread, call, mapping)

    def predicted_address(self, thread: Thread, call: Call, mapping: Mapping | None) -> int | None:
        """Where an mmap without MAP_FIXED would go now; None for any other call."""
        if call.name != "mmap" or call.arg(3) & (MAP_FIXED | MAP_FIXED_NOREPLACE) or thread.space is None:
            return None
        return self._chosen(thread.space.mm, call, self._file(thread, call, mapping))

    def _chosen(self, mm: MmStruct, call: Call, file: File | None) -> int:
        addr, length = call.arg(0) & PAGE_MASK, page_align(call.arg(1))
        pgoff = call.arg(5) >> PAGE_SHIFT
        chosen: int = self.image.mmap.get_unmapped_area(mm, file, addr, length, pgoff, call.arg(3))
        return chosen

    def _file(self, thread: Thread, call: Call, mapping: Mapping | None) -> File | None:
        """What an mmap maps: None for private anonymous memory."""
        flags = call.arg(3)
        if flags & MAP_ANONYMOUS:
            if flags & MAP_TYPE not in (MAP_SHARED, MAP_SHARED_VALIDATE):
                return None
            # shared anonymous memory is a file of its own (shmem_zero_setup)
            if mapping is None:
                return self.inodes.unnamed()
            file = self.inodes.open((mapping.device, mapping.inode, mapping.generation), mapping.name)
            file.f_mapping.size = page_align(call.arg(1))
            return file
        opened = thread.fds.get(call.arg(4) & _U32)
        if mapping is None:
            return opened.file or self.inodes.unnamed(opened)
        key = (mapping.device, mapping.inode, mapping.generation)
        if opened.file is None or self.inodes.keys.get(opened.file.f_mapping.label) != key:
            opened.file = self.inodes.open(key, mapping.name, opened)
        return opened.file

    def _mmap(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        addr, length, prot, flags, _, offset = (call.arg(i) for i in range(6))
        for flag, name in _UNKNOWN_FLAGS.items():
            if flags & flag:
                return name
        if flags & MAP_TYPE == _MAP_DROPPABLE:
            return "mmap MAP_DROPPABLE"
        if call.result in _FILE_ERRORS:
            return "mmap of a file that cannot be mapped"
        self._learn_base(thread, call)
        file = self._file(thread, call, mapping)
        fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)
        if file is not None and not fixed and call.result is not None and call.result > 0:
            self.inodes.learn_placing(file, lambda: self._chosen(mm, call, file) == call.result)
        if file is not None and flags & MAP_ANONYMOUS:
            flags &= ~MAP_ANONYMOUS
            offset = 0  # of the file that was made for it
        result: int = self.image.mmap.sys_mmap(mm, addr, length, prot & _U32, flags, file, offset)
        return result

    def _learn_base(self, thread: Thread, call: Call) -> None:
        """What exec mapped is not known: the first address that the kernel chooses shows where that ends."""
        space = thread.space
        assert space is not None
        fixed = call.arg(3) & (MAP_FIXED | MAP_FIXED_NOREPLACE)
        if not space.placed and not fixed and not call.arg(0) and call.result is not None and call.result > 0:
            space.mm.mmap_base = call.result + page_align(call.arg(1))
            space.placed = True

    def _munmap(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        result: int = self.image.munmap.sys_munmap(mm, call.arg(0), call.arg(1))
        return result

    def _mremap(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        addr, old_len, new_len, flags, new_addr = (call.arg(i) for i in range(5))
        if flags & MREMAP_MAYMOVE:
            flags |= self.mremap_flags
        result: int = self.image.mremap.sys_mremap(mm, addr, old_len, new_len, flags, new_addr)
        return result

    def _mprotect(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        result: int = self.image.mprotect.sys_mprotect(mm, call.arg(0), call.arg(1), call.arg(2) & _U32)
        return result

    def _pkey_mprotect(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        if call.arg(3) & _U32 != _U32:
            return "pkey_mprotect with a key"
        return self._mprotect(mm, thread, call, mapping)

    def _madvise(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        advice = call.arg(2) & _U32
        if advice in _MADVISE_UNMODELLED:
            return _MADVISE_UNMODELLED[advice]
        result: int = self.image.madvise.do_madvise(mm, call.arg(0), call.arg(1), advice)
        return result

    def _brk(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        if not mm.start_brk:  # chosen at random by exec; the first call shows it
            if call.arg(0) or not call.result:
                return "brk before the place of the heap is known"
            mm.start_brk = mm.brk = call.result
        result: int = self.image.brk.sys_brk(mm, call.arg(0))
        return result

    def _mlock(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        result: int = self.image.mlock.sys_mlock(mm, call.arg(0), call.arg(1))
        return result

    def _mlock2(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        result: int = self.image.mlock.sys_mlock2(mm, call.arg(0), call.arg(1), call.arg(2) & _U32)
        return result

    def _munlock(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        result: int = self.image.mlock.sys_munlock(mm, call.arg(0), call.arg(1))
        return result

    def _mlockall(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        result: int = self.image.mlock.sys_mlockall(mm, call.arg(0) & _U32)
        return result

    def _munlockall(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        result: int = self.image.mlock.sys_munlockall(mm)
        return result

    def _prctl(self, mm: MmStruct, thread: Thread, call: Call, mapping: Mapping | None) -> Result:
        if call.arg(0) != PR_SET_MEMORY_MERGE:
            return PRCTL_OF_MEMORY[call.arg(0)]
        others = (call.arg(2), call.arg(3), call.arg(4))
        result: int = self.image.ksm.prctl_memory_merge(mm, call.arg(1), others)
        return result
