"""The structure, accounting and TLB oracles on states built by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.hw.pte import EXEC, RW, SPECIAL, USER, mk_pte
from emulator.mm_types import VM_EXEC, VM_GROWSDOWN, VM_LOCKED, VM_READ, VM_WRITE
from emulator.uapi import MREMAP_FIXED, MREMAP_MAYMOVE
from emulator.workload import Op, Outcome
from oracle.accounting import AccountingOracle
from oracle.finding import Finding
from oracle.structure import StructureOracle
from oracle.tlb import TlbOracle
from tests.oracle.handmade import ANON_RW, NO_OPS, World


@pytest.fixture
def world() -> World:
    world = World()
    vma = world.vma(70, 4)
    world.faulted(vma)
    world.page(vma, 71)
    world.zero_page(vma, 72)
    world.swapped(vma, 73)
    huge = world.vma(80, 8)
    world.faulted(huge)
    world.huge_page(huge, 80)
    world.file_page(world.file_vma(90, 4, shared=True), 91, USER | RW)
    world.huge_zero_page()
    world.look()
    assert StructureOracle(world.observer).check(1) == []
    return world


def judge(world: World) -> list[Finding]:
    """The incremental check; the full one must say that too."""
    world.look()
    found = StructureOracle(world.observer).check(1)
    world.observer.observe_everything()
    everything = StructureOracle(world.observer).check(1)
    assert {f.signature for f in found} <= {f.signature for f in everything}
    return found


def signatures(world: World) -> list[str]:
    return [f.signature for f in judge(world)]


# ---- VMAs


def overlap(world: World) -> None:
    world.mm.mm_mt.lookup(70 << 12).vm_end = 81 << 12  # type: ignore[union-attr]


def unaligned(world: World) -> None:
    world.mm.mm_mt.lookup(90 << 12).vm_end += 5  # type: ignore[union-attr]


def beyond(world: World) -> None:
    world.mm.mm_mt.lookup(90 << 12).vm_end = world.machine.geometry.task_size + 4096  # type: ignore[union-attr]


def detached(world: World) -> None:
    world.vma(100, 1).detached = True


def uncounted(world: World) -> None:
    world.vma(100, 1)
    world.mm.map_count -= 1


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (overlap, "vma-overlap"),
        (unaligned, "vma-range"),
        (beyond, "vma-range"),
        (detached, "vma-detached"),
        (uncounted, "map_count"),
    ],
)
def test_vma_tree(world: World, damage: Callable[[World], None], rule: str) -> None:
    """Order, ranges and the count of VMAs (validate_mm)."""
    damage(world)
    assert rule in [f.rule for f in judge(world)]


# ---- entries


def test_entry_without_vma(world: World) -> None:
    """munmap that forgets a page."""
    vma = world.mm.mm_mt.lookup(70 << 12)
    assert vma is not None
    world.mm.mm_mt.erase(vma)
    world.mm.map_count -= 1
    assert "structure/entry-outside-vma" in signatures(world)


def test_huge_entry_across_the_end_of_its_vma(world: World) -> None:
    """A split of the VMA must split the huge page that stands across (vma_adjust_trans_huge)."""
    world.mm.mm_mt.lookup(80 << 12).vm_end = 84 << 12  # type: ignore[union-attr]
    assert signatures(world) == ["structure/huge-entry-outside-vma"]


def test_entry_grants_more_than_its_vma(world: World) -> None:
    """mprotect that forgets the page tables; one signature for each permission."""
    vma = world.mm.mm_mt.lookup(70 << 12)
    assert vma is not None
    vma.vm_flags &= ~(VM_WRITE | VM_READ)
    assert signatures(world) == [
        "structure/entry-permission:user, write",
        "structure/entry-permission:user",
    ]
    vma.vm_flags |= VM_READ
    world.store(72, mk_pte(1, USER | SPECIAL | EXEC))
    assert "structure/entry-permission:exec" in signatures(world)


def test_zero_page_writable(world: World) -> None:
    """Everybody's zeros would be overwritten."""
    world.store(72, mk_pte(world.machine.phys.zero_folio.pfn, USER | SPECIAL | RW))
    assert signatures(world) == ["structure/zero-page-writable"]


@pytest.mark.parametrize("huge", [False, True])
@pytest.mark.parametrize("what", ["index", "mapping", "content"])
def test_zero_page_changed(world: World, what: str, huge: bool) -> None:
    """Whoever writes to the zero page, or to what describes it, writes to everybody's."""
    zero = world.huge_zero_page() if huge else world.machine.phys.zero_folio
    if what == "content":
        zero.content[-1][0] = 5
    elif what == "index":
        zero.index = 7
    else:
        zero.mapping = world.mm.mm_mt.lookup(70 << 12).anon_vma  # type: ignore[union-attr]
    assert signatures(world) == ["structure/zero-page-changed"]


