"""A machine that counts: locks as they are taken, allocations, page-table stores, VMAs, merges that were missed.

Nothing of it is in the machine that campaigns use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from emulator.geometry import PAGE_SHIFT, Geometry
from emulator.hw.pgtable import walk_slot
from emulator.hw.phys import PhysicalMemory
from emulator.hw.pte import PFN_SHIFT, PRESENT, SPECIAL
from emulator.machine import Machine
from emulator.mm_types import Folio, MmStruct, VmAreaStruct
from emulator.sched.locks import FolioLock, RwSem, SpinLock
from emulator.sched.scheduler import Scheduler
from emulator.tracepoints import TraceEvent, VmAvMerge
from emulator.workload import OPS, Domain, Op, Outcome, Step
from fuzz.compare.calls import touched
from fuzz.compare.causes import Cause, cause, may_be_shared, pairs
from fuzz.compare.figures import SIZEOF_ANON_VMA, SIZEOF_AVC, SIZEOF_VMA, Figures

if TYPE_CHECKING:
    from emulator.image import KernelImage
    from emulator.profile import Profile

_IN_PAGES = frozenset((Domain.PAGE, Domain.LENGTH, Domain.FILE_OFFSET))


class _Meters(Scheduler):
    """Counts what the locks tell it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: Counter[str] = Counter()
        self.folios: set[FolioLock] = set()  # locked in this step; only ever counted


class _RwSem(RwSem):
    __slots__ = ()

    sched: _Meters

    def down_write(self) -> None:
        super().down_write()
        self.sched.taken[self.name] += 1

    def down_read(self) -> None:
        super().down_read()
        self.sched.taken[self.name] += 1

    def try_down_write(self) -> bool:
        had = super().try_down_write()
        self.sched.taken[self.name] += had
        return had

    def try_down_read(self) -> bool:
        had = super().try_down_read()
        self.sched.taken[self.name] += had
        return had


class _SpinLock(SpinLock):
    __slots__ = ()

    sched: _Meters

    def lock(self) -> None:
        super().lock()
        self.sched.taken[self.name] += 1


class _FolioLock(FolioLock):
    __slots__ = ()

    sched: _Meters

    def lock(self) -> None:
        super().lock()
        self.sched.taken[self.name] += 1
        self.sched.folios.add(self)

    def trylock(self) -> bool:
        had = super().trylock()
        if had:
            self.sched.taken[self.name] += 1
            self.sched.folios.add(self)
        return had


class _CountingScheduler(_Meters):
    rwsem = _RwSem
    spinlock = _SpinLock
    folio_lock = _FolioLock


class _Frames(dict[int, Folio]):
    """Frames that are not there any more are those of a folio that has been freed."""

    def __init__(self, sched: Scheduler) -> None:
        super().__init__()
        self.freed = Folio(0, 0, sched.folio_lock(sched))
        self.freed.freed = True

    def __missing__(self, pfn: int) -> Folio:
        return self.freed


class _Memory(PhysicalMemory):
    """Forgets freed folios, so that a long recording takes no more memory than a short one.

    Other machines keep them all, for an oracle to say which one a stale pointer leads to.
    """

    __slots__ = ("gone",)

    def __init__(self, sched: Scheduler) -> None:
        self.gone: list[Folio] = []  # freed in this step: its stores may still name them
        super().__init__(sched)
        frames = _Frames(sched)
        frames.update(self.frames)
        self.frames = frames

    def free(self, folio: Folio) -> None:
        super().free(folio)
        self.gone.append(folio)

    def forget(self) -> None:
        """The step is over."""
        frames = self.frames
        for folio in self.gone:
            for pfn in range(folio.pfn, folio.pfn + folio.nr_pages):
                if frames.get(pfn) is folio:
                    del frames[pfn]
        self.gone.clear()


