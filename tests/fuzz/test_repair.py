"""Repair: total, idempotent, and it leaves valid workloads alone."""

from __future__ import annotations

import pytest
from hypothesis import given

from emulator.geometry import GEOMETRIES
from emulator.workload import COLLISION_OPS_MAX, OPS, SCHEDULE_MAX, STEPS_MAX, Domain, Op, Step, Workload
from fuzz.workload.domains import OP_DOMAINS, clamp
from fuzz.workload.repair import is_valid, repair
from fuzz.workload.text import from_text, to_text
from fuzz.workload.wire import decode, encode
from tests.fuzz.strategies import encodable, quick, valid, wild


def fixed(steps: str) -> str:
    """The steps as repair leaves them, both as text."""
    return to_text(repair(from_text("world small8\n" + steps))).removeprefix("world small8\n")


@quick
@given(wild())
def test_total_and_idempotent(workload: Workload) -> None:
    """Anything at all becomes a workload that is within every limit and needs no more repair."""
    repaired = repair(workload)
    assert repair(repaired) == repaired
    assert is_valid(repaired)
    assert decode(encode(repaired)) == repaired
    assert len(repaired.steps) <= STEPS_MAX
    assert all(len(step.schedule) <= SCHEDULE_MAX for step in repaired.steps)


@quick
@given(encodable())
def test_idempotent_within_domains(workload: Workload) -> None:
    """The same where only processes and pins are wrong, which takes the finer rules."""
    repaired = repair(workload)
    assert repair(repaired) == repaired
    check_resources(repaired)


@quick
@given(valid)
def test_identity_on_valid(workload: Workload) -> None:
    """What the generator or repair made is not changed, not even in spelling."""
    assert repair(workload) == workload
    check_resources(workload)


def check_resources(workload: Workload) -> None:
    """The promises about labels, said once more and simpler than in repair."""
    living, pins = {0}, set[int]()
    for step in workload.steps:
        assert 1 <= len(step.ops) <= COLLISION_OPS_MAX
        assert len(step.ops) > 1 or not step.schedule
        made: list[tuple[str, int]] = []
        unpinned: list[int] = []
        written: list[int] = []
        for op in step.ops:
            assert op.proc in living
            assert op.kind != "exit" or len(step.ops) == 1
            for value, (_, domain) in zip(op.args, OPS[op.kind].args, strict=True):
                if domain is Domain.NEW_PROC:
                    assert value not in living
                    made.append(("proc", value))
                elif domain is Domain.NEW_PIN:
                    assert value not in pins
                    made.append(("pin", value))
                elif domain is Domain.PIN:
                    assert value in pins
                    (unpinned if op.kind == "unpin" else written).append(value)
        assert len(set(made)) == len(made)
        assert len(set(unpinned)) == len(unpinned)
        assert not set(unpinned) & set(written)
        if step.ops[0].kind == "exit":
            living.discard(step.ops[0].proc)
        living |= {label for what, label in made if what == "proc"}
        pins = (pins - set(unpinned)) | {label for what, label in made if what == "pin"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # An op of a process that nobody made goes to a living one.
        ("p2: read addr=4\n", "read     addr=4\n"),
        # After an exit, too; and the label may be given again.
        (
            "fork child=1\np1: exit\np1: read addr=4\nfork child=1\np1: read addr=4\n",
            "fork     child=1\np1: exit\nread     addr=4\nfork     child=1\np1: read     addr=4\n",
        ),
        # Nobody is left.
        ("exit\nread addr=4\np1: read addr=4\n", "exit\n"),
        # A fork to a label in use takes a free one, until there is none.
        (
            "fork child=1\nfork child=1\nfork child=1\nfork child=1\n",
            "fork     child=1\nfork     child=3\nfork     child=2\n",
        ),
        # A pin that was not made: another one, or none.
        ("unpin pin=3\n", ""),
        (
            "gup_fast addr=1 flags=pin pin=5\nunpin pin=3\npin_write pin=5 at=0\n",
            "gup_fast addr=1 flags=pin pin=5\nunpin    pin=5\n",
        ),
        # A pin label in use is not given twice.
        (
            "gup_fast addr=1 flags=pin pin=0\ngup_slow addr=1 flags=pin pin=0\n",
            "gup_fast addr=1 flags=pin pin=0\ngup_slow addr=1 flags=pin pin=1\n",
        ),
        # exit does not run beside anything; a collision of one is a plain step without a schedule.
        (
            "together\nexit\nread addr=4\nschedule 1 until rmap.walk\nend\n",
            "read     addr=4\n",
        ),
        # What a collision makes can be used only after it.
        (
            "together\nfork child=1\np1: read addr=4\nend\np1: read addr=4\n",
            "together\n  fork     child=1\n  read     addr=4\nend\np1: read     addr=4\n",
        ),
        (
            "together\ngup_fast addr=1 flags=pin pin=0\nunpin pin=0\nread addr=4\n"
            "schedule 2 until a.b, 1 until c.d, 0 until e.f\nend\nunpin pin=0\n",
            "together\n  gup_fast addr=1 flags=pin pin=0\n  read     addr=4\n"
            "  schedule 1 until a.b, 0 until e.f\nend\nunpin    pin=0\n",
        ),
        # A pin is given back once, and not while something is written through it.
        (
            "gup_fast addr=1 flags=pin pin=0\ntogether\nunpin pin=0\nunpin pin=0\npin_write pin=0 at=1\nend\n",
            "gup_fast addr=1 flags=pin pin=0\nunpin    pin=0\n",
        ),
        (
            "gup_fast addr=1 flags=pin pin=0\ntogether\npin_write pin=0 at=1\npin_write pin=0 at=1\nend\n",
            "gup_fast addr=1 flags=pin pin=0\ntogether\n  pin_write pin=0 at=1\n  pin_write pin=0 at=1\nend\n",
        ),
        # Two of them fork: two labels.
        (
            "together\nfork child=1\nfork child=1\nend\n",
            "together\n  fork     child=1\n  fork     child=3\nend\n",
        ),
    ],
)
def test_labels(before: str, after: str) -> None:
    """Each rule about processes and pins, by example."""
    assert fixed(before) == after


