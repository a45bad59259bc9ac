"""The lifetime oracle on states built by hand: each count wrong by one, each use after free, each leak."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.mm_types import Folio, VmAreaStruct
from emulator.rmap_types import avc_insert, avc_remove
from emulator.workload import FOLL_WRITE, Op
from oracle.lifetime import LifetimeOracle
from tests.oracle.handmade import NO_OPS, World


class Scene:
    """A parent with a shared, an own, a swapped, a cached and a huge page, and its child."""

    def __init__(self) -> None:
        self.world = world = World()
        self.vma = world.vma(70, 6)
        world.faulted(self.vma)
        self.own = world.page(self.vma, 70)
        self.shared = world.page(self.vma, 71)
        self.slot = world.swapped(self.vma, 72)
        self.cached_slot = world.swapped(self.vma, 73)
        self.cached = world.cache(self.cached_slot, self.vma, 73)
        self.huge_vma = world.vma(80, 8)
        world.faulted(self.huge_vma)
        self.huge = world.huge_page(self.huge_vma, 80)
        self.child = world.fork_vma(self.vma, world.process(1))
        world.share(self.shared, self.child, 71)
        self.file_vma = world.file_vma(90, 2, shared=True)
        self.cache_page = world.file_page(self.file_vma, 90)
        self.oracle = LifetimeOracle(world.observer)

    def signatures(self, *ops: Op) -> list[str]:
        """What the incremental check says; the full one must say that too."""
        self.world.look(*ops)
        found = [f.signature for f in self.oracle.check(1, ops or NO_OPS)]
        assert set(found) <= set(self.everything())
        return found

    def everything(self) -> list[str]:
        self.world.look()
        self.world.observer.observe_everything()
        return [f.signature for f in LifetimeOracle(self.world.observer).check_all(1)]

    def touch(self, vma: VmAreaStruct, page: int) -> None:
        """Store the page's entry again, so that the step has touched it."""
        table = self.world.table(page, mm=vma.vm_mm)
        slot = page & self.world.machine.geometry.index_mask
        entry = table.get(slot)
        assert isinstance(entry, int)
        table.set(slot, entry)


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    assert made.signatures() == []
    return made


def test_right_states_are_not_complained_of(scene: Scene) -> None:
    """Counts of pins and references included."""
    scene.world.pin(1, scene.own)
    scene.world.pin(2, scene.own, flags=FOLL_WRITE)
    scene.world.pin(3, scene.huge, 4)
    assert scene.signatures() == []
    assert scene.everything() == []


def break_refcount_up(s: Scene) -> None:
    s.own.refcount += 1


def break_refcount_down(s: Scene) -> None:
    s.own.refcount -= 1


def break_mapcount(s: Scene) -> None:
    s.own.mapcounts[0] += 1


@pytest.mark.parametrize(
    ("damage", "signature"),
    [
        (break_refcount_up, "lifetime/refcount:too many, small"),
        (break_refcount_down, "lifetime/refcount:too few, small"),
        (break_mapcount, "lifetime/mapcount:small"),
    ],
)
def test_counts_of_a_touched_folio(scene: Scene, damage: Callable[[Scene], None], signature: str) -> None:
    """A reference or mapcount too many or too few on a page that the step touched."""
    damage(scene)
    scene.touch(scene.vma, 70)
    assert scene.signatures() == [signature]


def test_entire_mapcount(scene: Scene) -> None:
    """A PMD mapping that is counted and not there."""
    scene.huge.entire_mapcount = 2
    assert "lifetime/mapcount:large" in scene.everything()


def test_reference_that_an_unpin_left_behind(scene: Scene) -> None:
    """unpin of a reference does not touch page tables; its folio is counted all the same."""
    scene.world.pin(1, scene.own, flags=FOLL_WRITE)
    assert scene.signatures() == []
    del scene.world.machine.pins[1]
    assert scene.signatures(Op("unpin", 0, (1,))) == ["lifetime/refcount:too many, small"]


@pytest.mark.parametrize(("more", "how"), [(1, "too many"), (-1, "too few")])
def test_huge_page_of_zeros(scene: Scene, more: int, how: str) -> None:
    """It is kept by one reference, and by pins; that entries map it does not count."""
    zero = scene.world.huge_zero_page()
    scene.world.pin(1, zero, 4)
    assert scene.signatures() == []
    zero.refcount += more
    assert f"lifetime/refcount:{how}, large" in scene.everything()


def test_pincount_of_a_large_folio(scene: Scene) -> None:
    """A pin on a large folio that its pincount does not know."""
    scene.world.pin(1, scene.huge, 3)
    scene.huge.pincount = 0
    assert scene.signatures() == ["lifetime/pincount"]


