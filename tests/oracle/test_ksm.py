"""What the oracles say of KSM pages: each thing that the scanner remembers wrong, and places where nothing leads."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.designs.mainline import Mainline
from emulator.image import KernelImage
from emulator.ksm_types import KsmStableNode
from emulator.mm_types import VM_MERGEABLE, Folio, VmAreaStruct
from emulator.workload import Op, Step, Workload
from oracle.judge import Judge
from oracle.ksm import KsmOracle
from oracle.lifetime import LifetimeOracle
from oracle.rmap import RmapOracle
from oracle.structure import StructureOracle
from tests.oracle.handmade import ANON_RW, NO_OPS, World

MERGEABLE = ANON_RW | VM_MERGEABLE


class Scene:
    """A page merged at two places of a parent, mapped by its child too; judged once already."""

    def __init__(self) -> None:
        self.world = world = World()
        self.vma = world.vma(70, 6, flags=MERGEABLE)
        world.faulted(self.vma)
        self.node = world.ksm_page((self.vma, 70), (self.vma, 72))
        self.child = world.fork_vma(self.vma, world.process(1))
        for page in (70, 72):
            world.share(self.folio, self.child, page)
        self.rmap = RmapOracle(world.observer)
        self.lifetime = LifetimeOracle(world.observer)

    @property
    def folio(self) -> Folio:
        return self.node.folio

    def signatures(self) -> list[str]:
        """What any of the oracles says of the last step, and of everything."""
        self.world.look()
        found = self.rmap.check(1, False) + self.lifetime.check(1, NO_OPS)
        found += StructureOracle(self.world.observer).check(1) + KsmOracle(self.world.observer).check(1)
        self.world.observer.observe_everything()
        found += self.rmap.check_all(1, False) + LifetimeOracle(self.world.observer).check_all(1)
        return sorted({f.signature for f in found})

    def map_at(self, vma: VmAreaStruct, page: int) -> None:
        self.world.share(self.folio, vma, page)


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    assert made.signatures() == []
    return made


# ---- what the scanner remembers


def other_contents(s: Scene) -> None:
    s.folio.content[0][1] = 9


def exclusive(s: Scene) -> None:
    s.folio.anon_exclusive = 1


def not_ksm(s: Scene) -> None:
    s.folio.ksm = False


def listed_elsewhere(s: Scene) -> None:
    s.node.hlist[0].head = KsmStableNode(s.folio, s.node.contents)


def not_listed(s: Scene) -> None:
    del s.node.hlist[0]


def not_of_its_process(s: Scene) -> None:
    s.world.machine.ksm.mm_slots[0].rmap_list.remove(s.node.hlist[0])


def out_of_order(s: Scene) -> None:
    s.world.machine.ksm.mm_slots[0].rmap_list.reverse()


def filed_wrongly(s: Scene) -> None:
    tree = s.world.machine.ksm.stable_tree
    tree[((0, 8),)] = tree.pop(s.node.contents)


def forgotten(s: Scene) -> None:
    s.world.machine.ksm.stable_tree.clear()


def anon_vma_freed(s: Scene) -> None:
    s.node.hlist[0].anon_vma = s.world.new_anon_vma()
    s.node.hlist[0].anon_vma.freed = True
    del s.world.machine.anon_vmas_live[s.node.hlist[0].anon_vma.serial]
    assert s.vma.anon_vma is not None
    s.vma.anon_vma.refcount -= 1


def reference_lost(s: Scene) -> None:
    assert s.vma.anon_vma is not None
    s.vma.anon_vma.refcount -= 1


@pytest.mark.parametrize(
    ("broken", "signature"),
    [
        (other_contents, "ksm/contents"),
        (exclusive, "ksm/state"),
        (not_ksm, "ksm/state"),
        (listed_elsewhere, "ksm/item-lost"),
        (not_listed, "ksm/item-lost"),
        (not_of_its_process, "ksm/item-lost"),
        (out_of_order, "ksm/item-order"),
        (filed_wrongly, "ksm/stable-tree"),
        (forgotten, "ksm/node-lost"),
        (anon_vma_freed, "ksm/use-after-free: anon_vma"),
        (reference_lost, "lifetime/anon_vma-refcount"),
    ],
)
def test_what_the_scanner_remembers(scene: Scene, broken: Callable[[Scene], None], signature: str) -> None:
    broken(scene)
    assert signature in scene.signatures()


def test_a_stale_node_is_no_matter(scene: Scene) -> None:
    """Its page is gone: nobody has told the scanner yet."""
    world = scene.world
    for mm in world.machine.procs.values():
        for page in (70, 72):
            world.store(page, 0, mm=mm)
    scene.folio.mapcounts[0] = scene.folio.refcount = 0
    scene.folio.freed = True
    del world.machine.phys.live[scene.folio.pfn]
    assert scene.signatures() == []


# ---- places


def test_a_place_where_nothing_leads(scene: Scene) -> None:
    """Mapped elsewhere in mergeable memory, as if it had been moved along with its mapping."""
    scene.map_at(scene.vma, 74)
    assert scene.signatures() == ["rmap/unreachable:KSM page"]


def of_an_item(s: Scene) -> None:
    item = s.node.hlist[0]
    item.address = 74 << 12
    s.map_at(s.vma, 74)


def from_the_swap_cache(s: Scene) -> None:
    slot = s.world.swapped(s.vma, 75, exclusive=False)
    s.world.machine.swap.cache[slot] = s.folio
    s.folio.swapcache, s.folio.swap = True, slot
    s.folio.refcount += 1
    s.map_at(s.vma, 74)


def no_longer_mergeable(s: Scene) -> None:
    s.child.vm_flags &= ~VM_MERGEABLE
    s.map_at(s.child, 74)


def without_a_node(s: Scene) -> None:
    s.folio.mapping = None
    s.node.hlist.clear()
    s.world.machine.ksm.stable_tree.clear()
    for item in s.world.machine.ksm.mm_slots[0].rmap_list:
        item.head = None
    assert s.vma.anon_vma is not None
    s.vma.anon_vma.refcount -= 2
    s.map_at(s.vma, 74)


def items_gone_since(s: Scene) -> None:
    """The child was found through its parent when it was made; now it is touched again."""
    for item in s.node.hlist:
        item.head = None
    s.node.hlist.clear()
    assert s.vma.anon_vma is not None
    s.vma.anon_vma.refcount -= 2
    s.world.store(70, 0, mm=s.child.vm_mm)
    s.folio.mapcounts[0] -= 1
    s.folio.refcount -= 1
    s.map_at(s.child, 70)


@pytest.mark.parametrize(
    "excuse", [of_an_item, from_the_swap_cache, no_longer_mergeable, without_a_node, items_gone_since]
)
def test_places_that_are_as_in_linux(scene: Scene, excuse: Callable[[Scene], None]) -> None:
    """Where the reverse map leads, or does not have to."""
    excuse(scene)
    assert [s for s in scene.signatures() if s.startswith("rmap")] == []


def test_a_sharer_of_a_page_that_becomes_a_ksm_page() -> None:
    """It was shared by a fork before: one of the two has no item, and no item leads there."""
    world = World()
    vma = world.vma(70, 4, flags=MERGEABLE)
    world.faulted(vma)
    child = world.fork_vma(vma, world.process(1))
    node = world.ksm_page((child, 70))
    world.share(node.folio, vma, 70)
    assert child.anon_vma is not vma.anon_vma
    world.look()
    oracle = RmapOracle(world.observer)
    assert oracle.check(1, False) == []
    stranger = world.vma(90, 4, flags=MERGEABLE)
    world.faulted(stranger)
    world.share(node.folio, stranger, 90)
    world.look()
    assert [f.signature for f in oracle.check(2, False)] == ["rmap/unreachable:KSM page"]


def test_swapped_out_from_several_places(scene: Scene) -> None:
    """What is read back fits one of them only; the others get copies when they are touched."""
    world = scene.world
    slot = world.machine.swap.alloc(1)
    for mm in world.machine.procs.values():
        for page in (70, 72):
            world.machine.swap.get(slot)
            world.store(page, slot << 12 | 1 << 3, mm=mm)
    world.machine.swap.content[slot] = {0: 7}
    scene.folio.mapcounts[0] = scene.folio.refcount = 0
    scene.folio.freed = True
    del world.machine.phys.live[scene.folio.pfn]
    assert scene.signatures() == []
    world.cache(slot, scene.vma, 72)
    assert scene.signatures() == []
    world.cache(world.swapped(scene.vma, 75), scene.vma, 71)  # another slot is not excused
    assert "rmap/misplaced:folio made wrong, swap cache" in scene.signatures()


def test_a_copy_leaves_the_old_page_in_the_swap_cache() -> None:
    """At the end it may still be there, but only where same-page merging went on."""
    world = World()
    oracle = LifetimeOracle(world.observer)
    vma = world.vma(70, 2)
    world.faulted(vma)
    world.cache(world.swapped(vma, 70), vma, 70)
    del world.machine.procs[0]
    world.machine.swap.count[1] = 0
    world.look()
    world.observer.observe_everything()
    assert any(f.rule == "folio-leaked" for f in oracle.check_all(1))


# ---- a whole run


def keeps_pages_merged(area: object, addr: int) -> int:
    """break_ksm that does nothing."""
    return 0


def test_a_move_that_takes_merged_pages_along() -> None:
    """The machine moves a merged page without unmerging it: the rmap oracle says so."""
    image = KernelImage(Mainline)
    image.ksm.break_ksm = keeps_pages_merged
    ops = [
        Op("mmap", 0, (0, 4, 3, 0x12, 0, 0)),
        Op("madvise", 0, (0, 4, 12)),
        Op("fill", 0, (0, 1)),
        Op("fill", 0, (1, 1)),
        Op("ksm_scan", 0, (0,)),
        Op("ksm_scan", 0, (0,)),
        Op("mremap", 0, (0, 1, 1, 3, 20)),
    ]
    found = Judge(image).run(Workload("small8", tuple(Step((op,)) for op in ops))).findings
    assert [f.signature for f in found] == ["rmap/unreachable:KSM page"]


def test_a_write_that_reaches_a_merged_page() -> None:
    """Somebody else's contents change: seen by whoever looks first."""
    image = KernelImage(Mainline)
    image.memory_wp.wp_can_reuse_anon_folio = lambda folio, vma: True
    ops = [
        Op("mmap", 0, (0, 4, 3, 0x12, 0, 0)),
        Op("madvise", 0, (0, 4, 12)),
        Op("fill", 0, (0, 1)),
        Op("fill", 0, (1, 1)),
        Op("ksm_scan", 0, (0,)),
        Op("ksm_scan", 0, (0,)),
        Op("write", 0, (0, 1)),
    ]
    found = Judge(image).run(Workload("small8", tuple(Step((op,)) for op in ops))).findings
    assert found
    assert found[0].oracle in ("structure", "ksm", "specification")
