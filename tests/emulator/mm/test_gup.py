"""get_user_pages: what is taken, what is refused, and that a pin and its process never drift apart."""

from __future__ import annotations

import pytest

from emulator.errors import KernelBug
from emulator.hw.pte import DIRTY, PRESENT
from emulator.hw.pte import RW as PTE_RW
from emulator.mm_types import GUP_PIN_COUNTING_BIAS, VM_PFNMAP
from emulator.uapi import (
    EFAULT,
    EINVAL,
    ENOMEM,
    MAP_FIXED,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from emulator.workload import FOLL_LONGTERM, FOLL_PIN, FOLL_WRITE
from tests.emulator.kernel_world import World
from tests.emulator.populated import huge, written
from tests.emulator.references import assert_coherent, check_all

PIN_RW = FOLL_PIN | FOLL_WRITE
BOTH = pytest.mark.parametrize("kind", ["gup_fast", "gup_slow"])


# ---- what is taken


@BOTH
def test_a_pin_counts_and_dirties(kind: str) -> None:
    """A pin on a small folio is 1024 references; giving a write pin back makes the folio dirty."""
    world = written()
    folio = world.folio(1)
    folio.dirty = False
    assert world.do(kind, 1, PIN_RW, 0) == 0
    assert world.machine.pins[0].folio is folio
    assert folio.refcount == 1 + GUP_PIN_COUNTING_BIAS
    check_all(world)
    assert world.do("unpin", 0) == 0
    assert folio.refcount == 1
    assert folio.dirty
    check_all(world)


@BOTH
def test_a_reference_counts_one(kind: str) -> None:
    """Without FOLL_PIN it is an ordinary reference, which nobody takes for a pin."""
    world = written()
    assert world.do(kind, 1, FOLL_WRITE, 0) == 0
    assert world.folio(1).refcount == 2
    assert not world.folio(1).maybe_dma_pinned()
    check_all(world)


@BOTH
def test_a_pin_in_a_huge_page(kind: str) -> None:
    """The pin names the page inside the folio, and is counted exactly."""
    world = huge()
    assert world.do(kind, 5, PIN_RW, 0) == 0
    pin = world.machine.pins[0]
    assert (pin.folio, pin.page) == (world.folio(5), 5)
    assert pin.folio.pincount == 1
    check_all(world)
    assert_coherent(world, 5)
    assert world.do("unpin", 0) == 0
    assert world.folio(5).pincount == 0


@BOTH
def test_pages_are_faulted_in(kind: str) -> None:
    """Where nothing is mapped the slow path faults: a write pin gets an exclusive page at once."""
    world = World()
    world.mmap(0, 2)
    assert world.do(kind, 0, PIN_RW, 0) == 0
    assert world.machine.pins[0].folio is world.folio(0)
    assert world.pte(0) & PTE_RW
    assert world.folio(0).anon_exclusive == 1
    check_all(world)


def test_the_fast_path_takes_no_lock() -> None:
    """GUP-fast works while somebody holds mmap_lock for writing; the slow path would wait for ever."""
    world = written()
    mm = world.mm()
    mm.mmap_lock.down_write()
    got = world.image.gup.gup_fast(mm, world.address(1), PIN_RW)
    assert got.folio is world.folio(1)
    with pytest.raises(KernelBug, match="deadlock"):
        world.image.gup.gup_slow(mm, world.address(1), PIN_RW)


def test_interrupts_are_back_on_afterwards() -> None:
    """A TLB flush elsewhere would wait for ever for a task that left them off, also where the walk gave up."""
    world = written()
    for page in (1, 9):
        world.do("gup_fast", page, PIN_RW, 0)
        assert not world.machine.sched.current.irqs_off


def test_a_slow_write_touch_dirties() -> None:
    """FOLL_TOUCH: the folio is dirty when the entry is not, as the device may write at once."""
    world = written()
    folio = world.folio(1)
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(1), 0)
    table.set(1, world.pte(1) & ~DIRTY)
    folio.dirty = False
    assert world.do("gup_slow", 1, PIN_RW, 0) == 0
    assert folio.dirty


def test_a_slow_write_touch_dirties_a_huge_page() -> None:
    """The same for a huge page, whose entry gets the mark."""
    world = huge()
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(1), 1)
    table.set(0, world.pte(1) & ~DIRTY)
    assert world.do("gup_slow", 1, PIN_RW, 0) == 0
    assert world.pte(1) & DIRTY


# ---- what is refused


@BOTH
def test_errors(kind: str) -> None:
    """Holes, missing permissions, device memory: -EFAULT; LONGTERM without PIN: -EINVAL. Nothing is taken."""
    world = World()
    world.mmap(0, 1, PROT_READ)
    world.mmap(2, 1, PROT_WRITE)
    world.mmap(4, 1, PROT_NONE)
    world.mmap(6, 1)
    world.vma(6).vm_flags |= VM_PFNMAP
    assert world.do(kind, 1, FOLL_PIN, 0) == -EFAULT
    assert world.do(kind, 0, PIN_RW, 0) == -EFAULT
    assert world.do(kind, 2, FOLL_PIN, 0) == -EFAULT
    assert world.do(kind, 2, PIN_RW, 1) == 0
    assert world.do(kind, 4, FOLL_PIN, 0) == -EFAULT
    assert world.do(kind, 6, FOLL_PIN, 0) == -EFAULT
    assert world.do(kind, 0, FOLL_LONGTERM, 0) == -EINVAL
    assert list(world.machine.pins) == [1]