def test_freed_folio_still_mapped(scene: Scene) -> None:
    """Freed under an entry: the next access is a use after free."""
    scene.world.machine.phys.free(scene.own)
    scene.touch(scene.vma, 70)
    assert scene.signatures() == ["lifetime/use-after-free:folio mapped"]


def test_freed_folio_still_pinned(scene: Scene) -> None:
    """Freed under a pin: the device writes to somebody else's memory."""
    scene.world.pin(1, scene.own)
    scene.world.store(70, 0)
    scene.own.mapcounts[0] = 0
    scene.world.machine.phys.free(scene.own)
    assert scene.signatures() == ["lifetime/use-after-free:folio pinned"]


def test_freed_folio_still_in_the_swap_cache(scene: Scene) -> None:
    """The next swap-in would map a freed page."""
    scene.world.machine.phys.free(scene.cached)
    found = scene.signatures(Op("reclaim", 0, (9,)))
    assert "lifetime/use-after-free:folio in the swap cache" in found


def test_swap_counts(scene: Scene) -> None:
    """A slot counted once too often leaks, once too seldom is reused under its user."""
    scene.world.machine.swap.count[scene.slot] = 2
    scene.touch(scene.vma, 72)
    assert scene.signatures() == ["lifetime/swap-count: too many"]
    scene.world.machine.swap.count[scene.slot] = 0
    scene.touch(scene.vma, 72)
    assert scene.signatures() == ["lifetime/swap-count: too few"]


def test_swap_slot_free_and_used(scene: Scene) -> None:
    """An entry holds a slot that the device has given back."""
    del scene.world.machine.swap.count[scene.slot]
    scene.touch(scene.vma, 72)
    assert scene.signatures() == ["lifetime/swap-use-after-free"]


def test_swap_slot_leaked(scene: Scene) -> None:
    """The last entry went, and the slot did not."""
    scene.world.machine.swap.count[scene.slot] = 0
    scene.world.store(72, 0)
    assert scene.signatures() == ["lifetime/swap-leak"]


def test_swap_cache_of_a_folio_that_left_it(scene: Scene) -> None:
    """The cache says the folio is in it, the folio says it is not."""
    scene.cached.swapcache = False
    scene.cached.refcount = 0
    assert "lifetime/swap-cache" in scene.signatures(Op("reclaim", 0, (9,)))


def test_entry_in_an_unreachable_table(scene: Scene) -> None:
    """A page table that was unlinked with entries in it has leaked their pages."""
    scene.world.table(70, level=1).set(0, 0)
    assert "lifetime/entry-leaked" in scene.everything()


# ---- anon_vmas


def changed(vma: VmAreaStruct) -> None:
    """Make the VMA one that the step has changed."""
    vma.vm_flags ^= 1 << 30


def test_num_active_vmas(scene: Scene) -> None:
    """A VMA too many: the anon_vma would be freed, or reused, at the wrong time."""
    assert scene.vma.anon_vma is not None
    scene.vma.anon_vma.num_active_vmas += 1
    changed(scene.vma)
    assert scene.signatures() == ["lifetime/num_active_vmas"]


def test_num_children(scene: Scene) -> None:
    """A child that was not counted."""
    assert scene.vma.anon_vma is not None
    scene.vma.anon_vma.num_children -= 1
    scene.world.new_anon_vma(scene.child.anon_vma)  # the graph changed
    assert "lifetime/num_children" in scene.signatures()


def test_vma_without_avc_to_its_own_anon_vma(scene: Scene) -> None:
    """Folios of the VMA could not be found by the rmap."""
    avc = scene.vma.anon_vma_chain.pop()
    avc_remove(avc)
    assert scene.signatures() == ["lifetime/avc-missing"]


def test_avc_not_reinserted(scene: Scene) -> None:
    """Taken out of the tree for a change of range, and never put back."""
    avc_remove(scene.vma.anon_vma_chain[0])
    changed(scene.vma)
    assert scene.signatures() == ["lifetime/avc-not-in-tree"]


def test_avc_under_a_stale_range(scene: Scene) -> None:
    """The VMA grew while its AVC stood in the tree."""
    scene.world.mm.mm_mt.move(scene.vma, scene.vma.vm_start, scene.vma.vm_end + 4096)
    assert scene.signatures() == ["lifetime/avc-range-stale"]


def test_avc_of_another_root(scene: Scene) -> None:
    """One walk takes one root's lock: a chain must not mix families."""
    scene.world.link(scene.vma, scene.world.faulted(scene.world.vma(100, 1)))
    assert scene.signatures() == ["lifetime/avc-of-other-root"]


def test_avc_of_another_vma(scene: Scene) -> None:
    """A chain that was moved between VMAs without its AVCs being told."""
    scene.vma.anon_vma_chain[0].vma = scene.huge_vma
    changed(scene.vma)
    assert scene.signatures() == ["lifetime/avc-of-other-vma"]


