"""The machine itself: fault points, warnings, steps, and that the same steps give the same states."""

from __future__ import annotations

import pytest

from emulator.designs.mainline import Mainline
from emulator.machine import CPUS, Machine
from emulator.sched.scheduler import Task
from emulator.workload import COLLISION_OPS_MAX, Op, Step, Switch
from tests.emulator.kernel_world import RW, World, kernel_image


def test_fault_points_are_numbered_for_each_op() -> None:
    """The n-th call of should_fail in an op fails, the others do not; the next op counts anew."""
    world = World()
    assert world.do("mmap", 0, 1, RW, 0x12, 0, 0, fail_nth=1) < 0
    assert world.last.injected
    assert world.machine.sched.current.failed == "vm_enough_memory"
    assert world.do("mmap", 0, 1, RW, 0x12, 0, 0, fail_nth=9) == 0
    assert not world.last.injected


def test_outcomes_in_the_order_of_the_ops() -> None:
    """Whoever runs first, outcome i belongs to op i, and each op fails by its own fail_nth."""
    world = World()
    world.mmap(0, 2)
    outcomes = world.collide(
        [Op("write", 0, (0, 0), fail_nth=1), Op("read", 0, (1,)), Op("munmap", 0, (9, 1))]
    )
    assert [outcome.injected for outcome in outcomes] == [True, False, False]
    assert outcomes[1].data == ()


def test_each_op_of_a_collision_has_a_cpu() -> None:
    """As many as ops."""
    assert CPUS == COLLISION_OPS_MAX


def test_warnings_are_of_the_last_step() -> None:
    """What the kernel complained about is there until the next step."""
    world = World()
    world.machine.warn("rule", "detail", None)
    assert world.machine.sched.warnings == [("rule", "detail", None)]
    world.do("read", 0)
    assert world.machine.sched.warnings == []


def test_flush_waits_for_interrupts_off_sections() -> None:
    """A TLB flush ends when every other CPU has interrupts on again (GUP-fast); nothing is flushed before."""
    world = World()
    world.mmap(0, 1)
    world.write(0)
    machine, mm = world.machine, world.mm()
    sched = machine.sched
    seen: list[object] = []

    def gup_fast() -> None:
        sched.current.irqs_off = True
        sched.point("irqs off")
        seen.append(len(machine.tlbs[0].entries))
        sched.current.irqs_off = False

    def flush() -> None:
        machine.flush_tlb_range(mm, 0, machine.geometry.task_size)
        seen.append("flushed")

    schedule = [Switch(0, "irqs off", 1), Switch(1, "", 1)]
    sched.run_collision([Task(0, 0), Task(1, 1)], [gup_fast, flush], schedule)
    assert seen == [1, "flushed"]
    assert not machine.tlbs[0].entries


def test_tokens_are_unique() -> None:
    """Each write of a workload stores another value, those of one collision too."""
    world = World()
    world.mmap(0, 6)
    tokens = [world.write(page) for page in range(3)]
    world.collide([Op("write", 0, (page, 0)) for page in range(3, 6)])
    for page in range(3, 6):
        content = world.content(page)
        assert content is not None
        tokens.append(content[0])
    assert len(set(tokens)) == 6
    assert 0 not in tokens


def test_two_machines_share_nothing() -> None:
    """Machines on one image are apart."""
    one, two = World(), World()
    one.mmap(0, 1)
    one.write(0)
    assert two.layout() == []
    assert two.machine.committed == 0


def test_same_steps_same_states() -> None:
    """Names, frames, layout, results: no trace of the process that runs it."""
    states = []
    for _ in range(2):
        world = World()
        world.mmap(0, 9)
        for page in range(9):
            world.write(page)
        world.fork()
        world.do("mremap", 2, 5, 5, 3, 40)
        world.do("munmap", 1, 1, proc=1)
        states.append(
            (
                world.layout(),
                world.contents(1),
                [repr(vma) for vma in world.mm(1).mm_mt],
                sorted(world.machine.phys.live),
                world.machine.serial(),
            )
        )
    assert states[0] == states[1]


def test_geometry_and_profile_by_name_or_object() -> None:
    """Both ways give the same machine."""
    world = World("small4")
    image = kernel_image(Mainline)
    assert Machine(image, world.machine.geometry, world.machine.profile).geometry.name == "small4"
    with pytest.raises(KeyError):
        Machine(image, "no such geometry")


def test_step_counts() -> None:
    """The first step has number 0."""
    machine = World().machine
    assert machine.step_index == -1
    machine.run_step(Step((Op("read", 0, (0,)),)))
    assert machine.step_index == 0