def test_above_the_address_space() -> None:
    """A page past TASK_SIZE is refused before anything is walked."""
    world = World()
    assert world.image.gup.gup_fast(world.mm(), world.machine.geometry.task_size, FOLL_PIN) == -EFAULT


@BOTH
def test_out_of_memory(kind: str) -> None:
    """Every allocation on the way can fail: the result is -ENOMEM and nothing is left behind."""
    nth = 1
    while True:
        world = World()
        world.mmap(0, 2)
        ret = world.do(kind, 0, PIN_RW, 0, fail_nth=nth)
        check_all(world)
        if not world.last.injected:
            assert ret == 0
            break
        assert ret == -ENOMEM
        assert not world.machine.pins
        nth += 1
    assert nth > 2


@BOTH
def test_an_inaccessible_page_that_is_present(kind: str) -> None:
    """PROT_NONE leaves the page in the tables; neither path may take it."""
    world = written()
    assert world.do("mprotect", 1, 1, PROT_NONE) == 0
    assert world.pte(1) & PRESENT
    assert world.do(kind, 1, FOLL_PIN, 0) == -EFAULT
    check_all(world)


@BOTH
def test_long_term_write_pins_on_files(kind: str) -> None:
    """A shared mapping of a file with dirty tracking cannot be pinned for writing for long; for a while it can."""
    world = World()
    world.mmap(0, 2, flags=MAP_SHARED | MAP_FIXED, file=1)
    world.write(0)
    assert world.do(kind, 0, PIN_RW | FOLL_LONGTERM, 0) == -EFAULT
    assert world.do(kind, 0, PIN_RW, 0) == 0
    assert world.do(kind, 0, FOLL_PIN | FOLL_LONGTERM, 1) == 0
    check_all(world)


# ---- unsharing


@BOTH
def test_zero_page(kind: str) -> None:
    """A short read pin takes the zero page and counts nothing; a long one gets a page of its own."""
    world = World()
    world.mmap(0, 1)
    assert world.do("read", 0) == 0
    zero = world.machine.phys.zero_folio
    before = zero.refcount
    assert world.do(kind, 0, FOLL_PIN, 0) == 0
    assert world.machine.pins[0].folio is zero
    assert zero.refcount == before
    assert world.do("unpin", 0) == 0
    assert world.do(kind, 0, FOLL_PIN | FOLL_LONGTERM, 0) == 0
    assert world.machine.pins[0].folio is world.folio(0)
    assert world.folio(0) is not zero
    check_all(world)
    assert_coherent(world, 0)


@BOTH
def test_a_read_pin_after_fork_unshares(kind: str) -> None:
    """A page that a fork shares is copied before it is pinned for reading: later writes must be seen by both."""
    world = written()
    shared = world.folio(1)
    world.fork(1)
    assert world.do(kind, 1, FOLL_PIN, 0) == 0
    pin = world.machine.pins[0]
    assert pin.folio is not shared
    assert world.folio(1, proc=1) is shared
    assert not world.pte(1) & PTE_RW  # unshared, not made writable
    assert_coherent(world, 1)
    check_all(world)


@BOTH
def test_a_reference_after_fork_shares(kind: str) -> None:
    """FOLL_GET does not unshare: it takes what is mapped."""
    world = written()
    shared = world.folio(1)
    world.fork(1)
    assert world.do(kind, 1, 0, 0) == 0
    assert world.machine.pins[0].folio is shared
    check_all(world)


@BOTH
def test_fork_copies_a_pinned_page(kind: str) -> None:
    """The parent keeps the pinned page, the child gets a copy."""
    world = written()
    assert world.do(kind, 1, PIN_RW, 0) == 0
    world.fork(1)
    assert world.machine.pins[0].folio is world.folio(1)
    assert world.folio(1, proc=1) is not world.folio(1)
    assert_coherent(world, 1)
    check_all(world)


@BOTH
def test_a_huge_page_shared_by_fork_is_unshared(kind: str) -> None:
    """Only the page in question is copied."""
    world = huge()
    world.fork(1)
    assert world.do(kind, 5, FOLL_PIN, 0) == 0
    pin = world.machine.pins[0]
    assert pin.folio is world.folio(5)
    assert pin.folio.order == 0
    assert_coherent(world, 5)
    check_all(world)


# ---- references go wrong


def test_pincount_underflow() -> None:
    """A huge page that is unpinned once too often is a bug of the kernel, not ours."""
    world = huge()
    with pytest.raises(KernelBug, match="pincount-underflow"):
        world.image.gup.gup_put_folio(world.machine, world.folio(0), FOLL_PIN)


def test_a_pin_that_lost_exclusivity_is_reported() -> None:
    """The mark on a pinned page must stay; where it went, taking and giving back both complain."""
    world = written()
    assert world.do("gup_fast", 1, PIN_RW, 0) == 0
    world.folio(1).anon_exclusive = 0
    assert world.do("unpin", 0) == 0
    assert [w[0] for w in world.machine.sched.warnings] == ["pinned-not-exclusive"]
    assert world.do("gup_fast", 1, PIN_RW, 0) == 0
    assert [w[0] for w in world.machine.sched.warnings] == ["pinned-not-exclusive"]
