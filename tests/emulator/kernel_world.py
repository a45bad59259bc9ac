"""Driving a machine from a test: arena pages in, results out, and an independent look at what it did.

Everything here looks at the state by itself (a walk of the page tables, a count of the lists) and calls no code of
``emulator/mm`` to judge it.
"""

from __future__ import annotations

from collections.abc import Iterable

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.relocate_anon import RelocateAnon
from emulator.geometry import PAGE_SHIFT, PAGE_SIZE
from emulator.hw.pgtable import walk_slot
from emulator.hw.pte import PRESENT, SPECIAL, is_migration, is_swap, pte_pfn, softleaf_value
from emulator.hw.pte import RW as PTE_RW
from emulator.image import KernelImage
from emulator.ksm_types import KsmStableNode
from emulator.machine import Machine
from emulator.mm_types import VM_ACCOUNT, Folio, MmStruct, VmAreaStruct
from emulator.profile import PROFILES, Profile
from emulator.rmap_types import AnonVma
from emulator.uapi import MAP_FIXED, MAP_PRIVATE, OVERCOMMIT_NEVER, PROT_READ, PROT_WRITE
from emulator.workload import Op, Outcome, Step, Switch

RW = PROT_READ | PROT_WRITE
PRIVATE_FIXED = MAP_PRIVATE | MAP_FIXED


_IMAGES: dict[type[Design], KernelImage] = {}


def kernel_image(design: type[Design]) -> KernelImage:
    """An image holds no state, so all tests share one for each design."""
    image = _IMAGES.get(design)
    if image is None:
        image = _IMAGES[design] = KernelImage(design)
    return image


def profile_with(**changes: object) -> Profile:
    """The 6.18 profile with a few values changed."""
    return PROFILES["6.18"]._replace(**changes)  # type: ignore[arg-type]


def committing(pages: int) -> Profile:
    """6.18 where ``pages`` may be promised, and not one more."""
    return profile_with(overcommit_memory=OVERCOMMIT_NEVER, commit_limit=pages + 1)


