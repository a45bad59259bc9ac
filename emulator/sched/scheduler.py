"""Tasks and the deterministic scheduler that runs a collision.

Each op of a collision is a task, and a task is a greenlet, so kernel code stays ordinary functions. A switch
of tasks happens only at named *preemption points* (``machine.point("gup_fast.pte_read")``), when a task blocks
on a lock, and at its end. Which task runs is decided by the schedule in the workload alone.

Where nothing runs beside, ``machine.point`` is a function that does nothing, and a lock that cannot be had
is a self-deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import greenlet

from emulator.errors import KernelBug
from emulator.sched.locks import FolioLock, RwSem, SpinLock

if TYPE_CHECKING:
    from emulator.workload import Switch

POINTS_PER_COLLISION_MAX = 20_000  # a bound on steps: more is a livelock


class Task:
    """A thread of execution in the kernel."""

    __slots__ = (
        "atomic",
        "cpu",
        "done",
        "fail_count",
        "fail_nth",
        "failed",
        "greenlet",
        "index",
        "irqs_off",
        "wait_until",
        "waits_for",
    )

    def __init__(self, index: int, cpu: int, fail_nth: int = 0) -> None:
        self.index = index  # number of the op in its step
        self.cpu = cpu
        self.atomic = 0  # spinlocks held; sleeping is forbidden while not 0
        self.irqs_off = False  # a TLB flush on another CPU waits for this one (GUP-fast)
        self.fail_nth = fail_nth  # 1-based fault point that shall fail, 0 for none
        self.fail_count = 0  # fault points passed
        self.failed = ""  # name of the fault point that was made to fail
        self.wait_until: Callable[[], bool] | None = None  # blocked until this says True
        self.waits_for = ""  # what that is, for people
        self.done = False
        self.greenlet: greenlet.greenlet | None = None

    def runnable(self) -> bool:
        return not self.done and (self.wait_until is None or self.wait_until())


def _nothing(name: str) -> None:
    """The preemption point where nothing runs beside."""


class Scheduler:
    """Runs the tasks of one step; owned by the machine.

    It says what kinds of locks the machine makes: who wants to count them has others made.
    """

    rwsem: ClassVar[type[RwSem]] = RwSem
    spinlock: ClassVar[type[SpinLock]] = SpinLock
    folio_lock: ClassVar[type[FolioLock]] = FolioLock

    def __init__(self) -> None:
        self.current = Task(0, 0)
        self.point: Callable[[str], None] = _nothing
        self.concurrent = False
        self.warnings: list[tuple[str, str, object]] = []  # (rule, detail, subject): the kernel complained
        self.trace: list[tuple[int, str]] = []  # (op number, point) as they ran, of the last collision
        self._tasks: list[Task] = []
        self._main: greenlet.greenlet | None = None
        self._schedule: list[Switch] = []
        self._countdown = 0  # passes of the first switch's point still to come; 0: it has not begun
        self._error: BaseException | None = None

    # ---- what kernel code calls

    def sleeping_in_atomic(self, what: str) -> None:
        """might_sleep() in atomic context: the kernel warns and goes on."""
        self.warnings.append(("sleep-in-atomic", f"sleeping function ({what}) called under a spinlock", None))

    def wait_for(self, ready: Callable[[], bool], what: str) -> None:
        """Let others run until ``ready()``; a deadlock when nobody is left who could make it true."""
        me = self.current
        while not ready():
            if not self.concurrent:
                raise KernelBug("deadlock", f"waits for ever for {what}")
            me.wait_until = ready
            me.waits_for = what
            self._switch_away()
            me.wait_until = None

    def no_irqs_off_elsewhere(self) -> bool:
        """No other task stands in an interrupts-off section."""
        return not any(t.irqs_off and t is not self.current for t in self._tasks)

    # ---- running

    def run_collision(
        self, tasks: Sequence[Task], ops: Sequence[Callable[[], None]], schedule: Sequence[Switch]
    ) -> None:
        """Run the ops at the same time under the schedule; the first exception of a task ends them all."""
        self._tasks = list(tasks)
        self._schedule = list(schedule)
        self._countdown = 0
        self._main = greenlet.getcurrent()
        self._error = None
        self.trace = []
        self.concurrent = True
        self.point = self._point
        for task, op in zip(tasks, ops, strict=True):
            task.greenlet = greenlet.greenlet(self._body(task, op))
        try:
            while (task_next := self._pick()) is not None:
                self._resume(task_next)
                if self._error is not None:
                    raise self._error
            stuck = [t for t in self._tasks if not t.done]
            if stuck:
                names = ", ".join(f"op {t.index} waits for {t.waits_for}" for t in stuck)
                raise KernelBug("deadlock", f"every task is blocked: {names}")
        finally:
            self._finish()

    def _finish(self) -> None:
        self.concurrent = False
        self.point = _nothing
        for task in self._tasks:
            if task.greenlet is not None and not task.greenlet.dead:
                task.greenlet.throw(greenlet.GreenletExit)
            task.greenlet = None
        self._tasks = []

    def _body(self, task: Task, op: Callable[[], None]) -> Callable[[], None]:
        def body() -> None:
            try:
                op()
            except greenlet.GreenletExit:
                raise
            except BaseException as error:
                self._error = error
            task.done = True

        return body

    def _resume(self, task: Task) -> None:
        assert task.greenlet is not None
        self.current = task
        task.greenlet.switch()

    def _switch_away(self) -> None:
        me = self.current
        assert self._main is not None
        self._main.switch()
        self.current = me

    def _pick(self) -> Task | None:
        """The task to run now: the schedule's, else the lowest-numbered that can run."""
        while self._schedule:
            switch = self._schedule[0]
            task = self._tasks[switch.op % len(self._tasks)]
            if task.runnable():
                if self._countdown == 0:  # this switch begins
                    self._countdown = max(1, switch.nth)
                return task
            self._schedule.pop(0)
            self._countdown = 0
        for task in self._tasks:
            if task.runnable():
                return task
        return None

    def _point(self, name: str) -> None:
        me = self.current
        self.trace.append((me.index, name))
        if len(self.trace) > POINTS_PER_COLLISION_MAX:
            raise KernelBug("livelock", f"more than {POINTS_PER_COLLISION_MAX} preemption points in one step")
        if self._schedule:
            switch = self._schedule[0]
            if switch.point in ("", name):
                self._countdown -= 1
                if self._countdown == 0:
                    self._schedule.pop(0)
                    self._switch_away()
