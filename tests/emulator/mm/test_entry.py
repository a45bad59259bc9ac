"""The system call table: labels, pins, arena pages in and out."""

from __future__ import annotations

import pytest

from emulator.errors import KernelBug
from emulator.uapi import EBUSY, EINVAL, ESRCH, MAP_PRIVATE, SIGSEGV
from emulator.workload import FOLL_PIN, FOLL_WRITE, OPS
from tests.emulator.kernel_world import RW, World

WRITE_PIN = FOLL_PIN | FOLL_WRITE


def test_every_op_has_a_handler() -> None:
    """No op of a workload can be unknown to the machine."""
    handlers = World().image.entry.HANDLERS
    assert set(handlers) | {"read", "write"} == set(OPS)


@pytest.mark.parametrize("kind", sorted(OPS))
def test_no_such_process(kind: str) -> None:
    """ESRCH for every op of a process that does not exist."""
    world = World()
    args = (1,) * len(OPS[kind].args)
    assert world.do(kind, *args, proc=3) == -ESRCH
    assert world.layout() == []


def test_addresses_are_arena_pages() -> None:
    """Results of mmap and mremap are pages; errors stay as they are."""
    world = World("x86-64")
    assert world.do("mmap", 5, 2, RW, MAP_PRIVATE, 0, 0) == 5
    assert world.vma(5).vm_start == 0x1000_0000_5000
    assert world.do("mremap", 5, 2, 2, 3, 9) == 9
    assert world.do("mremap", 5, 2, 2, 16, 9) == -EINVAL


@pytest.mark.parametrize("kind", ["gup_fast", "gup_slow"])
def test_pin_labels(kind: str) -> None:
    """A label names one pin: taken EBUSY, unknown EINVAL, free again after unpin."""
    world = World()
    world.mmap(0, 1)
    world.write(0)
    assert world.do(kind, 0, WRITE_PIN, 2) == 0
    assert world.do(kind, 0, WRITE_PIN, 2) == -EBUSY
    assert world.do("unpin", 3) == -EINVAL
    assert world.do("unpin", 2) == 0
    assert world.do("unpin", 2) == -EINVAL
    assert world.do(kind, 0, WRITE_PIN, 2) == 0


@pytest.mark.parametrize("kind", ["gup_fast", "gup_slow"])
def test_failed_pin_takes_no_label(kind: str) -> None:
    """Nothing mapped there: an error, and the label stays free."""
    world = World()
    assert world.do(kind, 0, WRITE_PIN, 2) < 0
    assert world.do("unpin", 2) == -EINVAL


def test_device_writes_through_a_pin() -> None:
    """What a device stores is what the process reads; a pin for reading may not store."""
    world = World()
    world.mmap(0, 2)
    world.write(0)
    world.write(1)
    assert world.do("gup_slow", 0, WRITE_PIN, 0) == 0
    assert world.do("gup_slow", 1, FOLL_PIN, 1) == 0
    assert world.do("pin_write", 0, 2) == 0
    assert world.do("pin_write", 1, 2) == -EINVAL
    assert world.do("pin_write", 7, 2) == -EINVAL
    content = world.content(0)
    assert content is not None
    assert set(content) == {0, 2}


def test_pin_outlives_the_process() -> None:
    """The page is there until the last pin is given back."""
    world = World()
    world.mmap(0, 1)
    world.write(0)
    folio = world.folio(0)
    assert world.do("gup_fast", 0, WRITE_PIN, 0) == 0
    assert world.do("munmap", 0, 1) == 0
    assert not folio.freed
    assert world.do("pin_write", 0, 0) == 0
    assert world.do("unpin", 0) == 0
    assert folio.freed


def test_write_through_a_pin_to_a_freed_page() -> None:
    """That would be a use after free in the kernel."""
    world = World()
    world.mmap(0, 1)
    world.write(0)
    assert world.do("gup_fast", 0, WRITE_PIN, 0) == 0
    world.folio(0).freed = True
    with pytest.raises(KernelBug, match="use-after-free"):
        world.do("pin_write", 0, 0)


def test_signals_are_results() -> None:
    """An access that fails gives its signal and no data."""
    world = World()
    assert world.do("read", 0) == SIGSEGV
    assert world.last.data is None
