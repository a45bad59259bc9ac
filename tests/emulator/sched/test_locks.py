"""The kernel's locks: who may hold what, who waits for whom, what is wrong to do under a spinlock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.errors import KernelBug
from emulator.sched.locks import FolioLock, RwSem, SpinLock
from emulator.sched.scheduler import Scheduler, Task
from emulator.workload import Switch


def collide(sched: Scheduler, *ops: Callable[[], None]) -> None:
    """Run the functions at the same time, switching only where they block."""
    sched.run_collision([Task(i, i) for i in range(len(ops))], ops, [])


def test_readers_share() -> None:
    """Any number may read at once; a writer waits for the last of them."""
    sched = Scheduler()
    sem = RwSem("mmap_lock", sched)
    order: list[str] = []

    def reader(name: str) -> Callable[[], None]:
        def body() -> None:
            sem.down_read()
            order.append(f"{name} in")
            sched.point("reading")
            sem.up_read()
            order.append(f"{name} out")

        return body

    def writer() -> None:
        sem.down_write()
        order.append("w in")
        sem.up_write()

    sched.run_collision(
        [Task(i, i) for i in range(3)],
        [reader("a"), reader("b"), writer],
        [Switch(0, "reading", 1), Switch(1, "reading", 1), Switch(2, "", 9)],
    )
    assert order == ["a in", "b in", "a out", "b out", "w in"]


def test_a_writer_keeps_everybody_out() -> None:
    """Readers and writers wait until the writer is through; try-locks fail at once."""
    sched = Scheduler()
    sem = RwSem("mmap_lock", sched)
    order: list[str] = []

    def first() -> None:
        sem.down_write()
        sched.wait_for(lambda: len(order) == 2, "the others to have tried")
        order.append("first out")
        sem.up_write()

    def second() -> None:
        order.append(f"try {sem.try_down_write()} {sem.try_down_read()}")
        sem.down_write()
        order.append("second in")
        sem.up_write()

    def third() -> None:
        order.append("third waits")
        sem.down_read()
        sem.up_read()

    collide(sched, first, second, third)
    assert order == ["try False False", "third waits", "first out", "second in"]


def test_try_locks_where_free() -> None:
    """They take the lock."""
    sched = Scheduler()
    sem = RwSem("s", sched)
    assert sem.try_down_read()
    assert not sem.try_down_write()
    sem.up_read()
    assert sem.try_down_write()
    assert not sem.try_down_read()
    sem.up_write()
    folio = FolioLock(sched)
    assert folio.trylock()
    assert not folio.trylock()
    folio.unlock()
    assert folio.trylock()


def test_downgrade() -> None:
    """A write hold becomes a read hold: other readers may come in."""
    sched = Scheduler()
    sem = RwSem("mmap_lock", sched)
    sem.down_write()
    sem.downgrade()
    assert sem.try_down_read()
    sem.up_read()
    sem.up_read()
    assert sem.try_down_write()


@pytest.mark.parametrize(
    ("make", "unlock"),
    [
        (lambda s: RwSem("s", s), "up_write"),
        (lambda s: RwSem("s", s), "up_read"),
        (lambda s: SpinLock("ptl", s), "unlock"),
        (FolioLock, "unlock"),
    ],
    ids=["write", "read", "spin", "folio"],
)
def test_unlock_by_somebody_else(make: Callable[[Scheduler], object], unlock: str) -> None:
    """Letting go of what one does not hold is a bug of the kernel, whoever holds it."""
    sched = Scheduler()
    lock = make(sched)
    with pytest.raises(KernelBug, match="unlock-not-held"):
        getattr(lock, unlock)()
    take = {"up_write": "down_write", "up_read": "down_read", "unlock": "lock"}[unlock]
    getattr(lock, take)()
    sched.current = Task(1, 1)
    with pytest.raises(KernelBug, match="unlock-not-held"):
        getattr(lock, unlock)()


@pytest.mark.parametrize(
    "sleep",
    [
        lambda s: RwSem("rwsem", s).down_write(),
        lambda s: RwSem("rwsem", s).down_read(),
        lambda s: FolioLock(s).lock(),
    ],
    ids=["write", "read", "folio"],
)
def test_sleeping_under_a_spinlock(sleep: Callable[[Scheduler], None]) -> None:
    """Warned about even when the lock is free; not after the spinlock is let go; spinlocks nest."""
    sched = Scheduler()
    outer, inner = SpinLock("pmd", sched), SpinLock("pte", sched)
    outer.lock()
    inner.lock()
    inner.unlock()
    sleep(sched)
    assert [warning[0] for warning in sched.warnings] == ["sleep-in-atomic"]
    outer.unlock()
    sleep(sched)
    assert len(sched.warnings) == 1


def test_try_locks_do_not_sleep() -> None:
    """They are what one may use under a spinlock."""
    sched = Scheduler()
    SpinLock("ptl", sched).lock()
    assert RwSem("s", sched).try_down_read()
    assert RwSem("s", sched).try_down_write()
    assert FolioLock(sched).trylock()
    assert not sched.warnings


@pytest.mark.parametrize(
    ("lock", "take"),
    [
        (lambda s: RwSem("s", s), "down_write"),
        (lambda s: SpinLock("s", s), "lock"),
        (FolioLock, "lock"),
    ],
    ids=["write", "spin", "folio"],
)
def test_self_deadlock(lock: Callable[[Scheduler], object], take: str) -> None:
    """Taking one's own lock again never ends."""
    held = lock(Scheduler())
    getattr(held, take)()
    with pytest.raises(KernelBug, match="deadlock"):
        getattr(held, take)()


def test_abba_deadlock() -> None:
    """Two tasks that wait for each other are found, and both are named with what they wait for."""
    sched = Scheduler()
    a, b = RwSem("lock A", sched), RwSem("lock B", sched)

    def body(first: RwSem, second: RwSem) -> Callable[[], None]:
        def run() -> None:
            first.down_write()
            sched.point("between")
            second.down_write()

        return run

    schedule = [Switch(0, "between", 1), Switch(1, "between", 1)]
    with pytest.raises(KernelBug, match=r"op 0 waits for lock B, op 1 waits for lock A") as caught:
        sched.run_collision([Task(0, 0), Task(1, 1)], [body(a, b), body(b, a)], schedule)
    assert caught.value.rule == "deadlock"