class World:
    """A machine, with its processes and arena, as a test sees it."""

    def __init__(
        self,
        geometry: str = "small8",
        design: type[Design] = Mainline,
        profile: Profile | str = "6.18",
    ) -> None:
        self.image = kernel_image(design)
        self.machine = Machine(self.image, geometry, profile)
        self.last = Outcome(0)
        self.steps: list[Step] = []  # what was asked for, to ask a running kernel for the same
        # the posted relocation takes folio locks under the page-table lock (found by syzkaller in June 2025)
        self.expected_warnings = {"sleep-in-atomic"} if issubclass(design, RelocateAnon) else set()

    # ---- asking for something

    def do(self, kind: str, *args: int, proc: int = 0, fail_nth: int = 0) -> int:
        """Run one op; its result. The whole outcome is in ``last``."""
        self.steps.append(Step((Op(kind, proc, args, fail_nth),)))
        self.last = self.machine.run_step(self.steps[-1])[0]
        return self.last.ret

    def collide(self, ops: Iterable[Op], schedule: Iterable[Switch] = ()) -> list[Outcome]:
        """Run two or three ops at the same time."""
        return self.machine.run_step(Step(tuple(ops), tuple(schedule)))

    def mmap(self, page: int, pages: int, prot: int = RW, flags: int = PRIVATE_FIXED, file: int = 0) -> int:
        """Map at a fixed place; fails the test when that fails. Returns ``page``."""
        ret = self.do("mmap", page, pages, prot, flags, file, 0)
        assert ret == page, f"mmap of {pages} pages at {page} gave {ret}"
        return page

    def write(self, page: int, at: int = 0, proc: int = 0) -> int:
        """Store to the page; the token that is there now. Fails the test on a signal."""
        ret = self.do("write", page, at, proc=proc)
        assert ret == 0, f"write to page {page} gave {ret}"
        content = self.content(page, proc)
        assert content is not None
        return content[at]

    def fork(self, child: int = 1, proc: int = 0) -> None:
        assert self.do("fork", child, proc=proc) == 0

    # ---- looking at the state

    def mm(self, proc: int = 0) -> MmStruct:
        return self.machine.procs[proc]

    def address(self, page: int) -> int:
        """Arena page to bytes."""
        return self.machine.geometry.arena_start + (page << PAGE_SHIFT)

    def page(self, address: int) -> int:
        """Bytes to arena page."""
        return (address - self.machine.geometry.arena_start) >> PAGE_SHIFT

    def vma(self, page: int, proc: int = 0) -> VmAreaStruct:
        """The VMA that maps the page; fails the test where none does."""
        found = next((v for v in self.mm(proc).mm_mt if v.vm_start <= self.address(page) < v.vm_end), None)
        assert found is not None, f"page {page} is not mapped"
        return found

    def span(self, page: int, proc: int = 0) -> tuple[int, int]:
        """(first page, pages) of the VMA that maps the page."""
        vma = self.vma(page, proc)
        return self.page(vma.vm_start), (vma.vm_end - vma.vm_start) >> PAGE_SHIFT

    def layout(self, proc: int = 0) -> list[tuple[int, int]]:
        """(first page, pages) of every VMA, in address order."""
        return [(self.page(v.vm_start), (v.vm_end - v.vm_start) >> PAGE_SHIFT) for v in self.mm(proc).mm_mt]

    def pte(self, page: int, proc: int = 0) -> int:
        """The leaf entry that translates the page, 0 for none."""
        return walk_slot(self.mm(proc), self.machine.geometry, self.address(page))[2]

    def folio(self, page: int, proc: int = 0) -> Folio:
        """The folio that the page is mapped to; fails the test where nothing is present."""
        entry = self.pte(page, proc)
        assert entry & PRESENT, f"page {page} is not present"
        return self.machine.phys.frames[pte_pfn(entry)]

    def content(self, page: int, proc: int = 0) -> dict[int, int] | None:
        """What the page holds, without touching it: offset to token; {} for zeros, None for not mapped."""
        address = self.address(page)
        if not any(v.vm_start <= address < v.vm_end for v in self.mm(proc).mm_mt):
            return None
        table, _, entry = walk_slot(self.mm(proc), self.machine.geometry, address)
        if entry & PRESENT or is_migration(entry):
            pfn = pte_pfn(entry) if entry & PRESENT else softleaf_value(entry)
            if table.level:
                pfn += (address >> PAGE_SHIFT) & ((1 << table.level * self.machine.geometry.bits) - 1)
            folio = self.machine.phys.frames[pfn]
            return dict(folio.content[pfn - folio.pfn])
        if is_swap(entry):
            slot = softleaf_value(entry)
            cached = self.machine.swap.cache.get(slot)
            if cached is not None:
                return dict(cached.content[slot - cached.swap])
            return dict(self.machine.swap.content[slot])
        return {}

    def contents(self, proc: int = 0) -> dict[int, dict[int, int]]:
        """Every mapped page's contents."""
        found = {}
        for first, pages in self.layout(proc):
            for page in range(first, first + pages):
                content = self.content(page, proc)
                assert content is not None
                found[page] = content
        return found

    # ---- is it sound

    def check(self, *, committed: bool = True, counters: bool = True) -> None:
        """Structure, rmap graph, page tables and counters recounted by hand.

        ``committed`` and ``counters`` off: not the charge, not total_vm, which Linux too gets wrong in some failures.
        No warning of the kernel but those that the design's known flaws give (``expected_warnings``).
        """
        for mm in self.machine.procs.values():
            check_vmas(mm)
            assert not counters or mm.total_vm == mapped_pages(mm)
            check_page_tables(self, mm)
        check_anon_vmas(self.machine.procs.values())
        check_mapcounts(self)
        check_files(self)
        unexpected = [w for w in self.machine.sched.warnings if w[0] not in self.expected_warnings]
        assert unexpected == []
        if committed:
            assert self.machine.committed == committed_pages(self.machine), "Committed_AS"


def check_vmas(mm: MmStruct) -> None:
    """Sorted, disjoint, not empty, aligned; counted right."""
    vmas = list(mm.mm_mt)
    end = 0
    for vma in vmas:
        assert vma.vm_mm is mm
        assert end <= vma.vm_start < vma.vm_end, vmas
        assert vma.vm_start % PAGE_SIZE == vma.vm_end % PAGE_SIZE == 0
        end = vma.vm_end
    assert mm.map_count == len(vmas)
    assert mm.mm_mt._starts == [v.vm_start for v in vmas]


def mapped_pages(mm: MmStruct) -> int:
    return sum((v.vm_end - v.vm_start) >> PAGE_SHIFT for v in mm.mm_mt)


def committed_pages(machine: Machine) -> int:
    """What accountable VMAs and files of memory have charged."""
    of_files = (
        len(f.pages) + len(f.swapped) if f.noreserve else f.size >> PAGE_SHIFT
        for f in machine.shared_memory.values()
    )
    return sum(of_files) + sum(
        (v.vm_end - v.vm_start) >> PAGE_SHIFT
        for mm in machine.procs.values()
        for v in mm.mm_mt
        if v.vm_flags & VM_ACCOUNT
    )


