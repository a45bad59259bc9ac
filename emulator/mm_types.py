"""The structs of include/linux/mm_types.h and the flags of mm.h, with the kernel's field names.

Every field says which lock protects it and what it promises. Addresses and sizes are bytes, ``vm_pgoff`` and
``index`` pages. Classes here are shared by every kernel image; functions live in ``emulator.mm``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulator.fs_types import AddressSpace, File, VmOps
    from emulator.hw.pgtable import PageTable
    from emulator.ksm_types import KsmStableNode
    from emulator.machine import Machine
    from emulator.rmap_types import AnonVma, AnonVmaChain
    from emulator.sched.locks import FolioLock, RwSem

# vm_flags (include/linux/mm.h)
VM_READ: Final = 0x1
VM_WRITE: Final = 0x2
VM_EXEC: Final = 0x4
VM_SHARED: Final = 0x8
VM_MAYREAD: Final = 0x10
VM_MAYWRITE: Final = 0x20
VM_MAYEXEC: Final = 0x40
VM_MAYSHARE: Final = 0x80
VM_GROWSDOWN: Final = 0x100
VM_UFFD_MISSING: Final = 0x200
VM_PFNMAP: Final = 0x400
VM_MAYBE_GUARD: Final = 0x800  # since 6.19, and in late 6.18 stable kernels (6.18.44)
VM_UFFD_WP: Final = 0x1000
VM_LOCKED: Final = 0x2000
VM_IO: Final = 0x4000
VM_SEQ_READ: Final = 0x8000
VM_RAND_READ: Final = 0x10000
VM_DONTCOPY: Final = 0x20000
VM_DONTEXPAND: Final = 0x40000
VM_LOCKONFAULT: Final = 0x80000
VM_ACCOUNT: Final = 0x100000
VM_NORESERVE: Final = 0x200000
VM_HUGETLB: Final = 0x400000
VM_WIPEONFORK: Final = 0x2000000
VM_DONTDUMP: Final = 0x4000000
VM_SOFTDIRTY: Final = 0x8000000
VM_MIXEDMAP: Final = 0x10000000
VM_HUGEPAGE: Final = 0x20000000
VM_NOHUGEPAGE: Final = 0x40000000
VM_MERGEABLE: Final = 0x80000000
VM_DROPPABLE: Final = 1 << 40
VM_UFFD_MINOR: Final = 1 << 41
VM_SEALED: Final = 1 << 42

VM_ACCESS_FLAGS: Final = VM_READ | VM_WRITE | VM_EXEC
VM_SPECIAL: Final = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP
VM_LOCKED_MASK: Final = VM_LOCKED | VM_LOCKONFAULT
VM_STACK: Final = VM_GROWSDOWN
VM_DATA_DEFAULT_FLAGS: Final = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC  # x86-64
VM_UFFD_FLAGS: Final = VM_UFFD_MISSING | VM_UFFD_WP | VM_UFFD_MINOR  # __VM_UFFD_FLAGS

GUP_PIN_COUNTING_BIAS: Final = 1024  # a pin on a small folio counts as so many references (gup)


class VmAreaStruct:
    """struct vm_area_struct. Ranges and pgoff change under mmap_lock write and the rmap locks.

    ``vm_flags`` changes under mmap_lock write. ``anon_vma`` and ``anon_vma_chain`` change under mmap_lock write, or
    (first fault) under mmap_lock read. ``vm_start < vm_end``, both page aligned.
    """

    __slots__ = (
        "anon_name",
        "anon_vma",
        "anon_vma_chain",
        "anon_vma_flags",
        "detached",
        "uffd_ctx",
        "vm_end",
        "vm_file",
        "vm_flags",
        "vm_mm",
        "vm_ops",
        "vm_pgoff",
        "vm_policy",
        "vm_start",
    )

    def __init__(self, mm: MmStruct, start: int, end: int, pgoff: int, flags: int) -> None:
        self.vm_mm = mm
        self.vm_start = start
        self.vm_end = end
        self.vm_pgoff = pgoff
        self.vm_flags = flags
        self.vm_file: File | None = None
        self.vm_ops: VmOps | None = None  # None: anonymous (vma_is_anonymous)
        self.anon_vma: AnonVma | None = None  # not None: "faulted"
        self.anon_vma_chain: list[AnonVmaChain] = []  # head first
        self.anon_vma_flags = 0  # none in Linux; see emulator/designs/unfaulted_flag_2025.py
        self.vm_policy: object = None
        self.anon_name: str | None = None
        self.uffd_ctx: UserfaultfdCtx | None = None  # set: one of VM_UFFD_FLAGS is too; mmap_lock write
        self.detached = True  # not in the tree (vma_mark_detached)

    def __repr__(self) -> str:
        return (
            f"vma[{self.vm_start >> 12:#x}-{self.vm_end >> 12:#x} pgoff {self.vm_pgoff:#x} {self.anon_vma}]"
        )


class UserfaultfdCtx:
    """struct userfaultfd_ctx, and its file: who is told of the faults in the VMAs that are registered with it."""

    __slots__ = ("features", "mm", "references")

    def __init__(self, mm: MmStruct, features: int) -> None:
        self.mm = mm  # the address space whose VMAs may be registered
        self.features = features  # UFFD_FEATURE_*
        self.references = 1  # to the file: it is open, and calls that are under way


class VmaTree:
    """mm->mm_mt, the maple tree of VMAs: ordered, disjoint. Protected by mmap_lock."""

    __slots__ = ("_starts", "_vmas")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._vmas: list[VmAreaStruct] = []

    def __len__(self) -> int:
        return len(self._vmas)

    def __iter__(self) -> Iterator[VmAreaStruct]:
        return iter(self._vmas)

    def find(self, addr: int) -> VmAreaStruct | None:
        """The first VMA that ends above ``addr`` (find_vma), None past the last."""
        i = bisect_right(self._starts, addr)
        if i and self._vmas[i - 1].vm_end > addr:
            return self._vmas[i - 1]
        return self._vmas[i] if i < len(self._vmas) else None

    def lookup(self, addr: int) -> VmAreaStruct | None:
        """The VMA that contains ``addr`` (vma_lookup)."""
        i = bisect_right(self._starts, addr)
        if i and self._vmas[i - 1].vm_end > addr:
            return self._vmas[i - 1]
        return None

    def prev_of(self, addr: int) -> VmAreaStruct | None:
        """The last VMA that starts below ``addr``."""
        i = bisect_left(self._starts, addr)
        return self._vmas[i - 1] if i else None

    def overlapping(self, start: int, end: int) -> list[VmAreaStruct]:
        """VMAs that meet [start, end), in address order."""
        lo = bisect_right(self._starts, start)
        if lo and self._vmas[lo - 1].vm_end > start:
            lo -= 1
        return self._vmas[lo : bisect_left(self._starts, end)]

    def insert(self, vma: VmAreaStruct) -> None:
        """Add ``vma``; its range must be free."""
        i = bisect_left(self._starts, vma.vm_start)
        self._starts.insert(i, vma.vm_start)
        self._vmas.insert(i, vma)
        vma.detached = False

    def erase(self, vma: VmAreaStruct) -> None:
        """Take ``vma`` out; it must be in, under its present start."""
        i = bisect_left(self._starts, vma.vm_start)
        assert self._vmas[i] is vma
        del self._starts[i]
        del self._vmas[i]
        vma.detached = True

    def move(self, vma: VmAreaStruct, start: int, end: int) -> None:
        """Give ``vma`` another range that keeps its place in the order."""
        if start != vma.vm_start:
            i = bisect_left(self._starts, vma.vm_start)
            assert self._vmas[i] is vma
            self._starts[i] = start
            vma.vm_start = start
        vma.vm_end = end


class MmStruct:
    """struct mm_struct: one address space."""

    __slots__ = (
        "asid",
        "brk",
        "data_vm",
        "dead",
        "def_flags",
        "exec_vm",
        "label",
        "locked_vm",
        "machine",
        "map_count",
        "max_map_count",
        "merge_any",
        "mm_mt",
        "mm_users",
        "mmap_base",
        "mmap_lock",
        "pgd",
        "pgtables_bytes",
        "rlim",
        "stack_vm",
        "start_brk",
        "tlb_flush_pending",
        "total_vm",
        "userfaultfd",
        "write_protect_seq",
    )

    pgd: PageTable  # the root table, set by mm_alloc_pgd

    def __init__(self, machine: Machine, label: int, asid: int, mmap_lock: RwSem) -> None:
        self.machine = machine
        self.label = label  # the process's label
        self.asid = asid  # address-space number for the TLBs, unique in the machine
        self.mm_mt = VmaTree()
        self.mmap_lock = mmap_lock
        self.map_count = 0  # VMAs; mmap_lock write
        self.max_map_count: int | None = None  # VMAs that it may have; None: as the profile says
        self.total_vm = 0  # pages, likewise the rest
        self.data_vm = 0
        self.exec_vm = 0
        self.rlim: dict[int, int] = {}  # limits that were set (RLIMIT_*), in pages; never changed in place
        self.stack_vm = 0
        self.locked_vm = 0
        self.mm_users = 1  # threads and others that use it
        self.def_flags = 0
        self.merge_any = False  # MMF_VM_MERGE_ANY: every VMA is offered to the same-page scanner
        self.start_brk = 0
        self.brk = 0
        self.mmap_base = 0  # top of the mmap area (bytes); allocation is top-down
        self.write_protect_seq = 0  # odd while fork write-protects; GUP-fast pins look at it
        self.tlb_flush_pending = 0  # changes of entries under way whose TLB flush is still to come
        self.userfaultfd: UserfaultfdCtx | None = None  # the process's open userfaultfd; it keeps one at most
        self.pgtables_bytes = 0
        self.dead = False


PageContent = dict[int, int]  # sub-page offset to token; {} is a page of zeros


NO_MM: Final = (-1, 0)  # of ``Folio.mm_ids``: free


class Folio:
    """struct folio: 2**order frames starting at ``pfn``.

    ``refcount`` falls to 0: freed. ``mapcounts[i]`` counts PTEs that map page i, ``entire_mapcount`` PMDs that map
    the whole. ``mapping``/``index`` change under the folio lock (anonymous: and the anon_vma root lock where a
    walker may look). ``anon_exclusive`` bit i: page i is PageAnonExclusive; PTE lock.
    """

    __slots__ = (
        "anon",
        "anon_exclusive",
        "content",
        "dirty",
        "entire_mapcount",
        "freed",
        "index",
        "ksm",
        "large_mapcount",
        "lock",
        "lru",
        "mapcounts",
        "mapping",
        "mlock_count",
        "mlocked",
        "mm_ids",
        "mm_ids_shared",
        "nr_pages",
        "order",
        "partially_mapped",
        "pfn",
        "pincount",
        "refcount",
        "swap",
        "swapbacked",
        "swapcache",
        "unevictable",
        "uptodate",
        "writeback",
    )

    def __init__(self, pfn: int, order: int, lock: FolioLock) -> None:
        self.pfn = pfn
        self.order = order
        self.nr_pages = 1 << order
        self.refcount = 1
        self.mapcounts = [0] * self.nr_pages
        self.entire_mapcount = 0
        # large folios (CONFIG_MM_ID): mappings in all, of at most two address spaces each (its asid and their number),
        # and whether there are perhaps others
        self.large_mapcount = 0
        self.mm_ids = [NO_MM, NO_MM]
        self.mm_ids_shared = False
        self.pincount = 0  # large folios: pins; small ones count GUP_PIN_COUNTING_BIAS references each
        self.mapping: AnonVma | AddressSpace | KsmStableNode | None = None
        self.anon = False  # mapping is an anon_vma (PageAnon); stays set while in the swap cache
        self.ksm = False  # anonymous, but mapping is a stable node, or none yet; index means nothing then
        self.index = 0  # page offset of page 0, in the space that mapping names
        self.anon_exclusive = 0
        self.swapcache = False
        self.swap = 0  # first swap slot while in the swap cache
        # PG_swapbacked, of anonymous folios: without it reclaim throws the folio away if it is clean (MADV_FREE)
        self.swapbacked = True
        self.dirty = False
        self.uptodate = True
        self.writeback = False
        self.partially_mapped = False
        self.freed = False
        self.lock = lock
        self.lru = True  # PG_lru: clear while reclaim or migration has it isolated; only one of them can
        self.mlocked = False  # PG_mlocked: in a VM_LOCKED VMA; may stay when that is unlocked
        self.unevictable = False  # PG_unevictable: on the list that reclaim does not look at
        self.mlock_count = 0  # how many VM_LOCKED VMAs map it, while unevictable; may be too low
        self.content: list[PageContent] = [{} for _ in range(self.nr_pages)]

    @property
    def large(self) -> bool:
        return self.order > 0

    def mapcount(self) -> int:
        """folio_mapcount: PTE mappings of all pages plus PMD mappings."""
        if self.order == 0:
            return self.mapcounts[0]
        return sum(self.mapcounts) + self.entire_mapcount

    def mapped(self) -> bool:
        return self.mapcount() > 0

    def maybe_dma_pinned(self) -> bool:
        """folio_maybe_dma_pinned: may say True without a pin (many references), never False with one."""
        if self.order:
            return self.pincount > 0
        return self.refcount >= GUP_PIN_COUNTING_BIAS

    def __repr__(self) -> str:
        kind = f"order {self.order} " if self.order else ""
        return f"folio#{self.pfn} {kind}index {self.index:#x} of {self.mapping}"


class Pin:
    """A page that get_user_pages gave out; lives in the machine under its label."""

    __slots__ = ("flags", "folio", "page")

    def __init__(self, folio: Folio, page: int, flags: int) -> None:
        self.folio = folio
        self.page = page  # which page of the folio
        self.flags = flags  # FOLL_*
