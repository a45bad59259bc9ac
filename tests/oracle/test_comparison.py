"""Comparing a machine built by hand with a specification written by hand: each way in which a page can differ."""

from __future__ import annotations

import pytest

from emulator.hw.pte import (
    MARKER_GUARD,
    SOFTLEAF_MARKER,
    SOFTLEAF_SWAP,
    USER,
    mk_pte,
    mk_softleaf,
)
from emulator.mm_types import VM_WRITE
from emulator.workload import FOLL_PIN, FOLL_WRITE, Op, Outcome, file_token
from oracle.comparison import VisibleOracle, is_copy
from oracle.contents import pack_data
from oracle.finding import Finding
from oracle.specification.page import GUARDED, Backing, Limits, Page, PinState
from oracle.specification.state import Specification
from tests.oracle.handmade import World

RW = 3
LANE = 40


class Scene:
    """An anonymous VMA at arena pages 6-11, a private file mapping at 20-23, a shared one at 30-31."""

    def __init__(self) -> None:
        self.world = world = World()
        first = world.first
        self.anon = world.vma(first + 6, 6)
        world.faulted(self.anon)
        self.private = world.file_vma(first + 20, 4, shared=False)
        world.faulted(self.private)
        self.shared = world.file_vma(first + 30, 2, shared=True, pgoff=4)
        self.spec = Specification(Limits(200, 200, 0))
        pages = self.spec.procs[0]
        for number in range(6, 12):
            pages[number] = Page(RW, None, 0)
        for number in range(20, 24):
            pages[number] = Page(RW, Backing(False, 0, number - 20), None)
        for number in range(30, 32):
            pages[number] = Page(RW, Backing(True, 0, number - 26), None)
        self.oracle = VisibleOracle(world.observer)

    def page(self, number: int) -> int:
        """The virtual page."""
        return self.world.first + number

    def judge(self) -> list[Finding]:
        self.world.look()
        self.world.observer.observe_everything()
        return self.oracle.compare(self.spec, 1, self.oracle.everything(self.spec), ())

    def signatures(self) -> list[str]:
        return [f.signature for f in self.judge()]


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    assert made.signatures() == []
    return made


def test_contents_wherever_they_are(scene: Scene) -> None:
    """Present, zero, swapped out, cached, under migration, of the file, copied from it: all read, all compared."""
    world, pages = scene.world, scene.spec.procs[0]
    world.page(scene.anon, scene.page(6), 9)
    pages[6] = Page(RW, None, 9)
    world.zero_page(scene.anon, scene.page(7))
    world.swapped(scene.anon, scene.page(8), 5)
    pages[8] = Page(RW, None, 5)
    slot = world.swapped(scene.anon, scene.page(9), 6)
    world.cache(slot, scene.anon, scene.page(9)).content[0][1] = 8
    pages[9] = Page(RW, None, 6 | 8 << LANE)
    folio = world.page(scene.anon, scene.page(10), 4)
    world.migration_entry(folio, scene.page(10))
    pages[10] = Page(RW, None, 4)
    world.file_page(scene.private, scene.page(20))
    world.page(scene.private, scene.page(21), 3)
    pages[21] = Page(RW, Backing(False, 0, 1), 3)
    world.file_page(scene.shared, scene.page(30)).content[0][0] = 77
    scene.spec.files[0, 4] = 77
    assert scene.signatures() == []
    pages[8] = Page(RW, None, 7)
    assert scene.signatures() == ["specification/contents:other contents"]


def test_huge_pages_are_compared_page_by_page() -> None:
    """The page within the huge page counts, also for a page that only the arguments of an op name."""
    world = World()
    vma = world.vma(80, 8)
    world.faulted(vma)
    folio = world.huge_page(vma, 80)
    folio.content[3][0] = 5
    number = 80 - world.first
    spec = Specification(Limits(200, 200, 0))
    spec.procs[0] = {number + i: Page(RW, None, 5 if i == 3 else 0) for i in range(8)}
    oracle = VisibleOracle(world.observer)
    world.look()
    op = Op("read", 0, (number + 3,))
    assert oracle.compare(spec, 1, oracle.touched((op,), [Outcome(0)]), (op,)) == []
    spec.procs[0][number + 3] = Page(RW, None, 6)
    found = oracle.compare(spec, 1, oracle.touched((op,), [Outcome(0)]), (op,))
    assert [f.signature for f in found] == ["specification/contents:other contents, read"]
    assert ("folio", folio.pfn) in found[0].subjects


@pytest.mark.parametrize(
    ("page", "signature"),
    [
        (None, "specification/mapped"),
        (Page(1, None, 0), "specification/permissions"),
        (Page(RW, Backing(False, 0, 0), None), "specification/backing"),
        (Page(RW, None, 5), "specification/contents:contents lost"),
    ],
)
def test_anonymous_page_that_differs(scene: Scene, page: Page | None, signature: str) -> None:
    """Mapped or not, protection, backing, contents: the specification says otherwise."""
    if page is None:
        del scene.spec.procs[0][6]
    else:
        scene.spec.procs[0][6] = page
    assert scene.signatures() == [signature]