def test_writable_page_that_is_shared(world: World) -> None:
    """fork that forgets to write-protect the parent: its writes show in the child."""
    vma = world.mm.mm_mt.lookup(70 << 12)
    assert vma is not None
    folio = world.page(vma, 70)
    folio.anon_exclusive = 0
    assert signatures(world) == ["structure/writable-not-exclusive"]


def test_exclusive_page_mapped_twice(world: World) -> None:
    """fork that forgets to clear PageAnonExclusive: the next write fault reuses a shared page."""
    vma = world.mm.mm_mt.lookup(70 << 12)
    assert vma is not None
    folio = world.page(vma, 70)
    child = world.fork_vma(vma, world.process(1))
    world.share(folio, child, 70)
    world.store(70, mk_pte(folio.pfn, USER))
    folio.anon_exclusive = 1
    assert signatures(world) == ["structure/exclusive-shared", "structure/exclusive-shared"]


def test_exclusive_page_of_a_huge_folio_mapped_twice(world: World) -> None:
    """By a PMD and by a PTE."""
    folio = world.machine.phys.frames[world.table(80, level=1).get(2) >> 12]  # type: ignore[operator]
    other = world.vma(100, 1)
    world.store(100, mk_pte(folio.pfn + 3, USER))
    assert other.vm_start
    assert "structure/exclusive-shared" in signatures(world)


def test_exclusive_swap_entry_shared(world: World) -> None:
    """fork of a swapped-out page must drop the exclusive mark."""
    entry = world.table(73).get(73 & 7)
    world.vma(100, 1)
    assert isinstance(entry, int)
    world.store(100, entry)
    assert signatures(world) == ["structure/exclusive-shared:swap"]


def test_anonymous_page_in_a_shared_mapping(world: World) -> None:
    """A shared mapping shows the file and nothing else."""
    source = world.mm.mm_mt.lookup(70 << 12)
    assert source is not None
    folio = world.page(source, 70)
    world.store(90, mk_pte(folio.pfn, USER))
    assert "structure/anon-in-shared" in signatures(world)


def test_file_pages(world: World) -> None:
    """Where the offset says, of the VMA's file, and not writable in a private mapping."""
    shared = world.mm.mm_mt.lookup(90 << 12)
    assert shared is not None
    world.store(93, world.table(91).get(91 & 7))  # type: ignore[arg-type]
    assert signatures(world) == ["structure/file-page-misplaced"]
    world.store(93, 0)
    private = world.file_vma(100, 2, shared=False)
    world.file_page(private, 100, USER | RW)
    assert signatures(world) == ["structure/file-page-writable"]
    world.store(100, 0)
    folio = world.file_page(private, 101)
    world.store(101, 0)
    world.store(70, mk_pte(folio.pfn, USER))
    assert signatures(world) == ["structure/file-page-in-anon"]


# ---- accounting


def test_accounting_of_a_right_state(world: World) -> None:
    """All kinds of VMAs counted as the kernel counts them."""
    oracle = AccountingOracle(world.observer)
    world.observer.observe_everything()
    assert oracle.check(1, NO_OPS, []) == []
    executable = world.vma(110, 2, flags=VM_READ | VM_EXEC)
    world.mm.exec_vm += 2
    stack = world.vma(115, 3, flags=VM_READ | VM_WRITE | VM_GROWSDOWN | VM_LOCKED)
    world.mm.stack_vm += 3
    world.mm.data_vm -= 3
    world.mm.locked_vm += 3
    assert executable.vm_end < stack.vm_start
    world.look()
    assert oracle.check(2, NO_OPS, []) == []


@pytest.mark.parametrize("name", ["total_vm", "exec_vm", "stack_vm", "data_vm", "locked_vm"])
def test_counter_wrong_by_one(world: World, name: str) -> None:
    """Each counter of the process."""
    world.vma(110, 2)
    setattr(world.mm, name, getattr(world.mm, name) + 1)
    world.look()
    found = AccountingOracle(world.observer).check(2, NO_OPS, [])
    assert f"accounting/{name}" in [f.signature for f in found]


def test_committed_pages_leak(world: World) -> None:
    """A charge that is not given back; the next step is not blamed for it again."""
    oracle = AccountingOracle(world.observer)
    world.observer.observe_everything()
    assert oracle.check(1, NO_OPS, []) == []
    world.machine.committed += 3
    op = Op("munmap", 0, (1, 1))
    world.look(op)
    found = oracle.check(2, (op,), [Outcome(0)])
    assert [f.signature for f in found] == ["accounting/committed:too many, munmap"]
    world.look(op)
    assert oracle.check(3, (op,), [Outcome(0)]) == []
    world.machine.committed -= 9
    assert [f.signature for f in oracle.check(4, (op,), [Outcome(0)])] == [
        "accounting/committed:too few, munmap"
    ]