def check_anon_vmas(spaces: Iterable[MmStruct]) -> None:
    """num_active_vmas and num_children recounted; every AVC in one tree, under the VMA's present range."""
    active: dict[int, int] = {}
    children: dict[int, int] = {}
    known: dict[int, AnonVma] = {}
    for mm in spaces:
        for vma in mm.mm_mt:
            assert (vma.anon_vma is not None) == bool(vma.anon_vma_chain), vma
            for avc in vma.anon_vma_chain:
                assert avc.vma is vma
                last = vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> PAGE_SHIFT) - 1
                assert avc.key is not None
                assert (avc.key.first, avc.key.last) == (vma.vm_pgoff, last), vma
                assert avc.key in avc.anon_vma.rb_root
                known[avc.anon_vma.serial] = avc.anon_vma
            if vma.anon_vma is not None:
                assert vma.anon_vma in [avc.anon_vma for avc in vma.anon_vma_chain]
                assert len({avc.anon_vma.root.serial for avc in vma.anon_vma_chain}) == 1
                active[vma.anon_vma.serial] = active.get(vma.anon_vma.serial, 0) + 1
    for anon_vma in known.values():
        children[anon_vma.parent.serial] = children.get(anon_vma.parent.serial, 0) + 1
    for serial, anon_vma in known.items():
        assert not anon_vma.freed
        assert anon_vma.num_active_vmas == active.get(serial, 0), anon_vma
        assert anon_vma.num_children == children.get(serial, 0), anon_vma


def check_page_tables(world: World, mm: MmStruct) -> None:
    """Every present anonymous page lies in a VMA, and the rmap would find it there."""
    frames = world.machine.phys.frames
    for address, level, entry in mm.pgd.leaves(world.machine.geometry):
        if not entry & PRESENT or entry & SPECIAL:
            continue
        pages = 1 << level * world.machine.geometry.bits
        for i in range(pages):
            where = address + i * PAGE_SIZE
            vma = next((v for v in mm.mm_mt if v.vm_start <= where < v.vm_end), None)
            assert vma is not None, f"{where:#x} is present outside of every VMA"
            pfn = pte_pfn(entry) + i
            folio = frames[pfn]
            assert not folio.freed
            if not folio.anon:
                continue
            if folio.ksm:
                assert folio.mapping is None or folio.mapping in ksm_nodes(world), folio
                assert not entry & PTE_RW, f"the KSM page {folio} is writable at {where:#x}"
                continue
            index = folio.index + pfn - folio.pfn
            assert index == vma.vm_pgoff + ((where - vma.vm_start) >> PAGE_SHIFT), f"{folio} in {vma}"
            assert isinstance(folio.mapping, AnonVma)
            assert any(avc.anon_vma is folio.mapping for avc in vma.anon_vma_chain), f"{folio} in {vma}"


def ksm_nodes(world: World) -> list[KsmStableNode]:
    """Every node of the stable tree."""
    return [node for nodes in world.machine.ksm.stable_tree.values() for node in nodes]


def check_files(world: World) -> None:
    """Every file knows the VMAs that map it, each once."""
    for file in world.machine.files:
        mapping = file.f_mapping
        vmas = [v for mm in world.machine.procs.values() for v in mm.mm_mt if v.vm_file is file]
        assert len(mapping.i_mmap) == len(vmas)
        assert all(any(v is other for other in mapping.i_mmap) for v in vmas)


def check_mapcounts(world: World) -> None:
    """mapcounts recounted from the page tables of all processes."""
    geometry = world.machine.geometry
    counted: dict[int, int] = {}
    for mm in world.machine.procs.values():
        for _, level, entry in mm.pgd.leaves(geometry):
            if entry & PRESENT and not entry & SPECIAL:
                folio = world.machine.phys.frames[pte_pfn(entry)]
                key = -folio.pfn if level else pte_pfn(entry)
                counted[key] = counted.get(key, 0) + 1
    for folio in world.machine.phys.live.values():
        if folio is world.machine.phys.zero_folio:  # the huge one has mapcounts, which are 0
            continue
        assert folio.entire_mapcount == counted.get(-folio.pfn, 0), folio
        assert folio.mapcounts == [counted.get(folio.pfn + i, 0) for i in range(folio.nr_pages)], folio
