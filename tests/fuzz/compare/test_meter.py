"""The machine that counts: what it counts is what was done, and it does what the plain machine does."""

from __future__ import annotations

import pytest

from emulator.designs.mainline import Mainline
from emulator.machine import Machine
from emulator.sched.locks import FolioLock, RwSem, SpinLock
from fuzz.compare.figures import SIZEOF_ANON_VMA, SIZEOF_AVC, SIZEOF_VMA, Figures
from fuzz.compare.meter import MeteredMachine
from fuzz.workload.text import from_text
from tests.emulator.kernel_world import kernel_image

THREE_PAGES = """\
world small8
mmap addr=0 len=3 prot=rw flags=private|fixed
write addr=0 at=0
write addr=1 at=0
read addr=2
fork child=1
write addr=0 at=1
exit
"""


def metered(text: str) -> MeteredMachine:
    """A machine that has run the workload."""
    workload = from_text(text)
    machine = MeteredMachine(kernel_image(Mainline), workload.geometry)
    for step in workload.steps:
        machine.run_step(step)
    return machine


def test_memory() -> None:
    """VMAs of each process at its end and at the peak, and the bytes of what describes them."""
    figures = metered(THREE_PAGES).finish()
    assert figures.steps == 7
    assert figures.vmas_at_end == 2
    assert figures.vmas_peak == 2
    assert figures.vmas_peak_of_one == 1
    # the parent's VMA hangs at its anon_vma, the child's at both
    assert figures.metadata_peak == 2 * SIZEOF_VMA + 2 * SIZEOF_ANON_VMA + 3 * SIZEOF_AVC


def test_work() -> None:
    """Stores, folios, locks and allocations of a single write fault: what mm/memory.c does for one."""
    machine = metered("world small8\nmmap addr=0 len=3 prot=rw flags=private|fixed\nwrite addr=0 at=0\n")
    before = Figures()
    before.add(machine.finish())
    machine.run_step(from_text("world small8\nwrite addr=1 at=0\n").steps[0])
    after = machine.finish()
    assert after.entries - before.entries == 1
    assert after.folios - before.folios == 1
    assert after.allocations - before.allocations == {"folio_alloc": 1}
    assert after.locks - before.locks == {"mmap_lock": 1, "page table lock": 1}


def test_same_as_the_plain_machine() -> None:
    """Counting changes nothing: results and creation numbers are the same, and the plain machine counts nothing."""
    workload = from_text(THREE_PAGES)
    plain = Machine(kernel_image(Mainline), workload.geometry)
    counted = MeteredMachine(kernel_image(Mainline), workload.geometry)
    for step in workload.steps:
        assert plain.run_step(step) == counted.run_step(step)
    assert plain.serial() == counted.serial()
    sched = plain.sched
    assert (sched.rwsem, sched.spinlock, sched.folio_lock) == (RwSem, SpinLock, FolioLock)


def test_freed_frames_are_forgotten() -> None:
    """After its step; whoever still looks finds a folio that has been freed, as in any other machine."""
    machine = metered("world small8\nmmap addr=0 len=3 prot=rw flags=private|fixed\nwrite addr=0 at=0\n")
    pfn = max(machine.phys.frames)
    folio = machine.phys.frames[pfn]
    machine.run_step(from_text("world small8\nmunmap addr=0 len=3\n").steps[0])
    assert folio.freed
    assert list(machine.phys.frames) == list(machine.phys.live)
    assert machine.phys.frames[pfn].freed
    assert pfn not in machine.phys.frames


def test_every_kind_of_lock() -> None:
    """Taken in any way, also by a trylock that succeeds; one that fails takes nothing."""
    machine = MeteredMachine(kernel_image(Mainline))
    sched = machine.sched
    sched.taken.clear()
    sem, folio, spin = sched.rwsem("sem", sched), sched.folio_lock(sched), sched.spinlock("spin", sched)
    assert sem.try_down_read()
    assert not sem.try_down_write()
    sem.up_read()
    assert sem.try_down_write()
    assert not sem.try_down_read()
    sem.up_write()
    sem.down_read()
    sem.up_read()
    sem.down_write()
    assert folio.trylock()
    assert not folio.trylock()
    folio.unlock()
    folio.lock()
    spin.lock()
    assert +sched.taken == {"sem": 4, "folio lock": 2, "spin": 1}


@pytest.mark.parametrize("peak", ["vmas_peak", "vmas_peak_of_one", "metadata_peak"])
def test_peaks_do_not_add_up(peak: str) -> None:
    """Inputs run one after the other: the highest peak is the peak of all, everything else is a sum."""
    total, one = Figures(steps=2), Figures(steps=3)
    setattr(total, peak, 5)
    setattr(one, peak, 4)
    one.find("rmap", "rmap/lost")
    total.find("rmap", "rmap/lost")
    total.add(one)
    assert getattr(total, peak) == 5
    assert total.steps == 5
    assert total.findings == {"rmap": ["rmap/lost"]}
