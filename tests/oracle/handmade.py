"""A machine whose state a test builds by hand, without any kernel code: what the oracles must be able to judge.

Everything is made right (counts, rmap, page tables), so that a test breaks exactly one thing. Addresses are virtual
page numbers.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from emulator.designs.mainline import Mainline
from emulator.geometry import LEVEL_PTE, PAGE_SHIFT
from emulator.hw.pgtable import PageTable
from emulator.hw.pte import (
    DIRTY,
    RW,
    SOFTLEAF_MIGRATION_WRITE,
    SOFTLEAF_SWAP,
    SPECIAL,
    SWP_EXCLUSIVE,
    USER,
    mk_pte,
    mk_softleaf,
)
from emulator.ksm_types import KsmMmSlot, KsmRmapItem, KsmStableNode
from emulator.machine import Machine
from emulator.mm_types import (
    GUP_PIN_COUNTING_BIAS,
    VM_ACCOUNT,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Folio,
    MmStruct,
    Pin,
    VmAreaStruct,
)
from emulator.rmap_types import AnonVma, AnonVmaChain, avc_insert
from emulator.sched.locks import RwSem, SpinLock
from emulator.workload import FOLL_PIN, FOLL_WRITE, Op, file_token
from oracle.observation import Observer

ANON_RW = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_ACCOUNT
NO_OPS: tuple[Op, ...] = ()


def _alloc_pgd(mm: MmStruct) -> None:
    mm.pgd = new_table(mm, 3)


def new_table(mm: MmStruct, level: int) -> PageTable:
    m = mm.machine
    return PageTable(level, mm, SpinLock("page table lock", m.sched), m.store_log)


class World:
    """The machine, its first process, and an observer that has seen everything up to the last ``look``."""

    def __init__(self, geometry: str = "small8") -> None:
        image: Any = SimpleNamespace(design=Mainline, pgtable_generic=SimpleNamespace(mm_alloc_pgd=_alloc_pgd))
        self.machine = Machine(image, geometry)
        self.mm = self.machine.procs[0]
        self.observer = Observer(self.machine)
        self.first = self.machine.geometry.arena_start >> PAGE_SHIFT

    def look(self, *ops: Op) -> None:
        """Take in what was built since the last look, as the step made of ``ops`` (default: an unspecific one)."""
        touched = ops or tuple(Op("munmap", label, (0, 1)) for label in self.machine.procs)
        self.observer.observe(touched)
        self.machine.store_log.clear()

    # ---- VMAs

    def vma(
        self, start: int, pages: int, *, mm: MmStruct | None = None, flags: int = ANON_RW, pgoff: int | None = None
    ) -> VmAreaStruct:
        """An unfaulted VMA, counted and charged."""
        mm = mm or self.mm
        vma = VmAreaStruct(mm, start << 12, start + pages << 12, start if pgoff is None else pgoff, flags)
        mm.mm_mt.insert(vma)
        mm.map_count += 1
        mm.total_vm += pages
        if flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
            mm.data_vm += pages
        if flags & VM_ACCOUNT:
            self.machine.committed += pages
        return vma

    def file_vma(self, start: int, pages: int, *, shared: bool, pgoff: int = 0) -> VmAreaStruct:
        flags = ANON_RW & ~VM_ACCOUNT | VM_SHARED if shared else ANON_RW
        vma = self.vma(start, pages, flags=flags, pgoff=pgoff)
        vma.vm_file = self.machine.files[0]
        return vma

    def new_anon_vma(self, parent: AnonVma | None = None) -> AnonVma:
        m = self.machine
        anon_vma = AnonVma(m, m.serial(), RwSem("anon_vma", m.sched))
        m.anon_vmas_live[anon_vma.serial] = anon_vma
        anon_vma.num_children = 1 if parent is None else 0
        if parent is not None:
            anon_vma.root = parent.root
            anon_vma.parent = parent
            parent.num_children += 1
            parent.root.refcount += 1
        return anon_vma

    def link(self, vma: VmAreaStruct, anon_vma: AnonVma) -> AnonVmaChain:
        """An AVC between the two."""
        avc = AnonVmaChain(self.machine.serial(), vma, anon_vma)
        vma.anon_vma_chain.insert(0, avc)
        avc_insert(avc)
        return avc

    def faulted(self, vma: VmAreaStruct, anon_vma: AnonVma | None = None) -> AnonVma:
        """Give the VMA an anon_vma: a root of its own, or this one."""
        anon_vma = anon_vma or self.new_anon_vma()
        vma.anon_vma = anon_vma
        anon_vma.num_active_vmas += 1
        self.link(vma, anon_vma)
        return anon_vma

    def fork_vma(self, parent: VmAreaStruct, child_mm: MmStruct) -> VmAreaStruct:
        """The child's copy of a faulted VMA, with an anon_vma below the parent's; no pages."""
        start, end = parent.vm_start >> 12, parent.vm_end >> 12
        child = self.vma(start, end - start, mm=child_mm, flags=parent.vm_flags, pgoff=parent.vm_pgoff)
        for avc in parent.anon_vma_chain:
            self.link(child, avc.anon_vma)
        self.faulted(child, self.new_anon_vma(parent.anon_vma))
        return child

    def process(self, label: int) -> MmStruct:
        mm = self.machine.procs[label] = self.machine.new_mm(label)
        return mm

    # ---- page tables

    def table(self, page: int, *, mm: MmStruct | None = None, level: int = LEVEL_PTE) -> PageTable:
        """The table of ``level`` for a virtual page, made where missing."""
        mm = mm or self.mm
        g = self.machine.geometry
        table = mm.pgd
        while table.level > level:
            slot = (page << 12 >> g.shifts[table.level]) & g.index_mask
            lower = table.get(slot)
            if not isinstance(lower, PageTable):
                lower = new_table(mm, table.level - 1)
                table.set(slot, lower)
            table = lower
        return table

    def store(self, page: int, entry: int, *, mm: MmStruct | None = None) -> None:
        """Set the PTE of a virtual page."""
        self.table(page, mm=mm).set(page & self.machine.geometry.index_mask, entry)

    # ---- pages

    def page(self, vma: VmAreaStruct, number: int, token: int = 7, *, exclusive: bool = True) -> Folio:
        """An anonymous page of one's own at virtual page ``number``."""
        folio = self.machine.phys.alloc(0)
        folio.anon = True
        folio.mapping = vma.anon_vma
        folio.index = number - (vma.vm_start >> 12) + vma.vm_pgoff
        folio.anon_exclusive = int(exclusive)
        folio.mapcounts[0] = 1
        folio.content[0][0] = token
        flags = USER | DIRTY | (RW if exclusive else 0)
        self.store(number, mk_pte(folio.pfn, flags), mm=vma.vm_mm)
        return folio

    def share(self, folio: Folio, vma: VmAreaStruct, number: int) -> None:
        """Map the page once more, read-only, as fork does to the child."""
        folio.mapcounts[0] += 1
        folio.refcount += 1
        folio.anon_exclusive = 0
        self.store(number, mk_pte(folio.pfn, USER), mm=vma.vm_mm)

    def huge_page(self, vma: VmAreaStruct, number: int) -> Folio:
        """A PMD-mapped huge page whose first page stands at virtual page ``number``."""
        order = self.machine.geometry.hpage_pmd_order
        folio = self.machine.phys.alloc(order)
        folio.anon = True
        folio.mapping = vma.anon_vma
        folio.index = number - (vma.vm_start >> 12) + vma.vm_pgoff
        folio.entire_mapcount = 1
        folio.anon_exclusive = (1 << folio.nr_pages) - 1
        table = self.table(number, mm=vma.vm_mm, level=1)
        slot = (number >> order) & self.machine.geometry.index_mask
        table.set(slot, mk_pte(folio.pfn, USER | RW | DIRTY | 1 << 5))
        return folio

    def ksm_page(self, *places: tuple[VmAreaStruct, int], token: int = 7) -> KsmStableNode:
        """A merged page mapped at these virtual pages, the first of them the last one met; each has an item."""
        ksm = self.machine.ksm
        vma, number = places[0]
        folio = self.page(vma, number, token, exclusive=False)
        self.store(number, mk_pte(folio.pfn, USER), mm=vma.vm_mm)
        for vma, number in places[1:]:
            self.share(folio, vma, number)
        folio.ksm = True
        node = KsmStableNode(folio, ((0, token),))
        folio.mapping = node
        ksm.stable_tree[node.contents] = [node]
        for vma, number in places:
            slot = ksm.slot_of(vma.vm_mm)
            if slot is None:
                slot = KsmMmSlot(vma.vm_mm)
                ksm.mm_slots.append(slot)
            item = KsmRmapItem(vma.vm_mm, number << 12)
            slot.rmap_list.append(item)
            item.head = node
            item.anon_vma = vma.anon_vma
            assert item.anon_vma is not None
            item.anon_vma.refcount += 1
            node.hlist.insert(0, item)
        return node

    def zero_page(self, vma: VmAreaStruct, number: int) -> None:
        self.store(number, mk_pte(self.machine.phys.zero_folio.pfn, USER | SPECIAL), mm=vma.vm_mm)

    def huge_zero_page(self) -> Folio:
        """That of the machine, which has none before."""
        phys = self.machine.phys
        if phys.huge_zero_folio is None:
            phys.huge_zero_folio = phys.alloc(self.machine.geometry.hpage_pmd_order)
        return phys.huge_zero_folio

    def swapped(self, vma: VmAreaStruct, number: int, token: int = 7, *, exclusive: bool = True) -> int:
        """A swapped-out page; returns the slot."""
        slot = self.machine.swap.alloc(1)
        self.machine.swap.get(slot)
        self.machine.swap.content[slot] = {0: token}
        flags = SWP_EXCLUSIVE if exclusive else 0
        self.store(number, mk_softleaf(SOFTLEAF_SWAP, slot, flags), mm=vma.vm_mm)
        return slot

    def cache(self, slot: int, vma: VmAreaStruct, pgoff: int) -> Folio:
        """Bring the slot's page into the swap cache, as it was mapped before."""
        folio = self.machine.phys.alloc(0)
        folio.anon = True
        folio.mapping = vma.anon_vma
        folio.index = pgoff
        folio.swapcache = True
        folio.swap = slot
        folio.content[0].update(self.machine.swap.content[slot])
        self.machine.swap.cache[slot] = folio
        return folio

    def file_page(self, vma: VmAreaStruct, number: int, flags: int = USER) -> Folio:
        """The page-cache page that the VMA wants at ``number``, mapped there."""
        folio = self.machine.phys.alloc(0)
        assert vma.vm_file is not None
        mapping = vma.vm_file.f_mapping
        folio.mapping = mapping
        folio.index = number - (vma.vm_start >> 12) + vma.vm_pgoff
        folio.content[0][0] = file_token(mapping.label, folio.index)
        mapping.pages[folio.index] = folio
        folio.refcount = 2
        folio.mapcounts[0] = 1
        self.store(number, mk_pte(folio.pfn, flags), mm=vma.vm_mm)
        return folio

    def migration_entry(self, folio: Folio, number: int) -> None:
        self.store(number, mk_softleaf(SOFTLEAF_MIGRATION_WRITE, folio.pfn))

    def pin(self, label: int, folio: Folio, page: int = 0, flags: int = FOLL_PIN | FOLL_WRITE) -> None:
        """get_user_pages gave this page out."""
        self.machine.pins[label] = Pin(folio, page, flags)
        if flags & FOLL_PIN and folio.order == 0:
            folio.refcount += GUP_PIN_COUNTING_BIAS
        else:
            folio.refcount += 1
            folio.pincount += int(bool(flags & FOLL_PIN))
