"""The kernel's locks. Blocked tasks really block; a spinlock is held in atomic context.

Where nothing runs beside, taking a lock costs one test. ``Task`` and the waiting come from the scheduler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import KernelBug

if TYPE_CHECKING:
    from emulator.sched.scheduler import Scheduler, Task


class RwSem:
    """A sleeping reader-writer lock (struct rw_semaphore): mmap_lock, anon_vma root, i_mmap_rwsem."""

    __slots__ = ("name", "readers", "sched", "writer")

    def __init__(self, name: str, sched: Scheduler) -> None:
        self.name = name
        self.sched = sched
        self.writer: Task | None = None
        self.readers: list[Task] = []  # one entry for each hold

    def down_write(self) -> None:
        sched = self.sched
        if sched.current.atomic:
            sched.sleeping_in_atomic(self.name)
        if self.writer is not None or self.readers:
            sched.wait_for(self._can_write, self.name)
        self.writer = sched.current

    def try_down_write(self) -> bool:
        if self.writer is not None or self.readers:
            return False
        self.writer = self.sched.current
        return True

    def up_write(self) -> None:
        if self.writer is not self.sched.current:
            raise KernelBug("unlock-not-held", f"{self.name} write-unlocked by a task that does not hold it")
        self.writer = None

    def down_read(self) -> None:
        sched = self.sched
        if sched.current.atomic:
            sched.sleeping_in_atomic(self.name)
        if self.writer is not None:
            sched.wait_for(self._can_read, self.name)
        self.readers.append(sched.current)

    def try_down_read(self) -> bool:
        if self.writer is not None:
            return False
        self.readers.append(self.sched.current)
        return True

    def up_read(self) -> None:
        if self.sched.current not in self.readers:
            raise KernelBug("unlock-not-held", f"{self.name} read-unlocked by a task that does not hold it")
        self.readers.remove(self.sched.current)

    def _can_write(self) -> bool:
        return self.writer is None and not self.readers

    def _can_read(self) -> bool:
        return self.writer is None

    def downgrade(self) -> None:
        """Write hold to read hold without letting go."""
        self.up_write()
        self.readers.append(self.sched.current)


class SpinLock:
    """A page-table lock. Its holder is in atomic context and must not sleep."""

    __slots__ = ("name", "owner", "sched")

    def __init__(self, name: str, sched: Scheduler) -> None:
        self.name = name
        self.sched = sched
        self.owner: Task | None = None

    def lock(self) -> None:
        sched = self.sched
        if self.owner is not None:
            sched.wait_for(self._free, self.name)
        self.owner = sched.current
        sched.current.atomic += 1

    def unlock(self) -> None:
        if self.owner is not self.sched.current:
            raise KernelBug("unlock-not-held", f"{self.name} unlocked by a task that does not hold it")
        self.owner = None
        self.sched.current.atomic -= 1

    def _free(self) -> bool:
        return self.owner is None


class FolioLock:
    """PG_locked: a sleeping lock on one folio, held by a task."""

    __slots__ = ("owner", "sched")

    name = "folio lock"

    def __init__(self, sched: Scheduler) -> None:
        self.sched = sched
        self.owner: Task | None = None

    def lock(self) -> None:
        sched = self.sched
        if sched.current.atomic:
            sched.sleeping_in_atomic("folio lock")
        if self.owner is not None:
            sched.wait_for(self._free, self.name)
        self.owner = sched.current

    def trylock(self) -> bool:
        if self.owner is not None:
            return False
        self.owner = self.sched.current
        return True

    def unlock(self) -> None:
        if self.owner is not self.sched.current:
            raise KernelBug("unlock-not-held", "folio unlocked by a task that does not hold the lock")
        self.owner = None

    def _free(self) -> bool:
        return self.owner is None
