"""What the same-page scanner remembers: the structs of mm/ksm.c, and the state of its daemon.

Beside ``mm_types`` as they are data, which oracles read; the functions stand in ``emulator.mm.ksm`` and ``ksm_scan``.
All of it belongs to the scanner, which holds ``thread_mutex``; others take part as follows. A list of mergeable
processes changes under mmap_lock of the process. The list of a stable node changes under the lock of its folio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.rbtree import RbNode, RbTree

if TYPE_CHECKING:
    from emulator.mm_types import Folio, MmStruct
    from emulator.rmap_types import AnonVma
    from emulator.sched.scheduler import Scheduler

Contents = tuple[tuple[int, int], ...]
"""The contents of a page as a key: sorted (offset, token) pairs. Stands for its bytes, and for their checksum."""

MAX_PAGE_SHARING: Final = 256  # /sys/kernel/mm/ksm/max_page_sharing: items of one stable node


class KsmRmapItem:
    """struct ksm_rmap_item: one page of a process that the scanner has met. ``address`` in bytes.

    ``head`` is the stable node that it is listed at, None if none; then it holds a reference on ``anon_vma``, which
    was its VMA's when the page was merged. ``node``: where it stands in the unstable tree, or did in an earlier scan,
    which ``seqnr`` says.
    """

    __slots__ = ("address", "age", "anon_vma", "head", "mm", "node", "oldchecksum", "remaining_skips", "seqnr")

    def __init__(self, mm: MmStruct, address: int) -> None:
        self.mm = mm
        self.address = address
        self.anon_vma: AnonVma | None = None
        self.head: KsmStableNode | None = None
        self.node: RbNode[KsmRmapItem] | None = None
        self.seqnr = 0  # number of the scan that entered it there
        self.oldchecksum: Contents | None = None  # contents when it was last looked at
        self.age = 0  # scans since it was made
        self.remaining_skips = 0

    def __repr__(self) -> str:
        return f"ksm_rmap_item[process {self.mm.label} page {self.address >> 12:#x}]"


class KsmStableNode:
    """struct ksm_stable_node: one KSM page, found by its contents, which never change.

    It holds no reference on the folio, which says by its ``mapping`` whether it is still this node's.
    """

    __slots__ = ("contents", "folio", "hlist")

    def __init__(self, folio: Folio, contents: Contents) -> None:
        self.folio = folio  # kpfn: another one after a migration
        self.contents = contents
        self.hlist: list[KsmRmapItem] = []  # head first: places that map the folio, or did

    def __repr__(self) -> str:
        return f"stable node of folio#{self.folio.pfn}"


class KsmMmSlot:
    """struct ksm_mm_slot: one process that has, or had, mergeable memory; its items in order of address."""

    __slots__ = ("mm", "rmap_list")

    def __init__(self, mm: MmStruct) -> None:
        self.mm = mm
        self.rmap_list: list[KsmRmapItem] = []


class Ksm:
    """What mm/ksm.c keeps in static variables.

    ``mm_slots`` is the ring of processes without its head. The cursor (struct ksm_scan) stands in ``slot`` (None: at
    the head, between two scans) at ``address``; items before ``position`` have had their turn.
    """

    __slots__ = ("address", "mm_slots", "position", "seqnr", "slot", "stable_tree", "thread_mutex", "unstable_tree")

    def __init__(self, sched: Scheduler) -> None:
        self.thread_mutex = sched.rwsem("ksm_thread_mutex", sched)
        self.mm_slots: list[KsmMmSlot] = []
        self.slot: KsmMmSlot | None = None
        self.address = 0
        self.position = 0
        # by contents; several nodes of the same contents where one has as many items as it may (a chain)
        self.stable_tree: dict[Contents, list[KsmStableNode]] = {}
        self.unstable_tree: RbTree[KsmRmapItem] = RbTree()  # by contents when they were entered
        self.seqnr = 0  # how many scans have begun

    def slot_of(self, mm: MmStruct) -> KsmMmSlot | None:
        """The slot of a process (MMF_VM_MERGEABLE): None when it has nothing to scan."""
        return next((slot for slot in self.mm_slots if slot.mm is mm), None)
