"""The undo oracle on states built by hand: what a failed relocation may not leave behind."""

from __future__ import annotations

from emulator.mm_types import Folio, VmAreaStruct
from emulator.rmap_types import avc_insert, avc_remove
from emulator.uapi import MREMAP_FIXED, MREMAP_MAYMOVE, MREMAP_RELOCATE_ANON
from emulator.workload import Op, Step
from oracle.finding import Finding
from oracle.undo import UndoOracle
from tests.oracle.handmade import World

FLAGS = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_RELOCATE_ANON


def relocation(world: World, first: int, pages: int, *beside: Op) -> Step:
    """mremap of virtual pages [first, first+pages) far away, with other ops at the same time."""
    return Step((Op("mremap", 0, (first - world.first, pages, pages, FLAGS, 100)), *beside))


def one_page(world: World) -> tuple[VmAreaStruct, Folio]:
    vma = world.vma(70, 4)
    world.faulted(vma)
    return vma, world.page(vma, 71)


def judge(world: World, oracle: UndoOracle, step: Step, *, injected: bool = False) -> list[Finding]:
    world.look(*step.ops)
    return oracle.check(step, 3, injected)


def test_plain_move_leaves_nothing_to_say() -> None:
    """mapping and index unchanged: nothing was relocated, or it was undone."""
    world = World()
    one_page(world)
    oracle = UndoOracle(world.observer)
    step = relocation(world, 70, 4)
    world.look()
    oracle.before(step)
    assert judge(world, oracle, step) == []


def test_folio_that_the_undo_skipped() -> None:
    """The VMA is where it was, the folio says the destination's index: pinned meanwhile, so the undo skipped it."""
    world = World()
    _, folio = one_page(world)
    oracle = UndoOracle(world.observer)
    step = relocation(world, 70, 4, Op("gup_fast", 0, (71 - world.first, 3, 1)))
    world.look()
    oracle.before(step)
    folio.index = 164
    world.pin(1, folio)
    found = judge(world, oracle, step)
    assert [f.signature for f in found] == ["undo/folio-not-restored:pinned"]
    assert found[0].subjects == (("folio", folio.pfn),)
    assert found[0].op == 0


def test_undo_that_stopped_short_after_an_injected_failure() -> None:
    """The same without a pin, after a page table could not be allocated, is another flaw."""
    world = World()
    vma, folio = one_page(world)
    oracle = UndoOracle(world.observer)
    step = relocation(world, 70, 4)
    world.look()
    oracle.before(step)
    folio.mapping = world.new_anon_vma()
    found = judge(world, oracle, step, injected=True)
    assert [f.signature for f in found] == ["undo/folio-not-restored:failure injected"]
    assert vma.anon_vma is not folio.mapping


def test_relocated_vma_is_not_the_undo_oracles_business() -> None:
    """VMA and folio both have the new offset: the relocation was done."""
    world = World()
    vma, folio = one_page(world)
    oracle = UndoOracle(world.observer)
    step = relocation(world, 70, 4)
    world.look()
    oracle.before(step)
    avc = vma.anon_vma_chain[0]
    avc_remove(avc)
    vma.vm_pgoff += 94
    avc_insert(avc)
    folio.index += 94
    assert judge(world, oracle, step) == []


def test_relocated_to_the_same_offset_with_another_anon_vma() -> None:
    """Moved back to where its pgoff points, a VMA keeps its offset and still was relocated."""
    world = World()
    vma, folio = one_page(world)
    oracle = UndoOracle(world.observer)
    step = relocation(world, 70, 4)
    world.look()
    oracle.before(step)
    avc_remove(vma.anon_vma_chain.pop())
    folio.mapping = world.faulted(vma)
    assert judge(world, oracle, step) == []


def test_write_fault_beside_it_may_take_the_folio_over() -> None:
    """do_wp_page gives a reused page its VMA's own anon_vma: right, when a write ran beside the call."""
    world = World()
    parent = world.vma(70, 4)
    world.faulted(parent)
    folio = world.page(parent, 71)
    child_mm = world.process(1)
    child = world.fork_vma(parent, child_mm)
    world.share(folio, child, 71)
    oracle = UndoOracle(world.observer)
    op = Op("mremap", 1, (70 - world.first, 4, 4, FLAGS, 100))
    step = Step((op, Op("write", 1, (71 - world.first, 0))))
    world.look()
    oracle.before(step)
    folio.mapping = child.anon_vma
    assert judge(world, oracle, step) == []


def test_scanner_beside_it_may_make_the_folio_its_own() -> None:
    """A page that is merged with others during a call that relocates nothing hangs on a stable node, rightly."""
    world = World()
    _, folio = one_page(world)
    oracle = UndoOracle(world.observer)
    step = relocation(world, 70, 4, Op("ksm_scan", 0, (0,)))
    world.look()
    oracle.before(step)
    folio.mapping = None
    assert len(judge(world, oracle, step)) == 1
    folio.ksm = True
    assert judge(world, oracle, step) == []


def test_huge_page_is_followed() -> None:
    """A folio mapped by a PMD, of which the call moves a part."""
    world = World()
    vma = world.vma(80, 8)
    world.faulted(vma)
    folio = world.huge_page(vma, 80)
    oracle = UndoOracle(world.observer)
    step = relocation(world, 82, 2)
    world.look()
    oracle.before(step)
    folio.index += 5
    assert [f.signature for f in judge(world, oracle, step)] == ["undo/folio-not-restored:large"]


def test_freed_and_vanished_pages_are_left_alone() -> None:
    """A page that was freed, or is mapped by others only, has nothing to be undone."""
    world = World()
    _, folio = one_page(world)
    oracle = UndoOracle(world.observer)
    step = relocation(world, 70, 4)
    world.look()
    oracle.before(step)
    folio.index += 5
    world.store(71, 0)
    assert judge(world, oracle, step) == []
    world.machine.phys.free(folio)
    assert judge(world, oracle, step) == []


def test_other_ops_are_not_looked_at() -> None:
    """What does not move, and a process that is gone, leave nothing to remember."""
    world = World()
    _, folio = one_page(world)
    oracle = UndoOracle(world.observer)
    step = Step((Op("munmap", 0, (70 - world.first, 4)), Op("mremap", 3, (70 - world.first, 4, 4, FLAGS, 100))))
    world.look()
    oracle.before(step)
    folio.index += 5
    assert judge(world, oracle, step) == []