@pytest.mark.parametrize(
    ("page", "signature"),
    [
        (Page(RW, None, 0), "specification/backing"),
        (Page(RW, Backing(True, 0, 0), None), "specification/backing"),
        (Page(RW, Backing(False, 1, 0), None), "specification/backing"),
        (Page(RW, Backing(False, 0, 1), None), "specification/backing"),
        (Page(RW, Backing(False, 0, 0), 5), "specification/contents:other contents"),
    ],
)
def test_file_page_that_differs(scene: Scene, page: Page, signature: str) -> None:
    """Another file, another page of it, shared or private, a copy or not."""
    scene.spec.procs[0][20] = page
    assert scene.signatures() == [signature]


def test_page_that_should_be_mapped(scene: Scene) -> None:
    """Below, above and between VMAs."""
    for number in (2, 15, 60):
        scene.spec.procs[0][number] = Page(RW, None, 0)
    assert scene.signatures() == ["specification/unmapped"] * 3


def test_entries_that_lead_nowhere(scene: Scene) -> None:
    """A swap slot that was never written, and a marker of no kind that there is."""
    scene.world.store(scene.page(6), mk_softleaf(SOFTLEAF_SWAP, 99))
    scene.world.store(scene.page(7), mk_softleaf(SOFTLEAF_MARKER, 8))
    assert scene.signatures() == ["specification/contents:entry leads nowhere"] * 2


def test_guards(scene: Scene) -> None:
    """One that should not be, one that should be and is not, one that is."""
    for number in (7, 8):
        scene.spec.procs[0][number] = Page(RW | GUARDED, None, 0)
    for number in (6, 8):
        scene.world.store(scene.page(number), mk_softleaf(SOFTLEAF_MARKER, MARKER_GUARD))
    assert scene.signatures() == ["specification/guard", "specification/guard:lost"]


def test_contents_out_of_nowhere(scene: Scene) -> None:
    """Somebody else's page under a fresh mapping."""
    scene.world.page(scene.anon, scene.page(6), 9)
    assert scene.signatures() == ["specification/contents:contents out of nowhere"]


def test_copy_made_without_need_is_followed(scene: Scene) -> None:
    """A fault for writing that failed after the copy leaves a copy: nobody sees it until the file is written."""
    folio = scene.world.page(scene.private, scene.page(20), file_token(0, 0))
    assert scene.signatures() == []
    assert scene.spec.procs[0][20].content == file_token(0, 0)
    slot = scene.world.swapped(scene.private, scene.page(21), file_token(0, 1))
    assert scene.signatures() == []
    assert scene.spec.procs[0][21].content == file_token(0, 1)
    scene.world.file_page(scene.private, scene.page(22))
    assert scene.signatures() == []
    assert scene.spec.procs[0][22].content is None
    assert folio.pfn
    assert slot


def test_processes_and_pins(scene: Scene) -> None:
    """Who lives, and which pins are held."""
    scene.spec.procs[2] = {}
    scene.spec.pins[4] = PinState(FOLL_PIN, 0, None)
    assert scene.signatures() == ["specification/processes"]
    del scene.spec.procs[2]
    assert scene.signatures() == ["specification/pins"]


def pinned(scene: Scene) -> None:
    """Page 6 is pinned for writing as pin 1, in both worlds."""
    folio = scene.world.page(scene.anon, scene.page(6), 9)
    scene.world.pin(1, folio)
    scene.spec.cells[1] = 9
    scene.spec.procs[0][6] = Page(RW, None, -1)
    scene.spec.pins[1] = PinState(FOLL_PIN | FOLL_WRITE, 1, None)
    assert scene.signatures() == []


def test_pin_and_process_must_see_the_same(scene: Scene) -> None:
    """Contents of the pinned page itself, mapped or not."""
    pinned(scene)
    scene.world.machine.pins[1].folio.content[0][0] = 8
    assert scene.signatures() == [
        "specification/contents:other contents",
        "specification/pin-incoherent",
    ]


def test_pinned_page_that_was_replaced(scene: Scene) -> None:
    """A copy with the same contents: the next write would part them."""
    pinned(scene)
    scene.world.page(scene.anon, scene.page(6), 9)
    assert scene.signatures() == ["specification/pin-incoherent"]
    scene.world.store(scene.page(6), 0)
    scene.spec.cells[1] = 0
    scene.world.machine.pins[1].folio.content[0].clear()
    assert scene.signatures() == ["specification/pin-incoherent"]