class MeteredMachine(Machine):
    """Counts into ``figures``. Who runs kernel code in it by other ways than ``run_step`` calls ``account`` himself."""

    scheduler: ClassVar[type[Scheduler]] = _CountingScheduler
    memory: ClassVar[type[PhysicalMemory]] = _Memory
    sched: _CountingScheduler
    phys: _Memory

    def __init__(
        self, image: KernelImage, geometry: Geometry | str = "small8", profile: Profile | str = "6.18"
    ) -> None:
        self.figures = Figures()
        self._measured_at = 0  # serial number when metadata was measured last
        super().__init__(image, geometry, profile)

    def should_fail(self, name: str) -> bool:
        self.figures.allocations[name] += 1
        return super().should_fail(name)

    def hear(self, event: TraceEvent) -> None:
        """What a tracer tells of this machine."""
        if isinstance(event, VmAvMerge) and event.neighbours:
            self.figures.merges_tried += 1
            self.figures.merges_done += event.merged

    # ---- one step

    def run_step(self, step: Step) -> list[Outcome]:
        before = [self.procs.get(op.proc) for op in step.ops]
        heaps = [mm.brk if mm is not None else 0 for mm in before]
        for op, mm in zip(step.ops, before, strict=True):
            if op.kind == "exit" and mm is not None:
                self.leave(mm)
        self.figures.steps += 1
        try:
            outcomes = super().run_step(step)
        finally:
            self.account()
        for op, mm, brk, outcome in zip(step.ops, before, heaps, outcomes, strict=True):
            if mm is not None and mm is self.procs.get(op.proc):
                self._look(op, mm, brk, outcome)
        return outcomes

    def _look(self, op: Op, mm: MmStruct, brk: int, outcome: Outcome) -> None:
        start = self.geometry.arena_start
        args = []
        for value, (_, domain) in zip(op.args, OPS[op.kind].args, strict=True):
            value = value << PAGE_SHIFT if domain in _IN_PAGES else value
            args.append(value + start if domain is Domain.PAGE else value)
        result = outcome.ret
        if op.kind in ("mmap", "mremap", "brk") and result >= 0:
            result = (result << PAGE_SHIFT) + start
        self.look(op.kind, args, result, mm, brk)

    def look(self, name: str, args: Sequence[int], result: int, mm: MmStruct, brk: int) -> None:
        """Count the neighbours that a call has left apart. As ``calls.touched``."""
        where = touched(name, args, result, mm, brk)
        if where is None:
            return
        ignored = self.profile.vm_ignore_merge
        missed = self.figures.missed
        for below, above in pairs(mm, *where):
            why = cause(below, above, ignored)
            missed[why.value] += 1
            if why is Cause.SHARED_PAGES and _is_shared(below) and _is_shared(above):
                self.figures.shared_for_sure += 1

    def leave(self, mm: MmStruct) -> None:
        """The process is about to end."""
        self.figures.vmas_at_end += len(mm.mm_mt)

    def finish(self) -> Figures:
        """The end of the input: who lives has its VMAs still."""
        for mm in self.procs.values():
            self.leave(mm)
        self.figures.locks.update(self.sched.taken)
        self.sched.taken.clear()
        return self.figures

    def account(self) -> None:
        """After each step: stores, folios, VMAs and metadata."""
        figures, log = self.figures, self.store_log
        folios = self.sched.folios
        if log:
            figures.entries += len(log)
            frames = self.phys.frames
            for _, _, old, new in log:
                for entry in (old, new):
                    if entry.__class__ is int and entry & (PRESENT | SPECIAL) == PRESENT:
                        folios.add(frames[entry >> PFN_SHIFT].lock)
        figures.folios += len(folios)
        folios.clear()
        self.phys.forget()
        self._measure()

    def _measure(self) -> None:
        figures, vmas = self.figures, 0
        for mm in self.procs.values():
            one = len(mm.mm_mt)
            vmas += one
            figures.vmas_peak_of_one = max(figures.vmas_peak_of_one, one)
        grown = vmas > figures.vmas_peak
        if grown:
            figures.vmas_peak = vmas
        if grown or self._serial != self._measured_at:  # else no anon_vma or AVC has been made
            self._measured_at = self._serial
            live = self.anon_vmas_live
            chains = sum(len(anon_vma.rb_root) for anon_vma in live.values())
            size = vmas * SIZEOF_VMA + len(live) * SIZEOF_ANON_VMA + chains * SIZEOF_AVC
            figures.metadata_peak = max(figures.metadata_peak, size)


def _is_shared(vma: VmAreaStruct) -> bool:
    """Is one of its pages mapped by another process, now?"""
    if not may_be_shared(vma):
        return False
    mm, addr = vma.vm_mm, vma.vm_start
    geometry, frames = mm.machine.geometry, mm.machine.phys.frames
    while addr < vma.vm_end:
        table, _, entry = walk_slot(mm, geometry, addr)
        size = 1 << geometry.shifts[table.level]
        if entry & (PRESENT | SPECIAL) == PRESENT:
            pfn = (entry >> PFN_SHIFT) + ((addr & (size - 1)) >> PAGE_SHIFT)
            folio = frames[pfn]
            if folio.mapcounts[pfn - folio.pfn] + folio.entire_mapcount > 1:
                return True
        addr = (addr & -size) + size
    return False
