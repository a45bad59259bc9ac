"""One machine: memory, CPUs, swap, files, processes, and a kernel image that runs on them.

``Machine.run_step`` executes one step of a workload and returns an outcome for each of its ops. State is built
fresh for each workload and never copied. There is no wall clock, no ``id()``, no hash order in here: the same
steps give the same states in every process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from emulator.fs_types import AddressSpace, File
from emulator.geometry import GEOMETRIES, PAGE_SHIFT, Geometry
from emulator.hw.phys import PhysicalMemory
from emulator.hw.swap import SwapDevice
from emulator.hw.tlb import Tlb
from emulator.ksm_types import Ksm
from emulator.mm_types import MmStruct, Pin
from emulator.profile import PROFILES, Profile
from emulator.rmap_types import AnonVma
from emulator.sched.scheduler import Scheduler, Task
from emulator.workload import FILE_PAGES, FILES_MAX, MEMFD, Op, Outcome, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.hw.pgtable import StoreLog
    from emulator.image import KernelImage
    from emulator.mm_types import Folio

CPUS = 3  # as many as a collision has ops


class Machine:
    """A computer in the state that the steps run so far have left."""

    scheduler: ClassVar[type[Scheduler]] = Scheduler
    memory: ClassVar[type[PhysicalMemory]] = PhysicalMemory

    def __init__(
        self, image: KernelImage, geometry: Geometry | str = "small8", profile: Profile | str = "6.18"
    ) -> None:
        self.image = image
        self.geometry: Geometry = GEOMETRIES[geometry] if isinstance(geometry, str) else geometry
        self.profile: Profile = PROFILES[profile] if isinstance(profile, str) else profile
        self.sched = self.scheduler()
        self.store_log: StoreLog = []  # page-table stores of the step that runs or ran last
        self.phys = self.memory(self.sched)
        self.swap = SwapDevice()
        self.tlbs = [Tlb() for _ in range(CPUS)]
        self.committed = 0  # vm_committed_as, pages
        self.anon_vmas_live: dict[int, AnonVma] = {}  # serial to AnonVma, for oracles: what has not been freed
        self._serial = 0
        self.mlock_fbatch: list[tuple[Folio, Callable[[Folio], None]]] = []  # what waits to become mlocked, or not
        self.ksm = Ksm(self.sched)
        self.overcommit_memory = self.profile.overcommit_memory  # sysctl: OVERCOMMIT_*
        self.huge_anon_orders_madvise = 0  # sysfs hugepages-*kB/enabled: bit n for folios of 2**n pages
        self.procs: dict[int, MmStruct] = {}  # label to the address space of a living process
        self.pins: dict[int, Pin] = {}
        self.files = [self._make_file(label) for label in range(FILES_MAX)]
        # label to file of memory, for oracles: what has not been freed
        self.shared_memory: dict[int, AddressSpace] = {MEMFD: self.files[MEMFD].f_mapping}
        self.step_index = -1
        self.completed: list[int] = []  # ops of the last collision in the order in which they ended
        self.stack_guard_gap = min(self.profile.stack_guard_gap, self.geometry.stack_guard_gap_max)  # pages
        first = self.procs[0] = self.new_mm(0)
        first.start_brk = first.brk = self.geometry.arena_start + (self.geometry.heap_page << PAGE_SHIFT)

    # ---- services for the kernel code

    def serial(self) -> int:
        """Creation numbers for objects; deterministic names in place of ``id()``."""
        self._serial += 1
        return self._serial

    def should_fail(self, name: str) -> bool:
        """A fault point: an allocation or limit that can fail. True when this one was chosen (fail_nth)."""
        task = self.sched.current
        task.fail_count += 1
        if task.fail_count == task.fail_nth:
            task.failed = name
            return True
        return False

    def warn(self, rule: str, detail: str, subject: object = None) -> None:
        """WARN_ON/VM_WARN_ON: the kernel complains and goes on; an oracle makes a finding of it."""
        self.sched.warnings.append((rule, detail, subject))

    def flush_tlb_range(self, mm: MmStruct, start: int, end: int) -> None:
        """Flush [start, end) (bytes) of ``mm`` on every CPU.

        Synchronous interrupts: waits for CPUs in an interrupts-off section (GUP-fast).
        """
        sched = self.sched
        if sched.concurrent:
            sched.wait_for(sched.no_irqs_off_elsewhere, "a TLB flush")
        for tlb in self.tlbs:
            if tlb.entries:
                tlb.flush_range(mm.asid, start, end)

    def call_ended(self) -> None:
        """What waits in a batch is done. To be called after whatever a process does, outside of ``run_step``."""
        if self.mlock_fbatch:
            self.image.mlock_folio.mlock_drain_local(self)

    def new_mm(self, label: int) -> MmStruct:
        """An empty address space (mm_alloc)."""
        mm = MmStruct(self, label, self.serial(), self.sched.rwsem("mmap_lock", self.sched))
        self.image.pgtable_generic.mm_alloc_pgd(mm)
        mm.mmap_base = self.geometry.arena_end
        return mm

    def _make_file(self, label: int) -> File:
        lock = self.sched.rwsem("i_mmap_rwsem", self.sched)
        memory = label == MEMFD
        mapping = AddressSpace(label, FILE_PAGES << PAGE_SHIFT, lock, shmem=memory, noreserve=memory, unlinked=memory)
        return File(label, mapping, "memfd" if memory else f"file{label}")

    # ---- running a workload

    def run_step(self, step: Step) -> list[Outcome]:
        """Run one step. Raises KernelBug where the kernel cannot go on."""
        self.step_index += 1
        self.store_log.clear()
        sched = self.sched
        sched.warnings.clear()
        ops = step.ops
        outcomes = [Outcome(0)] * len(ops)
        if len(ops) == 1:
            op = ops[0]
            task = Task(0, op.proc % CPUS, op.fail_nth)
            sched.current = task
            outcomes[0] = self._outcome(op, task)
            return outcomes
        tasks = [Task(i, i % CPUS, op.fail_nth) for i, op in enumerate(ops)]

        completed = self.completed = []

        def body(i: int) -> None:
            outcomes[i] = self._outcome(ops[i], tasks[i])
            completed.append(i)

        sched.run_collision(tasks, [lambda i=i: body(i) for i in range(len(ops))], step.schedule)  # type: ignore[misc]
        return outcomes

    def run_alone(self, op: Op, step_index: int, number: int) -> Outcome:
        """Run one op by itself, as op ``number`` of step ``step_index``: what it writes carries that token."""
        self.step_index = step_index
        self.store_log.clear()
        self.sched.warnings.clear()
        task = Task(number, op.proc % CPUS, op.fail_nth)
        self.sched.current = task
        return self._outcome(op, task)

    def _outcome(self, op: Op, task: Task) -> Outcome:
        ret, data = self.image.entry.run_op(self, op, task)
        return Outcome(ret, data, bool(task.failed))