def test_unfaulted_vma_with_a_chain(scene: Scene) -> None:
    """unlink_anon_vmas forgot the AVCs."""
    assert scene.vma.anon_vma is not None
    scene.vma.anon_vma.num_active_vmas -= 1
    scene.vma.anon_vma = None
    assert scene.signatures() == ["lifetime/avc-of-unfaulted"]


def test_freed_anon_vma_still_used(scene: Scene) -> None:
    """The kernel's use after free of January 2026 looks like this."""
    anon_vma = scene.vma.anon_vma
    assert anon_vma is not None
    anon_vma.freed = True
    del scene.world.machine.anon_vmas_live[anon_vma.serial]
    changed(scene.vma)
    found = scene.signatures()
    assert "lifetime/use-after-free: anon_vma" in found


def test_anon_vma_leaked(scene: Scene) -> None:
    """An anon_vma to which no AVC leads is never freed."""
    scene.world.new_anon_vma()
    assert scene.signatures() == ["lifetime/anon_vma-leaked"]


def test_avc_of_an_unmapped_vma(scene: Scene) -> None:
    """munmap that forgets the rmap: the tree leads to a VMA that is gone."""
    vma = scene.world.vma(100, 1)
    anon_vma = scene.world.faulted(vma)
    assert scene.signatures() == []
    scene.world.mm.mm_mt.erase(vma)
    anon_vma.num_active_vmas = 0
    assert "lifetime/avc-leaked" in scene.everything()


def test_avc_that_the_chain_does_not_know(scene: Scene) -> None:
    """The VMA's chain lost an AVC that stands in the tree: it would be freed under the walker."""
    scene.world.link(scene.child, scene.vma.anon_vma_chain[0].anon_vma)
    scene.child.anon_vma_chain.pop(0)
    assert "lifetime/avc-leaked" in scene.everything()


def test_equal_anon_vma_needs_equal_avcs(scene: Scene) -> None:
    """Rule behind num_active_vmas (Jann Horn, 2022): VMAs with one anon_vma have the same AVCs."""
    assert scene.child.anon_vma is not None
    half = scene.world.vma(100, 1, mm=scene.child.vm_mm)
    scene.world.faulted(half, scene.child.anon_vma)
    assert "lifetime/avc-sets-differ" in scene.everything()


# ---- exit


def end_all(scene: Scene) -> None:
    """What exit of both processes should do, done by hand."""
    world = scene.world
    machine = world.machine
    for mm in list(machine.procs.values()):
        for vma in list(mm.mm_mt):
            for number in range(vma.vm_start >> 12, vma.vm_end >> 12):
                world.store(number, 0, mm=mm) if vma is not scene.huge_vma else None
            for avc in vma.anon_vma_chain:
                avc_remove(avc)
            vma.anon_vma_chain.clear()
            mm.mm_mt.erase(vma)
    world.table(80, level=1).set(2, 0)
    for folio in (scene.own, scene.shared, scene.cached, scene.huge):
        folio.refcount = folio.entire_mapcount = 0
        folio.mapcounts = [0] * folio.nr_pages
        machine.phys.free(folio)
    scene.cache_page.mapcounts = [0]
    scene.cache_page.refcount = 1
    machine.swap.cache.clear()
    machine.swap.count.clear()
    machine.swap.content.clear()
    for anon_vma in machine.anon_vmas_live.values():
        anon_vma.freed = True
    machine.anon_vmas_live.clear()
    machine.procs.clear()


def test_nothing_is_left_after_exit(scene: Scene) -> None:
    """The page cache may stay; everything else is gone."""
    end_all(scene)
    assert scene.everything() == []


def leak_folio(s: Scene) -> None:
    s.world.machine.phys.alloc(0).refcount = 0


def leak_slot(s: Scene) -> None:
    s.world.machine.swap.alloc(1)


@pytest.mark.parametrize(
    ("damage", "signature"), [(leak_folio, "lifetime/folio-leaked"), (leak_slot, "lifetime/swap-leaked")]
)
def test_leaks_at_exit(scene: Scene, damage: Callable[[Scene], None], signature: str) -> None:
    """The last process is gone, and a folio or slot is not."""
    end_all(scene)
    damage(scene)
    assert signature in scene.everything()


def test_pinned_folio_may_outlive_all_processes(scene: Scene) -> None:
    """A device's page stays until it is unpinned."""
    end_all(scene)
    folio: Folio = scene.world.machine.phys.alloc(0)
    folio.refcount = 0
    scene.world.pin(1, folio)
    assert scene.everything() == []


def test_avc_insert_is_the_inverse_of_avc_remove(scene: Scene) -> None:
    """What the damage in these tests relies on."""
    avc = scene.vma.anon_vma_chain[0]
    avc_remove(avc)
    avc_insert(avc)
    changed(scene.vma)
    assert scene.signatures() == []