def test_pinned_page_in_a_place_that_does_not_share_it(scene: Scene) -> None:
    """The child of a fork must have got a copy."""
    pinned(scene)
    pfn = scene.world.machine.pins[1].folio.pfn
    scene.world.store(scene.page(7), mk_pte(pfn, USER))
    scene.spec.procs[0][7] = Page(RW, None, 9)
    assert scene.signatures() == ["specification/pin-incoherent"]


def test_pin_of_a_file_page(scene: Scene) -> None:
    """It sees the file."""
    folio = scene.world.file_page(scene.shared, scene.page(30))
    scene.world.pin(1, folio)
    scene.spec.pins[1] = PinState(FOLL_PIN | FOLL_WRITE, 0, (0, 4))
    assert scene.signatures() == []
    folio.content[0][2] = 5
    assert "specification/pin-incoherent" in scene.signatures()


def test_write_through_a_mere_reference(scene: Scene) -> None:
    """The machine is believed wherever the folio shows: mapped, in the swap cache, in other pins."""
    world, spec = scene.world, scene.spec
    folio = world.page(scene.anon, scene.page(6), 9)
    world.pin(1, folio, flags=FOLL_WRITE)
    world.pin(2, folio)
    spec.cells[1] = 9
    spec.procs[0][6] = Page(RW, None, -1)
    spec.pins = {1: PinState(FOLL_WRITE, 0, None), 2: PinState(FOLL_PIN | FOLL_WRITE, 1, None)}
    slot = world.swapped(scene.anon, scene.page(8), 9)
    cached = world.cache(slot, scene.anon, scene.page(8))
    world.pin(3, cached, flags=FOLL_WRITE)
    spec.pins[3] = PinState(FOLL_WRITE, 0, None)
    spec.procs[0][8] = Page(RW, None, 9)
    assert scene.signatures() == []
    folio.content[0][1] = 5
    cached.content[0][1] = 6
    spec.wild = [1, 3, 7]
    scene.oracle.settle_wild_writes(spec)
    assert spec.wild == []
    assert scene.signatures() == []
    assert spec.cells[1] == 9 | 5 << LANE
    assert spec.procs[0][8].content == 9 | 6 << LANE


def test_shows(scene: Scene) -> None:
    """The question that settling an injected failure asks of the machine."""
    shows = scene.oracle.view.shows
    spec = scene.spec
    assert shows(spec, 0, 6, Page(RW, None, 0))
    assert not shows(spec, 0, 6, None)
    assert not shows(spec, 0, 6, Page(1, None, 0))
    assert not shows(spec, 0, 6, Page(RW, None, 4))
    assert shows(spec, 0, 2, None)
    assert not shows(spec, 0, 2, Page(RW, None, 0))
    assert not shows(spec, 3, 2, None)
    pinned(scene)
    assert shows(spec, 0, 6, Page(RW, None, -1))
    assert not shows(spec, 0, 6, Page(RW, None, 9))


def test_touched_names_what_a_step_may_have_changed(scene: Scene) -> None:
    """Arguments and results of ops, stored entries, changed VMAs; for a child all that its parent has."""
    first = scene.world.first
    scene.world.look()
    ops = (
        Op("mmap", 0, (50, 2, RW, 2, 0, 0)),
        Op("mremap", 0, (6, 2, 3, 3, 60)),
        Op("mremap", 0, (6, 1, 1, 3, 70)),
        Op("fork", 0, (1,)),
        Op("unpin", 0, (4,)),
    )
    outcomes = [Outcome(55), Outcome(-12), Outcome(72), Outcome(-12), Outcome(0)]
    scene.world.store(first + 9, mk_softleaf(SOFTLEAF_SWAP, 7))
    scene.world.look(*ops)
    table = scene.oracle.touched(ops, outcomes)
    assert sorted(table[0]) == [6, 7, 9, 55, 56, 60, 61, 62, 72]
    assert table[0][9] == mk_softleaf(SOFTLEAF_SWAP, 7)
    assert set(table[1]) == {*table[0], *range(6, 12), *range(20, 24), 30, 31}
    scene.anon.vm_flags &= ~VM_WRITE
    scene.world.look()
    assert set(range(6, 12)) <= set(scene.oracle.touched((), [])[0])


@pytest.mark.parametrize(
    ("got", "want", "copy"),
    [
        (((0, 7), (1, 2)), ((0, 5), (1, 2)), True),  # the store, and all else as it was
        (((0, 7),), (), True),
        (((0, 8), (1, 2)), ((0, 5), (1, 2)), False),  # another token
        (((1, 7), (0, 5)), ((0, 5),), False),  # another place in the page
        (((0, 7), (1, 9)), ((0, 5), (1, 2)), False),  # something else has changed as well
    ],
)
def test_a_copy_of_a_wild_store(
    got: tuple[tuple[int, int], ...], want: tuple[tuple[int, int], ...], copy: bool
) -> None:
    """Only the very token that was stored through a reference may show, and nothing else with it."""
    assert is_copy(pack_data(got), pack_data(want), [(0, 7), (2, 11)]) is copy
