"""State features: what coverage counters cannot tell apart.

Observed around ``entry.run_op`` of the instrumented image, so no oracle and no kernel code knows of it:

- each kind of operation with its result (success or which errno), and the fault point that was made to fail;
- in a collision, which preemption points one operation passed while another stood at which point;
- at the end, the shape of every VMA's anon_vma and of every anon_vma.

A feature is one of ``POOL`` numbers, chosen by the CRC-32 of its description: the same in every process.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from emulator.image import KernelImage
    from emulator.machine import Machine
    from emulator.sched.scheduler import Task
    from emulator.workload import Op

POOL: Final = 8192
_MANY: Final = 4  # counts in shapes: 0, 1, 2, 3, and more

Key = tuple[Any, ...]  # of texts, numbers and truths only


class States:
    """Collects the state features of the runs of one kernel image; ``first`` is the number of the first."""

    def __init__(self, image: KernelImage, first: int = 0) -> None:
        self._first = first
        self.image = image
        self._numbers: dict[Key, int] = {}
        self._met: set[Key] = set()
        self._machine: Machine | None = None
        self._traces: list[list[tuple[int, str]]] = []
        self._original = image.entry.run_op
        image.entry.run_op = self._run_op

    def take(self) -> list[int]:
        """The features of the run since the last call, sorted."""
        machine = self._machine
        if machine is not None:
            self._machine = None
            self._look(machine)
        for trace in self._traces:
            self._follow(trace)
        self._traces.clear()
        numbers = self._numbers
        found = set()
        for key in self._met:
            number = numbers.get(key)
            if number is None:
                number = numbers[key] = self._first + zlib.crc32(repr(key).encode()) % POOL
            found.add(number)
        self._met.clear()
        return sorted(found)

    def _run_op(self, machine: Machine, op: Op, task: Task) -> tuple[int, Any]:
        self._machine = machine
        if machine.sched.concurrent:
            trace = machine.sched.trace  # one list for each collision; it goes on growing
            if not self._traces or self._traces[-1] is not trace:
                self._traces.append(trace)
        result: tuple[int, Any] = self._original(machine, op, task)
        ret = result[0]
        self._met.add((op.kind, ret if ret < 0 else 0, task.failed))
        return result

    def _follow(self, trace: list[tuple[int, str]]) -> None:
        """What each op passed while another one stood at a point."""
        met = self._met
        stands: dict[int, str] = {}
        for op, point in trace:
            stands[op] = point
            for other, at in stands.items():
                if other != op:
                    met.add(("while", at, point))

    def _look(self, machine: Machine) -> None:
        """The shapes at the end of the run; a machine that died half-way is looked at as it lies."""
        met = self._met
        for mm in machine.procs.values():
            vmas = 0
            for vma in mm.mm_mt:
                vmas += 1
                anon_vma = vma.anon_vma
                if anon_vma is None:
                    met.add(("vma", vma.vm_flags, len(vma.anon_vma_chain) > 0))
                else:
                    moved = vma.vm_pgoff != vma.vm_start >> 12
                    chain = min(len(vma.anon_vma_chain), _MANY)
                    met.add(("vma", chain, anon_vma.root is anon_vma, moved, vma.vm_file is not None))
            met.add(("vmas", vmas.bit_length()))
        for anon_vma in machine.anon_vmas_live.values():
            met.add(
                (
                    "anon_vma",
                    min(anon_vma.num_children, _MANY),
                    min(anon_vma.num_active_vmas, _MANY),
                    min(len(anon_vma.rb_root), _MANY),
                    anon_vma.root is anon_vma,
                    anon_vma.parent is anon_vma.root,
                )
            )
