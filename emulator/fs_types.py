"""Files as mm/ sees them (include/linux/fs.h): the page cache of one, one open file, what is done with its mappings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.interval_tree import VmaIntervalTree

if TYPE_CHECKING:
    from emulator.mm_types import Folio
    from emulator.sched.locks import RwSem


class AddressSpace:
    """struct address_space of a file (or shmem object): the page cache of one inode, and what shmem keeps with it.

    ``pages`` and ``swapped`` (the two kinds of entries of i_pages) change under the lock of the folio concerned.
    """

    __slots__ = (
        "holes",
        "i_mmap",
        "i_mmap_rwsem",
        "label",
        "large_folios",
        "noreserve",
        "pages",
        "shmem",
        "size",
        "swapped",
        "swapped_large",
        "unlinked",
    )

    def __init__(
        self,
        label: int,
        size: int,
        i_mmap_rwsem: RwSem,
        *,
        shmem: bool = False,
        noreserve: bool = False,
        unlinked: bool = False,
    ) -> None:
        self.label = label  # which file of the workload
        self.size = size  # bytes; access beyond is SIGBUS
        self.shmem = shmem
        self.unlinked = unlinked  # of shmem: it is in no folder, so its mappings are anonymous memory
        self.noreserve = noreserve  # of shmem: each page is charged when it comes, not all of them at once
        self.pages: dict[int, Folio] = {}  # i_pages: page index to folio, one that is large for each of its pages
        self.large_folios = False  # there are some in ``pages``, or have been
        self.holes: dict[int, None] = {}  # of a file on a disk: numbers of pages that it has no more, which are zeros
        self.swapped: dict[int, int] = {}  # of shmem: page index to the swap slot that holds it
        # of shmem: index to order of large folios that were swapped out as a whole, in slots that follow each other
        self.swapped_large: dict[int, int] = {}
        self.i_mmap = VmaIntervalTree()  # VMAs that map it; protected by i_mmap_rwsem
        self.i_mmap_rwsem = i_mmap_rwsem


class File:
    """struct file: one open file. VMAs of the same ``File`` may merge, of another open of it not."""

    __slots__ = ("f_count", "f_mapping", "label", "name", "readable", "writable")

    def __init__(self, label: int, f_mapping: AddressSpace, name: str = "") -> None:
        self.label = label
        self.f_mapping = f_mapping
        self.name = name
        self.f_count = 1  # who uses it beside the VMAs in i_mmap: descriptors, calls that are under way
        self.readable = True
        self.writable = True


class VmOps:
    """struct vm_operations_struct, as far as merging and moving see it."""

    __slots__ = ("close", "may_split", "mremap", "name")

    def __init__(
        self, name: str, *, close: bool = False, may_split: bool = True, mremap: bool = True
    ) -> None:
        self.name = name
        self.close = close  # has a close() hook: such a VMA is never merged away
        self.may_split = may_split  # may_split() allows a split
        self.mremap = mremap  # mremap() allows a move