def test_clamping() -> None:
    """Numbers outside their domains come to the nearest that means about the same."""
    geometry = GEOMETRIES["small8"]
    values = OP_DOMAINS["small8"]["mmap"].values
    assert clamp(Domain.PAGE, geometry.arena_pages + 5, values[0]) == 5  # same place in its page table
    assert clamp(Domain.PAGE, -7, values[0]) == 0
    assert clamp(Domain.LENGTH, 500, values[1]) == geometry.arena_pages
    assert clamp(Domain.PROT, 0x13, values[2]) == 3
    assert clamp(Domain.MAP_FLAGS, 0x32, values[3]) == 0x12
    assert clamp(Domain.ADVICE, 50, OP_DOMAINS["small8"]["madvise"].values[2]) == 25  # the nearest that there is
    many = Workload("moon", (Step((Op("read", 0, (400,)),)),) * 100)
    assert repair(many) == Workload("small8", (Step((Op("read", 0, (400 % 192,)),)),) * STEPS_MAX)


def test_wrong_shapes() -> None:
    """Unknown kinds go, missing arguments are 0, surplus ones go, a step has at most three ops."""
    read = Op("read", 0, (1,))
    assert repair(Workload("small8", (Step((Op("reboot", 0, ()),)), Step(())))).steps == ()
    assert repair(Workload("small8", (Step((Op("munmap", 0, (1,)),)),))).steps[0].ops[0].args == (1, 0)
    assert repair(Workload("small8", (Step((Op("read", 0, (1, 2, 3)),)),))).steps == (Step((read,)),)
    assert repair(Workload("small8", (Step((read,) * 5),))).steps == (Step((read,) * 3),)


def test_is_valid() -> None:
    """Validity is what repair leaves alone."""
    assert is_valid(from_text("world small8\nfork child=1\np1: read addr=1\n"))
    assert not is_valid(from_text("world small8\np1: read addr=1\n"))
