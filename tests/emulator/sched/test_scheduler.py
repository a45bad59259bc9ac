"""Collisions: the schedule alone decides who runs, and every run of it is the same."""

from __future__ import annotations

from collections.abc import Callable

import greenlet
import pytest

from emulator.errors import KernelBug
from emulator.sched.scheduler import POINTS_PER_COLLISION_MAX, Scheduler, Task
from emulator.workload import Op, Switch
from tests.emulator.kernel_world import World


class Collision:
    """Tasks that pass the points ``a`` and ``b`` in turn and write down that they did."""

    def __init__(self, tasks: int = 2, rounds: int = 2) -> None:
        self.sched = Scheduler()
        self.seen: list[str] = []
        self.bodies = [self.body(i, rounds) for i in range(tasks)]

    def body(self, index: int, rounds: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(rounds):
                for name in ("a", "b"):
                    self.seen.append(f"{index}{name}")
                    self.sched.point(name)

        return run

    def run(self, schedule: list[Switch]) -> str:
        self.sched.run_collision([Task(i, i) for i in range(len(self.bodies))], self.bodies, schedule)
        return " ".join(self.seen)


# name, schedule, order: "0a" stands before task 0 passes its point a
SCHEDULES = [
    ("none", [], "0a 0b 0a 0b 1a 1b 1a 1b"),
    ("named", [Switch(0, "b", 1)], "0a 0b 0a 0b 1a 1b 1a 1b"),
    ("named_and_on", [Switch(0, "b", 1), Switch(1, "a", 1)], "0a 0b 1a 0a 0b 1b 1a 1b"),
    ("second_time", [Switch(0, "a", 2), Switch(1, "b", 2)], "0a 0b 0a 1a 1b 1a 1b 0b"),
    ("ordinal", [Switch(1, "", 3), Switch(0, "", 1)], "1a 1b 1a 0a 0b 0a 0b 1b"),
    ("never_passed", [Switch(1, "no such point", 1), Switch(0, "a", 1)], "1a 1b 1a 1b 0a 0b 0a 0b"),
    ("ends_before", [Switch(0, "a", 9), Switch(1, "a", 1)], "0a 0b 0a 0b 1a 1b 1a 1b"),
    ("back_and_forth", [Switch(i % 2, "", 1) for i in range(8)], "0a 1a 0b 1b 0a 1a 0b 1b"),
    ("zero_is_one", [Switch(0, "", 0), Switch(1, "", 9)], "0a 1a 1b 1a 1b 0b 0a 0b"),
    ("task_number_wraps", [Switch(3, "", 1), Switch(2, "", 9)], "1a 0a 0b 0a 0b 1b 1a 1b"),
]


@pytest.mark.parametrize(("schedule", "order"), [pytest.param(*row[1:], id=row[0]) for row in SCHEDULES])
def test_schedule(schedule: list[Switch], order: str) -> None:
    """A switch runs its task to the n-th pass of the named point (of any, when unnamed), to its end or to a block."""
    assert Collision().run(schedule) == order


def test_three_tasks() -> None:
    """After the last switch the tasks run to their ends in order."""
    assert Collision(3, 1).run([Switch(2, "a", 1), Switch(1, "a", 1)]) == "2a 1a 0a 0b 1b 2b"


def test_trace() -> None:
    """Which task passed which point, as it happened."""
    collision = Collision(2, 1)
    collision.run([Switch(1, "a", 1)])
    assert collision.sched.trace == [(1, "a"), (0, "a"), (0, "b"), (1, "b")]


def test_points_cost_nothing_alone() -> None:
    """Outside of a collision a point leaves no trace and switches nothing."""
    sched = Scheduler()
    sched.point("a")
    assert sched.trace == []
    assert not sched.concurrent
    collision = Collision()
    collision.run([])
    assert not collision.sched.concurrent
    before = list(collision.sched.trace)
    collision.sched.point("a")
    assert collision.sched.trace == before


def test_blocked_task_gives_way() -> None:
    """A switch to a task that blocks ends there; the task goes on when what it waits for is true."""
    sched = Scheduler()
    seen: list[str] = []

    def waiter() -> None:
        seen.append("waits")
        sched.wait_for(lambda: "done" in seen, "the other")
        seen.append("goes on")

    def worker() -> None:
        seen.append("works")
        sched.point("p")
        seen.append("done")
        sched.point("q")
        seen.append("ends")

    sched.run_collision([Task(0, 0), Task(1, 1)], [waiter, worker], [Switch(0, "", 5), Switch(1, "q", 1)])
    assert seen == ["waits", "works", "done", "goes on", "ends"]


def test_condition_is_looked_at_again() -> None:
    """A condition that was true when the task was picked and is not any more makes it wait on."""
    sched = Scheduler()
    box = ["full"]
    got: list[int] = []

    def taker(index: int) -> Callable[[], None]:
        def run() -> None:
            sched.wait_for(lambda: bool(box), "the box")
            got.append(index)
            box.clear()

        return run

    def filler() -> None:
        sched.wait_for(lambda: not box, "an empty box")
        box.append("again")

    sched.run_collision([Task(i, i) for i in range(3)], [taker(0), taker(1), filler], [])
    assert got == [0, 1]


def test_deadlock() -> None:
    """All blocked: found, with what each waits for; and the scheduler can be used again."""
    sched = Scheduler()

    def body() -> None:
        sched.wait_for(lambda: False, "godot")

    with pytest.raises(KernelBug, match=r"deadlock.*op 0 waits for godot, op 1 waits for godot"):
        sched.run_collision([Task(0, 0), Task(1, 1)], [body, body], [])
    assert not sched.concurrent
    sched.run_collision([Task(0, 0), Task(1, 1)], [lambda: None, lambda: None], [])


def test_deadlock_of_one() -> None:
    """Alone, waiting for what is not so is a deadlock at once."""
    with pytest.raises(KernelBug, match="deadlock"):
        Scheduler().wait_for(lambda: False, "nobody")


def test_livelock() -> None:
    """Points without end: bounded."""
    sched = Scheduler()

    def spin() -> None:
        while True:
            sched.point("spin")

    with pytest.raises(KernelBug, match=f"livelock.*{POINTS_PER_COLLISION_MAX}"):
        sched.run_collision([Task(0, 0), Task(1, 1)], [spin, lambda: None], [])


@pytest.mark.parametrize("error", [KernelBug("rule", "detail"), ValueError("broken")], ids=["bug", "other"])
def test_exception_ends_the_collision(error: Exception) -> None:
    """The first exception of a task comes out as it is; the other tasks run no further."""
    sched = Scheduler()
    seen: list[str] = []

    def fails() -> None:
        sched.point("p")
        raise error

    def other() -> None:
        seen.append("began")
        try:
            sched.point("p")
            seen.append("never")
        except greenlet.GreenletExit:
            seen.append("ended")
            raise

    with pytest.raises(type(error)) as caught:
        sched.run_collision([Task(0, 0), Task(1, 1)], [fails, other], [Switch(1, "p", 1)])
    assert caught.value is error
    assert seen == ["began", "ended"]
    assert not sched.concurrent


def test_interrupts_off() -> None:
    """A TLB flush waits until no other CPU is in an interrupts-off section (GUP-fast); one's own does not count."""
    sched = Scheduler()
    seen: list[str] = []
    tasks = [Task(0, 0), Task(1, 1)]

    def gup() -> None:
        sched.current.irqs_off = True
        sched.point("gup")
        seen.append("gup done")
        sched.current.irqs_off = False

    def flush() -> None:
        sched.wait_for(sched.no_irqs_off_elsewhere, "a TLB flush")
        seen.append("flushed")

    sched.run_collision(tasks, [gup, flush], [Switch(0, "gup", 1), Switch(1, "", 1)])
    assert seen == ["gup done", "flushed"]
    sched.current.irqs_off = True
    assert sched.no_irqs_off_elsewhere()


def collide_twice() -> list[tuple[object, ...]]:
    """Two runs of one collision on the machine: a fault beside an mprotect beside an mremap."""
    runs: list[tuple[object, ...]] = []
    for _ in range(2):
        world = World()
        world.mmap(0, 4)
        world.write(0)
        world.fork()
        outcomes = world.collide(
            [Op("write", 0, (0, 0)), Op("mprotect", 0, (0, 2, 1)), Op("write", 1, (0, 0))],
            [Switch(0, "", 1), Switch(2, "", 2), Switch(1, "", 2), Switch(0, "", 1)],
        )
        runs.append((outcomes, list(world.machine.sched.trace), world.layout(), world.contents(1)))
        world.check()
    return runs


def test_determinism() -> None:
    """The same step gives the same trace, outcomes and state."""
    first, second = collide_twice()
    assert first == second
    assert len(first[1]) > 4  # type: ignore[arg-type]


def test_collision_on_the_machine() -> None:
    """Two writers of one page of different processes: each has its own token afterwards, whoever was first."""
    for schedule in ([], [Switch(1, "", 3)], [Switch(0, "", 1), Switch(1, "", 2)]):
        world = World()
        world.mmap(0, 1)
        world.write(0)
        world.fork()
        outcomes = world.collide([Op("write", 0, (0, 1)), Op("write", 1, (0, 1))], schedule)
        assert [outcome.ret for outcome in outcomes] == [0, 0]
        mine, childs = world.content(0), world.content(0, 1)
        assert mine is not None
        assert childs is not None
        assert mine[0] == childs[0]
        assert mine[1] != childs[1]
        world.check()
