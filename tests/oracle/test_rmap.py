"""The rmap oracle on states built by hand: silent on right ones, and it names each way of being wrong."""

from __future__ import annotations

import pytest

from emulator.mm_types import Folio, VmAreaStruct
from emulator.rmap_types import avc_insert, avc_remove
from oracle.finding import Finding
from oracle.rmap import RmapOracle
from tests.oracle.handmade import World


@pytest.fixture
def world() -> World:
    return World()


def judge(world: World, oracle: RmapOracle, *, injected: bool = False) -> list[Finding]:
    """Look at what was built or broken, with both the incremental and the full check, which must agree."""
    world.look()
    found = oracle.check(1, injected)
    world.observer.observe_everything()
    everything = oracle.check_all(1, injected)
    assert {f.signature for f in found} <= {f.signature for f in everything}
    return found


def faulted(world: World, start: int = 70, pages: int = 4) -> tuple[VmAreaStruct, Folio]:
    vma = world.vma(start, pages)
    world.faulted(vma)
    return vma, world.page(vma, start + 1)


def test_right_states_are_not_complained_of(world: World) -> None:
    """Small, huge, shared, swapped, cached and zero pages as they should be."""
    vma, folio = faulted(world)
    child = world.fork_vma(vma, world.process(1))
    world.share(folio, child, 71)
    world.zero_page(vma, 72)
    slot = world.swapped(vma, 73)
    world.cache(slot, vma, 73)
    huge = world.vma(80, 8)
    world.faulted(huge)
    world.huge_page(huge, 80)
    assert judge(world, RmapOracle(world.observer)) == []


def test_vma_moved_to_another_offset_without_its_folios(world: World) -> None:
    """The VMA's pgoff changed, the folio's index not: left behind (a relocation that skipped the folio)."""
    vma, folio = faulted(world)
    oracle = RmapOracle(world.observer)
    assert judge(world, oracle) == []
    avc = vma.anon_vma_chain[0]
    avc_remove(avc)
    vma.vm_pgoff += 100
    avc_insert(avc)
    found = judge(world, oracle)
    assert [f.signature for f in found] == ["rmap/misplaced:folio left behind, present"]
    assert found[0].subjects == (("folio", folio.pfn),)


def test_folio_moved_ahead_of_its_vma(world: World) -> None:
    """The folio's index changed and the VMA did not (an undo that skipped the folio)."""
    vma, folio = faulted(world)
    oracle = RmapOracle(world.observer)
    assert judge(world, oracle) == []
    folio.index += 100
    vma.vm_flags ^= 1 << 30  # the VMA was worked on
    assert [f.signature for f in judge(world, oracle)] == ["rmap/misplaced:folio ahead, present"]


def test_pins_failures_and_large_folios_are_told_apart(world: World) -> None:
    """One flaw for each circumstance: the signature names pins, injected failures and large folios."""
    vma = world.vma(80, 8)
    world.faulted(vma)
    folio = world.huge_page(vma, 80)
    world.pin(3, folio, 2)
    oracle = RmapOracle(world.observer)
    assert judge(world, oracle) == []
    folio.index += 8
    vma.vm_flags ^= 1 << 30
    found = judge(world, oracle, injected=True)
    assert [f.signature for f in found] == ["rmap/misplaced:folio ahead, present, pinned, failure injected"]


def test_swap_cache_keeps_its_old_index(world: World) -> None:
    """A cached folio will be mapped at its old index when it is swapped in: as wrong as a mapped one."""
    vma = world.vma(70, 4)
    world.faulted(vma)
    slot = world.swapped(vma, 71)
    folio = world.cache(slot, vma, 71)
    oracle = RmapOracle(world.observer)
    assert judge(world, oracle) == []
    avc = vma.anon_vma_chain[0]
    avc_remove(avc)
    vma.vm_pgoff += 50
    avc_insert(avc)
    found = judge(world, oracle)
    assert [f.signature for f in found] == ["rmap/misplaced:folio left behind, swap cache"]
    assert found[0].subjects == (("folio", folio.pfn),)


def test_cached_folio_that_was_never_mapped_has_no_index_yet(world: World) -> None:
    """Read-ahead brings folios in without mapping them: nothing can be wrong with those."""
    vma = world.vma(70, 4)
    world.faulted(vma)
    folio = world.cache(world.swapped(vma, 71), vma, 0)
    folio.anon = False
    folio.mapping = None
    assert judge(world, RmapOracle(world.observer)) == []


def test_migration_entry_that_the_walk_did_not_find(world: World) -> None:
    """After the migration no migration entry is left; one that is, is a page that nobody can reach any more."""
    _, folio = faulted(world)
    oracle = RmapOracle(world.observer)
    assert judge(world, oracle) == []
    world.migration_entry(folio, 71)
    assert [f.signature for f in judge(world, oracle)] == ["rmap/migration-entry-left"]


def test_missing_avc(world: World) -> None:
    """A VMA without AVC to the folio's anon_vma is not found by the walk, however right the offsets are."""
    vma, folio = faulted(world)
    child = world.fork_vma(vma, world.process(1))
    world.share(folio, child, 71)
    oracle = RmapOracle(world.observer)
    assert judge(world, oracle) == []
    avc = next(avc for avc in child.anon_vma_chain if avc.anon_vma is vma.anon_vma)
    avc_remove(avc)
    child.anon_vma_chain.remove(avc)
    assert [f.signature for f in judge(world, oracle)] == ["rmap/unreachable:folio left behind, present"]


def test_avc_under_a_stale_range(world: World) -> None:
    """An AVC that was not put back under the VMA's new range is overlooked where the ranges differ."""
    vma, _ = faulted(world)
    oracle = RmapOracle(world.observer)
    assert judge(world, oracle) == []
    world.mm.mm_mt.move(vma, vma.vm_start, vma.vm_end + (2 << 12))
    world.page(vma, 75)
    found = judge(world, oracle)
    assert [f.signature for f in found] == ["rmap/unreachable:folio left behind, present"]


def test_walk_that_meets_a_place_twice(world: World) -> None:
    """Two AVCs of one VMA in one tree make the walk count a mapping twice: only a real walk shows it."""
    vma, _ = faulted(world)
    assert vma.anon_vma is not None
    world.link(vma, vma.anon_vma)
    oracle = RmapOracle(world.observer)
    world.look()
    world.observer.observe_everything()
    assert [f.signature for f in oracle.check_all(1, False)] == ["rmap/walk-repeats"]


def test_moved_page_table_takes_its_leaves_along(world: World) -> None:
    """A PMD-level move stores one entry; the pages below it have new addresses and are looked at again."""
    vma = world.vma(64, 8)
    world.faulted(vma)
    world.page(vma, 65)
    oracle = RmapOracle(world.observer)
    assert judge(world, oracle) == []
    pmd = world.table(64, level=1)
    table = pmd.get(0)
    other = world.vma(72, 8)
    world.faulted(other)
    pmd.set(0, 0)
    pmd.set(1, table)
    found = judge(world, oracle)
    assert [f.rule for f in found] == ["misplaced"]
    assert "0x49" in found[0].detail  # page 65 is at 73 now