def test_committed_after_an_injected_failure(world: World) -> None:
    """A charge lost in an error path is another flaw than one lost in a call that went well."""
    oracle = AccountingOracle(world.observer)
    world.observer.observe_everything()
    assert oracle.check(1, NO_OPS, []) == []
    op = Op("mremap", 0, (10, 5, 2, MREMAP_MAYMOVE | MREMAP_FIXED, 60))
    world.machine.committed += 3
    found = oracle.check(2, (op, Op("read", 0, (1,))), [Outcome(60), Outcome(0)])
    assert [f.signature for f in found] == ["accounting/committed:too many, mremap"]
    world.machine.committed += 7
    found = oracle.check(4, (op._replace(fail_nth=2),), [Outcome(-12, None, True)])
    assert [f.signature for f in found] == ["accounting/committed:too many, mremap, failure injected"]
    assert not found[0].ends_run


def test_processes_that_end_are_uncharged(world: World) -> None:
    """exit gives back what the process had charged."""
    oracle = AccountingOracle(world.observer)
    mm = world.process(1)
    world.vma(70, 4, mm=mm)
    world.look()
    world.observer.observe_everything()
    assert oracle.check(1, NO_OPS, []) == []
    del world.machine.procs[1]
    op = Op("exit", 1, ())
    world.look(op)
    found = oracle.check(2, (op,), [Outcome(0)])
    assert [f.signature for f in found] == ["accounting/committed:too many, exit"]


# ---- TLBs


def load(world: World, page: int, entry: int, cpu: int = 1) -> None:
    world.machine.tlbs[cpu].entries[world.mm.asid, page] = entry


def stale(world: World) -> list[str]:
    world.look()
    oracle = TlbOracle(world.observer)
    found = [f.signature for f in oracle.check(1)]
    assert set(found) == {f.signature for f in oracle.check_all(1)}
    return found


def test_tlb_entry_that_is_current_or_weaker(world: World) -> None:
    """Less permission than the page tables give is a fault for nothing, and allowed."""
    entry = world.table(71).get(71 & 7)
    assert isinstance(entry, int)
    load(world, 71, entry & ~RW)
    world.store(71, entry)
    assert stale(world) == []


def test_tlb_outlives_the_entry(world: World) -> None:
    """Unmapped without a flush."""
    entry = world.table(71).get(71 & 7)
    assert isinstance(entry, int)
    load(world, 71, entry)
    world.store(71, 0)
    assert stale(world) == ["tlb/stale-translation:entry cleared"]


def test_tlb_with_more_permission(world: World) -> None:
    """Write-protected without a flush: the parent would write into the child's page."""
    entry = world.table(71).get(71 & 7)
    assert isinstance(entry, int)
    load(world, 71, entry)
    world.store(71, entry & ~RW)
    assert stale(world) == ["tlb/stale-translation:permission taken away"]


def test_tlb_with_another_frame(world: World) -> None:
    """Copied on write without a flush: other CPUs go on with the old page."""
    vma = world.mm.mm_mt.lookup(71 << 12)
    assert vma is not None
    entry = world.table(71).get(71 & 7)
    assert isinstance(entry, int)
    load(world, 71, entry)
    world.page(vma, 71)
    assert stale(world) == ["tlb/stale-translation:frame changed"]


def test_tlb_of_a_moved_page_table(world: World) -> None:
    """A PMD-level move without a flush: the old range still translates."""
    entry = world.table(71).get(71 & 7)
    assert isinstance(entry, int)
    load(world, 71, entry)
    pmd = world.table(64, level=1)
    table = pmd.get(0)
    pmd.set(0, 0)
    pmd.set(5, table)
    assert stale(world) == ["tlb/stale-translation:entry cleared"]


def test_tlb_of_a_huge_page(world: World) -> None:
    """One PMD store concerns all of its pages."""
    pmd = world.table(80, level=1)
    entry = pmd.get(2)
    assert isinstance(entry, int)
    load(world, 83, entry + (3 << 12))
    pmd.set(2, entry | 1 << 8)
    assert stale(world) == []
    pmd.set(2, entry & ~RW)
    assert stale(world) == ["tlb/stale-translation:permission taken away"]


def test_tlb_of_a_dead_process_does_not_matter(world: World) -> None:
    """Nobody runs in it, and its number is never given out again."""
    mm = world.process(1)
    vma = world.vma(70, 2, mm=mm)
    world.faulted(vma)
    folio = world.page(vma, 70)
    world.machine.tlbs[0].entries[mm.asid, 70] = mk_pte(folio.pfn, USER)
    world.look()
    world.store(70, 0, mm=mm)
    del world.machine.procs[1]
    assert stale(world) == []


def test_flags_of_the_builder() -> None:
    """The default VMA of these tests is a private anonymous one that is charged."""
    assert ANON_RW & VM_WRITE
